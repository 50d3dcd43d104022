"""Egress: a sandbox reaches the internet, and nothing else whatever it tries."""

import itertools
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pyroute2 import IPRoute
from pyroute2.nftables.main import NFTables

from tickmesh.executor import limits, logs
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.errors import SandboxError
from tickmesh.executor.network import rules, wiring
from tickmesh.executor.network.pool import EgressPool
from tickmesh.executor.sandbox import NETWORK_EGRESS, Work
from tickmesh.executor.watch import Watcher
from tickmesh.mesh.config import Egress

from . import internet as net
from .conftest import PYTHON_IMAGE, STAMP_IMAGE, nothing_left, read_output
from .internet import Internet, internet

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

OWNER = f"networked-{uuid.uuid4().hex[:8]}"  # two runs at once share a host
CONNECTIONS_MAX = 20
CONNECTIONS_PER_SECOND = 60
MIB = limits.MIB
_numbers = itertools.count()

Run = Callable[..., Awaitable[Any]]

# Reads [[kind, address, port], ...] from its payload; prints what came of each, in order.
TRY = """
import json, socket, sys
def attempt(kind, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    stream = kind == "tcp"
    with socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as caller:
        caller.settimeout(0.5)
        try:
            caller.connect((address, port))
            if not stream: caller.send(b"?")
            return caller.recv(100).decode()
        except OSError as error:
            return type(error).__name__
print(json.dumps([attempt(*one) for one in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def outside() -> Iterator[Internet]:
    """The internet of this module's tests."""
    with internet() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def networked(
    tmp_path_factory: pytest.TempPathFactory, python_archive: Path, outside: Internet
) -> AsyncIterator[ContainerdRuntime]:
    """A runtime with egress, on a host in that internet; it leaves nothing there."""
    directory = tmp_path_factory.mktemp("networked")
    before = outside.host.do(_configuration)
    runtime = ContainerdRuntime(OWNER, directory / "executor", egress=_egress(outside))
    await runtime.start()
    await runtime.import_image(PYTHON_IMAGE, python_archive)
    yield runtime
    await runtime.close()
    nothing_left(directory, OWNER)
    assert outside.host.do(_configuration) == before


def _egress(outside: Internet, **settings: Any) -> Egress:
    return Egress(
        **{
            "resolvers": (net.RESOLVER, net.PRIVATE_RESOLVER),
            "connections_max": CONNECTIONS_MAX,
            "connections_per_second": CONNECTIONS_PER_SECOND,
            "pool_size": 2,
            "denied": (f"{net.OTHER_PUBLIC}/32",),
            "namespace": outside.host.path,
            **settings,
        }
    )


def _configuration() -> tuple[set[str], set[str], set[str], str]:
    """What a namespace holds that an executor might have left: to call inside."""
    with IPRoute() as route, NFTables(nfgen_family=0) as nft:
        return (
            {link.get_attr("IFLA_IFNAME") for link in route.get_links()},
            {str(one.get_attr("RTA_DST")) for one in route.get_routes(family=socket.AF_INET)},
            {one.get_attr("NFTA_TABLE_NAME") for one in nft.get_tables()},
            wiring.FORWARDING.read_text(),
        )


@pytest.fixture
def run(networked: ContainerdRuntime) -> Run:
    """Runs a Python program with egress to its end, and answers what it printed, from JSON."""

    async def run_program(program: str, data: object = None, network: str = NETWORK_EGRESS) -> Any:
        attempt = f"net-{next(_numbers)}"
        work = Work(
            attempt,
            "tests",
            PYTHON_IMAGE,
            command=("python3", "-c", program),
            payload=json.dumps(data).encode(),
            network=network,
        )
        sandbox = await networked.prepare(work)
        try:
            await sandbox.start()
            ended = await sandbox.wait()
            out, err = await read_output(networked, attempt)
            assert ended.exit_code == 0, err.decode()
            return json.loads(out)
        finally:
            await sandbox.delete()

    return run_program


async def test_a_public_server_answers_and_sees_the_host(run: Run) -> None:
    targets = [("tcp", net.PUBLIC, net.EGRESS_PORT), ("udp", net.PUBLIC, net.EGRESS_PORT)]
    assert await run(TRY, targets) == [net.HOST, net.HOST]


async def test_names_are_resolved(run: Run) -> None:
    program = (
        "import json, socket\n"
        f"found = socket.getaddrinfo('{net.NAME}', 80, type=socket.SOCK_STREAM)\n"
        "print(json.dumps([one[4][0] for one in found]))"
    )
    assert await run(program) == [net.PUBLIC]


async def test_without_egress_nothing_is_reached_and_nothing_resolved(run: Run) -> None:
    targets = [("tcp", net.PUBLIC, net.EGRESS_PORT), ("udp", net.RESOLVER, 53)]
    assert await run(TRY, targets, network="none") == ["OSError", "OSError"]
    listing = "import json, os; print(json.dumps(os.path.exists('/etc/resolv.conf')))"
    assert await run(listing, network="none") is False


