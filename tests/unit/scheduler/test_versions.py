"""Rolling upgrades: nothing is proposed that some replica would not understand."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tickmesh.mesh.errors import FailedPrecondition
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.scheduler.core import commands
from tickmesh.scheduler.core.commands import ENTRY_VERSION, OUTPUT_SINCE, UNCERTAINTY_SINCE
from tickmesh.scheduler.core.model import Reason
from tickmesh.scheduler.dispatch import ended_attempt
from tickmesh.scheduler.proposals import Proposals
from tickmesh.scheduler.store import state as states
from tickmesh.scheduler.store.state import State, UnknownEntry, encode_entry

from .worlds import START_MS, World


class Clock:
    def now_ns(self) -> int:
        return START_MS * 1_000_000

    def monotonic_ns(self) -> int:
        return 0


class AppliesAtOnce:
    """A log of one replica without a disk, which says what its peers know."""

    apply_s = 0.0

    def __init__(self, state: State, entry_version: int) -> None:
        self._state = state
        self.entry_version = entry_version
        self.versions: list[int] = []

    async def propose(self, payload: bytes) -> object:
        self.versions.append(msgspec.msgpack.decode(payload)[0])
        return self._state.apply(self._state.applied[0] + 1, 1, payload)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> int:
    """A program that knows one version more, in which DropHistory is new."""
    version = ENTRY_VERSION + 1
    monkeypatch.setattr(states, "ENTRY_VERSION", version)
    monkeypatch.setitem(commands.SINCE, commands.DropHistory, version)
    return version


async def test_a_new_command_waits_until_every_replica_knows_it(newer: int) -> None:
    state = World().state
    log = AppliesAtOnce(state, ENTRY_VERSION)
    proposals = Proposals(log, state, Clock())
    running = asyncio.create_task(proposals.run())
    old = proposals.submit(commands.Fire([], 0))
    new = proposals.submit(commands.DropHistory(0))
    assert await old == []
    with pytest.raises(FailedPrecondition, match="newer version"):
        await new
    with pytest.raises(FailedPrecondition):
        await proposals.submit(commands.DropHistory(0))
    assert log.versions == [ENTRY_VERSION], "what was refused was not proposed"
    log.entry_version = newer
    await proposals.submit(commands.DropHistory(0))
    assert log.versions == [ENTRY_VERSION, newer]
    # A replica that is away cannot be an old one any more.
    log.entry_version = 1
    await proposals.submit(commands.DropHistory(0))
    assert log.versions[-1] == newer
    running.cancel()


def test_what_was_applied_is_remembered_over_a_restart(newer: int) -> None:
    world = World()
    world.state.apply(1, 1, encode_entry(START_MS, [], ENTRY_VERSION))
    assert State(world.backend).meta.entry_version == ENTRY_VERSION
    world.state.apply(2, 1, encode_entry(START_MS, [], newer))
    assert State(world.backend).meta.entry_version == newer
    world.state.apply(3, 1, encode_entry(START_MS, [], ENTRY_VERSION))
    assert State(world.backend).meta.entry_version == newer


@pytest.mark.parametrize(
    "payload",
    [
        encode_entry(START_MS, [], ENTRY_VERSION + 1),
        msgspec.msgpack.encode([ENTRY_VERSION + 1, START_MS, [["a command of the future", 7]]]),
        msgspec.msgpack.encode([ENTRY_VERSION + 3, {"another": "shape"}]),
    ],
)
def test_a_program_that_is_too_old_says_so_and_changes_nothing(payload: bytes) -> None:
    state = World().state
    with pytest.raises(UnknownEntry, match="Upgrade it"):
        state.apply(1, 1, payload)
    assert state.applied == (0, 0)


def test_damage_is_not_taken_for_the_future() -> None:
    with pytest.raises(msgspec.ValidationError):
        World().state.apply(1, 1, msgspec.msgpack.encode([ENTRY_VERSION, START_MS, [["what", 7]]]))


def test_how_much_was_written_is_told_once_every_replica_knows_of_it() -> None:
    world = World()
    world.job("report")
    (execution,) = world.execute("report")
    report = shard_pb2.AttemptReport(output_bytes=12, dropped_output_bytes=5, cpu_ns=7)
    old = ended_attempt(execution, report, OUTPUT_SINCE - 1)
    assert (old.output_bytes, old.dropped_bytes, old.cpu_ns) == (-1, 0, 7)
    new = ended_attempt(execution, report, OUTPUT_SINCE)
    assert (new.output_bytes, new.dropped_bytes) == (12, 5)
    unknown = ended_attempt(execution, shard_pb2.AttemptReport(), OUTPUT_SINCE)
    assert unknown.output_bytes == -1


def test_how_certain_the_time_was_is_told_once_every_replica_knows_of_it() -> None:
    world = World()
    world.job("report")
    (execution,) = world.execute("report")
    report = shard_pb2.AttemptReport(started_ns=5, clock_uncertainty_ns=70_000)
    old = ended_attempt(execution, report, UNCERTAINTY_SINCE - 1)
    assert (old.started_ns, old.uncertainty_ns) == (5, 0)
    assert ended_attempt(execution, report, UNCERTAINTY_SINCE).uncertainty_ns == 70_000


def test_a_reason_that_only_a_newer_executor_knows_is_recorded_as_a_failure_of_the_mesh() -> None:
    world = World()
    world.job("report")
    (execution,) = world.execute("report")
    report = shard_pb2.AttemptReport(reason=max(Reason) + 1, message="the moon was full")
    ended = ended_attempt(execution, report, ENTRY_VERSION)
    assert (ended.reason, ended.message) == (Reason.INFRASTRUCTURE, "the moon was full")
