"""What is wrong with a spec, said to the customer. A customer's mistake raises nothing here."""

import difflib
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import msgspec

from .cron import parse
from .dates import read_date
from .errors import CronError, RecurrenceError
from .limits import (
    AT_MAX,
    CALENDARS_MAX,
    CRONS_MAX,
    EVERIES_MAX,
    EXCLUDED_DATES_MAX,
    EXCLUDED_WINDOWS_MAX,
    HORIZON_MS,
    HORIZON_YEAR,
    JITTER_MS_MAX,
    MAX_FIRES_MAX,
    PERIOD_MS_MAX,
    PERIOD_MS_MIN,
    ZONE_CHARACTERS_MAX,
)
from .pattern import NO_LOCAL, Fields, Pattern, lowest_bit, month_days
from .program import next_fire
from .spec import Calendar, Gap, Pin, Problem, Spec
from .zones import load, names

_YEARS_LOOKED_AT: Final = range(2024, 2032)
"""Leap years and every weekday a year can begin with: enough to see whether two days adjoin."""

_FAR_DAYS: Final = 366

CRON_STEP_MS: Final = 1_000
"""Crons are to the second."""


def validate(
    spec: Spec, *, after_ms: int = 0, period_ms_min: int = PERIOD_MS_MIN, hash_key: str = ""
) -> list[Problem]:
    """Returns every problem of a spec; an empty list means that it can be stored and evaluated.

    `after_ms` is now, for "never fires"; `period_ms_min` is the shortest time between two fires
    of one cron or period that the customer's plan allows.
    """
    problems = [
        *_sizes(spec),
        *_zone(spec),
        *_crons(spec, period_ms_min, hash_key),
        *_periods(spec, period_ms_min),
        *_instants(spec),
        *_exclusions(spec),
    ]
    if not problems and next_fire(spec, after_ms, hash_key=hash_key) is None:
        problems.append(Problem("spec", _why_never(spec, after_ms, hash_key)))
    return problems


def validate_calendar(calendar: Calendar, *, after_ms: int) -> list[Problem]:
    """Returns every problem of a calendar. `after_ms` is now, for "leaves no instant"."""
    spec = Spec(
        at_ms=(0,),
        zone=calendar.zone or "UTC",
        excluded_dates=calendar.dates,
        excluded_windows=calendar.windows,
    )
    problems = [*_sizes(spec), *_zone(spec), *_exclusions(spec)]
    problems = [
        Problem(problem.field.removeprefix("excluded_"), problem.message) for problem in problems
    ]
    if not problems:
        pin = Pin("", content=calendar)
        if next_fire(Spec(every=((1_000, 0),), calendars=(pin,)), after_ms) is None:
            problems.append(Problem("", "leaves out every instant: no schedule could ever fire"))
    return problems


def _sizes(spec: Spec) -> Iterator[Problem]:
    for field, count, most in (
        ("crons", len(spec.crons), CRONS_MAX),
        ("every", len(spec.every), EVERIES_MAX),
        ("at_ms", len(spec.at_ms), AT_MAX),
        ("excluded_dates", len(spec.excluded_dates), EXCLUDED_DATES_MAX),
        ("excluded_windows", len(spec.excluded_windows), EXCLUDED_WINDOWS_MAX),
        ("calendars", len(spec.calendars), CALENDARS_MAX),
    ):
        if count > most:
            yield Problem(field, f"{count} entries; at most {most} are allowed")
    if not (spec.crons or spec.every or spec.at_ms):
        yield Problem("spec", "says no time at all: give it a cron, a period or an instant")


def _zone(spec: Spec) -> Iterator[Problem]:
    try:
        load(spec.zone, spec.zone_digest)
    except RecurrenceError as error:
        near = near_zones(spec.zone)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; write an IANA name"
        yield Problem("zone", f"{error}{hint}")


def near_zones(name: str) -> list[str]:
    """Returns up to three zones that somebody who wrote this may have meant."""
    wanted = name[:ZONE_CHARACTERS_MAX].lower().replace(" ", "_")
    whole = {known.lower(): known for known in sorted(names())}
    if wanted in whole:
        return [whole[wanted]]
    cities = {known.rpartition("/")[2].lower(): known for known in sorted(names())}
    if wanted in cities:
        return [cities[wanted]]
    return [whole[near] for near in difflib.get_close_matches(wanted, whole, n=3, cutoff=0.75)]


def _crons(spec: Spec, period_ms_min: int, hash_key: str) -> Iterator[Problem]:
    for at, cron in enumerate(spec.crons[:CRONS_MAX]):
        field = f"crons[{at}]"
        try:
            pattern = Pattern(parse(cron).resolve(hash_key))
        except CronError as error:
            yield Problem(field, str(error))
            continue
        if pattern.next_local(0) == NO_LOCAL:
            yield Problem(field, f"'{cron}' never fires: no month has such a day")
            continue
        if period_ms_min <= CRON_STEP_MS:
            continue  # no cron can be more often, and finding out costs milliseconds
        period_ms = shortest_s(pattern) * 1_000
        if period_ms < period_ms_min:
            yield Problem(field, _too_often(period_ms, period_ms_min))


