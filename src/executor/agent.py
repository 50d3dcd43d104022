"""The executor's agent: takes work from shards, runs it on a Runtime, reports until it is heard.

What it promises, whatever ends its process: an attempt that it accepted is started at most once,
and every end is told until the shard has it.
"""

import asyncio
import contextlib
import hashlib
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..mesh import telemetry
from ..mesh.config import ShardMembers
from ..mesh.objects import Objects
from ..proto.tickmesh.internal.v1 import shard_pb2
from ..proto.tickmesh.v1 import execution_pb2
from . import convert
from .ahead import PullAhead
from .attempts import Attempt
from .clockwork import Clockwork, Reading
from .convert import Order
from .credentials import Credentials
from .drain import DrainFile, State
from .errors import ExecutorError
from .ledger import Entry, Ledger
from .outputs import Archiver, Keeping, OutputKeeper, archived_soon
from .quiet import Quiet
from .room import Capacity, Room
from .sandbox import ATTEMPT_ID, Runtime, Sandbox, Work
from .spares import Spares
from .turns import Turns
from .uplink import Dial, Shard, Stream

ACKNOWLEDGED_MAX = 50_000
"""Ids of attempts that ended and were acknowledged, against work that is sent once more."""

EXECUTED_NS = 500_000_000
"""Work that is due within so long was executed; fires come longer ahead, and clocks differ less."""

LEADERS_NS_MAX = 1_000_000_000
"""The clocks of two leaders that follow each other differ by less."""

HELD_FACTOR = 4
"""Attempts held for each slot at most, ended ones included: a shard that sends more is wrong."""

HAND_BACK_NS = 1_000_000_000
"""A drained executor gives back what is due later than this: time to commit that, to assign it to
another one, and for that to make a sandbox."""

PATIENCE_S = 5.0
"""For so long at most what has ended waits for its turn to be removed."""

HOLDINGS_LOOK_S = 1.0
"""Between looks at what shards prefer an executor for: its spares, and less often its images."""

IMAGES_LOOKS = 5
"""Looks of which one is at the images: containerd lists them in some milliseconds."""

HOLDINGS_MAX = 4_096
"""Images told of, and jobs: 32 KiB each."""

DRAIN_FILE = "drain.json"
"""Beside the ledger."""

SHUTDOWN_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL when the executor itself ends: less than what ends it allows."""
SHUTDOWN_END_S = 4.0
"""Until every attempt has ended."""
SHUTDOWN_ACKNOWLEDGE_S = 2.0
"""Until the shards have every end; else the next process tells them."""

SHUTDOWN_ARCHIVE_S = 2.0
"""Until every output is archived; else the next process does it."""

_INFRASTRUCTURE = execution_pb2.EXECUTION_REASON_INFRASTRUCTURE
_RETURNED = execution_pb2.EXECUTION_REASON_RETURNED
_SHUT_DOWN = "the executor was shut down"
_REASONS: dict[int, str] = {
    execution_pb2.EXECUTION_REASON_CANCELLED: "it was cancelled",
    execution_pb2.EXECUTION_REASON_REVOKED: "it was revoked before it started",
    execution_pb2.EXECUTION_REASON_JOB_DELETED: "its job was deleted",
}

log = telemetry.logger(__name__)


class Place(NamedTuple):
    """A replica of a shard, and where it listens."""

    shard_id: str
    replica_id: str
    address: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What an executor says of itself."""

    executor_id: str
    address: str
    runtime: str
    capacity: Capacity
    labels: dict[str, str] = field(default_factory=dict)
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of its process: no other one has it, nor ever had."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration limits."""

    making_at_once: int = 0
    """Sandboxes made at one time: see turns.py. 0: making one costs nothing."""
    newcomers_max: int = 0
    """Beyond those, of customers that have none in the making."""
    spares_max: int = 8
    spares_memory_bytes: int = 2 * 1024**3
    keeping: Keeping = field(default_factory=Keeping)


