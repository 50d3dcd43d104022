"""Gives attempts to executors and hears what becomes of them. A leader has one, for its term.

What is durable is in the state; here are only soft facts: who is attached, what room they have,
what they say of the attempts that they hold. All of it is rebuilt from the state and the executors'
own inventories when another replica takes the lead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from ..mesh import telemetry
from ..mesh.clock import Clock
from ..mesh.errors import Overloaded
from ..mesh.limits import STATUS_MESSAGE_CHARACTERS_MAX
from ..proto.tickmesh.internal.v1 import shard_pb2
from .convert import work_message
from .core.commands import OUTPUT_SINCE, Assign, Cancel, EndAttempts, Outcome, Placement
from .core.ids import attempt_id
from .core.model import Attempt, Execution, ExecutionState, JobSpec, Reason
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

TIMEOUT_CHECK_S = 0.25
"""Between looks at total timeouts: they are to the second."""

OVERLOADED_PAUSE_S = 0.1
"""Before asking again where the queue of commands is full: a tenth of what clearing it takes."""

log = telemetry.logger(__name__)


class Link:
    """An executor's stream."""

    def __init__(self, hello: shard_pb2.Hello) -> None:
        self.executor_id = hello.executor_id
        self.incarnation = hello.incarnation
        self.address = hello.address
        self.slot_count = hello.slot_count
        self.runtime = hello.runtime
        self.clock_offset_ns = 0
        self.clock_uncertainty_ns = 0
        self.outbox: deque[shard_pb2.ShardMessage] = deque()
        self.ready = asyncio.Event()
        self.closed = False

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
    """Executors and active executions, as the leader of one term sees them."""

    def __init__(
        self,
        term: int,
        queries: Queries,
        proposals: Proposals,
        clock: Clock,
        lease_ms: int,
        tell: Callable[[Execution], None],
        ahead_ms: int = 0,
    ) -> None:
        """tell: called when a soft fact of an execution changed. ahead_ms: how long before it is
        due an attempt is given out."""
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
        self._used: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._waiting = Waiting()
        self._total_timeouts: dict[bytes, int] = {}
        """When the total timeout of an active execution is over, for those that have one."""
        self._specs: dict[tuple[bytes, int], JobSpec] = {}
        self._ending: set[str] = set()
        self.soft: dict[str, shard_pb2.AttemptReport] = {}
        self._pump_wake = asyncio.Event()
        for execution in queries.active():
            self._take(execution)

    # -- executors -----------------------------------------------------------------------------

    def attach(self, link: Link) -> None:
        """An executor's stream is open; it will send its inventory."""
        earlier = self.links.get(link.executor_id)
        if earlier is not None:
            earlier.close()
        self.links[link.executor_id] = link
        self.heard(link)

    def detach(self, link: Link) -> None:
        """The stream has ended. What the executor holds goes on until its lease is over."""
        if self.links.get(link.executor_id) is link:
            del self.links[link.executor_id]

    def heard(self, link: Link) -> None:
        """The executor is alive."""
        self._heard_ns[link.executor_id] = self._clock.monotonic_ns()

    def slots(self) -> int:
        """Of all executors that are attached."""
        return sum(link.slot_count for link in self.links.values())

    def used(self, executor_id: str) -> int:
        """Slots taken."""
        return self._used.get(executor_id, 0)

    def place_new(self) -> Placement | None:
        """As `place`, for what has not waited yet: it does not overtake those that have."""
        return None if self._waiting.anybody else self.place()

    def place(self) -> Placement | None:
        """Reserve a slot where there is most room; None if there is none. See `release`."""
        best: Link | None = None
        best_free = 0
        for link in self.links.values():
            free = link.slot_count - self.used(link.executor_id)
            free -= self._reserved.get(link.executor_id, 0)
            if free > best_free:
                best, best_free = link, free
        if best is None:
            return None
        self._reserved[best.executor_id] = self._reserved.get(best.executor_id, 0) + 1
        return Placement(best.executor_id, best.incarnation)

    def release(self, placements: Iterable[Placement | None]) -> None:
        """The proposals that these slots were reserved for have been decided."""
        for placement in placements:
            if placement is not None:
                self._reserved[placement.executor] -= 1

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
            if link is not None:
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
            if earlier is None:
                self._note_timeout(execution)
            return False
        if execution.state is ExecutionState.ASSIGNED:
            self.active[key] = execution
            if was_assigned:
                return False
            attempt = execution.attempts[-1]
            self._used[attempt.executor] = self.used(attempt.executor) + 1
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
        self._waiting.add(ready_ms, execution.customer, execution.id)
        self._pump_wake.set()

    def _note_timeout(self, execution: Execution) -> None:
        total_ms = self._spec(execution).total_timeout_ms
        if total_ms:
            self._total_timeouts[execution.id] = execution.due_ms + total_ms

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
        self._used[executor_id] -= 1
        attempt = self._attempt_ids.pop(assigned.id)
        del self._attempts[attempt]
        self.soft.pop(attempt, None)
        self._ending.discard(attempt)
        self._forgotten.setdefault(executor_id, []).append(attempt)
        self._pump_wake.set()

    def _work(self, execution: Execution) -> shard_pb2.Work:
        return work_message(execution, self._spec(execution))

    def _send_work(self, link: Link, batch: list[shard_pb2.Work]) -> None:
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

    def inventory(self, link: Link, inventory: shard_pb2.Inventory) -> None:
        """Bring an executor and the state together: see the cases in the code."""
        if inventory.term != self.term:
            return
        held = {report.attempt_id: report for report in inventory.attempts}
        work: list[shard_pb2.Work] = []
        for execution in list(self.active.values()):
            if execution.state is not ExecutionState.ASSIGNED:
                continue
            attempt = execution.attempts[-1]
            if attempt.executor != link.executor_id:
                continue
            if attempt_id(execution.id, attempt.number) in held:
                if execution.stop:
                    self._send_stop(execution)
            elif attempt.incarnation != link.incarnation:
                # Its process was restarted since, and has not found it again: it may have run.
                self._end(execution, Reason.EXECUTOR_LOST, "the executor restarted and lost it")
            elif execution.stop:
                self._end(execution, execution.stop, "")
            else:
                # The same process never had it: it cannot have run. (It passes over doubles.)
                work.append(self._work(execution))
        if work:
            self._send_work(link, work)
        self.reports(link, inventory.attempts)

    def reports(self, link: Link, reports: Iterable[shard_pb2.AttemptReport]) -> None:
        """Attempts changed on an executor."""
        ends: list[tuple[bytes, bytes, Attempt]] = []
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
        if ends:
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

    def _end(self, execution: Execution, reason: Reason, message: str) -> None:
        attempt = execution.attempts[-1]
        key = attempt_id(execution.id, attempt.number)
        if key in self._ending:
            return
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
        )
        self._submit_ends([(execution.job_uid, execution.id, ended)])

    def _submit_ends(self, ends: list[tuple[bytes, bytes, Attempt]]) -> None:
        future = self._proposals.submit(EndAttempts(ends), weight=len(ends), owed=True)

        def decided(done: asyncio.Future[Outcome]) -> None:
            if not done.cancelled() and done.exception() is not None:
                # Not committed here: the executor still has them and reports them to whoever leads.
                for _, identity, attempt in ends:
                    self._ending.discard(attempt_id(identity, attempt.number))

        future.add_done_callback(decided)

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
        assignments: list[tuple[bytes, bytes, Placement]] = []
        while len(assignments) < ASSIGN_MAX:
            key = self._waiting.first(ready_ms)
            if key is None:
                break
            execution = self.active.get(key)
            if execution is None or execution.state is not ExecutionState.PENDING:
                self._waiting.pop()
                continue
            placement = self.place()
            if placement is None:
                break
            self._waiting.pop()
            assignments.append((execution.job_uid, key, placement))
        return assignments

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
            if late:
                cancel = Cancel(late, Reason.TIMEOUT)
                await self._proposals.submit(cancel, weight=len(late), owed=True)
                for _, key in late:
                    self._total_timeouts.pop(key, None)

    async def _watch_leases(self) -> None:
        while True:
            await asyncio.sleep(LEASE_CHECK_S)
            now_ns = self._clock.monotonic_ns()
            for execution in list(self.active.values()):
                if execution.state is not ExecutionState.ASSIGNED:
                    continue
                executor_id = execution.attempts[-1].executor
                heard_ns = self._heard_ns.get(executor_id, self._started_ns)
                # Twice: the executor itself starts nothing more after one lease without us.
                if now_ns - heard_ns > 2 * self._lease_ns:
                    self._end(
                        execution,
                        Reason.EXECUTOR_LOST,
                        f"executor {executor_id} has not been heard of for "
                        f"{(now_ns - heard_ns) / 1e9:.0f} s; the process may or may not have run",
                    )


def ended_attempt(execution: Execution, report: shard_pb2.AttemptReport, version: int) -> Attempt:
    """The durable record of an attempt's end, as every replica knows it in a version of entries."""
    attempt = execution.attempts[-1]
    told = version >= OUTPUT_SINCE and report.HasField("output_bytes")
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
        reason=Reason(report.reason),
        message=report.message[:STATUS_MESSAGE_CHARACTERS_MAX],
        peak_memory_bytes=report.peak_memory_bytes,
        cpu_ns=report.cpu_ns,
        output_bytes=report.output_bytes if told else -1,
        dropped_bytes=report.dropped_output_bytes if told else 0,
    )
