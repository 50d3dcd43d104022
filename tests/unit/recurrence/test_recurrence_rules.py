"""Bounds, periods, exclusions, jitter, counting, previews, descriptions, upgrades of tzdata."""

import datetime
import importlib.resources
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from tickmesh.scheduler.core.recurrence import (
    BadSpec,
    BadZoneFile,
    Calendar,
    Fold,
    Gap,
    Moves,
    Pin,
    Spec,
    UnknownZone,
    calendar_digest,
    describe,
    due_ms,
    fires_moved,
    latest_fire,
    next_fire,
    preview,
    skips,
    validate,
    validate_calendar,
    with_calendars,
    zones_version,
)
from tickmesh.scheduler.core.recurrence.limits import COUNT_MAX, HORIZON_MS, PREVIEW_MAX
from tickmesh.scheduler.core.recurrence.pattern import month_days

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def instant(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp() * 1_000)


NEW_YEAR = instant("2026-01-01T00:00Z")


def test_a_period_keeps_its_phase_whenever_one_asks() -> None:
    spec = Spec(every=((90_000, 12_345),))
    for after in (0, 12_344, 12_345, NEW_YEAR, NEW_YEAR + 1, NEW_YEAR + 89_999):
        found = next_fire(spec, after)
        assert found is not None
        assert after < found <= after + 90_000
        assert (found - 12_345) % 90_000 == 0


def test_a_negative_phase_is_a_phase() -> None:
    assert next_fire(Spec(every=((1_000, -300),)), 0) == 700


def test_parts_of_one_schedule_are_united() -> None:
    spec = Spec(
        crons=("0 * * * *", "30 0 * * *"),
        every=((DAY_MS, 15 * 60_000),),
        at_ms=(NEW_YEAR + 5, NEW_YEAR + HOUR_MS),
    )
    found = [fire.nominal_ms - NEW_YEAR for fire in preview(spec, NEW_YEAR - 1, 6)]
    assert found == [0, 5, 15 * 60_000, 30 * 60_000, HOUR_MS, 2 * HOUR_MS]


def test_one_off_instants_end() -> None:
    spec = Spec(at_ms=(30, 10, 20))
    assert [next_fire(spec, after) for after in (0, 10, 29, 30)] == [10, 20, 30, None]


def test_start_is_inside_and_end_is_outside() -> None:
    spec = Spec(crons=("0 * * * *",), start_ms=NEW_YEAR, end_ms=NEW_YEAR + 2 * HOUR_MS)
    assert next_fire(spec, 0) == NEW_YEAR
    assert next_fire(spec, NEW_YEAR) == NEW_YEAR + HOUR_MS
    assert next_fire(spec, NEW_YEAR + HOUR_MS) is None


def test_times_before_1970_do_not_fire() -> None:
    assert next_fire(Spec(crons=("0 0 * * *",)), -(10**15)) == 0
    assert next_fire(Spec(every=((7, 0),)), -1) == 0


@pytest.mark.parametrize(
    ("cron", "first_s", "next_s"),
    [
        ("17 20 * * *", 4_620, 1_800_062_220),  # of 31 December 1969 in New York
        ("* * * * *", 60, 1_800_000_060),
    ],
)
def test_west_of_greenwich_1970_begins_in_1969(cron: str, first_s: int, next_s: int) -> None:
    """Specs without dates are checked as of 1970; what is asked later must not suffer from it."""
    spec = Spec(crons=(cron,), zone="America/New_York")
    assert validate(spec) == []
    assert next_fire(spec, 0) == first_s * 1_000
    assert next_fire(spec, 1_800_000_000_000) == next_s * 1_000


def test_nothing_fires_beyond_the_horizon() -> None:
    for spec in (Spec(crons=("* * * * * *",)), Spec(every=((1_000, 0),)), Spec(at_ms=(1,))):
        assert next_fire(spec, HORIZON_MS - 1) is None
        assert next_fire(spec, 10**18) is None
    assert next_fire(Spec(every=((1_000, 0),)), HORIZON_MS - 1_001) == HORIZON_MS - 1_000


def test_excluded_dates_are_the_zones_own() -> None:
    spec = Spec(crons=("0 12 * * *",), zone="Pacific/Auckland", excluded_dates=("2026-01-02",))
    found = [fire.local for fire in preview(spec, NEW_YEAR - DAY_MS, 3) if not fire.skipped]
    assert found == [
        "2026-01-01T12:00:00+13:00",
        "2026-01-03T12:00:00+13:00",
        "2026-01-04T12:00:00+13:00",
    ]


