"""The engine against a slow walker of our own, and against croniter and cronsim.

Where those two differ from our semantics, a test says so and shows it, so that an upgrade of theirs
which changes it is noticed.
"""

import datetime
import random
import re
from dataclasses import dataclass

import pytest
from croniter import CroniterError, croniter
from cronsim import CronSim, CronSimError
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from recurrence_oracle import UTC, Drawn, crons, walk, zone

from tickmesh.scheduler.core.recurrence import Fold, Gap, Spec, next_fire
from tickmesh.scheduler.core.recurrence.limits import HORIZON_S
from tickmesh.scheduler.core.recurrence.zones import load, names

# (zone, a UTC date near a transition): gaps and folds of every size and hour that we know of.
CHANGES = [
    ("Europe/Berlin", (2026, 3, 29)), ("Europe/Berlin", (2026, 10, 25)),
    ("Europe/Dublin", (2026, 3, 29)), ("Europe/Dublin", (2026, 10, 25)),
    ("America/New_York", (2026, 3, 8)), ("America/New_York", (2026, 11, 1)),
    ("Australia/Lord_Howe", (2026, 4, 4)), ("Australia/Lord_Howe", (2026, 10, 3)),
    ("Pacific/Apia", (2011, 12, 30)), ("Pacific/Kwajalein", (1993, 8, 21)),
    ("America/Sao_Paulo", (2018, 11, 4)), ("America/Sao_Paulo", (2018, 2, 18)),
    ("Africa/Cairo", (2023, 4, 27)), ("Africa/Cairo", (2023, 10, 26)),
    ("America/Caracas", (2007, 12, 9)), ("America/Caracas", (2016, 5, 1)),
    ("Asia/Pyongyang", (2015, 8, 14)), ("Asia/Pyongyang", (2018, 5, 4)),
    ("Africa/Casablanca", (2026, 2, 15)), ("Africa/Casablanca", (2026, 3, 22)),
    ("Antarctica/Troll", (2026, 3, 29)), ("Antarctica/Troll", (2026, 10, 25)),
    ("Asia/Gaza", (2026, 3, 28)), ("America/Nuuk", (2026, 3, 28)),
    ("America/Havana", (2026, 3, 8)), ("America/Scoresbysund", (2024, 3, 31)),
    ("Antarctica/Casey", (2020, 10, 3)), ("Asia/Kathmandu", (1985, 12, 31)),
    ("Pacific/Chatham", (2026, 4, 4)), ("Pacific/Chatham", (2026, 9, 26)),
    ("Asia/Colombo", (2006, 4, 14)), ("Europe/Moscow", (2011, 3, 27)),
    ("Europe/Moscow", (2014, 10, 25)), ("America/St_Johns", (2006, 10, 29)),
    ("Europe/Berlin", (2299, 10, 29)),
]  # fmt: skip


def ours(spec: Spec, start: datetime.datetime, end: datetime.datetime) -> list[int]:
    last, end_ms = int(start.timestamp()) * 1_000, int(end.timestamp()) * 1_000
    found: list[int] = []
    while True:
        fire = next_fire(spec, last)
        if fire is None or fire >= end_ms:
            return found
        assert fire > last
        found.append(fire)
        last = fire


@settings(max_examples=150, deadline=None)
@given(
    crons(any_day=True),
    st.sampled_from(CHANGES),
    st.sampled_from(list(Gap)),
    st.sampled_from(list(Fold)),
)
def test_every_fire_around_a_change_of_the_clocks(
    cron: Drawn, change: tuple[str, tuple[int, int, int]], gap: Gap, fold: Fold
) -> None:
    name, day = change
    start = datetime.datetime(*day, tzinfo=UTC) - datetime.timedelta(days=1)
    end = start + datetime.timedelta(days=3)
    expected = walk(cron, name, start, end, skip_gaps=gap is Gap.SKIP, both_folds=fold is Fold.BOTH)
    spec = Spec(crons=(cron.text,), zone=name, gap=gap, fold=fold)
    assert ours(spec, start, end) == expected


