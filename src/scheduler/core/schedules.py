"""Schedules: create, update, delete, pause, resume. When they fire is in fires.py."""

from __future__ import annotations

from typing import NamedTuple

from . import recurrence
from .commands import (
    DELETED_SINCE,
    FINISHED_SINCE,
    INSTANTS_SINCE,
    CreateSchedules,
    DeleteSchedules,
    NewSchedule,
    PauseSchedule,
    Refused,
    ResumeSchedule,
    UpdateSchedule,
    Why,
)
from .fires import Turn, found, timer
from .jobs import check_version, existing
from .ledger import Definition, Outcome, Row, make
from .model import Job, Schedule, ScheduleState
from .pins import note_use, pinned, ready
from .recurrence import Spec
from .view import View


class _Plan(NamedTuple):
    """When schedules of one spec that are created together first fire."""

    stored: Spec
    """With its calendars and zones pinned."""
    due: tuple[int, int]
    """(nominal, due) of the first fire."""
    skips: bool
    """Something is skipped before that, and is told at once: so it was before INSTANTS_SINCE."""


def create(view: View, command: CreateSchedules, now_ms: int) -> list[Schedule]:
    """All or none; the same request again answers what it made the first time."""
    job = existing(view, command.customer, command.job_id)
    made: list[Schedule] = []
    fresh: list[tuple[Schedule, Row, bool]] = []
    seen: set[str] = set()
    plans: dict[Spec, _Plan] = {}
    for index, new in enumerate(command.schedules):
        stored = view.schedule(job.uid, new.schedule_id)
        if new.schedule_id in seen:
            raise Refused(Why.ALREADY_EXISTS, new.schedule_id, index)
        seen.add(new.schedule_id)
        if stored is not None:
            if not command.request or stored.request != command.request:
                raise Refused(Why.ALREADY_EXISTS, new.schedule_id, index)
            made.append(stored)
            continue
        plan = plans.get(new.spec)
        if plan is None:
            plan = _planned(view, job, new, now_ms, index)
            if not recurrence.draws(plan.stored):
                plans[new.spec] = plan
        told_ms = now_ms if view.version >= INSTANTS_SINCE else 0
        schedule, row = _made(job, new, plan, command.request, now_ms, told_ms)
        made.append(schedule)
        fresh.append((schedule, row, plan.skips))
    for schedule, row, skips in fresh:
        view.put_schedule(schedule)
        view.put_row(schedule.uid, 0, row)
        view.put_timer(timer(schedule))
        if schedule.spec.calendars:
            note_use(view, None, schedule)
        if skips:
            turn = Turn(view, job, schedule, now_ms)
            turn.note_skips(now_ms, schedule.next_ms)
            turn.finish()
    if fresh:
        view.set_schedule_count(job.uid, view.schedule_count(job.uid) + len(fresh))
    return made


def _planned(view: View, job: Job, new: NewSchedule, now_ms: int, index: int) -> _Plan:
    key = new.uid.hex()
    stored = pinned(view, job.customer, new.spec, index)
    spec = ready(view, job.customer, stored)
    nominal_ms = recurrence.next_fire(spec, now_ms, hash_key=key)
    if nominal_ms is None:
        raise Refused(Why.NEVER_FIRES, new.schedule_id, index)
    due_ms = recurrence.due_ms(spec, nominal_ms, hash_key=key)
    skips: list[recurrence.Skip] = []
    if view.version < INSTANTS_SINCE:
        skips, _ = recurrence.skips(spec, now_ms, nominal_ms, hash_key=key)
    return _Plan(stored, (nominal_ms, due_ms), bool(skips))


def _made(
    job: Job, new: NewSchedule, plan: _Plan, request: bytes, now_ms: int, told_ms: int
) -> tuple[Schedule, Row]:
    """The schedule, and the first row of its ledger, which says what it is."""
    stored, (nominal_ms, due_ms), _ = plan
    active = ScheduleState.ACTIVE
    row = make(
        b"",
        0,
        Outcome.DEFINED,
        now_ms,
        now_ms,
        now_ms,
        1,
        Definition(new.uid, 1, active, stored, new.policy),
    )
    schedule = Schedule(
        job.customer,
        job.job_id,
        new.schedule_id,
        job.uid,
        new.uid,
        new.labels,
        stored,
        new.policy,
        new.payload,
        active,
        "",
        nominal_ms,
        due_ms,
        0,
        0,
        0,
        now_ms,
        now_ms,
        1,
        request,
        ledger_count=1,
        ledger_hash=row.hash,
        told_ms=told_ms,
    )
    return schedule, row


