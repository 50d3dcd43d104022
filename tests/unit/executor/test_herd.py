"""What is due at one instant starts in one go, by the leader's clock and within its lease."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from tickmesh.executor.clockwork import Clockwork, Reading
from tickmesh.executor.uplink import Shard
from tickmesh.mesh.clock import SystemClock

MS = 1_000_000
SOON_NS = 50 * MS


@pytest.fixture
async def shard() -> AsyncIterator[Shard]:
    """Of a leader that was heard just now, and whose clock is ours."""
    clock = SystemClock()
    clockwork = Clockwork(clock)
    made = Shard("shard-0", cast(Any, None), clock, clockwork)
    made.heard(Reading(0, 7), clock.monotonic_ns())
    yield made
    clockwork.close()


async def test_all_start_before_anything_that_follows(shard: Shard) -> None:
    at_ns = time.time_ns() + SOON_NS
    seen: list[str] = []

    async def one(number: int) -> None:
        def start() -> int:
            assert not gc.isenabled()
            seen.append("start")
            return number

        reading, answer = await shard.due(at_ns, start)
        assert (reading, answer) == (Reading(0, 7), number)
        seen.append("told")

    await asyncio.gather(*(one(number) for number in range(100)))
    assert seen == ["start"] * 100 + ["told"] * 100
    assert time.time_ns() >= at_ns
    assert gc.isenabled()


async def test_one_that_fails_or_has_given_up_keeps_nobody_from_starting(shard: Shard) -> None:
    at_ns = time.time_ns() + SOON_NS

    def fail() -> None:
        raise KeyError("its gate is gone")

    def never() -> None:
        raise AssertionError("it has given up")

    given_up = asyncio.create_task(shard.due(at_ns, never))
    failing = asyncio.create_task(shard.due(at_ns, fail))
    last = asyncio.create_task(shard.due(at_ns, time.time_ns))
    await asyncio.sleep(0)
    given_up.cancel()
    assert (await last)[1] >= at_ns
    with pytest.raises(KeyError):
        await failing
    assert given_up.cancelled()


async def test_a_clock_that_turns_out_to_be_behind_is_waited_for(shard: Shard) -> None:
    at_ns = time.time_ns() + SOON_NS
    waiting = asyncio.create_task(shard.due(at_ns, time.time_ns))
    await asyncio.sleep(0)
    # It was taken for 50 ms further than it is.
    shard.heard(Reading(-SOON_NS, 1), time.monotonic_ns())
    reading, started_ns = await waiting
    assert reading == Reading(-SOON_NS, 1)
    assert started_ns >= at_ns + SOON_NS


async def test_nothing_starts_without_a_lease(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_ns = time.time_ns() + SOON_NS
    looked = asyncio.Event()
    held = False

    def in_lease(_: Shard) -> bool:
        looked.set()
        return held

    monkeypatch.setattr(Shard, "in_lease", property(in_lease))
    started: list[int] = []
    waiting = asyncio.create_task(shard.due(at_ns, lambda: started.append(time.time_ns())))
    await looked.wait()
    await asyncio.sleep(0)
    assert not started
    held = True
    shard.heard(Reading(), time.monotonic_ns())
    await waiting
    assert len(started) == 1
