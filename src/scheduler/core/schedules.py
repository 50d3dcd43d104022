"""Schedules: create, update, delete, pause, resume, and fire.

A schedule that can fire has one timer, at its `due_ms`. Firing creates the execution of that
instant and moves the timer to the next; both are one commit, so an instant fires once or not yet.

An instant has one execution, for ever. A fire that was armed and is taken back by a change or a
pause leaves a REVOKED one; if its instant comes up again before it is due (the schedule was changed
to something that has it too, or was resumed), that same execution goes on with a further attempt.

An instant that passed while no leader could fire it is a missed fire: of all missed instants the
latest fires, once, and its execution says for how many others it stands (`missed`).
"""

from __future__ import annotations

from msgspec.structs import replace

from . import executions, recurrence
from .commands import (
    CreateSchedules,
    DeleteSchedules,
    DueFire,
    Fire,
    NewSchedule,
    PauseSchedule,
    Refused,
    ResumeSchedule,
    UpdateSchedule,
    Why,
)
from .ids import execution_id
from .jobs import check_version, existing
from .model import Execution, Job, Reason, Schedule, ScheduleState, Timer, TimerKind
from .view import View


def timer(schedule: Schedule) -> Timer:
    """The timer of a schedule that can fire."""
    return Timer(
        schedule.due_ms, TimerKind.FIRE, schedule.job_uid, schedule.schedule_id.encode("ascii")
    )


def _found(view: View, customer: str, job_id: str, schedule_id: str) -> tuple[Job, Schedule]:
    job = existing(view, customer, job_id)
    schedule = view.schedule(job.uid, schedule_id)
    if schedule is None:
        name = f"customers/{customer}/jobs/{job_id}/schedules/{schedule_id}"
        raise Refused(Why.NOT_FOUND, name)
    return job, schedule


def _next(spec: recurrence.Spec, uid: bytes, after_ms: int) -> tuple[int, int]:
    """(nominal, due) of the next fire after an instant; (0, 0) if there is none."""
    key = uid.hex()
    nominal_ms = recurrence.next_fire(spec, after_ms, hash_key=key)
    if nominal_ms is None:
        return 0, 0
    return nominal_ms, recurrence.due_ms(spec, nominal_ms, hash_key=key)


def create(view: View, command: CreateSchedules, now_ms: int) -> list[Schedule]:
    """All or none; the same request again answers what it made the first time."""
    job = existing(view, command.customer, command.job_id)
    made: list[Schedule] = []
    fresh: list[Schedule] = []
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
        schedule = _made(job, new, command.request, now_ms)
        if not schedule.next_ms:
            raise Refused(Why.NEVER_FIRES, new.schedule_id, index)
        made.append(schedule)
        fresh.append(schedule)
    for schedule in fresh:
        view.put_schedule(schedule)
        view.put_timer(timer(schedule))
    if fresh:
        view.set_schedule_count(job.uid, view.schedule_count(job.uid) + len(fresh))
    return made


def _made(job: Job, new: NewSchedule, request: bytes, now_ms: int) -> Schedule:
    next_ms, due_ms = _next(new.spec, new.uid, now_ms)
    return Schedule(
        job.customer,
        job.job_id,
        new.schedule_id,
        job.uid,
        new.uid,
        new.labels,
        new.spec,
        new.payload,
        ScheduleState.ACTIVE,
        "",
        next_ms,
        due_ms,
        0,
        0,
        0,
        now_ms,
        now_ms,
        1,
        request,
    )


def update(view: View, command: UpdateSchedule, now_ms: int) -> list[Schedule]:
    """Instants before now are not made up for; armed fires after now are taken back."""
    job, schedule = _found(view, command.customer, command.job_id, command.schedule_id)
    check_version(schedule.version, command.version, command.schedule_id)
    next_ms, due_ms = _next(command.spec, schedule.uid, now_ms)
    if not next_ms:
        raise Refused(Why.NEVER_FIRES, command.schedule_id)
    _disarm(view, job, schedule, now_ms)
    paused = schedule.state is ScheduleState.PAUSED
    changed = replace(
        schedule,
        labels=command.labels,
        spec=command.spec,
        payload=command.payload,
        state=ScheduleState.PAUSED if paused else ScheduleState.ACTIVE,
        next_ms=0 if paused else next_ms,
        due_ms=0 if paused else due_ms,
        update_ms=now_ms,
        version=schedule.version + 1,
    )
    _put(view, changed)
    return [changed]


def delete(view: View, command: DeleteSchedules, now_ms: int) -> list[Schedule]:
    """Armed fires that are not due yet are taken back; running executions go on."""
    job = existing(view, command.customer, command.job_id)
    found = []
    for schedule_id in command.schedule_ids:
        schedule = view.schedule(job.uid, schedule_id)
        if schedule is not None:
            check_version(schedule.version, command.version, schedule_id)
            found.append(schedule)
        elif not command.lenient:
            _found(view, command.customer, command.job_id, schedule_id)
    for schedule in found:
        _disarm(view, job, schedule, now_ms)
        view.delete_schedule(schedule)
    view.set_schedule_count(job.uid, view.schedule_count(job.uid) - len(found))
    return found


