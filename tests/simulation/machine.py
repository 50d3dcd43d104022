"""What a process takes from its machine: clocks, workers and disks, with the faults that they have.

A write is in memory until it is flushed. A killed process loses nothing that it has written; a
machine that loses power keeps what was flushed and some prefix of the writes since, whole batches.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from tickmesh.scheduler.raft.environment import Environment
from tickmesh.scheduler.raft.storage import Operation, Put
from tickmesh.scheduler.store.backend import MemoryBackend

from .loop import PROCESS, Crashed, Process, SimulatedLoop

T = TypeVar("T")
START_MS = 1_800_000_000_000
"""What wall clocks show when a simulation begins: 2027-01-15T08:00:00Z."""

DRIFT_MS, DRIFT_S = 50.0, 200.0
"""A wall clock that something disciplines wanders about true time: so far, and so slowly."""

FLUSH_S = 0.001
"""Mean of a flush on a healthy disk."""

Change = Mapping[bytes, bytes | None] | list[Operation]


def _do(content: dict[bytes, bytes], change: Change) -> None:
    if isinstance(change, list):
        for kind, first, second in change:
            if kind == "put":
                content[first] = second
            else:
                for key in [key for key in content if first <= key < second]:
                    del content[key]
        return
    for key, value in change.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value


class Volume:
    """A disk's content: what is durable, and the batches written since the last flush."""

    def __init__(self) -> None:
        self.durable: dict[bytes, bytes] = {}
        self.unflushed: list[Change] = []
        self.lost: dict[bytes, bytes] = {}
        """What was on the disk that this one replaced."""

    def write(self, change: Change) -> None:
        self.unflushed.append(change)

    def flush(self) -> None:
        for change in self.unflushed:
            _do(self.durable, change)
        self.unflushed.clear()

    def lose_power(self, chance: random.Random) -> int:
        """Some prefix of what was not flushed survives; how many batches did not."""
        kept = chance.choice((0, len(self.unflushed), chance.randint(0, len(self.unflushed))))
        lost = len(self.unflushed) - kept
        del self.unflushed[kept:]
        self.flush()
        return lost

    def replace(self, content: dict[bytes, bytes]) -> None:
        """Another content altogether, durable at once."""
        self.lost = self.durable
        self.durable = content
        self.unflushed.clear()


class Machine:
    """What stays when a process dies."""

    def __init__(self, name: str, seed: str, directory: Path, steady: float = 1.0) -> None:
        """steady: by so much better are its clocks."""
        self.name = name
        self.directory = directory
        self.chance = random.Random(f"{seed}/{name}")
        self.journal = Volume()
        self.state = Volume()
        self.process: Process | None = None
        self.power_lost_at_point = False
        self.points_left = 0
        self.flush_s = FLUSH_S
        self.flush_fails = False
        self.is_full = False
        self.on_death: Callable[[Machine, str], None] = lambda machine, why: None
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        self._loop = loop
        self.on_clock_set: Callable[[], None] = lambda: None
        self._rate = 1.0 + self.chance.uniform(-2e-4, 2e-4) / steady
        self._drift_s = DRIFT_S * steady
        self.offset_ms = self.chance.uniform(-50.0, 50.0)
        self._phase = self.chance.uniform(0.0, 6.0)
        self._monotonic_start_s = self.chance.uniform(0.0, 1e6)

    # -- clocks --------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """Wall clock: see mesh.clock.Clock."""
        elapsed_s = self._loop.now_s - 1000.0
        drift_ms = DRIFT_MS * math.sin(self._phase + elapsed_s / self._drift_s)
        return int((START_MS + self.offset_ms + drift_ms + elapsed_s * 1000) * 1_000_000)

    def set_clock(self, offset_ms: float) -> None:
        """Somebody sets the wall clock: so far from true time, about which it wanders."""
        self.offset_ms = offset_ms
        self.on_clock_set()

    def monotonic_ns(self) -> int:
        """See mesh.clock.Clock."""
        return int(self.monotonic_s() * 1e9)

    def monotonic_s(self) -> float:
        """Never runs backwards; at its own rate."""
        return self._monotonic_start_s + self._loop.now_s * self._rate

    # -- death ---------------------------------------------------------------------------------

    def die(self, *, power_lost: bool, where: str = "") -> None:
        """The process is gone, from this instant on."""
        process, self.process = self.process, None
        if process is None:
            return
        process.alive = False
        self.points_left = 0
        lost = 0
        for volume in (self.journal, self.state):
            if power_lost:
                lost += volume.lose_power(self.chance)
            else:
                volume.flush()
        kind = f"loses power, and {lost} unflushed writes" if power_lost else "is killed"
        self.on_death(self, f"{kind}{where and ' at ' + where}")

    def point(self, where: str) -> None:
        """A place where a crash would be interesting. Raises Crashed if it happens here."""
        if PROCESS.get() is not self.process:
            raise Crashed
        if self.points_left:
            self.points_left -= 1
            if not self.points_left:
                self.die(power_lost=self.power_lost_at_point, where=where)
                raise Crashed

    def need_room(self) -> None:
        """Nothing can be written to a full disk."""
        if self.is_full:
            raise OSError(28, "injected: no space left on the device")

    def draw(self, count: int) -> bytes:
        """Random bytes, for ids."""
        return self.chance.randbytes(count)


