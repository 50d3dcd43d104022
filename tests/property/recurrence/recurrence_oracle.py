"""A slow, plain second opinion: walks every minute and looks at the clocks.

Shares nothing with the engine but the pinned zone files: fields are sets that hypothesis drew
together with their text, dates come from `calendar`, offsets from the standard library's zoneinfo.
"""

import calendar
import datetime
import functools
import importlib.resources
import io
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

Days = Callable[[datetime.date], bool]
UTC = datetime.UTC
MINUTE = datetime.timedelta(minutes=1)


@functools.cache
def zone(name: str) -> zoneinfo.ZoneInfo:
    path = importlib.resources.files("tzdata") / "zoneinfo"
    for part in name.split("/"):
        path = path / part
    return zoneinfo.ZoneInfo.from_file(io.BytesIO(path.read_bytes()), key=name)


@dataclass(frozen=True)
class Drawn:
    """A cron's text with what it was made from."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    months: frozenset[int]
    by_date: Days
    by_weekday: Days
    either: bool
    fixed: bool

    def matches(self, local: datetime.datetime) -> bool:
        if local.minute not in self.minutes or local.hour not in self.hours:
            return False
        return self.matches_day(local.date())

    def matches_day(self, day: datetime.date) -> bool:
        if day.month not in self.months:
            return False
        found = (self.by_date(day), self.by_weekday(day))
        return any(found) if self.either else all(found)


def walk(
    cron: Drawn, zone_name: str, start: datetime.datetime, end: datetime.datetime,
    *, skip_gaps: bool = False, both_folds: bool = False,
) -> list[int]:  # fmt: skip
    """Returns the fires in (start, end) as epoch ms, by looking at each minute of a wider span."""
    first, last = start - datetime.timedelta(days=2), end + datetime.timedelta(days=2)
    instants: list[datetime.datetime] = []
    locals_: list[datetime.datetime] = []
    at = first
    rules = zone(zone_name)
    while at < last:
        instants.append(at)
        locals_.append(at.astimezone(rules).replace(tzinfo=None, fold=0))
        at += MINUTE
    if cron.fixed:
        fires = _fixed(cron, instants, locals_, skip_gaps, both_folds)
    else:
        fires = {at for at, local in zip(instants, locals_, strict=True) if cron.matches(local)}
    return sorted(int(at.timestamp()) * 1_000 for at in fires if start < at < end)


def _fixed(
    cron: Drawn, instants: list[datetime.datetime], locals_: list[datetime.datetime],
    skip_gaps: bool, both_folds: bool,
) -> set[datetime.datetime]:  # fmt: skip
    """Takes every local minute of the span, and asks when clocks showed it."""
    shown: dict[datetime.datetime, list[datetime.datetime]] = {}
    for at, local in zip(instants, locals_, strict=True):
        shown.setdefault(local, []).append(at)
    fires: set[datetime.datetime] = set()
    local = locals_[0]
    while local < locals_[-1]:
        if cron.matches(local):
            if local in shown:
                fires.update(shown[local] if both_folds else shown[local][:1])
            elif not skip_gaps:
                passed = next(i for i, other in enumerate(locals_) if other > local)
                fires.add(instants[passed])
        local += MINUTE
    return fires


def _number_lists(low: int, high: int) -> st.SearchStrategy[tuple[str, frozenset[int], bool]]:
    """Draws (text, values, starred) of an ordinary field."""
    values = st.integers(low, high)
    ranges = st.tuples(values, values, st.integers(1, min(7, high - low))).map(
        lambda r: (min(r[:2]), max(r[:2]), r[2])
    )
    plain = st.lists(values, min_size=1, max_size=3).map(
        lambda v: (",".join(map(str, v)), frozenset(v), False)
    )
    ranged = ranges.map(
        lambda r: (f"{r[0]}-{r[1]}/{r[2]}", frozenset(range(r[0], r[1] + 1, r[2])), False)
    )
    stepped = st.integers(1, min(high - low, 30)).map(
        lambda n: (f"*/{n}", frozenset(range(low, high + 1, n)), True)
    )
    star = st.just(("*", frozenset(range(low, high + 1)), True))
    return st.one_of(plain, ranged, stepped, star)


def _month_length(day: datetime.date) -> int:
    return calendar.monthrange(day.year, day.month)[1]


def _last_workday(day: datetime.date) -> bool:
    """Whether no later day of the month is a Monday to Friday, and this one is."""
    later = range(day.day + 1, _month_length(day) + 1)
    return day.weekday() < 5 and all(day.replace(day=n).weekday() >= 5 for n in later)


def _nearest_workday(target: int) -> Days:
    def matches(day: datetime.date) -> bool:
        length = _month_length(day)
        if target > length:
            return False
        # The Monday to Friday of the month with the least distance; no two are equally near, as
        # a weekend's other side is two days away.
        workdays = [n for n in range(1, length + 1) if day.replace(day=n).weekday() < 5]
        return day.day == min(workdays, key=lambda n: abs(n - target))

    return matches


def _date_rules() -> st.SearchStrategy[tuple[str, Days, bool]]:
    special = st.one_of(
        st.just(("L", lambda day: day.day == _month_length(day), False)),
        st.just(("LW", _last_workday, False)),
        st.integers(1, 30).map(
            lambda n: (f"L-{n}", lambda day: day.day == _month_length(day) - n, False)
        ),
        st.integers(1, 31).map(lambda n: (f"{n}W", _nearest_workday(n), False)),
    )
    plain = _number_lists(1, 31).map(lambda f: (f[0], lambda day: day.day in f[1], f[2]))
    return st.one_of(plain, plain, special)


def _weekday_rules() -> st.SearchStrategy[tuple[str, Days, bool]]:
    last = st.tuples(st.integers(0, 7), st.booleans()).map(
        lambda d: (
            f"{d[0]}L" if d[1] else f"L{d[0]}",
            lambda day: day.isoweekday() % 7 == d[0] % 7 and day.day + 7 > _month_length(day),
            False,
        )
    )
    nth = st.tuples(st.integers(0, 7), st.integers(1, 5)).map(
        lambda d: (
            f"{d[0]}#{d[1]}",
            lambda day: day.isoweekday() % 7 == d[0] % 7 and (day.day - 1) // 7 + 1 == d[1],
            False,
        )
    )
    plain = _number_lists(0, 6).map(
        lambda f: (f[0], lambda day: day.isoweekday() % 7 in f[1], f[2])
    )
    return st.one_of(plain, plain, last, nth)


@st.composite
def crons(draw: st.DrawFn, *, any_day: bool = False) -> Drawn:
    """Draws a cron of five fields. `any_day`: no day fields, so that a short span has fires."""
    minutes = draw(_number_lists(0, 59))
    hours = draw(_number_lists(0, 23))
    if any_day:
        dates: tuple[str, Days, bool] = ("*", lambda day: True, True)
        weekdays = dates
        months: tuple[str, frozenset[int], bool] = ("*", frozenset(range(1, 13)), True)
    else:
        dates, weekdays = draw(_date_rules()), draw(_weekday_rules())
        months = draw(_number_lists(1, 12))
    return Drawn(
        f"{minutes[0]} {hours[0]} {dates[0]} {months[0]} {weekdays[0]}",
        minutes[1],
        hours[1],
        months[1],
        dates[1],
        weekdays[1],
        either=not dates[2] and not weekdays[2],
        fixed=not minutes[2] and not hours[2],
    )
