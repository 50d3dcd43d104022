"""A shard of three replicas, its executors and its clients, under one seed: run(seed, minutes).

Faults for a while, then everything heals, and then it must settle: a leader, every due fire made,
every execution ended, everything acknowledged there.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import math
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tickmesh.mesh import telemetry
from tickmesh.mesh.config import SchedulerConfig, ShardMembers, Tls
from tickmesh.scheduler.core.commands import ENTRY_VERSION
from tickmesh.scheduler.core.ids import attempt_id, split_attempt_id
from tickmesh.scheduler.core.model import ACTIVE_STATES, Execution, ExecutionState, Reason
from tickmesh.scheduler.operations import Operations
from tickmesh.scheduler.raft.config import ReplicaConfig
from tickmesh.scheduler.raft.members import Members, configured, decode
from tickmesh.scheduler.raft.messages import KIND_MEMBERS, Entry, Introduction, Message
from tickmesh.scheduler.raft.replica import Replica
from tickmesh.scheduler.raft.transport import TransportError
from tickmesh.scheduler.service import ShardService
from tickmesh.scheduler.shard import Shard
from tickmesh.scheduler.steady import SteadyClock
from tickmesh.scheduler.store.state import State
from tickmesh.scheduler.timers import HERD_MS_MAX

from .almanacs import Almanac, is_pinned, packaged
from .backups import Operator, is_backed_up, threads
from .clients import Client, Register
from .executors import SHARD_ID, Host
from .faults import Faults
from .keepers import Keeper, is_forgetful
from .ledger import Ledger
from .limits import HISTORY_S, drawn, is_history_short
from .loop import Process, SimulatedLoop, outside, simulate
from .machine import FLUSH_S, START_MS, Machine, SimulatedBackend, SimulatedEnvironment
from .network import Network, Transport
from .pace import of
from .watches import Watch

REPLICAS = 3
MACHINES_MAX = 40
"""In one simulation, those of removed replicas included."""
EXECUTORS = 3
CLIENTS = 3
ARM_AHEAD_MS = 2_000
ARMED_MS_MAX = ARM_AHEAD_MS + HERD_MS_MAX
LEASE_S = 5.0
"""At a busy pace."""

RETENTION_MS = 1000 * 24 * 3600 * 1000
"""Longer than a simulation: what was acknowledged can be read at its end. But see limits.py."""

SETTLE_S = 240.0
"""From the end of all faults, or since something that was old has ended, until everything must have
settled, at most: four attempts of the longest execution, two leases each time, elections and
restarts."""

SETTLED_LAG_MS = 3_000
"""Instants younger than this need not have fired when a simulation ends."""

CLOCKS_NS_MAX = 3_000_000_000
"""How far the clocks of two machines are apart at most, and some: the times that an executor tells
are by its leader's."""

TRACE_LINES_MAX = 200_000


@dataclass
class Report:
    """What came of a simulation."""

    seed: int
    pace: str = ""
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    steps: int = 0
    violations: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    trace_hash: str = ""
    counts: dict[str, int] = field(default_factory=dict)


class Violated(Exception):
    """Something that must always hold did not: the simulation ends at once."""