def test_a_date_without_a_year_is_excluded_each_year() -> None:
    spec = Spec(crons=("0 0 25 12 *", "0 0 26 12 *"), excluded_dates=("12-25", "02-29"))
    found = next_fire(spec, NEW_YEAR)
    assert found == instant("2026-12-26T00:00Z")
    assert next_fire(spec, found) == instant("2027-12-26T00:00Z")


def test_an_excluded_date_that_comes_twice_is_excluded_twice() -> None:
    # Sao Paulo went from 24:00 back to 23:00 on 17 February 2018.
    spec = Spec(crons=("*/30 * * * *",), zone="America/Sao_Paulo", excluded_dates=("2018-02-17",))
    assert next_fire(spec, instant("2018-02-18T01:00Z")) == instant("2018-02-18T03:00Z")


def test_windows_are_left_out_to_their_end() -> None:
    spec = Spec(
        every=((1_000, 0),),
        excluded_windows=((NEW_YEAR + 5_000, NEW_YEAR + HOUR_MS), (NEW_YEAR + 9_000, NEW_YEAR)),
    )
    assert next_fire(spec, NEW_YEAR + 4_000) == NEW_YEAR + HOUR_MS


def test_overlapping_windows_are_one() -> None:
    spec = Spec(
        every=((1_000, 0),),
        excluded_windows=((5_000, 8_000), (2_000, 6_000), (7_000, 9_000), (9_000, 9_500)),
    )
    assert [next_fire(spec, after) for after in (0, 1_000)] == [1_000, 10_000]


def using(*calendars: Calendar, **parts: Any) -> Spec:
    """A spec with calendars named a, b, c, ..."""
    pins = [
        Pin(chr(ord("a") + at), calendar_digest(calendar), calendar)
        for at, calendar in enumerate(calendars)
    ]
    return Spec(calendars=tuple(pins), **parts)


def test_calendars_are_named_and_then_given_their_content() -> None:
    spec = Spec(crons=("0 0 * * *",), calendars=(Pin("holidays"), Pin("freeze")))
    content = {
        "holidays": Calendar(dates=("2026-01-02",)),
        "freeze": Calendar(windows=((NEW_YEAR + 2 * DAY_MS, NEW_YEAR + 4 * DAY_MS),)),
    }
    ready = with_calendars(spec, lambda pin: content[pin.name])
    assert next_fire(ready, NEW_YEAR) == NEW_YEAR + 4 * DAY_MS
    with pytest.raises(BadSpec, match="calendar 'holidays'"):
        next_fire(spec, NEW_YEAR)


def test_a_calendars_dates_are_local_to_its_zone_or_to_the_schedules() -> None:
    # 16:00 UTC is the next day in Tokyo.
    daily = {"crons": ("0 16 * * *",)}
    tokyo = using(Calendar(dates=("2026-01-03",), zone="Asia/Tokyo"), **daily)
    assert next_fire(tokyo, NEW_YEAR + DAY_MS) == instant("2026-01-03T16:00Z")
    anywhere = using(Calendar(dates=("2026-01-03",)), **daily)
    assert next_fire(anywhere, NEW_YEAR + 2 * DAY_MS) == instant("2026-01-04T16:00Z")
    at_home = using(Calendar(dates=("2026-01-03",)), zone="Asia/Tokyo", crons=("0 1 * * *",))
    assert next_fire(at_home, NEW_YEAR + DAY_MS) == instant("2026-01-03T16:00Z")


def test_a_preview_and_the_skips_name_the_calendar() -> None:
    spec = using(
        Calendar(dates=("2026-01-02",)), Calendar(dates=("01-02", "01-03")), crons=("0 0 * * *",)
    )
    found = [fire.note for fire in preview(spec, NEW_YEAR, 1) if fire.skipped]
    assert found == ["excluded by calendar a", "excluded by calendar b"]
    told, until_ms = skips(spec, NEW_YEAR, NEW_YEAR + 4 * DAY_MS)
    assert until_ms == NEW_YEAR + 4 * DAY_MS
    assert [(skip.calendar, skip.count, skip.by_clock) for skip in told] == [
        ("a", 1, False),
        ("b", 1, False),
    ]


