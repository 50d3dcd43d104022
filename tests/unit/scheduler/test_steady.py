"""The time by which a leader decides, while its host's clock jumps."""

from __future__ import annotations

import asyncio

from tickmesh.scheduler.core import commands
from tickmesh.scheduler.proposals import Proposals
from tickmesh.scheduler.steady import HOLD_NS, STEP_NS_MIN, SteadyClock
from tickmesh.scheduler.store.state import State

from .worlds import START_MS, World

MS = 1_000_000


class HostClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.monotonic = 7_000 * MS
        self.off = 0

    def now_ns(self) -> int:
        return START_MS * MS + self.monotonic + self.off

    def monotonic_ns(self) -> int:
        return self.monotonic


def test_time_goes_on_evenly_over_a_jump_until_it_is_believed() -> None:
    for jump in (3_600_000 * MS, -3_600_000 * MS, STEP_NS_MIN + MS):
        host = HostClock()
        clock = SteadyClock(host)
        before = clock.now_ns()
        host.off = jump
        while host.monotonic < 7_000 * MS + HOLD_NS:
            assert clock.now_ns() - before == host.monotonic - 7_000 * MS
            host.monotonic += 10 * MS
        assert clock.now_ns() == host.now_ns()


def test_slewing_is_followed_at_once() -> None:
    host = HostClock()
    clock = SteadyClock(host)
    for _ in range(1_000):
        host.monotonic += 10 * MS
        host.off += 5_000
        assert clock.now_ns() == host.now_ns()


def test_a_jump_that_is_taken_back_was_none() -> None:
    host = HostClock()
    clock = SteadyClock(host)
    host.off = 5_000 * MS
    clock.now_ns()
    host.monotonic += HOLD_NS // 2
    host.off = 0
    assert clock.now_ns() == host.now_ns()
    host.off = 5_000 * MS
    host.monotonic += HOLD_NS // 2 + 1
    assert clock.now_ns() == host.now_ns() - host.off, "the hold begins anew"


def test_a_new_leader_takes_the_time_as_it_is() -> None:
    host = HostClock()
    clock = SteadyClock(host)
    host.off = -3_600_000 * MS
    clock.trust()
    assert clock.now_ns() == host.now_ns()


class AppliesAtOnce:
    """A log of one replica without a disk."""

    apply_s = 0.0

    def __init__(self, state: State) -> None:
        self._state = state
        self.times: list[int] = []
        self.entry_version = 1

    async def propose(self, payload: bytes) -> object:
        applied = self._state.apply(self._state.applied[0] + 1, 1, payload)
        self.times.append(self._state.meta.time_ms)
        return applied


async def test_time_never_runs_backwards_in_the_log() -> None:
    state = World().state
    host = HostClock()
    log = AppliesAtOnce(state)
    proposals = Proposals(log, state, host)  # not even by a clock that nothing steadies
    running = asyncio.create_task(proposals.run())
    for off in (0, 5_000 * MS, -3_600_000 * MS, 0, 9_000 * MS, 8_000 * MS):
        host.off = off
        host.monotonic += MS
        await proposals.submit(commands.Fire([], 0))
    running.cancel()
    assert log.times == sorted(log.times)
    assert log.times[-1] == log.times[-2] > log.times[0]
