"""Simulated worker hosts: the executor's side of the Attach protocol, by the same rules as the real
agent (src/executor/agent.py, uplink.py), without containers.

A host outlives its processes: what was recorded is found again by the next one. A reboot ends every
container; a replaced host remembers nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.scheduler.core.model import Reason

from .loop import OUTSIDE, PROCESS, Process
from .machine import Machine
from .network import Network, Stream

HEARTBEAT_S = 1.0
REDIAL_S = 0.5


@dataclass(slots=True)
class Held:
    """An attempt on a host: what its ledger and its container say."""

    id: str
    start_at_ns: int
    run_s: float
    exit_code: int
    recorded: bool = False
    prepared_ns: int = 0
    started_ns: int = 0
    ends_s: float = 0.0
    """By the loop's time."""
    stop: int = 0
    ended_ns: int = 0
    reason: int = 0

    def report(self) -> shard_pb2.AttemptReport:
        """What the shard is told."""
        phase = shard_pb2.ATTEMPT_PHASE_PREPARING
        if self.ended_ns:
            phase = shard_pb2.ATTEMPT_PHASE_ENDED
        elif self.started_ns:
            phase = shard_pb2.ATTEMPT_PHASE_RUNNING
        elif self.prepared_ns:
            phase = shard_pb2.ATTEMPT_PHASE_PREPARED
        exited = bool(self.ended_ns and self.reason in (Reason.NONE, Reason.EXIT_CODE))
        return shard_pb2.AttemptReport(
            attempt_id=self.id,
            phase=phase,
            prepared_ns=self.prepared_ns,
            started_ns=self.started_ns,
            ended_ns=self.ended_ns,
            reason=self.reason,
            exit_code=self.exit_code if exited else 0,
            has_exit_code=exited,
        )


class Watcher(Protocol):
    """Who is told what a host does, and checks it."""

    def attempt_started(self, host: str, held: Held) -> None: ...
    def attempt_acknowledged(self, host: str, held: Held) -> None: ...
    def stop_heard(self, attempt: str) -> None: ...


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
        lease_s: float,
        stretch: float,
    ) -> None:
        """find: the process and the service of a replica that is up."""
        self.machine = machine
        self.network = network
        self.replicas = replicas
        self.more = asyncio.Event()
        """Set when there is another replica."""
        self.find = find
        self.watcher = watcher
        self.slot_count = slot_count
        self.lease_s = lease_s
        self.stretch = stretch
        self.held: dict[str, Held] = {}
        self.stops_for_s = 0.0
        """So long its process is to be stopped when it has sent its leader a heartbeat."""
        self._incarnations = itertools.count(1)

    def boot(self) -> None:
        """Start a process."""
        process = self.machine.process = Process(self.machine.name)
        agent = Agent(self, f"{self.machine.name}.{next(self._incarnations)}")
        process.spawn(agent.run())

    def stop(self) -> None:
        """The process is stopped for a while."""
        if self.machine.process is not None:
            self.machine.process.stop(self.stops_for_s)
        self.stops_for_s = 0.0

    def kill(self) -> None:
        """The process ends; containers run on. What was not recorded yet is forgotten."""
        self.machine.die(power_lost=False)
        self.held = {key: held for key, held in self.held.items() if held.recorded}

    def reboot(self, *, forget: bool) -> None:
        """The host stops: its containers are gone. forget: and so is its disk."""
        self.machine.die(power_lost=False)
        now_ns = self.machine.now_ns()
        kept = {} if forget else {key: held for key, held in self.held.items() if held.recorded}
        for held in kept.values():
            if not held.ended_ns and (held.started_ns or held.start_at_ns <= now_ns):
                held.ended_ns, held.reason = now_ns, Reason.EXECUTOR_LOST.value
        self.held = kept


