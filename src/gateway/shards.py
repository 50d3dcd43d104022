"""One shard as the gateway uses it: calls in batches to its leader, whoever that is, and streams.

A leader can be lost at any moment, by its end, by its silence or by an election. What surely was
not done is sent to the next leader; so is what may have been done and is repeatable; the caller of
anything else is told that the outcome is unknown. All within the caller's own time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

import grpc
import grpc.aio
from google.rpc import code_pb2, status_pb2

from ..mesh.config import ShardMembers
from ..mesh.errors import (
    STATUS_METADATA_KEY,
    DeadlineExceeded,
    MessageTooLarge,
    NoLeader,
    OutcomeUnknown,
    Unavailable,
    from_rpc_error,
    from_status,
)
from ..proto.tickmesh.internal.v1 import shard_pb2
from ..proto.tickmesh.v1 import cluster_pb2
from .calls import Pending, Queue, SlowQueue, expiry_s, repeatable, to_message
from .methods import Method, Repeat
from .replicas import Replica, Replicas, View
from .status import unexpected

BATCH_GRACE_S = 0.5
"""How long a batch may go on after the last of its callers was told that its time is over."""

SEARCH_PAUSE_S = 0.02
"""Between two searches for a leader, and before a refused batch is sent again: an election takes
hundreds of milliseconds, and a search costs a message a replica."""


LIST_S = 10.0
"""Between two looks at who belongs to the shard: replacing a replica takes longer than that."""


class Patience(NamedTuple):
    """When the silence of a call's leader makes the gateway ask whether another leads, in
    seconds."""

    first_s: float
    again_s: float


CALL_PATIENCE = Patience(0.3, 0.1)
"""For calls: begins with the shard's own election timeout, then goes on at its elections' pace."""

STREAM_PATIENCE = Patience(1.0, 1.0)
"""For streams, which may well be silent for long."""

LOST_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""How a call to a leader ends that stops, dies or is cut off."""

_MAYBE_DONE = "it may or may not have been done; read before you repeat it"

Answer = TypeVar("Answer")


class _Cancellable(Protocol):
    """A call of grpc.aio."""

    def cancel(self) -> bool: ...


class _Underway:
    """A call to a leader: known, so that it can be abandoned if that leader hangs."""

    __slots__ = ("abandoned", "call", "leader", "patience", "suspect_s")

    def __init__(
        self, leader: Replica, call: _Cancellable, now_s: float, patience: Patience
    ) -> None:
        self.leader = leader
        self.call = call
        self.patience = patience
        self.suspect_s = now_s + patience.first_s
        """By the event loop's clock: when its silence becomes suspicious."""
        self.abandoned = False


