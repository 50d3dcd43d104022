"""One replica of a shard: the state, the Raft replica, and, while it leads, timers and dispatch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from ..mesh import telemetry
from ..mesh.clock import Clock
from ..mesh.errors import Overloaded
from ..mesh.plans import Plan
from ..proto.tickmesh.internal.v1 import shard_pb2
from .ahead import Ahead
from .core.calendars import PINNED_MAX
from .core.commands import (
    AnyCommand,
    DropHistory,
    DueFire,
    Fire,
    Outcome,
    PinSchedules,
    PinZones,
    Placement,
)
from .core.history import period
from .core.ids import attempt_id
from .core.model import Customer, Execution, Job, Timer, TimerKind
from .dispatch import OVERLOADED_PAUSE_S, Dispatcher
from .logins import Logins
from .plans import Plans
from .proposals import Proposals
from .raft.errors import RaftError
from .raft.replica import Replica
from .retention import Retention
from .secrets import Secrets
from .store.queries import Queries
from .store.state import Applied, State
from .timers import Window
from .watch import RESIGNED, Change, Changes

FIRE_MAX = 100
"""Timers in one command: about 4 ms of applying. Several share an entry, as far as the machine can
bear it (see proposals)."""

FIRES_PROPOSED_MAX = 20
"""Such commands that wait for their commit: what two entries hold."""

FORGET_INTERVAL_S = 60.0
"""Between looks for history that is over: it is dropped by the day."""

PIN_INTERVAL_S = 2.0
"""Between looks for changed calendars that schedules do not follow yet: their change was cut off,
by the loss of a leader or by a caller's deadline."""

PIN_MAX = 100
"""Such calendars looked at together."""

RUN_MS_MAX = 2 * 86_400_000
"""An execution has ended so long after its due time: a day of running, and waiting before."""

log = telemetry.logger(__name__)


