"""The transport over real sockets and certificates: who is let in, what is noticed and said."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tickmesh.mesh import tls
from tickmesh.mesh.limits import INTERNAL_MESSAGE_BYTES_MAX
from tickmesh.mesh.local import free_ports
from tickmesh.proto.tickmesh.internal.v1 import raft_pb2, raft_pb2_grpc
from tickmesh.scheduler.raft.grpc_transport import GrpcTransport
from tickmesh.scheduler.raft.limits import PEER_QUEUE_MESSAGES_MAX, STREAM_SILENCE_S
from tickmesh.scheduler.raft.messages import (
    Append,
    AppendReply,
    Entry,
    Exclusion,
    Greeting,
    Message,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotHeader,
    SnapshotPart,
    SnapshotReply,
    Transfer,
    Vote,
    VoteReply,
)
from tickmesh.scheduler.raft.transport import TransportError

from ..wires import Wire

pytestmark = pytest.mark.integration
GROUP = "group"


class Heard:
    """A handler that remembers, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []
        self.parts: list[SnapshotPart] = []
        self.excluded: dict[str, Exclusion] = {}
        self.greetings: dict[str, Greeting] = {}
        self._changed = asyncio.Event()

    greeting = Greeting(0, 7, learner=True)

    def excludes(self, peer: str, greeting: Greeting) -> Exclusion | None:
        self.greetings[peer] = greeting
        return self.excluded.get(peer)

    def on_excluded(self, peer: str, exclusion: Exclusion) -> None:
        self._note(peer, exclusion)

    def _note(self, peer: str, what: object) -> None:
        self.events.append((peer, what))
        self._changed.set()

    def on_message(self, peer: str, message: Message) -> None:
        self._note(peer, message)

    def on_connected(self, peer: str) -> None:
        self._note(peer, "connected")

    def on_disconnected(self, peer: str) -> None:
        self._note(peer, "disconnected")

    async def on_snapshot(
        self, peer: str, header: SnapshotHeader, parts: AsyncIterator[SnapshotPart]
    ) -> SnapshotReply:
        self.parts = [header]
        async for part in parts:
            self.parts.append(part)
            if part == SnapshotEnd(0, 0):
                return SnapshotReply(False, "enough")
        return SnapshotReply(True)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def count(self, what: object) -> int:
        return sum(event[1] == what for event in self.events)


class End:
    """One replica's transport with its server."""

    def __init__(self, mesh: Mesh, name: str) -> None:
        self.heard = Heard()
        certificate = mesh.certificates[name]
        self.transport = GrpcTransport(
            GROUP,
            name,
            tls.channel_credentials(certificate),
            tls.CHANNEL_OPTIONS,
        )
        self.transport.set_peers(
            {other: address for other, address in mesh.addresses.items() if other != name}
        )
        self.server = grpc.aio.server(
            options=(("grpc.max_receive_message_length", INTERNAL_MESSAGE_BYTES_MAX),)
        )
        self.transport.add_to_server(self.server)
        self.server.add_secure_port(mesh.addresses[name], tls.server_credentials(certificate))

    async def start(self) -> None:
        await self.transport.start(self.heard)
        await self.server.start()

    async def stop(self) -> None:
        await self.transport.stop()
        await self.server.stop(0)