class Shard:
    """See the module. `run` must run for calls to be answered."""

    def __init__(self, members: ShardMembers, credentials: grpc.ChannelCredentials) -> None:
        self.id = members.shard_id
        self._replicas = Replicas(members, credentials)
        self._queue = Queue()
        self._slow = SlowQueue()
        self._wake = asyncio.Event()
        self._underway: set[_Underway] = set()
        self._began = asyncio.Event()
        self._leader: Replica | None = None
        self._hint = ""
        self._refused_s = 0.0
        self._search: asyncio.Future[Replica | None] | None = None

    async def close(self) -> None:
        """Close the channels."""
        if self._search is not None:
            self._search.cancel()
        await self._replicas.close()

    async def run(self) -> None:
        """Send what is queued, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._doubt())
            group.create_task(self._follow_list())
            while True:
                await self._wake.wait()
                self._wake.clear()
                for queue in (self._queue, self._slow):
                    while queue.may_send:
                        leader = await self._find()
                        if leader is None:
                            continue
                        batch = queue.take()
                        if not batch:
                            break
                        group.create_task(self._send(leader, queue, batch))

    async def _follow_list(self) -> None:
        """Hear of replicas that come and go, even while the leader stays."""
        while True:
            await asyncio.sleep(LIST_S)
            await self._replicas.ask()

    # -- unary calls -----------------------------------------------------------------------------

    async def call(
        self,
        method: Method,
        request: bytes,
        timeout_s: float,
        traceparent: str,
        *,
        slow: bool = False,
        owner: str = "",
    ) -> bytes:
        """The public response's bytes. slow: it may take long, and others need not wait for it.
        owner: the customer, or "" for an operator. Raises the error that the shard answers,
        Overloaded, NoLeader, OutcomeUnknown or DeadlineExceeded."""
        loop = asyncio.get_running_loop()
        call = Pending(
            method=method,
            request=request,
            traceparent=traceparent,
            expires_s=expiry_s(loop.time(), timeout_s),
            answer=loop.create_future(),
            repeatable=repeatable(method),
            owner=owner,
            alone=slow,
        )
        queue = self._slow if slow else self._queue
        queue.append(call)
        self._wake.set()
        timer = loop.call_at(call.expires_s, self._expire, call)
        try:
            return await call.answer
        finally:
            timer.cancel()
            queue.forget(call)

    def _expire(self, call: Pending) -> None:
        """The caller's time is nearly over: say what is known."""
        if call.sent:
            safe = call.method.repeat is Repeat.SAFE
            call.fail(
                DeadlineExceeded(
                    f"{self.id} did not answer in time: "
                    + ("repeat the call" if safe else f"{_MAYBE_DONE}")
                )
            )
        elif self._leader is None:
            call.fail(self._no_leader())
        else:
            call.fail(
                DeadlineExceeded(
                    f"the calls before this one took {self.id} too long: nothing was changed"
                )
            )

    def _no_leader(self) -> NoLeader:
        return NoLeader(
            f"no leader of {self.id} could be reached in time; nothing was changed: try again"
        )

    async def _send(self, leader: Replica, queue: Queue, batch: list[Pending]) -> None:
        """Send one batch, and answer its calls or put them back."""
        try:
            await self._exchange(leader, queue, batch)
        except Exception as error:
            bug = unexpected(f"{self.id}: a batch of {len(batch)}", error)
            for call in batch:
                call.fail(bug)
        finally:
            queue.ended(batch)
            self._wake.set()

    async def _exchange(self, leader: Replica, queue: Queue, batch: list[Pending]) -> None:
        now_s = asyncio.get_running_loop().time()
        if not leader.connected:
            self._forget_leader(leader)
            queue.put_back(batch)
            return
        timeout_s = max(call.expires_s for call in batch) - now_s
        before = [call.sent for call in batch]
        for call in batch:
            call.sent = True
        rpc = leader.stub.Call(to_message(batch, now_s), timeout=timeout_s + BATCH_GRACE_S)
        try:
            with self._known(leader, rpc, CALL_PATIENCE):
                response = await rpc
        except grpc.aio.AioRpcError as error:
            self._lost(leader, queue, batch, error)
            return
        if response.not_leader:
            for call, sent in zip(batch, before, strict=True):
                call.sent = sent
            self._forget_leader(leader, hint=response.leader_id)
            queue.put_back(batch)
            return
        again = [
            call
            for call, reply, sent in zip(batch, response.replies, before, strict=True)
            if not self._answer(leader, call, reply, sent)
        ]
        queue.put_back(again)

    def _answer(
        self, leader: Replica, call: Pending, reply: shard_pb2.Reply, sent_before: bool
    ) -> bool:
        """Give a reply to its caller. False: the call may go again, as the leader was lost, or
        alone."""
        if not reply.status:
            call.succeed(reply.response)
            return True
        status = status_pb2.Status.FromString(reply.status)
        error = from_status(status)
        if status.code == code_pb2.UNAVAILABLE:
            if isinstance(error, NoLeader):
                call.sent = sent_before
                self._forget_leader(leader)
                return False
            if isinstance(error, OutcomeUnknown) and call.repeatable:
                self._forget_leader(leader)
                return False
        together = isinstance(error, MessageTooLarge) and error.TOGETHER in error.metadata
        if together and call.repeatable and not call.alone:
            call.alone = True
            return False
        call.fail(error)
        return True

    def _lost(
        self, leader: Replica, queue: Queue, batch: list[Pending], error: grpc.aio.AioRpcError
    ) -> None:
        """A batch's outcome is not known."""
        code = error.code()
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and len(batch) > 1:
            # Together their answers were over the internal limit; each alone is not.
            for call in batch:
                call.alone = True
        elif code in LOST_CODES:
            self._forget_leader(leader)
        else:
            raise error
        again = [call for call in batch if call.repeatable]
        for call in batch:
            if not call.repeatable:
                call.fail(
                    OutcomeUnknown(
                        f"the leader of {self.id} was lost before it answered: {_MAYBE_DONE}"
                    )
                )
        queue.put_back(again)

    # -- everything else that the leader answers -------------------------------------------------

    async def ask_leader(
        self, ask: Callable[[Replica, float], Awaitable[Answer]], timeout_s: float
    ) -> Answer:
        """What the leader answers to something that changes nothing; asked again of the next one if
        it is lost. `ask` gets the leader and the seconds left. Raises what the leader answers, or
        NoLeader."""
        loop = asyncio.get_running_loop()
        expires_s = expiry_s(loop.time(), timeout_s)
        while True:
            leader = await self._find_before(expires_s)
            try:
                call = asyncio.ensure_future(ask(leader, expires_s - loop.time()))
                with self._known(leader, call, CALL_PATIENCE):
                    return await call
            except grpc.aio.AioRpcError as error:
                _raise_if_told(error)
                self._forget_leader(leader)

    async def watch(self, request: bytes, timeout_s: float) -> AsyncIterator[bytes]:
        """ShardService.Watch: public responses' bytes, until it ends well or the leader is lost.
        Raises what the leader answers, or Unavailable."""
        loop = asyncio.get_running_loop()
        expires_s = expiry_s(loop.time(), timeout_s)
        message = shard_pb2.WatchRequest(request=request)
        begun = False
        while True:
            leader = await self._find_before(expires_s)
            call = leader.stub.Watch(message, timeout=expires_s - loop.time())
            try:
                with self._known(leader, call, STREAM_PATIENCE):
                    async for response in call:
                        begun = True
                        yield response.response
                    return
            except grpc.aio.AioRpcError as error:
                _raise_if_told(error)
                if loop.time() >= expires_s - 0.001:
                    raise DeadlineExceeded("the stream's time is over") from error
                self._forget_leader(leader)
                if begun:
                    raise Unavailable(
                        f"{self.id} has lost its leader: go on from the last cursor"
                    ) from error
            finally:
                call.cancel()

    async def locate(
        self, name: str, attempt: int, timeout_s: float
    ) -> shard_pb2.LocateExecutionResponse:
        """ShardService.LocateExecution. Raises what the leader answers, or NoLeader."""
        request = shard_pb2.LocateExecutionRequest(name=name, attempt=attempt)

        async def ask(leader: Replica, left_s: float) -> shard_pb2.LocateExecutionResponse:
            return await leader.stub.LocateExecution(request, timeout=left_s)

        return await self.ask_leader(ask, timeout_s)

    async def find_key(
        self, customer: str, key_id: str, timeout_s: float
    ) -> shard_pb2.FindKeyResponse:
        """ShardService.FindKey. Raises NoLeader."""
        request = shard_pb2.FindKeyRequest(customer=customer, key_id=key_id)

        async def ask(leader: Replica, left_s: float) -> shard_pb2.FindKeyResponse:
            return await leader.stub.FindKey(request, timeout=left_s)

        return await self.ask_leader(ask, timeout_s)

    async def executors(self, timeout_s: float) -> list[cluster_pb2.Executor]:
        """The executors attached to the leader. Raises NoLeader."""

        async def ask(leader: Replica, left_s: float) -> shard_pb2.GetStatusResponse:
            return await leader.stub.GetStatus(shard_pb2.GetStatusRequest(), timeout=left_s)

        answer = await self.ask_leader(ask, timeout_s)
        return [cluster_pb2.Executor.FromString(each) for each in answer.executors]

    async def views(self) -> tuple[cluster_pb2.Shard, list[View]]:
        """The shard with all of its replicas, reachable or not, and what they told."""
        number = self._replicas.number
        views = await self._replicas.ask()
        if self._replicas.number != number:  # and who was not known before
            views = await self._replicas.ask()
        by_id = {view.source.id: view.replica for view in views}
        shard = cluster_pb2.Shard(shard_id=self.id, members_number=self._replicas.number)
        for replica in self._replicas.all:
            told = by_id.get(replica.id) or cluster_pb2.Replica()
            told.replica_id, told.address = replica.id, replica.address
            told.learner = replica.id in self._replicas.learners
            shard.replicas.append(told)
        return shard, views

    # -- the leader ------------------------------------------------------------------------------

    def _forget_leader(self, leader: Replica, hint: str = "") -> None:
        """It does not lead (or cannot be reached): look for another before the next call."""
        if self._leader is leader or self._leader is None:
            self._leader = None
            self._hint = hint
            self._refused_s = asyncio.get_running_loop().time()

    async def _find(self) -> Replica | None:
        """The leader, known or found in one search; None if that found none. All who ask at the
        same time share a search."""
        if self._leader is not None:
            return self._leader
        if self._search is None:
            self._search = asyncio.ensure_future(self._search_once())
            self._search.add_done_callback(self._searched)
        return await asyncio.shield(self._search)

    def _searched(self, search: asyncio.Future[Replica | None]) -> None:
        self._search = None
        if not search.cancelled() and search.exception() is None:
            self._leader = search.result()

    async def _search_once(self) -> Replica | None:
        loop = asyncio.get_running_loop()
        pause_s = self._refused_s + SEARCH_PAUSE_S - loop.time()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        self._refused_s = loop.time()
        hint, self._hint = self._hint, ""
        return await self._replicas.find_leader(hint)

    async def _find_before(self, expires_s: float) -> Replica:
        """The leader, searched for until a moment. Raises NoLeader."""
        loop = asyncio.get_running_loop()
        while loop.time() < expires_s:
            try:
                async with asyncio.timeout_at(expires_s):
                    leader = await self._find()
            except TimeoutError:
                break
            if leader is not None and leader.connected:
                return leader
            if leader is not None:
                self._forget_leader(leader)
        raise self._no_leader()

    @contextmanager
    def _known(self, leader: Replica, call: _Cancellable, patience: Patience) -> Iterator[None]:
        """While inside, the call is abandoned if its leader hangs: that is seen as UNAVAILABLE."""
        loop = asyncio.get_running_loop()
        underway = _Underway(leader, call, loop.time(), patience)
        self._underway.add(underway)
        self._began.set()
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not underway.abandoned or (task is not None and task.cancelling()):
                raise
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, nothing, nothing, "another replica leads"
            ) from None
        finally:
            self._underway.discard(underway)

    async def _doubt(self) -> None:
        """Whenever a call takes suspiciously long, ask whether another leads by now: a leader that
        hangs (or was cut off from its group) does not say so itself."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._underway:
                self._began.clear()
                await self._began.wait()
            now_s = loop.time()
            first = min(self._underway, key=lambda each: each.suspect_s, default=None)
            if first is None:
                continue
            if first.suspect_s > now_s:
                await asyncio.sleep(min(first.suspect_s - now_s, CALL_PATIENCE.first_s))
                continue
            newer = await self._replicas.find_newer_leader(first.leader)
            if newer is None:
                now_s = loop.time()
                for each in self._underway:
                    if each.leader is first.leader:
                        each.suspect_s = max(each.suspect_s, now_s + each.patience.again_s)
                continue
            if self._leader is first.leader or self._leader is None:
                self._leader = newer
            for each in list(self._underway):
                if each.leader is first.leader:
                    each.abandoned = True
                    each.call.cancel()
                    self._underway.discard(each)


def _raise_if_told(error: grpc.aio.AioRpcError) -> None:
    """Raise what the leader answered; return if it was lost, or said that it does not lead."""
    told = from_rpc_error(error)
    if isinstance(told, NoLeader):
        return
    if error.code() in LOST_CODES and STATUS_METADATA_KEY not in (error.trailing_metadata() or ()):
        return
    raise told from error
