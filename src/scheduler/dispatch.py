"""Gives attempts to executors and hears what becomes of them. A leader has one, for its term.

What is durable is in the state; here are only soft facts: who is attached, what room they have,
what they say of the attempts that they hold. All of it is rebuilt from the state and the executors'
own inventories when another replica takes the lead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

from ..mesh import names, telemetry
from ..mesh.clock import Clock
from ..mesh.errors import Overloaded
from ..mesh.limits import STATUS_MESSAGE_CHARACTERS_MAX
from ..mesh.plans import Plan
from ..proto.tickmesh.internal.v1 import shard_pb2
from .convert import image_reference, work_message
from .core.commands import (
    OUTPUT_SINCE,
    PLACEMENT_SINCE,
    UNCERTAINTY_SINCE,
    Assign,
    Cancel,
    EndAttempts,
    Outcome,
    Placement,
)
from .core.executions import total_timeout_over_ms
from .core.ids import attempt_id
from .core.model import Attempt, Execution, ExecutionState, Job, JobSpec, Reason, Timer
from .placing import Asked, Hosts, Need, No, hashed, need_of
from .proposals import Proposals
from .store.queries import Queries
from .waiting import Waiting

ASSIGN_MAX = 500
"""Waiting executions assigned in one command."""

OUTBOX_MAX = 100_000
"""Messages that wait for one executor's stream: more than it could ever hold work for."""

LEASE_CHECK_S = 1.0

SPECS_REMEMBERED_MAX = 4_096
"""Revisions of jobs, about 1 KiB each."""

ASKED_REMEMBERED_MAX = 16_384
"""Revisions of jobs, about 200 bytes each: what they ask of an executor."""

REASONS_REMEMBERED_MAX = 1_024
REASON_NS = 100_000_000
"""For so long an answer to why something waits is given again: pages of those that wait ask for
few different ones."""

UNFINISHED_PAUSE_S = 0.25
"""Between passes over more that wait than one pass looks at, while nothing else happens."""

TIMEOUT_CHECK_S = 0.25
"""Between looks at total timeouts: they are to the second."""

TAKE_UP_SLICE = 250
"""Executions that a new leader takes up, or looks for in an inventory, before others have a turn:
about 10 ms. As many more cost others as much more time, however long the whole takes."""

ENDS_MAX = 100
"""Ends in one command: about 2 ms of applying. Several share an entry."""

OVERLOADED_PAUSE_S = 0.1
"""Before asking again where the queue of commands is full: a tenth of what clearing it takes."""

_REASONS = frozenset(Reason)

Ended: TypeAlias = tuple[bytes, bytes, Attempt]
"""Job uid, execution id, and the attempt as it ended."""

log = telemetry.logger(__name__)


class Link:
    """An executor's stream."""

    def __init__(self, hello: shard_pb2.Hello) -> None:
        self.executor_id = hello.executor_id
        self.incarnation = hello.incarnation
        self.address = hello.address
        self.hello = hello
        self.slot_count = hello.slot_count
        self.runtime = hello.runtime
        self.clock_offset_ns = 0
        self.clock_uncertainty_ns = 0
        self.outbox: deque[shard_pb2.ShardMessage] = deque()
        self.ready = asyncio.Event()
        self.closed = False
        self.early: set[str] | None = set()
        """Attempts that it was sent before its inventory came, which need not have them; None:
        that has come."""

    def send(self, message: shard_pb2.ShardMessage) -> None:
        """Queue a message; a stream that takes nothing is closed, and comes back."""
        if len(self.outbox) >= OUTBOX_MAX:
            self.close()
            return
        self.outbox.append(message)
        self.ready.set()

    def close(self) -> None:
        """End the stream."""
        self.closed = True
        self.ready.set()


