"""A small internet in network namespaces: nothing in it reaches, or is, a real network.

A host whose only way out leads to a second namespace, which is everything else at once: public
servers, a name server, and what no sandbox may reach, a metadata service and private servers. All
of them answer whoever gets through, on every address, so that a refusal is the executor's alone.
"""

import contextlib
import ctypes
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute

HOST = "203.0.113.2"
PUBLIC = "198.51.100.10"
OTHER_PUBLIC = "198.51.100.11"
RESOLVER = "198.51.100.53"
PRIVATE_RESOLVER = "10.1.2.53"
PRIVATE = ("10.1.2.3", "172.16.0.9", "192.168.1.1", "100.64.0.1", "198.18.0.1", "192.0.0.192")
METADATA = "169.254.169.254"
ADDRESSES = (PUBLIC, OTHER_PUBLIC, RESOLVER, PRIVATE_RESOLVER, METADATA, *PRIVATE)
BROADCAST = "203.0.113.255"
MULTICAST = "224.0.0.251"
EGRESS_PORT = 80
MESH_PORT = 7_400
NAME = "example.test"

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

Result = TypeVar("Result")


class Namespace:
    """A network namespace with a thread in it; gone with the last descriptor and socket."""

    def __init__(self, path: str = "") -> None:
        """`path`: of one that is there; "" for a new one."""
        self._thread = ThreadPoolExecutor(1)
        self.descriptor: int = self.do(self._enter, path)

    @staticmethod
    def _enter(path: str) -> int:
        if path:
            there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            assert not _libc.setns(there, _CLONE_NEWNET), os.strerror(ctypes.get_errno())
            return there
        assert not _libc.unshare(_CLONE_NEWNET), os.strerror(ctypes.get_errno())
        with IPRoute() as route:
            route.link("set", index=1, state="up")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """For whoever opens it while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def do(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Calls a function inside."""
        return self._thread.submit(function, *arguments).result()

    def close(self) -> None:
        """Lets go of it."""
        self._thread.shutdown()
        os.close(self.descriptor)


class Internet:
    """The host's namespace, and the rest of the world's."""

    def __init__(self) -> None:
        self.host, self.world = Namespace(), Namespace()
        self.seen: list[tuple[str, str, str]] = []
        """(protocol, from, to) of every connection and datagram that arrived anywhere."""
        self._stop, self._stopped = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._serve(self._stopped)
        self.world.do(self._wire_world)
        self.host.do(self._wire_host)
        for address in (*ADDRESSES, MULTICAST, BROADCAST):
            for port in (EGRESS_PORT, 53):
                # One for each address: a datagram's answer must come from where it was sent to.
                self._serve(self.world.do(_bound, socket.SOCK_DGRAM, address, port))
        for port in (EGRESS_PORT, 53):
            self._serve(self.world.do(_bound, socket.SOCK_STREAM, "", port))
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            self._serve(self.host.do(_bound, kind, "", MESH_PORT))
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _wire_world(self) -> None:
        with IPRoute() as route:
            peer = {"ifname": "uplink", "net_ns_fd": self.host.descriptor}
            route.link("add", ifname="downlink", kind="veth", peer=peer)
            index = route.link_lookup(ifname="downlink")[0]
            route.link("set", index=index, state="up")
            route.addr("add", index=index, address="203.0.113.1", prefixlen=24)
            for address in ADDRESSES:
                route.addr("add", index=1, address=address, prefixlen=32)

    def _wire_host(self) -> None:
        with IPRoute() as route:
            index = route.link_lookup(ifname="uplink")[0]
            route.link("set", index=index, state="up")
            route.addr("add", index=index, address=HOST, prefixlen=24)
            route.route("add", dst="default", gateway="203.0.113.1")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")  # this namespace's own

    def _serve(self, server: socket.socket) -> None:
        self._selector.register(server, selectors.EVENT_READ)

    def _answer(self) -> None:
        """Tells every caller its own address, as the world sees it; name queries get an answer."""
        while True:
            for key, _ in self._selector.select():
                server = key.fileobj
                assert isinstance(server, socket.socket)
                if server is self._stopped:
                    return
                with contextlib.suppress(ConnectionError):
                    self._answer_one(server)

    def _answer_one(self, server: socket.socket) -> None:
        if server.type == socket.SOCK_STREAM:
            connection, caller = server.accept()
            with connection:
                self.seen.append(("tcp", caller[0], connection.getsockname()[0]))
                connection.sendall(caller[0].encode())
            return
        data, caller = server.recvfrom(2_048)
        address, port = server.getsockname()
        self.seen.append(("udp", caller[0], address))
        server.sendto(_resolved(data) if port == 53 else caller[0].encode(), caller)

    def call(self, address: str, port: int) -> str:
        """What a caller in the world is answered by the host, or by a sandbox's address."""

        def connect() -> str:
            with socket.create_connection((address, port), timeout=1.0) as connection:
                return connection.recv(100).decode()

        return self.world.do(connect)

    def route(self, destination: str) -> None:
        """Sends a network's packets to the host: a neighbour on its wire that knows too much."""

        def add() -> None:
            with IPRoute() as route:
                route.route("add", dst=destination, gateway=HOST)

        self.world.do(add)

    def close(self) -> None:
        """Ends all of it."""
        self._stop.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self.host.close()
        self.world.close()


@contextlib.contextmanager
def internet() -> Iterator[Internet]:
    """One, for as long as the block."""
    made = Internet()
    try:
        yield made
    finally:
        made.close()


def _bound(kind: int, address: str, port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    if kind == socket.SOCK_STREAM:
        server.listen(512)
    return server


def _resolved(query: bytes) -> bytes:
    """A DNS answer: PUBLIC for A, nothing for the rest."""
    question_end = query.index(b"\0", 12) + 5
    question = query[12:question_end]
    asked = struct.unpack(">H", question[-4:-2])[0]
    answers = 1 if asked == 1 else 0
    head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, answers, 0, 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(PUBLIC)
    return head + question + (record if answers else b"")
