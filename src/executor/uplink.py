"""The streams to a shard's replicas: work comes down, reports go up.

The executor attaches to every replica and works for the one that says it leads with the highest
term; what another one sends is refused. Whoever takes the lead is sent the whole inventory first,
then changes. What changed while a message was under way goes into the next one.

The lease, which the leader tells: it gives an executor up when it has not heard of it for two
leases, so an executor that has not heard of a leader for one starts nothing more until it has.
Heard of a leader is an executor whose heartbeat was answered after its inventory: by then every
stop that the leader had for it has arrived too, because a stream keeps its order. It was heard when
that heartbeat was sent: who was stopped for a while finds answers that are old.
"""

import asyncio
import contextlib
import gc
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc

from ..mesh import telemetry
from ..mesh.clock import Clock
from ..mesh.config import Tls
from ..mesh.limits import INTERNAL_MESSAGE_BYTES_MAX
from ..mesh.tls import CHANNEL_OPTIONS, channel_credentials
from ..proto.tickmesh.internal.v1 import shard_pb2, shard_pb2_grpc
from .attempts import Attempt
from .clockwork import ClockOffset, Clockwork, Reading, Steps

HEARTBEAT_S = 1.0
SILENCE_S = 3.0
"""Without a word from a replica, which answers every heartbeat: then the stream is dead."""

LEASE_S_DEFAULT = 10.0
"""Of a leader that does not tell it: one of an older version."""

REDIAL_S_MIN = 0.05
REDIAL_S_MAX = 1.0
"""Between tries, doubling: a replica that restarts is found again within a second."""

PACE_S = 0.002
"""Between two messages of changes: a message costs more than the changes in it."""

REPORTS_MAX = 1_000
"""Changes in one message: about 100 KiB."""

ASKED_MAX = 16
"""Heartbeats without an answer that are remembered: a stream ends after a few."""

INVENTORY_SLICE = 250
"""Attempts written into an inventory before others have a turn: about 2 ms."""

_OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", INTERNAL_MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", INTERNAL_MESSAGE_BYTES_MAX),
)
_Call = grpc.aio.StreamStreamCall[Any, Any]

Dial = Callable[[str], AbstractAsyncContextManager[Any]]
"""Gives the stub of a ShardService at an address."""

log = telemetry.logger(__name__)


T = TypeVar("T")


class Receiver(Protocol):
    """What takes what a shard sends: the agent."""

    def take_work(self, shard: "Shard", work: Iterable[shard_pb2.Work]) -> None:
        """Attempts to prepare and start."""
        ...

    def stop_attempt(self, stop: shard_pb2.Stop) -> None:
        """An attempt to end, or never to start."""
        ...

    def members_told(self, shard: "Shard", members: shard_pb2.ShardMembers) -> None:
        """Who belongs to the shard now: a later list than the last."""
        ...

    def pull(self, customer: str, image: str) -> None:
        """An image that will be needed soon."""
        ...

    def learn_login(self, login: shard_pb2.Login) -> None:
        """A customer's login to a registry, for what comes next."""
        ...

    def acknowledge(self, attempt_ids: Iterable[str]) -> None:
        """Ends that the shard has."""
        ...


