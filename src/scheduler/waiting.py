"""Executions that wait for an executor: whose turn it is. No I/O.

Between customers in turn, one each (or as many as a customer's weight says); within a customer
oldest due first. So a customer who queues ten thousand delays another's one by as many executions
as there are customers that wait, not by ten thousand. What is not ready yet (a retry's time has not
come) takes part in no turn, and what no executor can take now stands in nobody's way.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import TypeVar

from .placing import Need, No

STRIDE = 5_040
"""A turn's length for a customer of weight 1: the whole of it divides well."""

MISSES_MAX = 256
"""Different needs that were found to have no room, in one pass."""

NEEDS_LOOKED_MAX = 64
"""Different needs of one customer that are looked at when its turn comes; of those that were found
to have no room others come first the next time."""

LOOKS_MAX = 4_096
"""Customers looked at in one pass, about 5 ms: then the loop does something else."""

Placed = TypeVar("Placed")
Place = Callable[[bytes], Placed | No]


class _Queue:
    """One customer's executions that are ready."""

    __slots__ = ("by_need", "customer", "turn")

    def __init__(self, customer: str, turn: int) -> None:
        self.customer = customer
        self.turn = turn
        """Its next turn: the lowest is served first."""
        self.by_need: dict[Need, list[tuple[int, bytes]]] = {}
        """(when it was ready, id), oldest first; never an empty list."""

    def oldest(self, blocked: set[Need], missed: set[Need]) -> Need | None:
        """The need of the oldest execution, of those whose needs are not blocked; of those that
        were missed only if there are no others."""
        best: Need | None = None
        best_rank = (False, (0, b""))
        for need, heap in itertools.islice(self.by_need.items(), NEEDS_LOOKED_MAX):
            rank = need in missed, heap[0]
            if need not in blocked and (best is None or rank < best_rank):
                best, best_rank = need, rank
        return best

    def put_last(self, need: Need) -> None:
        """Look at others before this need."""
        self.by_need[need] = self.by_need.pop(need)

    def pop(self, need: Need) -> None:
        heap = self.by_need[need]
        heapq.heappop(heap)
        if not heap:
            del self.by_need[need]


class Waiting:
    """See the module."""

    def __init__(self, weight: Callable[[str], int] = lambda _: 1) -> None:
        """weight: of a customer, 1 as a rule."""
        self._weight = weight
        self._later: list[tuple[int, str, Need, bytes]] = []
        """(when it is ready, customer, need, id)"""
        self._queues: dict[str, _Queue] = {}
        self._turns: list[tuple[int, int, _Queue]] = []
        """(turn, number, queue): each queue once."""
        self._numbers = itertools.count()
        self._turn = 0
        """The last that was served."""
        self.stuck = False
        """The last pass looked at all that wait, and placed nobody else."""
        self.unfinished = False
        """The last pass ended before it had looked at all."""
        self._missed: set[Need] = set()
        """There was no room for these in the last passes, since one that looked at all."""

    def __len__(self) -> int:
        ready = (len(heap) for queue in self._queues.values() for heap in queue.by_need.values())
        return len(self._later) + sum(ready)

    @property
    def any_ready(self) -> bool:
        """Whether somebody waits for nothing but a place."""
        return bool(self._queues)

    def before(self, customer: str) -> bool:
        """Whether somebody who waits would be overtaken by a customer's new execution."""
        return customer in self._queues or (bool(self._queues) and not self.stuck)

    def add(self, ready_ms: int, customer: str, need: Need, identity: bytes) -> None:
        """An execution waits, from an instant on."""
        heapq.heappush(self._later, (ready_ms, customer, need, identity))

    def forget(self, customer: str) -> None:
        """None of a customer's executions waits: they are to be added again."""
        self._later = [each for each in self._later if each[1] != customer]
        heapq.heapify(self._later)
        queue = self._queues.pop(customer, None)
        if queue is not None:
            self._turns = [each for each in self._turns if each[2] is not queue]
            heapq.heapify(self._turns)

    def wake_ms(self) -> int | None:
        """When the first that is not ready yet will be; None if all are."""
        return self._later[0][0] if self._later else None

    def _ripen(self, now_ms: int) -> None:
        while self._later and self._later[0][0] <= now_ms:
            ready_ms, customer, need, identity = heapq.heappop(self._later)
            queue = self._queues.get(customer)
            if queue is None:
                # Who was away has not saved up turns.
                queue = self._queues[customer] = _Queue(customer, self._turn)
                heapq.heappush(self._turns, (queue.turn, next(self._numbers), queue))
            heapq.heappush(queue.by_need.setdefault(need, []), (ready_ms, identity))

    def serve(self, now_ms: int, count_max: int, place: Place[Placed]) -> list[Placed]:
        """Place those whose turn it is, of those that are ready by now: at most count_max, and as
        far as `place` has room for them."""
        self._ripen(now_ms)
        placed: list[Placed] = []
        passed: list[_Queue] = []
        """Nothing of theirs can be placed now."""
        blocked: set[Need] = set()
        looks = 0
        while self._turns and len(placed) < count_max and looks < LOOKS_MAX:
            looks += 1
            turn, _, queue = heapq.heappop(self._turns)
            need = queue.oldest(blocked, self._missed)
            answer = No.ROOM if need is None else place(queue.by_need[need][0][1])
            if need is None or answer is No.SHARE:
                passed.append(queue)
                continue
            if answer is No.SLOT:
                passed.append(queue)
                break
            if answer is No.ROOM:
                blocked.add(need)
                queue.put_last(need)
                if len(blocked) >= MISSES_MAX:
                    looks = LOOKS_MAX
            else:
                queue.pop(need)
                if not isinstance(answer, No):
                    placed.append(answer)
                    self._turn = turn
                    queue.turn += STRIDE // self._weight(queue.customer)
            if queue.by_need:
                heapq.heappush(self._turns, (queue.turn, next(self._numbers), queue))
            else:
                del self._queues[queue.customer]
        # Where a pass ended early the next one begins with others: nothing is lost by those who
        # stand behind them then, as nothing of theirs could be placed.
        self.unfinished = looks >= LOOKS_MAX
        if not self.unfinished or len(self._missed) >= LOOKS_MAX:
            self._missed.clear()
        if self.unfinished:
            self._missed |= blocked
        for queue in passed:
            if self.unfinished and self._turns:
                queue.turn = max(queue.turn, self._turns[0][0])
            heapq.heappush(self._turns, (queue.turn, next(self._numbers), queue))
        self.stuck = not self.unfinished and len(placed) < count_max
        return placed

    def look_again(self) -> None:
        """There may be more room than at the last pass."""
        self.stuck = False
