"""RaftTransport over the mesh's mutual-TLS gRPC: one stream a pair, dialled by the smaller id, or
by the other one when that does not.

A stream is a connection once a hello has gone each way. Each end sends something at least every
STREAM_PING_S and gives the stream up after STREAM_SILENCE_S without anything, so that a peer that
is stopped, cut off or gone is noticed however TCP sees it. A new stream of a peer takes the place
of its old one at once. Whoever has a replica's certificate and means this group is listened to,
unless it was removed: then the hello tells it so. Snapshots have connections of their own, so that
they delay no heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio

from ...mesh.errors import PermissionDenied
from ...mesh.tls import require_role
from ...proto.tickmesh.internal.v1 import raft_pb2, raft_pb2_grpc
from .convert import (
    introduction_in,
    introduction_out,
    message_in,
    message_out,
    part_in,
    part_out,
    reply_in,
    reply_out,
)
from .limits import (
    DIAL_DEADLINE_S,
    FRAME_BYTES_MAX,
    FRAME_MESSAGES_BYTES_MAX,
    LATE_DIAL_S,
    PEER_QUEUE_MESSAGES_MAX,
    PROBE_PULSES,
    PROBE_S,
    REDIAL_S,
    SNAPSHOT_DEADLINE_S,
    SNAPSHOT_SILENCE_S,
    STREAM_PING_S,
    STREAM_SILENCE_S,
)
from .messages import (
    Exclusion,
    Greeting,
    Introduction,
    Message,
    SnapshotHeader,
    SnapshotPart,
    SnapshotReply,
)
from .transport import TransportError, TransportHandler

logger = logging.getLogger(__name__)

Frame: TypeAlias = raft_pb2.ExchangeRequest | raft_pb2.ExchangeResponse
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", FRAME_BYTES_MAX),
    ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
    # A dial is a fresh connection: one that went silent must not be taken up again.
    ("grpc.use_local_subchannel_pool", 1),
)
_SILENT_PULSES_MAX = round(STREAM_SILENCE_S / STREAM_PING_S)
_OVER = (grpc.RpcError, grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError)
"""What a read or a write raises when its call is over: InternalError if that happens meanwhile."""


class _Link:
    """One stream with one peer, whichever end dialled it."""

    def __init__(
        self,
        peer: str,
        frame: type[Frame],
        read: Callable[[], Awaitable[Any]],
        write: Callable[[Any], Awaitable[Any]],
        receive: Callable[[_Link, Frame], None],
    ) -> None:
        self.peer = peer
        self.reason = ""
        self._frame = frame
        self._read = read
        self._write = write
        self._receive = receive
        self._queue: deque[raft_pb2.RaftMessage] = deque()
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._silent_pulses = 0
        self._sent = False

    @property
    def ended(self) -> bool:
        """Nothing that still arrives counts."""
        return self._ended.is_set()

    def end(self, reason: str) -> None:
        """The stream is over; the first reason stays."""
        self.reason = self.reason or reason
        self._ended.set()

    def offer(self, message: raft_pb2.RaftMessage) -> None:
        """Queue a message, or drop it: Raft repeats what matters."""
        if len(self._queue) < PEER_QUEUE_MESSAGES_MAX:
            self._queue.append(message)
            self._wake.set()

    async def run(self) -> None:
        """Carry messages until the stream is over."""
        loops = (self._reading(), self._writing(), self._pulsing())
        tasks = [asyncio.create_task(self._until_ended(loop)) for loop in loops]
        try:
            await self._ended.wait()
        finally:
            self.end("the call was cancelled")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_ended(self, loop: Coroutine[Any, Any, str]) -> None:
        reason = "the call was cancelled"
        try:
            reason = await loop
        except TransportError as error:
            reason = str(error)
        except _OVER as error:
            reason = _explained(error)
        except Exception as error:
            reason = f"a bug of ours: {type(error).__name__}: {error}"
            logger.exception("the stream with %s failed", self.peer)
        finally:
            self.end(reason)

    async def _reading(self) -> str:
        while (frame := await self._read()) is not grpc.aio.EOF:
            self._silent_pulses = 0
            if self.ended:
                break
            self._receive(self, frame)
        return "the peer ended it"

    async def _writing(self) -> str:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while True:
                messages: list[raft_pb2.RaftMessage] = []
                size_bytes = 0
                while self._queue and size_bytes < FRAME_MESSAGES_BYTES_MAX:
                    messages.append(self._queue.popleft())
                    size_bytes += messages[-1].ByteSize()
                self._sent = True
                await self._write(self._frame(messages=messages))
                if not self._queue:
                    break

    async def _pulsing(self) -> str:
        # Pulses are counted, not seconds: a process that was itself stopped for a while must not
        # conclude from its own clock that the others were silent.
        while self._silent_pulses < _SILENT_PULSES_MAX:
            await asyncio.sleep(STREAM_PING_S)
            self._silent_pulses += 1
            if not self._sent:
                self._wake.set()  # an empty frame
            self._sent = False
        return f"silent for {STREAM_SILENCE_S} s"


class GrpcTransport(raft_pb2_grpc.RaftServiceServicer):
    """See the module. Everything happens on the event loop that `start` ran on."""

    def __init__(
        self,
        group_id: str,
        replica_id: str,
        credentials: grpc.ChannelCredentials,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """options: further ones for channels."""
        self._group_id = group_id
        self._replica_id = replica_id
        self._peers: dict[str, str] = {}
        self._credentials = credentials
        self._options = (*options, *_CHANNEL_OPTIONS)
        self._handler: TransportHandler | None = None
        self._links: dict[str, _Link] = {}
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._ended: set[asyncio.Task[None]] = set()
        self._last: tuple[Message, raft_pb2.RaftMessage] | None = None

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Serve the peers that dial us. Before `start` and after `stop` they are refused."""
        raft_pb2_grpc.add_RaftServiceServicer_to_server(self, server)

    async def start(self, handler: TransportHandler) -> None:
        """See RaftTransport."""
        self._handler = handler
        for peer in self._peers:
            self._begin_dialling(peer)

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        """See RaftTransport."""
        old, self._peers = self._peers, dict(addresses)
        for peer, address in old.items():
            if self._peers.get(peer) == address:
                continue
            task = self._dialling.pop(peer, None)
            if task is not None:
                task.cancel()
                self._ended.add(task)
                task.add_done_callback(self._ended.discard)
            link = self._links.get(peer)
            if link is not None and peer not in self._peers:
                link.end("it is no replica of this group any more")
                self._disconnected(link)
        if self._handler is not None:
            for peer in self._peers:
                if peer not in self._dialling:
                    self._begin_dialling(peer)

    def _begin_dialling(self, peer: str) -> None:
        name = f"raft dial {self._replica_id} {peer}"
        self._dialling[peer] = asyncio.create_task(self._keep_dialling(peer), name=name)

    async def stop(self) -> None:
        """See RaftTransport. The handler hears nothing more."""
        self._handler = None
        for link in self._links.values():
            link.end("this replica stops")
        self._links.clear()
        tasks = [*self._dialling.values(), *self._ended]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._dialling.clear()

    def send(self, peer: str, message: Message) -> None:
        """See RaftTransport."""
        link = self._links.get(peer)
        if link is None:
            return
        if self._last is None or self._last[0] is not message:
            # The same append often goes to every peer.
            self._last = (message, message_out(message))
        link.offer(self._last[1])

    async def answers(self, peer: str) -> bool:
        """See RaftTransport. By the kernel, which takes connections for a process that is late."""
        address = self._peers.get(peer)
        if address is None:
            return False
        host, _, port = address.rpartition(":")
        connecting = asyncio.ensure_future(asyncio.open_connection(host.strip("[]"), int(port)))
        try:
            # Pulses are counted: this process may itself be late, and then all is due at once.
            for _ in range(PROBE_PULSES):
                await asyncio.wait((connecting,), timeout=PROBE_S / PROBE_PULSES)
                if connecting.done():
                    break
            await asyncio.sleep(0)
            if not connecting.done():
                return False
            _, writer = connecting.result()
            writer.close()
            return True
        except ConnectionRefusedError:
            return True  # its connection is closed then, which says more
        except OSError:
            return False
        finally:
            connecting.cancel()

    # -- connections ---------------------------------------------------------------------------

    def _connected(self, link: _Link) -> None:
        """The link speaks for its peer from now on."""
        if self._handler is None:
            raise TransportError("this replica stops")
        old = self._links.get(link.peer)
        if old is not None:
            old.end("the peer opened another stream")
            self._disconnected(old)
        self._links[link.peer] = link
        logger.info("%s is connected with %s", self._replica_id, link.peer)
        self._handler.on_connected(link.peer)

    def _disconnected(self, link: _Link) -> None:
        """Once for every link that was connected, unless another has taken its place before."""
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            logger.info("%s lost %s: %s", self._replica_id, link.peer, link.reason)
            if self._handler is not None:
                self._handler.on_disconnected(link.peer)

    def _receive(self, link: _Link, frame: Frame) -> None:
        for wire in frame.messages:
            message = message_in(wire)
            if self._handler is not None and not link.ended:
                self._handler.on_message(link.peer, message)

    def _hello(self, peer: str, exclusion: Exclusion | None = None) -> raft_pb2.RaftHello:
        greeting = Greeting() if self._handler is None else self._handler.greeting
        hello = raft_pb2.RaftHello(
            group_id=self._group_id,
            sender_id=self._replica_id,
            recipient_id=peer,
            members_number=greeting.members_number,
            incarnation=greeting.incarnation,
            learner=greeting.learner,
        )
        if exclusion is not None:
            hello.excluded_by = exclusion.members_number
            hello.removed = exclusion.removed
        return hello

    def _check(self, group_id: str, sender_id: str, recipient_id: str, expected: str) -> None:
        """Raises TransportError unless `expected` speaks to this replica about our group."""
        said = (group_id, sender_id, recipient_id)
        if said != (self._group_id, expected, self._replica_id):
            raise TransportError(
                f"replica {sender_id!r} of group {group_id!r} speaks to {recipient_id!r}; this is"
                f" {self._replica_id!r} of {self._group_id!r}, and expects {expected!r}: check"
                " addresses and certificates"
            )

    # -- dialling ------------------------------------------------------------------------------

    async def _keep_dialling(self, peer: str) -> None:
        loop = asyncio.get_running_loop()
        reached_s, told = loop.time(), ""
        while True:
            if peer < self._replica_id and not await self._is_late(peer):
                continue
            reason, was_connected = await self._dial(peer)
            if was_connected:
                reached_s, told = loop.time(), ""
            elif loop.time() - reached_s > DIAL_DEADLINE_S and reason != told:
                # Said once, and not while a group starts or a peer restarts.
                logger.warning("%s cannot reach %s: %s", self._replica_id, peer, reason)
                told = reason
            await asyncio.sleep(REDIAL_S)

    async def _is_late(self, peer: str) -> bool:
        """Waits a while for the peer, whose turn it is to dial; whether it has not."""
        for _ in range(2):
            await asyncio.sleep(LATE_DIAL_S / 2)
            if peer in self._links:
                return False
        return True

    async def _dial(self, peer: str) -> tuple[str, bool]:
        """One connection's life: why it ended, and whether it ever was one."""
        async with self._channel(peer) as channel:
            # No deadline: its silence limit ends it.
            call = raft_pb2_grpc.RaftServiceStub(channel).Exchange()
            link = _Link(peer, raft_pb2.ExchangeRequest, call.read, call.write, self._receive)
            try:
                async with asyncio.timeout(DIAL_DEADLINE_S):
                    await call.write(raft_pb2.ExchangeRequest(hello=self._hello(peer)))
                    first: Any = await call.read()
                if first is grpc.aio.EOF:
                    return "it ended the stream without a hello", False
                hello = first.hello
                self._check(hello.group_id, hello.sender_id, hello.recipient_id, peer)
                handler = self._handler
                if handler is not None and hello.excluded_by:
                    handler.on_excluded(peer, Exclusion(hello.excluded_by, hello.removed))
                    return f"list {hello.excluded_by} of the group is without this replica", False
                if handler is not None and handler.excludes(peer, _greeting(hello)):
                    return "it was removed from the group", False
                self._connected(link)
            except TimeoutError:
                return f"no answer within {DIAL_DEADLINE_S} s", False
            except TransportError as error:
                return str(error), False
            except _OVER as error:
                return _explained(error), False
            try:
                await link.run()
            finally:
                self._disconnected(link)
            return link.reason, True

    def _channel(self, peer: str) -> grpc.aio.Channel:
        address = self._peers.get(peer)
        if address is None:
            raise TransportError(f"{peer} is no replica of this group any more")
        return grpc.aio.secure_channel(address, self._credentials, self._options)

    # -- being dialled -------------------------------------------------------------------------

    async def Exchange(  # type: ignore[override]  # reads and writes instead of yielding
        self, request_iterator: Any, context: Context
    ) -> None:
        """See raft.proto."""
        name = await self._admit(context)
        try:
            async with asyncio.timeout(DIAL_DEADLINE_S):
                first = await context.read()
            if first is grpc.aio.EOF:
                return
            hello = first.hello
            self._check(hello.group_id, hello.sender_id, hello.recipient_id, name)
            if name > self._replica_id and name in self._links:
                raise TransportError(f"{name} is connected with {self._replica_id} already")
            if self._handler is None:
                raise TransportError("this replica stops")
            exclusion = self._handler.excludes(name, _greeting(hello))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no hello has come")
        except TransportError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        link = _Link(name, raft_pb2.ExchangeResponse, context.read, context.write, self._receive)
        await context.write(raft_pb2.ExchangeResponse(hello=self._hello(name, exclusion)))
        if exclusion is not None:
            return
        try:
            self._connected(link)
        except TransportError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        try:
            await link.run()
        finally:
            self._disconnected(link)
        await context.abort(grpc.StatusCode.UNAVAILABLE, link.reason)

    async def _admit(self, context: Context) -> str:
        """The caller's replica id, from its certificate."""
        if self._handler is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this replica is not taking part")
        try:
            return require_role(context, "scheduler")
        except PermissionDenied as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, error.message)
        raise AssertionError("abort returns never")

    # -- introductions -------------------------------------------------------------------------

    async def introduce(self, address: str) -> Introduction:
        """Who the process at `address` is. Raises TransportError."""
        async with grpc.aio.secure_channel(address, self._credentials, self._options) as channel:
            stub = raft_pb2_grpc.RaftServiceStub(channel)
            try:
                answer = await stub.Introduce(raft_pb2.IntroduceRequest(), timeout=DIAL_DEADLINE_S)
            except grpc.RpcError as error:
                raise TransportError(_explained(error)) from error
            return introduction_in(answer)

    async def Introduce(
        self, request: raft_pb2.IntroduceRequest, context: Context
    ) -> raft_pb2.IntroduceResponse:
        """See raft.proto."""
        await self._admit(context)
        assert self._handler is not None
        return introduction_out(self._handler.introduction)

    # -- snapshots -----------------------------------------------------------------------------

    async def ship(
        self, peer: str, header: SnapshotHeader, parts: AsyncIterator[SnapshotPart]
    ) -> SnapshotReply:
        """See RaftTransport."""
        async with self._channel(peer) as channel:
            stub = raft_pb2_grpc.RaftServiceStub(channel)
            call = stub.InstallSnapshot(timeout=SNAPSHOT_DEADLINE_S)
            try:
                await _soon(call.write(part_out(header)))
                async for part in parts:
                    await _soon(call.write(part_out(part)))
                await _soon(call.done_writing())
            except TimeoutError:
                raise TransportError(f"{peer} took nothing for {SNAPSHOT_SILENCE_S} s") from None
            except _OVER as error:
                # It may have answered before it had everything: then that is the outcome.
                logger.debug("%s takes no more of a snapshot: %s", peer, _explained(error))
            try:
                return reply_in(await _soon(call))
            except TimeoutError:
                raise TransportError(f"{peer} did not answer to a snapshot") from None
            except grpc.RpcError as error:
                raise TransportError(_explained(error)) from error

    async def InstallSnapshot(
        self, request_iterator: Any, context: Context
    ) -> raft_pb2.InstallSnapshotResponse:
        """See raft.proto."""
        name = await self._admit(context)
        handler = self._handler
        assert handler is not None
        parts = _arriving(context)
        try:
            header = await anext(parts, None)
            if not isinstance(header, SnapshotHeader):
                raise TransportError("a snapshot begins without a header")
            self._check(header.group_id, header.sender_id, header.recipient_id, name)
            return reply_out(await handler.on_snapshot(name, header, parts))
        except TransportError as error:
            return reply_out(SnapshotReply(False, str(error)))
        finally:
            await parts.aclose()


def _greeting(hello: raft_pb2.RaftHello) -> Greeting:
    return Greeting(hello.members_number, hello.incarnation, hello.learner)


async def _arriving(context: Context) -> Any:
    while True:
        try:
            wire = await _soon(context.read())
        except TimeoutError:
            raise TransportError(f"nothing came for {SNAPSHOT_SILENCE_S} s") from None
        except _OVER as error:
            raise TransportError(_explained(error)) from error
        if wire is grpc.aio.EOF:
            return
        yield part_in(wire)


async def _soon(step: Awaitable[Any]) -> Any:
    async with asyncio.timeout(SNAPSHOT_SILENCE_S):
        return await step


def _explained(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    if isinstance(error, grpc.aio.InternalError):
        return "the peer was gone before it was sent everything"
    return f"{type(error).__name__}: {error}"