def _periods(spec: Spec, period_ms_min: int) -> Iterator[Problem]:
    for at, (period_ms, phase_ms) in enumerate(spec.every[:EVERIES_MAX]):
        field = f"every[{at}]"
        if period_ms < 1 or period_ms > PERIOD_MS_MAX:
            yield Problem(field, f"a period of {period_ms} ms; allowed are 1 to {PERIOD_MS_MAX}")
        elif period_ms < period_ms_min:
            yield Problem(field, _too_often(period_ms, period_ms_min))
        if abs(phase_ms) > HORIZON_MS:
            yield Problem(field, f"a phase of {phase_ms} ms is beyond the year {HORIZON_YEAR}")


def _too_often(period_ms: int, period_ms_min: int) -> str:
    return f"fires {period_ms / 1_000:g} s apart; at least {period_ms_min / 1_000:g} s are required"


def _instants(spec: Spec) -> Iterator[Problem]:
    for at, instant_ms in enumerate(spec.at_ms[:AT_MAX]):
        if not 0 <= instant_ms < HORIZON_MS:
            yield Problem(f"at_ms[{at}]", f"{instant_ms} is not between 1970 and {HORIZON_YEAR}")
    for field, bound in (("start_ms", spec.start_ms), ("end_ms", spec.end_ms)):
        if bound is not None and not 0 <= bound <= HORIZON_MS:
            yield Problem(field, f"{bound} is not between 1970 and {HORIZON_YEAR}")
    if spec.start_ms is not None and spec.end_ms is not None and spec.end_ms <= spec.start_ms:
        yield Problem("end_ms", "is not after start_ms")
    if spec.max_fires is not None and not 1 <= spec.max_fires <= MAX_FIRES_MAX:
        yield Problem("max_fires", f"{spec.max_fires} is not between 1 and {MAX_FIRES_MAX}")
    if not 0 <= spec.jitter_ms <= JITTER_MS_MAX:
        yield Problem("jitter_ms", f"{spec.jitter_ms} is not between 0 and {JITTER_MS_MAX}")


def _exclusions(spec: Spec) -> Iterator[Problem]:
    for at, text in enumerate(spec.excluded_dates[:EXCLUDED_DATES_MAX]):
        try:
            read_date(text)
        except RecurrenceError as error:
            yield Problem(f"excluded_dates[{at}]", str(error))
    for at, (start, end) in enumerate(spec.excluded_windows[:EXCLUDED_WINDOWS_MAX]):
        if not 0 <= start < end <= HORIZON_MS:
            yield Problem(
                f"excluded_windows[{at}]", f"[{start}, {end}) is empty, reversed or out of range"
            )


def _why_never(spec: Spec, after_ms: int, hash_key: str) -> str:
    bare = msgspec.structs.replace(spec, calendars=(), excluded_dates=(), excluded_windows=())
    if next_fire(bare, after_ms, hash_key=hash_key) is not None:
        own = ["the exclusions"] if spec.excluded_dates or spec.excluded_windows else []
        names = [f"calendar {pin.name}" for pin in spec.calendars]
        verb = "leave" if own or len(names) > 1 else "leaves"
        return f"never fires: {' and '.join(own + names)} {verb} out every instant"
    unbounded = msgspec.structs.replace(bare, start_ms=None, end_ms=None)
    if next_fire(unbounded, after_ms, hash_key=hash_key) is not None:
        return "never fires: no instant lies between start and end"
    moving = msgspec.structs.replace(unbounded, gap=Gap.AFTER)
    if next_fire(moving, after_ms, hash_key=hash_key) is not None:
        return "never fires: its times fall into gaps of daylight saving, which it skips"
    return "never fires: every instant is in the past"


def shortest_s(pattern: Pattern) -> int:
    """Returns the shortest local time between two fires of a pattern, in seconds."""
    fields = pattern.fields
    seconds_span = _span(fields.seconds)
    minutes_span = _span(fields.minutes) * 60 + seconds_span
    day_span = _span(fields.hours) * 3_600 + minutes_span
    found = [_least_step(_nearest_days(pattern)) * 86_400 - day_span]
    if _span(fields.hours):
        found.append(_least_step(_numbers(fields.hours)) * 3_600 - minutes_span)
    if _span(fields.minutes):
        found.append(_least_step(_numbers(fields.minutes)) * 60 - seconds_span)
    if _span(fields.seconds):
        found.append(_least_step(_numbers(fields.seconds)))
    return min(found)


def _nearest_days(pattern: Pattern) -> list[int]:
    if _every_day(pattern.fields):
        return [0, 1]
    days: list[int] = []
    month_start = 0
    for year in _YEARS_LOOKED_AT:
        for month in range(1, 13):
            mask = pattern.day_mask(year, month)
            days.extend(month_start + day for day in _numbers(mask))
            month_start += month_days(year, month)
    return days if len(days) > 1 else [0, _FAR_DAYS]  # 29 February on a given weekday


def _every_day(fields: Fields) -> bool:
    return fields.days.bit_count() == 31 and fields.weekdays == 0x7F


def _numbers(mask: int) -> list[int]:
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def _least_step(numbers: list[int]) -> int:
    return min(after - before for before, after in pairwise(numbers))


def _span(mask: int) -> int:
    return mask.bit_length() - 1 - lowest_bit(mask)