class Mesh:
    """Addresses and certificates of the replicas "a" and "b", and of others that want in."""

    def __init__(self, directory: Path) -> None:
        self.authority = tls.DevelopmentAuthority(directory)
        self.certificates = {name: self.authority.issue("scheduler", name) for name in "ab"}
        ports = free_ports(2)
        self.addresses = {n: f"127.0.0.1:{p}" for n, p in zip("ab", ports, strict=True)}
        self.ends: list[End] = []

    async def end(self, name: str) -> End:
        end = End(self, name)
        await end.start()
        self.ends.append(end)
        return end

    async def pair(self) -> tuple[End, End]:
        a, b = await self.end("a"), await self.end("b")
        await a.heard.until(lambda: a.heard.count("connected") == 1)
        await b.heard.until(lambda: b.heard.count("connected") == 1)
        return a, b

    @asynccontextmanager
    async def dial(
        self, role: str = "scheduler", name: str = "a", to: str = "b"
    ) -> AsyncIterator[raft_pb2_grpc.RaftServiceAsyncStub]:
        certificate = self.authority.issue(role, name)
        credentials = tls.channel_credentials(certificate)
        options = tls.CHANNEL_OPTIONS
        async with grpc.aio.secure_channel(self.addresses[to], credentials, options) as channel:
            yield raft_pb2_grpc.RaftServiceStub(channel)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    yield made
    for end in made.ends:
        await end.stop()


def hello(group: str = GROUP, sender: str = "a", recipient: str = "b") -> raft_pb2.ExchangeRequest:
    return raft_pb2.ExchangeRequest(
        hello=raft_pb2.RaftHello(group_id=group, sender_id=sender, recipient_id=recipient)
    )


async def read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


MESSAGES: list[Message] = [
    Append(3, 10, 2, 9, 77, (Entry(b"\x00one", 11, 3), Entry(b"\x01", 12, 3)), promote=2**63 - 1),
    Append(2**63, 1, 0, 1, 1),
    AppendReply(3, 13, True, False, 77, 2**63 - 1, learner=True),
    AppendReply(3, 5, False, True, 77, 1),
    AppendReply(3, 5, True, False, 77, 1, False, 2**62, -(2**62), 9),
    Vote(4, 12, 3, pre=True),
    Vote(4, 12, 3, transfer=True),
    VoteReply(4, 5, True, pre=True),
    VoteReply(4, 4, False, incarnation=2**63 - 1),
    Transfer(4),
]


async def test_every_message_arrives_as_it_was_sent_in_order_both_ways(mesh: Mesh) -> None:
    a, b = await mesh.pair()
    assert (a.heard.greetings, b.heard.greetings) == ({"b": Heard.greeting}, {"a": Heard.greeting})
    for message in MESSAGES:
        a.transport.send("b", message)
        b.transport.send("a", message)
    await b.heard.until(lambda: len(b.heard.events) == len(MESSAGES) + 1)
    await a.heard.until(lambda: len(a.heard.events) == len(MESSAGES) + 1)
    assert b.heard.events == [("a", "connected"), *(("a", message) for message in MESSAGES)]
    assert a.heard.events == [("b", "connected"), *(("b", message) for message in MESSAGES)]


async def test_the_largest_entry_arrives(mesh: Mesh) -> None:
    a, b = await mesh.pair()
    large = Append(1, 1, 0, 1, 1, (Entry(bytes((8 << 20) + 1), 2, 1),))
    a.transport.send("b", large)
    await b.heard.until(lambda: b.heard.count(large) == 1)


async def test_what_waits_is_bounded(mesh: Mesh) -> None:
    a, b = await mesh.pair()
    for number in range(PEER_QUEUE_MESSAGES_MAX + 500):
        a.transport.send("b", Transfer(number + 1))
    await b.heard.until(lambda: b.heard.count(Transfer(PEER_QUEUE_MESSAGES_MAX)) == 1)
    a.transport.send("b", Transfer(999_999))
    await b.heard.until(lambda: b.heard.count(Transfer(999_999)) == 1)
    assert len(b.heard.events) == PEER_QUEUE_MESSAGES_MAX + 2


async def test_nothing_is_sent_without_a_connection(mesh: Mesh) -> None:
    a = await mesh.end("a")
    a.transport.send("b", Transfer(1))
    b = await mesh.end("b")
    await a.heard.until(lambda: a.heard.count("connected") == 1)
    a.transport.send("b", Transfer(2))
    await b.heard.until(lambda: b.heard.count(Transfer(2)) == 1)
    assert b.heard.count(Transfer(1)) == 0