class Shard:
    """What the service stands on. `leading` is the dispatcher of this replica's term, or None."""

    def __init__(
        self,
        state: State,
        clock: Clock,
        *,
        arm_ahead_ms: int,
        executor_lease_ms: int,
        retention_ms: int,
        plans: Mapping[str, Plan] | None = None,
        secrets: Secrets | None = None,
    ) -> None:
        """Call `bind` with the replica before anything else. plans: those that are configured.
        secrets: with the keys of customers' secrets."""
        self.retention_ms = retention_ms
        """How long all history is kept."""
        self.state = state
        self.queries = Queries(state.backend)
        self.plans = Plans(self.queries, plans or {})
        """Of the customers, as this replica sees them when it leads."""
        self.secrets = secrets or Secrets(())
        self._logins = Logins(self.queries, self.secrets).of
        self.changes = Changes()
        self.leading: Dispatcher | None = None
        self._following: Dispatcher | None = None
        """It already hears of what is committed, and may not be ready to lead yet."""
        self._clock = clock
        self._arm_ahead_ms = arm_ahead_ms
        self._lease_ms = executor_lease_ms
        self._window: Window | None = None
        self._ahead: Ahead | None = None
        self._timer_wake = asyncio.Event()
        self._term: int | None = None
        self._term_wake = asyncio.Event()
        self._watchers: list[Callable[[], None]] = []

    def bind(self, replica: Replica) -> None:
        """The replica that applies to our state."""
        self.replica = replica
        self.proposals = Proposals(replica, self.state, self._clock)
        replica.subscribe(self._leadership)

    def now_ms(self) -> int:
        """The time at which a command that is proposed now would happen."""
        return max(self._clock.now_ns() // 1_000_000, self.state.meta.time_ms)

    def on_leadership(self, callback: Callable[[], None]) -> None:
        """Call back whenever `leading` has changed."""
        self._watchers.append(callback)

    def observe(self, applied: Applied) -> None:
        """An entry was applied to the state: called by it, on leaders and followers."""
        if self._window is not None:
            self._window.add(applied.timers)
            self._timer_wake.set()
        if self._ahead is not None:
            self._ahead.note(applied.timers)
        for outcome in applied.outcomes:
            if isinstance(outcome, list) and outcome and isinstance(outcome[0], Customer):
                self._follow_plan(outcome[0])
        if self._following is not None:
            self._following.committed(applied.executions)
        self.changes.note(applied.index, applied.executions)

    def _follow_plan(self, customer: Customer) -> None:
        if self.plans.changed(customer) and self._following is not None:
            self._following.replan(customer.customer)

    def soft(self, execution: Execution) -> shard_pb2.AttemptReport | None:
        """What the executor says of an execution's last attempt."""
        if self.leading is None or not execution.attempts:
            return None
        last = attempt_id(execution.id, execution.attempts[-1].number)
        return self.leading.soft.get(last)

    def pending_reason(self, execution: Execution) -> str:
        """What an execution that is PENDING waits for, as its leader sees it."""
        return "" if self.leading is None else self.leading.pending_reason(execution)

    def place(self, job: Job | None) -> Placement | None:
        """Reserve a place for an execution that is about to be proposed; `release` it after. None
        for a job that is not there: the proposal will be refused."""
        if self.leading is None or job is None:
            return None
        return self.leading.place_job(job)

    def release(self, placements: Iterable[Placement | None]) -> None:
        """What was reserved is not proposed after all."""
        if self.leading is not None:
            self.leading.release(placements)

    @property
    def lease_ms(self) -> int:
        """Of executors."""
        return self._lease_ms

    # -- leading -------------------------------------------------------------------------------

    def _leadership(self, term: int | None) -> None:
        self._term = term
        self._term_wake.set()

    async def run(self) -> None:
        """Lead whenever the replica does, until cancelled or the replica has failed."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.proposals.run())
            group.create_task(self._lead_when_asked())

    async def _lead_when_asked(self) -> None:
        while True:
            await self._term_wake.wait()
            self._term_wake.clear()
            term = self._term
            if term is None:
                continue
            leading = asyncio.create_task(self._lead(term))
            ended = asyncio.create_task(self._term_wake.wait())
            try:
                await asyncio.wait((leading, ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                leading.cancel()
                results = await asyncio.gather(leading, return_exceptions=True)
                self._resign()
            error = results[0]
            if isinstance(error, BaseExceptionGroup):
                _, other = error.split((RaftError, asyncio.CancelledError))
                if other is not None:
                    raise other
            elif isinstance(error, Exception) and not isinstance(error, RaftError):
                raise error
            if isinstance(error, BaseException) and self._term == term:
                # A proposal failed, but the term goes on: begin it again from the state.
                self._term_wake.set()

    def _resign(self) -> None:
        if self.leading is not None:
            for link in list(self.leading.links.values()):
                link.close()
        self.leading = self._following = None
        self._window = None
        self._ahead = None
        self.changes.close_all(RESIGNED)
        for watcher in self._watchers:
            watcher()

    async def _lead(self, term: int) -> None:
        self.plans.clear()  # a snapshot may have replaced the state since
        dispatcher = self._following = Dispatcher(
            term,
            self.queries,
            self.proposals,
            self._clock,
            self._lease_ms,
            self._tell,
            self._arm_ahead_ms,
            self.plans.of,
            self._logins,
        )
        await dispatcher.take_up()
        self.leading = dispatcher
        ahead = self._ahead = Ahead(
            self.queries,
            dispatcher.hosts,
            dispatcher.links,
            term,
            self.now_ms,
            self._first,
            self._logins,
            self.plans.of,
        )
        self._window = Window(
            self.queries,
            self.state.meta.floor_ms,
            self._arm_ahead_ms,
            dispatcher.slots,
            ahead.note,
        )
        log.info("leading", term=term, active=len(dispatcher.active))
        for watcher in self._watchers:
            watcher()
        async with asyncio.TaskGroup() as group:
            group.create_task(dispatcher.run())
            group.create_task(ahead.run())
            group.create_task(self._fire(dispatcher, self._window))
            group.create_task(self._forget())
            group.create_task(self._pin())
            group.create_task(Retention(self.queries, self.now_ms, self._insist).run())

    def _first(self, count: int) -> list[Timer]:
        return [] if self._window is None else self._window.first(count)

    def _tell(self, execution: Execution) -> None:
        self.changes.tell(Change(self.state.meta.index, execution))

    async def _fire(self, dispatcher: Dispatcher, window: Window) -> None:
        """Arm what is due within `arm_ahead`, as time goes on."""
        proposed: deque[tuple[int, asyncio.Future[Outcome]]] = deque()
        """Commands in their order, with the due time of the first timer in each."""
        while True:
            while proposed and proposed[0][1].done():
                proposed.popleft()[1].result()  # raises what ends this leadership
            now_ms = self.now_ms()
            more = window.extend(now_ms)
            room = len(proposed) < FIRES_PROPOSED_MAX
            due = window.pop(now_ms, FIRE_MAX) if room else []
            if due:
                first_ms = min(timer.due_ms for timer in due)
                floors = [first_ms, now_ms, self.state.meta.time_ms, *(ms for ms, _ in proposed)]
                proposed.append((first_ms, self._propose_fires(dispatcher, due, min(floors))))
            if due or more:
                await asyncio.sleep(0)
                continue
            self._timer_wake.clear()
            next_ms = window.next_ms() if room else None
            wait_ms = 1_000 if next_ms is None else next_ms - now_ms
            try:
                async with asyncio.timeout(max(1, min(wait_ms, 1_000)) / 1_000):
                    await self._timer_wake.wait()
            except TimeoutError:
                pass

    def _propose_fires(
        self, dispatcher: Dispatcher, due: list[Timer], floor_ms: int
    ) -> asyncio.Future[Outcome]:
        fires = [
            DueFire(
                timer.job_uid,
                timer.id.decode(),
                timer.due_ms,
                dispatcher.place_fire(timer),
                timer.kind is TimerKind.DECIDE,
            )
            for timer in due
        ]
        # Owed, so that none is proposed before those that came up earlier: their floor is its too.
        outcome = self.proposals.submit(Fire(fires, floor_ms), len(fires), owed=True)

        def decided(outcome: asyncio.Future[Outcome]) -> None:
            dispatcher.release(fire.placement for fire in fires)
            if not outcome.cancelled():
                outcome.exception()  # if it failed, this leadership ends: perhaps nobody looks
            self._timer_wake.set()

        outcome.add_done_callback(decided)
        return outcome

    async def _forget(self) -> None:
        """Drop the history whose retention is over."""
        while True:
            kept_ms = self.now_ms() - self.retention_ms - RUN_MS_MAX
            before = period(kept_ms)
            if any(when < before for when in self.state.backend.periods()):
                await self._insist(DropHistory(before), 1)
            await asyncio.sleep(FORGET_INTERVAL_S)

    async def _pin(self) -> None:
        """Let schedules follow their calendars and zones, where nobody else sees to it."""
        while True:
            if self.queries.view().zones_pending() is not None:
                await self._insist(PinZones(), PINNED_MAX)
                continue
            pending = self.queries.view().calendars_pending(PIN_MAX)
            for customer, calendar_id in pending:
                await self._insist(PinSchedules(customer, calendar_id), PINNED_MAX)
            if not pending:
                await asyncio.sleep(PIN_INTERVAL_S)

    async def _insist(self, command: AnyCommand, weight: int) -> None:
        while True:
            try:
                await self.proposals.submit(command, weight)
                return
            except Overloaded:
                await asyncio.sleep(OVERLOADED_PAUSE_S)
