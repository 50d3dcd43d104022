"""StreamLogs: what an execution wrote, read from the executor that holds it, or from the archive.

The executor is asked first, as it has what is newest; the archive, when that is away or has dropped
its copy, also in the middle of a stream: a cursor means the same in both.

An execution may have no attempt yet, and may get another after the one that is read: with `follow`
the stream waits for both, and ends when the execution is final. A cursor is "{attempt}.{where}",
with the executor's own cursor after the point.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc.aio

from ..mesh import output
from ..mesh.errors import (
    STATUS_METADATA_KEY,
    DeadlineExceeded,
    NoExecutor,
    NotFound,
    TickmeshError,
    from_rpc_error,
    invalid,
)
from ..proto.tickmesh.internal.v1 import executor_pb2, shard_pb2
from ..proto.tickmesh.v1 import execution_pb2
from .archive import Archive
from .executors import Executors
from .shards import Shard

ACTIVE_STATES = frozenset(
    {
        execution_pb2.EXECUTION_STATE_PENDING,
        execution_pb2.EXECUTION_STATE_ASSIGNED,
        execution_pb2.EXECUTION_STATE_RUNNING,
    }
)


class Cursor(NamedTuple):
    """Where a stream goes on."""

    attempt: int
    """0: the last."""
    where: str
    """The executor's cursor. Empty: from the beginning."""


def parse_cursor(text: str, attempt: int) -> Cursor:
    """A request's cursor and attempt together. Raises InvalidRequest."""
    if not text:
        return Cursor(attempt, "")
    number, point, where = text.partition(".")
    if not point or not number.isascii() or not number.isdigit() or len(number) > 3:
        raise invalid("cursor", "is not one that StreamLogs gave out")
    if attempt and attempt != int(number):
        raise invalid("cursor", f"belongs to attempt {int(number)}, not to attempt {attempt}")
    return Cursor(int(number), where)


def attempt_number(attempt_id: str) -> int:
    """The number at the end of an attempt's id (shard.proto)."""
    return int(attempt_id.rpartition("-")[2])


class Sources(NamedTuple):
    """Where output is."""

    executors: Executors
    archive: Archive | None


async def stream(
    shard: Shard, sources: Sources, request: Any, timeout_s: float
) -> AsyncIterator[bytes]:
    """Serialised StreamLogsResponses. Raises what the shard, the executor or the archive answers,
    NoExecutor or DeadlineExceeded."""
    loop = asyncio.get_running_loop()
    expires_s = loop.time() + timeout_s
    attempt, where = parse_cursor(request.cursor, request.attempt)
    while True:
        located = await _locate(shard, request, attempt, expires_s - loop.time())
        if located is None:
            return
        number = attempt_number(located.attempt_id)
        parts = _output(
            sources, request.name, located, where, request.follow, expires_s - loop.time()
        )
        async for part in parts:
            yield _response(number, part).SerializeToString()
        if not request.follow or request.attempt:
            return
        attempt, where = number + 1, ""


def _response(
    number: int, part: executor_pb2.StreamOutputResponse
) -> execution_pb2.StreamLogsResponse:
    response = execution_pb2.StreamLogsResponse(
        data=part.data,
        stream=part.stream,  # type: ignore[arg-type]
        cursor=f"{number}.{part.cursor}",
        truncated=part.dropped_bytes > 0,
        dropped_bytes=part.dropped_bytes,
    )
    for offset, time_ns in zip(part.time_offsets, part.times_ns, strict=True):
        response.times.add(offset=offset).time.FromNanoseconds(time_ns)
    return response


async def _locate(
    shard: Shard, request: Any, attempt: int, timeout_s: float
) -> shard_pb2.LocateExecutionResponse | None:
    """Where an attempt is; None if there is none and (without follow) none is waited for."""
    begun = not request.follow or await _begun(shard, request, attempt, timeout_s)
    # One that was asked for by number and never came is an error, which the shard words.
    if not begun and (not attempt or attempt != request.attempt):
        return None
    located = await shard.locate(request.name, attempt, timeout_s)
    return located if located.attempt_id else None


async def _begun(shard: Shard, request: Any, attempt: int, timeout_s: float) -> bool:
    """Wait until the execution has that attempt (0: any). False: it is final without."""
    watched = execution_pb2.WatchExecutionsRequest(parent=request.name)
    changes = shard.watch(watched.SerializeToString(), timeout_s)
    try:
        async for data in changes:
            for execution in execution_pb2.WatchExecutionsResponse.FromString(data).executions:
                if len(execution.attempts) >= max(attempt, 1):
                    return True
                if execution.state not in ACTIVE_STATES:
                    return False
    finally:
        await changes.aclose()  # type: ignore[attr-defined]
    return False


async def _output(
    sources: Sources,
    execution: str,
    located: shard_pb2.LocateExecutionResponse,
    where: str,
    follow: bool,
    timeout_s: float,
) -> AsyncIterator[executor_pb2.StreamOutputResponse]:
    """An attempt's output from wherever it is. Raises what the last one asked does."""
    try:
        async for part in _held(sources.executors, located, where, follow, timeout_s):
            where = part.cursor
            yield part
        return
    except (NoExecutor, NotFound) as error:
        absent: TickmeshError = error
    if located.silent:
        return
    if sources.archive is None or not located.assign_ms:
        raise absent
    if sources.archive.expired(located.assign_ms):
        raise NotFound(
            f"{execution}: its output was kept for as long as is configured, and is gone"
        )
    number = attempt_number(located.attempt_id)
    key = output.object_key(execution, number, located.assign_ms)
    async for part in _archived(sources.archive, key, where, absent):
        yield part


async def _archived(
    archive: Archive, key: str, where: str, absent: TickmeshError
) -> AsyncIterator[executor_pb2.StreamOutputResponse]:
    """An attempt's output from the archive; raises `absent` if it is not there either."""
    async with archive.opened(key) as archived:
        if archived is None:
            raise absent
        try:
            chunks = output.archived_chunks(archived, where)
        except ValueError as error:
            raise invalid("cursor", str(error)) from error
        for chunk in chunks:
            yield output.to_wire(chunk)


async def _held(
    executors: Executors,
    located: shard_pb2.LocateExecutionResponse,
    where: str,
    follow: bool,
    timeout_s: float,
) -> AsyncIterator[executor_pb2.StreamOutputResponse]:
    """An attempt's output from its executor."""
    if not located.address:
        raise NoExecutor(
            f"{located.executor_id}, which holds the output, is not attached: try again later",
            metadata={"executor_id": located.executor_id},
        )
    expires_s = asyncio.get_running_loop().time() + timeout_s
    stub = await executors.at(located.address)
    call = stub.StreamOutput(
        executor_pb2.StreamOutputRequest(
            attempt_id=located.attempt_id, cursor=where, follow=follow
        ),
        timeout=timeout_s,
    )
    try:
        async for part in call:
            yield part
    except grpc.aio.AioRpcError as error:
        if STATUS_METADATA_KEY in (error.trailing_metadata() or ()):
            raise from_rpc_error(error) from error
        if asyncio.get_running_loop().time() >= expires_s - 0.001:
            raise DeadlineExceeded("the stream's time is over") from error
        raise NoExecutor(
            f"{located.executor_id}, which holds the output, cannot be reached: go on from the "
            f"last cursor ({error.code().name}: {error.details()})",
            metadata={"executor_id": located.executor_id},
        ) from error
    finally:
        call.cancel()
