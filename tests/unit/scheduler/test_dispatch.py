"""What a leader makes of an executor's inventory, beside what it has just sent it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from tests.unit.scheduler.test_plans import TIMEOUT_S, Leader
from tests.unit.scheduler.worlds import START_MS, World
from tickmesh.mesh.plans import Plan
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.scheduler import dispatch
from tickmesh.scheduler.core import commands
from tickmesh.scheduler.core.commands import Placement
from tickmesh.scheduler.core.ids import attempt_id
from tickmesh.scheduler.core.model import Execution, ExecutionState, Reason
from tickmesh.scheduler.dispatch import Dispatcher, Link
from tickmesh.scheduler.proposals import Proposals

TURNS = 20  # of the loop: a proposal is applied by then


@pytest.fixture
async def leader() -> AsyncIterator[Leader]:
    made = Leader({"standard": Plan()})
    await made.lead()
    made.world.job()
    yield made
    made.running.cancel()
    await asyncio.gather(made.running, return_exceptions=True)


def attach(leader: Leader, incarnation: str) -> Link:
    hello = shard_pb2.Hello(executor_id="one", incarnation=incarnation, slot_count=9)
    link = Link(hello)
    assert leader.shard.leading is not None
    leader.shard.leading.attach(link)
    return link


def assign(leader: Leader, incarnation: str) -> Execution:
    """Commit that it is the executor's, as the leader chose before."""
    new = commands.NewExecution(
        "hello", leader.world.next_uid(), b"", Placement("one", incarnation)
    )
    (made,) = leader.world.do(commands.ExecuteJobs("acme", [new], b""))  # type: ignore[misc]
    return made  # type: ignore[no-any-return]


def sent(link: Link) -> list[str]:
    """The attempts that it was given."""
    return [work.attempt_id for message in link.outbox for work in message.work.work]


async def nothing_is_held(leader: Leader, link: Link) -> None:
    """The inventory of an executor that holds nothing comes in, and what follows is applied."""
    assert leader.shard.leading is not None
    await leader.shard.leading.inventory(link, shard_pb2.Inventory(term=1))
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_what_a_new_process_was_just_given_is_not_lost(leader: Leader) -> None:
    attach(leader, "first")
    link = attach(leader, "second")
    made = assign(leader, "first")  # it was chosen before, and is committed now
    assert sent(link) == [attempt_id(made.id, 1)]
    await nothing_is_held(leader, link)  # which it wrote before that came
    stored = leader.world.execution(made)
    assert (stored.state, stored.reason) == (ExecutionState.ASSIGNED, Reason.NONE)
    assert sent(link) == [attempt_id(made.id, 1)]


async def test_what_nobody_was_given_is_given_to_the_next_process(leader: Leader) -> None:
    assert leader.shard.leading is not None
    leader.shard.leading.detach(attach(leader, "first"))
    made = assign(leader, "first")
    link = attach(leader, "second")
    await nothing_is_held(leader, link)
    assert leader.world.execution(made).state is ExecutionState.ASSIGNED
    assert sent(link) == [attempt_id(made.id, 1)]
    # From now on it may have run there.
    await nothing_is_held(leader, attach(leader, "third"))
    assert leader.world.execution(made).reason is Reason.EXECUTOR_LOST


async def test_what_the_former_process_was_given_is_lost(leader: Leader) -> None:
    attach(leader, "first")
    made = assign(leader, "first")
    await nothing_is_held(leader, attach(leader, "second"))
    assert leader.world.execution(made).reason is Reason.EXECUTOR_LOST


async def test_what_is_stopped_on_its_way_to_an_executor_ends_as_that_says(leader: Leader) -> None:
    link = attach(leader, "first")
    made = assign(leader, "first")
    leader.world.do(commands.Cancel([(made.job_uid, made.id)], Reason.CANCELLED))
    await nothing_is_held(leader, link)
    # It may run there by now: only the executor knows whether it did.
    assert leader.world.execution(made).state is ExecutionState.ASSIGNED


