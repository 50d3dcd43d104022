"""Simulated worker hosts: the product's own agent, uplink, attempts and ledger of what it holds, on
simulated sandboxes, clocks and streams.

A host outlives its processes: what the ledger has is found again by the next one, and so are
sandboxes that run. A reboot ends every sandbox; a replaced host remembers nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal as signals
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from tickmesh.executor.agent import Agent, Identity, Limits
from tickmesh.executor.clockwork import Clockwork, Wake
from tickmesh.executor.errors import GateGone
from tickmesh.executor.inprocess import SIGNAL_BASE, Image
from tickmesh.executor.room import Capacity
from tickmesh.executor.sandbox import Exit, Work
from tickmesh.mesh.config import Peer, ShardMembers
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2

from .loop import OUTSIDE, PROCESS, Process
from .machine import Machine
from .network import Network, Stream

SHARD_ID = "shard-0"
CONNECT_S = 0.5
"""Between two tries to reach a replica, at a busy pace."""

GATES_GONE = 0.01
"""Of sandboxes, which end before they are started."""

DEAF = 0.2
"""Of commands, which take no notice of SIGTERM."""


class Watcher(Protocol):
    """Who is told what a host does, and checks it."""

    def attempt_started(self, host: str, attempt: str, started_ns: int) -> None: ...
    def attempt_acknowledged(self, host: str, attempt: str) -> None: ...
    def stop_heard(self, attempt: str) -> None: ...
    def host_failed(self, host: str, why: str) -> None: ...


class Host:
    """See the module."""

    def __init__(
        self,
        machine: Machine,
        network: Network,
        replicas: list[str],
        find: Callable[[str], tuple[Process, Any] | None],
        watcher: Watcher,
        slot_count: int,
        stretch: float,
    ) -> None:
        """replicas: those of the shard, as its configuration says whenever a process starts. find:
        the process and the service of a replica that is up."""
        self.machine = machine
        self.network = network
        self.replicas = replicas
        self.find = find
        self.watcher = watcher
        self.slot_count = slot_count
        self.stretch = stretch
        self.sandboxes: dict[str, Sandbox] = {}
        self.agent: Watched | None = None
        self.stops_for_s = 0.0
        """So long its process is to be stopped when it has sent its leader a heartbeat."""
        self._incarnations = itertools.count(1)

    def boot(self) -> None:
        """Start a process."""
        process = self.machine.process = Process(self.machine.name)
        running = process.spawn(self._run(f"{self.machine.name}.{next(self._incarnations)}"))
        running.add_done_callback(self._ended)

    async def _run(self, incarnation: str) -> None:
        name = self.machine.name
        capacity = Capacity(self.slot_count)
        self.machine.directory.mkdir(exist_ok=True)
        self.agent = agent = Watched(
            self,
            Identity(name, f"{name}:1", "simulated", capacity, incarnation=incarnation),
            (ShardMembers(SHARD_ID, tuple(Peer(each, each) for each in self.replicas)),),
            self._dial,
            Runtime(self),  # type: ignore[arg-type]
            self.machine.directory / "ledger.db",
            Clockwork(self.machine, lambda wake: Timer(self.machine, wake)),
            Limits(spares_max=0),
        )
        await agent.start()
        await agent.run(asyncio.Event())

    def _ended(self, running: asyncio.Task[None]) -> None:
        """An agent works until its process is killed."""
        error = running.exception()
        text = "".join(traceback.format_exception(error)[-12:]) if error else "it has ended"
        self.watcher.host_failed(self.machine.name, text)

    @contextlib.asynccontextmanager
    async def _dial(self, replica: str) -> AsyncIterator[Any]:
        yield Stub(self, replica)

    @property
    def is_lost(self) -> bool:
        """Whether all replicas that its process knows are gone."""
        return self.agent is not None and not self.agent.known & set(self.replicas)

    def stop(self) -> None:
        """The process is stopped for a while."""
        if self.machine.process is not None:
            self.machine.process.stop(self.stops_for_s)
        self.stops_for_s = 0.0

    def kill(self) -> None:
        """The process ends; sandboxes run on."""
        self.machine.die(power_lost=False)
        self.agent = None

    def reboot(self, *, forget: bool) -> None:
        """The host stops: its sandboxes are gone. forget: and so is its disk."""
        self.kill()
        for sandbox in list(self.sandboxes.values()):
            sandbox.end(signal=signals.SIGKILL)
        self.sandboxes.clear()
        if forget:
            shutil.rmtree(self.machine.directory)


class Watched(Agent):
    """An agent of which the world is told what it hears."""

    def __init__(self, host: Host, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._host = host

    def stop_attempt(self, stop: shard_pb2.Stop) -> None:
        self._host.watcher.stop_heard(stop.attempt_id)
        super().stop_attempt(stop)

    def acknowledge(self, attempt_ids: Any) -> None:
        for attempt_id in attempt_ids:
            attempt = self.find(attempt_id)
            if attempt is not None and attempt.end is not None:
                self._host.watcher.attempt_acknowledged(self._host.machine.name, attempt_id)
        super().acknowledge(attempt_ids)

    @property
    def known(self) -> set[str]:
        """The replicas that it attaches to."""
        return {place.replica_id for place in self._streams}

    def is_led_by(self, replica: str) -> bool:
        """Whether it takes a replica for the leader."""
        leading = self._shards[SHARD_ID].leading
        return leading is not None and leading._replica_id == replica


class Timer:
    """Implements clockwork.Timer: on a machine's clock, which goes at another rate than time."""

    def __init__(self, machine: Machine, wake: Wake) -> None:
        self._machine = machine
        self._wake = wake
        self._handle: asyncio.TimerHandle | None = None
        process = PROCESS.get()
        assert process is not None
        machine.on_clock_set = lambda: process.call(self._set)

    def arm(self, instant_ns: int) -> None:
        """See clockwork.Timer."""
        self.close()
        left_s = max(0.0, (instant_ns - self._machine.now_ns()) / 1e9)
        loop = asyncio.get_running_loop()
        self._handle = loop.call_later(left_s + 1e-6, self._look, instant_ns)

    def _look(self, instant_ns: int) -> None:
        self._handle = None
        if self._machine.now_ns() < instant_ns:
            self.arm(instant_ns)
        else:
            self._wake(False)

    def _set(self) -> None:
        if self._handle is not None:
            self.close()
            self._wake(True)

    def close(self) -> None:
        """See clockwork.Timer."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class Stub:
    """A replica's ShardService, as an executor calls it."""

    def __init__(self, host: Host, replica: str) -> None:
        self._host = host
        self._replica = replica

    def Attach(self, wait_for_ready: bool) -> Call:
        """See shard.proto."""
        assert wait_for_ready
        return Call(self._host, self._replica)


