"""Whose sandbox is made next. No I/O.

Making one is bound by the processors: more at once than there are processors only makes each later.
So there are few turns, and customers take them in turn: whoever has the fewest sandboxes in the
making goes first, and among those alike whoever was served longest ago. A customer who has had none
in the making for LATELY_S does not even wait for a turn's end (up to a limit for all), so that the
first of one who asks for one sandbox is made while another waits for two thousand. Until such a
newcomer's is made, others get none; and while newcomers come, there is one turn less, so that a
processor is there for the next one. Within a customer what is due first comes first.

Removing a sandbox costs a third of making it, and takes a turn too: one that is patient, and waits
for newcomers. What else follows from an end costs as much again, here and at the shard: it waits
for newcomers too (quiet.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator

from .quiet import Quiet

SHARED_S = 10.0
"""After a newcomer there is one turn less for so long."""

LATELY_S = 0.5
"""Who had a turn within so long is no newcomer, though it has none just now: a queue that has every
turn has none between two. And so long at most newcomers keep a queue waiting."""

Key = tuple[bool, str]
"""Whether it is patient, and the customer."""


class Turns:
    """See the module."""

    def __init__(
        self,
        at_once: int,
        newcomers_max: int,
        quiet: Quiet,
        shared_s: float = SHARED_S,
        lately_s: float = LATELY_S,
    ) -> None:
        """at_once: turns. newcomers_max: those beyond them, of newcomers. quiet: is told of each
        newcomer. shared_s, lately_s: see SHARED_S, LATELY_S."""
        self._quiet = quiet
        self._shared_s = shared_s
        self._lately_s = lately_s
        self._at_once = at_once
        self._limit = at_once + newcomers_max
        self._busy: dict[Key, int] = {}
        """Turns taken; never 0."""
        self._total = 0
        self._newcomers = 0
        """Turns beyond at_once."""
        self._shared_until_s = 0.0
        """Of the loop's clock: until then there is one turn less."""
        self._served: dict[Key, float] = {}
        """Who had a turn lately, and when it ended, in that order."""
        self._waiting: dict[Key, list[tuple[int, int, asyncio.Future[bool]]]] = {}
        """In the order in which they were served last: (due, number, its turn, which says whether
        it is a newcomer's)."""
        self._numbers = itertools.count()

    @contextlib.asynccontextmanager
    async def turn(
        self, customer: str, due_ns: int, *, patient: bool = False
    ) -> AsyncIterator[None]:
        """Wait for a turn, and have it while inside. patient: it is never a newcomer's."""
        key = patient, customer
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        heap = self._waiting.setdefault(key, [])
        heapq.heappush(heap, (due_ns, next(self._numbers), granted))
        self._grant()
        try:
            newcomer = await granted
        except asyncio.CancelledError:
            # It is passed over when it comes up, unless it has come up already.
            if granted.done() and not granted.cancelled():
                self._end(key, granted.result())
            raise
        try:
            yield
        finally:
            self._end(key, newcomer)

    def _end(self, key: Key, newcomer: bool) -> None:
        self._newcomers -= newcomer
        if newcomer:
            self._quiet.end()
        self._served.pop(key, None)
        self._served[key] = asyncio.get_running_loop().time()
        self._total -= 1
        self._busy[key] -= 1
        if not self._busy[key]:
            del self._busy[key]
        self._grant()

    def _grant(self) -> None:
        while self._total < self._limit and (key := self._next()) is not None:
            heap = self._waiting.pop(key)
            _, _, granted = heapq.heappop(heap)
            if heap:
                self._waiting[key] = heap  # last in the order
            newcomer = self._total >= self._turns()
            if newcomer:
                self._newcomers += 1
                self._quiet.begin()
                self._shared_until_s = asyncio.get_running_loop().time() + self._shared_s
            self._busy[key] = self._busy.get(key, 0) + 1
            self._total += 1
            granted.set_result(newcomer)

    def _turns(self) -> int:
        """How many there are now, beside those of newcomers."""
        shared = asyncio.get_running_loop().time() < self._shared_until_s
        return max(1, self._at_once - shared)

    def _next(self) -> Key | None:
        """Whose turn it is; None if it is nobody's."""
        full = self._newcomers > 0 or self._total >= self._turns()
        self._forget()
        best: Key | None = None
        for key, heap in list(self._waiting.items()):
            while heap and heap[0][2].done():  # it has given up
                heapq.heappop(heap)
            if not heap:
                del self._waiting[key]
                continue
            patient, _ = key
            if full and (patient or key in self._busy or key in self._served):
                continue
            if best is None or self._busy.get(key, 0) < self._busy.get(best, 0):
                best = key
        return best

    def _forget(self) -> None:
        """Whoever was not served lately."""
        before_s = asyncio.get_running_loop().time() - self._lately_s
        while self._served and next(iter(self._served.values())) <= before_s:
            del self._served[next(iter(self._served))]
