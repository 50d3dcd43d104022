"""Which executor runs what, and what a drain does, in a mesh of processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
import pytest
import pytest_asyncio

from tickmesh import sdk
from tickmesh.mesh.config import Config
from tickmesh.mesh.local import Child, LocalMesh, LocalOptions
from tickmesh.sdk import AsyncClient, ExecutionReason, ExecutionState

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

MIB = 1 << 20
WAIT_S = 30.0
"""For what takes two seconds on a machine that has nothing else to do."""

LOOK_EVERY_S = 0.05

T = TypeVar("T")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    """Two executors with room for 20 small executions each, of which the second is in Europe."""
    options = LocalOptions(
        replicas=3,
        executors=2,
        runtime="inprocess",
        executor=(("memory_bytes", 20 * 64 * MIB), ("slot_count", 32)),
    )
    async with LocalMesh(tmp_path_factory.mktemp("mesh"), options) as made:
        await restart(made.executors[1], labels={"region": "eu", "disk": "fast"})
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(mesh: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(mesh.address, "acme") as made:
        await eventually(made.cluster, lambda seen: len(seen.executors) == 2)
        for name, command in (("quick", ("true",)), ("slow", ("sleep", "600"))):
            await made.jobs.create(name, image="words:1", command=command, memory_bytes=64 * MIB)
        yield made


async def restart(child: Child, **changed: Any) -> None:
    """End an executor, and start it with another configuration."""
    settings = child.settings.executor
    assert settings is not None
    child.configure(Config(executor=msgspec.structs.replace(settings, **changed)))
    await child.end()
    await child.spawn()
    await child.serving()


async def eventually(look: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    """What a look shows once it is as wanted: for what there is no event of."""
    async with asyncio.timeout(WAIT_S):
        while not wanted(seen := await look()):  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(LOOK_EVERY_S)
        return seen


async def executor(client: AsyncClient, name: str) -> sdk.Executor | None:
    """What the leader sees of an executor; None if it is not attached."""
    try:
        seen = await client.cluster()
    except sdk.Unavailable:
        return None
    return next((each for each in seen.executors if each.executor_id == name), None)


async def running(client: AsyncClient, job: str) -> sdk.Execution:
    """Execute a job, and wait until its process runs."""
    handle = await client.execute(job)
    async for each in handle.changes(deadline_s=WAIT_S):
        if each.state is ExecutionState.RUNNING:
            return each
    raise AssertionError(f"it ended: {handle.execution}")


async def cancelled(client: AsyncClient, *executions: sdk.Execution) -> None:
    for execution in executions:
        await client.executions.cancel(execution.name)
        handle = await client.executions.handle(execution.name)
        await handle.wait(deadline_s=WAIT_S)


async def test_executors_tell_what_they_offer(client: AsyncClient) -> None:
    first, second = (await client.cluster()).executors
    assert (first.memory_bytes, first.used_memory_bytes) == (20 * 64 * MIB, 0)
    assert (first.draining, dict(first.labels)) == (False, {})
    assert dict(second.labels) == {"disk": "fast", "region": "eu"}


async def test_a_job_that_selects_executors_runs_nowhere_else(client: AsyncClient) -> None:
    job = await client.jobs.create(
        "european", image="words:1", command=("true",), executor_labels={"region": "eu"}
    )
    assert dict(job.executor_labels) == {"region": "eu"}
    for _ in range(6):
        execution = await (await client.execute("european")).result(deadline_s=WAIT_S)
        assert [attempt.executor for attempt in execution.attempts] == ["executor-1"]
    fires = await client.schedules.create("european", "soon", at=[in_s(2), in_s(3)])
    assert fires.next_fire_time is not None
    found = await eventually(
        lambda: listed(client, "european", schedule="european/soon"),
        lambda found: len(found) == 2 and all(each.state.final for each in found),
    )
    assert {each.attempts[0].executor for each in found} == {"executor-1"}


async def listed(client: AsyncClient, job: str, **more: Any) -> list[sdk.Execution]:
    return [each async for each in client.executions.list(job, **more)]


def in_s(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def test_a_job_that_nobody_can_run_waits_and_says_why_until_somebody_can(
    client: AsyncClient,
) -> None:
    labels = {"region": "mars"}
    await client.jobs.create("martian", image="words:1", command=("true",), executor_labels=labels)
    waiting = (await client.execute("martian")).execution
    assert waiting.state is ExecutionState.PENDING
    assert waiting.pending_reason == "no executor with the labels region=mars is attached"
    # It stands in nobody's way.
    await (await client.execute("quick")).result(deadline_s=WAIT_S)
    seen = await client.executions.get(waiting.name)
    assert seen.pending_reason == waiting.pending_reason
    await cancelled(client, waiting)
    assert not (await client.executions.get(waiting.name)).pending_reason


async def test_what_there_is_no_memory_for_waits_until_there_is(client: AsyncClient) -> None:
    """Two executors have room for 40 such, and one customer gets 16 of 17."""
    held = [await client.execute("slow") for _ in range(40)]

    async def states() -> list[ExecutionState]:
        return [each.state for each in await listed(client, "slow", page_size=50)]

    found = await eventually(
        states, lambda seen: seen.count(ExecutionState.RUNNING) == 38 and len(seen) >= 40
    )
    assert found.count(ExecutionState.PENDING) == 2
    waiting = [
        each for each in await listed(client, "slow") if each.state is ExecutionState.PENDING
    ]
    assert "customers/acme holds 38 slots and 2432 MiB" in waiting[0].pending_reason
    # What is left is there for somebody else, at once.
    async with AsyncClient(client.address, "other") as other:
        await other.jobs.create("one", image="words:1", command=("true",), memory_bytes=64 * MIB)
        one = await (await other.execute("one")).result(deadline_s=WAIT_S)
        assert one.state is ExecutionState.SUCCEEDED
    await client.executions.cancel(held[0].execution.name)
    await eventually(states, lambda seen: seen.count(ExecutionState.PENDING) == 1)
    for each in held:
        await client.executions.cancel(each.execution.name)
    await eventually(states, lambda seen: all(state.final for state in seen))


async def test_a_drained_executor_hands_over_what_is_armed_and_ends_nothing(
    mesh: LocalMesh, client: AsyncClient
) -> None:
    name = (await running(client, "slow")).attempts[0].executor
    other = {"executor-0": "executor-1", "executor-1": "executor-0"}[name]
    held = [await running(client, "slow") for _ in range(4)]
    there = [each for each in held if each.attempts[0].executor == name]
    told = await client.drain_executor(name)
    assert told.draining
    await eventually(
        lambda: executor(client, name), lambda seen: seen is not None and seen.draining
    )
    for _ in range(4):
        execution = await (await client.execute("quick")).result(deadline_s=WAIT_S)
        assert execution.attempts[-1].executor == other
    for each in there:
        assert (await client.executions.get(each.name)).state is ExecutionState.RUNNING
    # Whoever leads next has it from the executor itself, and so has the executor's next process.
    shard = (await client.cluster()).shards[0]
    leader = next(replica for replica in shard.replicas if replica.leader)
    child = next(each for each in mesh.replicas if each.name == leader.replica_id)
    await child.kill()
    await eventually(
        lambda: executor(client, name), lambda seen: seen is not None and seen.draining
    )
    await child.spawn()
    await child.serving()
    killed = next(each for each in mesh.executors if each.name == name)
    await killed.kill()
    await killed.spawn()
    await killed.serving()
    await eventually(
        lambda: executor(client, name), lambda seen: seen is not None and seen.draining
    )
    execution = await (await client.execute("quick")).result(deadline_s=WAIT_S)
    assert execution.attempts[-1].executor == other
    await client.drain_executor(name, undo=True)
    await eventually(
        lambda: executor(client, name), lambda seen: seen is not None and not seen.draining
    )
    for each in await listed(client, "slow"):
        if not each.state.final:
            await cancelled(client, each)


async def test_armed_fires_of_a_drained_executor_run_on_time_elsewhere(
    client: AsyncClient,
) -> None:
    await client.jobs.create("armed", image="words:1", command=("true",), memory_bytes=MIB * 64)
    due = in_s(4)
    for number in range(8):
        await client.schedules.create("armed", f"s{number}", at=[due])
    armed = await eventually(
        lambda: listed(client, "armed"),
        lambda found: (
            len(found) == 8
            and all(each.attempts and each.attempts[-1].prepare_time for each in found)
        ),
    )
    assert {each.attempts[0].executor for each in armed} == {"executor-0", "executor-1"}
    await client.drain_executor("executor-0")
    found = await eventually(
        lambda: listed(client, "armed"), lambda found: all(each.state.final for each in found)
    )
    returned = [each for each in found if len(each.attempts) > 1]
    assert returned
    for each in found:
        assert each.state is ExecutionState.SUCCEEDED
        assert each.attempts[-1].executor == "executor-1"
        assert each.lateness is not None and each.lateness < timedelta(seconds=0.5)
    for each in returned:
        assert [attempt.reason for attempt in each.attempts] == [
            ExecutionReason.RETURNED,
            ExecutionReason.NONE,
        ]
        assert each.attempts[0].start_time is None
        assert "drained" in each.attempts[0].message
    await client.drain_executor("executor-0", undo=True)
    await eventually(
        lambda: executor(client, "executor-0"),
        lambda seen: seen is not None and not seen.draining,
    )


async def test_a_drain_with_a_time_ends_what_runs_and_its_job_says_what_follows(
    client: AsyncClient,
) -> None:
    retry = sdk.RetryPolicy(max_attempts=2, backoff=timedelta(milliseconds=100))
    await client.jobs.create(
        "moved",
        image="words:1",
        command=("sleep", "600"),
        retry_policy=retry,
        memory_bytes=MIB * 64,
    )
    execution = await running(client, "moved")
    name = execution.attempts[0].executor
    await client.drain_executor(name, end_after=0.2)

    async def look() -> sdk.Execution:
        return await client.executions.get(execution.name)

    moved = await eventually(
        look, lambda seen: len(seen.attempts) == 2 and seen.state is ExecutionState.RUNNING
    )
    first, second = moved.attempts
    assert (first.reason, first.executor) == (ExecutionReason.INFRASTRUCTURE, name)
    assert second.executor != name
    await client.drain_executor(name, undo=True)
    await cancelled(client, moved)
    await eventually(
        lambda: executor(client, name), lambda seen: seen is not None and not seen.draining
    )


async def test_what_is_wrong_with_a_request_is_named(client: AsyncClient) -> None:
    with pytest.raises(sdk.NotFound, match="no executor 'executor-9' is attached"):
        await client.drain_executor("executor-9")
    for labels in ({f"k{n}": "v" for n in range(9)}, {"": "v"}, {"k": "v" * 256}):
        with pytest.raises(sdk.InvalidRequest) as error:
            await client.jobs.create("bad", image="words:1", executor_labels=labels)
        assert error.value.fields[0][0].startswith("job.executor_labels")
    with pytest.raises(sdk.InvalidRequest):
        await client.drain_executor("executor-0", end_after=8 * 86_400)
    with pytest.raises(sdk.InvalidRequest):
        await client.drain_executor("")
