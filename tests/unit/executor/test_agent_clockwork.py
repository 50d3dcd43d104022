"""Waking on time, and knowing another clock only as well as its answers tell."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest

from tickmesh.executor.clockwork import (
    DELAY_NS_MAX,
    READ_NS_MAX,
    SAMPLES_MAX,
    STEP_NS_MIN,
    ClockOffset,
    Clockwork,
    Reading,
    Steps,
)
from tickmesh.mesh.clock import SystemClock

from .clocks import Host

MS = 1_000_000


@pytest.fixture
async def clockwork() -> AsyncIterator[Clockwork]:
    made = Clockwork(SystemClock())
    yield made
    made.close()


async def test_what_is_due_is_done_in_the_order_of_its_instants_and_never_early(
    clockwork: Clockwork,
) -> None:
    done: list[tuple[int, int]] = []
    last = asyncio.Event()

    def note(after_ms: int, instant_ns: int) -> None:
        done.append((after_ms, time.time_ns() - instant_ns))
        if len(done) == 5:
            last.set()

    base_ns = time.time_ns()
    for after_ms in (9, 3, 6, -20_000, 3):
        instant_ns = base_ns + after_ms * MS
        clockwork.at(instant_ns, partial(note, after_ms, instant_ns))
    assert not done, "what is past is done by the loop too, and not by who asks"
    await last.wait()
    assert [after_ms for after_ms, _ in done] == [-20_000, 3, 3, 6, 9]
    assert all(late_ns >= 0 for _, late_ns in done)


async def test_a_herd_is_done_in_one_go(clockwork: Clockwork) -> None:
    """Whatever follows from the first comes after the last."""
    loop = asyncio.get_running_loop()
    done: list[str] = []
    last = asyncio.Event()
    instant_ns = time.time_ns() + 2 * MS
    for number in range(100):
        clockwork.at(instant_ns, lambda: loop.call_soon(done.append, "followed"))
        clockwork.at(instant_ns, partial(done.append, f"{number}"))
    clockwork.at(instant_ns, lambda: loop.call_soon(last.set))
    await last.wait()
    assert done == [*(f"{number}" for number in range(100)), *["followed"] * 100]


async def test_when_the_clock_is_set_all_that_wait_look_when_their_time_is_now(
    clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    last = asyncio.Event()
    hour_ns = 3_600_000 * MS
    clockwork.at(time.time_ns() + 2 * hour_ns, partial(looked.append, "later"))
    clockwork.at(time.time_ns() + hour_ns, partial(looked.append, "sooner"))

    def read(_descriptor: int, _size: int) -> bytes:
        raise OSError(errno.ECANCELED, "the clock was set")

    monkeypatch.setattr(os, "read", read)
    clockwork._timer._expired()
    assert looked == ["sooner", "later"]
    monkeypatch.undo()
    clockwork.at(time.time_ns() + MS, last.set)
    await last.wait()
    assert len(looked) == 2


def test_steps_of_the_wall_clock_are_seen_and_nothing_else_is() -> None:
    host = Host()
    steps = Steps(host)
    host.pass_ns(10**15)
    host.set_ns(STEP_NS_MIN - 1)  # slewing
    assert steps.look() == 0
    host.set_ns(3_600_000 * MS)
    host.pass_ns(10**9)
    assert steps.look() == steps.look() == 3_600_000 * MS
    host.set_ns(-3_600_000 * MS)
    assert steps.look() == 0


def test_who_is_interrupted_while_reading_both_clocks_reads_them_again() -> None:
    host = Host()
    steps = Steps(host)
    host.interruptions_ns = [0, 5 * READ_NS_MAX, 20 * READ_NS_MAX]
    assert steps.look() == 0
    assert not host.interruptions_ns


@pytest.mark.parametrize("step_ns", [3_600_000 * MS, -3_600_000 * MS])
def test_what_was_measured_still_tells_after_a_step_of_our_own_clock(step_ns: int) -> None:
    host = Host()
    offset = ClockOffset(Steps(host))
    offset.sample(10, host.now_ns() + 70_000, host.now_ns() + 5)
    assert offset.estimate_ns == (70_000, 5)
    host.set_ns(step_ns)
    assert offset.estimate_ns == (70_000 - step_ns, 5)
    offset.sample(8, host.now_ns() + 70_000 - step_ns, host.now_ns() + 4)
    assert offset.estimate_ns == (70_000 - step_ns, 4)


@pytest.mark.parametrize(
    ("sent_ms", "replied_ms", "received_ms", "offset_ms"),
    [
        (1_000, 1_001, 1_002, 0),  # the same clock
        (1_000, 1_000, 1_010, 0),  # the same clock, for all that this answer can tell
        (1_000, 1_010, 1_010, 0),
        (1_000, 6_005, 1_010, 4_995),  # 5,000 ahead, give or take 5
        (5_000, 1_005, 5_010, -3_995),
    ],
)
def test_only_what_is_certain_is_corrected(
    sent_ms: int, replied_ms: int, received_ms: int, offset_ms: int
) -> None:
    offset = ClockOffset(Steps(SystemClock()))
    assert offset.reading.offset_ns == 0
    offset.sample((received_ms - sent_ms) * MS, replied_ms * MS, received_ms * MS)
    assert offset.reading.offset_ns == offset_ms * MS


def test_the_quickest_answer_of_the_latest_counts() -> None:
    offset = ClockOffset(Steps(SystemClock()))
    offset.sample(2 * MS, 100 * MS, 2 * MS)  # 99 ± 1: the quickest, but soon too old
    for number in range(SAMPLES_MAX - 1):
        offset.sample((40 + number) * MS, 250 * MS, (40 + number) * MS)
    assert offset.reading.offset_ns == 98 * MS
    offset.sample(10 * MS, 205 * MS, 10 * MS)  # 200 ± 5
    assert offset.reading.offset_ns == 195 * MS


def test_answers_over_a_second_late_or_before_their_question_tell_nothing() -> None:
    offset = ClockOffset(Steps(SystemClock()))
    offset.sample(DELAY_NS_MAX + 1, 10**12, 0)
    offset.sample(-1, 10**12, 0)
    assert offset.reading.offset_ns == 0


def test_what_is_reported_holds_the_truth_within_its_uncertainty() -> None:
    offset = ClockOffset(Steps(SystemClock()))
    assert offset.estimate_ns == (0, 0), "nothing is known yet"
    for sent_ns, there_ns, back_ns in ((0, 900, 100), (5_000, 10, 90), (9_000, 500, 500)):
        replied_ns = sent_ns + there_ns + 70_000
        offset.sample(there_ns + back_ns, replied_ns, sent_ns + there_ns + back_ns)
    estimate_ns, uncertainty_ns = offset.estimate_ns
    assert uncertainty_ns == 50, "that of the quickest answer"
    assert abs(estimate_ns - 70_000) <= uncertainty_ns


@pytest.mark.parametrize("there_ns", [0, 40, 100])
@pytest.mark.parametrize("truth_ns", [0, 30, -45, 70_000, -70_000])
def test_the_truth_is_within_what_is_certain_and_its_uncertainty(
    truth_ns: int, there_ns: int
) -> None:
    offset = ClockOffset(Steps(SystemClock()))
    assert offset.reading == Reading(), "nothing is known yet"
    offset.sample(100, 1_000_000 + there_ns + truth_ns, 1_000_100)
    reading = offset.reading
    assert abs(truth_ns - reading.offset_ns) <= reading.uncertainty_ns <= 100
