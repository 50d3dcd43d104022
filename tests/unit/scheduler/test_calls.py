"""Calls in batches: what becomes of those whose caller has gone."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

from tickmesh.mesh.clock import SystemClock
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import execution_pb2
from tickmesh.scheduler.core.commands import Placement
from tickmesh.scheduler.service import ShardService

from .worlds import World, shard_of

COUNT = 3


async def test_places_are_free_again_when_the_callers_have_gone() -> None:
    """Each was counted as taken for as long as its leader led."""
    world = World()
    world.job()
    committing = asyncio.Event()

    async def propose(payload: bytes) -> object:
        await committing.wait()
        return world.state.apply(world.state.applied[0] + 1, 1, payload)

    replica: Any = SimpleNamespace(
        subscribe=lambda _: None,
        on_members=lambda _: None,
        entry_version=1,
        apply_s=0.0,
        propose=propose,
    )
    shard = shard_of(world, replica)
    reserved: list[Placement] = []
    all_reserved, given_back = asyncio.Event(), asyncio.Event()

    def place_job(_: object) -> Placement:
        reserved.append(Placement("executor-0", "first"))
        if len(reserved) == COUNT:
            all_reserved.set()
        return reserved[-1]

    def release(placements: Any) -> None:
        for placement in placements:
            reserved.remove(placement)
        if not reserved:
            given_back.set()

    leading: Any = SimpleNamespace(
        place_job=place_job, release=release, soft={}, pending_reason=lambda _: ""
    )
    shard.leading = leading
    service = ShardService(shard, SystemClock(), "shard-0", "replica-0")
    request = execution_pb2.ExecuteJobRequest(name="customers/acme/jobs/hello")
    call = shard_pb2.Call(
        method="tickmesh.v1.ExecutionService/ExecuteJob", request=request.SerializeToString()
    )
    running = asyncio.create_task(shard.proposals.run())
    answering = asyncio.create_task(service._answer([call] * COUNT, leading))
    async with asyncio.timeout(5):
        await all_reserved.wait()
    answering.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await answering
    committing.set()
    async with asyncio.timeout(5):
        await given_back.wait()
    running.cancel()