@pytest.mark.parametrize("text", ["30 2 * * *", "*/30 * * * *", "0,15,45 0-3 * * *", "0 * * * *"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change[0]}-{change[1]}")
def test_usual_crons_around_every_change(
    change: tuple[str, tuple[int, int, int]], text: str
) -> None:
    name, day = change
    values = {
        "30 2 * * *": ({30}, {2}, True),
        "*/30 * * * *": ({0, 30}, set(range(24)), False),
        "0,15,45 0-3 * * *": ({0, 15, 45}, {0, 1, 2, 3}, True),
        "0 * * * *": ({0}, set(range(24)), False),
    }
    minutes, hours, fixed = values[text]
    cron = Drawn(
        text, frozenset(minutes), frozenset(hours), frozenset(range(1, 13)),
        lambda day: True, lambda day: True, False, fixed,
    )  # fmt: skip
    start = datetime.datetime(*day, tzinfo=UTC) - datetime.timedelta(hours=30)
    end = start + datetime.timedelta(hours=60)
    assert ours(Spec(crons=(text,), zone=name), start, end) == walk(cron, name, start, end)


@settings(max_examples=300, deadline=None)
@given(crons(), st.dates(datetime.date(1970, 1, 2), datetime.date(2290, 1, 1)))
def test_every_day_of_two_years_of_the_calendar(cron: Drawn, first: datetime.date) -> None:
    days = [first + datetime.timedelta(days=n) for n in range(731)]
    expected = [day for day in days if cron.matches_day(day)]
    # The first minute of each matching day stands for the day.
    hour, minute = min(cron.hours), min(cron.minutes)
    start = datetime.datetime.combine(first, datetime.time(), UTC)
    found: list[datetime.date] = []
    last = int(start.timestamp()) * 1_000 - 1
    end = last + 731 * 86_400_000
    spec = Spec(crons=(cron.text,))
    while (fire := next_fire(spec, last)) is not None and fire <= end:
        moment = datetime.datetime(1970, 1, 1, tzinfo=UTC) + datetime.timedelta(milliseconds=fire)
        assert (moment.hour, moment.minute) == (hour, minute)
        found.append(moment.date())
        midnight = datetime.datetime.combine(moment.date(), datetime.time(), UTC)
        last = int(midnight.timestamp()) * 1_000 + 86_400_000 - 1
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.integers(0, 59), min_size=1, max_size=5),
    st.sets(st.integers(0, 59), min_size=1, max_size=5),
    st.sets(st.integers(0, 23), min_size=1, max_size=5),
    st.integers(0, 86_399),
)
def test_every_second_of_two_hours(
    seconds: set[int], minutes: set[int], hours: set[int], from_second: int
) -> None:
    text = " ".join(",".join(map(str, sorted(field))) for field in (seconds, minutes, hours))
    start = datetime.datetime(2026, 5, 5, tzinfo=UTC) + datetime.timedelta(seconds=from_second)
    expected = []
    for offset in range(1, 7_200):
        at = start + datetime.timedelta(seconds=offset)
        if at.second in seconds and at.minute in minutes and at.hour in hours:
            expected.append(int(at.timestamp()) * 1_000)
    end = start + datetime.timedelta(seconds=7_200)
    assert ours(Spec(crons=(f"{text} * * *",)), start, end) == expected


def test_offsets_of_all_zones_are_the_standard_librarys() -> None:
    draws = random.Random(1)
    for name in sorted(names()):
        rules = zone(name)
        timeline = load(name)
        # Around each transition until 2040, around some later ones, and anywhere.
        starts = timeline.starts[1:-1]
        near = [start for start in starts if start < 2_208_988_800]
        near += draws.sample(starts[len(near) :], min(10, len(starts) - len(near)))
        instants = [start + shift for start in near for shift in (-1, 0)]
        instants += [draws.randrange(HORIZON_S) for _ in range(100)]
        for instant in instants:
            offset = datetime.datetime.fromtimestamp(instant, rules).utcoffset()
            assert offset is not None
            assert timeline.offset_s(instant) == offset.total_seconds(), (name, instant)


def theirs_croniter(text: str, start: datetime.datetime, count: int) -> list[int]:
    walker = croniter(text, start, second_at_beginning=True)
    return [int(walker.get_next(datetime.datetime).timestamp()) * 1_000 for _ in range(count)]


def theirs_cronsim(text: str, start: datetime.datetime, count: int) -> list[int]:
    walker = CronSim(text, start)
    return [int(next(walker).timestamp()) * 1_000 for _ in range(count)]


def our_next(spec: Spec, start: datetime.datetime, count: int) -> list[int]:
    last, found = int(start.timestamp()) * 1_000, []
    for _ in range(count):
        fire = next_fire(spec, last)
        assert fire is not None
        found.append(fire)
        last = fire
    return found


moments = st.datetimes(
    datetime.datetime(1990, 1, 1), datetime.datetime(2060, 1, 1), timezones=st.just(UTC)
).map(lambda moment: moment.replace(microsecond=0))

quiet = [("Europe/Berlin", 2026, 6), ("America/New_York", 2027, 1), ("Asia/Kolkata", 2026, 2),
         ("Australia/Lord_Howe", 2026, 6), ("Pacific/Apia", 2026, 5)]  # fmt: skip


def fires_at_all(text: str) -> bool:
    return next_fire(Spec(crons=(text,)), 0) is not None


@settings(max_examples=300, deadline=None)
@given(crons(), moments)
def test_cronsim_agrees_in_utc(cron: Drawn, start: datetime.datetime) -> None:
    assume(cronsim_understands(cron.text) and fires_at_all(cron.text))
    assert our_next(Spec(crons=(cron.text,)), start, 4) == theirs_cronsim(cron.text, start, 4)


@settings(max_examples=200, deadline=None)
@given(crons(), moments)
def test_croniter_agrees_in_utc(cron: Drawn, start: datetime.datetime) -> None:
    assume(croniter_understands(cron.text) and fires_at_all(cron.text))
    assert our_next(Spec(crons=(cron.text,)), start, 4) == theirs_croniter(cron.text, start, 4)