class Node:
    """A replica's machine, and its process while there is one."""

    def __init__(self, world: World, name: str, seed: str, directory: Path) -> None:
        self.name = name
        self.machine = Machine(name, seed, directory)
        self.machine.on_death = world.died
        self._world = world
        self.replica: Replica | None = None
        self.service: ShardService | None = None
        self.transport: Transport | None = None
        self._bootstrap = True
        self.retired = False
        """It was removed from its group, and has noticed."""
        self._lost: tuple[dict[bytes, bytes], dict[bytes, bytes]] | None = None
        self.is_old = False
        """Its lost disk was found, and is in the place of the present one."""
        self._incarnation = self._lost_incarnation = 0
        """Of the disk that is in its place, and of the lost one."""

    @property
    def was_voter(self) -> bool:
        """Whether a committed list ever counted it."""
        return any(self.name in members.voters for members in self._world.ledger.lists.values())

    @property
    def leads(self) -> bool:
        return self.machine.process is not None and bool(self.replica and self.replica.is_leader)

    @property
    def is_voter(self) -> bool:
        """As its disk says."""
        value = self.machine.journal.durable.get(b"m/membership", b"")
        return value.endswith(b"\xc3")  # msgpack's true

    def boot(self) -> None:
        """Start a process."""
        self.machine.process = process = Process(self.name)
        self._world.note(f"{self.name} starts")
        process.spawn(self._run(process))

    def wipe(self) -> None:
        """The disk is replaced by an empty one."""
        self.machine.die(power_lost=True)
        self._lost = dict(self.machine.journal.durable), dict(self.machine.state.durable)
        self._lost_incarnation = self._incarnation
        self.machine.journal.replace({})
        self.machine.state.replace({})
        shutil.rmtree(self.machine.directory)
        self._bootstrap = False
        self._world.note(f"{self.name}'s disk is lost")

    @property
    def may_be_old(self) -> bool:
        """Whether there is a lost disk, and a committed list that names the present one."""
        replica, members = self.replica, self._world.ledger.lists[max(self._world.ledger.lists)]
        listed = members.find(self.name)
        return (
            self._lost is not None
            and replica is not None
            and listed is not None
            and listed.incarnation == replica.introduction.incarnation
        )

    def is_replaced(self, members: Members, listed: int) -> bool:
        """Whether this disk was removed while a list names its id with another one (listed: its
        incarnation), which it has got by now: the lost one, if the group has taken that for new
        meanwhile, or an empty one."""
        if not members.has_removed(self.name, self._incarnation):
            return False
        if not listed:
            self.wipe()
        elif listed == self._lost_incarnation:
            self.exchange_disks()
            self.is_old = False
        else:
            return False
        return True

    def exchange_disks(self) -> None:
        """The lost disk is found and put in the place of the present one, or that is again."""
        assert self._lost is not None
        journal, state = self.machine.journal, self.machine.state
        self.machine.die(power_lost=True)
        present = dict(journal.durable), dict(state.durable)
        if not self.is_old and any(_is_installing(disk) for disk, _ in (present, self._lost)):
            return  # the files of a snapshot that it had begun with are not kept
        journal.replace(dict(self._lost[0]))
        state.replace(dict(self._lost[1]))
        self._lost = present
        self._incarnation, self._lost_incarnation = self._lost_incarnation, self._incarnation
        self.is_old = not self.is_old
        self._world.note(f"{self.name} has its {'lost' if self.is_old else 'right'} disk")

    async def _run(self, process: Process) -> None:
        world, machine = self._world, self.machine
        try:
            await self._serve(process)
            why = "ends"
        except Exception as error:
            if not machine.flush_fails and "injected" not in str(error):
                text = "".join(traceback.format_exception(error)[-12:])
                world.violate(f"{self.name} failed: {text}")
            why = "ends: its disk failed"
        if machine.process is process:
            world.note(f"{self.name} {why}")
            machine.die(power_lost=False)

    async def _serve(self, process: Process) -> None:
        world, machine = self._world, self.machine
        backend, stretch = SimulatedBackend(machine), world.pace.stretch
        state = State(backend)  # type: ignore[arg-type]
        world.ledger.holds(self.name, state.applied[0], backend.digest)
        clock = SteadyClock(machine)
        shard = Shard(
            state,
            clock,
            arm_ahead_ms=ARM_AHEAD_MS,
            executor_lease_ms=int(LEASE_S * stretch * 1000),
            retention_ms=world.retention_ms,
        )
        state.observe(shard.observe)
        self.transport = Transport(world.network, machine, process)
        self.transport.sent = world.ledger.sent
        world.transports[self.name] = self.transport
        self.transport.know(world.transports)
        self.replica = Observed(
            world,
            ReplicaConfig(
                group_id=SHARD_ID,
                replica_id=self.name,
                peers=tuple(node.name for node in world.nodes if node is not self),
                addresses={node.name: node.name for node in world.nodes},
                directory=machine.directory / "raft",
                bootstrap=self._bootstrap,
                entry_version=ENTRY_VERSION,
                retain_entries=40,
                heartbeat_interval_s=0.05 * stretch,
                election_timeout_min_s=0.3 * stretch,
                election_timeout_max_s=0.6 * stretch,
            ),
            Watched(self, state, backend),
            self.transport,
            SimulatedEnvironment(machine),
        )
        self.replica.subscribe(lambda term: None if term is None else clock.trust())
        shard.bind(self.replica)
        operations = self._operations(state) if world.operators else None
        self.service = ShardService(shard, clock, SHARD_ID, self.name, machine.draw, operations)
        shard.on_leadership(lambda: world.note(f"{self.name} leads: {shard.leading is not None}"))
        await self.replica.start()
        self._incarnation = self.replica.introduction.incarnation
        world.ledger.holds_list(self.name, self.replica._journal)
        working = asyncio.create_task(shard.run())
        failing = asyncio.create_task(self.replica.failed.wait())
        removed = asyncio.create_task(self.replica.removed.wait())
        done, _ = await asyncio.wait(
            (working, failing, removed), return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()
        if self.replica.failure is not None:
            raise self.replica.failure
        if self.replica.removed.is_set():
            world.retire(self)

    def _operations(self, state: State) -> Operations:
        assert self.replica is not None
        settings = SchedulerConfig(
            replica_id=self.name,
            shard=ShardMembers("shard-0", ()),
            data_directory=str(self.machine.directory),
            tls=Tls("", "", ""),
            backup_directory=str(self._world.backups),
        )

        async def introduce(address: str) -> Introduction:
            raise TransportError(f"nobody listens at {address}")

        return Operations(self.replica, state, settings, introduce)

    def found(self) -> tuple[Process, Any] | None:
        """The process and its service, if it is up."""
        if self.machine.process is None or self.service is None or self.replica is None:
            return None
        return self.machine.process, self.service

    def down(self) -> None:
        """The process is gone."""
        self.replica = self.service = None
        if self.transport is not None:
            self.transport.crash()
            self.transport = None


def _is_installing(journal: dict[bytes, bytes]) -> bool:
    value = journal.get(b"m/installing")
    return value is not None and not value.endswith(b"\x92\x00\x00")  # msgpack's (0, 0)


class Observed(Replica):
    """A replica whose committed lists are told to the ledger."""

    def __init__(self, world: World, config: ReplicaConfig, *arguments: Any) -> None:
        super().__init__(config, *arguments)
        self._world = world

    def _change_members(self) -> None:
        before, commit_index = self._journal._lists[-1], self._member.commit_index
        super()._change_members()
        if self._journal._lists[-1][0] != before[0]:
            self._world.ledger.changes_list(
                self.config.replica_id, self._journal, commit_index, self._member.term
            )

    def _apply_entry(self, entry: Entry) -> object:
        if entry.command[:1] == KIND_MEMBERS:
            name = self.config.replica_id
            self._world.ledger.listed(name, entry.index, entry.term, entry.command)
            self._world.note(f"{name} comes to {decode(entry.command[1:])}")
        return super()._apply_entry(entry)


class Watched:
    """The state, with everything that is applied told to the ledger."""

    def __init__(self, node: Node, state: State, backend: SimulatedBackend) -> None:
        self._node = node
        self._state = state
        self._backend = backend
        self._ledger = node._world.ledger
        self.flush_wal = state.flush_wal
        self.flush = state.flush
        self.checkpoint = state.checkpoint

    @property
    def applied(self) -> tuple[int, int]:
        return self._state.applied

    def apply(self, index: int, term: int, payload: bytes) -> object:
        name, world = self._node.name, self._node._world
        world.hash(f"{name} applies {index} of {term}", payload)
        self._ledger.applying(name, index, term, payload)
        result = self._state.apply(index, term, payload)
        self._ledger.applied(name, index, self._backend.digest)
        return result

    def install(self, directory: Path) -> None:
        self._state.install(directory)
        assert self._node.replica is not None
        self._ledger.holds_list(self._node.name, self._node.replica._journal)
        self._node._world.note(f"{self._node.name} installs {self._state.applied}")
        self._ledger.holds(self._node.name, self._state.applied[0], self._backend.digest)


class World:
    """See the module."""

    def __init__(self, loop: SimulatedLoop, seed: int, directory: Path, verbose: bool) -> None:
        self._loop = loop
        self._hash = hashlib.blake2b(digest_size=16)
        self._verbose = verbose
        self.report = Report(seed)
        self.healing = False
        text = str(seed)
        self.pace = pace = of(seed)
        self.report.pace = pace.name
        self.retention_ms = RETENTION_MS
        if is_history_short(seed):
            self.retention_ms = int(HISTORY_S["retention"] * pace.stretch * 1000)
        self.network = Network(text, pace.stretch)
        self.network.raft.trace = self._arrived
        self.transports: dict[str, Transport] = {}
        self._text, self._directory = text, directory
        self.backups = directory / "backups"
        self._made = REPLICAS
        self.nodes = [
            Node(self, f"replica-{number}", text, directory / f"replica-{number}")
            for number in range(REPLICAS)
        ]
        """The replicas that there are; and those that were removed and have not noticed."""
        self.ledger = Ledger(
            [node.machine for node in self.nodes],
            ARMED_MS_MAX,
            self.violate,
            configured([node.name for node in self.nodes], {n.name: n.name for n in self.nodes}),
            lambda: {node.name: node.replica for node in self.nodes if node.replica is not None},
        )
        self.ledger.on_change = self._changed
        self._by_name = by_name = {node.name: node for node in self.nodes}
        self._names = names = list(by_name)

        def find(name: str) -> tuple[Process, Any] | None:
            return by_name[name].found()

        self.hosts: list[Host] = []
        for number in range(EXECUTORS):
            # They are compared with a leader's at every heartbeat: at a slower pace as well as at
            # a busy one.
            name = f"executor-{number}"
            machine = Machine(name, text, directory / name, pace.stretch)
            machine.on_death = self.died
            self.hosts.append(
                Host(
                    machine,
                    self.network,
                    names,
                    find,
                    self,
                    12,
                    pace.stretch,
                )
            )
        registers: list[Register] = []
        shared = (
            text,
            pace,
            self.network,
            names,
            find,
            self.violate,
            self.note,
            registers,
            self.ledger.is_forgotten,
        )
        self.clients = [Client(n, *shared) for n in range(CLIENTS)]
        self.keepers = [Keeper(CLIENTS, *shared) for _ in range(is_forgetful(seed))]
        self.almanacs = [Almanac(CLIENTS + 1, *shared) for _ in range(is_pinned(seed))]
        for client in self.clients:
            client.follows = is_pinned(seed)
        self.watches = [
            Watch(n, text, pace, self.network, names, find, self.ledger, self.violate)
            for n in range(CLIENTS)
        ]
        self.outsiders = [host.machine.name for host in self.hosts]
        self.operators = [
            Operator(self.backups, self.ledger, CLIENTS + 2, *shared)
            for _ in range(is_backed_up(seed))
        ]
        self.callers = (*self.clients, *self.keepers, *self.almanacs, *self.operators)
        self.outsiders += [each.name for each in (*self.callers, *self.watches)]
        self.faults = Faults(self, text)
        self._starts: dict[str, str] = {}
        self._started_ns: dict[str, int] = {}
        """By attempt: when its host says that it started it."""
        self._stops: set[str] = set()
        self._healed_ms = 0
        self.retired: list[str] = []
        self._violated = loop.create_future()

    # -- what happens --------------------------------------------------------------------------

    def note(self, what: str) -> None:
        """A line of the trace."""
        line = f"{self._loop.time() - 1000:9.3f}  {what}"
        self.hash(line, b"")
        if self._verbose or len(self.report.trace) < TRACE_LINES_MAX:
            self.report.trace.append(line)

    def hash(self, what: str, more: bytes) -> None:
        """Part of the trace's hash only."""
        self._hash.update(b"%.6f %b\n%b" % (self._loop.now_s, what.encode(), more))

    def violate(self, what: str) -> None:
        """Something that must always hold does not."""
        self.note(f"VIOLATION: {what}")
        self.report.violations.append(what)
        if not self._violated.done():
            self._violated.set_result(None)

    def _arrived(self, sender: str, recipient: str, message: Message) -> None:
        self.hash(f"{sender} > {recipient} {type(message).__name__} {message.term}", b"")

    def died(self, machine: Machine, what: str) -> None:
        """A machine's process has died: it is started again after a while."""
        self.note(f"{machine.name} {what}")
        for node in self.nodes:
            if node.machine is machine:
                node.down()
        after_s = machine.chance.choice(
            (machine.chance.uniform(0.1, 1.0), machine.chance.uniform(0.5, 6.0), 20.0)
        )
        if self.healing:
            after_s = min(after_s, 1.0)
        after_s *= self.pace.stretch
        outside(self._loop.call_later, after_s, self._boot, machine)

    def _boot(self, machine: Machine) -> None:
        if machine.process is None:
            for each in (*self.nodes, *self.hosts):
                if each.machine is machine:
                    each.boot()

    def _changed(self, execution: Execution) -> None:
        """An execution was committed as new or changed."""
        for attempt in execution.attempts[-1:]:
            identity = attempt_id(execution.id, attempt.number)
            started_ns = self._started_ns.get(identity, 0)
            if attempt.started_ns and abs(started_ns - attempt.started_ns) > CLOCKS_NS_MAX:
                self.violate(f"{identity}: its host started it at {started_ns}, not so: {attempt}")
            if attempt.reason is Reason.RETURNED and identity in self._starts:
                self.violate(f"{identity} was given back, but it was started")
        if execution.state in ACTIVE_STATES or not execution.attempts:
            return
        last = attempt_id(execution.id, execution.attempts[-1].number)
        started = last in self._starts
        if execution.state is ExecutionState.SUCCEEDED and not started:
            self.violate(f"{last} succeeded without having been started")
        if execution.state is ExecutionState.REVOKED and started:
            self.violate(f"{last} is revoked, but it was started")

    # -- replicas that come and go -------------------------------------------------------------

    def add_node(self) -> Node:
        """Another replica, without data, which nobody knows yet."""
        name = f"replica-{self._made}"
        self._made += 1
        node = Node(self, name, self._text, self._directory / name)
        node._bootstrap = False
        self.nodes.append(node)
        self.ledger.machines[name] = node.machine
        self._by_name[name] = node
        self._names.append(name)
        node.boot()
        return node

    @property
    def has_room(self) -> bool:
        """Whether there may be another one."""
        return self._made < MACHINES_MAX

    def retire(self, node: Node) -> None:
        """It has noticed that it was removed."""
        self.note(f"{node.name} was removed, and ends")
        if node.is_old:
            return
        for members in self.lists():
            listed = members.find(node.name)
            if listed is not None and node.is_replaced(members, listed.incarnation):
                return
        node.retired = True
        self.retired.append(node.name)
        self.nodes.remove(node)
        self._names.remove(node.name)

    def lists(self) -> list[Members]:
        """The last list of every replica that is up, and the last that is committed."""
        found = [node.replica._journal.members for node in self.nodes if node.replica is not None]
        return [*found, self.ledger.lists[max(self.ledger.lists)]]

    def attempt_started(self, host: str, attempt: str, started_ns: int) -> None:
        """See executors.Watcher."""
        self.note(f"{host} starts {attempt}")
        if attempt in self._starts:
            self.violate(f"{attempt} starts on {host}, after {self._starts[attempt]}")
        if attempt in self._stops:
            self.violate(f"{attempt} starts on {host}, which has heard its stop")
        self._starts[attempt] = host
        self._started_ns[attempt] = started_ns
        identity, number = split_attempt_id(attempt) or (b"", 0)
        execution = self.ledger.executions.get(identity)
        if execution is None or len(execution.attempts) < number:
            self.violate(f"{attempt} starts, but it was never committed")
        elif execution.attempts[number - 1].executor != host:
            self.violate(f"{attempt} starts on {host}: {execution.attempts}")
        elif execution.state not in ACTIVE_STATES or number < len(execution.attempts):
            self.violate(f"{attempt} starts after its end was committed: {execution.state.name}")
        elif number > 1 and self.ledger.spec(execution).at_most_once:
            earlier = [n for n in range(1, number) if attempt_id(identity, n) in self._starts]
            if earlier:
                self.violate(f"{attempt} starts again, and its job is at most once: {earlier}")

    def stop_heard(self, attempt: str) -> None:
        """See executors.Watcher."""
        self._stops.add(attempt)

    def host_failed(self, host: str, why: str) -> None:
        """See executors.Watcher."""
        self.violate(f"{host} failed: {why}")

    def attempt_acknowledged(self, host: str, attempt: str) -> None:
        """See executors.Watcher."""
        identity, number = split_attempt_id(attempt) or (b"", 0)
        execution = self.ledger.executions.get(identity)
        ended = execution is not None and (
            execution.state not in ACTIVE_STATES or execution.attempts[number - 1].ended_ns > 0
        )
        if not ended:
            self.violate(f"the end of {attempt} is acknowledged, but not committed")

    # -- the course of it ----------------------------------------------------------------------

    async def run(self, fault_s: float) -> None:
        """Faults, healing, settling, the last checks."""
        for node in self.nodes:
            node.boot()
        for host in self.hosts:
            host.boot()
        working = [caller.process.spawn(caller.run()) for caller in self.callers]
        for watch in self.watches:
            watch.process.spawn(watch.run())
        course = asyncio.create_task(self._course(fault_s, working))
        await asyncio.wait((course, self._violated), return_when=asyncio.FIRST_COMPLETED)
        if course.done():
            course.result()
        for error in self._loop.errors:
            self.violate(f"an error that nobody took: {error}")
        self._count()

    async def _course(self, fault_s: float, working: list[asyncio.Task[Any]]) -> None:
        faulting = asyncio.create_task(self.faults.run())
        await asyncio.sleep(fault_s)
        faulting.cancel()
        await asyncio.gather(faulting, return_exceptions=True)
        self.heal()
        for caller in self.callers:
            caller.stopping = True
        settle_s = SETTLE_S * self.pace.stretch
        until_s, entries, fewest = 0.0, 0, math.inf
        while not self._is_settled(working, entries):
            entries, old = max(self.ledger.entries), len(self._old())
            if old < fewest:  # what waits may be more than the executors can do in that time
                fewest, until_s = old, self._loop.time() + settle_s
            if self._loop.time() > until_s:
                self.violate(f"not settled {settle_s:g} s after progress: {self._unsettled()}")
                return
            await asyncio.sleep(0.5 * self.pace.stretch)
        for task in working:
            task.result()
        reading = [client.process.spawn(client.read_everything()) for client in self.clients]
        await asyncio.gather(*reading)
        self.note("settled")
        now_ms = self._now_ms()
        self.ledger.fires.check_settled(now_ms - SETTLED_LAG_MS)
        self.ledger.audit()
        self.ledger.check_pins()
        committed = self.ledger.lists[max(self.ledger.lists)]
        for name in self.retired:
            if committed.find(name) is not None:
                self.violate(f"{name} has ended as if removed, and is in {committed}")
        for client in self.clients:
            for identity in client.acknowledged():
                if identity not in self.ledger.executions:
                    self.violate(f"{client.name} was told of {identity.hex()}, which is not there")

    def heal(self) -> None:
        """No more faults, and those that were are over."""
        self.note("everything heals")
        self.healing = True
        self._healed_ms = self._now_ms()
        self.network.calm()
        self.network.mend_all()
        for node in self.nodes:
            node.machine.flush_s, node.machine.flush_fails = FLUSH_S, False
            node.machine.points_left, node.machine.is_full = 0, False
            for other in self.nodes:
                if node is not other and node.transport is not None:
                    node.transport.handle_connected(other.name)
        for host in self.hosts:
            if host.is_lost:  # and restarted with what its operator knows
                host.kill()
        for machine in [each.machine for each in (*self.nodes, *self.hosts)]:
            machine.set_clock(0.0)
            self._boot(machine)

    def _is_settled(self, working: list[asyncio.Task[Any]], entries: int) -> bool:
        """entries: the last one, as of some while ago."""
        now_ms = self._now_ms()
        listed = self.ledger.lists[max(self.ledger.lists)].ids
        applied = {
            node.replica.applied_index
            for node in self.nodes
            if node.replica is not None and node.name in listed
        }
        return (
            all(task.done() for task in working)
            and not self._old()
            and not any(watch.is_behind(entries) for watch in self.watches)
            and len(applied) == 1
            and not self.ledger.is_pinning
            and self._is_whole()
            and any(node.leads for node in self.nodes)
            and not any(self._pending_fires(now_ms - SETTLED_LAG_MS))
        )

    def _is_whole(self) -> bool:
        """Whoever is in the last list is up and a voter; whoever was removed has noticed."""
        committed = self.ledger.lists[max(self.ledger.lists)]
        ever = {name for members in self.ledger.lists.values() for name in members.voters}
        up = {node.name for node in self.nodes if node.replica is not None}
        # Whose disk was lost does not know that it was removed: it waits for another addition.
        voters = {node.name for node in self.nodes if node.is_voter and node.name in ever}
        left = voters - committed.voters
        return (
            set(committed.ids) <= up
            and not committed.learners
            and not left
            and all(
                node.replica._journal.members.number <= committed.number
                for node in self.nodes
                # Whose addition was lost with a leader waits for another one.
                if node.replica is not None and node.name in committed.ids
            )
        )

    def _old(self) -> list[Execution]:
        """Executions that were due before everything healed, and have not ended."""
        return [e for e in self.ledger.active() if e.due_ms < self._healed_ms]

    def _now_ms(self) -> int:
        """True time."""
        return START_MS + int((self._loop.time() - 1000) * 1000)

    def _pending_fires(self, until_ms: int) -> list[str]:
        found: list[str] = []
        fires = self.ledger.fires
        violate, fires.violate = fires.violate, found.append
        fires.check_settled(until_ms)
        fires.violate = violate
        return found

    def _unsettled(self) -> str:
        leaders = [node.name for node in self.nodes if node.leads]
        members = self.ledger.lists[max(self.ledger.lists)]
        applied = [node.replica and node.replica.applied_index for node in self.nodes]
        fires = self._pending_fires(self._now_ms() - SETTLED_LAG_MS)
        behind = [w.name for w in self.watches if w.is_behind(max(self.ledger.entries))]
        return (
            f"{members}, {self.lists()}, leaders {leaders},"
            f" applied {applied}, not ended {self._old()[:2]},"
            f" fires {fires[:3]}, behind {behind}"
        )

    def _count(self) -> None:
        fires, report = self.ledger.fires, self.report
        report.counts = {
            "entries": len(self.ledger.entries),
            "lists": len(self.ledger.lists) - 1,
            "retired": len(self.retired),
            "fires": len(fires.made),
            "missed": fires.missed,
            "dropped_history": int(self.ledger.state.meta.history_from > 0),
            "purged": len(self.ledger.purged),
            "late": fires.late,
            "dropped": fires.dropped,
            "again": fires.again,
            "braked": fires.braked,
            "pinned": sum(almanac.changed for almanac in self.almanacs),
            "audited": self.ledger.audited,
            "backups": sum(operator.looked_into for operator in self.operators),
            "faults": self.faults.made,
            "executions": len(self.ledger.executions),
            "starts": len(self._starts),
            "calls": sum(client.done for client in self.clients),
            "told": sum(watch.told for watch in self.watches),
            "resumed": sum(watch.resumed for watch in self.watches),
            "unknown": sum(client.unknown for client in self.clients),
        }
        report.steps = self._loop.steps
        report.virtual_s = self._loop.time() - 1000
        report.trace_hash = self._hash.hexdigest()


@contextmanager
def silent() -> Iterator[None]:
    """No log lines: faults are what a simulation is about. Other tests may read theirs again."""
    loggers = [logging.getLogger(name) for name in ("tickmesh", "pysyncobj")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        with telemetry.diverted(lambda _: None):
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def run(seed: int, minutes: float, *, verbose: bool = False) -> Report:
    """One simulation: `minutes` of faults (longer at a slower pace: see pace.py), then healing."""
    began_s = time.process_time()
    memory = Path("/dev/shm")
    directory = Path(
        tempfile.mkdtemp(prefix="tickmesh-simulation-", dir=memory if memory.is_dir() else None)
    )
    worlds: list[World] = []

    limits: list[str] = []

    async def main(loop: SimulatedLoop) -> None:
        world = World(loop, seed, directory, verbose)
        worlds.append(world)
        world.note(f"small limits: {', '.join(limits)}")
        await world.run(minutes * 60 * world.pace.stretch)

    # Collection would end forgotten generators at moments that no seed decides. The one at the end
    # is of what the simulation made.
    gc.disable()
    gc.freeze()
    random.seed(f"{seed}/uplinks")  # how long they wait before they dial again
    try:
        pace = of(seed)
        with silent(), drawn(seed, pace) as limits, packaged(pace), threads(seed, pace):
            simulate(seed, main)
    finally:
        gc.unfreeze()
        gc.enable()
        shutil.rmtree(directory, ignore_errors=True)
    report = worlds[0].report
    report.cpu_s = time.process_time() - began_s
    return report
