"""How schedules use calendars and time zones: each is pinned to what those say.

What a schedule is, and so when it fires, changes with the schedule alone: a calendar that is
changed changes the schedules that use it (calendars.py), and so does a zone that means something
else in another release of tzdata (zones.py), each as an update of it would. So the ledger's
definitions name the very content that held, by its digest, and an audit finds it; and replicas that
have different releases of tzdata compute the same.

UTC is never pinned: it does not change.
"""

from __future__ import annotations

from msgspec.structs import replace

from . import recurrence
from .commands import Refused, Why
from .model import Schedule
from .recurrence import Pin, Spec
from .view import View


def calendar_name(customer: str, calendar_id: str) -> str:
    """As users know it."""
    return f"customers/{customer}/calendars/{calendar_id}"


def pinned(view: View, customer: str, spec: Spec, index: int = 0) -> Spec:
    """A spec with its calendars and zones pinned to what they are now. Refused if there is no
    calendar of a name; a zone that the shard does not know stays the package's."""
    digest = _zone_digest(view, spec.zone)
    if not spec.calendars:
        return spec if digest == spec.zone_digest else replace(spec, zone_digest=digest)
    pins = []
    for pin in spec.calendars:
        calendar = view.calendar(customer, pin.name)
        if calendar is None:
            raise Refused(Why.NOT_FOUND, calendar_name(customer, pin.name), index)
        zone = _zone_digest(view, calendar.content.zone)
        pins.append(Pin(pin.name, calendar.digest, zone_digest=zone))
    return replace(spec, calendars=tuple(pins), zone_digest=digest)


def _zone_digest(view: View, name: str) -> bytes:
    zone = None if name in ("", "UTC") else view.zone(name)
    return b"" if zone is None else zone.digest


def ready(view: View, customer: str, spec: Spec) -> Spec:
    """A pinned spec with its calendars' content: what computes fires takes it.

    Raises LookupError if a content is gone: never while a schedule or a row that is kept has it.
    """

    def content(pin: Pin) -> recurrence.Calendar:
        calendar = view.calendar(customer, pin.name)
        if calendar is not None and calendar.digest == pin.digest:
            return calendar.content
        found = view.content(pin.digest)
        if found is None:
            raise LookupError(f"what calendar {pin.name} said is not kept any more")
        return found

    return recurrence.with_calendars(spec, content)


def note_use(view: View, before: Schedule | None, after: Schedule | None) -> None:
    """Keep the index of who uses which calendar; None: it is created, or deleted."""
    old = set() if before is None else {pin.name for pin in before.spec.calendars}
    new = set() if after is None else {pin.name for pin in after.spec.calendars}
    for name in sorted(old ^ new):
        one = after if name in new else before
        assert one is not None
        view.set_calendar_user(name, one, name in new)