class Dispatcher:
    """Executors and active executions, as the leader of one term sees them. Call `take_up`
    first."""

    def __init__(
        self,
        term: int,
        queries: Queries,
        proposals: Proposals,
        clock: Clock,
        lease_ms: int,
        tell: Callable[[Execution], None],
        ahead_ms: int = 0,
        plan: Callable[[str], Plan] = lambda _: Plan(),
        login: Callable[[str, str], shard_pb2.Login | None] = lambda _customer, _image: None,
    ) -> None:
        """tell: called when a soft fact of an execution changed. ahead_ms: how long before it is
        due an attempt is given out. plan: a customer's. login: a
        customer's, for the registry of an image."""
        self._login = login
        self._plan = plan
        self._ahead_ms = ahead_ms
        self.term = term
        self._queries = queries
        self._proposals = proposals
        self._clock = clock
        self._lease_ns = lease_ms * 1_000_000
        self._tell = tell
        self._started_ns = clock.monotonic_ns()
        self.links: dict[str, Link] = {}
        self._heard_ns: dict[str, int] = {}
        self.active: dict[bytes, Execution] = {}
        """By execution id, which is unique for ever."""
        self._attempts: dict[str, bytes] = {}
        """The execution of each assigned attempt: cheaper than to read it from the attempt's id."""
        self._attempt_ids: dict[bytes, str] = {}
        """The other way."""
        self._forgotten: dict[str, list[str]] = {}
        """By executor: attempts to acknowledge, once the whole entry that ended them is seen."""
        self.hosts = Hosts(self._weight)
        self._taken: dict[bytes, Asked] = {}
        """What each assigned execution was counted with."""
        self._reserved: dict[int, tuple[Placement, Asked]] = {}
        """What is counted of placements that are being proposed, by the identity of the object."""
        self._waiting = Waiting(self._weight)
        self._asked: dict[tuple[bytes, int], Asked] = {}
        """By job uid and revision."""
        self._revisions: dict[bytes, tuple[int, Asked]] = {}
        """By job uid: its revision, as far as it was met, and what that asks."""
        self._reasons: dict[tuple[str, Need], tuple[int, str]] = {}
        self._total_timeouts: dict[bytes, int] = {}
        """When the total timeout of an active execution is over, for those that have one."""
        self._specs: dict[tuple[bytes, int], JobSpec] = {}
        self._ending: set[str] = set()
        self._losing: dict[str, set[asyncio.Future[Outcome]]] = {}
        """By executor: ends that are proposed because it was silent, and not decided yet."""
        self._unsent: set[str] = set()
        """Attempts of this term that were assigned while their executor had no stream: nobody was
        given them."""
        self.soft: dict[str, shard_pb2.AttemptReport] = {}
        self._pump_wake = asyncio.Event()

    def _weight(self, customer: str) -> int:
        return self._plan(customer).weight

    async def take_up(self) -> None:
        """Follow what is active already. Others have turns meanwhile, and what they commit is
        followed as it comes: an execution is read as it is by then, and taken up once."""
        for number, execution in enumerate(self._queries.active(), 1):
            self._take(execution)
            if number % TAKE_UP_SLICE == 0:
                await asyncio.sleep(0)

    # -- executors -----------------------------------------------------------------------------

    def attach(self, link: Link) -> None:
        """An executor's stream is open; it will send its inventory."""
        earlier = self.links.get(link.executor_id)
        if earlier is not None:
            earlier.close()
        self.links[link.executor_id] = link
        link.early = set()
        host, hello = self.hosts[link.executor_id], link.hello
        host.incarnation = hello.incarnation
        host.slot_count, host.memory_bytes = hello.slot_count, hello.memory_bytes
        host.cpu_millis, host.egress = hello.cpu_millis, hello.egress
        host.labels = frozenset(hello.labels.items())
        host.runtimes, host.capabilities = frozenset(hello.runtimes), hello.capabilities
        self.hosts.offers(host, hello.offer.draining, hello.offer.images, hello.offer.jobs)
        self.hosts.attach(host)
        self.heard(link)
        self._room()

    def detach(self, link: Link) -> None:
        """The stream has ended. What the executor holds goes on until its lease is over."""
        if self.links.get(link.executor_id) is link:
            del self.links[link.executor_id]
            self.hosts.detach(self.hosts[link.executor_id])

    def heard(self, link: Link) -> None:
        """The executor is alive."""
        self._heard_ns[link.executor_id] = self._clock.monotonic_ns()

    def offered(self, link: Link) -> None:
        """The executor offers something else (see the link's hello)."""
        if self.links.get(link.executor_id) is link:
            offer = link.hello.offer
            host = self.hosts[link.executor_id]
            self.hosts.offers(host, offer.draining, offer.images, offer.jobs)
            self._room()

    def slots(self) -> int:
        """Of all executors that are given work."""
        return self.hosts.slot_count

    def place_job(self, job: Job) -> Placement | None:
        """A place for a new execution of a job; None if it has to wait. See `release`."""
        asked = self._asked_of(job.customer, job.job_id, job.uid, job.revision, job.spec)
        self._met(job.uid, job.revision, asked)
        return self._place_new(asked, job.revision)

    def place_fire(self, timer: Timer) -> Placement | None:
        """A place for what a timer fires; None if it has to wait. See `release`."""
        known = self._revisions.get(timer.job_uid)
        if known is None:
            schedule = self._queries.schedule(timer.job_uid, timer.id.decode())
            job = None
            if schedule is not None:
                job = self._queries.job(schedule.customer, schedule.job_id)
            if job is None or job.uid != timer.job_uid:
                return None
            return self.place_job(job)
        revision, asked = known
        return self._place_new(asked, revision)

    def _place_new(self, asked: Asked, revision: int) -> Placement | None:
        if self._waiting.before(asked.customer):  # it overtakes nobody
            return None
        # An older replica knows no revision of a placement.
        placed = self._place(asked, revision if self._proposals.version >= PLACEMENT_SINCE else 0)
        return None if isinstance(placed, No) else placed

    def _place(self, asked: Asked, revision: int = 0) -> Placement | No:
        """Reserve a place until `release`."""
        host = self.hosts.place(asked)
        if isinstance(host, No):
            return host
        placement = Placement(host.executor_id, host.incarnation, revision)
        self.hosts.take(host, asked.customer, asked.need)
        self._reserved[id(placement)] = placement, asked
        return placement

    def release(self, placements: Iterable[Placement | None]) -> None:
        """The proposals that these places were reserved for have been decided."""
        for placement in placements:
            if placement is not None:
                _, asked = self._reserved.pop(id(placement))
                self.hosts.give(self.hosts[placement.executor], asked.customer, asked.need)
        if self._waiting.any_ready:
            self._room()  # what they were for may not have taken them

    def _asked_of(
        self, customer: str, job_id: str, job_uid: bytes, revision: int, spec: JobSpec
    ) -> Asked:
        key = job_uid, revision
        asked = self._asked.get(key)
        if asked is None:
            need = need_of(spec, self._plan(customer))
            image = image_reference(spec.image, customer, "image")
            asked = Asked(customer, need, hashed(image), hashed(names.job_name(customer, job_id)))
            if len(self._asked) >= ASKED_REMEMBERED_MAX:
                self._asked.clear()
            self._asked[key] = asked
        return asked

    def _asks(self, execution: Execution) -> Asked:
        """What an execution asks of an executor."""
        asked = self._asked.get((execution.job_uid, execution.revision))
        if asked is not None:
            return asked
        job_uid, revision, spec = execution.job_uid, execution.revision, self._spec(execution)
        return self._asked_of(execution.customer, execution.job_id, job_uid, revision, spec)

    def _met(self, job_uid: bytes, revision: int, asked: Asked) -> None:
        """A job's revision, as far as is known its latest."""
        if len(self._revisions) >= ASKED_REMEMBERED_MAX:
            self._revisions.clear()
        self._revisions[job_uid] = revision, asked

    def replan(self, customer: str) -> None:
        """A customer has another plan: what waits needs what that says. What was given out stays
        where it is; an executor gives back what it has no runtime for."""
        self._asked.clear()
        self._revisions.clear()
        self._waiting.forget(customer)
        for execution in self.active.values():
            if execution.customer == customer and execution.state is ExecutionState.PENDING:
                self._wait(execution)
        self._room()

    def _room(self) -> None:
        """There may be room where there was none."""
        self._waiting.look_again()
        self._pump_wake.set()

    def pending_reason(self, execution: Execution) -> str:
        """What an execution waits for, for people; "" if that is nothing or but its time."""
        if execution.state is not ExecutionState.PENDING:
            return ""
        now_ns = self._clock.now_ns()
        ready_ms = max(execution.due_ms, execution.not_before_ms) - self._ahead_ms
        if ready_ms > now_ns // 1_000_000:
            return ""
        asked = self._asks(execution)
        key = asked.customer, asked.need
        until_ns, reason = self._reasons.get(key, (0, ""))
        if until_ns < now_ns:
            reason = self.hosts.reason(*key)
            if len(self._reasons) >= REASONS_REMEMBERED_MAX:
                self._reasons.clear()
            self._reasons[key] = now_ns + REASON_NS, reason
        return reason

    # -- what was committed --------------------------------------------------------------------

    def committed(self, executions: Iterable[Execution]) -> None:
        """Executions were made or changed."""
        work: dict[str, list[shard_pb2.Work]] = {}
        stops: list[Execution] = []
        for execution in executions:
            earlier = self.active.get(execution.id)
            fresh = self._take(execution)
            if execution.state is not ExecutionState.ASSIGNED:
                continue
            attempt = execution.attempts[-1]
            if fresh:
                work.setdefault(attempt.executor, []).append(self._work(execution))
            elif execution.stop is not (earlier.stop if earlier else Reason.NONE):
                stops.append(execution)
        for executor_id, batch in work.items():
            link = self.links.get(executor_id)
            given = {each.attempt_id for each in batch}
            if link is None:
                self._unsent |= given
                continue
            if link.early is not None:
                link.early |= given
            self._send_work(link, batch)
        # After the work: one entry may assign an attempt and stop it (a catch-up that replaces).
        for execution in stops:
            self._send_stop(execution)
        if self._forgotten:
            self._acknowledge()

    def _acknowledge(self) -> None:
        for executor_id, attempts in self._forgotten.items():
            link = self.links.get(executor_id)
            if link is not None:
                acknowledgement = shard_pb2.Acknowledgement(attempt_ids=attempts)
                link.send(shard_pb2.ShardMessage(acknowledgement=acknowledgement))
        self._forgotten.clear()

    def _take(self, execution: Execution) -> bool:
        """Follow an execution's durable state; whether an attempt was newly assigned."""
        key = execution.id
        earlier = self.active.get(key)
        was_assigned = earlier is not None and earlier.state is ExecutionState.ASSIGNED
        if execution.state is ExecutionState.PENDING:
            self.active[key] = execution
            if was_assigned and earlier is not None:
                self._release(earlier)
            if earlier is None or was_assigned:
                self._wait(execution)
            if earlier is None or earlier.revision != execution.revision:
                self._note_timeout(execution)  # by the job as it says now, if it came up anew
            return False
        if execution.state is ExecutionState.ASSIGNED:
            self.active[key] = execution
            if was_assigned:
                return False
            attempt = execution.attempts[-1]
            self._taken[key] = asked = self._asks(execution)
            self.hosts.take(self.hosts[attempt.executor], asked.customer, asked.need)
            self._attempt_ids[key] = spelled = attempt_id(key, attempt.number)
            self._attempts[spelled] = key
            if earlier is None:
                self._note_timeout(execution)
            return True
        self.active.pop(key, None)
        self._total_timeouts.pop(key, None)
        if was_assigned and earlier is not None:
            self._release(earlier)
        return False

    def _wait(self, execution: Execution) -> None:
        """It waits for an executor: at once, or from when its retry may be prepared."""
        ready_ms = max(execution.due_ms, execution.not_before_ms)
        asked = self._asks(execution)
        known = self._revisions.get(execution.job_uid)
        if known is not None and known[0] < execution.revision:
            self._met(execution.job_uid, execution.revision, asked)
        self._waiting.add(ready_ms, execution.customer, asked.need, execution.id)
        self._pump_wake.set()

    def _note_timeout(self, execution: Execution) -> None:
        over_ms = total_timeout_over_ms(execution, self._spec(execution))
        self._total_timeouts.pop(execution.id, None)
        if over_ms:
            self._total_timeouts[execution.id] = over_ms

    def _spec(self, execution: Execution) -> JobSpec:
        """What an execution runs. A revision never changes, so those met lately are remembered."""
        key = (execution.job_uid, execution.revision)
        known = self._specs.get(key)
        if known is None:
            job = self._queries.job(execution.customer, execution.job_id)
            known = self._queries.spec(job, *key)
            assert known is not None, "the revision of an active execution is always kept"
            if len(self._specs) >= SPECS_REMEMBERED_MAX:
                self._specs.clear()
            self._specs[key] = known
        return known

    def _release(self, assigned: Execution) -> None:
        """The attempt has ended: its slot is free, and its executor may forget it."""
        executor_id = assigned.attempts[-1].executor
        asked = self._taken.pop(assigned.id)
        self.hosts.give(self.hosts[executor_id], asked.customer, asked.need)
        attempt = self._attempt_ids.pop(assigned.id)
        del self._attempts[attempt]
        self.soft.pop(attempt, None)
        self._ending.discard(attempt)
        self._unsent.discard(attempt)
        self._forgotten.setdefault(executor_id, []).append(attempt)
        self._room()

    def _work(self, execution: Execution) -> shard_pb2.Work:
        return work_message(execution, self._spec(execution), self._plan(execution.customer))

    def _send_work(self, link: Link, batch: list[shard_pb2.Work]) -> None:
        logins = {
            (login.customer, login.host): login
            for work in batch
            if (login := self._login(work.customer, work.image)) is not None
        }
        for login in logins.values():
            link.send(shard_pb2.ShardMessage(login=login))
        link.send(shard_pb2.ShardMessage(work=shard_pb2.WorkBatch(work=batch, term=self.term)))

    def _send_stop(self, execution: Execution) -> None:
        attempt = execution.attempts[-1]
        link = self.links.get(attempt.executor)
        if link is not None:
            # What a cancellation was for is known here; an executor carries all of them out alike.
            revoked = execution.stop is Reason.REVOKED
            reason = Reason.REVOKED if revoked else Reason.CANCELLED
            stop = shard_pb2.Stop(
                attempt_id=attempt_id(execution.id, attempt.number), reason=reason.value
            )
            batch = shard_pb2.StopBatch(stops=[stop], term=self.term)
            link.send(shard_pb2.ShardMessage(stop=batch))

    # -- what executors say --------------------------------------------------------------------

    async def inventory(self, link: Link, inventory: shard_pb2.Inventory) -> None:
        """Bring an executor and the state together. It hears of nothing else meanwhile; what is
        assigned to it from now on, it is sent."""
        if inventory.term != self.term or link.closed:
            return
        if losing := self._losing.get(link.executor_id):
            # It is answered, and may start something, when it is decided what it may not start.
            await asyncio.wait(set(losing))
            if link.closed:
                return
        held = {report.attempt_id for report in inventory.attempts}
        theirs = [
            self._attempt_ids[key]
            for key, execution in self.active.items()
            if execution.state is ExecutionState.ASSIGNED
            and execution.attempts[-1].executor == link.executor_id
        ]
        for start in range(0, len(theirs), TAKE_UP_SLICE):
            self._compare(link, theirs[start : start + TAKE_UP_SLICE], held)
            await asyncio.sleep(0)
            if link.closed:
                return
        link.early = None
        for start in range(0, len(inventory.attempts), TAKE_UP_SLICE):
            self.reports(link, inventory.attempts[start : start + TAKE_UP_SLICE])
            await asyncio.sleep(0)
            if link.closed:
                return

    def _compare(self, link: Link, theirs: list[str], held: set[str]) -> None:
        """Attempts that an executor was given, beside what it holds: see the cases in the code."""
        work: list[shard_pb2.Work] = []
        ends: list[Ended] = []
        for spelled in theirs:
            execution = self._find(spelled)
            if execution is None:
                continue  # it has ended since
            if spelled in held:
                if execution.stop:
                    self._send_stop(execution)
            elif link.early is not None and spelled in link.early:
                continue  # it is on its way, with its stop if there is one
            elif (
                execution.attempts[-1].incarnation != link.incarnation
                and spelled not in self._unsent
            ):
                # Its process was restarted since, and has not found it again: it may have run.
                lost = "the executor restarted and lost it"
                ends += self._ended(execution, Reason.EXECUTOR_LOST, lost)
            elif execution.stop:
                ends += self._ended(execution, execution.stop, "")
            else:
                # No process of it ever had it: it cannot have run. (It passes over doubles.)
                work.append(self._work(execution))
                self._unsent.discard(spelled)
        if work:
            self._send_work(link, work)
        self._submit_ends(ends)

    def reports(self, link: Link, reports: Iterable[shard_pb2.AttemptReport]) -> None:
        """Attempts changed on an executor."""
        ends: list[Ended] = []
        for report in reports:
            found = self._find(report.attempt_id)
            if found is None:
                self._unknown(link, report)
                continue
            if report.phase == shard_pb2.ATTEMPT_PHASE_ENDED:
                if report.attempt_id not in self._ending:
                    self._ending.add(report.attempt_id)
                    ended = ended_attempt(found, report, self._proposals.version)
                    ends.append((found.job_uid, found.id, ended))
            else:
                earlier = self.soft.get(report.attempt_id)
                self.soft[report.attempt_id] = report
                if report.started_ns and (earlier is None or not earlier.started_ns):
                    self._tell(found)
        self._submit_ends(ends)

    def _find(self, attempt: str) -> Execution | None:
        identity = self._attempts.get(attempt)
        return None if identity is None else self.active[identity]

    def _unknown(self, link: Link, report: shard_pb2.AttemptReport) -> None:
        """An attempt that is not active (any more): its end is history, its life must end."""
        if report.phase == shard_pb2.ATTEMPT_PHASE_ENDED:
            acknowledgement = shard_pb2.Acknowledgement(attempt_ids=[report.attempt_id])
            link.send(shard_pb2.ShardMessage(acknowledgement=acknowledgement))
        else:
            stop = shard_pb2.Stop(attempt_id=report.attempt_id, reason=Reason.CANCELLED.value)
            batch = shard_pb2.StopBatch(stops=[stop], term=self.term)
            link.send(shard_pb2.ShardMessage(stop=batch))

    def _ended(self, execution: Execution, reason: Reason, message: str) -> list[Ended]:
        """The end of an execution's attempt, of which its executor tells nothing; none if it has
        ended already."""
        attempt = execution.attempts[-1]
        key = self._attempt_ids[execution.id]
        if key in self._ending:
            return []
        self._ending.add(key)
        soft = self.soft.get(key)
        ended = Attempt(
            number=attempt.number,
            executor=attempt.executor,
            incarnation=attempt.incarnation,
            assign_ms=attempt.assign_ms,
            prepared_ns=soft.prepared_ns if soft else 0,
            started_ns=soft.started_ns if soft else 0,
            ended_ns=self._clock.now_ns(),
            reason=reason,
            message=message,
            uncertainty_ns=(
                soft.clock_uncertainty_ns
                if soft and self._proposals.version >= UNCERTAINTY_SINCE
                else 0
            ),
        )
        return [(execution.job_uid, execution.id, ended)]

    def _submit_ends(self, ends: list[Ended]) -> list[asyncio.Future[Outcome]]:
        starts = range(0, len(ends), ENDS_MAX)
        return [self._submit_some_ends(ends[start : start + ENDS_MAX]) for start in starts]

    def _submit_some_ends(self, ends: list[Ended]) -> asyncio.Future[Outcome]:
        future = self._proposals.submit(EndAttempts(ends), weight=len(ends), owed=True)

        def decided(done: asyncio.Future[Outcome]) -> None:
            if not done.cancelled() and done.exception() is not None:
                # Not committed here: the executor still has them and reports them to whoever leads.
                for _, identity, attempt in ends:
                    self._ending.discard(attempt_id(identity, attempt.number))

        future.add_done_callback(decided)
        return future

    # -- loops ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Assign what waits and watch leases, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump())
            group.create_task(self._watch_leases())
            group.create_task(self._watch_timeouts())

    async def _pump(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._until_ready_s()):
                    await self._pump_wake.wait()
            except TimeoutError:
                pass
            self._pump_wake.clear()
            while assignments := self._assignments():
                try:
                    await self._proposals.submit(Assign(assignments), weight=len(assignments))
                except Overloaded:
                    for _, key, _ in assignments:
                        if key in self.active:
                            self._wait(self.active[key])
                    await asyncio.sleep(OVERLOADED_PAUSE_S)
                finally:
                    self.release(placement for _, _, placement in assignments)
            if self._waiting.unfinished:
                await asyncio.sleep(UNFINISHED_PAUSE_S)
                self._pump_wake.set()

    def _until_ready_s(self) -> float | None:
        """How long until the next of those that wait may be prepared; None: none is waited for.

        What is ready already waits for room, which wakes us.
        """
        wake_ms = self._waiting.wake_ms()
        if wake_ms is None:
            return None
        now_ms = self._clock.now_ns() // 1_000_000
        return max(0, wake_ms - self._ahead_ms - now_ms) / 1_000

    def _assignments(self) -> list[tuple[bytes, bytes, Placement]]:
        """Who of those that wait, and are ready to be prepared, goes where, as far as there is
        room."""
        ready_ms = self._clock.now_ns() // 1_000_000 + self._ahead_ms
        return self._waiting.serve(ready_ms, ASSIGN_MAX, self._assignment)

    def _assignment(self, key: bytes) -> tuple[bytes, bytes, Placement] | No:
        execution = self.active.get(key)
        if execution is None or execution.state is not ExecutionState.PENDING:
            return No.GONE
        placed = self._place(self._asks(execution))
        return placed if isinstance(placed, No) else (execution.job_uid, key, placed)

    async def _watch_timeouts(self) -> None:
        """End what is over its job's total timeout. Soft: a new leader begins anew."""
        while True:
            await asyncio.sleep(TIMEOUT_CHECK_S)
            now_ms = self._clock.now_ns() // 1_000_000
            late = [
                (execution.job_uid, execution.id)
                for key, over_ms in list(self._total_timeouts.items())
                if over_ms <= now_ms and (execution := self.active.get(key)) is not None
            ]
            for start in range(0, len(late), ENDS_MAX):
                some = late[start : start + ENDS_MAX]
                cancel = Cancel(some, Reason.TIMEOUT)
                await self._proposals.submit(cancel, weight=len(some), owed=True)
                for _, key in some:
                    self._total_timeouts.pop(key, None)

    async def _watch_leases(self) -> None:
        looked_ns = self._clock.monotonic_ns()
        while True:
            await asyncio.sleep(LEASE_CHECK_S)
            now_ns = self._clock.monotonic_ns()
            if now_ns - looked_ns > self._lease_ns:
                # This process stood still: what executors said meanwhile is still to be read.
                self._started_ns = now_ns
            looked_ns = now_ns
            self.end_leases()

    def end_leases(self) -> None:
        """Give up what is held by executors that have been silent for too long."""
        now_ns = self._clock.monotonic_ns()
        lost: dict[str, list[Ended]] = {}
        for execution in self.active.values():
            if execution.state is not ExecutionState.ASSIGNED:
                continue
            executor_id = execution.attempts[-1].executor
            silent_ns = now_ns - max(self._heard_ns.get(executor_id, 0), self._started_ns)
            # Twice: the executor itself starts nothing more after one lease without us.
            if silent_ns > 2 * self._lease_ns:
                lost.setdefault(executor_id, []).extend(
                    self._ended(
                        execution,
                        Reason.EXECUTOR_LOST,
                        f"executor {executor_id} has not been heard of for {silent_ns / 1e9:.0f} s;"
                        " the process may or may not have run",
                    )
                )
        for executor_id, ends in lost.items():
            losing = self._losing.setdefault(executor_id, set())
            for future in self._submit_ends(ends):
                losing.add(future)
                future.add_done_callback(losing.discard)
            # Its stream may stand still as it does. It is to begin with its inventory.
            link = self.links.get(executor_id)
            if ends and link is not None:
                link.close()