async def test_what_is_not_public_is_refused_at_once(run: Run, outside: Internet) -> None:
    denied = (*net.PRIVATE, net.METADATA, net.OTHER_PUBLIC)
    del outside.seen[:]
    outcomes = await run(TRY, [("tcp", address, net.EGRESS_PORT) for address in denied])
    assert dict(zip(denied, outcomes, strict=True)) == dict.fromkeys(
        denied, "ConnectionRefusedError"
    )
    outcomes = await run(TRY, [("udp", address, net.EGRESS_PORT) for address in denied])
    assert dict(zip(denied, outcomes, strict=True)) == dict.fromkeys(denied, "TimeoutError")
    assert outside.seen == []  # dropped on the way out, not on the way back


async def test_they_would_answer_the_host_itself(outside: Internet) -> None:
    """So that the refusals above are the executor's."""

    def call(address: str) -> str:
        with socket.create_connection((address, net.EGRESS_PORT), timeout=5) as connection:
            return connection.recv(100).decode()

    for address in (*net.PRIVATE, net.METADATA, net.OTHER_PUBLIC):
        assert outside.host.do(call, address) == net.HOST


async def test_of_a_private_resolver_port_53_alone_is_open(run: Run) -> None:
    targets = [("tcp", net.PRIVATE_RESOLVER, 53), ("tcp", net.PRIVATE_RESOLVER, net.EGRESS_PORT)]
    assert await run(TRY, targets) == [net.HOST, "ConnectionRefusedError"]


@pytest.mark.parametrize("address", [net.HOST, "127.0.0.1", wiring.GATEWAY, "0.0.0.0"])
async def test_no_port_of_the_host_is_reached(run: Run, outside: Internet, address: str) -> None:
    assert outside.call(net.HOST, net.MESH_PORT) == "203.0.113.1"  # from elsewhere it is
    outcomes = await run(TRY, [("tcp", address, net.MESH_PORT), ("udp", address, net.MESH_PORT)])
    assert not {"203.0.113.1", net.HOST}.intersection(outcomes)
    assert all(outcome.endswith("Error") for outcome in outcomes), outcomes


async def test_multicast_broadcast_and_ipv6_lead_nowhere(run: Run, outside: Internet) -> None:
    del outside.seen[:]
    targets = [
        ("udp", net.MULTICAST, net.EGRESS_PORT),
        ("udp", "255.255.255.255", net.EGRESS_PORT),
        ("udp", "203.0.113.255", net.EGRESS_PORT),
        ("tcp", "::1", net.EGRESS_PORT),
        ("tcp", "2001:db8::1", net.EGRESS_PORT),
    ]
    outcomes = await run(TRY, targets)
    assert all(outcome.endswith("Error") for outcome in outcomes), outcomes
    assert outside.seen == []


# Listens, says where, and waits for its payload's neighbour until it is killed.
LISTEN = """
import json, socket
server = socket.create_server(("0.0.0.0", 8080))
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect(("198.51.100.10", 9))
print(json.dumps(probe.getsockname()[0]), flush=True)
while True:
    connection, caller = server.accept()
    connection.sendall(b"reached")
"""


async def test_a_neighbour_is_not_reached_from_inside_nor_from_outside(
    run: Run, networked: ContainerdRuntime, outside: Internet
) -> None:
    work = Work(
        "listener",
        "tests",
        PYTHON_IMAGE,
        command=("python3", "-c", LISTEN),
        network=NETWORK_EGRESS,
    )
    listener = await networked.prepare(work)
    try:
        await listener.start()
        address = await _first_line(networked, "listener")
        assert await run(TRY, [("tcp", address, 8080), ("udp", address, 8080)]) == [
            "ConnectionRefusedError",
            "TimeoutError",
        ]
        outside.route("198.18.0.0/15")
        with pytest.raises(TimeoutError):
            outside.call(address, 8080)
    finally:
        await listener.delete()


async def _first_line(runtime: ContainerdRuntime, attempt: str) -> Any:
    watcher = Watcher()
    try:
        async for chunk in logs.read(runtime.output_directory(attempt), "", True, watcher):
            if chunk.stream == logs.STDOUT and chunk.data:
                return json.loads(chunk.data)
    finally:
        watcher.close()


async def test_connections_are_limited(run: Run) -> None:
    program = f"""
import json, socket, time
held, refused = [], 0
for _ in range({CONNECTIONS_MAX} + 10):
    one = socket.socket()
    one.settimeout(5)
    try:
        one.connect(("{net.PUBLIC}", {net.EGRESS_PORT}))
        held.append(one)
    except ConnectionRefusedError:
        refused += 1
print(json.dumps([len(held), refused]))
"""
    assert await run(program) == [CONNECTIONS_MAX, 10]


async def test_datagrams_to_ever_new_places_are_limited(run: Run, outside: Internet) -> None:
    """A scan: each is a new connection to the kernel."""
    del outside.seen[:]
    program = f"""
import socket
for port in range(20_000, 20_500):
    # A port of its own each: of those that the kernel picks some would be the same, one connection.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.bind(("", port))
        try: caller.sendto(b"?", ("{net.PUBLIC}", {net.EGRESS_PORT}))
        except OSError: pass
print("true")
"""
    assert await run(program) is True
    datagrams = [one for one in outside.seen if one[0] == "udp"]
    assert 0 < len(datagrams) <= CONNECTIONS_MAX


