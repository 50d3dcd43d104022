"""What becomes of a schedule's instants: fired, caught up, or skipped for a recorded reason.

A schedule that can fire has one timer, for its next instant. It comes up a little ahead of the due
time, so that the execution can be prepared (armed); or, where the overlap policy needs to know how
an earlier execution ends, at the due time. Deciding an instant, its row in the ledger and moving
the timer on are one commit, so an instant is decided once.

An instant has one execution, for ever. A fire that was armed and is taken back by a change or a
pause leaves a REVOKED one; if its instant comes up again before it is due (the schedule was changed
to something that has it too, or was resumed), that same execution goes on with a further attempt.

What was taken back does not count as a fire, unless its executor had started it before it heard of
that: it is counted again when its end is told.
"""

from __future__ import annotations

import hashlib
from typing import Any

from msgspec.structs import replace

from . import executions, history, recurrence
from .commands import (
    INSTANTS_SINCE,
    BackfillSchedule,
    DueFire,
    Fire,
    Placement,
    Refused,
    TriggerSchedule,
    Why,
)
from .ids import UID_BYTES, execution_id
from .jobs import existing
from .ledger import Definition, Outcome, make
from .model import (
    ACTIVE_STATES,
    Execution,
    ExecutionState,
    Job,
    Misfire,
    Overlap,
    Policy,
    Reason,
    Schedule,
    ScheduleState,
    Timer,
    TimerKind,
)
from .pins import note_use, ready
from .recurrence import Spec
from .recurrence.limits import COUNT_MAX
from .view import View

MISFIRE_GRACE_MS = 5_000
"""A fire up to so late is not missed, only late: longer than a change of leaders takes."""

BRAKE_FIRES_PER_MINUTE = 120
"""Twice what a schedule may have: more means that something is wrong with the arithmetic."""

MINUTE_MS = 60_000

BACKFILL_MAX = COUNT_MAX
"""Instants of a backfill, exclusive: one commit makes them all."""


def timer(schedule: Schedule) -> Timer:
    """The timer of a schedule that can fire."""
    kind = TimerKind.DECIDE if schedule.deferred else TimerKind.FIRE
    return Timer(schedule.due_ms, kind, schedule.job_uid, schedule.schedule_id.encode("ascii"))


def found(view: View, customer: str, job_id: str, schedule_id: str) -> tuple[Job, Schedule]:
    """A schedule and its job. Refused if there is none."""
    job = existing(view, customer, job_id)
    schedule = view.schedule(job.uid, schedule_id)
    if schedule is None:
        name = f"customers/{customer}/jobs/{job_id}/schedules/{schedule_id}"
        raise Refused(Why.NOT_FOUND, name)
    return job, schedule


def following(schedule: Schedule, spec: Spec, after_ms: int, fired: int) -> tuple[int, int]:
    """(nominal, due) of the schedule's next instant after one; (0, 0) if there is none. spec: its
    own, ready."""
    if spec.max_fires is not None and fired >= spec.max_fires:
        return 0, 0
    key = schedule.uid.hex()
    nominal_ms = recurrence.next_fire(spec, after_ms, hash_key=key)
    if nominal_ms is None:
        return 0, 0
    return nominal_ms, recurrence.due_ms(spec, nominal_ms, hash_key=key)


def watches(policy: Policy) -> bool:
    """Whether a schedule must hear of the ends of its executions."""
    return policy.overlap is not Overlap.ALLOW or policy.pause_after_failures > 0