@settings(max_examples=100, deadline=None)
@given(crons(any_day=True), st.sampled_from(quiet))
def test_both_agree_in_zones_far_from_changes(cron: Drawn, place: tuple[str, int, int]) -> None:
    name, year, month = place
    assume(not one_value_range(cron.text))
    start = datetime.datetime(year, month, 10, tzinfo=zone(name))
    expected = our_next(Spec(crons=(cron.text,), zone=name), start, 4)
    assert theirs_cronsim(cron.text, start, 4) == expected
    assert theirs_croniter(cron.text, start, 4) == expected


def one_value_range(text: str) -> bool:
    """Whether a field says 5-5/2: one value to us, 5/2 to both libraries (shown below)."""
    return re.search(r"(?<!\d)(\d+)-\1/", text) is not None


def cronsim_understands(text: str) -> bool:
    """Leaves out what it refuses: L5, L-3, 15W."""
    day, weekday = text.split()[2], text.split()[4]
    if one_value_range(text) or weekday.startswith("L"):
        return False
    return not day.startswith("L-") and (day == "LW" or not day.endswith("W"))


def croniter_understands(text: str) -> bool:
    """Leaves out what it refuses, and its own readings of two restricted day fields."""
    day, weekday = text.split()[2], text.split()[4]
    if one_value_range(text) or weekday.endswith("L"):
        return False
    if day != "*" and ("L" in weekday or "#" in weekday):
        return False
    if "*" not in (day, weekday) and ("*" in day or "*" in weekday):
        return False
    return day == "L" or not ("L" in day or "W" in day)


@dataclass(frozen=True)
class Difference:
    """What the three make of one cron: local times as day-month hour:minute, or a refusal."""

    cron: str
    after: tuple[int, int, int]
    ours: list[str]
    croniter: list[str] | None
    cronsim: list[str] | None


DIFFERENCES = [
    # Europe/Berlin, spring: a rhythm in the gap.
    Difference(
        "*/30 2 * * *", (2026, 3, 28), ["28.03 02:00", "28.03 02:30", "30.03 02:00"],
        ["28.03 02:00", "28.03 02:30", "29.03 03:00"],
        ["28.03 02:00", "28.03 02:30", "30.03 02:00"],
    ),
    # Autumn: a fixed time that happens twice.
    Difference(
        "30 2 * * *", (2026, 10, 25), ["25.10 02:30", "26.10 02:30"],
        ["25.10 02:30", "25.10 02:30"], ["25.10 02:30", "26.10 02:30"],
    ),
    # A range of one value with a step.
    Difference(
        "0 0 5-5/2 * *", (2026, 1, 1), ["05.01 00:00", "05.02 00:00"],
        ["03.01 00:00", "05.01 00:00"], ["05.01 00:00", "07.01 00:00"],
    ),
    # A starred step beside the other day field.
    Difference(
        "0 0 */2 * MON", (2026, 1, 1), ["05.01 00:00", "19.01 00:00"],
        ["03.01 00:00", "05.01 00:00"], ["05.01 00:00", "19.01 00:00"],
    ),
    # A counted weekday beside a day of month.
    Difference(
        "0 0 10 * MON#1", (2026, 1, 1), ["05.01 00:00", "10.01 00:00"],
        None, ["05.01 00:00", "10.01 00:00"],
    ),
    Difference("0 0 31W * *", (2026, 2, 1), ["31.03 00:00"], ["27.02 00:00"], None),
    Difference("0 0 L-3 * *", (2026, 1, 1), ["28.01 00:00"], None, None),
    Difference("0 0 * * 5L", (2026, 1, 1), ["30.01 00:00"], None, ["30.01 00:00"]),
    Difference("0 0 * * L5", (2026, 1, 1), ["30.01 00:00"], ["30.01 00:00"], None),
    Difference("0 0 ? * MON", (2026, 1, 1), ["05.01 00:00"], ["05.01 00:00"], None),
    Difference("0 0 * * FRI-MON", (2026, 1, 1), ["02.01 00:00"], ["02.01 00:00"], None),
    Difference("@daily", (2026, 1, 1), ["02.01 00:00"], ["02.01 00:00"], None),
    Difference("H 0 * * *", (2026, 1, 1), ["01.01 00:19"], None, None),
]  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENCES, ids=lambda case: case.cron)
def test_known_differences(case: Difference) -> None:
    start = datetime.datetime(*case.after, tzinfo=zone("Europe/Berlin"))
    spec = Spec(crons=(case.cron,), zone="Europe/Berlin")
    assert local_texts(our_next(spec, start, len(case.ours))) == case.ours
    for theirs, expected in ((theirs_croniter, case.croniter), (theirs_cronsim, case.cronsim)):
        if expected is None:
            with pytest.raises((CroniterError, CronSimError)):
                theirs(case.cron, start, 1)
        else:
            assert local_texts(theirs(case.cron, start, len(expected))) == expected


def local_texts(fires: list[int]) -> list[str]:
    moments = [datetime.datetime.fromtimestamp(at // 1_000, zone("Europe/Berlin")) for at in fires]
    return [moment.strftime("%d.%m %H:%M") for moment in moments]
