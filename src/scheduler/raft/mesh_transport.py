"""RaftTransport over mutual TLS: one connection a pair (`link`), dialled by the smaller id, or by
the other one when that does not.

A link is a connection once a hello has gone each way. Each end sends something at least every
LINK_PING_S and gives the link up after LINK_SILENCE_S without anything, so that a peer that
is stopped, cut off or gone is noticed however TCP sees it. A new link of a peer takes the place
of its old one at once. Whoever has a replica's certificate and means this group is listened to,
unless it was removed: then the hello tells it so. Where to dial is asked over gRPC, and snapshots
go over it, on connections of their own, so that they delay no heartbeat.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio

from ...mesh import tls
from ...mesh.config import Tls
from ...mesh.errors import PermissionDenied
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
    LATE_DIAL_S,
    PROBE_PULSES,
    PROBE_S,
    REDIAL_S,
    SNAPSHOT_DEADLINE_S,
    SNAPSHOT_SILENCE_S,
)
from .link import Link, framed
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

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", FRAME_BYTES_MAX),
    ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
    # A dial is a fresh connection: one that went silent must not be taken up again.
    ("grpc.use_local_subchannel_pool", 1),
)
_OVER = (grpc.RpcError, grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError)
"""What a read or a write raises when its call is over: InternalError if that happens meanwhile."""


class MeshTransport(raft_pb2_grpc.RaftServiceServicer):
    """See the module. Everything happens on the event loop that `start` ran on."""

    def __init__(self, group_id: str, replica_id: str, certificate: Tls, listen: str) -> None:
        """listen: host:port for links; port 0 is any that is free."""
        self._group_id = group_id
        self._replica_id = replica_id
        self._listen = listen
        self._servers: list[asyncio.Server] = []
        self._peers: dict[str, str] = {}
        self._accepting = tls.accepting(certificate)
        self._dialling_out = tls.dialling(certificate)
        self._credentials = tls.channel_credentials(certificate)
        self._options = (*tls.CHANNEL_OPTIONS, *_CHANNEL_OPTIONS)
        self._handler: TransportHandler | None = None
        self._links: dict[str, Link] = {}
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._ended: set[asyncio.Task[None]] = set()
        self._last: tuple[Message, bytes] | None = None

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Serve introductions and snapshots. Before `start` and after `stop` they are refused."""
        raft_pb2_grpc.add_RaftServiceServicer_to_server(self, server)

    async def start(self, handler: TransportHandler) -> None:
        """See RaftTransport. Raises TransportError if it cannot listen."""
        try:
            await self._begin_listening(*_host_and_port(self._listen))
        except OSError as error:
            self._end_listening()
            raise TransportError(f"cannot listen at {self._listen}: {error.strerror}") from error
        self._handler = handler
        for peer in self._peers:
            self._begin_dialling(peer)

    @property
    def frames_port(self) -> int:
        """Where it listens for links; 0 before `start` and after `stop`."""
        return int(self._servers[0].sockets[0].getsockname()[1]) if self._servers else 0

    async def _begin_listening(self, host: str, port: int) -> None:
        """At every address that the name has and this host, and one port."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        missing: OSError | None = None
        for address in dict.fromkeys(str(each[4][0]) for each in found):
            try:
                server = await loop.create_server(
                    self._accepted,
                    address,
                    port,
                    ssl=self._accepting,
                    ssl_handshake_timeout=DIAL_DEADLINE_S,
                )
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                missing = error  # as localhost's ::1 where IPv6 is off
                continue
            self._servers.append(server)
            port = self.frames_port
        if missing is not None and not self._servers:
            raise missing

    def _end_listening(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

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
        self._end_listening()
        for link in tuple(self._links.values()):
            link.end("this replica stops")
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
            self._last = (message, framed(raft_pb2.RaftFrame(message=message_out(message))))
        link.send(self._last[1])

    async def answers(self, peer: str) -> bool:
        """See RaftTransport. By the kernel, which takes connections for a process that is late."""
        address = self._peers.get(peer)
        if address is None:
            return False
        connecting = asyncio.ensure_future(asyncio.open_connection(*_host_and_port(address)))
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

    def _connected(self, link: Link) -> None:
        """The link speaks for its peer from now on."""
        assert self._handler is not None
        old = self._links.get(link.peer)
        if old is not None:
            old.end("the peer opened another link")
        self._links[link.peer] = link
        link.greet()
        logger.info("%s is connected with %s", self._replica_id, link.peer)
        self._handler.on_connected(link.peer)

    def _closed(self, link: Link) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            logger.info("%s lost %s: %s", self._replica_id, link.peer, link.reason)
            if self._handler is not None:
                self._handler.on_disconnected(link.peer)

    def _receive(
        self,
        greeted: Callable[[Link, raft_pb2.RaftHello], None],
        link: Link,
        frame: raft_pb2.RaftFrame,
    ) -> None:
        """What a link carries: a hello, for `greeted`, then all else. Raises TransportError."""
        kind = frame.WhichOneof("frame")
        if not link.greeted and kind != "farewell":
            greeted(link, self._check_hello(link, frame))
        elif kind == "message":
            message = message_in(frame.message)
            if self._handler is not None:
                self._handler.on_message(link.peer, message)
        elif kind == "farewell":
            link.end(f"the peer ended it: {frame.farewell}", tell=False)
        else:
            raise TransportError("a frame that this version does not know, or a second hello")

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

    def _check_hello(self, link: Link, frame: raft_pb2.RaftFrame) -> raft_pb2.RaftHello:
        """Raises TransportError unless it is one of whom the certificate names, to this replica."""
        if frame.WhichOneof("frame") != "hello":
            raise TransportError("a link begins with a hello")
        hello = frame.hello
        self._check(hello.group_id, hello.sender_id, hello.recipient_id, link.peer)
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

    def _check_turn(self, peer: str, dialler: str) -> None:
        """Raises TransportError for what the larger id dialled, if there is a link: of two that
        are made at once, both ends keep the smaller id's, or each could end the other's."""
        if dialler == max(peer, self._replica_id) and peer in self._links:
            raise TransportError(f"{peer} is connected with {self._replica_id} already")

    # -- dialling ------------------------------------------------------------------------------

    async def _keep_dialling(self, peer: str) -> None:
        loop = asyncio.get_running_loop()
        reached_s, told = loop.time(), ""
        while True:
            if peer < self._replica_id and not await self._is_late(peer):
                reached_s, told = loop.time(), ""
                continue
            reason, was_connected = await self._dial(peer)
            if was_connected or peer in self._links:
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
        loop = asyncio.get_running_loop()
        receive = partial(self._receive, self._answered)
        link = Link(lambda link: self._dialled(link, peer), receive, self._closed)
        try:
            async with asyncio.timeout(DIAL_DEADLINE_S):
                host, port = await self._frames_address(peer)
                await loop.create_connection(
                    lambda: link,
                    host,
                    port,
                    ssl=self._dialling_out,
                    server_hostname=tls.SERVICE_NAME,
                    ssl_handshake_timeout=DIAL_DEADLINE_S,
                )
        except TimeoutError:
            return f"no answer within {DIAL_DEADLINE_S} s", False
        except (TransportError, OSError) as error:
            return str(error) or type(error).__name__, False
        try:
            await link.ended.wait()
        finally:
            link.end("the dial was cancelled")
        return link.reason, link.greeted

    async def _frames_address(self, peer: str) -> tuple[str, int]:
        address = self._address(peer)
        answer = await self._ask(address)
        if not answer.frames_port:
            raise TransportError(f"{peer} takes no links: it is of an older version")
        return _host_and_port(address)[0], answer.frames_port

    def _dialled(self, link: Link, expected: str) -> None:
        if link.peer != expected:
            link.end(
                f"this is {self._replica_id}; the certificate at {expected}'s address is "
                f"{link.role} {link.name}'s: check addresses and certificates"
            )
        else:
            link.send(framed(raft_pb2.RaftFrame(hello=self._hello(expected))))

    def _answered(self, link: Link, hello: raft_pb2.RaftHello) -> None:
        """On a link that this replica dialled."""
        handler = self._handler
        if handler is None:
            raise TransportError("this replica stops")
        if hello.excluded_by:
            handler.on_excluded(link.peer, Exclusion(hello.excluded_by, hello.removed))
            link.end(f"list {hello.excluded_by} of the group is without this replica")
        elif handler.excludes(link.peer, _greeting(hello)):
            link.end("it was removed from the group")
        else:
            self._check_turn(link.peer, dialler=self._replica_id)
            self._connected(link)

    def _address(self, peer: str) -> str:
        address = self._peers.get(peer)
        if address is None:
            raise TransportError(f"{peer} is no replica of this group any more")
        return address

    def _channel(self, address: str) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, self._credentials, self._options)

    # -- being dialled -------------------------------------------------------------------------

    def _accepted(self) -> Link:
        return Link(self._admit_link, partial(self._receive, self._asked), self._closed)

    def _admit_link(self, link: Link) -> None:
        if self._handler is None:
            link.end("this replica is not taking part")
        elif not link.peer:
            link.end(f"links are for schedulers, not for {link.role or 'who has no role'}")

    def _asked(self, link: Link, hello: raft_pb2.RaftHello) -> None:
        """On a link that the peer dialled."""
        name = link.peer
        self._check_turn(name, dialler=name)
        if self._handler is None:
            raise TransportError("this replica stops")
        exclusion = self._handler.excludes(name, _greeting(hello))
        link.send(framed(raft_pb2.RaftFrame(hello=self._hello(name, exclusion))))
        if exclusion is not None:
            link.end(f"list {exclusion.members_number} of the group is without {name}")
        else:
            self._connected(link)

    async def _admit(self, context: Context) -> str:
        """The caller's replica id, from its certificate."""
        if self._handler is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this replica is not taking part")
        try:
            return tls.require_role(context, "scheduler")
        except PermissionDenied as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, error.message)
        raise AssertionError("abort returns never")

    # -- introductions -------------------------------------------------------------------------

    async def introduce(self, address: str) -> Introduction:
        """Who the process at `address` is. Raises TransportError."""
        return introduction_in(await self._ask(address))

    async def _ask(self, address: str) -> raft_pb2.IntroduceResponse:
        async with self._channel(address) as channel:
            stub = raft_pb2_grpc.RaftServiceStub(channel)
            try:
                return await stub.Introduce(raft_pb2.IntroduceRequest(), timeout=DIAL_DEADLINE_S)
            except grpc.RpcError as error:
                raise TransportError(_explained(error)) from error

    async def Introduce(
        self, request: raft_pb2.IntroduceRequest, context: Context
    ) -> raft_pb2.IntroduceResponse:
        """See raft.proto."""
        await self._admit(context)
        assert self._handler is not None
        return introduction_out(self._handler.introduction, self.frames_port)

    # -- snapshots -----------------------------------------------------------------------------

    async def ship(
        self, peer: str, header: SnapshotHeader, parts: AsyncIterator[SnapshotPart]
    ) -> SnapshotReply:
        """See RaftTransport."""
        async with self._channel(self._address(peer)) as channel:
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


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


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