def update(view: View, command: UpdateSchedule, now_ms: int) -> list[Schedule]:
    """Instants before now are not made up for; armed fires after now are taken back."""
    job, schedule = found(view, command.customer, command.job_id, command.schedule_id)
    check_version(schedule.version, command.version, command.schedule_id)
    stored = pinned(view, job.customer, command.spec)
    spec = ready(view, job.customer, stored)
    turn = Turn(view, job, schedule, now_ms)
    coming = recurrence.next_fire(spec, now_ms, hash_key=schedule.uid.hex())
    recurs_as_before = view.version >= FINISHED_SINCE and command.spec == schedule.spec
    if not turn.keep(spec) and coming is None and not recurs_as_before:
        raise Refused(Why.NEVER_FIRES, command.schedule_id)
    paused = schedule.state is ScheduleState.PAUSED
    turn.note_undecided(Outcome.PAUSED if paused else Outcome.MISSED)
    turn.take_back()
    turn.renew(
        labels=command.labels,
        spec=stored,
        policy=command.policy,
        payload=command.payload,
        update_ms=now_ms,
    )
    if view.version >= INSTANTS_SINCE:
        turn.drop_surplus()
    return [turn.resume(paused=paused)]


def delete(view: View, command: DeleteSchedules, now_ms: int) -> list[Schedule]:
    """Armed fires that are not due yet are taken back; running executions go on."""
    job = existing(view, command.customer, command.job_id)
    doomed = []
    for schedule_id in command.schedule_ids:
        schedule = view.schedule(job.uid, schedule_id)
        if schedule is not None:
            check_version(schedule.version, command.version, schedule_id)
            doomed.append(schedule)
        elif not command.lenient:
            found(view, command.customer, command.job_id, schedule_id)
    for schedule in doomed:
        turn = Turn(view, job, schedule, now_ms)
        if view.version >= DELETED_SINCE:
            view.put_deleted(turn.end())
        else:
            turn.take_back()
        if schedule.due_ms:
            view.delete_timer(timer(schedule))
        view.delete_schedule(schedule)
        note_use(view, schedule, None)
    view.set_schedule_count(job.uid, view.schedule_count(job.uid) - len(doomed))
    return doomed


def pause(view: View, command: PauseSchedule, now_ms: int) -> list[Schedule]:
    """Pausing what is paused changes the reason; what is finished has nothing to pause, unless its
    last fires are armed and not due yet: then these are what a resumption goes on with."""
    job, schedule = found(view, command.customer, command.job_id, command.schedule_id)
    finished = schedule.state is ScheduleState.FINISHED
    if finished and view.version < INSTANTS_SINCE:
        return [schedule]
    turn = Turn(view, job, schedule, now_ms)
    armed_ms = turn.take_back()
    if finished and not armed_ms:
        return [schedule]
    turn.drop_waiting(Outcome.PAUSED)
    changed = turn.finish(
        next_ms=armed_ms if finished else schedule.next_ms,
        redefined=schedule.state is not ScheduleState.PAUSED,
        state=ScheduleState.PAUSED,
        pause_reason=command.reason,
        due_ms=0,
        deferred=False,
        version=schedule.version + 1,
    )
    return [changed]


def resume(view: View, command: ResumeSchedule, now_ms: int) -> list[Schedule]:
    """Fires from the next instant after now: what fell due meanwhile does not fire."""
    job, schedule = found(view, command.customer, command.job_id, command.schedule_id)
    if schedule.state is not ScheduleState.PAUSED:
        raise Refused(Why.NOT_PAUSED, command.schedule_id)
    turn = Turn(view, job, schedule, now_ms)
    turn.keep(turn.spec)
    turn.note_undecided(Outcome.PAUSED)
    if view.version >= INSTANTS_SINCE:
        turn.drop_waiting(Outcome.PAUSED)  # left by a pause of a version before
    turn.failures = 0
    turn.renew(pause_reason="")
    return [turn.resume(paused=False)]
