"""Schedules: create, update, delete, pause, resume. When they fire is in fires.py."""

from __future__ import annotations

from . import recurrence
from .commands import (
    DELETED_SINCE,
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
from .view import View


def create(view: View, command: CreateSchedules, now_ms: int) -> list[Schedule]:
    """All or none; the same request again answers what it made the first time."""
    job = existing(view, command.customer, command.job_id)
    made: list[Schedule] = []
    fresh: list[tuple[Schedule, Row]] = []
    seen: set[str] = set()
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
        schedule, row = _made(view, job, new, command.request, now_ms, index)
        if not schedule.next_ms:
            raise Refused(Why.NEVER_FIRES, new.schedule_id, index)
        made.append(schedule)
        fresh.append((schedule, row))
    for schedule, row in fresh:
        view.put_schedule(schedule)
        view.put_row(schedule.uid, 0, row)
        view.put_timer(timer(schedule))
        note_use(view, None, schedule)
        spec = ready(view, job.customer, schedule.spec)
        if recurrence.skips(spec, now_ms, schedule.next_ms, hash_key=schedule.uid.hex()):
            turn = Turn(view, job, schedule, now_ms)
            turn.note_skips(now_ms, schedule.next_ms)
            turn.finish()
    if fresh:
        view.set_schedule_count(job.uid, view.schedule_count(job.uid) + len(fresh))
    return made


def _made(
    view: View, job: Job, new: NewSchedule, request: bytes, now_ms: int, index: int
) -> tuple[Schedule, Row]:
    """The schedule, and the first row of its ledger, which says what it is."""
    key = new.uid.hex()
    stored = pinned(view, job.customer, new.spec, index)
    spec = ready(view, job.customer, stored)
    nominal_ms = recurrence.next_fire(spec, now_ms, hash_key=key) or 0
    due_ms = recurrence.due_ms(spec, nominal_ms, hash_key=key) if nominal_ms else 0
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
    )
    return schedule, row


def update(view: View, command: UpdateSchedule, now_ms: int) -> list[Schedule]:
    """Instants before now are not made up for; armed fires after now are taken back."""
    job, schedule = found(view, command.customer, command.job_id, command.schedule_id)
    check_version(schedule.version, command.version, command.schedule_id)
    stored = pinned(view, job.customer, command.spec)
    spec = ready(view, job.customer, stored)
    if recurrence.next_fire(spec, now_ms, hash_key=schedule.uid.hex()) is None:
        raise Refused(Why.NEVER_FIRES, command.schedule_id)
    turn = Turn(view, job, schedule, now_ms)
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
    """Pausing what is paused changes the reason; what is finished has nothing to pause."""
    job, schedule = found(view, command.customer, command.job_id, command.schedule_id)
    if schedule.state is ScheduleState.FINISHED:
        return [schedule]
    turn = Turn(view, job, schedule, now_ms)
    turn.take_back()
    turn.drop_waiting(Outcome.PAUSED)
    changed = turn.finish(
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
    turn.note_undecided(Outcome.PAUSED)
    turn.failures = 0
    turn.renew(pause_reason="")
    return [turn.resume(paused=False)]
