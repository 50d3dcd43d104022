"""Executions that wait for an executor: whose turn it is. No I/O.

Between customers in turn, one each; within a customer oldest due first. So a customer who queues
ten thousand delays another's one by as many executions as there are customers that wait, not by ten
thousand. What is not ready yet (a retry's time has not come) takes part in no turn.
"""

from __future__ import annotations

import heapq
from collections import deque


class Waiting:
    """See the module."""

    def __init__(self) -> None:
        self._later: list[tuple[int, str, bytes]] = []
        """(when it is ready, customer, id)"""
        self._ready: dict[str, list[tuple[int, bytes]]] = {}
        """By customer: (when it was ready, id); never an empty list."""
        self._turns: deque[str] = deque()
        """The customers of `_ready`, the next first."""

    def __len__(self) -> int:
        return len(self._later) + sum(len(each) for each in self._ready.values())

    @property
    def anybody(self) -> bool:
        """Whether somebody who was ready at the last `first` still waits for a turn."""
        return bool(self._turns)

    def add(self, ready_ms: int, customer: str, identity: bytes) -> None:
        """An execution waits, from an instant on."""
        heapq.heappush(self._later, (ready_ms, customer, identity))

    def wake_ms(self) -> int | None:
        """When the first that is not ready yet will be; None if all are."""
        return self._later[0][0] if self._later else None

    def first(self, now_ms: int) -> bytes | None:
        """Whose turn it is of those that are ready by now. It stays until `pop`."""
        while self._later and self._later[0][0] <= now_ms:
            ready_ms, customer, identity = heapq.heappop(self._later)
            own = self._ready.get(customer)
            if own is None:
                own = self._ready[customer] = []
                self._turns.append(customer)
            heapq.heappush(own, (ready_ms, identity))
        return self._ready[self._turns[0]][0][1] if self._turns else None

    def pop(self) -> None:
        """What `first` answered has been served: the next customer's turn comes."""
        customer = self._turns.popleft()
        own = self._ready[customer]
        heapq.heappop(own)
        if own:
            self._turns.append(customer)
        else:
            del self._ready[customer]