def test_skips_end_where_too_many_instants_between_them_fire() -> None:
    spec = Spec(every=((1_000, 0),), excluded_windows=((5_000, 8_000), (2_000_000, 2_010_000)))
    found: list[tuple[int, int]] = []
    after_ms, rounds = 0, 0
    while after_ms < 2_100_000:
        told, until_ms = skips(spec, after_ms, 2_100_001)
        found += [(skip.first_ms, skip.count) for skip in told]
        assert until_ms > after_ms + 1
        after_ms, rounds = until_ms - 1, rounds + 1
    assert found == [(5_000, 3), (2_000_000, 10)]
    assert rounds == 3


def test_an_exclusion_of_its_own_is_told_before_a_calendars() -> None:
    spec = using(
        Calendar(dates=("2026-01-02",)), crons=("0 0 * * *",), excluded_dates=("2026-01-02",)
    )
    assert [fire.note for fire in preview(spec, NEW_YEAR, 1) if fire.skipped] == ["excluded"]


def test_calendars_that_leave_no_instant_are_told_by_name() -> None:
    spec = using(Calendar(dates=("12-25",)), crons=("0 0 25 12 *",))
    (problem,) = validate(spec, after_ms=NEW_YEAR)
    assert problem.message == "never fires: calendar a leaves out every instant"


EVERY_DAY = tuple(
    f"{month:02}-{day:02}"
    for month in range(1, 13)
    for day in range(1, month_days(2024, month) + 1)
)


@pytest.mark.parametrize(
    ("calendar", "field", "text"),
    [
        (Calendar(dates=("2026-02-30",)), "dates[0]", "not a date"),
        (Calendar(dates=("12-25",), zone="Europe/Berln"), "zone", "Europe/Berlin"),
        (Calendar(windows=((5, 5),)), "windows[0]", "empty"),
        (Calendar(dates=("12-25",) * 1_001), "dates", "at most 1000"),
        (Calendar(dates=EVERY_DAY), "", "leaves out every instant"),
        (Calendar(windows=((0, HORIZON_MS),)), "", "leaves out every instant"),
    ],
)
def test_what_is_wrong_with_a_calendar_is_said(calendar: Calendar, field: str, text: str) -> None:
    (problem,) = validate_calendar(calendar, after_ms=NEW_YEAR)
    assert problem.field == field and text in problem.message


def test_a_calendar_of_every_day_but_one_is_right() -> None:
    calendar = Calendar(dates=tuple(date for date in EVERY_DAY if date != "07-01"))
    assert validate_calendar(calendar, after_ms=NEW_YEAR) == []


def test_a_content_has_one_digest() -> None:
    one = Calendar(dates=("12-25",))
    assert calendar_digest(one) == calendar_digest(Calendar(dates=("12-25",)))
    assert calendar_digest(one) != calendar_digest(Calendar(dates=("12-26",)))
    assert len({hash(Pin("a", b"x", one)), hash(Pin("a", b"x"))}) == 1


def test_jitter_is_the_schedules_own_and_never_reorders() -> None:
    spec = Spec(crons=("* * * * *",), jitter_ms=5 * 60_000)
    dues = [fire.due_ms for fire in preview(spec, NEW_YEAR, 200, hash_key="a")]
    assert dues == sorted(set(dues))
    assert dues != [fire.due_ms for fire in preview(spec, NEW_YEAR, 200, hash_key="b")]
    assert dues == [fire.due_ms for fire in preview(spec, NEW_YEAR, 200, hash_key="a")]
    nominals = [fire.nominal_ms for fire in preview(spec, NEW_YEAR, 200, hash_key="a")]
    assert all(0 <= due - at < 60_000 for due, at in zip(dues, nominals, strict=True))


def test_jitter_spreads_a_herd_over_its_width() -> None:
    spec = Spec(crons=("0 0 * * *",), jitter_ms=60_000)
    delays = [due_ms(spec, NEW_YEAR, hash_key=str(uid)) - NEW_YEAR for uid in range(1_000)]
    assert 0 <= min(delays) < 1_000
    assert 59_000 < max(delays) <= 60_000


def test_the_latest_fire_and_how_many_there_were() -> None:
    spec = Spec(crons=("0 * * * *",))
    assert latest_fire(spec, NEW_YEAR, NEW_YEAR + DAY_MS) == (NEW_YEAR + DAY_MS, 24)
    assert latest_fire(spec, NEW_YEAR, NEW_YEAR + HOUR_MS - 1) == (None, 0)
    assert latest_fire(spec, NEW_YEAR, NEW_YEAR) == (None, 0)