class Turn:
    """One schedule while a command changes it: collects what changes, and writes it once."""

    def __init__(self, view: View, job: Job, schedule: Schedule, now_ms: int) -> None:
        self.made: list[Execution] = []
        """Executions made or changed."""
        self.pause_reason = ""
        """Set to pause the schedule at the end of this turn."""
        self._view = view
        self._job = job
        self.schedule = schedule
        self.spec = ready(view, schedule.customer, schedule.spec)
        """The schedule's, with its calendars' content."""
        self._now_ms = now_ms
        self._revised = view.version >= INSTANTS_SINCE
        self._key = schedule.uid.hex()
        self.running = schedule.running
        self.waiting = schedule.waiting
        self.failures = schedule.failures
        self._fired = schedule.fire_count
        self._missed = schedule.missed_count
        self._last_ms = schedule.last_ms
        self._brake = (schedule.brake_minute, schedule.brake_count)
        self._told_ms = schedule.told_ms or schedule.next_ms or now_ms
        self._kept_ms = 0
        """See `keep`."""
        self._ended_ms = 0
        """The instant after which there is none, if this turn found that."""
        self._count = schedule.ledger_count
        self._hash = schedule.ledger_hash

    # -- the ledger ----------------------------------------------------------------------------

    def note(
        self,
        outcome: Outcome,
        first_ms: int,
        last_ms: int = 0,
        count: int = 1,
        detail: str | Definition = "",
    ) -> None:
        """Add a row. count: COUNT_MAX or more is told as 0, too many."""
        row = make(
            self._hash,
            self._count,
            outcome,
            self._now_ms,
            first_ms,
            last_ms or first_ms,
            0 if count >= COUNT_MAX else count,
            detail,
        )
        self._view.put_row(self.schedule.uid, self._count, row)
        self._count += 1
        self._hash = row.hash

    def note_definition(self, schedule: Schedule) -> None:
        """Tell what the schedule is from now on; one that finished by itself, since its last
        instant."""
        definition = Definition(
            schedule.uid, schedule.version, schedule.state, schedule.spec, schedule.policy
        )
        from_ms = self._now_ms
        if schedule.state is ScheduleState.FINISHED:
            from_ms = self._ended_ms or self._last_ms
        self.note(Outcome.DEFINED, from_ms, detail=definition)

    def note_undecided(self, outcome: Outcome) -> None:
        """One row for the instants that have passed and were not decided, if there are any, but for
        the one that is kept."""
        self._tell_skips(self._now_ms)
        first_ms, until_ms = self._first_unrecorded(), self._now_ms
        if self._kept_ms:
            until_ms = self._kept_ms - 1
        if not first_ms or first_ms > until_ms:
            return
        _, later = recurrence.latest_fire(self.spec, first_ms, until_ms, hash_key=self._key)
        recorded = self._recorded(first_ms, until_ms)
        count = self._note_run(outcome, first_ms, until_ms, 1 + later, recorded)
        if outcome is Outcome.MISSED:
            self._missed += count

    def _recorded(self, first_ms: int, until_ms: int) -> list[int]:
        """The instants after one that has no row, of those up to another, that have theirs: they
        were armed by what the schedule was before, which named fewer, and taken back."""
        found: list[int] = []
        until_ms = min(until_ms, self.schedule.last_ms) if self._revised else 0
        nominal_ms: int | None = first_ms
        while nominal_ms is not None and nominal_ms <= until_ms:
            if self._has_execution(nominal_ms):
                found.append(nominal_ms)
            nominal_ms = recurrence.next_fire(self.spec, nominal_ms, hash_key=self._key)
        return found

    def _note_run(
        self, outcome: Outcome, first_ms: int, last_ms: int, count: int, recorded: list[int]
    ) -> int:
        """Rows for the `count` instants from one to another, but for those that have theirs; how
        many are told."""
        if not self._revised:
            self.note(outcome, first_ms, last_ms, count)
            return count
        spec, key, told, after_ms = self.spec, self._key, 0, first_ms - 1
        for before_ms in (*recorded, last_ms + 1):
            begin_ms = recurrence.next_fire(spec, after_ms, hash_key=key)
            if begin_ms is not None and begin_ms < before_ms:
                end_ms, later = recurrence.latest_fire(spec, begin_ms, before_ms - 1, hash_key=key)
                self.note(outcome, begin_ms, end_ms or begin_ms, 1 + later)
                told += 1 + later
            after_ms = before_ms
        return told

    def _has_execution(self, nominal_ms: int) -> bool:
        """Whether an instant was armed and taken back before: then it has its row already."""
        if nominal_ms > self.schedule.last_ms:
            return False
        identity = execution_id(nominal_ms, self.schedule.uid)
        return self._view.execution(self.schedule.job_uid, identity) is not None

    def _first_unrecorded(self) -> int:
        """The next instant that has no row; 0: there is none."""
        if self._revised and self.exhausted:
            return 0
        nominal_ms: int | None = self.schedule.next_ms
        while nominal_ms and self._has_execution(nominal_ms):
            nominal_ms = recurrence.next_fire(self.spec, nominal_ms, hash_key=self._key)
        return nominal_ms or 0

    def keep(self, spec: Spec) -> bool:
        """Keep the last instant that has passed, if it is to fire yet by what the schedule says and
        by what it will say (`spec`, ready); whether it is. `resume` goes on with it.

        Jitter has it due later; or it is due, the schedule active, and nobody has decided it.
        """
        if not self._revised:
            return False
        now_ms, key, next_ms = self._now_ms, self._key, self.schedule.next_ms
        window_ms = min(self.spec.jitter_ms, spec.jitter_ms) + MISFIRE_GRACE_MS
        passed_ms, _ = recurrence.latest_fire(self.spec, now_ms - window_ms, now_ms, hash_key=key)
        if passed_ms is None or passed_ms != recurrence.next_fire(
            spec, passed_ms - 1, hash_key=key
        ):
            return False
        undecided = 0 < next_ms <= passed_ms
        if not undecided and not self._has_execution(passed_ms):
            return False
        due_ms = min(recurrence.due_ms(each, passed_ms, hash_key=key) for each in (self.spec, spec))
        if due_ms <= now_ms:
            late = now_ms - due_ms > MISFIRE_GRACE_MS
            following_ms = recurrence.next_fire(spec, passed_ms, hash_key=key)
            if late or not undecided or self.schedule.state is not ScheduleState.ACTIVE:
                return False
            if following_ms is not None and following_ms <= now_ms:
                return False
        self._kept_ms = passed_ms
        return True

    def drop_waiting(self, outcome: Outcome) -> None:
        """What waits for running executions will not run."""
        for nominal_ms in self.waiting:
            self.note(outcome, nominal_ms)
        self.waiting = ()

    def take_back(self) -> int:
        """Revoke the armed fires: those whose instant has come up and is not due yet. The first of
        these instants; 0: there are none."""
        schedule, first_ms = self.schedule, 0
        # Fires are armed a little ahead of their due time, so few instants lie between now and the
        # last one that fired. Jitter moves due times later: look back by it.
        nominal_ms: int | None = self._now_ms - self.spec.jitter_ms
        while nominal_ms is not None:
            nominal_ms = recurrence.next_fire(self.spec, nominal_ms, hash_key=self._key)
            if nominal_ms is None or nominal_ms > schedule.last_ms:
                break
            due_ms = recurrence.due_ms(self.spec, nominal_ms, hash_key=self._key)
            identity = execution_id(nominal_ms, schedule.uid)
            armed = self._view.execution(schedule.job_uid, identity)
            if armed is None or due_ms <= self._now_ms:
                continue
            counted = armed.again or Reason.REVOKED not in (armed.stop, armed.reason)
            armed = executions.stop(self._view, armed, Reason.REVOKED, self._now_ms)
            if armed.state not in ACTIVE_STATES:
                self.running = tuple(each for each in self.running if each != identity)
            if Reason.REVOKED in (armed.stop, armed.reason):
                first_ms = first_ms or nominal_ms
                if counted and self._revised:
                    self._fired -= 1
        return first_ms

    def count_again(self) -> None:
        """An armed fire was taken back too late: it has started all the same."""
        self._fired += 1
        self.drop_surplus()

    def drop_surplus(self) -> None:
        """What waits and would be more than may fire will not run."""
        while self.waiting and self._claimed > (self.spec.max_fires or self._claimed):
            self.note(Outcome.OVERLAP, self.waiting[-1])
            self.waiting = self.waiting[:-1]

    # -- deciding ------------------------------------------------------------------------------

    @property
    def _claimed(self) -> int:
        """Of max_fires: those that wait will have fired."""
        return self._fired + len(self.waiting)

    @property
    def exhausted(self) -> bool:
        """Whether no further instant may fire."""
        most = self.spec.max_fires
        return most is not None and self._claimed >= most

    def _following(self, after_ms: int) -> tuple[int, int]:
        return following(self.schedule, self.spec, after_ms, self._claimed)

    @property
    def must_wait(self) -> bool:
        """Whether the next instant cannot be decided before it is due."""
        policy = self.schedule.policy
        return (
            policy.overlap is not Overlap.ALLOW
            and bool(self._others(self.schedule.next_ms) or self.waiting)
            and self.schedule.due_ms > self._now_ms
        )

    def _others(self, nominal_ms: int) -> tuple[bytes, ...]:
        """What runs beside an instant's own execution, whose revocation may be under way."""
        identity = execution_id(nominal_ms, self.schedule.uid)
        return tuple(each for each in self.running if each != identity or not self._revised)

    def decide(
        self, nominal_ms: int, outcome: Outcome, placement: Placement | None, missed: int = 0
    ) -> None:
        """Say what becomes of one instant."""
        policy, now_ms = self.schedule.policy, self._now_ms
        due_ms = recurrence.due_ms(self.spec, nominal_ms, hash_key=self._key)
        self._last_ms = max(self._last_ms, nominal_ms)
        self._tell_skips(nominal_ms)
        if self._has_execution(nominal_ms):
            free = self._revised and policy.overlap is Overlap.ALLOW  # others of an older policy
            if free or not (self._others(nominal_ms) or self.waiting):
                self._run(nominal_ms, due_ms, outcome, placement)
            return
        if policy.start_deadline_ms and now_ms - due_ms > policy.start_deadline_ms:
            self.note(Outcome.DEADLINE, nominal_ms)
        elif outcome is Outcome.FIRED and self._braked():
            self.note(Outcome.BRAKE, nominal_ms)
            self.pause_reason = (
                f"brake: more than {BRAKE_FIRES_PER_MINUTE} fires in a minute, which no schedule "
                "may have; resume it once you know why"
            )
        elif policy.overlap is not Overlap.ALLOW and (self.running or self.waiting):
            self._overlap(policy, nominal_ms, placement)
        else:
            self._run(nominal_ms, due_ms, outcome, placement, missed)

    def _braked(self) -> bool:
        minute = self._now_ms // MINUTE_MS
        counted = self._brake[1] if self._brake[0] == minute else 0
        self._brake = (minute, counted + 1)
        return counted >= BRAKE_FIRES_PER_MINUTE

    def _overlap(self, policy: Policy, nominal_ms: int, placement: Placement | None) -> None:
        if policy.overlap is Overlap.REPLACE:
            for identity in self.running:
                execution = self._view.execution(self.schedule.job_uid, identity)
                if execution is not None and not execution.stop:
                    execution = executions.stop(
                        self._view, execution, Reason.REPLACED, self._now_ms
                    )
                    self.made.append(execution)
                if execution is None or execution.state not in ACTIVE_STATES:
                    self.running = tuple(each for each in self.running if each != identity)
            for displaced_ms in self.waiting:
                self.note(Outcome.OVERLAP, displaced_ms)
            self.waiting = (nominal_ms,)
            self.start_waiting(placement)
        elif policy.overlap is Overlap.QUEUE and len(self.waiting) < policy.queue_max:
            self.waiting = (*self.waiting, nominal_ms)
        else:
            self.note(Outcome.OVERLAP, nominal_ms)

    def start_waiting(self, placement: Placement | None = None) -> None:
        """Nothing runs any more: the first instant that waits, and is not too late, does."""
        deadline_ms = self.schedule.policy.start_deadline_ms
        while self.waiting and not self.running:
            nominal_ms, self.waiting = self.waiting[0], self.waiting[1:]
            due_ms = recurrence.due_ms(self.spec, nominal_ms, hash_key=self._key)
            if deadline_ms and self._now_ms - due_ms > deadline_ms:
                self.note(Outcome.DEADLINE, nominal_ms)
            else:
                self._run(nominal_ms, due_ms, Outcome.FIRED, placement)

    def _run(
        self,
        nominal_ms: int,
        due_ms: int,
        outcome: Outcome,
        placement: Placement | None,
        missed: int = 0,
    ) -> None:
        view, schedule, job = self._view, self.schedule, self._job
        identity = execution_id(nominal_ms, schedule.uid)
        # What was never decided has no execution: nothing to look for, in files that grow.
        decided = nominal_ms <= schedule.last_ms
        earlier = view.execution(job.uid, identity) if decided else None
        made: Execution | None
        if earlier is not None:
            made = executions.fire_again(
                view,
                job,
                earlier,
                payload=schedule.payload,
                placement=placement,
                watched=watches(schedule.policy),
                now_ms=self._now_ms,
            )
            if made is not None and self._revised and not earlier.again:
                self._fired += 1
        else:
            made = executions.create(
                view,
                job,
                identity,
                due_ms=due_ms,
                now_ms=self._now_ms,
                payload=schedule.payload,
                placement=placement,
                schedule_id=schedule.schedule_id,
                nominal_ms=nominal_ms,
                missed=missed,
                watched=watches(schedule.policy),
            )
            self.note(outcome, nominal_ms)
            self._fired += 1
        if made is None:
            return
        self.made.append(made)
        if schedule.policy.overlap is not Overlap.ALLOW and identity not in self.running:
            self.running = (*self.running, identity)

    def catch_up(self, placement: Placement | None) -> int:
        """Decide every instant that is later than the grace; the last of them."""
        schedule = self.schedule
        spec, policy, first_ms = self.spec, schedule.policy, self._first_unrecorded()
        until_ms = self._now_ms - MISFIRE_GRACE_MS
        if not self._revised:
            until_ms -= spec.jitter_ms
        if not first_ms or (first_ms > schedule.next_ms and self._is_after(first_ms, until_ms)):
            # It was armed and taken back, came up again, and was missed: it stays taken back.
            return (first_ms or self._now_ms) - 1
        latest_ms, later = recurrence.latest_fire(spec, first_ms, until_ms, hash_key=self._key)
        if latest_ms is not None and self._is_after(latest_ms, until_ms):
            # Its jitter has it due later. Those before it are due before it.
            before_ms = latest_ms - 1
            latest_ms, later = recurrence.latest_fire(spec, first_ms, before_ms, hash_key=self._key)
        if latest_ms is None:
            latest_ms = first_ms
        # What was armed and taken back has its row, and stays taken back.
        recorded = self._recorded(first_ms, latest_ms)
        count = 1 + later - len(recorded)
        oldest_ms = self._now_ms - policy.misfire_window_ms if policy.misfire_window_ms else 0
        # An execution belongs to the period of its instant: what is forgotten gets no new ones.
        oldest_ms = max(oldest_ms, self._view.history_from * history.PERIOD_MS)
        chosen = self._made_up_for(first_ms, latest_ms, recorded)
        chosen = [nominal_ms for nominal_ms in chosen if nominal_ms >= oldest_ms]
        missed = count - len(chosen)
        if missed:
            last_ms = (chosen[0] if chosen else latest_ms + 1) - 1
            told = COUNT_MAX if later >= COUNT_MAX else missed
            before = [each for each in recorded if each <= last_ms]
            self._note_run(Outcome.MISSED, first_ms, last_ms, told, before)
            self._missed += missed
        for nominal_ms in chosen:
            self.decide(nominal_ms, Outcome.CAUGHT_UP, placement, missed)
            placement, missed = None, 0
        self._last_ms = latest_ms
        return latest_ms

    def _made_up_for(self, first_ms: int, latest_ms: int, recorded: list[int]) -> list[int]:
        """Of the instants in [first, latest] that have no row those that the policy would have
        fire late, oldest first."""
        policy, most = self.schedule.policy, 1
        if policy.misfire is Misfire.SKIP:
            return []
        if policy.misfire is Misfire.ALL:
            most = policy.misfire_max
            if self.spec.max_fires is not None and self._revised:
                most = min(most, self.spec.max_fires - self._claimed)
        elif latest_ms not in recorded:
            return [latest_ms]
        found = self._last_instants(first_ms, latest_ms, most + len(recorded))
        return [each for each in found if each not in recorded][-most:]

    def _is_after(self, nominal_ms: int, until_ms: int) -> bool:
        """Whether an instant is due after a time."""
        if self._revised:
            nominal_ms = recurrence.due_ms(self.spec, nominal_ms, hash_key=self._key)
        return nominal_ms > until_ms

    def _last_instants(self, first_ms: int, latest_ms: int, most: int) -> list[int]:
        """The last `most` instants in [first, latest], oldest first."""
        spec, key = self.spec, self._key

        def count(after_ms: int) -> int:
            return recurrence.latest_fire(spec, after_ms, latest_ms, hash_key=key)[1]

        low, high = first_ms - 1, latest_ms
        if count(low) > most:
            while high - low > 1:  # count(low) > most >= count(high)
                middle = (low + high) // 2
                low, high = (middle, high) if count(middle) > most else (low, middle)
            low = high
        found: list[int] = []
        instant_ms = recurrence.next_fire(spec, low, hash_key=key)
        while instant_ms is not None and instant_ms <= latest_ms:
            found.append(instant_ms)
            instant_ms = recurrence.next_fire(spec, instant_ms, hash_key=key)
        return found

    # -- ending the turn -----------------------------------------------------------------------

    def move_on(self, after_ms: int) -> None:
        """Set the timer for the first instant after one, and note what is skipped on the way."""
        nominal_ms, due_ms = self._following(after_ms)
        if not nominal_ms and self._revised:
            self._ended_ms = after_ms
        self._tell_skips(after_ms)
        if nominal_ms and not self._revised:
            self.note_skips(after_ms, nominal_ms)
        finished = not nominal_ms
        self.finish(
            redefined=finished,
            state=ScheduleState.FINISHED if finished else self.schedule.state,
            next_ms=nominal_ms,
            due_ms=due_ms,
            deferred=False,
        )

    def _tell_skips(self, until_ms: int) -> None:
        """Tell what has been left out up to an instant, since that was told last. What is still to
        come may yet be changed."""
        until_ms = min(until_ms, self._now_ms)
        if self._revised and until_ms > self._told_ms:
            self._told_ms = self.note_skips(self._told_ms, until_ms + 1) - 1

    def note_skips(self, after_ms: int, until_ms: int) -> int:
        """Tell what is left out between two instants; until when it could."""
        skips, told_ms = recurrence.skips(self.spec, after_ms, until_ms, hash_key=self._key)
        for skip in skips:
            outcome = Outcome.CLOCK if skip.by_clock else Outcome.EXCLUDED
            self.note(outcome, skip.first_ms, skip.last_ms, skip.count, skip.calendar)
        return told_ms

    def renew(self, **changes: Any) -> None:
        """Change what the schedule is; `resume` must follow."""
        before = self.schedule
        if self._revised:
            # Up to what was armed ahead, instants are decided by what held before. What was too
            # much to tell of them stays untold.
            decided_ms = max(self._now_ms, self._last_ms)
            if decided_ms > self._told_ms:
                self.note_skips(self._told_ms, decided_ms + 1)
                self._told_ms = decided_ms
        if before.due_ms:
            self._view.delete_timer(timer(before))
        self.schedule = replace(
            before, due_ms=0, deferred=False, version=before.version + 1, **changes
        )
        if self.schedule.spec != before.spec:
            note_use(self._view, before, self.schedule)
            self.spec = ready(self._view, self.schedule.customer, self.schedule.spec)

    def resume(self, *, paused: bool) -> Schedule:
        """Go on from the first instant after now (or the one that is kept), or stay paused before
        it."""
        after_ms = self._kept_ms - 1 if self._kept_ms else self._now_ms
        nominal_ms, due_ms = self._following(after_ms)
        if nominal_ms and not self._revised:
            self.note_skips(self._now_ms, nominal_ms)
        waits = ScheduleState.PAUSED if paused else ScheduleState.ACTIVE
        return self.finish(
            redefined=True,
            state=waits if nominal_ms else ScheduleState.FINISHED,
            next_ms=nominal_ms,
            due_ms=0 if paused else due_ms,
        )

    def end(self) -> Schedule:
        """It is deleted: end its ledger; the schedule as it was last."""
        paused = self.schedule.state is ScheduleState.PAUSED
        self.note_undecided(Outcome.PAUSED if paused else Outcome.MISSED)
        self.take_back()
        self.drop_waiting(Outcome.OVERLAP)
        gone = replace(
            self.schedule,
            state=ScheduleState.FINISHED,
            next_ms=0,
            due_ms=0,
            deferred=False,
            running=(),
            waiting=(),
            fire_count=self._fired,
            missed_count=self._missed,
            last_ms=self._last_ms,
            told_ms=self._told_ms if self._revised else 0,
            update_ms=self._now_ms,
            version=self.schedule.version + 1,
        )
        definition = Definition(gone.uid, gone.version, gone.state, gone.spec, gone.policy)
        self.note(Outcome.DEFINED, self._now_ms, detail=definition)
        return replace(gone, ledger_count=self._count, ledger_hash=self._hash)

    def finish(self, *, redefined: bool = False, **changes: Any) -> Schedule:
        """Write the schedule with everything that this turn changed, and its timer.

        redefined: what it is has changed, and not only where it stands.
        """
        if self.pause_reason and self._revised:
            self.drop_waiting(Outcome.PAUSED)
        changed = replace(
            self.schedule,
            fire_count=self._fired,
            missed_count=self._missed,
            last_ms=self._last_ms,
            told_ms=self._told_ms if self._revised else 0,
            running=self.running,
            waiting=self.waiting,
            failures=self.failures,
            brake_minute=self._brake[0],
            brake_count=self._brake[1],
            **changes,
        )
        if self.pause_reason:
            changed = replace(
                changed,
                state=ScheduleState.PAUSED,
                pause_reason=self.pause_reason,
                due_ms=0,
                deferred=False,
                version=changed.version + 1,
            )
        if self.pause_reason or redefined:
            self.note_definition(changed)
        changed = replace(changed, ledger_count=self._count, ledger_hash=self._hash)
        self._view.put_schedule(changed)
        before = timer(self.schedule) if self.schedule.due_ms else None
        after = timer(changed) if changed.due_ms else None
        if before is not None and before != after:
            self._view.delete_timer(before)
        if after is not None and before != after:
            self._view.put_timer(after)
        return changed


