"""The transport over real sockets and certificates: who is let in, what is noticed and said."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tickmesh.mesh import tls
from tickmesh.mesh.config import Tls
from tickmesh.mesh.limits import INTERNAL_MESSAGE_BYTES_MAX
from tickmesh.mesh.local import free_ports
from tickmesh.proto.tickmesh.internal.v1 import raft_pb2, raft_pb2_grpc
from tickmesh.scheduler.raft.limits import (
    FRAME_BYTES_MAX,
    LINK_PING_S,
    LINK_SILENCE_S,
    REASON_CHARACTERS_MAX,
    WAITING_BYTES_MAX,
)
from tickmesh.scheduler.raft.link import framed
from tickmesh.scheduler.raft.mesh_transport import MeshTransport
from tickmesh.scheduler.raft.messages import (
    Append,
    AppendReply,
    Entry,
    Exclusion,
    Greeting,
    Introduction,
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
NOT_LET_IN = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)
"""With TLS 1.3 who dials learns from what it reads next whether its certificate was taken."""


class Heard:
    """A handler that remembers, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []
        self.parts: list[SnapshotPart] = []
        self.excluded: dict[str, Exclusion] = {}
        self.greetings: dict[str, Greeting] = {}
        self._changed = asyncio.Event()

    greeting = Greeting(0, 7, learner=True)
    introduction = Introduction(GROUP, "", 1, False, 1, 7)

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
        self.transport = mesh.kind(GROUP, name, certificate, "127.0.0.1:0")
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


class Peer:
    """The other end of a link, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, frame: raft_pb2.RaftFrame) -> None:
        self.writer.write(framed(frame))

    async def hear(self) -> raft_pb2.RaftFrame:
        """Raises IncompleteReadError where the link ends."""
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        return raft_pb2.RaftFrame.FromString(await self.reader.readexactly(size))

    async def farewell(self) -> str:
        """What is said last, after which the link ends."""
        last = ""
        with contextlib.suppress(asyncio.IncompleteReadError):
            async with asyncio.timeout(10):
                while True:
                    last = (await self.hear()).farewell
        return last


class Mesh:
    """Addresses and certificates of the replicas "a" and "b", and of others that want in."""

    kind = MeshTransport

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
    async def dial(self, to: End, role: str = "scheduler", name: str = "a") -> AsyncIterator[Peer]:
        certificate = self.authority.issue(role, name)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            to.transport.frames_port,
            ssl=tls.dialling(certificate),
            server_hostname=tls.SERVICE_NAME,
        )
        try:
            yield Peer(reader, writer)
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def stub(self, certificate: Tls) -> AsyncIterator[raft_pb2_grpc.RaftServiceAsyncStub]:
        """Of b, for what goes over gRPC."""
        credentials = tls.channel_credentials(certificate)
        options = tls.CHANNEL_OPTIONS
        async with grpc.aio.secure_channel(self.addresses["b"], credentials, options) as channel:
            yield raft_pb2_grpc.RaftServiceStub(channel)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    yield made
    for end in made.ends:
        await end.stop()


def hello(group: str = GROUP, sender: str = "a", recipient: str = "b") -> raft_pb2.RaftFrame:
    return raft_pb2.RaftFrame(
        hello=raft_pb2.RaftHello(group_id=group, sender_id=sender, recipient_id=recipient)
    )


async def says_hello(to: End, context: ssl.SSLContext | None) -> None:
    """And waits for one."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1",
        to.transport.frames_port,
        ssl=context,
        server_hostname=tls.SERVICE_NAME if context else None,
    )
    try:
        peer = Peer(reader, writer)
        peer.say(hello())
        async with asyncio.timeout(5):
            await peer.hear()
    finally:
        writer.transport.abort()


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


async def test_what_waits_for_a_peer_that_takes_nothing_is_bounded(mesh: Mesh) -> None:
    b = await mesh.end("b")
    async with mesh.dial(b) as peer:
        peer.say(hello())
        await b.heard.until(lambda: b.heard.count("connected") == 1)
        one = Append(1, 1, 0, 1, 1, (Entry(bytes(1 << 20), 2, 1),))
        sent = 4 * (WAITING_BYTES_MAX >> 20)
        for _ in range(sent):
            b.transport.send("a", one)
            await asyncio.sleep(0)
        await peer.hear()  # the hello
        arrived = 0
        while (await peer.hear()).WhichOneof("frame") == "message":
            arrived += 1
        assert WAITING_BYTES_MAX >> 20 <= arrived < sent


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
    async with mesh.dial(b) as peer:
        peer.say(hello())
        await b.heard.until(lambda: b.heard.count("connected") == 1)
        begun_s = asyncio.get_running_loop().time()
        await b.heard.until(lambda: b.heard.count("disconnected") == 1)
        assert asyncio.get_running_loop().time() - begun_s > LINK_SILENCE_S / 2