class Shard:
    """A shard, as this executor knows it: its leader, its lease, what it has not been told."""

    def __init__(
        self,
        shard_id: str,
        receiver: Receiver,
        clock: Clock,
        clockwork: Clockwork,
    ) -> None:
        self.shard_id = shard_id
        self.receiver = receiver
        self.clock = clock
        self._clockwork = clockwork
        self._lease_ns = int(LEASE_S_DEFAULT * 1_000_000_000)
        self.attempts: dict[str, Attempt] = {}
        """Held for this shard, until their ends are acknowledged."""
        self._changed: dict[str, Attempt] = {}
        self.term = 0
        """The highest that a leader has claimed."""
        self.leading: Stream | None = None
        self._members_number = 0
        self._herds: dict[int, list[tuple[Callable[[], object], asyncio.Future[Any]]]] = {}
        """What waits for an instant of the leader's clock: what to do then, and whom to tell."""
        self._began_ns = clock.monotonic_ns()
        self.steps = Steps(clock)
        self._reading = Reading()
        self._reading_steps_ns = 0
        """Of our clock, when that was read."""
        self._heard_ns: int | None = None
        """By the monotonic clock."""
        self._heard = asyncio.Event()

    def change(self, attempt: Attempt) -> None:
        """An attempt's report is another now."""
        self._changed[attempt.id] = attempt
        if self.leading is not None:
            self.leading.wake()

    def take_changes(self) -> list[shard_pb2.AttemptReport]:
        """What the leader has not been told; at most REPORTS_MAX."""
        taken = list(self._changed)[:REPORTS_MAX]
        return [self._changed.pop(attempt_id).report() for attempt_id in taken]

    async def take_inventory(self) -> shard_pb2.Inventory:
        """Everything; what had changed is in it. What is due meanwhile is started."""
        self._changed.clear()
        inventory = shard_pb2.Inventory(term=self.term)
        told: set[str] = set()
        while new := [each for each in self.attempts.values() if each.id not in told]:
            for start in range(0, len(new), INVENTORY_SLICE):
                if start:
                    await asyncio.sleep(0)
                some = new[start : start + INVENTORY_SLICE]
                told.update(attempt.id for attempt in some)
                inventory.attempts.extend(attempt.report() for attempt in some)
        return inventory

    def led_by(self, stream: "Stream", term: int, lease_ms: int) -> bool:
        """A replica says that it leads. Whether it is believed."""
        if term < self.term:
            log.warning("an outdated leader", shard=self.shard_id, term=term, highest=self.term)
            return False
        self.term, self.leading = term, stream
        if lease_ms:
            self._lease_ns = lease_ms * 1_000_000
        return True

    def members_told(self, members: shard_pb2.ShardMembers) -> None:
        """A replica tells who belongs to the shard; the highest number counts."""
        if members.number > self._members_number:
            self._members_number = members.number
            self.receiver.members_told(self, members)

    def left_by(self, stream: "Stream") -> None:
        """A replica does not lead, or its stream has ended."""
        if self.leading is stream:
            self.leading = None

    def heard(self, reading: Reading, asked_ns: int) -> None:
        """The leader knows what is held here, and has said what it wants of it. asked_ns: when the
        heartbeat that it answers was sent, by the monotonic clock."""
        self._heard_ns = asked_ns
        self._reading, self._reading_steps_ns = reading, self.steps.look()
        self._heard.set()
        self._heard.clear()

    @property
    def reading(self) -> Reading:
        """How the leader's clock stands against ours, which may have been set since."""
        stepped_ns = self.steps.look() - self._reading_steps_ns
        if not stepped_ns:
            return self._reading
        return Reading(self._reading.offset_ns - stepped_ns, self._reading.uncertainty_ns)

    async def began_ns(self) -> int:
        """When this process began, by the leader's clock: then, or earlier."""
        while self._heard_ns is None:
            await self._heard.wait()
        reading = self.reading
        since_ns = self.clock.monotonic_ns() - self._began_ns
        return self.clock.now_ns() + reading.offset_ns + reading.uncertainty_ns - since_ns

    @property
    def in_lease(self) -> bool:
        """Whether work may be started."""
        if self._heard_ns is None:
            return False
        return self.clock.monotonic_ns() - self._heard_ns < self._lease_ns

    async def due(self, start_at_ns: int, act: Callable[[], T]) -> tuple[Reading, T]:
        """Call `act` at an instant of the leader's clock, or as soon after it as the lease is held.
        How that clock stood against ours then, and what `act` answered; raises what it raises.

        It is the clockwork that calls it, not a task that is woken: so the herd of an instant
        starts in one go, and nothing that follows from one start comes before another.
        """
        while True:
            # Both again after every wait: the estimate of the clocks gets better, the lease ends.
            reading = self.reading
            local_ns = start_at_ns - reading.offset_ns
            if self._heard_ns is None:  # nor is anything known of that clock
                await self._heard.wait()
            elif self.clock.now_ns() < local_ns:
                acted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                herd = self._herds.get(start_at_ns)
                if herd is None:
                    herd = self._herds[start_at_ns] = []
                    self._clockwork.at(local_ns, partial(self._start, start_at_ns))
                herd.append((act, acted))
                done: tuple[Reading, T] | None = await acted
                if done is not None:
                    return done
            elif not self.in_lease:
                await self._heard.wait()
            else:
                return reading, act()

    def _start(self, start_at_ns: int) -> None:
        """An instant has come; or our clock was set, and it may be further away than it was."""
        herd = self._herds.pop(start_at_ns)
        reading = self.reading
        if self.clock.now_ns() < start_at_ns - reading.offset_ns or not self.in_lease:
            for _, acted in herd:
                if not acted.done():
                    acted.set_result(None)
            return
        # All start, then all are told: to wake somebody takes as long as to start him. Nor is
        # garbage looked for in between, which takes as long as thousands of starts.
        told: list[tuple[asyncio.Future[Any], object, Exception | None]] = []
        collects = gc.isenabled()
        gc.disable()
        try:
            for act, acted in herd:
                if acted.done():
                    continue  # who waited has given up
                try:
                    told.append((acted, act(), None))
                except Exception as error:
                    told.append((acted, None, error))
        finally:
            if collects:
                gc.enable()
        for acted, answer, failure in told:
            if failure is None:
                acted.set_result((reading, answer))
            else:
                acted.set_exception(failure)


