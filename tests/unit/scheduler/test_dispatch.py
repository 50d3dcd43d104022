"""What a leader makes of an executor's inventory, beside what it has just sent it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.unit.scheduler.test_plans import Leader
from tickmesh.mesh.plans import Plan
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.scheduler.core import commands
from tickmesh.scheduler.core.commands import Placement
from tickmesh.scheduler.core.ids import attempt_id
from tickmesh.scheduler.core.model import Execution, ExecutionState, Reason
from tickmesh.scheduler.dispatch import Link

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