def fire(view: View, command: Fire, now_ms: int) -> list[Execution]:
    """Decide the instants whose timers came up; timers that are stale are passed over."""
    if command.floor_ms > view.floor_ms():
        view.set_floor_ms(command.floor_ms)
    made: list[Execution] = []
    for due in command.fires:
        made += _fire(view, due, now_ms)
    return made


def _fire(view: View, due: DueFire, now_ms: int) -> list[Execution]:
    schedule = view.schedule(due.job_uid, due.schedule_id)
    if schedule is None or (schedule.due_ms, schedule.deferred) != (due.due_ms, due.deferred):
        return []
    job = view.job(schedule.customer, schedule.job_id)
    assert job is not None and job.uid == schedule.job_uid, "a job with schedules is never deleted"
    turn = Turn(view, job, schedule, now_ms)
    if now_ms - schedule.due_ms > MISFIRE_GRACE_MS:
        turn.move_on(turn.catch_up(due.placement))
    elif turn.must_wait:
        turn.finish(deferred=True)
    else:
        turn.decide(schedule.next_ms, Outcome.FIRED, due.placement)
        turn.move_on(schedule.next_ms)
    return turn.made


def trigger(view: View, command: TriggerSchedule, now_ms: int) -> list[Execution]:
    """An execution besides the instants: no row, no policy. The same request again answers it."""
    job, schedule = found(view, command.customer, command.job_id, command.schedule_id)
    earlier = executions.of_request(view, command.customer, command.request)
    if earlier is not None:
        return earlier
    made = executions.create(
        view,
        job,
        execution_id(now_ms, command.origin),
        due_ms=now_ms,
        now_ms=now_ms,
        payload=schedule.payload,
        placement=command.placement,
        schedule_id=schedule.schedule_id,
    )
    executions.keep_request(view, command.customer, command.request, [made])
    return [made]


