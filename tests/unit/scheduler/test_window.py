"""The near horizon holds what is due soon, each timer once, and no more."""

from __future__ import annotations

from tickmesh.scheduler.core.model import Timer, TimerKind
from tickmesh.scheduler.timers import HERD_FIRES_PER_MS, HERD_MIN, HORIZON_MS, LOAD_MAX, Window


class Stored:
    """An index of timers in a list."""

    def __init__(self, *due_ms: int) -> None:
        self.all = [Timer(due, TimerKind.FIRE, b"u", b"%d" % i) for i, due in enumerate(due_ms)]

    def timers(self, from_ms: int, until_ms: int, count: int) -> list[Timer]:
        found = sorted(t for t in self.all if from_ms <= t.due_ms < until_ms)
        return found[:count]


def test_only_the_next_minute_is_in_memory() -> None:
    window = Window(Stored(10, 50_000, 70_000), 0)
    window.extend(0)
    assert len(window) == 2
    assert window.until_ms == HORIZON_MS


def test_time_brings_the_rest() -> None:
    window = Window(Stored(10, 70_000), 0)
    window.extend(0)
    window.extend(40_000)
    assert [t.due_ms for t in window.pop(70_000, 10)] == [10, 70_000]


def test_a_full_minute_is_loaded_in_parts() -> None:
    window = Window(Stored(*range(1, LOAD_MAX + 2), 50_000), 0)
    assert window.extend(0), "there is more"
    assert len(window) == LOAD_MAX - 1, "whole instants"
    while window.extend(0):
        pass
    assert (len(window), window.until_ms) == (LOAD_MAX + 2, HORIZON_MS)


def test_what_is_overdue_since_the_floor_is_found() -> None:
    window = Window(Stored(5, 1_000), 1)
    window.extend(1_000_000)
    assert [t.due_ms for t in window.pop(1_000_000, 10)] == [5, 1_000]


def test_a_new_timer_within_the_window_is_held_once() -> None:
    stored = Stored(5_000)
    window = Window(stored, 0)
    window.extend(0)
    window.add(stored.all)
    new = Timer(3_000, TimerKind.FIRE, b"u", b"new")
    far = Timer(90_000, TimerKind.FIRE, b"u", b"far")
    window.add([new, far])
    assert [t.due_ms for t in window.pop(100_000, 10)] == [3_000, 5_000]
    assert window.next_ms() is None


def test_pop_takes_no_more_than_asked() -> None:
    window = Window(Stored(1, 2, 3), 0)
    window.extend(0)
    assert [t.due_ms for t in window.pop(10, 2)] == [1, 2]
    assert window.next_ms() == 3


def test_of_a_herd_those_beyond_what_is_armed_in_time_are_popped_earlier() -> None:
    due_ms, extra = 30_000, 4_000
    window = Window(Stored(*[due_ms] * (HERD_MIN + extra)), 0, ahead_ms=2_000)
    window.extend(0)
    span_ms = extra // HERD_FIRES_PER_MS
    assert window.next_ms() == due_ms - 2_000 - span_ms + 1
    early = window.pop(due_ms - 2_000 - span_ms // 2, 1 << 30)
    assert abs(len(early) - extra // 2) <= 2 * HERD_FIRES_PER_MS
    assert len(window.pop(due_ms - 2_000, 1 << 30)) == HERD_MIN + extra - len(early)


def test_a_herd_of_more_than_executors_make_in_time_is_popped_as_they_can_make_it() -> None:
    window = Window(Stored(*[30_000] * 50), 0, ahead_ms=2_000, slots=lambda: 64)
    window.extend(0)
    popped = {ms: len(window.pop(ms, 1 << 30)) for ms in range(20_000, 28_001, 1_000)}
    assert sum(popped.values()) == 50
    assert popped[28_000] == 17 + 9  # in time, and a second's worth
    assert [popped[ms] for ms in (25_000, 26_000, 27_000)] == [4, 10, 10]
    few = Window(Stored(*[30_000] * 16), 0, ahead_ms=2_000, slots=lambda: 64)
    few.extend(0)
    assert few.next_ms() == 28_000


def test_a_steady_rate_is_no_herd_and_what_was_popped_is_in_none() -> None:
    window = Window(Stored(*range(20_000, 21_000)), 0, ahead_ms=2_000)
    window.extend(0)
    assert window.next_ms() == 18_000
    window.pop(20_000, 1 << 30)
    window.add([Timer(20_500, TimerKind.FIRE, b"u", b"%d-again" % i) for i in range(HERD_MIN)])
    assert window.next_ms() == 18_500