class SimulatedWorker:
    """Runs calls one by one; each takes its time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._busy = asyncio.Lock()

    async def run(self, call: Callable[[], T]) -> T:
        async with self._busy:
            machine = self._machine
            await asyncio.sleep(machine.chance.expovariate(2.0 / machine.flush_s))
            machine.point("a worker's call")
            result = call()
            await asyncio.sleep(machine.chance.expovariate(2.0 / machine.flush_s))
            return result

    def close(self) -> None:
        """Nothing to close."""


class SimulatedStorage:
    """A journal's storage on a volume."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._volume = machine.journal
        self._content = dict(self._volume.durable)

    def get(self, key: bytes) -> bytes | None:
        return self._content.get(key)

    def scan(self, first: bytes) -> Iterator[Put]:
        for key in sorted(key for key in self._content if key >= first):
            yield key, self._content[key]

    def write(self, operations: list[Operation]) -> None:
        self._machine.point("the journal's write")
        self._machine.need_room()
        _do(self._content, operations)
        self._volume.write(operations)
        self._machine.point("the journal's write, after it")

    def flush(self) -> None:
        self._machine.point("the journal's flush")
        if self._machine.flush_fails:
            raise OSError(5, "injected: the disk failed")
        self._volume.flush()
        self._machine.point("the journal's flush, after it")

    def close(self) -> None:
        """Nothing to close."""


def digest_of(key: bytes, value: bytes) -> int:
    """One pair's part of a state's digest, which is the exclusive or of all: 64 bits that are the
    same only within a process, where alone they are compared."""
    return hash(key + b"\0" + value)


class SimulatedBackend(MemoryBackend):
    """A state's backend on a volume: see store.state.DurableBackend."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self._volume = machine.state
        self.directory = machine.directory / "state"
        self.digest = 0
        self.reopen()

    def reopen(self) -> None:
        # An installed checkpoint is a file here until somebody opens it.
        self.directory.mkdir(parents=True, exist_ok=True)
        installed = self.directory / "state"
        if installed.exists():
            self._volume.replace(dict(msgspec.msgpack.decode(installed.read_bytes())))
            installed.unlink()
        self._values = {}
        self._keys = []
        self.digest = 0
        self._put(dict(sorted(self._volume.durable.items())))

    def _put(self, changes: Mapping[bytes, bytes | None]) -> None:
        for key, value in changes.items():
            earlier = self._values.get(key)
            if earlier is not None:
                self.digest ^= digest_of(key, earlier)
            if value is not None:
                self.digest ^= digest_of(key, value)
        super().write(changes)

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        self._machine.point("the state's write")
        self._machine.need_room()
        self._put(changes)
        self._volume.write(dict(changes))
        self._machine.point("the state's write, after it")

    def flush_wal(self) -> None:
        self._volume.flush()

    def flush(self) -> None:
        self._volume.flush()

    def checkpoint(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "state").write_bytes(msgspec.msgpack.encode(list(self._values.items())))

    def close(self) -> None:
        self._machine.point("the state's closing")
        self._volume.flush()


class SimulatedEnvironment(Environment):
    """See raft.environment."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.clock = machine.monotonic_s  # type: ignore[method-assign]

    def wall_ns(self) -> int:
        return self._machine.now_ns()

    def random(self) -> float:
        return self._machine.chance.random()

    def incarnation(self) -> int:
        return self._machine.chance.getrandbits(63) | 1

    def worker(self, name: str) -> SimulatedWorker:
        return SimulatedWorker(self._machine)

    def storage(self, directory: Path) -> SimulatedStorage:
        return SimulatedStorage(self._machine)