class Agent:
    """See the module. `start`, then `run`."""

    def __init__(
        self,
        identity: Identity,
        shards: tuple[ShardMembers, ...],
        dial: Dial,
        runtime: Runtime,
        ledger_path: Path,
        clockwork: Clockwork,
        limits: Limits,
        archive: Objects | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """archive: where outputs go at the end; None: they stay. credentials: learns
        customers' logins. clockwork: is closed at the end of `run`."""
        self._credentials = credentials
        self.runtime = runtime
        self.clock = clock = clockwork.clock
        self.ledger = Ledger(ledger_path, archives=archive is not None)
        self._outputs = OutputKeeper(runtime, self.ledger, clock, limits.keeping)
        self._archiver = Archiver(runtime, self.ledger, archive) if archive is not None else None
        self._held_max = identity.capacity.slot_count * HELD_FACTOR
        self._room = Room(identity.capacity)
        self.spares = Spares(
            runtime,
            clock,
            limits.spares_max,
            limits.spares_memory_bytes,
            self._spare_turn,
        )
        self.quiet = Quiet()
        self._turns = None
        if limits.making_at_once:
            self._turns = Turns(limits.making_at_once, limits.newcomers_max, self.quiet)
        self._making: set[str] = set()
        """Attempts whose sandbox is being made."""
        self._drain_file = DrainFile(ledger_path.with_name(DRAIN_FILE))
        self._drain = State()
        self._drain_changed = asyncio.Event()
        self._clockwork = clockwork
        self._shards: dict[str, Shard] = {}
        self._dial = dial
        self._configured = {
            Place(members.shard_id, peer.replica_id, peer.address)
            for members in shards
            for peer in members.replicas
        }
        self._streams: dict[Place, Stream] = {}
        """To every replica that is configured, or in the last list of its shard."""
        self._attached: dict[Place, asyncio.Task[None]] = {}
        self._hello = shard_pb2.Hello(
            executor_id=identity.executor_id,
            address=identity.address,
            slot_count=identity.capacity.slot_count,
            memory_bytes=identity.capacity.memory_bytes,
            cpu_millis=identity.capacity.cpu_millis,
            egress=identity.capacity.egress,
            runtimes=identity.capacity.runtimes,
            capabilities=identity.capacity.capabilities,
            labels=identity.labels,
            runtime=identity.runtime,
            incarnation=identity.incarnation,
        )
        for members in shards:
            shard = Shard(members.shard_id, self, clock, clockwork)
            self._shards[members.shard_id] = shard
        self._acknowledged: OrderedDict[str, None] = OrderedDict()
        self._resumed: list[Attempt] = []
        self._lives: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup
        self._shutting_down = False
        self._ahead = PullAhead(runtime)
        self._told = asyncio.Event()
        """Set at every acknowledgement."""

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find again what an earlier process held. The runtime must have been started."""
        self._drain = await asyncio.to_thread(self._drain_file.read)
        self._hello.offer.draining = self._drain.draining
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
        for entry, attempt in zip(known, adopted, strict=True):
            order = _order(entry)
            if entry.report is not None:
                report = shard_pb2.AttemptReport.FromString(entry.report)
                self._hold(Attempt.ended(self, order, report))
            else:
                attempt = attempt or Attempt(self, order, again=True)
                self._hold(attempt)
                self._room.take(order.work)
                self._resumed.append(attempt)

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
                for place in sorted(self._configured):
                    self._attach(place)
                background = [group.create_task(self.ledger.run())]
                background.append(group.create_task(self._outputs.run()))
                if self._archiver is not None:
                    background.append(group.create_task(self._archiver.run()))
                background.append(group.create_task(self.spares.run()))
                background.append(group.create_task(self._tell_holdings()))
                background.append(group.create_task(self._ahead.run()))
                background.append(group.create_task(self._follow_drain()))
                for attempt in self._resumed:
                    self._begin(attempt)
                self._resumed.clear()
                await stop.wait()
                await self._shut_down()
                for task in (*background, *self._attached.values()):
                    task.cancel()
        finally:
            await self.ledger.close()
            self._clockwork.close()

    def _attach(self, place: Place) -> None:
        stream = Stream(
            self._shards[place.shard_id], place.replica_id, place.address, self._dial, self._hello
        )
        self._streams[place] = stream
        self._attached[place] = self._group.create_task(stream.run())

    async def _shut_down(self) -> None:
        self._shutting_down = True
        self._hello.offer.draining = True  # what comes after this process says what it was told
        self._tell_offer()
        for attempt in list(self._attempts()):
            attempt.stop(_RETURNED, f"{_SHUT_DOWN} before it started")  # nothing, if it has
            attempt.stop(_INFRASTRUCTURE, f"{_SHUT_DOWN} while it ran", SHUTDOWN_GRACE_S)
        if self._lives:
            await asyncio.wait(self._lives, timeout=SHUTDOWN_END_S)
        for task in self._lives:
            task.cancel()  # what it leaves behind, the runtime's own end removes
        try:
            async with asyncio.timeout(SHUTDOWN_ACKNOWLEDGE_S):
                while any(shard.leading for shard in self._shards.values()) and any(
                    attempt.end is not None for attempt in self._attempts()
                ):
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            log.warning("ends that no shard has heard of are told by the next process")
        if self._archiver is not None:
            await archived_soon(self._archiver, SHUTDOWN_ARCHIVE_S)

    # -- what it offers ------------------------------------------------------------------------

    async def drain(self, state: State) -> int:
        """Take nothing new, or take it again, from now on. Answers how many attempts are held.

        On disk when it returns. Raises OSError; then nothing has changed.
        """
        await asyncio.to_thread(self._drain_file.write, state)
        self._drain = state
        self._drain_changed.set()
        self._hello.offer.draining = state.draining
        self._tell_offer()
        if state.draining:
            self._hand_back()
        return sum(len(shard.attempts) for shard in self._shards.values())

    def _hand_back(self) -> None:
        """What another executor can still start on time, and what nothing was done for yet."""
        after_ns = self.clock.now_ns() + HAND_BACK_NS
        for attempt in self._attempts():
            untouched = not attempt.prepared_ns and attempt.id not in self._making
            if attempt.order.start_at_ns > after_ns or untouched:
                attempt.stop(_RETURNED, "its executor is being drained")

    async def _follow_drain(self) -> None:
        """End what still runs when a drain's time is over."""
        while True:
            self._drain_changed.clear()
            left_s = None
            if self._drain.end_ns:
                left_s = max(0.0, (self._drain.end_ns - self.clock.now_ns()) / 1_000_000_000)
            try:
                async with asyncio.timeout(left_s):
                    await self._drain_changed.wait()
            except TimeoutError:
                for attempt in list(self._attempts()):
                    attempt.stop(_INFRASTRUCTURE, "its executor was drained, and the time is over")
                await self._drain_changed.wait()

    def _tell_offer(self) -> None:
        for stream in self._streams.values():
            stream.offer()

    async def _tell_holdings(self) -> None:
        """Tell which images and spares are here, whenever they are others."""
        offer = self._hello.offer
        looks = 0
        while True:
            jobs = _hashes(self.spares.jobs)
            images = list(offer.images)
            if looks % IMAGES_LOOKS == 0:
                try:
                    images = _hashes(await self.runtime.list_images())
                except ExecutorError as error:
                    log.warning("images cannot be listed", error=str(error))
            if jobs != list(offer.jobs) or images != list(offer.images):
                offer.jobs[:], offer.images[:] = jobs, images
                self._tell_offer()
            looks += 1
            await asyncio.sleep(HOLDINGS_LOOK_S)

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
        return await self.spares.sandbox(order.work, executed, lambda: self._make(order))

    def _spare_turn(self, work: Work) -> AbstractAsyncContextManager[None]:
        """A spare takes a turn as if its customer were another one: that customer's next attempt
        does not wait for it."""
        if self._turns is None:
            return contextlib.nullcontext()
        return self._turns.turn(f"{work.customer} spares", 0)

    async def _make(self, order: Order) -> Sandbox:
        if self._turns is None:
            return await self.runtime.prepare(order.work)
        # Before its turn: a pull takes long, and is limited by itself.
        await self.runtime.ensure_image(order.work.image, order.work.customer)
        async with self._turns.turn(order.work.customer, order.start_at_ns):
            self._making.add(order.work.attempt_id)
            try:
                return await self.runtime.prepare(order.work)
            finally:
                self._making.discard(order.work.attempt_id)

    async def due(
        self, order: Order, act: Callable[[], Awaitable[int]]
    ) -> tuple[Reading, Awaitable[int]]:
        """See Host."""
        return await self._shards[order.shard_id].due(order.start_at_ns, act)

    async def was_due(self, order: Order) -> bool:
        """See Host. It was another leader then, maybe."""
        began_ns = await self._shards[order.shard_id].began_ns()
        return order.start_at_ns <= began_ns + LEADERS_NS_MAX

    @contextlib.asynccontextmanager
    async def removal(self, order: Order) -> AsyncIterator[None]:
        """See Host."""
        async with contextlib.AsyncExitStack() as held:
            if self._turns is not None and not self._shutting_down:
                turn = self._turns.turn(order.work.customer, 0, patient=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE_S):
                        await held.enter_async_context(turn)
            yield

    def changed(self, attempt: Attempt) -> None:
        """See Host."""
        if attempt.end is not None:
            self._room.give(attempt.id)
        self._shards[attempt.order.shard_id].change(attempt)
        if attempt.end is not None and self._archiver is not None:
            self._archiver.wake()

    # -- for streams: see Receiver -------------------------------------------------------------

    def members_told(self, shard: Shard, members: shard_pb2.ShardMembers) -> None:
        """See Receiver. Who is configured is attached to in any case: if everybody in the
        list is gone, they know the next one."""
        if self._shutting_down:
            return
        listed = {Place(shard.shard_id, each.replica_id, each.address) for each in members.replicas}
        for place in sorted(listed - self._streams.keys()):
            log.info("another replica", shard=shard.shard_id, replica=place.replica_id)
            self._attach(place)
        for place in [place for place in self._streams if place.shard_id == shard.shard_id]:
            if place not in listed and place not in self._configured:
                del self._streams[place]
                self._attached.pop(place).cancel()

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
            order = convert.order(message, shard.shard_id)
            attempt = Attempt(self, order, recorded)
            if refusal := self._refusal(shard, order):
                attempt.stop(_RETURNED, f"the executor did not take it: {refusal}")
            else:
                self._room.take(order.work)
            self._hold(attempt)
            self._begin(attempt)

    def _refusal(self, shard: Shard, order: Order) -> str:
        """Why an attempt is not taken; "" if it is."""
        if self._shutting_down:
            return "it is being shut down"
        if self._drain.draining:
            return "it is being drained"
        if len(shard.attempts) >= self._held_max:
            return f"it holds {len(shard.attempts)} attempts already"
        return self._room.refusal(order.work)

    def stop_attempt(self, stop: shard_pb2.Stop) -> None:
        """See Receiver."""
        attempt = self.find(stop.attempt_id)
        if attempt is None:
            log.info("a stop for an attempt that is not here", attempt=stop.attempt_id)
            return
        attempt.stop(stop.reason, _REASONS.get(stop.reason, "it was stopped"))

    def pull(self, customer: str, image: str) -> None:
        """See Receiver."""
        self._ahead.want(customer, image)

    def learn_login(self, login: shard_pb2.Login) -> None:
        """See Receiver. It is in memory alone: the ledger never has it."""
        if self._credentials is not None:
            self._credentials.learn(login.customer, login.host, login.username, login.secret)

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


def _hashes(names: Iterable[str]) -> list[int]:
    """As in Offer: sorted, and not more than HOLDINGS_MAX."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return sorted(int.from_bytes(digest, "big") for digest in digests)[:HOLDINGS_MAX]


def _order(entry: Entry) -> Order:
    return convert.order(shard_pb2.Work.FromString(entry.work), entry.shard_id)