def test_the_latest_fire_is_exact_where_counting_has_stopped() -> None:
    # A burst of 3,600 a day: the last one of three years is found without walking there.
    spec = Spec(crons=("* * 3 * * *",))
    last, count = latest_fire(spec, NEW_YEAR, NEW_YEAR + 3 * 365 * DAY_MS)
    assert count == COUNT_MAX
    assert last == NEW_YEAR + (3 * 365 - 1) * DAY_MS + 4 * HOUR_MS - 1_000


def test_a_preview_says_what_the_gap_did() -> None:
    spec = Spec(crons=("30 2 * * *",), zone="Europe/Berlin")
    moved = preview(spec, instant("2026-03-28T12:00Z"), 1)[0]
    assert moved.local == "2026-03-29T03:00:00+02:00"
    assert moved.note == "02:30 does not exist on 29 March 2026 in Europe/Berlin: runs at 03:00"
    skipping = msgspec.structs.replace(spec, gap=Gap.SKIP)
    skipped, runs = preview(skipping, instant("2026-03-28T12:00Z"), 1)
    assert skipped.skipped
    assert skipped.note == "02:30 does not exist on 29 March 2026 in Europe/Berlin: skipped"
    assert (runs.skipped, runs.note) == (False, "")


def test_a_preview_names_the_day_on_which_a_fire_lands() -> None:
    spec = Spec(crons=("30 9 * * *",), zone="Pacific/Apia")
    assert preview(spec, instant("2011-12-29T20:00Z"), 1)[0].note == (
        "09:30 does not exist on 30 December 2011 in Pacific/Apia: "
        "runs at 00:00 on 31 December 2011"
    )


def test_a_preview_counts_times_that_it_does_not_name() -> None:
    spec = Spec(crons=("0-59 2 * * *",), zone="Europe/Berlin")
    note = preview(spec, instant("2026-03-28T12:00Z"), 1)[0].note
    assert note.startswith("02:00, 02:01, 02:02, 02:03 and 56 more do not exist on 29 March 2026")


def test_a_preview_says_what_the_fold_did() -> None:
    spec = Spec(crons=("30 2 * * *",), zone="Europe/Berlin")
    first, second, after = preview(spec, instant("2026-10-24T12:00Z"), 2)
    assert (first.local, first.skipped) == ("2026-10-25T02:30:00+02:00", False)
    assert first.note.endswith("Europe/Berlin: runs the first time only")
    assert (second.local, second.skipped) == ("2026-10-25T02:30:00+01:00", True)
    assert second.note.endswith("Europe/Berlin: does not run the second time")
    assert (after.local, after.note) == ("2026-10-26T02:30:00+01:00", "")
    both = preview(msgspec.structs.replace(spec, fold=Fold.BOTH), instant("2026-10-24T12:00Z"), 2)
    assert [fire.note.rpartition(" ")[2] for fire in both] == ["first", "second"]


def test_a_preview_shows_what_is_excluded() -> None:
    spec = Spec(crons=("0 0 * * *",), excluded_dates=("2026-01-02",))
    shown = preview(spec, NEW_YEAR, 2)
    assert [(fire.skipped, fire.note) for fire in shown] == [
        (True, "excluded"), (False, ""), (False, ""),
    ]  # fmt: skip


def test_a_preview_ends_with_the_schedule() -> None:
    assert len(preview(Spec(at_ms=(10, 20)), 0, 5)) == 2
    assert len(preview(Spec(crons=("@daily",), max_fires=7), NEW_YEAR, 50, fired=4)) == 3
    assert preview(Spec(crons=("@daily",), max_fires=7), NEW_YEAR, 50, fired=9) == []
    with pytest.raises(BadSpec, match=str(PREVIEW_MAX)):
        preview(Spec(crons=("@daily",)), 0, PREVIEW_MAX + 1)


@dataclass(frozen=True)
class Refusal:
    spec: Spec
    field: str
    message: str