def pause(view: View, command: PauseSchedule, now_ms: int) -> list[Schedule]:
    """Pausing what is paused changes the reason."""
    job, schedule = _found(view, command.customer, command.job_id, command.schedule_id)
    _disarm(view, job, schedule, now_ms)
    changed = replace(
        schedule,
        state=ScheduleState.PAUSED,
        pause_reason=command.reason,
        next_ms=0,
        due_ms=0,
        version=schedule.version + 1,
    )
    _put(view, changed)
    return [changed]


def resume(view: View, command: ResumeSchedule, now_ms: int) -> list[Schedule]:
    """Fires from the next instant after now: what fell due meanwhile does not fire."""
    _, schedule = _found(view, command.customer, command.job_id, command.schedule_id)
    if schedule.state is not ScheduleState.PAUSED:
        raise Refused(Why.NOT_PAUSED, command.schedule_id)
    next_ms, due_ms = _next(schedule.spec, schedule.uid, now_ms)
    changed = replace(
        schedule,
        state=ScheduleState.ACTIVE if next_ms else ScheduleState.FINISHED,
        pause_reason="",
        next_ms=next_ms,
        due_ms=due_ms,
        version=schedule.version + 1,
    )
    _put(view, changed)
    return [changed]


def _put(view: View, schedule: Schedule) -> None:
    view.put_schedule(schedule)
    if schedule.due_ms:
        view.put_timer(timer(schedule))


def _disarm(view: View, job: Job, schedule: Schedule, now_ms: int) -> None:
    """Delete its timer and take back its armed fires: those whose instant is after now."""
    if schedule.due_ms:
        view.delete_timer(timer(schedule))
    key = schedule.uid.hex()
    # Fires are armed a little ahead of their due time, so few instants lie between now and the
    # last one that fired. Jitter moves due times later: look back by it.
    nominal_ms = now_ms - schedule.spec.jitter_ms
    while True:
        following = recurrence.next_fire(schedule.spec, nominal_ms, hash_key=key)
        if following is None or following > schedule.last_ms:
            return
        nominal_ms = following
        due_ms = recurrence.due_ms(schedule.spec, nominal_ms, hash_key=key)
        if due_ms > now_ms:
            armed = view.execution(job.uid, execution_id(nominal_ms, schedule.uid))
            if armed is not None:
                executions.stop(view, armed, Reason.REVOKED, now_ms)


def fire(view: View, command: Fire, now_ms: int) -> list[Execution]:
    """Create the executions of the timers that came up; stale ones are passed over."""
    if command.floor_ms > view.floor_ms():
        view.set_floor_ms(command.floor_ms)
    made = []
    for due in command.fires:
        execution = _fire(view, due, now_ms)
        if execution is not None:
            made.append(execution)
    return made


def _fire(view: View, due: DueFire, now_ms: int) -> Execution | None:
    schedule = view.schedule(due.job_uid, due.schedule_id)
    if schedule is None or schedule.due_ms != due.due_ms:
        return None
    job = view.job(schedule.customer, schedule.job_id)
    assert job is not None and job.uid == schedule.job_uid, "a job with schedules is never deleted"
    key = schedule.uid.hex()
    nominal_ms, due_ms, missed = schedule.next_ms, schedule.due_ms, 0
    if due_ms <= now_ms:
        # Late. If further instants have passed meanwhile, the latest stands for all of them.
        latest_ms, count = recurrence.latest_fire(
            schedule.spec, nominal_ms, now_ms - schedule.spec.jitter_ms, hash_key=key
        )
        if latest_ms is not None:
            nominal_ms, missed = latest_ms, count
            due_ms = recurrence.due_ms(schedule.spec, nominal_ms, hash_key=key)
    next_ms, next_due_ms = _next(schedule.spec, schedule.uid, nominal_ms)
    view.delete_timer(timer(schedule))
    identity = execution_id(nominal_ms, schedule.uid)
    earlier = view.execution(job.uid, identity)
    changed = replace(
        schedule,
        state=schedule.state if next_ms else ScheduleState.FINISHED,
        next_ms=next_ms,
        due_ms=next_due_ms,
        last_ms=nominal_ms,
        fire_count=schedule.fire_count + (earlier is None),
        missed_count=schedule.missed_count + missed,
    )
    _put(view, changed)
    if earlier is not None:
        return executions.fire_again(view, job, earlier, schedule.payload, due.placement, now_ms)
    return executions.create(
        view,
        job,
        identity,
        due_ms=due_ms,
        now_ms=now_ms,
        payload=schedule.payload,
        placement=due.placement,
        schedule_id=schedule.schedule_id,
        missed=missed,
    )
