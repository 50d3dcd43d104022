"""A Raft group in virtual time: real replicas, a network, disks and states inside one process.

Time jumps to the next timer, work for threads runs at once, disks forget what was not flushed: so
a test of seconds takes milliseconds and gives the same result every time.
"""

from __future__ import annotations

import asyncio
import functools
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tickmesh.scheduler.raft.config import ReplicaConfig
from tickmesh.scheduler.raft.environment import Environment
from tickmesh.scheduler.raft.memory_transport import MemoryNetwork, MemoryTransport
from tickmesh.scheduler.raft.replica import Replica
from tickmesh.scheduler.raft.storage import Operation, Put

T = TypeVar("T")
VIRTUAL_SECONDS_MAX = 600.0
EPOCH_S = 1_800_000_000  # what wall clocks show at virtual second 0
CALL_S = 0.0007  # what a worker's call (a flush, a read) takes


class _Jumping(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("nothing is ready and nothing is timed: a deadlock")
        self.loop.now_s += max(timeout, 0.0)
        assert self.loop.now_s < VIRTUAL_SECONDS_MAX, "this takes too long, in virtual time"
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer."""

    def __init__(self) -> None:
        self.now_s = 1.0
        selector = _Jumping()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test's coroutine in virtual time."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*arguments, **named))

    return run


class MemoryStorage:
    """A journal's disk: a crash forgets what was written after the last flush."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.durable: dict[bytes, bytes] = {}
        self.flushes = 0
        self.flush_s = CALL_S
        self.clock_off_s = 0.0  # of the host's wall clock
        self.broken = False

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def scan(self, first: bytes) -> Iterator[Put]:
        return iter([(key, self.data[key]) for key in sorted(self.data) if key >= first])

    def write(self, operations: list[Operation]) -> None:
        if self.broken:
            raise OSError("the disk is broken")
        for kind, first, second in operations:
            if kind == "put":
                self.data[first] = second
            else:
                for key in [key for key in self.data if first <= key < second]:
                    del self.data[key]

    def flush(self) -> None:
        self.flushes += 1
        self.durable = dict(self.data)

    def close(self) -> None:
        pass

    def after_crash(self) -> MemoryStorage:
        """The disk as the next start finds it."""
        found = MemoryStorage()
        found.data = dict(self.durable)
        found.durable = dict(self.durable)
        found.clock_off_s = self.clock_off_s
        return found


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """What a ListState keeps."""

    applied: tuple[int, int] = (0, 0)
    items: tuple[bytes, ...] = ()


class ListState:
    """A state machine that remembers every payload; a crash forgets what was not flushed."""

    def __init__(self, stored: Stored | None = None) -> None:
        self.stored = stored or Stored()
        self.durable = self.stored
        self.apply_hook: Callable[[bytes], None] = lambda payload: None
        self.install_hook: Callable[[], None] = lambda: None

    @property
    def applied(self) -> tuple[int, int]:
        return self.stored.applied

    @property
    def items(self) -> tuple[bytes, ...]:
        return self.stored.items

    def apply(self, index: int, term: int, payload: bytes) -> int:
        self.apply_hook(payload)
        assert index > self.applied[0]
        self.stored = Stored((index, term), (*self.items, payload))
        return len(self.items)

    def flush_wal(self) -> None:
        self.durable = self.stored

    def flush(self) -> None:
        self.flush_wal()

    def checkpoint(self, directory: Path) -> tuple[int, int]:
        directory.mkdir(parents=True)
        (directory / "state").write_bytes(msgspec.msgpack.encode(self.stored))
        (directory / "empty").write_bytes(b"")
        return self.applied

    def install(self, directory: Path) -> None:
        self.install_hook()
        if directory.is_dir():
            data = (directory / "state").read_bytes()
            self.stored = self.durable = msgspec.msgpack.decode(data, type=Stored)

    def after_crash(self) -> ListState:
        """The state as the next start finds it."""
        return ListState(self.durable)


class AtOnce:
    """A worker without a thread: each call takes a while, but only of virtual time."""

    def __init__(self, disk: MemoryStorage | None = None) -> None:
        self._disk = disk

    async def run(self, call: Callable[[], T]) -> T:
        await asyncio.sleep(CALL_S if self._disk is None else self._disk.flush_s)
        return call()

    def close(self) -> None:
        pass


class VirtualEnvironment(Environment):
    """Time from the loop, chance from a seed, and one disk."""

    def __init__(self, seed: str, disk: MemoryStorage) -> None:
        self._random = random.Random(seed)
        self._disk = disk

    def clock(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_ns(self) -> int:
        return int((self.clock() + EPOCH_S + self._disk.clock_off_s) * 1e9)

    def random(self) -> float:
        return self._random.random()

    def worker(self, name: str) -> AtOnce:
        return AtOnce(self._disk if name == "raft-journal" else None)

    def storage(self, directory: Path) -> MemoryStorage:
        return self._disk


class Node:
    """One replica's place: its disks outlive the replica."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.disk = MemoryStorage()
        self.state = ListState()
        self.replica: Replica
        self.transport: MemoryTransport
        self.up = False
        self.terms: list[int | None] = []


class Cluster:
    """A group of nodes on one network."""

    def __init__(
        self, directory: Path, names: str = "abc", network_seed: int = 7, **settings: Any
    ) -> None:
        """settings: further fields of ReplicaConfig."""
        self.network = MemoryNetwork(network_seed)
        self.nodes = {name: Node(name) for name in names}
        self._directory = directory
        self.settings = settings
        self._starts = 0

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    async def start(self, *names: str, bootstrap: bool = True) -> None:
        """Start some nodes, or all."""
        for name in names or self.nodes:
            node = self.nodes[name]
            self._starts += 1
            node.transport = self.network.transport(name)
            node.terms = []
            node.replica = Replica(
                ReplicaConfig(
                    group_id="group",
                    replica_id=name,
                    peers=tuple(other for other in self.nodes if other != name),
                    directory=self._directory / name,
                    bootstrap=bootstrap,
                    **self.settings,
                ),
                node.state,
                node.transport,
                VirtualEnvironment(f"{name}{self._starts}", node.disk),
            )
            node.replica.subscribe(node.terms.append)
            await node.replica.start()
            node.up = True

    async def crash(self, *names: str) -> None:
        """As by kill -9 and a loss of power: what was not flushed is gone."""
        for name in names:
            node = self.nodes[name]
            node.up = False
            node.transport.crash()
            disk, state = node.disk.after_crash(), node.state.after_crash()
            await node.replica.stop()
            node.disk, node.state = disk, state

    async def wipe(self, name: str) -> None:
        """Its disk is lost."""
        await self.crash(name)
        self.nodes[name].disk = MemoryStorage()
        self.nodes[name].state = ListState()

    async def stop(self) -> None:
        """End whatever is up."""
        for node in self.nodes.values():
            if node.up:
                node.up = False
                await node.replica.stop()

    async def leader(self, *among: str) -> Node:
        """Waits until one of the nodes that are up leads and has told so."""
        while True:
            for name in among or self.nodes:
                node = self.nodes[name]
                if node.up and node.replica.is_leader and node.terms and node.terms[-1]:
                    return node
            await asyncio.sleep(0.001)

    def others(self, node: Node) -> list[Node]:
        """All but one."""
        return [other for other in self.nodes.values() if other is not node]

    async def applied(self, count: int, *among: str) -> None:
        """Waits until the states hold that many payloads."""
        names = among or tuple(self.nodes)
        await until(lambda: all(len(self.nodes[name].state.items) >= count for name in names))


async def until(condition: Callable[[], bool]) -> None:
    """Waits, in virtual time."""
    while not condition():  # noqa: ASYNC110  # time is virtual: it costs nothing
        await asyncio.sleep(0.001)


@asynccontextmanager
async def running(directory: Path, names: str = "abc", **settings: Any) -> AsyncIterator[Cluster]:
    """A started cluster, stopped at the end."""
    cluster = Cluster(directory, names, **settings)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()