class Call:
    """What an uplink uses of a grpc.aio.StreamStreamCall, over the simulated network."""

    def __init__(self, host: Host, replica: str) -> None:
        self._host = host
        self._replica = replica
        self._stream: Stream[Any] | None = None
        self._opening = asyncio.create_task(self._open())

    async def _open(self) -> Stream[Any]:
        host, process = self._host, PROCESS.get()
        name, network = host.machine.name, host.network
        assert process is not None
        while True:
            found = host.find(self._replica)
            works = network.carries(name, self._replica) and network.carries(self._replica, name)
            if found is not None and works:
                break
            await asyncio.sleep(CONNECT_S * host.stretch * host.machine.chance.uniform(0.2, 1.0))
        self._stream = stream = Stream(network, name, self._replica)
        stream.open(*found)
        self._watching = asyncio.get_running_loop().create_task(
            stream.watch(lambda: process.alive), context=OUTSIDE.copy()
        )
        return stream

    async def write(self, message: shard_pb2.ExecutorMessage) -> None:
        """See StreamStreamCall. Raises InvalidStateError."""
        stream = self._stream or await asyncio.shield(self._opening)
        if stream.up.closed or stream.down.closed:
            raise asyncio.InvalidStateError("the stream has ended")
        stream.up.send(message)
        host = self._host
        if host.stops_for_s and message.HasField("heartbeat"):
            assert host.agent is not None
            if host.agent.is_led_by(self._replica):
                host.stop()
        await asyncio.sleep(0)  # others may come before whoever has written

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> shard_pb2.ShardMessage:
        stream = self._stream or await asyncio.shield(self._opening)
        message = await anext(stream.down)
        await asyncio.sleep(0)  # what the one before has woken may come before this one
        return message  # type: ignore[no-any-return]

    def cancel(self) -> None:
        """See StreamStreamCall."""
        self._opening.cancel()
        if self._stream is not None:
            self._stream.down.close()  # the other end hears of it: see Stream.watch