@pytest.mark.parametrize("restarted", ["a", "b"])
async def test_a_restart_is_one_loss_and_one_connection(mesh: Mesh, restarted: str) -> None:
    ends = dict(zip("ab", await mesh.pair(), strict=True))
    (other,) = set("ab") - {restarted}
    stays = ends[other].heard
    for count in range(1, 4):
        await ends[restarted].stop()
        await stays.until(lambda count=count: stays.count("disconnected") == count)  # type: ignore[misc]
        ends[restarted] = await mesh.end(restarted)
        await stays.until(lambda count=count: stays.count("connected") == count + 1)  # type: ignore[misc]
    states = [what for _, what in stays.events]
    assert states == ["connected", *["disconnected", "connected"] * 3]
    assert "disconnected" not in [what for _, what in ends[restarted].heard.events]


async def test_a_peer_that_falls_silent_is_given_up(mesh: Mesh) -> None:
    b = await mesh.end("b")
    async with mesh.dial() as stub:
        call = stub.Exchange()
        await call.write(hello())
        await b.heard.until(lambda: b.heard.count("connected") == 1)
        begun_s = asyncio.get_running_loop().time()
        await b.heard.until(lambda: b.heard.count("disconnected") == 1)
        assert asyncio.get_running_loop().time() - begun_s > STREAM_SILENCE_S / 2