async def test_what_has_a_false_source_goes_nowhere(
    networked: ContainerdRuntime, outside: Internet
) -> None:
    """Not from a sandbox, which could not: from its namespace, with all capabilities."""
    assert networked._egress is not None
    async with networked._egress.namespace() as path:
        namespace = net.Namespace(path)
        try:
            del outside.seen[:]
            for source in ("198.18.0.77", "8.8.8.8", net.HOST):
                namespace.do(_send_as, source)
            assert namespace.do(_ask) == net.HOST  # after them, with its own: it arrives
            assert outside.seen == [("udp", net.HOST, net.PUBLIC)]
        finally:
            namespace.close()


def _send_as(source: str) -> None:
    with IPRoute() as route, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
        route.addr("add", index=1, address=source, prefixlen=32)
        caller.bind((source, 0))
        caller.sendto(b"?", (net.PUBLIC, net.EGRESS_PORT))


def _ask() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.settimeout(5)
        caller.sendto(b"?", (net.PUBLIC, net.EGRESS_PORT))
        return caller.recv(100).decode()


async def test_the_next_process_takes_over_without_a_gap(outside: Internet) -> None:
    settings = _egress(outside)
    first = EgressPool("restarted", settings)
    await first.start()
    async with first.namespace() as path:
        running = net.Namespace(path)  # as a sandbox's process would, it outlives the executor
    await first.close(remove=False)
    second = EgressPool("restarted", settings)
    await second.start()
    try:
        assert running.do(_ask) == net.HOST
        assert len(outside.host.do(_tables, "restarted")) == 1
        stricter = EgressPool("restarted", _egress(outside, denied=(f"{net.PUBLIC}/32",)))
        await stricter.start()
        with pytest.raises(TimeoutError):
            running.do(_ask)
        assert len(outside.host.do(_tables, "restarted")) == 1
        await stricter.close(remove=False)
    finally:
        running.close()
        await second.close(remove=True)
    assert not outside.host.do(_tables, "restarted")


async def test_two_executors_share_a_host_and_keep_their_sandboxes_apart(
    outside: Internet,
) -> None:
    pools = [EgressPool(f"twin-{number}", _egress(outside)) for number in range(2)]
    for pool in pools:
        await pool.start()
    try:
        async with pools[0].namespace() as one, pools[1].namespace() as other:
            here, there = net.Namespace(one), net.Namespace(other)
            try:
                assert here.do(_ask) == there.do(_ask) == net.HOST
                server = there.do(socket.create_server, ("0.0.0.0", 8080))
                with server, pytest.raises((ConnectionRefusedError, TimeoutError)):
                    here.do(_call, there.do(_address))
            finally:
                here.close()
                there.close()
    finally:
        for pool in pools:
            await pool.close(remove=True)
    assert not outside.host.do(_tables, "twin-0") | outside.host.do(_tables, "twin-1")


def _tables(owner: str) -> set[str]:
    tables, prefix = _configuration()[2], rules.table_prefix(owner)
    return {name for name in tables if name.startswith(prefix)}


def _address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.connect((net.PUBLIC, 9))
        return str(caller.getsockname()[0])


def _call(address: str) -> None:
    socket.create_connection((address, 8080), timeout=1).close()


@pytest.mark.parametrize("upwards", [False, True])
async def test_bytes_are_limited_each_way(outside: Internet, upwards: bool) -> None:
    rate, amount = 2 * MIB, 2 * MIB
    pool = EgressPool("slow", _egress(outside, bytes_per_second=rate))
    await pool.start()
    try:
        async with pool.namespace() as path:
            sandbox = net.Namespace(path)
            try:
                server = outside.world.do(socket.create_server, ("0.0.0.0", 8080))
                begun = time.monotonic()
                with server, ThreadPoolExecutor(1) as elsewhere:
                    peer = elsewhere.submit(_move, lambda: server.accept()[0], not upwards, amount)
                    caller = (net.PUBLIC, 8080)
                    sandbox.do(_move, lambda: socket.create_connection(caller), upwards, amount)
                    peer.result()
                took = time.monotonic() - begun
            finally:
                sandbox.close()
    finally:
        await pool.close(remove=True)
    # What passes at once does not count; being slower than that says nothing.
    assert took > 0.9 * (amount - wiring.BURST_BYTES_MIN) / rate


def _move(connect: Callable[[], socket.socket], sends: bool, amount: int) -> None:
    with connect() as connection:
        if sends:
            connection.sendall(bytes(amount))
            connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass


@pytest.mark.asyncio(loop_scope="function")
async def test_an_executor_without_egress_refuses(stamp: ContainerdRuntime) -> None:
    with pytest.raises(SandboxError, match="no egress"):
        await stamp.prepare(Work("refused", "tests", STAMP_IMAGE, network=NETWORK_EGRESS))
