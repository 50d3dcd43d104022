"""Calls that wait for a shard, and the batches they leave in. No I/O.

A shard answers many calls in one message; so what waits while batches are under way goes together
in the next one, and a call's cost is shared where it matters, under load.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import NoReturn

from ..mesh.errors import Overloaded, TickmeshError
from ..proto.tickmesh.internal.v1 import shard_pb2
from .methods import Method, Repeat

BATCH_CALLS_MAX = 1_024
"""Calls in one message to a shard: the wire's limit (shard.proto)."""

BATCH_BYTES_MAX = 8 * 1024 * 1024
"""Requests in one message: two of the largest public ones, so that one message never takes long."""

BATCH_ANSWER_BYTES_MAX = 24 * 1024 * 1024
"""Expected answers in one message, under INTERNAL_MESSAGE_BYTES_MAX by a margin for larger ones."""

QUEUE_CALLS_MAX = 10_000
"""Calls that wait for one shard: seconds of its throughput one by one; more would only time out."""

BATCHES_IN_FLIGHT_MAX = 4
"""Batches under way to a leader: enough to keep it busy while answers travel, and few enough that
what waits gathers into large ones."""

SLOW_IN_FLIGHT_MAX = 16
"""Calls that take seconds or minutes under way to a leader, which does them side by side."""

SLOW_OF_OWNER_MAX = 4
"""Of these as many are one customer's, so that others have theirs done."""

SLOW_QUEUE_CALLS_MAX = 1_000
"""Such calls that wait: more would only time out."""

QUEUE_BYTES_MAX = 64 * 1024 * 1024
"""Their requests together: what a gateway may hold for one shard."""

OWNER_PART = 2
"""One customer's calls are at most one part in so many of what may wait: others find room however
many it sends."""

OVERLOAD_RETRY_MS = 500
"""What a refused caller is told to wait: a full queue drains in about this time."""

GIVE_UP_SHARE = 0.1
"""Share of a call's time kept back for its own answer, so that the caller hears why it failed
rather than nothing."""

GIVE_UP_MAX_S = 0.25
"""At most this is kept back."""


@dataclass(slots=True, eq=False)
class Pending:
    """A call that waits for its answer: the public response's bytes, in `answer`."""

    method: Method
    request: bytes
    traceparent: str
    expires_s: float
    """By the event loop's clock: when the gateway stops trying."""
    answer: asyncio.Future[bytes]
    repeatable: bool
    """Whether it may be sent again though it may have been done."""
    owner: str = ""
    """The customer. Empty: an operator's."""
    alone: bool = False
    """Sent by itself, as its answer was too large beside those of others."""
    sent: bool = False
    """Whether a leader may have done it: it was sent, and was not answered by a refusal."""

    def succeed(self, response: bytes) -> None:
        """Answer, unless nobody waits any more."""
        if not self.answer.done():
            self.answer.set_result(response)

    def fail(self, error: TickmeshError) -> None:
        """Answer with an error, unless nobody waits any more."""
        if not self.answer.done():
            self.answer.set_exception(error)


def expiry_s(now_s: float, timeout_s: float) -> float:
    """When the gateway gives up on a call whose caller waits for timeout_s more."""
    return now_s + timeout_s - min(GIVE_UP_MAX_S, timeout_s * GIVE_UP_SHARE)


def repeatable(method: Method) -> bool:
    """Whether calls of the method may be sent twice. They all carry a request_id where it helps."""
    return method.repeat is not Repeat.NEVER


