"""Calls that wait for a shard, and the batches they leave in. No I/O.

A shard answers many calls in one message; so what waits while batches are under way goes together
in the next one, and a call's cost is shared where it matters, under load.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

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

QUEUE_BYTES_MAX = 64 * 1024 * 1024
"""Their requests together: what a gateway may hold for one shard."""

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
    alone: bool = False
    """Sent by itself, as a batch with it had too large an answer."""
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

    def __init__(self) -> None:
        self._calls: OrderedDict[Pending, None] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._calls)

    def append(self, call: Pending) -> None:
        """Raises Overloaded if the queue is full."""
        if len(self._calls) >= QUEUE_CALLS_MAX or self._bytes >= QUEUE_BYTES_MAX:
            raise Overloaded(
                f"{len(self._calls):,} calls ({self._bytes:,} bytes) wait for this shard already: "
                f"try again in {OVERLOAD_RETRY_MS} ms or later",
                retry_after_ms=OVERLOAD_RETRY_MS,
            )
        self._calls[call] = None
        self._bytes += len(call.request)

    def put_back(self, calls: list[Pending]) -> None:
        """Return calls that were taken, in their old order and before the others: those that
        somebody still waits for."""
        for call in reversed(calls):
            if not call.answer.done():
                self._calls[call] = None
                self._calls.move_to_end(call, last=False)
                self._bytes += len(call.request)

    def forget(self, call: Pending) -> None:
        """Nobody waits for the call any more; it may have been taken already."""
        if call in self._calls:
            del self._calls[call]
            self._bytes -= len(call.request)

    def take(self) -> list[Pending]:
        """The next batch, within every limit."""
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
