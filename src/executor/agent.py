"""The executor's agent: takes work from shards, runs it on a Runtime, reports until it is heard.

What it promises, whatever ends its process: an attempt that it accepted is started at most once,
and every end is told until the shard has it.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..mesh import telemetry
from ..mesh.clock import Clock
from ..mesh.config import ShardMembers, Tls
from ..mesh.objects import Objects
from ..proto.tickmesh.internal.v1 import shard_pb2
from ..proto.tickmesh.v1 import execution_pb2
from . import convert
from .attempts import Attempt
from .clockwork import Clockwork
from .convert import Order
from .ledger import Entry, Ledger
from .outputs import Archiver, Keeping, OutputKeeper, archived_soon
from .sandbox import ATTEMPT_ID, Runtime, Sandbox
from .spares import Spares
from .uplink import Shard, Stream

ACKNOWLEDGED_MAX = 50_000
"""Ids of attempts that ended and were acknowledged, against work that is sent once more."""

EXECUTED_NS = 500_000_000
"""Work that is due within so long was executed; fires come longer ahead, and clocks differ less."""

CROWDED_SHARE = 3, 4
"""Of the slots: with more of them taken, spares only stand in the way."""

HELD_FACTOR = 4
"""Attempts held for each slot at most, ended ones included: a shard that sends more is wrong."""

SHUTDOWN_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL when the executor itself ends: less than what ends it allows."""
SHUTDOWN_END_S = 4.0
"""Until every attempt has ended."""
SHUTDOWN_ACKNOWLEDGE_S = 2.0
"""Until the shards have every end; else the next process tells them."""

SHUTDOWN_ARCHIVE_S = 2.0
"""Until every output is archived; else the next process does it."""