EVER = (0, HORIZON_MS)
REFUSALS = [
    Refusal(Spec(), "spec", "no time at all"),
    Refusal(Spec(crons=("0 0 31 2 *",)), "crons[0]", "never fires"),
    Refusal(Spec(crons=("0 0 30,31 FEB *",)), "crons[0]", "never fires"),
    Refusal(Spec(crons=("@daily", "0 0 31 4,6,9,11 *")), "crons[1]", "never fires"),
    Refusal(Spec(crons=("@daily", "61 * * * *")), "crons[1]", "'61' at column 1"),
    Refusal(Spec(crons=("@daily",), zone="Europe/Berln"), "zone", "did you mean Europe/Berlin"),
    Refusal(Spec(crons=("@daily",), zone="berlin"), "zone", "did you mean Europe/Berlin?"),
    Refusal(Spec(crons=("@daily",), zone="new york"), "zone", "did you mean America/New_York?"),
    Refusal(Spec(crons=("@daily",), zone="../../etc/passwd"), "zone", "unknown time zone"),
    Refusal(Spec(crons=("@daily",), zone="zones"), "zone", "unknown time zone"),
    Refusal(Spec(crons=("@daily",), zone="x" * 10_000), "zone", "unknown time zone"),
    Refusal(Spec(every=((0, 0),)), "every[0]", "a period of 0 ms"),
    Refusal(Spec(every=((-5, 0),)), "every[0]", "a period of -5 ms"),
    Refusal(Spec(every=((999, 0),)), "every[0]", "0.999 s apart; at least 1 s"),
    Refusal(Spec(every=((HOUR_MS, 10**18),)), "every[0]", "phase"),
    Refusal(Spec(at_ms=(-1,)), "at_ms[0]", "1970"),
    Refusal(Spec(at_ms=(1, HORIZON_MS)), "at_ms[1]", "2300"),
    Refusal(Spec(at_ms=tuple(range(101))), "at_ms", "101 entries; at most 100"),
    Refusal(Spec(crons=("@daily",) * 17), "crons", "17 entries"),
    Refusal(Spec(crons=("@daily",), start_ms=5, end_ms=5), "end_ms", "not after start"),
    Refusal(Spec(crons=("@daily",), start_ms=-5), "start_ms", "1970"),
    Refusal(Spec(crons=("@daily",), start_ms=5, end_ms=9), "spec", "between start and end"),
    Refusal(Spec(crons=("@daily",), max_fires=0), "max_fires", "not between"),
    Refusal(Spec(crons=("@daily",), jitter_ms=-1), "jitter_ms", "not between"),
    Refusal(Spec(crons=("@daily",), jitter_ms=DAY_MS), "jitter_ms", "not between"),
    Refusal(
        Spec(crons=("@daily",), excluded_dates=("2026-02-29",)), "excluded_dates[0]", "not a d"
    ),
    Refusal(Spec(crons=("@daily",), excluded_dates=("1.2.26",)), "excluded_dates[0]", "not a date"),
    Refusal(Spec(crons=("@daily",), excluded_windows=((5, 5),)), "excluded_windows[0]", "empty"),
    Refusal(Spec(crons=("@daily",), excluded_windows=(EVER,)), "spec", "leave out every instant"),
    Refusal(Spec(crons=("0 0 25 12 *",), excluded_dates=("12-25",)), "spec", "leave out every"),
    Refusal(Spec(at_ms=(5,)), "spec", "in the past"),
    Refusal(
        Spec(crons=("30 2 * 3 7L",), zone="Europe/Berlin", gap=Gap.SKIP), "spec", "gaps of daylight"
    ),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case.field}: {case.message}")
def test_a_bad_spec_is_refused(case: Refusal) -> None:
    problems = validate(case.spec, after_ms=NEW_YEAR)
    assert [problem.field for problem in problems] == [case.field]
    assert case.message in problems[0].message


def test_all_problems_are_told_at_once() -> None:
    problems = validate(Spec(crons=("x", "@daily", "y"), zone="Mars", every=((5, 0),)))
    assert [problem.field for problem in problems] == ["zone", "crons[0]", "crons[2]", "every[0]"]