class Agent:
    """One process of a host."""

    def __init__(self, host: Host, incarnation: str) -> None:
        self._host = host
        self._machine = host.machine
        self._chance: random.Random = host.machine.chance
        self._incarnation = incarnation
        self._term = 0
        self._leading: str = ""
        self._streams: dict[str, Stream[Any]] = {}
        self._changed: dict[str, Held] = {}
        self._acknowledged: set[str] = set()
        self._stopped: dict[str, asyncio.Event] = {}
        self._heard_s: float | None = None
        self._heard = asyncio.Event()
        self._confirms_ns: dict[str, int] = {}
        self._offset_ns = 0
        self._asked_ns = 0
        self._asked_s: dict[int, float] = {}
        """When, by the loop's time, for heartbeats that are not answered."""

    async def run(self) -> None:
        for held in list(self._host.held.values()):
            if not held.ended_ns:
                self._begin(held)
        reached: set[str] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                self._host.more.clear()
                for replica in self._host.replicas:
                    if replica not in reached:
                        reached.add(replica)
                        group.create_task(self._attach(replica))
                await self._host.more.wait()

    # -- attempts ------------------------------------------------------------------------------

    def _begin(self, held: Held) -> None:
        self._stopped[held.id] = asyncio.Event()
        process = PROCESS.get()
        assert process is not None
        process.spawn(self._live(held))

    async def _live(self, held: Held) -> None:
        loop, chance = asyncio.get_running_loop(), self._chance
        stopped = self._stopped[held.id]
        if not held.started_ns and not held.stop:
            await asyncio.sleep(chance.uniform(0.001, 0.004))
            held.recorded = True
            await asyncio.sleep(chance.uniform(0.02, 0.15))
            held.prepared_ns = self._machine.now_ns()
            self._change(held)
            await self._due(held, stopped)
        if not held.started_ns and not held.stop:
            held.started_ns = self._machine.now_ns()
            held.ends_s = loop.time() + held.run_s
            self._host.watcher.attempt_started(self._machine.name, held)
            self._change(held)
        reason = held.stop
        if held.started_ns:
            reason = Reason.EXIT_CODE.value if held.exit_code else 0
            while loop.time() < held.ends_s:
                if held.stop:
                    reason = held.stop
                    break
                stopped.clear()
                await self._wait(stopped, held.ends_s - loop.time())
        await asyncio.sleep(chance.uniform(0.001, 0.004))
        held.recorded = True
        held.reason, held.ended_ns = reason, self._machine.now_ns()
        self._change(held)

    @staticmethod
    async def _wait(event: asyncio.Event, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass

    async def _due(self, held: Held, stopped: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not held.stop:
            left_s = (held.start_at_ns - self._offset_ns - self._machine.now_ns()) / 1e9
            if left_s > 0:
                await self._wait(stopped, left_s)
            elif self._heard_s is None or loop.time() - self._heard_s >= self._host.lease_s:
                await self._wait(self._heard, 0.5 * self._host.stretch)
            else:
                return

    def _change(self, held: Held) -> None:
        self._changed[held.id] = held
        self._say()

    def _say(self) -> None:
        """Tell the leader what it has not been told."""
        stream = self._streams.get(self._leading)
        if stream is not None and self._changed and self._leading in self._confirms_ns:
            reports = [held.report() for held in self._changed.values()]
            self._changed.clear()
            message = shard_pb2.AttemptReports(reports=reports)
            stream.up.send(shard_pb2.ExecutorMessage(reports=message))

    # -- streams -------------------------------------------------------------------------------

    async def _attach(self, replica: str) -> None:
        host, process = self._host, PROCESS.get()
        assert process is not None
        while True:
            found = host.find(replica)
            works = host.network.carries(self._machine.name, replica)
            if found is not None and works and host.network.carries(replica, self._machine.name):
                stream: Stream[Any] = Stream(host.network, self._machine.name, replica)
                stream.open(*found)
                watching = asyncio.get_running_loop().create_task(
                    stream.watch(lambda: process.alive), context=OUTSIDE.copy()
                )
                beating = asyncio.create_task(self._beat(stream))
                self._streams[replica] = stream
                stream.up.send(shard_pb2.ExecutorMessage(hello=self._hello()))
                try:
                    async for message in stream.down:
                        self._hear(replica, stream, message)
                        await asyncio.sleep(0)  # what it has woken may come before the next
                finally:
                    beating.cancel()
                    del self._streams[replica]
                    self._confirms_ns.pop(replica, None)
                    if self._leading == replica:
                        self._leading = ""
                    assert watching is not None
            await asyncio.sleep(REDIAL_S * host.stretch * self._chance.uniform(0.2, 1.0))

    def _hello(self) -> shard_pb2.Hello:
        return shard_pb2.Hello(
            executor_id=self._machine.name,
            address=f"{self._machine.name}:1",
            slot_count=self._host.slot_count,
            incarnation=self._incarnation,
            runtime="simulated",
        )

    async def _beat(self, stream: Stream[Any]) -> None:
        while True:
            self._ask(stream)
            if self._host.stops_for_s and self._streams.get(self._leading) is stream:
                self._host.stop()
            await asyncio.sleep(HEARTBEAT_S * self._host.stretch)

    def _ask(self, stream: Stream[Any]) -> int:
        """Send a heartbeat; the number that its answer gives back: its time, and like a real
        clock's reading none that another has."""
        self._asked_ns = max(self._asked_ns + 1, self._machine.now_ns())
        self._asked_s[self._asked_ns] = asyncio.get_running_loop().time()
        heartbeat = shard_pb2.Heartbeat(sent_ns=self._asked_ns)
        stream.up.send(shard_pb2.ExecutorMessage(heartbeat=heartbeat))
        return self._asked_ns

    def _hear(self, replica: str, stream: Stream[Any], message: shard_pb2.ShardMessage) -> None:
        match message.WhichOneof("message"):
            case "leadership":
                self._hear_leadership(replica, stream, message.leadership)
            case "work" if self._is_current(replica, message.work.term):
                for work in message.work.work:
                    self._take(work)
            case "stop" if self._is_current(replica, message.stop.term):
                for stop in message.stop.stops:
                    self._host.watcher.stop_heard(stop.attempt_id)
                    self._stop(stop.attempt_id, stop.reason)
            case "acknowledgement" if self._leading == replica:
                for attempt in message.acknowledgement.attempt_ids:
                    self._acknowledge(attempt)
            case "heartbeat_reply":
                reply = message.heartbeat_reply
                asked_s = self._sent_s(reply.sent_ns)
                confirms_ns = self._confirms_ns.get(replica)
                if self._leading == replica and confirms_ns is not None:
                    now_ns = self._machine.now_ns()
                    if reply.sent_ns >= confirms_ns and now_ns - reply.sent_ns < 50_000_000:
                        self._offset_ns = reply.replied_ns - (reply.sent_ns + now_ns) // 2
                    if reply.sent_ns >= confirms_ns:
                        self._heard_s = asked_s
                        self._heard.set()
                        self._heard.clear()

    def _sent_s(self, sent_ns: int) -> float:
        """When a heartbeat that is answered was sent, by the loop's time: the lease begins then."""
        return self._asked_s.pop(sent_ns)

    def _hear_leadership(
        self, replica: str, stream: Stream[Any], leadership: shard_pb2.Leadership
    ) -> None:
        self._confirms_ns.pop(replica, None)
        if not leadership.leader or leadership.term < self._term:
            if self._leading == replica:
                self._leading = ""
            return
        self._term, self._leading = leadership.term, replica
        self._changed.clear()
        inventory = shard_pb2.Inventory(
            attempts=[held.report() for held in self._host.held.values()], term=self._term
        )
        stream.up.send(shard_pb2.ExecutorMessage(inventory=inventory))
        self._confirms_ns[replica] = self._ask(stream)

    def _is_current(self, replica: str, term: int) -> bool:
        return self._leading == replica and term >= self._term

    def _take(self, work: shard_pb2.Work) -> None:
        if work.attempt_id in self._acknowledged:
            return
        known = self._host.held.get(work.attempt_id)
        if known is not None:
            if known.ended_ns:
                self._change(known)
            return
        chance = self._chance
        held = Held(
            work.attempt_id,
            work.start_at_ns,
            run_s=self._draw_run_s(),
            exit_code=chance.choice((0, 0, 0, 3, 4)),
        )
        self._host.held[held.id] = held
        self._begin(held)

    def _draw_run_s(self) -> float:
        """How long the process would run: from hardly to longer than two leases."""
        low_s, high_s = self._chance.choice(((0.05, 0.05), (0.1, 2.0), (2.0, 12.0), (8.0, 25.0)))
        return self._chance.uniform(low_s, high_s) * self._host.stretch

    def _stop(self, attempt: str, reason: int) -> None:
        held = self._host.held.get(attempt)
        if held is None or held.ended_ns or (held.started_ns and reason == Reason.REVOKED):
            return
        held.stop = held.stop or reason
        if attempt in self._stopped:
            self._stopped[attempt].set()

    def _acknowledge(self, attempt: str) -> None:
        held = self._host.held.get(attempt)
        if held is None:
            return
        if not held.ended_ns:
            self._stop(attempt, Reason.CANCELLED.value)
            return
        self._host.watcher.attempt_acknowledged(self._machine.name, held)
        del self._host.held[attempt]
        self._acknowledged.add(attempt)
