"""Calls in batches: what becomes of those whose caller has gone."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import empty_pb2, wrappers_pb2
from google.rpc import status_pb2

from tickmesh.mesh.clock import SystemClock
from tickmesh.mesh.errors import MessageTooLarge, from_status
from tickmesh.mesh.limits import INTERNAL_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import execution_pb2, schedule_pb2
from tickmesh.scheduler.calls.writes import Writes
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


SMALL, LARGE = 1_000, 3 * 1024 * 1024


def answering(monkeypatch: pytest.MonkeyPatch) -> ShardService:
    """A leader whose reads and writes answer so many bytes as they are asked for."""
    world = World()

    async def read_barrier() -> None:
        return

    replica: Any = SimpleNamespace(
        subscribe=lambda _: None, on_members=lambda _: None, read_barrier=read_barrier
    )
    service = ShardService(shard_of(world, replica), SystemClock(), "shard-0", "replica-0")

    def answer(request: Any) -> Any:
        return wrappers_pb2.BytesValue(value=bytes(request.value))

    def write(request: Any) -> Any:
        return Writes.checked(answer(request))

    methods = service._calls.methods
    monkeypatch.setitem(methods.reads, "read", (wrappers_pb2.Int64Value, answer))
    monkeypatch.setitem(methods.writes, "write", (wrappers_pb2.Int64Value, write))
    return service


async def answered(service: ShardService, *calls: tuple[str, int]) -> list[str]:
    """What became of calls: "answered", or why not."""
    asked = [
        shard_pb2.Call(
            method=method, request=wrappers_pb2.Int64Value(value=size).SerializeToString()
        )
        for method, size in calls
    ]
    leading: Any = SimpleNamespace(release=lambda _: None)
    replies = await service._answer(asked, leading)
    message = shard_pb2.CallResponse(replies=replies)
    assert message.ByteSize() <= INTERNAL_MESSAGE_BYTES_MAX
    told = []
    for reply, (_, size) in zip(replies, calls, strict=True):
        if reply.status:
            error = from_status(status_pb2.Status.FromString(reply.status))
            assert isinstance(error, MessageTooLarge)
            told.append("together" if error.TOGETHER in error.metadata else "too large")
        else:
            assert len(reply.response) >= size
            told.append("answered")
    return told


async def test_answers_that_are_too_much_together_leave_the_largest_reads_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC refused the whole message: nobody had an answer, and updates an unknown outcome."""
    service = answering(monkeypatch)
    few = [("read", LARGE), ("write", SMALL), ("read", SMALL), ("write", LARGE)]
    assert await answered(service, *few) == ["answered"] * 4
    many = [("read", LARGE)] * 9 + few
    told = await answered(service, *many)
    assert told.count("together") == 1 and told[-3:] == ["answered"] * 3
    writes = await answered(service, *[("write", LARGE)] * 12, ("write", SMALL))
    assert writes.count("answered") == 11 and writes[-1] == "answered"


@pytest.mark.parametrize("method", ["read", "write"])
async def test_an_answer_that_is_too_large_for_the_caller_goes_no_further(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    service = answering(monkeypatch)
    sizes = [MESSAGE_BYTES_MAX + 1, 40 * 1024 * 1024]
    told = await answered(service, *((method, size) for size in sizes), (method, SMALL))
    assert told == ["too large"] * 2 + ["answered"]


async def test_what_is_due_does_not_wait_for_all_pages_of_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twelve listings with filters took a leader's only thread for more than a second."""
    service = answering(monkeypatch)
    turns = 0
    seen: list[int] = []

    def answer(_request: Any) -> Any:
        seen.append(turns)
        return empty_pb2.Empty()

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    reads = service._calls.methods.reads
    asked = []
    for request in (
        execution_pb2.ListExecutionsRequest(),
        schedule_pb2.PreviewScheduleRequest(),
        execution_pb2.GetExecutionRequest(),
    ):
        name = type(request).__name__
        monkeypatch.setitem(reads, name, (type(request), answer))
        asked += [shard_pb2.Call(method=name)] * 3
    running = asyncio.create_task(others())
    leading: Any = SimpleNamespace(release=lambda _: None)
    await service._answer(asked, leading)
    running.cancel()
    assert len(seen) == len(asked)
    lists_and_previews = seen[:7]
    assert len(set(lists_and_previews)) == len(lists_and_previews)
    assert len(set(seen[6:])) == 1  # what is quick costs no turn
