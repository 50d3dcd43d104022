"""Calendars: create, update, delete; and the schedules that follow a change."""

from __future__ import annotations

from msgspec.structs import replace

from . import recurrence
from .commands import (
    CreateCalendar,
    DeleteCalendar,
    PinSchedules,
    Refused,
    UpdateCalendar,
    Why,
)
from .fires import Turn
from .jobs import check_version
from .ledger import Outcome
from .model import Calendar, Schedule, ScheduleState
from .pins import calendar_name, pinned, ready
from .recurrence import calendar_digest
from .view import View

CALENDARS_MAX = 1_000
"""Of one customer: a page of a listing."""

PINNED_MAX = 250
"""Schedules that one command changes, about 40 ms of applying; further ones change the others."""

USERS_NAMED_MAX = 10
"""Schedules that a refusal names."""


def existing(view: View, customer: str, calendar_id: str) -> Calendar:
    """The calendar; Refused if there is none."""
    calendar = view.calendar(customer, calendar_id)
    if calendar is None:
        raise Refused(Why.NOT_FOUND, calendar_name(customer, calendar_id))
    return calendar


def create(view: View, command: CreateCalendar, now_ms: int) -> list[Calendar]:
    """The same request again answers what it made the first time."""
    stored = view.calendar(command.customer, command.calendar_id)
    if stored is not None:
        if not command.request or stored.request != command.request:
            raise Refused(Why.ALREADY_EXISTS, command.calendar_id)
        return [stored]
    count = view.calendar_count(command.customer)
    if count >= CALENDARS_MAX:
        raise Refused(Why.TOO_MANY_CALENDARS, command.customer)
    made = Calendar(
        customer=command.customer,
        calendar_id=command.calendar_id,
        uid=command.uid,
        display_name=command.display_name,
        labels=command.labels,
        content=command.content,
        digest=calendar_digest(command.content),
        create_ms=now_ms,
        update_ms=now_ms,
        version=1,
        request=command.request,
    )
    view.put_calendar(made)
    view.set_calendar_count(command.customer, count + 1)
    return [made]


def update(view: View, command: UpdateCalendar, now_ms: int) -> list[Calendar]:
    """A changed content changes the schedules that use it: some at once, see `pin` for the rest."""
    calendar = existing(view, command.customer, command.calendar_id)
    check_version(calendar.version, command.version, command.calendar_id)
    changed = replace(
        calendar,
        display_name=command.display_name,
        labels=command.labels,
        content=command.content,
        digest=calendar_digest(command.content),
        update_ms=now_ms,
        version=calendar.version + 1,
    )
    if changed.digest != calendar.digest:
        stranded, _ = left_without(view, changed, b"", now_ms)
        if stranded:
            raise Refused(Why.LEAVES_NOTHING, listed(stranded))
        view.put_content(calendar.digest, calendar.content)
        view.put_calendar(changed)
        view.set_calendar_pending(command.customer, command.calendar_id, b"")
        _pin_some(view, changed, b"", now_ms)
    else:
        view.put_calendar(changed)
    return [changed]


def delete(view: View, command: DeleteCalendar) -> list[Calendar]:
    """Refused while a schedule uses it."""
    calendar = existing(view, command.customer, command.calendar_id)
    check_version(calendar.version, command.version, command.calendar_id)
    users = view.calendar_users(command.customer, command.calendar_id, b"", USERS_NAMED_MAX + 1)
    if users:
        raise Refused(Why.IN_USE, listed([_user_name(view, *user) for user in users]))
    # The ledgers of those that did may be audited still.
    view.put_content(calendar.digest, calendar.content)
    view.delete_calendar(calendar)
    view.set_calendar_pending(command.customer, command.calendar_id, None)
    view.set_calendar_count(command.customer, view.calendar_count(command.customer) - 1)
    return [calendar]


def pin(view: View, command: PinSchedules, now_ms: int) -> list[Calendar]:
    """Whatever was done meanwhile: those that follow already are passed over."""
    calendar = view.calendar(command.customer, command.calendar_id)
    after = view.calendar_pending(command.customer, command.calendar_id)
    if calendar is None or after is None:
        return []
    _pin_some(view, calendar, after, now_ms)
    return [calendar]


def follow_pins(view: View, schedule: Schedule, now_ms: int) -> bool:
    """Change a schedule to what its calendars and time zones are now, as an update of it would;
    whether there was anything to change."""
    spec = pinned(view, schedule.customer, schedule.spec)
    if spec == schedule.spec:
        return False
    job = view.job(schedule.customer, schedule.job_id)
    assert job is not None, "a job with schedules is never deleted"
    turn = Turn(view, job, schedule, now_ms)
    turn.keep(ready(view, schedule.customer, spec))
    paused = schedule.state is ScheduleState.PAUSED
    turn.note_undecided(Outcome.PAUSED if paused else Outcome.MISSED)
    turn.take_back()
    turn.renew(spec=spec, update_ms=now_ms)
    turn.resume(paused=paused)
    return True


def _pin_some(view: View, calendar: Calendar, after: bytes, now_ms: int) -> None:
    """Change the next users of a calendar to what it says: an update of each."""
    customer, calendar_id = calendar.customer, calendar.calendar_id
    users = view.calendar_users(customer, calendar_id, after, PINNED_MAX)
    for job_uid, schedule_id in users:
        schedule = view.schedule(job_uid, schedule_id)
        assert schedule is not None, "the index of a calendar's users names one that is not"
        follow_pins(view, schedule, now_ms)
    last = users[-1][0] + users[-1][1].encode() if len(users) == PINNED_MAX else None
    view.set_calendar_pending(customer, calendar_id, last)


def left_without(
    view: View, changed: Calendar, after: bytes, now_ms: int
) -> tuple[list[str], bytes | None]:
    """Names of schedules that a changed calendar would leave nothing to fire, of the next users
    after one, and where to go on (None: there are no more). Those that have finished do not count.
    """
    stranded: list[str] = []
    customer = changed.customer
    users = view.calendar_users(customer, changed.calendar_id, after, PINNED_MAX)
    for job_uid, schedule_id in users:
        schedule = view.schedule(job_uid, schedule_id)
        assert schedule is not None, "the index of a calendar's users names one that is not"
        if schedule.state is ScheduleState.FINISHED:
            continue
        spec = ready(view, customer, schedule.spec)
        pins = tuple(
            replace(pin, digest=changed.digest, content=changed.content)
            if pin.name == changed.calendar_id
            else pin
            for pin in spec.calendars
        )
        spec = replace(spec, calendars=pins)
        if recurrence.next_fire(spec, now_ms, hash_key=schedule.uid.hex()) is None:
            stranded.append(_user_name(view, job_uid, schedule_id))
    last = users[-1][0] + users[-1][1].encode() if len(users) == PINNED_MAX else None
    return stranded, last


def _user_name(view: View, job_uid: bytes, schedule_id: str) -> str:
    schedule = view.schedule(job_uid, schedule_id)
    assert schedule is not None, "the index of a calendar's users names one that is not"
    return f"{schedule.job_id}/{schedule_id}"


def listed(names: list[str]) -> str:
    """Some names, for people."""
    shown = ", ".join(names[:USERS_NAMED_MAX])
    return f"{shown}, ..." if len(names) > USERS_NAMED_MAX else shown
