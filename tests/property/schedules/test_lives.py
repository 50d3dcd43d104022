"""Whatever happens to a schedule, each of its instants has one outcome, and what should run does.

Changes, pauses, absences of the leader, executions that last and end as they like, in any order:
after each step the schedule's own audit finds nothing, and what it cannot see is checked besides.

The same lives each time; `LIVES=5000 pytest tests/property/schedules` looks at so many others.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, assume, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from tests.unit.scheduler.worlds import HERE, START_MS, World
from tickmesh.scheduler.core import audit, commands, pins, recurrence
from tickmesh.scheduler.core.commands import Refused, Why
from tickmesh.scheduler.core.fires import MISFIRE_GRACE_MS
from tickmesh.scheduler.core.ids import execution_id
from tickmesh.scheduler.core.ledger import Outcome, Row
from tickmesh.scheduler.core.model import (
    ACTIVE_STATES,
    Attempt,
    Execution,
    ExecutionState,
    Misfire,
    Overlap,
    Policy,
    Reason,
    Schedule,
    ScheduleState,
    Timer,
    TimerKind,
)
from tickmesh.scheduler.core.recurrence import Pin, Spec

AHEAD_MS = 2_000
LIVES = int(os.environ.get("LIVES", "0"))
STEPS = 30

PERIODS_MS = st.sampled_from([2_000, 7_000, 10_000, 60_000])
CRONS = st.sampled_from(["*/5 * * * * *", "* * * * * *", "* * * * *", "*/2 * * * *", "H * * * * *"])
JITTERS_MS = st.sampled_from([0, 0, 0, 700, 4_000, 30_000])
MOMENTS_MS = st.integers(0, 240_000)
PAUSES_MS = st.one_of(st.integers(1, 3_000), st.integers(1, 10_000), st.integers(1, 60_000))


@st.composite
def specs(draw: st.DrawFn, now_ms: int = START_MS) -> Spec:
    """Of a schedule that can fire after now."""
    spec = Spec(
        crons=tuple(draw(st.lists(CRONS, max_size=1))),
        every=tuple((each, draw(st.integers(0, each - 1))) for each in [draw(PERIODS_MS)]),
        jitter_ms=draw(JITTERS_MS),
        max_fires=draw(st.one_of(st.none(), st.none(), st.integers(1, 6))),
        calendars=tuple(Pin("holidays") for _ in range(draw(st.integers(0, 1)))),
    )
    if draw(st.integers(0, 3)) == 0:
        spec = replace(spec, every=())
        spec = replace(spec, at_ms=tuple(now_ms + 1 + draw(MOMENTS_MS) for _ in range(2)))
    if draw(st.integers(0, 3)) == 0:
        spec = replace(spec, end_ms=now_ms + 60_000 + draw(MOMENTS_MS))
    if draw(st.integers(0, 4)) == 0:
        spec = replace(spec, start_ms=now_ms + draw(MOMENTS_MS) // 4)
    return spec


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """All that a policy may be."""
    return Policy(
        overlap=draw(st.sampled_from([Overlap.ALLOW, *Overlap])),
        queue_max=draw(st.integers(1, 3)),
        misfire=draw(st.sampled_from(Misfire)),
        misfire_max=draw(st.integers(1, 5)),
        misfire_window_ms=draw(st.sampled_from([0, 0, 20_000])),
        start_deadline_ms=draw(st.sampled_from([0, 0, 0, 3_000])),
        pause_after_failures=draw(st.sampled_from([0, 0, 0, 2])),
    )


@st.composite
def windows(draw: st.DrawFn, now_ms: int) -> tuple[tuple[int, int], ...]:
    """What a calendar excludes."""
    starts = draw(st.lists(st.integers(now_ms - 20_000, now_ms + 100_000), max_size=2))
    return tuple((start, start + draw(st.integers(1, 30_000))) for start in starts)


class Lives(RuleBasedStateMachine):
    """One schedule, its job, and a calendar that it may use."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.job = self.world.job()
        self.world.calendar("holidays")
        self.absent = False
        """Somebody was late: instants may be missed."""
        self.loose = False
        """More than one may run at a time: some were made under another policy."""
        self.most = 0
        """Fires that it may have; it has fired as many already, or may by what it says."""
        self.raced = 0
        """Fires that were taken back too late since."""
        self.jittered = False
        """What has passed and jitter has due later is missed where a change leaves it out."""

    @initialize(spec=specs(), policy=policies())
    def create(self, spec: Spec, policy: Policy) -> None:
        note(f"{spec} {policy}")
        world = self.world
        new = commands.NewSchedule("often", world.next_uid(), (), spec, policy, b"")
        made = world.do(commands.CreateSchedules("acme", "hello", [new], b""))
        assume(not isinstance(made, Refused) or made.why is not Why.NEVER_FIRES)
        assert isinstance(made, list), made
        (schedule,) = made
        assert isinstance(schedule, Schedule)
        self.uid = schedule.uid
        self.most = spec.max_fires or 0
        self.jittered = bool(spec.jitter_ms)
        self.loose = policy.overlap is Overlap.ALLOW

    # -- what happens --------------------------------------------------------------------------

    @rule(ms=PAUSES_MS)
    def run(self, ms: int) -> None:
        """Time goes on, and the leader acts as it should."""
        until_ms = self.world.now_ms + ms
        for _ in range(2_000):
            timers = [t for t in self.world.timers() if self._pop_ms(t) <= until_ms]
            if not timers:
                break
            timer = min(timers, key=self._pop_ms)
            self.world.now_ms = max(self.world.now_ms, self._pop_ms(timer))
            self._fire(timer)
        else:
            raise AssertionError("it fires without end")
        self.world.now_ms = until_ms

    @rule(ms=st.one_of(st.integers(1, 8_000), st.integers(1, 60_000)))
    def nobody_leads(self, ms: int) -> None:
        self.absent = True
        self.world.now_ms += ms
        self.run(1)

    @rule(code=st.sampled_from([0, 0, 1]), data=st.data())
    def one_ends(self, code: int, data: st.DataObject) -> None:
        found = [e for e in self._active() if e.stop or e.due_ms <= self.world.now_ms]
        if found:
            self._end(data.draw(st.sampled_from(found)), code)

    @rule()
    def one_had_started(self) -> None:
        """Its executor heard too late that it is taken back."""
        now_ms = self.world.now_ms
        found = [e for e in self._active() if e.stop is Reason.REVOKED and e.due_ms <= now_ms]
        for execution in found[:1]:
            self.raced += not execution.again
            self._end(execution, 0, started=True)

    @rule()
    def all_end(self) -> None:
        for execution in self._active():
            if execution.stop or execution.due_ms <= self.world.now_ms:
                self._end(execution, 0)

    @rule()
    def pause(self) -> None:
        self._do(commands.PauseSchedule("acme", "hello", "often", "why not"))

    @rule()
    def resume(self) -> None:
        self._do(commands.ResumeSchedule("acme", "hello", "often"))

    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        stored = self.schedule
        if data.draw(st.booleans()):
            spec, policy = stored.spec, stored.policy
        else:
            spec, policy = data.draw(specs(self.world.now_ms)), data.draw(policies())
            if spec.max_fires is not None:
                # It may be less than what it has fired already: then it ends.
                self.most, self.raced = max(stored.fire_count, spec.max_fires), 0
        spec = replace(spec, calendars=tuple(Pin(pin.name) for pin in spec.calendars))
        self.jittered |= bool(spec.jitter_ms)
        made = self._do(
            commands.UpdateSchedule("acme", "hello", "often", 0, (), spec, policy, b"changed")
        )
        if not isinstance(made, Refused):
            self.loose |= Overlap.ALLOW in (policy.overlap, stored.policy.overlap)

    @rule(data=st.data(), ms=st.integers(1, 8_000))
    def change_in_a_pause(self, data: st.DataObject, ms: int) -> None:
        """What was armed is among other instants when it goes on."""
        self.pause()
        self.update(data)
        self.run(ms)
        self.resume()

    @rule(data=st.data())
    def change_calendar(self, data: st.DataObject) -> None:
        excluded = data.draw(windows(self.world.now_ms))
        self.world.change_calendar("holidays", windows=excluded)
        self.run(0)

    @rule()
    def trigger(self) -> None:
        self.loose = True
        origin = self.world.next_uid()
        self.world.do(commands.TriggerSchedule("acme", "hello", "often", origin, HERE, b""))

    # -- what must be true ---------------------------------------------------------------------

    @invariant()
    def the_audit_finds_nothing(self) -> None:
        report = audit.verify(
            self.schedule,
            list(self.world.queries.rows(self.uid, 0, 1 << 20)),
            self._execution,
            from_ms=START_MS - 1_000_000,
            until_ms=self.world.now_ms + audit.AHEAD_MS,
            ready=self._ready,
        )
        assert not report.problems, report.problems

    @invariant()
    def its_timer_is_there(self) -> None:
        stored = self.schedule
        expected = stored.state is ScheduleState.ACTIVE
        assert [t.due_ms for t in self.world.timers()] == [stored.due_ms] * expected, stored

    @invariant()
    def it_does_not_run_beside_itself(self) -> None:
        if self.loose:
            return
        running = [e for e in self._active() if not e.stop]
        assert len(running) <= 1, running

    @invariant()
    def it_fires_as_often_as_it_may(self) -> None:
        """And what was taken back before it started has not fired."""
        every = self.world.queries.executions(
            "acme", self.job.uid, b"", 1 << 20, lambda e: e.id.endswith(self.uid), 1 << 20
        )
        fired = [e for e in every[0] if self._has_fired(e)]
        assert self.schedule.fire_count == len(fired), (self.schedule, fired)
        most = self.most + self.raced if self.schedule.spec.max_fires else len(fired)
        assert len(fired) <= most, (self.schedule, fired)

    @invariant()
    def nothing_is_missed_while_somebody_leads(self) -> None:
        if not (self.absent or self.jittered):
            missed = [row for row in self._rows() if row.outcome is Outcome.MISSED]
            assert not missed, missed

    def teardown(self) -> None:
        """From the last change on, whatever was due had its chance."""
        if not hasattr(self, "uid") or self.schedule.state is not ScheduleState.ACTIVE:
            return
        self.run(70_000)
        self.the_audit_finds_nothing()
        stored = self.schedule
        spec, policy, now_ms = self._ready(stored.spec), stored.policy, self.world.now_ms
        if policy.overlap is not Overlap.ALLOW or stored.state is not ScheduleState.ACTIVE:
            return
        key = self.uid.hex()
        nominal_ms = recurrence.next_fire(spec, now_ms - 70_000, hash_key=key)
        while nominal_ms is not None and nominal_ms < now_ms - MISFIRE_GRACE_MS:
            due_ms = recurrence.due_ms(spec, nominal_ms, hash_key=key)
            execution = self._execution(nominal_ms)
            if due_ms < now_ms:
                assert execution is not None, f"{nominal_ms} never ran: {stored}"
                assert execution.state is not ExecutionState.REVOKED, execution
                assert not execution.stop or execution.again, execution
            nominal_ms = recurrence.next_fire(spec, nominal_ms, hash_key=key)

    # -- means ---------------------------------------------------------------------------------

    @property
    def schedule(self) -> Schedule:
        found = self.world.queries.schedule(self.job.uid, "often")
        assert found is not None
        return found

    def _ready(self, spec: Spec) -> Spec:
        return pins.ready(self.world.queries.view(), "acme", spec)

    def _execution(self, nominal_ms: int) -> Execution | None:
        return self.world.queries.execution(self.job.uid, execution_id(nominal_ms, self.uid))

    def _active(self) -> list[Execution]:
        found = [e for e in self.world.queries.active() if e.state in ACTIVE_STATES]
        return sorted(found, key=lambda execution: execution.id)

    def _rows(self) -> list[Row]:
        return self.world.rows(self.uid, 0, 1 << 20)

    @staticmethod
    def _pop_ms(timer: Timer) -> int:
        return timer.due_ms - (AHEAD_MS if timer.kind is TimerKind.FIRE else 0)

    def _do(self, command: commands.AnyCommand) -> commands.Outcome:
        """And the leader acts upon it."""
        made = self.world.do(command)
        self.run(0)
        return made

    def _fire(self, timer: Timer) -> None:
        due = commands.DueFire(
            timer.job_uid, timer.id.decode(), timer.due_ms, HERE, timer.kind is TimerKind.DECIDE
        )
        self.world.do(commands.Fire([due], 0))

    @staticmethod
    def _has_fired(execution: Execution) -> bool:
        """Or will, as far as is known."""
        if execution.state in ACTIVE_STATES:
            return execution.stop is not Reason.REVOKED or execution.again
        return execution.state is not ExecutionState.REVOKED

    def _end(self, execution: Execution, code: int, *, started: bool = False) -> None:
        """As its executor would report it. started: before it heard of a stop."""
        world = self.world
        if execution.state is ExecutionState.PENDING:
            world.do(commands.Assign([(execution.job_uid, execution.id, HERE)]))
            execution = world.execution(execution)
        reason = Reason.NONE
        if execution.stop and not started:
            reason = Reason.REVOKED if execution.stop is Reason.REVOKED else Reason.CANCELLED
        ended = Attempt(
            number=len(execution.attempts),
            executor="",
            incarnation="",
            assign_ms=0,
            started_ns=0 if reason else world.now_ms * 1_000_000,
            ended_ns=world.now_ms * 1_000_000 + 1,
            exit_code=code,
            reason=reason or (Reason.EXIT_CODE if code else Reason.NONE),
        )
        world.do(commands.EndAttempts([(execution.job_uid, execution.id, ended)]))


TestLives = pytest.mark.timeout(LIVES or 120)(Lives.TestCase)
TestLives.settings = settings(
    max_examples=LIVES or 200,
    derandomize=not LIVES,
    phases=[Phase.generate, Phase.shrink],
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