async def test_what_a_stream_says_that_was_replaced_counts_no_more(leader: Leader) -> None:
    old = attach(leader, "first")
    attach(leader, "second")
    made = assign(leader, "second")
    await nothing_is_held(leader, old)
    assert leader.world.execution(made).state is ExecutionState.ASSIGNED


class Silence:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.monotonic = 10**12

    def now_ns(self) -> int:
        return START_MS * 1_000_000

    def monotonic_ns(self) -> int:
        return self.monotonic


class Slow:
    """Proposals that are decided when the test says so."""

    version = commands.ENTRY_VERSION

    def __init__(self) -> None:
        self.made: list[tuple[commands.AnyCommand, asyncio.Future[commands.Outcome]]] = []

    def submit(self, command: commands.AnyCommand, **_: object) -> asyncio.Future[commands.Outcome]:
        future: asyncio.Future[commands.Outcome] = asyncio.get_running_loop().create_future()
        self.made.append((command, future))
        return future


async def test_a_silent_executor_is_not_answered_before_it_is_decided_what_it_lost() -> None:
    world, clock, slow = World(), Silence(), Slow()
    world.job()
    new = commands.NewExecution("hello", world.next_uid(), b"", Placement("one", "first"))
    (made,) = world.do(commands.ExecuteJobs("acme", [new], b""))  # type: ignore[misc]
    proposals = cast(Proposals, slow)
    leading = Dispatcher(1, world.queries, proposals, clock, 1_000, lambda _: None)
    await leading.take_up()
    hello = shard_pb2.Hello(executor_id="one", incarnation="first", slot_count=9)
    link, again = Link(hello), Link(hello)
    leading.attach(link)
    held = shard_pb2.AttemptReport(attempt_id=attempt_id(made.id, 1))  # type: ignore[union-attr]
    inventory = shard_pb2.Inventory(term=1, attempts=[held])
    await leading.inventory(link, inventory)
    clock.monotonic += 2_000_000_000
    leading.end_leases()
    assert not slow.made and not link.closed
    clock.monotonic += 1
    leading.end_leases()
    ((command, decided),) = slow.made
    assert link.closed, "it may be as silent as its executor was"
    # It comes back before that is decided. What it is sent is read after its inventory was.
    leading.attach(again)
    told = asyncio.create_task(leading.inventory(again, inventory))
    await asyncio.sleep(0)
    assert not told.done() and not again.outbox
    world.do(command)
    leading.committed([world.execution(made)])  # type: ignore[arg-type]
    decided.set_result([])
    await told
    assert again.outbox[-1].stop.stops[0].attempt_id == held.attempt_id


async def test_a_leader_that_stood_still_gives_up_nobody_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, clock, slow = World(), Silence(), Slow()
    world.job()
    new = commands.NewExecution("hello", world.next_uid(), b"", Placement("one", "first"))
    world.do(commands.ExecuteJobs("acme", [new], b""))
    leading = Dispatcher(1, world.queries, cast(Proposals, slow), clock, 1_000, lambda _: None)
    await leading.take_up()
    looked = asyncio.Event()
    look = leading.end_leases

    def end_leases() -> None:
        look()
        looked.set()

    monkeypatch.setattr(leading, "end_leases", end_leases)
    monkeypatch.setattr(dispatch, "LEASE_CHECK_S", 0)
    running = asyncio.create_task(leading.run())
    try:
        await asyncio.wait_for(looked.wait(), TIMEOUT_S)
        clock.monotonic += 60_000_000_000
        looked.clear()
        await asyncio.wait_for(looked.wait(), TIMEOUT_S)
        assert not slow.made
        for _ in range(3):  # from then on it counts
            clock.monotonic += 900_000_000
            looked.clear()
            await asyncio.wait_for(looked.wait(), TIMEOUT_S)
        assert slow.made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