_INFRASTRUCTURE = execution_pb2.EXECUTION_REASON_INFRASTRUCTURE
_SHUT_DOWN = "the executor was shut down"
_REASONS: dict[int, str] = {
    execution_pb2.EXECUTION_REASON_CANCELLED: "it was cancelled",
    execution_pb2.EXECUTION_REASON_REVOKED: "it was revoked before it started",
    execution_pb2.EXECUTION_REASON_JOB_DELETED: "its job was deleted",
}

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """What an executor says of itself."""

    executor_id: str
    address: str
    runtime: str
    slot_count: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration limits."""

    lease_s: float = 10.0
    spares_max: int = 8
    spares_memory_bytes: int = 2 * 1024**3
    keeping: Keeping = field(default_factory=Keeping)


class Agent:
    """See the module. `start`, then `run`."""

    def __init__(
        self,
        identity: Identity,
        shards: tuple[ShardMembers, ...],
        tls: Tls,
        runtime: Runtime,
        ledger_path: Path,
        clock: Clock,
        limits: Limits,
        archive: Objects | None = None,
    ) -> None:
        """archive: where outputs go at the end; None: they stay."""
        self.runtime = runtime
        self.clock = clock
        self.ledger = Ledger(ledger_path, archives=archive is not None)
        self._outputs = OutputKeeper(runtime, self.ledger, clock, limits.keeping)
        self._archiver = Archiver(runtime, self.ledger, archive) if archive is not None else None
        self._held_max = identity.slot_count * HELD_FACTOR
        self._slot_count = identity.slot_count
        self.spares = Spares(
            runtime, clock, limits.spares_max, limits.spares_memory_bytes, self._crowded
        )
        self._clockwork = Clockwork(clock)
        self._shards: dict[str, Shard] = {}
        self._streams: list[Stream] = []
        hello = shard_pb2.Hello(
            executor_id=identity.executor_id,
            address=identity.address,
            slot_count=identity.slot_count,
            memory_bytes=identity.memory_bytes,
            runtime=identity.runtime,
            incarnation=uuid.uuid4().hex,
        )
        for members in shards:
            shard = Shard(members.shard_id, self, clock, self._clockwork, limits.lease_s)
            self._shards[members.shard_id] = shard
            for peer in members.replicas:
                self._streams.append(Stream(shard, peer.replica_id, peer.address, tls, hello))
        self._acknowledged: OrderedDict[str, None] = OrderedDict()
        self._resumed: list[Attempt] = []
        self._lives: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup
        self._shutting_down = False
        self._told = asyncio.Event()
        """Set at every acknowledgement."""

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find again what an earlier process held. The runtime must have been started."""
        entries = await self.ledger.open()
        known = [entry for entry in entries if entry.shard_id in self._shards]
        for entry in entries:
            if entry.shard_id not in self._shards:
                log.warning(
                    "an attempt of a shard that is not configured",
                    attempt=entry.attempt_id,
                    shard=entry.shard_id,
                )
        adopted = await asyncio.gather(*(self._adopt(entry) for entry in known))
        await self.runtime.sweep(
            frozenset(attempt.id for attempt in adopted if attempt is not None)
        )
        now_ns = self.clock.now_ns()
        for entry, attempt in zip(known, adopted, strict=True):
            order = _order(entry)
            if entry.report is not None:
                report = shard_pb2.AttemptReport.FromString(entry.report)
                self._hold(Attempt.ended(self, order, report))
            elif attempt is not None:
                self._hold(attempt)
                self._resumed.append(attempt)
            elif order.start_at_ns > now_ns:
                # Not due yet, and nothing is started before it is due: so it has not run.
                await self.runtime.discard_output(entry.attempt_id)
                again = Attempt(self, order)
                self._hold(again)
                self._resumed.append(again)
            else:
                lost = Attempt(self, order)
                self._hold(lost)
                lost.stop(
                    execution_pb2.EXECUTION_REASON_EXECUTOR_LOST,
                    "the executor restarted and cannot find it again; it may or may not have run",
                )
                self._resumed.append(lost)

    async def _adopt(self, entry: Entry) -> Attempt | None:
        if entry.report is not None:
            return None
        sandbox = await self.runtime.adopt(entry.attempt_id)
        return None if sandbox is None else Attempt(self, _order(entry), sandbox=sandbox)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then end every attempt and tell it."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                background = [group.create_task(stream.run()) for stream in self._streams]
                background.append(group.create_task(self.ledger.run()))
                background.append(group.create_task(self._outputs.run()))
                if self._archiver is not None:
                    background.append(group.create_task(self._archiver.run()))
                background.append(group.create_task(self.spares.run()))
                for attempt in self._resumed:
                    self._begin(attempt)
                self._resumed.clear()
                await stop.wait()
                await self._shut_down()
                for task in background:
                    task.cancel()
        finally:
            await self.ledger.close()
            self._clockwork.close()

    async def _shut_down(self) -> None:
        self._shutting_down = True
        for attempt in list(self._attempts()):
            when = "while it ran" if attempt.started_ns else "before it started"
            attempt.stop(_INFRASTRUCTURE, f"{_SHUT_DOWN} {when}", SHUTDOWN_GRACE_S)
        if self._lives:
            await asyncio.wait(self._lives, timeout=SHUTDOWN_END_S)
        for task in self._lives:
            task.cancel()  # what it leaves behind, the runtime's own end removes
        deadline = time.monotonic() + SHUTDOWN_ACKNOWLEDGE_S
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                while any(shard.leading for shard in self._shards.values()) and any(
                    attempt.end is not None for attempt in self._attempts()
                ):
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            log.warning("ends that no shard has heard of are told by the next process")
        if self._archiver is not None:
            await archived_soon(self._archiver, SHUTDOWN_ARCHIVE_S)

    # -- attempts ------------------------------------------------------------------------------

    def find(self, attempt_id: str) -> Attempt | None:
        """An attempt that is held: until its end is acknowledged."""
        for shard in self._shards.values():
            if attempt_id in shard.attempts:
                return shard.attempts[attempt_id]
        return None

    def _attempts(self) -> Iterable[Attempt]:
        for shard in self._shards.values():
            yield from shard.attempts.values()

    def _crowded(self) -> bool:
        taken = sum(attempt.end is None for attempt in self._attempts())
        numerator, denominator = CROWDED_SHARE
        return taken * denominator > self._slot_count * numerator

    def _hold(self, attempt: Attempt) -> None:
        self._shards[attempt.order.shard_id].attempts[attempt.id] = attempt

    def _begin(self, attempt: Attempt) -> None:
        task = self._group.create_task(attempt.run())
        self._lives.add(task)
        task.add_done_callback(self._lives.discard)

    # -- for attempts: see Host ----------------------------------------------------------------

    async def sandbox(self, order: Order) -> Sandbox:
        """See Host."""
        executed = order.start_at_ns < self.clock.now_ns() + EXECUTED_NS
        return await self.spares.sandbox(order.work, executed)

    async def due(self, order: Order) -> None:
        """See Host."""
        await self._shards[order.shard_id].due(order.start_at_ns)

    def changed(self, attempt: Attempt) -> None:
        """See Host."""
        self._shards[attempt.order.shard_id].change(attempt)
        if attempt.end is not None and self._archiver is not None:
            self._archiver.wake()

    # -- for streams: see Receiver -------------------------------------------------------------

    def take_work(self, shard: Shard, work: Iterable[shard_pb2.Work]) -> None:
        """See Receiver. Work that is known already is passed over, however often it comes."""
        for message in work:
            attempt_id = message.attempt_id
            if attempt_id in self._acknowledged:
                continue
            if not ATTEMPT_ID.fullmatch(attempt_id):  # it would become part of a path
                log.error("refused: no attempt's id", shard=shard.shard_id, attempt=attempt_id)
                continue
            known = shard.attempts.get(attempt_id)
            if known is not None:
                if known.end is not None:
                    shard.change(known)  # it seems not to have been heard
                continue
            recorded = self.ledger.accept(attempt_id, shard.shard_id, message.SerializeToString())
            attempt = Attempt(self, convert.order(message, shard.shard_id), recorded)
            if self._shutting_down:
                attempt.stop(_INFRASTRUCTURE, f"{_SHUT_DOWN} before it started")
            elif len(shard.attempts) >= self._held_max:
                attempt.stop(
                    _INFRASTRUCTURE, f"the executor holds {len(shard.attempts)} attempts already"
                )
            self._hold(attempt)
            self._begin(attempt)

    def stop_attempt(self, stop: shard_pb2.Stop) -> None:
        """See Receiver."""
        attempt = self.find(stop.attempt_id)
        if attempt is None:
            log.info("a stop for an attempt that is not here", attempt=stop.attempt_id)
            return
        attempt.stop(stop.reason, _REASONS.get(stop.reason, "it was stopped"))

    def acknowledge(self, attempt_ids: Iterable[str]) -> None:
        """See Receiver."""
        for attempt_id in attempt_ids:
            attempt = self.find(attempt_id)
            if attempt is None:
                continue
            if attempt.end is None:
                # The shard gave it up (its lease ended): what it still does matters to nobody.
                attempt.stop(execution_pb2.EXECUTION_REASON_CANCELLED, "its shard gave it up")
                continue
            del self._shards[attempt.order.shard_id].attempts[attempt_id]
            self._acknowledged[attempt_id] = None
            if len(self._acknowledged) > ACKNOWLEDGED_MAX:
                self._acknowledged.popitem(last=False)
            self.ledger.forget(attempt_id)
        self._told.set()


def _order(entry: Entry) -> Order:
    return convert.order(shard_pb2.Work.FromString(entry.work), entry.shard_id)