@pytest.mark.parametrize("sender", ["a", "b"])
async def test_a_peer_that_is_lost_while_it_is_sent_something_large_is_one_plain_line(
    mesh: Mesh, sender: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with Wire(mesh.addresses["b"]) as wire:
        mesh.addresses["b"], listens = wire.address, mesh.addresses["b"]
        a = await mesh.end("a")
        mesh.addresses["b"] = listens
        b = await mesh.end("b")
        ends = {"a": a, "b": b}
        for end in ends.values():
            await end.heard.until(lambda end=end: end.heard.count("connected") == 1)  # type: ignore[misc]
        (peer,) = ends.keys() - {sender}
        wire.cut_after(1 << 20, downwards=sender == "b")
        large = Append(1, 1, 0, 1, 1, (Entry(bytes(8 << 20), 2, 1),))
        ends[sender].transport.send(peer, large)
        heard = ends[sender].heard
        await heard.until(lambda: heard.count("disconnected") == 1)
    assert ends[peer].heard.count(large) == 0
    lines = [record for record in caplog.records if f"{sender} lost {peer}: " in record.message]
    assert len(lines) == 1
    assert [record for record in caplog.records if record.exc_info] == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_idle_connection_is_kept(mesh: Mesh) -> None:
    """It is looked at from the wire: an empty frame comes, though nobody has anything to say."""
    await mesh.end("b")
    async with mesh.dial() as stub:
        call = stub.Exchange()
        await call.write(hello())
        first = await call.read()
        assert isinstance(first, raft_pb2.ExchangeResponse)
        assert first.hello.sender_id == "b"
        second = await call.read()
        assert second == raft_pb2.ExchangeResponse()


async def test_a_newer_stream_takes_the_place_of_an_older_one(mesh: Mesh) -> None:
    b = await mesh.end("b")
    vote = raft_pb2.RaftMessage(vote=raft_pb2.RaftVote(term=1))
    async with mesh.dial() as first, mesh.dial() as second:
        old = first.Exchange()
        await old.write(hello())
        await b.heard.until(lambda: b.heard.count("connected") == 1)
        new = second.Exchange()
        await new.write(hello())
        await b.heard.until(lambda: b.heard.count("connected") == 2)
        with pytest.raises(grpc.aio.AioRpcError, match="another stream"):
            await read_to_the_end(old)
        await new.write(raft_pb2.ExchangeRequest(messages=[vote]))
        await b.heard.until(lambda: b.heard.count(Vote(1, 0, 0)) == 1)
        assert [what for _, what in b.heard.events] == [
            "connected",
            "disconnected",
            "connected",
            Vote(1, 0, 0),
        ]


@pytest.mark.parametrize(
    ("role", "name", "said", "code"),
    [
        ("gateway", "a", hello(), grpc.StatusCode.PERMISSION_DENIED),
        ("executor", "a", hello(), grpc.StatusCode.PERMISSION_DENIED),
        ("scheduler", "c", hello(), grpc.StatusCode.INVALID_ARGUMENT),
        ("scheduler", "a", hello(group="other"), grpc.StatusCode.INVALID_ARGUMENT),
        ("scheduler", "a", hello(recipient="c"), grpc.StatusCode.INVALID_ARGUMENT),
        ("scheduler", "a", raft_pb2.ExchangeRequest(), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_who_is_not_the_peer_it_says_is_refused(
    mesh: Mesh, role: str, name: str, said: raft_pb2.ExchangeRequest, code: grpc.StatusCode
) -> None:
    b = await mesh.end("b")
    async with mesh.dial(role, name) as stub:
        call = stub.Exchange(timeout=5)
        if code is not grpc.StatusCode.PERMISSION_DENIED:  # that comes before any word
            await call.write(said)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() == code
    assert b.heard.events == []


async def test_the_larger_id_dials_only_where_there_is_no_stream(mesh: Mesh) -> None:
    a, _ = await mesh.pair()
    said = hello(sender="b", recipient="a")
    async with mesh.dial(name="b", to="a") as stub:
        call = stub.Exchange(timeout=5)
        await call.write(said)
        with pytest.raises(grpc.aio.AioRpcError, match="connected with a already"):
            await call.read()
        assert a.heard.events == [("b", "connected")]


async def test_the_larger_id_dials_whom_it_is_not_dialled_by(mesh: Mesh) -> None:
    a, b = await mesh.end("a"), await mesh.end("b")
    a.transport.set_peers({})  # it knows nothing of b, and listens all the same
    await b.heard.until(lambda: b.heard.count("connected") >= 1)
    a.transport.send("b", Transfer(7))
    b.transport.send("a", Transfer(8))
    await b.heard.until(lambda: b.heard.count(Transfer(7)) == 1)
    await a.heard.until(lambda: a.heard.count(Transfer(8)) == 1)


async def test_whoever_has_the_certificate_and_means_this_group_is_listened_to(mesh: Mesh) -> None:
    """It may be in a list that this replica does not know yet."""
    b = await mesh.end("b")
    async with mesh.dial(name="c") as stub:
        call = stub.Exchange(timeout=5)
        await call.write(hello(sender="c"))
        await b.heard.until(lambda: b.heard.events == [("c", "connected")])


async def test_who_was_removed_is_told_so_and_not_listened_to(mesh: Mesh) -> None:
    b = await mesh.end("b")
    b.heard.excluded["a"] = Exclusion(7)
    a = await mesh.end("a")
    await a.heard.until(lambda: a.heard.count(Exclusion(7)) >= 2)
    assert a.heard.count("connected") == 0
    assert b.heard.events == []


async def test_who_is_no_peer_any_more_is_disconnected(mesh: Mesh) -> None:
    a, b = await mesh.pair()
    b.heard.excluded["a"] = Exclusion(3, removed=True)
    b.transport.set_peers({})
    await a.heard.until(lambda: a.heard.count(Exclusion(3, removed=True)) >= 1)
    assert [what for _, what in b.heard.events] == ["connected", "disconnected"]
    b.heard.excluded.clear()
    await b.heard.until(lambda: b.heard.count("connected") == 2)


async def test_a_certificate_of_another_authority_does_not_get_in(
    mesh: Mesh, tmp_path: Path
) -> None:
    b = await mesh.end("b")
    stranger = tls.DevelopmentAuthority(tmp_path / "stranger").issue("scheduler", "a")
    stranger = type(stranger)(mesh.certificates["a"].authority, stranger.certificate, stranger.key)
    credentials = tls.channel_credentials(stranger)
    async with grpc.aio.secure_channel(
        mesh.addresses["b"], credentials, tls.CHANNEL_OPTIONS
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await raft_pb2_grpc.RaftServiceStub(channel).Exchange(timeout=5).read()
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert b.heard.events == []


@pytest.mark.parametrize(
    "nonsense",
    [
        raft_pb2.RaftMessage(),
        raft_pb2.RaftMessage(append=raft_pb2.RaftAppend(entries=[raft_pb2.RaftEntry(term=1)])),
    ],
)
async def test_nonsense_ends_the_connection(mesh: Mesh, nonsense: raft_pb2.RaftMessage) -> None:
    b = await mesh.end("b")
    async with mesh.dial() as stub:
        call = stub.Exchange()
        await call.write(hello())
        await call.read()
        await call.write(raft_pb2.ExchangeRequest(messages=[nonsense]))
        with pytest.raises(grpc.aio.AioRpcError):
            await read_to_the_end(call)
    assert [what for _, what in b.heard.events] == ["connected", "disconnected"]


async def test_before_start_and_after_stop_nobody_is_let_in(mesh: Mesh) -> None:
    b = End(mesh, "b")
    await b.server.start()
    mesh.ends.append(b)
    async with mesh.dial() as stub:
        for _ in range(2):
            call = stub.Exchange(timeout=5)
            with pytest.raises(grpc.aio.AioRpcError, match="not taking part"):
                await call.read()
            await b.transport.start(b.heard)
            await b.transport.stop()
    assert b.heard.events == []


# -- snapshots ---------------------------------------------------------------------------------

HEADER = SnapshotHeader(GROUP, "a", "b", 3, 100, 2)


async def shipped(*items: SnapshotPart) -> AsyncIterator[SnapshotPart]:
    for item in items:
        yield item


def chunk(name: str, offset: int, data: bytes) -> SnapshotChunk:
    return SnapshotChunk(name, offset, data, zlib.crc32(data))


async def test_a_snapshot_arrives_as_it_was_sent(mesh: Mesh) -> None:
    a, b = await mesh.pair()
    parts = [chunk("x", 0, bytes(262_144)), chunk("x", 262_144, b"y"), SnapshotEnd(1, 262_145)]
    assert await a.transport.ship("b", HEADER, shipped(*parts)) == SnapshotReply(True)
    assert b.heard.parts == [HEADER, *parts]


async def test_an_answer_before_the_end_is_taken(mesh: Mesh) -> None:
    a, _ = await mesh.pair()
    endless = (chunk("x", n * 65_536, bytes(65_536)) for n in range(2_000))
    parts = shipped(SnapshotEnd(0, 0), *endless)
    assert await a.transport.ship("b", HEADER, parts) == SnapshotReply(False, "enough")


async def test_a_snapshot_for_somebody_else_is_refused(mesh: Mesh) -> None:
    a, b = await mesh.pair()
    for header in (
        SnapshotHeader("other", "a", "b", 3, 100, 2),
        SnapshotHeader(GROUP, "a", "c", 3, 100, 2),
        SnapshotHeader(GROUP, "c", "b", 3, 100, 2),
    ):
        reply = await a.transport.ship("b", header, shipped(SnapshotEnd(0, 1)))
        assert not reply.accepted
        assert "check addresses and certificates" in reply.reason
    assert b.heard.parts == []
    async with mesh.dial("gateway", "a") as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.InstallSnapshot(iter(()), timeout=5)
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_a_peer_that_is_gone_is_an_error_of_the_transport(mesh: Mesh) -> None:
    a, b = await mesh.pair()

    async def then_gone() -> AsyncIterator[SnapshotPart]:
        yield chunk("x", 0, b"y")
        await b.stop()
        for number in range(100):
            yield chunk("x", 1 + number * 262_144, bytes(262_144))

    with pytest.raises(TransportError):
        await a.transport.ship("b", HEADER, then_gone())
    with pytest.raises(TransportError):
        await a.transport.ship("b", HEADER, shipped(SnapshotEnd(0, 0)))