def ended_attempt(execution: Execution, report: shard_pb2.AttemptReport, version: int) -> Attempt:
    """The durable record of an attempt's end, as every replica knows it in a version of entries."""
    attempt = execution.attempts[-1]
    told = version >= OUTPUT_SINCE and report.HasField("output_bytes")
    reason = Reason.INFRASTRUCTURE  # also for what only a newer executor knows
    if report.reason in _REASONS and (
        report.reason != Reason.RETURNED or version >= PLACEMENT_SINCE
    ):
        reason = Reason(report.reason)
    return Attempt(
        number=attempt.number,
        executor=attempt.executor,
        incarnation=attempt.incarnation,
        assign_ms=attempt.assign_ms,
        prepared_ns=report.prepared_ns,
        started_ns=report.started_ns,
        ended_ns=report.ended_ns,
        exit_code=report.exit_code if report.has_exit_code else -1,
        signal=report.signal,
        reason=reason,
        message=report.message[:STATUS_MESSAGE_CHARACTERS_MAX],
        peak_memory_bytes=report.peak_memory_bytes,
        cpu_ns=report.cpu_ns,
        output_bytes=report.output_bytes if told else -1,
        dropped_bytes=report.dropped_output_bytes if told else 0,
        uncertainty_ns=report.clock_uncertainty_ns if version >= UNCERTAINTY_SINCE else 0,
    )
