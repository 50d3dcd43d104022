"""The near horizon holds what is due soon, each timer once, and no more."""

from __future__ import annotations

from tickmesh.scheduler.core.model import Timer, TimerKind
from tickmesh.scheduler.timers import HORIZON_MS, Window


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
