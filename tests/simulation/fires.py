"""What must be true of every due instant: an oracle that knows schedules by arithmetic alone.

A schedule's definition holds from one entry to another. Every instant within must have its
execution, or be one of those that a later one stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tickmesh.scheduler.core import commands
from tickmesh.scheduler.core.commands import AnyCommand, DueFire, Outcome, Refused
from tickmesh.scheduler.core.fires import MISFIRE_GRACE_MS
from tickmesh.scheduler.core.model import Execution, Policy, Reason, Schedule, ScheduleState
from tickmesh.scheduler.core.recurrence import Spec

from .pace import CRONS_MS

CLOCK_JUMP_MS = 1_100
"""By how much a wall clock may jump back between a decision and its entry."""


def instants(spec: Spec, after_ms: int, until_ms: int) -> list[int]:
    """The nominal instants in (after, until]."""
    found = {at_ms for at_ms in spec.at_ms if after_ms < at_ms <= until_ms}
    for period_ms, phase_ms in [CRONS_MS[cron] for cron in spec.crons] + list(spec.every):
        first = (after_ms - phase_ms) // period_ms * period_ms + phase_ms + period_ms
        found.update(range(first, until_ms + 1, period_ms))
    return sorted(found)


@dataclass(slots=True)
class _Definition:
    schedule: Schedule
    accounted_ms: int
    """Everything up to this has its execution, or one that stands for it."""


@dataclass
class Fires:
    """See the module. `violate` is told what is wrong; `execution` reads the reference state."""

    arm_ahead_ms: int
    violate: Callable[[str], None]
    execution: Callable[[bytes, bytes], Execution | None]
    execution_before: Callable[[bytes], Execution | None]
    """As it was before the entry that is being observed."""
    schedule: Callable[[bytes, str], Schedule | None]
    open: dict[bytes, _Definition] = field(default_factory=dict)
    made: dict[bytes, int] = field(default_factory=dict)
    """Of every execution that fired: the entry that made it."""
    missed: int = 0
    dropped: int = 0
    """Instants that were due, and not fired yet, when their definition ended."""
    late: int = 0
    again: int = 0
    others: set[bytes] = field(default_factory=set)
    """Schedules that have had a policy, a jitter or the like: the audit of their ledger's part."""
    braked: int = 0

    def observe(
        self, index: int, time_ms: int, batch: list[AnyCommand], outcomes: list[Outcome]
    ) -> None:
        """An entry was applied to the reference."""
        for command, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Refused):
                continue
            match command:
                case commands.CreateSchedules():
                    for schedule in outcome:
                        assert isinstance(schedule, Schedule)
                        if schedule.uid not in self.open and schedule.create_ms == time_ms:
                            self._begin(schedule, time_ms)
                case (
                    commands.UpdateSchedule()
                    | commands.PauseSchedule()
                    | commands.ResumeSchedule()
                    | commands.DeleteSchedules()
                ):
                    for schedule in outcome:
                        assert isinstance(schedule, Schedule)
                        self._end(schedule, time_ms)
                        deleted = isinstance(command, commands.DeleteSchedules)
                        if schedule.state is ScheduleState.ACTIVE and not deleted:
                            self._begin(schedule, time_ms)
                case commands.Fire():
                    for execution in outcome:
                        assert isinstance(execution, Execution)
                        self._fired(index, time_ms, execution)
                    for due in command.fires:
                        self._note_brake(due)
                case _:
                    pass

    def _note_brake(self, due: DueFire) -> None:
        """A schedule that fires too often is paused by the shard: its definition ends."""
        schedule = self.schedule(due.job_uid, due.schedule_id)
        braked = schedule is not None and schedule.pause_reason.startswith("brake")
        if schedule is not None and braked and self.open.pop(schedule.uid, None) is not None:
            self.braked += 1

    def _begin(self, schedule: Schedule, time_ms: int) -> None:
        if not is_plain(schedule):
            self.others.add(schedule.uid)
        if schedule.uid in self.others:
            return
        # What was due when the schedule was changed, and not decided yet, fires by what it is now.
        kept_ms = schedule.next_ms
        if kept_ms <= time_ms and time_ms - kept_ms > MISFIRE_GRACE_MS:
            self.violate(f"a change kept what was missed: {schedule.schedule_id} at {kept_ms}")
        self.open[schedule.uid] = _Definition(schedule, min(time_ms, kept_ms - 1))

    def _end(self, schedule: Schedule, time_ms: int) -> None:
        definition = self.open.pop(schedule.uid, None)
        if definition is None:
            return
        spec = definition.schedule.spec
        self.dropped += len(instants(spec, definition.accounted_ms, time_ms))
        for nominal_ms in instants(spec, time_ms, definition.accounted_ms):
            identity = nominal_ms.to_bytes(6, "big") + schedule.uid
            armed = self.execution(schedule.job_uid, identity)
            if armed is None:
                self.violate(
                    f"the armed execution of {schedule.schedule_id} at {nominal_ms} is gone"
                )

    def _fired(self, index: int, time_ms: int, execution: Execution) -> None:
        nominal_ms, uid = int.from_bytes(execution.id[:6], "big"), execution.id[6:]
        if uid in self.others:
            self.made[execution.id] = index
            return
        what = f"{execution.schedule_id} at {nominal_ms}, entry {index} of {time_ms}"
        if execution.id in self.made:
            # Taken back by a change or a pause, and armed again: with another attempt, or to be.
            earlier = self.execution_before(execution.id)
            if earlier is None or not taken_back(earlier) or self.made[execution.id] == index:
                self.violate(f"fired twice: {what}, and entry {self.made[execution.id]}: {earlier}")
            self.made[execution.id] = index
            self.again += 1
            if uid in self.open:
                self.open[uid].accounted_ms = max(self.open[uid].accounted_ms, nominal_ms)
            return
        definition = self.open.get(uid)
        due = [] if definition is None else self._pending(definition, nominal_ms)
        self.made[execution.id] = index
        if definition is None:
            self.violate(f"fired without an active schedule: {what}")
            return
        spec = definition.schedule.spec
        if not due or due[-1] != nominal_ms:
            self.violate(f"fired at an instant that is none of its own: {what}: {spec} {due}")
            return
        # Instants that an earlier definition armed may be among the missed: they have their own
        # execution, but it was taken back.
        passed = instants(spec, definition.accounted_ms, nominal_ms)
        if not len(due) <= execution.missed + 1 <= len(passed):
            self.violate(f"stands for {execution.missed} others, of {len(due)}: {what}")
        if execution.missed and nominal_ms > time_ms:
            self.violate(f"skipped instants that were still to come: {what}")
        overdue_ms = time_ms - MISFIRE_GRACE_MS
        if nominal_ms < overdue_ms and instants(spec, nominal_ms, overdue_ms - 1):
            self.violate(f"a missed fire is not the latest: {what}")
        if nominal_ms > overdue_ms and execution.missed:
            self.violate(f"stands for others, though it was not missed: {what}")
        if nominal_ms > time_ms + self.arm_ahead_ms + CLOCK_JUMP_MS:
            self.violate(f"armed too early: {what}")
        self.missed += execution.missed
        self.late += nominal_ms < time_ms
        definition.accounted_ms = nominal_ms

    def _pending(self, definition: _Definition, until_ms: int) -> list[int]:
        """Instants to account for; those that an earlier definition armed have their execution."""
        uid = definition.schedule.uid
        return [
            nominal_ms
            for nominal_ms in instants(definition.schedule.spec, definition.accounted_ms, until_ms)
            if nominal_ms.to_bytes(6, "big") + uid not in self.made
        ]

    def check_settled(self, until_ms: int) -> None:
        """After everything has healed: every instant up to `until_ms` is accounted for."""
        for definition in self.open.values():
            pending = self._pending(definition, until_ms)
            if pending:
                self.violate(
                    f"never fired: {definition.schedule.schedule_id} at {pending[:3]}"
                    f" ({len(pending)} instants)"
                )


def is_plain(schedule: Schedule) -> bool:
    """Whether this oracle's arithmetic covers it."""
    spec = schedule.spec
    plain = Spec(crons=spec.crons, every=spec.every, at_ms=spec.at_ms)
    return schedule.policy == Policy() and spec == plain


def taken_back(execution: Execution) -> bool:
    """Whether it was asked not to start."""
    return execution.stop is Reason.REVOKED or execution.reason is Reason.REVOKED