def backfill(view: View, command: BackfillSchedule, now_ms: int) -> list[Execution]:
    """An execution for each instant of a past range, due now, besides what the instants had.

    All wait for an executor like any other execution. The same request again answers them.
    """
    job, schedule = found(view, command.customer, command.job_id, command.schedule_id)
    earlier = executions.of_request(view, command.customer, command.request)
    if earlier is not None:
        return earlier
    key = schedule.uid.hex()
    spec = ready(view, schedule.customer, schedule.spec)
    end_ms = min(command.end_ms, now_ms + 1) - 1
    _, count = recurrence.latest_fire(
        spec, command.start_ms - 1, max(end_ms, command.start_ms - 1), hash_key=key
    )
    if count >= BACKFILL_MAX:
        raise Refused(Why.TOO_MANY, command.schedule_id)
    made = []
    nominal_ms = command.start_ms - 1
    for _ in range(count):
        nominal_ms = recurrence.next_fire(spec, nominal_ms, hash_key=key) or end_ms
        origin = hashlib.blake2b(
            command.origin + nominal_ms.to_bytes(8, "big"), digest_size=UID_BYTES
        ).digest()
        made.append(
            executions.create(
                view,
                job,
                execution_id(now_ms, origin),
                due_ms=now_ms,
                now_ms=now_ms,
                payload=schedule.payload,
                placement=None,
                schedule_id=schedule.schedule_id,
                nominal_ms=nominal_ms,
            )
        )
    executions.keep_request(view, command.customer, command.request, made)
    return made