def sockets() -> dict[int, str]:
    """This process's open ones, by their descriptors."""
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found[int(descriptor.name)] = str(descriptor.readlink())
    return {number: name for number, name in found.items() if name.startswith("socket:")}


async def test_a_peer_that_closed_its_half_and_takes_nothing_is_let_go(mesh: Mesh) -> None:
    b = await mesh.end("b")
    alone = sockets().items()
    async with mesh.dial(b) as old:
        old.say(hello())
        await b.heard.until(lambda: b.heard.count("connected") == 1)
        mine = old.writer.get_extra_info("socket").fileno()
        (accepted,) = (each for each in sockets().items() - alone if each[0] != mine)
        old.writer.transport.pause_reading()  # type: ignore[attr-defined]
        large = Append(1, 1, 0, 1, 1, (Entry(bytes(8 << 20), 2, 1),))
        b.transport.send("a", large)
        with socket.socket(fileno=os.dup(mine)) as bare:
            bare.shutdown(socket.SHUT_WR)
        async with mesh.dial(b) as new:
            new.say(hello())
            await b.heard.until(lambda: b.heard.count("connected") == 2)
            async with asyncio.timeout(10):
                while accepted in sockets().items():  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0.05)


async def test_a_reason_is_a_line_however_much_a_peer_says(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    b = await mesh.end("b")
    async with mesh.dial(b) as peer:
        peer.say(hello())
        await b.heard.until(lambda: b.heard.count("connected") == 1)
        peer.say(raft_pb2.RaftFrame(farewell="x" * 1_000_000))
        await b.heard.until(lambda: b.heard.count("disconnected") == 1)
    (line,) = [each for each in caplog.messages if each.startswith("b lost a: the peer ended it")]
    assert len(line) < 2 * REASON_CHARACTERS_MAX


async def test_a_peer_that_closes_at_once_is_said_to_have_done_so(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(FRAME_BYTES_MAX)  # the handshake's first words
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        class Detour(MeshTransport):
            async def _frames_address(self, peer: str) -> tuple[str, int]:
                return "127.0.0.1", port

        mesh.kind = Detour
        await mesh.end("a")
        async with asyncio.timeout(10):
            while not (said := [m for m in caplog.messages if "cannot reach" in m]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert said == ["a cannot reach b: ConnectionResetError"]


@pytest.mark.parametrize("sender", ["a", "b"])
async def test_a_peer_that_is_lost_while_it_is_sent_something_large_is_one_plain_line(
    mesh: Mesh, sender: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    b = await mesh.end("b")
    async with Wire(f"127.0.0.1:{b.transport.frames_port}") as wire:

        class Detour(MeshTransport):
            async def _frames_address(self, peer: str) -> tuple[str, int]:
                host, port = wire.address.split(":")
                return host, int(port)

        mesh.kind = Detour
        a = await mesh.end("a")
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
    b = await mesh.end("b")
    async with mesh.dial(b) as peer:
        peer.say(hello())
        first = await peer.hear()
        assert first.hello.sender_id == "b"
        assert await peer.hear() == raft_pb2.RaftFrame()


async def test_frames_arrive_whole_however_they_are_cut(mesh: Mesh) -> None:
    b = await mesh.end("b")
    async with mesh.dial(b) as peer:
        votes = [raft_pb2.RaftMessage(vote=raft_pb2.RaftVote(term=n)) for n in range(1, 6)]
        said = framed(hello()) + b"".join(framed(raft_pb2.RaftFrame(message=v)) for v in votes)
        for start in range(0, len(said), 7):
            peer.writer.write(said[start : start + 7])
            await peer.writer.drain()
            await asyncio.sleep(0.001)  # a piece of its own
        await b.heard.until(lambda: len(b.heard.events) == 6)
        assert [what for _, what in b.heard.events[1:]] == [Vote(n, 0, 0) for n in range(1, 6)]


async def test_a_newer_link_takes_the_place_of_an_older_one(mesh: Mesh) -> None:
    b = await mesh.end("b")
    vote = raft_pb2.RaftMessage(vote=raft_pb2.RaftVote(term=1))
    async with mesh.dial(b) as old, mesh.dial(b) as new:
        old.say(hello())
        await b.heard.until(lambda: b.heard.count("connected") == 1)
        new.say(hello())
        await b.heard.until(lambda: b.heard.count("connected") == 2)
        assert "another link" in await old.farewell()
        new.say(raft_pb2.RaftFrame(message=vote))
        await b.heard.until(lambda: b.heard.count(Vote(1, 0, 0)) == 1)
        assert [what for _, what in b.heard.events] == [
            "connected",
            "disconnected",
            "connected",
            Vote(1, 0, 0),
        ]


@pytest.mark.parametrize(
    ("role", "name", "said", "why"),
    [
        ("gateway", "a", None, "links are for schedulers, not for gateway"),
        ("executor", "a", None, "links are for schedulers, not for executor"),
        ("scheduler", "c", hello(), "expects 'c'"),
        ("scheduler", "a", hello(group="other"), "of group 'other'"),
        ("scheduler", "a", hello(recipient="c"), "speaks to 'c'"),
        ("scheduler", "a", raft_pb2.RaftFrame(farewell=""), "the peer ended it"),
        (
            "scheduler",
            "a",
            raft_pb2.RaftFrame(message=raft_pb2.RaftMessage()),
            "begins with a hello",
        ),
    ],
)
async def test_who_is_not_the_peer_it_says_is_refused(
    mesh: Mesh, role: str, name: str, said: raft_pb2.RaftFrame | None, why: str
) -> None:
    b = await mesh.end("b")
    async with mesh.dial(b, role, name) as peer:
        if said is not None:
            peer.say(said)
        last = await peer.farewell()
        assert why in last or (said is not None and said.WhichOneof("frame") == "farewell")
    assert b.heard.events == []


async def test_who_says_nothing_is_let_go(mesh: Mesh) -> None:
    b = await mesh.end("b")
    async with mesh.dial(b) as peer:
        assert await peer.farewell() == "no hello has come"
    assert b.heard.events == []


async def test_the_larger_id_dials_only_where_there_is_no_link(mesh: Mesh) -> None:
    a, _ = await mesh.pair()
    async with mesh.dial(a, name="b") as peer:
        peer.say(hello(sender="b", recipient="a"))
        assert "connected with a already" in await peer.farewell()
        assert a.heard.events == [("b", "connected")]


async def test_whoever_answers_at_a_peers_address_must_be_that_peer(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    mesh.certificates["b"] = mesh.authority.issue("scheduler", "c")
    b = await mesh.end("b")
    a = await mesh.end("a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(4 * LINK_PING_S):
            await a.heard.until(lambda: bool(a.heard.events))
    assert a.heard.events == b.heard.events == []


async def test_of_two_links_at_once_both_ends_keep_the_smaller_ids(mesh: Mesh) -> None:
    """Else each could end the one that the other keeps: then there is none."""
    dialled: asyncio.Queue[Peer] = asyncio.Queue()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.put_nowait(Peer(reader, writer))

    at_a = tls.accepting(mesh.certificates["a"])
    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=at_a) as server:
        port = server.sockets[0].getsockname()[1]

        class Detour(MeshTransport):
            async def _frames_address(self, peer: str) -> tuple[str, int]:
                return "127.0.0.1", port

        mesh.kind = Detour
        b = await mesh.end("b")
        from_b = await dialled.get()
        assert (await from_b.hear()).hello.sender_id == "b"
        async with mesh.dial(b) as from_a:
            from_a.say(hello())
            await from_a.hear()
            from_b.say(hello())
            assert "connected with b already" in await from_b.farewell()
            vote = raft_pb2.RaftMessage(vote=raft_pb2.RaftVote(term=1))
            from_a.say(raft_pb2.RaftFrame(message=vote))
            await b.heard.until(lambda: b.heard.count(Vote(1, 0, 0)) == 1)
            assert [what for _, what in b.heard.events] == ["connected", Vote(1, 0, 0)]


async def test_the_larger_id_dials_whom_it_is_not_dialled_by(mesh: Mesh) -> None:
    a, b = await mesh.end("a"), await mesh.end("b")
    a.transport.set_peers({})  # it knows nothing of b, and listens all the same
    await b.heard.until(lambda: b.heard.count("connected") >= 1)
    a.transport.send("b", Transfer(7))
    b.transport.send("a", Transfer(8))
    await b.heard.until(lambda: b.heard.count(Transfer(7)) == 1)
    await a.heard.until(lambda: a.heard.count(Transfer(8)) == 1)


async def test_every_outage_is_said_once_by_the_larger_id_too(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    """Which most of the time is dialled, and does not dial."""

    class Watched(MeshTransport):
        dialled = asyncio.Event()

        async def _is_late(self, peer: str) -> bool:
            late = await super()._is_late(peer)
            if not late:
                self.dialled.set()
            return late

    def said() -> int:
        return sum("b cannot reach a: " in line for line in caplog.messages)

    mesh.kind = Watched
    b = await mesh.end("b")
    for outage in range(1, 3):
        a = await mesh.end("a")
        Watched.dialled.clear()
        await b.heard.until(lambda outage=outage: b.heard.count("connected") == outage)  # type: ignore[misc]
        async with asyncio.timeout(10):
            await Watched.dialled.wait()
        await a.stop()
        async with asyncio.timeout(10):
            while said() < outage:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.05)
        assert said() == outage


async def test_whoever_has_the_certificate_and_means_this_group_is_listened_to(mesh: Mesh) -> None:
    """It may be in a list that this replica does not know yet."""
    b = await mesh.end("b")
    async with mesh.dial(b, name="c") as peer:
        peer.say(hello(sender="c"))
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
    with pytest.raises(NOT_LET_IN):
        await says_hello(b, tls.dialling(stranger))
    async with mesh.stub(stranger) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Introduce(raft_pb2.IntroduceRequest(), timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert b.heard.events == []


async def test_a_link_without_a_certificate_or_without_tls_does_not_get_in(mesh: Mesh) -> None:
    b = await mesh.end("b")
    bare = ssl.create_default_context(cafile=mesh.certificates["a"].authority)
    for context in (bare, None):
        with pytest.raises(NOT_LET_IN):
            await says_hello(b, context)
    assert b.heard.events == []


@pytest.mark.parametrize(
    ("nonsense", "why"),
    [
        (framed(raft_pb2.RaftFrame(message=raft_pb2.RaftMessage())), "does not know"),
        (
            framed(
                raft_pb2.RaftFrame(
                    message=raft_pb2.RaftMessage(
                        append=raft_pb2.RaftAppend(entries=[raft_pb2.RaftEntry(term=1)])
                    )
                )
            ),
            "lacks its kind",
        ),
        (framed(hello()), "second hello"),
        (b"\x00\x00\x00\x02\xff\xff", "no frame"),
        ((FRAME_BYTES_MAX + 1).to_bytes(4, "big"), "at most"),
    ],
)
async def test_nonsense_ends_the_connection(mesh: Mesh, nonsense: bytes, why: str) -> None:
    b = await mesh.end("b")
    async with mesh.dial(b) as peer:
        peer.say(hello())
        await peer.hear()
        peer.writer.write(nonsense)
        assert why in await peer.farewell()
    assert [what for _, what in b.heard.events] == ["connected", "disconnected"]


async def test_before_start_and_after_stop_nobody_is_let_in(mesh: Mesh) -> None:
    b = End(mesh, "b")
    await b.server.start()
    mesh.ends.append(b)
    async with mesh.stub(mesh.certificates["a"]) as stub:
        for _ in range(2):
            assert b.transport.frames_port == 0
            with pytest.raises(grpc.aio.AioRpcError, match="not taking part"):
                await stub.Introduce(raft_pb2.IntroduceRequest(), timeout=5)
            await b.transport.start(b.heard)
            await b.transport.stop()
    assert b.heard.events == []


async def test_every_address_of_a_name_has_the_same_port(mesh: Mesh) -> None:
    transport = MeshTransport(GROUP, "a", mesh.certificates["a"], "localhost:0")
    await transport.start(Heard())
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
        for *_, (host, *_) in found:
            _, writer = await asyncio.open_connection(host, transport.frames_port)
            writer.transport.abort()
    finally:
        await transport.stop()


async def test_an_address_that_this_host_lacks_is_passed_over_unless_it_is_the_only_one(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ::1, which a localhost may have where IPv6 is off."""
    addresses = ["203.0.113.1", "127.0.0.1"]

    async def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    transport = MeshTransport(GROUP, "a", mesh.certificates["a"], "name:0")
    await transport.start(Heard())
    assert transport.frames_port
    await transport.stop()
    addresses.pop()
    with pytest.raises(TransportError, match="cannot listen at name:0: "):
        await transport.start(Heard())


async def test_a_port_that_is_taken_is_told(mesh: Mesh) -> None:
    b = await mesh.end("b")
    taken = f"127.0.0.1:{b.transport.frames_port}"
    transport = MeshTransport(GROUP, "a", mesh.certificates["a"], taken)
    with pytest.raises(TransportError, match=f"cannot listen at {taken}"):
        await transport.start(Heard())


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
    async with mesh.stub(mesh.authority.issue("gateway", "a")) as stub:
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
