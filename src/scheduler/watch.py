"""Changes of executions, for WatchExecutions: live streams of them.

A change is known by the index of the log entry that made it, the same on every replica; that index
is the cursor. Which executions an entry changed is stored with its history (store/queries.py), so a
stream goes on from its cursor at any replica, after any restart. Soft facts (running) have no index
of their own: they are told live, and again with the execution's state when a stream goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..mesh.errors import Unavailable
from .core.model import Execution
from .store.queries import PAGE_BYTES_MAX, message_size

STREAM_QUEUE_MAX = 10_000
"""Changes that wait for one stream; a slower reader is cut off and goes on by its cursor."""

WATCH_BATCH_MAX = 100
"""Executions in one message of a stream, which are about 50 KiB; fewer where they are large, as
those that were tried often: see PAGE_BYTES_MAX."""

RESIGNED = "the shard has another leader: go on from the last cursor"
"""Why streams end when this replica leads no more. A follower may be given a snapshot instead of
entries, and would miss what changed in between."""

STREAMS_MAX = 1_000
"""Streams on one replica: each costs a queue, and a look at each change."""

STREAMS_OF_CUSTOMER_MAX = 500
"""Of these as many are one customer's: others can watch, too."""


class Change(NamedTuple):
    """An execution, as of an entry."""

    at: int
    """Index of the entry: the cursor."""
    execution: Execution


class Stream:
    """One reader's queue."""

    def __init__(self, wanted: Callable[[Execution], bool]) -> None:
        self.wanted = wanted
        self.queue: deque[Change] = deque()
        self.ready = asyncio.Event()
        self.closed = ""
        """Why the stream ends, if it does."""

    def put(self, change: Change) -> None:
        """Add a change, or give up on a reader that is too slow: it is told nothing of that entry,
        and nothing later, so that its last cursor comes before all that it misses."""
        if self.closed:
            return
        if len(self.queue) >= STREAM_QUEUE_MAX:
            while self.queue and self.queue[-1].at == change.at:
                self.queue.pop()
            self.close("the stream is read too slowly: go on from the last cursor")
        else:
            self.queue.append(change)
            self.ready.set()

    def close(self, why: str) -> None:
        """End the stream."""
        self.closed = why
        self.ready.set()

    async def take(self) -> list[Change]:
        """The changes that came since the last call; waits for one. Raises Unavailable."""
        await self.ready.wait()
        self.ready.clear()
        taken = list(self.queue)
        self.queue.clear()
        if not taken and self.closed:
            raise Unavailable(self.closed)
        if self.closed:
            self.ready.set()
        return taken


class Changes:
    """Who wants to know of changes."""

    def __init__(self) -> None:
        self._streams: dict[Stream, str] = {}
        """With their customers, in the order of their opening, so that a simulation is the same
        every time."""
        self._of_customer: Counter[str] = Counter()

    def note(self, index: int, executions: Iterable[Execution]) -> None:
        """An entry changed these executions."""
        for execution in executions:
            self.tell(Change(index, execution))

    def tell(self, change: Change) -> None:
        """Tell the streams that want it."""
        for stream in self._streams:
            if stream.wanted(change.execution):
                stream.put(change)

    def open(self, wanted: Callable[[Execution], bool], customer: str) -> Stream:
        """A customer's stream of the changes from now on. Raises Unavailable."""
        if self._of_customer[customer] >= STREAMS_OF_CUSTOMER_MAX:
            raise Unavailable(
                f"customer {customer} has {STREAMS_OF_CUSTOMER_MAX} streams open on this shard, "
                "and may have no more: end one, or watch all executions of a job in one"
            )
        if len(self._streams) >= STREAMS_MAX:
            raise Unavailable(f"{STREAMS_MAX} streams are open on this replica")
        stream = Stream(wanted)
        self._streams[stream] = customer
        self._of_customer[customer] += 1
        return stream

    def forget(self, stream: Stream) -> None:
        """The reader has gone."""
        customer = self._streams.pop(stream, None)
        if customer is not None:
            self._of_customer[customer] -= 1
            if not self._of_customer[customer]:
                del self._of_customer[customer]

    def close_all(self, why: str) -> None:
        """End every stream."""
        for stream in self._streams:
            stream.close(why)


def pieces(changes: list[Change]) -> list[tuple[list[Change], int]]:
    """Messages of a stream, each with its cursor: one that breaks off within an entry's changes
    comes before that entry, so that who goes on from it sees some twice, and misses none."""
    cut: list[list[Change]] = []
    size = 0
    for change in changes:
        size += message_size(change.execution)
        if not cut or len(cut[-1]) == WATCH_BATCH_MAX or size > PAGE_BYTES_MAX:
            cut.append([])
            size = message_size(change.execution)
        cut[-1].append(change)
    found = []
    for piece, following in zip(cut, [*cut[1:], []], strict=True):
        last = piece[-1].at
        found.append((piece, last - 1 if following and following[0].at == last else last))
    return found
