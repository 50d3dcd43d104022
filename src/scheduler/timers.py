"""The near horizon: the timers of the next minute, in memory, soonest first.

Everything further away stays in the time-ordered index on disk, so memory does not grow with the
number of schedules. The leader has one; it is made anew from the index with each term.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Protocol

from .core.model import Timer, TimerKind

HORIZON_MS = 60_000
"""How far ahead timers are held in memory: a minute's fires of a busy shard are some megabytes."""

REFILL_MS = 30_000
"""The window is extended when less than this is left of it."""

LOAD_MAX = 5_000
"""Timers loaded at one time: about 10 ms. A fuller minute is loaded in several, a fuller instant in
one."""

HERD_MIN = 2_000
"""Fires of one second that are armed in time as they are. Of a larger herd the others are armed
earlier still,"""

HERD_FIRES_PER_MS = 4
"""so many in a millisecond: a shard arms about twice as many when it has nothing else to do;"""

HERD_SLOTS_SHARE = 1, 4
"""So many of the executors' slots are filled with sandboxes in time (16 of one executor's 64, made
in under two seconds by two processors); of a larger herd the others are armed earlier still,"""

SLOTS_FILL_MS = 6_400
"""at the pace at which all slots are filled in so long: 10 sandboxes a second for 64 slots;"""

HERD_MS_MAX = 10_000
"""but no more than so much earlier: what is armed takes a slot of an executor."""


class Index(Protocol):
    """Where all timers are: store.queries.Queries."""

    def timers(self, from_ms: int, until_ms: int, count: int) -> list[Timer]: ...


class Window:
    """Timers that are due before `until_ms`, and not popped yet."""

    def __init__(
        self,
        index: Index,
        floor_ms: int,
        ahead_ms: int = 0,
        slots: Callable[[], int] = lambda: 0,
        near: Callable[[Iterable[Timer]], None] = lambda _: None,
    ) -> None:
        """floor_ms: no timer is due before it. ahead_ms: how much earlier fires are popped. slots:
        of all executors; 0 for unknown. near: called with timers that have come near."""
        self._index = index
        self._slots = slots
        self._near = near
        self._ahead_ms = ahead_ms
        self._heap: list[tuple[int, Timer]] = []
        """By the time at which each is to be popped."""
        self._present: set[Timer] = set()
        self._herds: dict[int, int] = {}
        """How many fires each second has, of those that are present."""
        self.until_ms = floor_ms
        """Everything due before this has been loaded."""

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, timers: Iterable[Timer]) -> None:
        """Timers that were just made: those beyond the window will be found in the index."""
        for timer in timers:
            if timer.due_ms < self.until_ms and timer not in self._present:
                self._present.add(timer)
                heapq.heappush(self._heap, (self._pop_ms(timer), timer))

    def _pop_ms(self, timer: Timer) -> int:
        if timer.kind is not TimerKind.FIRE or not self._ahead_ms:
            return timer.due_ms
        second = timer.due_ms // 1_000
        herd = self._herds.get(second, 0)
        self._herds[second] = herd + 1
        earlier_ms = max(0, herd - HERD_MIN) // HERD_FIRES_PER_MS
        if slots := self._slots():
            in_time = slots * HERD_SLOTS_SHARE[0] // HERD_SLOTS_SHARE[1]
            earlier_ms = max(earlier_ms, (herd - in_time) * SLOTS_FILL_MS // slots)
        return timer.due_ms - self._ahead_ms - min(earlier_ms, HERD_MS_MAX)

    def _left(self, timer: Timer) -> None:
        """A timer is not present any more."""
        self._present.discard(timer)
        second = timer.due_ms // 1_000
        herd = self._herds.get(second, 0)
        if timer.kind is TimerKind.FIRE and herd:
            self._herds[second] = herd - 1
            if herd == 1:
                del self._herds[second]

    def extend(self, now_ms: int) -> bool:
        """Load what the window should hold by now, or a part of it; whether there is more."""
        goal_ms = now_ms + HORIZON_MS
        if self.until_ms - now_ms > REFILL_MS:
            return False
        found = self._index.timers(self.until_ms, goal_ms, LOAD_MAX)
        more = len(found) == LOAD_MAX
        if more:
            # Stop at a whole instant: those that share the last one come with the next load, unless
            # there is but one instant, which is then taken as it is.
            last_ms = found[-1].due_ms
            whole = [timer for timer in found if timer.due_ms < last_ms]
            if whole:
                found, goal_ms = whole, last_ms
            else:
                found = self._index.timers(last_ms, last_ms + 1, 1 << 40)
                goal_ms = last_ms + 1
        self.until_ms = goal_ms
        self.add(found)
        self._near(found)
        return more

    def pop(self, now_ms: int, count: int) -> list[Timer]:
        """Take the first `count` timers to act on by now: due, or for fires due within ahead_ms (a
        little more for a herd)."""
        popped: list[Timer] = []
        while self._heap and self._heap[0][0] <= now_ms and len(popped) < count:
            _, timer = heapq.heappop(self._heap)
            self._left(timer)
            popped.append(timer)
        return popped

    def first(self, count: int) -> list[Timer]:
        """Some that are popped soon."""
        return [timer for _, timer in self._heap[:count]]

    def next_ms(self) -> int | None:
        """When the first timer is to be popped."""
        return self._heap[0][0] if self._heap else None
