"""The agent against a shard that does as the test says: what it starts, refuses, tells."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tickmesh.executor.agent import HELD_FACTOR
from tickmesh.executor.inprocess import InProcessRuntime, InProcessSandbox
from tickmesh.mesh.clock import SystemClock
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import execution_pb2

from .leader import SECOND_NS, World, work, world

pytestmark = pytest.mark.integration

PREPARED = shard_pb2.ATTEMPT_PHASE_PREPARED
RUNNING = shard_pb2.ATTEMPT_PHASE_RUNNING
ENDED = shard_pb2.ATTEMPT_PHASE_ENDED


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[World]:
    """One replica that leads term 5, and an agent."""
    async with world(tmp_path) as made:
        runtime = InProcessRuntime(tmp_path / "runtime", SystemClock())
        await runtime.start()
        await made.start(runtime)
        inventory = await made.leader.lead(5)
        assert not inventory.attempts
        yield made


def output(mesh: World, attempt_id: str) -> str:
    return (mesh.runtime.output_directory(attempt_id) / "stdout").read_text()


async def test_an_executor_says_who_it_is(mesh: World) -> None:
    hello = mesh.leader.hellos[0]
    assert (hello.executor_id, hello.slot_count, hello.runtime) == ("executor-0", 64, "inprocess")
    assert (hello.memory_bytes, hello.egress, dict(hello.labels)) == (
        16 << 30,
        True,
        {"region": "eu"},
    )
    assert hello.incarnation


async def test_work_is_prepared_ahead_started_when_due_and_told_to_its_end(mesh: World) -> None:
    ordered = work("a-1", "print", "hello", in_s=0.1)
    mesh.leader.work(ordered)
    await mesh.leader.phase("a-1", PREPARED)
    end = await mesh.leader.end("a-1")
    assert 0 < end.prepared_ns < ordered.start_at_ns <= end.started_ns <= end.ended_ns
    assert (end.has_exit_code, end.exit_code, end.reason) == (True, 0, 0)
    assert output(mesh, "a-1") == "hello\n"


async def test_work_that_is_past_due_starts_at_once(mesh: World) -> None:
    mesh.leader.work(work(in_s=-5))
    end = await mesh.leader.end("a-1")
    assert time.time_ns() - end.started_ns < SECOND_NS


async def test_work_sent_twice_is_one_attempt_even_after_its_end(mesh: World) -> None:
    ordered = work("a-1", "print", "once")
    mesh.leader.work(ordered, ordered)
    await mesh.leader.end("a-1")
    mesh.leader.work(ordered)  # not acknowledged yet: its end is told again
    await mesh.leader.until(lambda: [r.phase for r in mesh.leader.reports["a-1"]].count(ENDED) > 1)
    mesh.leader.acknowledge("a-1")
    mesh.leader.work(ordered, work("b-1"))
    await mesh.leader.end("b-1")
    assert output(mesh, "a-1") == "once\n"
    assert mesh.agent.find("a-1") is None


async def test_a_process_gets_its_environment_and_payload(mesh: World) -> None:
    names = ("TICKMESH_EXECUTION", "TICKMESH_ATTEMPT", "TICKMESH_DUE_TIME", "TRACEPARENT", "MINE")
    command = [word for name in names for word in ("env", name, ";")]
    mesh.leader.work(
        work(
            "a-1",
            *command,
            "payload",
            due_ns=1_700_000_000_123_000_000,
            env={"TRACEPARENT": "00-1-2-01", "MINE": "x", "TICKMESH_ATTEMPT": "forged"},
            payload=b"P",
        )
    )
    await mesh.leader.end("a-1")
    assert output(mesh, "a-1").splitlines() == [
        "customers/acme/jobs/hello/executions/e1",
        "1",
        "2023-11-14T22:13:20.123Z",
        "00-1-2-01",
        "x",
        "P",
    ]


@pytest.mark.parametrize(
    ("command", "reason", "exit_code", "signal"),
    [
        (("exit", "3"), execution_pb2.EXECUTION_REASON_EXIT_CODE, 3, 0),
        (("exit", "137"), execution_pb2.EXECUTION_REASON_EXIT_CODE, 137, 0),
        (("signal", "11"), execution_pb2.EXECUTION_REASON_SIGNAL, 139, 11),
        (("oom",), execution_pb2.EXECUTION_REASON_OUT_OF_MEMORY, 137, 9),
        (("nothing-here",), execution_pb2.EXECUTION_REASON_COMMAND_NOT_STARTED, None, 0),
    ],
)
async def test_an_end_has_its_reason(
    mesh: World, command: tuple[str, ...], reason: int, exit_code: int | None, signal: int
) -> None:
    mesh.leader.work(work("a-1", *command))
    end = await mesh.leader.end("a-1")
    assert (end.reason, end.signal) == (reason, signal)
    assert end.message
    assert (end.exit_code if end.has_exit_code else None) == exit_code
    assert bool(end.started_ns) == (exit_code is not None)


async def test_a_timeout_ends_a_process_that_ignores_sigterm(mesh: World) -> None:
    mesh.leader.work(
        work("a-1", "ignore", "15", ";", "sleep", "60", timeout_ms=50, grace_ms=20),
        work("b-1", "sleep", "60", timeout_ms=50),
    )
    end = await mesh.leader.end("a-1")
    assert (end.reason, end.signal) == (execution_pb2.EXECUTION_REASON_TIMEOUT, 9)
    assert end.ended_ns - end.started_ns >= 70_000_000
    end = await mesh.leader.end("b-1")
    assert (end.reason, end.signal) == (execution_pb2.EXECUTION_REASON_TIMEOUT, 15)
    assert "0.05 s" in end.message


async def test_a_cancelled_process_gets_sigterm(mesh: World) -> None:
    mesh.leader.work(work("a-1", "sleep", "60"))
    await mesh.leader.phase("a-1", RUNNING)
    mesh.leader.stop("a-1", execution_pb2.EXECUTION_REASON_CANCELLED)
    end = await mesh.leader.end("a-1")
    assert (end.reason, end.signal) == (execution_pb2.EXECUTION_REASON_CANCELLED, 15)


@pytest.mark.parametrize("reason", ["CANCELLED", "REVOKED"])
async def test_what_is_stopped_before_it_is_due_never_starts(mesh: World, reason: str) -> None:
    number = execution_pb2.ExecutionReason.Value(f"EXECUTION_REASON_{reason}")
    mesh.leader.work(work("a-1", "print", "never", in_s=30))
    await mesh.leader.phase("a-1", PREPARED)
    mesh.leader.stop("a-1", number)
    end = await mesh.leader.end("a-1")
    assert (end.reason, end.started_ns, end.has_exit_code) == (number, 0, False)
    assert output(mesh, "a-1") == ""


async def test_a_revocation_never_stops_what_has_started(mesh: World) -> None:
    mesh.leader.work(work("a-1", "sleep", "0.05"))
    await mesh.leader.phase("a-1", RUNNING)
    mesh.leader.stop("a-1", execution_pb2.EXECUTION_REASON_REVOKED)
    end = await mesh.leader.end("a-1")
    assert (end.reason, end.exit_code) == (0, 0)


async def test_nothing_starts_before_it_is_written_down(mesh: World) -> None:
    disk_is_slow, disk_is_done = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        loop.call_soon_threadsafe(disk_is_slow.set)
        disk_is_done.wait()

    held = loop.run_in_executor(mesh.agent.ledger._thread, wait)
    await disk_is_slow.wait()
    mesh.leader.work(work("a-1"))
    await mesh.leader.phase("a-1", PREPARED)
    await mesh.leader.answered()
    assert mesh.leader.latest("a-1").phase == PREPARED
    disk_is_done.set()
    await held
    await mesh.leader.end("a-1")


async def test_an_attempt_that_its_shard_gave_up_is_ended_and_forgotten(mesh: World) -> None:
    mesh.leader.work(work("a-1", "sleep", "60"))
    await mesh.leader.phase("a-1", RUNNING)
    mesh.leader.acknowledge("a-1")
    await mesh.leader.end("a-1")
    mesh.leader.acknowledge("a-1")
    await mesh.leader.answered(2)
    assert mesh.agent.find("a-1") is None


async def test_more_than_an_executor_can_hold_is_refused_by_name(mesh: World) -> None:
    held_max = mesh.capacity.slot_count * HELD_FACTOR
    mesh.leader.work(*(work(f"a-{number}") for number in range(held_max)))
    await mesh.leader.end(f"a-{held_max - 1}")  # ended, and not acknowledged
    mesh.leader.work(work("b-1"))
    end = await mesh.leader.end("b-1")
    assert end.reason == execution_pb2.EXECUTION_REASON_RETURNED
    assert not end.started_ns and str(held_max) in end.message


async def test_an_id_that_is_none_is_passed_over(mesh: World) -> None:
    mesh.leader.work(work("../../etc"), work("", "print", "x"), work("b-1"))
    await mesh.leader.end("b-1")
    assert list(mesh.leader.reports) == ["b-1"]


async def test_work_and_stops_of_a_lower_term_are_refused(mesh: World, tmp_path: Path) -> None:
    mesh.leader.work(work("old-1", "print", "never"), term=4)
    mesh.leader.work(work("new-1", "sleep", "60"))
    await mesh.leader.phase("new-1", RUNNING)
    mesh.leader.stop("new-1", execution_pb2.EXECUTION_REASON_CANCELLED, term=4)
    mesh.leader.work(work("new-2"))
    await mesh.leader.end("new-2")
    assert mesh.agent.find("old-1") is None
    assert mesh.leader.latest("new-1").phase == RUNNING


async def test_the_highest_term_leads_and_hears_of_everything(tmp_path: Path) -> None:
    async with world(tmp_path) as mesh:
        second = await mesh.add_replica()
        await mesh.start(InProcessRuntime(tmp_path / "runtime", SystemClock()))
        await mesh.leader.lead(5)
        mesh.leader.work(work("a-1", "sleep", "60"), work("b-1"))
        await mesh.leader.phase("a-1", RUNNING)
        await mesh.leader.end("b-1")
        inventory = await second.lead(6)
        held = {report.attempt_id: report.phase for report in inventory.attempts}
        assert held == {"a-1": RUNNING, "b-1": ENDED}
        # The old one does not know yet that it has lost the lead.
        mesh.leader.work(work("c-1", "print", "never"))
        mesh.leader.stop("a-1", execution_pb2.EXECUTION_REASON_CANCELLED)
        mesh.leader.acknowledge("b-1")
        await mesh.leader.answered()
        second.work(work("d-1"))
        await second.end("d-1")
        assert mesh.agent.find("c-1") is None
        assert second.latest("a-1").phase == RUNNING
        assert mesh.agent.find("b-1") is not None
        assert "d-1" not in mesh.leader.reports


async def test_an_armed_attempt_starts_on_time_though_its_leader_has_gone(mesh: World) -> None:
    ordered = work("a-1", "print", "hello", in_s=0.2)
    mesh.leader.work(ordered)
    await mesh.leader.phase("a-1", PREPARED)
    mesh.leader.leads_term = None
    mesh.leader.drop()
    end = await mesh.agent.find("a-1").over.wait() and mesh.agent.find("a-1").report()  # type: ignore[union-attr]
    assert ordered.start_at_ns <= end.started_ns < ordered.start_at_ns + SECOND_NS // 2
    inventory = await mesh.leader.lead(6)
    assert inventory.attempts[0].phase == ENDED


async def test_nothing_starts_without_a_lease_until_a_leader_is_heard_again(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as mesh:
        runtime = InProcessRuntime(tmp_path / "runtime", SystemClock())
        mesh.leader.lease_ms = 200
        await mesh.start(runtime)
        await mesh.leader.lead(5)
        mesh.leader.work(work("before-1"))
        await mesh.leader.end("before-1")
        mesh.leader.answers = False
        ordered = work("a-1", in_s=0.5)
        mesh.leader.work(ordered, work("b-1", "print", "never", in_s=0.5))
        await mesh.leader.phase("a-1", PREPARED)
        await mesh.leader.phase("b-1", PREPARED)
        await mesh.leader.answered(2)
        assert time.time_ns() > ordered.start_at_ns
        assert mesh.leader.latest("a-1").phase == PREPARED
        mesh.leader.stop("b-1", execution_pb2.EXECUTION_REASON_EXECUTOR_LOST)
        mesh.leader.answers = True
        end = await mesh.leader.end("a-1")
        assert end.started_ns > ordered.start_at_ns + SECOND_NS // 2
        end = await mesh.leader.end("b-1")
        assert not end.started_ns


async def test_a_silent_replica_is_attached_to_again(mesh: World) -> None:
    mesh.leader.answers = False
    await mesh.leader.until(lambda: len(mesh.leader.hellos) > 1)
    mesh.leader.answers = True
    await mesh.leader.lead(6)


async def test_starts_follow_the_leaders_clock(tmp_path: Path) -> None:
    async with world(tmp_path) as mesh:
        mesh.leader.skew_ns = 3 * SECOND_NS  # ahead of ours
        await mesh.start(InProcessRuntime(tmp_path / "runtime", SystemClock()))
        await mesh.leader.lead(5)
        await mesh.leader.answered()
        ordered = work("a-1", in_s=3.3)
        mesh.leader.work(ordered)
        end = await mesh.leader.end("a-1")
        assert 0 < ordered.start_at_ns - SystemClock().now_ns() < 3 * SECOND_NS
        # And are told by it.
        assert 0 <= end.started_ns - ordered.start_at_ns < SECOND_NS
        assert end.prepared_ns < end.started_ns < end.ended_ns
        assert 0 < end.clock_uncertainty_ns < SECOND_NS


async def test_ends_are_told_again_after_a_kill_until_they_are_acknowledged(
    mesh: World, tmp_path: Path
) -> None:
    mesh.leader.work(work("a-1", "exit", "3"), work("b-1"))
    told = await mesh.leader.end("a-1")
    await mesh.leader.end("b-1")
    mesh.leader.acknowledge("b-1")
    mesh.leader.work(work("c-1"))
    await mesh.leader.end("c-1")
    await mesh.kill()
    await mesh.start(InProcessRuntime(tmp_path / "runtime", SystemClock()))
    inventory = await mesh.leader.until(
        lambda: len(mesh.leader.inventories) > 1 and mesh.leader.inventories[-1]
    )
    assert [r for r in inventory.attempts if r.attempt_id == "a-1"] == [told]
    assert mesh.agent.find("b-1") is None
    mesh.leader.acknowledge("a-1", "c-1")
    await mesh.leader.answered(2)
    await mesh.end()
    await mesh.start(InProcessRuntime(tmp_path / "runtime", SystemClock()))
    inventory = await mesh.leader.until(
        lambda: len(mesh.leader.inventories) > 2 and mesh.leader.inventories[-1]
    )
    assert not inventory.attempts


async def test_a_killed_executor_finds_what_runs_and_does_not_invent_the_rest(
    mesh: World, tmp_path: Path
) -> None:
    mesh.leader.work(
        work("runs-1", "sleep", "0.5", ";", "exit", "7"),
        work("gone-1", "sleep", "60"),
        work("armed-1", "print", "on time", in_s=4.0),
    )
    running = await mesh.leader.phase("runs-1", RUNNING)
    await mesh.leader.phase("gone-1", RUNNING)
    await mesh.leader.phase("armed-1", PREPARED)
    await mesh.kill()
    gone = await mesh.runtime.adopt("gone-1")
    assert gone is not None
    await gone.delete()
    await mesh.start(mesh.runtime)
    end = await mesh.leader.end("runs-1")
    assert (end.exit_code, end.started_ns) == (7, running.started_ns)
    end = await mesh.leader.end("gone-1")
    assert end.reason == execution_pb2.EXECUTION_REASON_EXECUTOR_LOST
    end = await mesh.leader.end("armed-1")
    assert end.reason == 0 and end.started_ns
    assert output(mesh, "armed-1") == "on time\n"


async def test_what_ran_is_not_run_again_by_an_executor_whose_clock_is_behind(
    tmp_path: Path,
) -> None:
    """By its own clock it was not due yet when its host was started again."""
    async with world(tmp_path) as mesh:
        mesh.leader.skew_ns = 60 * SECOND_NS  # ahead of ours
        runtime = InProcessRuntime(tmp_path / "runtime", SystemClock())
        await mesh.start(runtime)
        await mesh.leader.lead(5)
        await mesh.leader.answered()
        mesh.leader.work(work("ran-1", "sleep", "600", in_s=60.1), work("armed-1", in_s=66.0))
        await mesh.leader.phase("ran-1", RUNNING)
        await mesh.leader.phase("armed-1", PREPARED)
        await mesh.kill()
        await runtime.close()
        await mesh.start(InProcessRuntime(tmp_path / "runtime", SystemClock()))
        end = await mesh.leader.end("ran-1")
        assert end.reason == execution_pb2.EXECUTION_REASON_EXECUTOR_LOST
        assert not end.started_ns
        assert (await mesh.leader.end("armed-1")).started_ns


async def test_an_orderly_end_does_not_wait_for_a_long_grace_that_has_begun(mesh: World) -> None:
    mesh.leader.work(work("a-1", "ignore", "15", ";", "sleep", "600", grace_ms=300_000))
    await mesh.leader.phase("a-1", RUNNING)
    mesh.leader.stop("a-1", execution_pb2.EXECUTION_REASON_CANCELLED)
    mesh.leader.work(work("b-1"))
    await mesh.leader.end("b-1")  # the stop came before it
    mesh.leader.acknowledge("b-1")
    ending = asyncio.create_task(mesh.end())
    end = await mesh.leader.end("a-1")
    assert (end.reason, end.signal) == (execution_pb2.EXECUTION_REASON_CANCELLED, 9)
    mesh.leader.acknowledge("a-1")
    await ending


async def test_a_sandbox_that_cannot_be_removed_ends_no_executor(
    mesh: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def delete(_: InProcessSandbox) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(InProcessSandbox, "delete", delete)
    for attempt_id in ("a-1", "b-1"):
        mesh.leader.work(work(attempt_id))
        assert (await mesh.leader.end(attempt_id)).reason == 0
        mesh.leader.acknowledge(attempt_id)
    monkeypatch.undo()


async def test_an_orderly_end_stops_everything_and_says_so(mesh: World) -> None:
    mesh.leader.work(
        work("runs-1", "sleep", "60"),
        work("stubborn-1", "ignore", "15", ";", "sleep", "60", grace_ms=100),
        work("waits-1", in_s=60),
    )
    await mesh.leader.phase("runs-1", RUNNING)
    await mesh.leader.phase("stubborn-1", RUNNING)
    await mesh.leader.phase("waits-1", PREPARED)
    ending = asyncio.create_task(mesh.end())
    for attempt_id, signal in (("runs-1", 15), ("stubborn-1", 9), ("waits-1", 0)):
        end = await mesh.leader.end(attempt_id)
        # What has not started may run elsewhere at once.
        started = execution_pb2.EXECUTION_REASON_INFRASTRUCTURE
        reason = started if signal else execution_pb2.EXECUTION_REASON_RETURNED
        assert (end.reason, end.signal) == (reason, signal)
        assert "shut down" in end.message
        mesh.leader.acknowledge(attempt_id)
    await ending
    assert await mesh.runtime.sweep(frozenset()) == 0