@pytest.mark.parametrize(
    ("cron", "shortest_s"),
    [
        ("* * * * * *", 1),
        ("*/10 * * * * *", 10),
        ("0,59 * * * * *", 1),
        ("* * * * *", 60),
        ("0,58 * * * *", 120),
        ("10,50 * * * *", 1_200),
        ("59,0 0,23 * * *", 60),
        ("0 0,23 1 * *", 82_800),
        ("0 0,23 1,2 * *", 3_600),
        ("0 0 * * *", 86_400),
        ("0 0 * * MON", 7 * 86_400),
        ("0 0 1 * *", 28 * 86_400),
        ("0 0 L,1 * *", 86_400),
    ],
)
def test_a_plan_may_ask_for_a_distance_between_fires(cron: str, shortest_s: int) -> None:
    spec = Spec(crons=(cron,))
    assert validate(spec, period_ms_min=shortest_s * 1_000) == []
    problems = validate(spec, period_ms_min=shortest_s * 1_000 + 1)
    assert [problem.field for problem in problems] == ["crons[0]"]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (Spec(crons=("30 2 * * *",), zone="Europe/Berlin"), "at 02:30 every day (Europe/Berlin)"),
        (Spec(crons=("*/15 9-17 * * MON-FRI",)),
         "every 15 minutes, in hours 9-17 on Mon-Fri (UTC)"),
        (Spec(crons=("0 12 * * 5L",)), "at 12:00 on the last Fri (UTC)"),
        (Spec(crons=("0 0 13 * FRI",)), "at 00:00 on day 13 of the month or on Fri (UTC)"),
        (Spec(crons=("0 0 LW JAN,MAR *",)),
         "at 00:00 on the last weekday of the month in Jan, Mar (UTC)"),
        (Spec(crons=("@hourly",)), "every hour (UTC)"),
        (Spec(crons=("*/10 * * * * *",)), "every 10 seconds (UTC)"),
        (Spec(every=((90_000, 0),)), "every 90 s"),
        (Spec(every=((HOUR_MS, 60_000),), jitter_ms=60_000),
         "every hour, 1 minute into each, up to 1 minute late on purpose"),
        (Spec(at_ms=(NEW_YEAR,), zone="Europe/Berlin"), "once at 2026-01-01T01:00:00+01:00"),
        (Spec(crons=("nonsense",), max_fires=3), "'nonsense' (UTC), 3 times at most"),
    ],
)  # fmt: skip
def test_a_spec_is_described(spec: Spec, text: str) -> None:
    assert describe(spec) == text


def zone_file(name: str) -> bytes:
    path = importlib.resources.files("tzdata") / "zoneinfo"
    for part in name.split("/"):
        path = path / part
    return path.read_bytes()


def test_a_tzdata_upgrade_shows_the_fires_that_it_would_move() -> None:
    spec = Spec(crons=("0 9 * * *",), zone="Europe/Berlin")
    week = (instant("2026-03-27T00:00Z"), instant("2026-03-31T00:00Z"))
    assert fires_moved(spec, zone_file("Europe/Berlin"), *week) == Moves()
    assert fires_moved(spec, zone_file("Europe/Paris"), *week) == Moves()
    # Suppose that Berlin gave up summer time, as Tunis did.
    moves = fires_moved(spec, zone_file("Africa/Tunis"), *week)
    assert moves.gone_ms == (instant("2026-03-29T07:00Z"), instant("2026-03-30T07:00Z"))
    assert moves.new_ms == (instant("2026-03-29T08:00Z"), instant("2026-03-30T08:00Z"))
    assert not moves.more
    many = fires_moved(spec, zone_file("Asia/Tokyo"), week[0], week[0] + 365 * DAY_MS, most=10)
    assert (len(many.gone_ms) + len(many.new_ms), many.more) == (10, True)


@pytest.mark.parametrize("content", [b"", b"TZif", b"TZif2" + b"\0" * 39, b"\0" * 4_096])
def test_a_damaged_zone_file_is_refused(content: bytes) -> None:
    with pytest.raises(BadZoneFile):
        fires_moved(Spec(crons=("@daily",)), content, 0, 1)


def test_unknown_zones_raise_their_own_error() -> None:
    with pytest.raises(UnknownZone):
        next_fire(Spec(crons=("@daily",), zone="Europe"), 0)


def test_the_zones_have_a_version() -> None:
    assert zones_version()[:2] == "20"


def test_a_spec_is_stored_as_an_array_and_read_by_what_appends_to_it() -> None:
    spec = Spec(crons=("@daily",), every=((5, 1),), fold=Fold.BOTH, end_ms=7)
    stored = msgspec.msgpack.encode(spec)
    assert msgspec.msgpack.decode(stored, type=Spec) == spec
    assert msgspec.msgpack.decode(stored)[:6] == [["@daily"], [[5, 1]], [], "UTC", 0, 1]
    older = msgspec.msgpack.encode([["@daily"]])
    assert msgspec.msgpack.decode(older, type=Spec) == Spec(crons=("@daily",))