class Queue:
    """First in, first out, limited by count and by bytes; takes what returned from a lost leader
    back at its head, and forgets what nobody waits for any more."""

    in_flight_max = BATCHES_IN_FLIGHT_MAX
    calls_max = QUEUE_CALLS_MAX

    def __init__(self) -> None:
        self._calls: OrderedDict[Pending, None] = OrderedDict()
        self._bytes = 0
        self._of_owner: dict[str, tuple[int, int]] = {}
        """Calls and bytes that wait of each customer."""
        self._in_flight = 0

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def may_send(self) -> bool:
        """Whether something waits, and another batch may be under way."""
        return bool(self._calls) and self._in_flight < self.in_flight_max

    def append(self, call: Pending) -> None:
        """Raises Overloaded if the queue is full, of all calls or of its customer's."""
        calls, size = self._of_owner.get(call.owner, (0, 0))
        many = calls >= self.calls_max // OWNER_PART or size >= QUEUE_BYTES_MAX // OWNER_PART
        if call.owner and many:
            self._refuse(f"{calls:,} calls ({size:,} bytes) of customer {call.owner} wait")
        if len(self._calls) >= self.calls_max or self._bytes >= QUEUE_BYTES_MAX:
            self._refuse(f"{len(self._calls):,} calls ({self._bytes:,} bytes) wait")
        self._calls[call] = None
        self._count(call, 1)

    @staticmethod
    def _refuse(why: str) -> NoReturn:
        raise Overloaded(
            f"{why} for this shard already: try again in {OVERLOAD_RETRY_MS} ms or later",
            retry_after_ms=OVERLOAD_RETRY_MS,
        )

    def _count(self, call: Pending, by: int) -> None:
        calls, size = self._of_owner.get(call.owner, (0, 0))
        self._bytes += by * len(call.request)
        if calls + by:
            self._of_owner[call.owner] = calls + by, size + by * len(call.request)
        else:
            del self._of_owner[call.owner]

    def put_back(self, calls: list[Pending]) -> None:
        """Return calls that were taken, in their old order and before the others: those that
        somebody still waits for."""
        for call in reversed(calls):
            if not call.answer.done():
                self._calls[call] = None
                self._calls.move_to_end(call, last=False)
                self._count(call, 1)

    def forget(self, call: Pending) -> None:
        """Nobody waits for the call any more; it may have been taken already."""
        if call in self._calls:
            del self._calls[call]
            self._count(call, -1)

    def ended(self, batch: list[Pending]) -> None:
        """A batch that was taken is under way no more."""
        self._in_flight -= 1

    def take(self) -> list[Pending]:
        """The next batch, within every limit; it is under way until `ended`. Empty: there is none
        now."""
        batch = self._batch()
        self._in_flight += bool(batch)
        return batch

    def _batch(self) -> list[Pending]:
        batch: list[Pending] = []
        request_bytes = answer_bytes = 0
        while self._calls and len(batch) < BATCH_CALLS_MAX:
            call = next(iter(self._calls))
            request_bytes += len(call.request)
            answer_bytes += max(call.method.answer_bytes, len(call.request))
            if batch and (
                request_bytes > BATCH_BYTES_MAX
                or answer_bytes > BATCH_ANSWER_BYTES_MAX
                or call.alone
            ):
                break
            batch.append(call)
            self.forget(call)
            if call.alone:
                break
        return batch


class SlowQueue(Queue):
    """Calls that take long, each by itself: none waits in it for another customer's."""

    in_flight_max = SLOW_IN_FLIGHT_MAX
    calls_max = SLOW_QUEUE_CALLS_MAX

    def __init__(self) -> None:
        super().__init__()
        self._under_way: Counter[str] = Counter()

    def ended(self, batch: list[Pending]) -> None:
        """See Queue."""
        super().ended(batch)
        for call in batch:
            self._under_way[call.owner] -= 1
            if not self._under_way[call.owner]:
                del self._under_way[call.owner]

    def _batch(self) -> list[Pending]:
        for call in self._calls:
            if not call.owner or self._under_way[call.owner] < SLOW_OF_OWNER_MAX:
                self._under_way[call.owner] += 1
                self.forget(call)
                return [call]
        return []


def to_message(batch: list[Pending], now_s: float) -> shard_pb2.CallRequest:
    """A batch as it goes to the shard."""
    message = shard_pb2.CallRequest()
    add = message.calls.add
    for call in batch:
        add(
            method=call.method.name,
            request=call.request,
            timeout_ms=max(1, int((call.expires_s - now_s) * 1000)),
            traceparent=call.traceparent,
        )
    return message
