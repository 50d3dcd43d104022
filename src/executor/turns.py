"""Whose sandbox is made next. No I/O.

Making one is bound by the processors: more at once than there are processors only makes each later.
So there are few turns, and customers take them in turn: whoever has the fewest sandboxes in the
making goes first, and among those alike whoever was served longest ago. A customer who has none in
the making does not even wait for a turn's end (up to a limit for all), so that the first of one who
asks for one sandbox is made while another waits for two thousand. Until such a newcomer's is made,
whoever has one in the making gets no other. Within a customer what is due first comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator


class Turns:
    """See the module."""

    def __init__(self, at_once: int, newcomers_max: int) -> None:
        """at_once: turns. newcomers_max: those beyond them, of customers without a turn."""
        self._at_once = at_once
        self._limit = at_once + newcomers_max
        self._busy: dict[str, int] = {}
        """Turns taken, by customer; never 0."""
        self._total = 0
        self._newcomers = 0
        """Turns beyond at_once."""
        self._calm = asyncio.Event()
        self._calm.set()
        """Set while there are no newcomers."""
        self._waiting: dict[str, list[tuple[int, int, asyncio.Future[bool]]]] = {}
        """By customer, in the order in which they were served last: (due, number, its turn, which
        says whether it is a newcomer's)."""
        self._numbers = itertools.count()

    @contextlib.asynccontextmanager
    async def turn(self, customer: str, due_ns: int) -> AsyncIterator[None]:
        """Wait for a turn, and have it while inside."""
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        heap = self._waiting.setdefault(customer, [])
        heapq.heappush(heap, (due_ns, next(self._numbers), granted))
        self._grant()
        try:
            newcomer = await granted
        except asyncio.CancelledError:
            # It is passed over when it comes up, unless it has come up already.
            if granted.done() and not granted.cancelled():
                self._end(customer, granted.result())
            raise
        try:
            yield
        finally:
            self._end(customer, newcomer)

    async def calm(self) -> None:
        """Return when no newcomer's sandbox is in the making: what can wait, waits for that."""
        await self._calm.wait()

    def _end(self, customer: str, newcomer: bool) -> None:
        self._newcomers -= newcomer
        if not self._newcomers:
            self._calm.set()
        self._total -= 1
        self._busy[customer] -= 1
        if not self._busy[customer]:
            del self._busy[customer]
        self._grant()

    def _grant(self) -> None:
        while self._total < self._limit and (customer := self._next()) is not None:
            heap = self._waiting.pop(customer)
            _, _, granted = heapq.heappop(heap)
            if heap:
                self._waiting[customer] = heap  # last in the order
            newcomer = self._total >= self._at_once
            if newcomer:
                self._newcomers += 1
                self._calm.clear()
            self._busy[customer] = self._busy.get(customer, 0) + 1
            self._total += 1
            granted.set_result(newcomer)

    def _next(self) -> str | None:
        """The customer whose turn it is; None if nobody's is."""
        best: str | None = None
        for customer, heap in list(self._waiting.items()):
            while heap and heap[0][2].done():  # it has given up
                heapq.heappop(heap)
            if not heap:
                del self._waiting[customer]
            elif best is None or self._busy.get(customer, 0) < self._busy.get(best, 0):
                best = customer
        if best in self._busy and (self._newcomers or self._total >= self._at_once):
            return None
        return best