def dialler(tls: Tls) -> Dial:
    """How replicas are reached: by gRPC, as who this executor is."""

    @contextlib.asynccontextmanager
    async def dial(address: str) -> AsyncIterator[Any]:
        credentials = channel_credentials(tls)
        async with grpc.aio.secure_channel(address, credentials, _OPTIONS) as channel:
            yield shard_pb2_grpc.ShardServiceStub(channel)

    return dial


class StreamSilent(Exception):
    """A replica has not said a word for SILENCE_S."""


class Stream:
    """One replica, attached to for as long as the executor lives."""

    def __init__(
        self, shard: Shard, replica_id: str, address: str, dial: Dial, hello: shard_pb2.Hello
    ) -> None:
        self._shard = shard
        self._replica_id = replica_id
        self._address = address
        self._dial = dial
        self._hello = hello
        self._clock = shard.clock
        self._offset = ClockOffset(shard.steps)
        self._asked: deque[tuple[int, int]] = deque(maxlen=ASKED_MAX)
        """Heartbeats without an answer, which come in their order: what they told as their instant,
        and when they were sent by the monotonic clock."""
        self._wake = asyncio.Event()
        self._owes_inventory = False
        self._owes_heartbeat = False
        self._owes_offer = False
        self._confirms_ns: int | None = None
        """A heartbeat of this instant or later, by the monotonic clock, follows the inventory."""
        self._last_word_ns = 0

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    def offer(self) -> None:
        """The hello's offer is another now. Every replica is told: any of them may lead next."""
        self._owes_offer = True
        self._wake.set()

    async def run(self) -> None:
        """Attach, and attach again, until cancelled."""
        pause_s = REDIAL_S_MIN
        async with self._dial(self._address) as stub:
            while True:
                self._last_word_ns = 0
                try:
                    await self._attached(stub)
                    why = "the replica ended the stream"
                except grpc.aio.AioRpcError as error:
                    why = f"{error.code().name}: {error.details()}"
                except asyncio.InvalidStateError:  # we wrote at the moment at which it ended
                    why = "the replica ended the stream"
                except StreamSilent:
                    why = f"not a word for {SILENCE_S:g} s"
                finally:
                    self._shard.left_by(self)
                if self._last_word_ns:
                    pause_s = REDIAL_S_MIN
                    log.info("a stream has ended", replica=self._replica_id, why=why)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(REDIAL_S_MAX, pause_s * 2)

    async def _attached(self, stub: Any) -> None:
        """One stream, until it ends or is silent."""
        self._owes_inventory, self._owes_heartbeat, self._confirms_ns = False, False, None
        self._asked.clear()
        # A stream has no deadline: its heartbeats watch over it.
        call: _Call = stub.Attach(wait_for_ready=True)
        tasks = [
            asyncio.create_task(self._speak(call)),
            asyncio.create_task(self._hear(call)),
            asyncio.create_task(self._beat()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    # -- up ------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Owe a heartbeat every second, and watch over the answers."""
        heard_ns = self._clock.monotonic_ns()
        while True:
            self._owes_heartbeat = True
            self._wake.set()
            await asyncio.sleep(HEARTBEAT_S)
            heard_ns = max(heard_ns, self._last_word_ns)
            if self._clock.monotonic_ns() - heard_ns > SILENCE_S * 1_000_000_000:
                raise StreamSilent

    async def _speak(self, call: _Call) -> None:
        self._owes_offer = False
        await call.write(shard_pb2.ExecutorMessage(hello=self._hello))
        while True:
            self._wake.clear()
            if self._owes_offer:
                self._owes_offer = False
                await call.write(shard_pb2.ExecutorMessage(offer=self._hello.offer))
            if self._owes_heartbeat:
                self._owes_heartbeat = False
                await self._write_heartbeat(call)
            if await self._say_what_is_new(call):
                await asyncio.sleep(PACE_S)
            await self._wake.wait()
            # Once more around the loop: what happens in this turn goes into one message.
            await asyncio.sleep(0)

    async def _write_heartbeat(self, call: _Call) -> None:
        offset_ns, uncertainty_ns = self._offset.estimate_ns
        sent_ns = self._clock.now_ns()
        self._asked.append((sent_ns, self._clock.monotonic_ns()))
        heartbeat = shard_pb2.Heartbeat(
            sent_ns=sent_ns,
            clock_offset_ns=offset_ns,
            clock_uncertainty_ns=uncertainty_ns,
        )
        await call.write(shard_pb2.ExecutorMessage(heartbeat=heartbeat))

    async def _say_what_is_new(self, call: _Call) -> bool:
        """Whether there was something."""
        said = self._owes_inventory
        if self._owes_inventory:
            self._owes_inventory = False
            inventory = await self._shard.take_inventory()
            await call.write(shard_pb2.ExecutorMessage(inventory=inventory))
            if self._owes_inventory:  # to a later term's leader, who has begun meanwhile
                self._wake.set()
                return True
            self._confirms_ns = self._clock.monotonic_ns()
            await self._write_heartbeat(call)
        if self._shard.leading is self and (reports := self._shard.take_changes()):
            message = shard_pb2.AttemptReports(reports=reports)
            await call.write(shard_pb2.ExecutorMessage(reports=message))
            said = True
            self._wake.set()  # there may be more; a heartbeat may be owed first
        return said

    # -- down ----------------------------------------------------------------------------------

    async def _hear(self, call: _Call) -> None:
        async for message in call:
            self._last_word_ns = self._clock.monotonic_ns()
            match message.WhichOneof("message"):
                case "leadership":
                    self._heard_leadership(message.leadership)
                case "work":
                    if self._is_current(message.work.term, "work"):
                        self._shard.receiver.take_work(self._shard, message.work.work)
                case "stop":
                    if self._is_current(message.stop.term, "stop"):
                        for stop in message.stop.stops:
                            self._shard.receiver.stop_attempt(stop)
                case "acknowledgement":
                    # From a deposed leader it would mean little: that it does not know of them.
                    if self._shard.leading is self:
                        self._shard.receiver.acknowledge(message.acknowledgement.attempt_ids)
                case "login":
                    if self._shard.leading is self:
                        self._shard.receiver.learn_login(message.login)
                case "pull":
                    if self._is_current(message.pull.term, "pull"):
                        pull = message.pull
                        self._shard.receiver.pull(pull.customer, pull.image)
                case "heartbeat_reply":
                    self._heard_reply(message.heartbeat_reply)

    def _heard_leadership(self, leadership: shard_pb2.Leadership) -> None:
        if leadership.shard_id != self._shard.shard_id:
            log.error(
                "a replica of another shard: is the configuration right?",
                address=self._address,
                expected=self._shard.shard_id,
                found=leadership.shard_id,
            )
            self._shard.left_by(self)
            return
        self._shard.members_told(leadership.members)
        known = self._shard.leading is self and leadership.term == self._shard.term
        if leadership.leader and known:
            return  # it is the list of replicas that has changed
        if leadership.leader and self._shard.led_by(self, leadership.term, leadership.lease_ms):
            self._confirms_ns = None
            self._owes_inventory = True
            self._wake.set()
            log.info("a leader", replica=self._replica_id, term=leadership.term)
            return
        self._shard.left_by(self)

    def _is_current(self, term: int, what: str) -> bool:
        if self._shard.leading is self and term >= self._shard.term:
            return True
        log.warning(
            "refused: not from the leader",
            what=what,
            replica=self._replica_id,
            term=term,
            highest=self._shard.term,
        )
        return False

    def _heard_reply(self, reply: shard_pb2.HeartbeatReply) -> None:
        while self._asked:
            sent_ns, asked_ns = self._asked.popleft()
            if sent_ns == reply.sent_ns:
                break
        else:
            return  # to nothing that was asked
        took_ns, received_ns = self._clock.monotonic_ns() - asked_ns, self._clock.now_ns()
        self._offset.sample(took_ns, reply.replied_ns, received_ns)
        if self._shard.leading is not self or self._confirms_ns is None:
            return
        if asked_ns >= self._confirms_ns:
            self._shard.heard(self._offset.reading, asked_ns)