def follow(view: View, changed: list[Execution], now_ms: int) -> list[Execution]:
    """Executions ended: let their schedules know, if they want to. What that made or changed."""
    made: list[Execution] = []
    for execution in changed:
        if execution.state in ACTIVE_STATES:
            continue
        uncounted = view.version >= INSTANTS_SINCE and (
            execution.stop is Reason.REVOKED
            and execution.state is not ExecutionState.REVOKED
            and not execution.again
        )
        if not (execution.watched or uncounted):
            continue
        schedule = view.schedule(execution.job_uid, execution.schedule_id)
        if schedule is None or schedule.uid != execution.id[-UID_BYTES:]:
            continue  # it was deleted meanwhile
        job = view.job(execution.customer, execution.job_id)
        assert job is not None, "a job with schedules is never deleted"
        turn = Turn(view, job, schedule, now_ms)
        turn.running = tuple(each for each in turn.running if each != execution.id)
        _count_failures(turn, execution)
        if uncounted:
            turn.count_again()
        if schedule.state is not ScheduleState.PAUSED and not turn.pause_reason:
            turn.start_waiting()
        if uncounted and turn.exhausted and schedule.state is ScheduleState.ACTIVE:
            turn.move_on(schedule.next_ms - 1)  # which may not fire any more
        else:
            turn.finish()
        made += turn.made
    return made


def _count_failures(turn: Turn, execution: Execution) -> None:
    most = turn.schedule.policy.pause_after_failures
    if execution.state is ExecutionState.SUCCEEDED:
        turn.failures = 0
    elif execution.state is ExecutionState.FAILED and most:
        turn.failures += 1
        if turn.failures >= most and turn.schedule.state is ScheduleState.ACTIVE:
            turn.pause_reason = f"{turn.failures} executions in a row have failed"