class Runtime:
    """Implements sandbox.Runtime, as far as an agent without spares needs it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._chance = host.machine.chance

    async def list_images(self) -> list[str]:
        """See sandbox.Runtime."""
        return ["hello"]

    async def ensure_image(self, reference: str, customer: str = "") -> Image:
        """See sandbox.Runtime."""
        return Image(reference, "", 0)

    async def prepare(self, work: Work) -> Sandbox:
        """See sandbox.Runtime."""
        await asyncio.sleep(self._chance.uniform(0.02, 0.15))
        sandboxes = self._host.sandboxes
        assert work.attempt_id not in sandboxes, "an attempt has one sandbox at a time"
        sandbox = sandboxes[work.attempt_id] = Sandbox(self._host, work.attempt_id)
        return sandbox

    async def adopt(self, attempt_id: str) -> Sandbox | None:
        """See sandbox.Runtime."""
        await asyncio.sleep(self._chance.uniform(0.0, 0.01))
        sandbox = self._host.sandboxes.get(attempt_id)
        return sandbox if sandbox is not None and sandbox.started_ns else None

    async def sweep(self, claimed: frozenset[str]) -> int:
        """See sandbox.Runtime."""
        unclaimed = [box for name, box in self._host.sandboxes.items() if name not in claimed]
        for sandbox in unclaimed:
            await sandbox.delete()
        return len(unclaimed)

    def output_directory(self, attempt_id: str) -> Path:
        """See sandbox.Runtime: there is none."""
        return self._host.machine.directory / "output" / attempt_id

    async def discard_output(self, attempt_id: str) -> None:
        """See sandbox.Runtime."""


class Sandbox:
    """Implements sandbox.Sandbox. It runs whatever becomes of the process that has started it."""

    def __init__(self, host: Host, attempt_id: str) -> None:
        chance, stretch = host.machine.chance, host.stretch
        self._host = host
        self.attempt_id = attempt_id
        self.started_ns = 0
        # From hardly to longer than two leases.
        low_s, high_s = chance.choice(((0.05, 0.05), (0.1, 2.0), (2.0, 12.0), (8.0, 25.0)))
        self._run_s = chance.uniform(low_s, high_s) * stretch
        self._exit_code = chance.choice((0, 0, 0, 3, 4))
        self._deaf = chance.random() < DEAF
        self._gone = chance.random() < GATES_GONE
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    def start(self) -> Awaitable[int]:
        """See sandbox.Sandbox."""
        assert not self.started_ns, "a sandbox is started once"
        if self._gone or self._exit.done():
            raise GateGone("the sandbox ended before its start")
        machine = self._host.machine
        self.started_ns = machine.now_ns()
        self._host.watcher.attempt_started(machine.name, self.attempt_id, self.started_ns)
        loop = asyncio.get_running_loop()
        loop.call_later(self._run_s, self.end, self._exit_code, context=OUTSIDE)
        started: asyncio.Future[int] = loop.create_future()
        loop.call_later(self._pause_s, started.set_result, self.started_ns)
        return started

    @property
    def _pause_s(self) -> float:
        """How long something takes."""
        return self._host.machine.chance.uniform(0.001, 0.004)

    async def wait(self) -> Exit:
        """See sandbox.Sandbox."""
        return await asyncio.shield(self._exit)

    async def kill(self, signal: int) -> None:
        """See sandbox.Sandbox."""
        await asyncio.sleep(self._pause_s)
        if signal == signals.SIGKILL or not self._deaf:
            self.end(signal=signal)

    async def delete(self) -> None:
        """See sandbox.Sandbox."""
        await asyncio.sleep(self._pause_s)
        self.end(signal=signals.SIGKILL)
        if self._host.sandboxes.get(self.attempt_id) is self:
            del self._host.sandboxes[self.attempt_id]

    def end(self, code: int = 0, signal: int = 0) -> None:
        """Its command ends, unless it has."""
        if not self._exit.done():
            code = SIGNAL_BASE + signal if signal else code
            now_ns = self._host.machine.now_ns()
            self._exit.set_result(Exit(code, signal, False, now_ns, 0, 0))
