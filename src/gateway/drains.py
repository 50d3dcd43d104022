"""Draining an executor: the gateway finds it and tells it; it keeps that, and tells its shards."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from ..mesh.errors import NoLeader, NotFound
from ..proto.tickmesh.internal.v1 import executor_pb2
from ..proto.tickmesh.v1 import cluster_pb2
from .executors import Executors
from .images import explained
from .shards import Shard


async def drain(
    shards: tuple[Shard, ...],
    executors: Executors,
    request: cluster_pb2.DrainExecutorRequest,
    timeout_s: float,
) -> cluster_pb2.Executor:
    """Tell an executor. Raises NotFound, and NoExecutor if it cannot be reached."""
    worker = await _find(shards, request.executor_id, timeout_s)
    stub = await executors.at(worker.address)
    try:
        await stub.Drain(
            executor_pb2.DrainRequest(
                undo=request.undo, end_after_ms=request.end_after.ToMilliseconds()
            ),
            timeout=timeout_s,
        )
    except grpc.aio.AioRpcError as error:
        raise explained(worker, error) from error
    worker.draining = not request.undo
    return worker


async def _find(
    shards: tuple[Shard, ...], executor_id: str, timeout_s: float
) -> cluster_pb2.Executor:
    answers = await asyncio.gather(
        *(shard.executors(timeout_s) for shard in shards), return_exceptions=True
    )
    for answer in answers:
        if not isinstance(answer, BaseException):
            for worker in answer:
                if worker.executor_id == executor_id:
                    return worker
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, NoLeader):
            raise answer
    silent = [shard.id for shard, a in zip(shards, answers, strict=True) if isinstance(a, NoLeader)]
    if silent:
        raise NoLeader(
            f"executor {executor_id!r} is not attached to any shard that has a leader; there is "
            f"none of {', '.join(silent)} now: try again"
        )
    raise NotFound(f"no executor {executor_id!r} is attached to the mesh")


def together(first: cluster_pb2.Executor, second: cluster_pb2.Executor) -> cluster_pb2.Executor:
    """One executor as two shards see it: each knows only of what it gave it."""
    both = cluster_pb2.Executor()
    both.CopyFrom(first)
    both.used_slot_count += second.used_slot_count
    both.used_memory_bytes += second.used_memory_bytes
    both.used_cpu_millis += second.used_cpu_millis
    return both
