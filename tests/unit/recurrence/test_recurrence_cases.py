"""Fires worked out by hand: the calendar, and every kind of clock change that we know of."""

import datetime

import pytest

from tickmesh.scheduler.core.recurrence import Fold, Gap, Spec, next_fire


def instant(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp()) * 1_000


def fires(spec: Spec, after: str, count: int) -> list[str]:
    """Returns fires as UTC texts: 2026-03-29T01:00."""
    found: list[str] = []
    last: int | None = instant(after + "Z")
    while len(found) < count:
        assert last is not None
        last = next_fire(spec, last)
        if last is None:
            return [*found, "never"]
        moment = datetime.datetime.fromtimestamp(last // 1_000, datetime.UTC)
        found.append(moment.strftime("%Y-%m-%dT%H:%M" + (":%S" if moment.second else "")))
    return found


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        # 2026-01-01 is a Thursday.
        ("0 0 L * *", "2024-01-31T00:00", ["2024-02-29T00:00", "2024-03-31T00:00"]),
        ("0 0 L-2 * *", "2026-01-30T00:00", ["2026-02-26T00:00", "2026-03-29T00:00"]),
        ("0 0 L-30 * *", "2026-01-02T00:00", ["2026-03-01T00:00", "2026-05-01T00:00"]),
        # 31 January 2026 and 28 February 2026 are Saturdays, 31 May 2026 a Sunday.
        ("0 0 LW * *", "2026-01-01T00:00", ["2026-01-30T00:00", "2026-02-27T00:00"]),
        ("0 0 LW 5 *", "2026-01-01T00:00", ["2026-05-29T00:00", "2027-05-31T00:00"]),
        # 1 February 2026 is a Sunday, 1 August 2026 a Saturday: never out of the month.
        ("0 0 1W 2 *", "2026-01-01T00:00", ["2026-02-02T00:00", "2027-02-01T00:00"]),
        ("0 0 1W 8 *", "2026-01-01T00:00", ["2026-08-03T00:00", "2027-08-02T00:00"]),
        ("0 0 15W 2,3 *", "2026-01-01T00:00", ["2026-02-16T00:00", "2026-03-16T00:00"]),
        ("0 0 31W * *", "2026-01-01T00:00", ["2026-01-30T00:00", "2026-03-31T00:00"]),
        ("0 0 31W 5 *", "2026-01-01T00:00", ["2026-05-29T00:00", "2027-05-31T00:00"]),
        ("0 12 * * 5L", "2026-01-01T00:00", ["2026-01-30T12:00", "2026-02-27T12:00"]),
        ("0 12 * * L5", "2026-01-01T00:00", ["2026-01-30T12:00", "2026-02-27T12:00"]),
        ("0 0 * * MON#2", "2026-01-01T00:00", ["2026-01-12T00:00", "2026-02-09T00:00"]),
        ("0 0 * * 1#5", "2026-01-01T00:00", ["2026-03-30T00:00", "2026-06-29T00:00"]),
        ("0 0 * * SUN#1", "2026-01-01T00:00", ["2026-01-04T00:00", "2026-02-01T00:00"]),
        # Either day field, or both of them where one has a star.
        ("0 0 13 * FRI", "2026-02-01T00:00", ["2026-02-06T00:00", "2026-02-13T00:00"]),
        ("0 0 */2 * MON", "2026-01-01T00:00", ["2026-01-05T00:00", "2026-01-19T00:00"]),
        ("0 0 13 * */5", "2026-01-01T00:00", ["2026-02-13T00:00", "2026-03-13T00:00"]),
        ("0 0 29 2 *", "2096-02-29T00:00", ["2104-02-29T00:00", "2108-02-29T00:00"]),
        ("0 0 29 2 *", "2196-02-29T00:00", ["2204-02-29T00:00"]),
        # 29 February on a starred-step weekday: Sundays and Saturdays only.
        ("0 0 29 2 */6", "2076-03-01T00:00", ["2088-02-29T00:00", "2116-02-29T00:00"]),
        ("0 0 29 2 *", "2296-02-29T00:00", ["never"]),
        ("59 59 23 31 12 *", "2026-01-01T00:00", ["2026-12-31T23:59:59", "2027-12-31T23:59:59"]),
        ("*/25 * * * * *", "2026-01-01T00:00", ["2026-01-01T00:00:25", "2026-01-01T00:00:50"]),
        ("58-1 * * * *", "2026-01-01T00:01", ["2026-01-01T00:58", "2026-01-01T00:59"]),
        ("0 0 * * *", "1970-01-01T00:00", ["1970-01-02T00:00"]),
    ],
)
def test_the_calendar(cron: str, after: str, expected: list[str]) -> None:
    assert fires(Spec(crons=(cron,)), after, len(expected)) == expected


CLOCK_CASES = [
    # Berlin: 02:00 -> 03:00 at 01:00Z on 29 March 2026; 03:00 -> 02:00 at 01:00Z on 25 October.
    ("Europe/Berlin", "30 2 * * *", "2026-03-28T02:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
    ("Europe/Berlin", "0 2 * * *", "2026-03-28T02:00", ["2026-03-29T01:00", "2026-03-30T00:00"]),
    ("Europe/Berlin", "0 3 * * *", "2026-03-28T03:00", ["2026-03-29T01:00", "2026-03-30T01:00"]),
    ("Europe/Berlin", "0,30 2 * * *", "2026-03-28T02:00", ["2026-03-29T01:00", "2026-03-30T00:00"]),
    ("Europe/Berlin", "0 2,3 * * *", "2026-03-28T03:00", ["2026-03-29T01:00", "2026-03-30T00:00"]),
    ("Europe/Berlin", "* 30 2 * * *", "2026-03-28T02:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
    ("Europe/Berlin", "30 2 * * *", "2026-10-24T01:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
    ("Europe/Berlin", "0 3 * * *", "2026-10-24T02:00", ["2026-10-25T02:00", "2026-10-26T02:00"]),
    ("Europe/Berlin", "*/30 2 * * *", "2026-03-28T02:00", ["2026-03-30T00:00", "2026-03-30T00:30"]),
    ("Europe/Berlin", "*/30 2 * * *", "2026-10-24T23:00",
     ["2026-10-25T00:00", "2026-10-25T00:30", "2026-10-25T01:00", "2026-10-25T01:30",
      "2026-10-26T01:00"]),
    ("Europe/Berlin", "30 * * * *", "2026-03-29T00:00", ["2026-03-29T00:30", "2026-03-29T01:30"]),
    ("Europe/Berlin", "0 */2 * * *", "2026-10-24T22:00",
     ["2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T03:00"]),
    # New York: 8 March and 1 November 2026.
    ("America/New_York", "30 2 * * *", "2026-03-07T08:00",
     ["2026-03-08T07:00", "2026-03-09T06:30"]),
    ("America/New_York", "30 1 * * *", "2026-10-31T06:00",
     ["2026-11-01T05:30", "2026-11-02T06:30"]),
    # Lord Howe: half an hour, 02:00 -> 02:30 on 4 October 2026, 02:00 -> 01:30 on 5 April 2026.
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-02T16:00",
     ["2026-10-03T15:30", "2026-10-04T15:15"]),
    ("Australia/Lord_Howe", "45 1 * * *", "2026-04-03T15:00",
     ["2026-04-04T14:45", "2026-04-05T15:15"]),
    ("Australia/Lord_Howe", "*/15 1 * * *", "2026-04-04T14:20",
     ["2026-04-04T14:30", "2026-04-04T14:45", "2026-04-04T15:00", "2026-04-04T15:15",
      "2026-04-05T14:30"]),
    # Apia left out 30 December 2011.
    ("Pacific/Apia", "30 9 * * *", "2011-12-29T19:00",
     ["2011-12-29T19:30", "2011-12-30T10:00", "2011-12-30T19:30"]),
    ("Pacific/Apia", "0 0 30 12 *", "2011-01-01T00:00", ["2011-12-30T10:00", "2012-12-29T10:00"]),
    ("Pacific/Apia", "*/30 * 30 12 *", "2011-01-01T00:00", ["2012-12-29T10:00"]),
    # Sao Paulo had no 00:00 on 4 November 2018, and 23:00 to 24:00 twice on 17 February 2018.
    ("America/Sao_Paulo", "0 0 * * *", "2018-11-03T03:00",
     ["2018-11-04T03:00", "2018-11-05T02:00"]),
    ("America/Sao_Paulo", "@daily", "2018-11-03T03:00", ["2018-11-04T03:00", "2018-11-05T02:00"]),
    ("America/Sao_Paulo", "30 23 * * *", "2018-02-17T01:00",
     ["2018-02-17T01:30", "2018-02-18T01:30", "2018-02-19T02:30"]),
    ("America/Sao_Paulo", "0 0 18 2 *", "2018-01-01T00:00", ["2018-02-18T03:00"]),
    # Cairo: 00:00 -> 01:00 on Friday 28 April 2023.
    ("Africa/Cairo", "15 0 * * *", "2023-04-26T23:00", ["2023-04-27T22:00", "2023-04-28T21:15"]),
    # Dublin's summer time is its standard, winter is negative: the same instants as London.
    ("Europe/Dublin", "30 1 * * *", "2026-03-28T02:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
    ("Europe/Dublin", "30 1 * * *", "2026-10-24T01:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
    # Kwajalein crossed the date line: no 21 August 1993.
    ("Pacific/Kwajalein", "0 12 * * *", "1993-08-20T00:30",
     ["1993-08-21T00:00", "1993-08-21T12:00", "1993-08-22T00:00"]),
    # Caracas changed by half an hour for good, at 02:30 on 1 May 2016 and 03:00 on 9 Dec 2007.
    ("America/Caracas", "45 2 * * *", "2016-04-30T08:00", ["2016-05-01T07:00", "2016-05-02T06:45"]),
    ("America/Caracas", "45 2 * * *", "2007-12-08T07:00", ["2007-12-09T06:45", "2007-12-10T07:15"]),
    # The rule, long after the last transition that the file lists.
    ("Europe/Berlin", "30 2 * * *", "2199-03-30T02:00", ["2199-03-31T01:00", "2199-04-01T00:30"]),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "cron", "after", "expected"), CLOCK_CASES)
def test_clocks_change(zone: str, cron: str, after: str, expected: list[str]) -> None:
    assert fires(Spec(crons=(cron,), zone=zone), after, len(expected)) == expected


@pytest.mark.parametrize(
    ("gap", "fold", "after", "expected"),
    [
        (Gap.AFTER, Fold.FIRST, "2026-03-28T02:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        (Gap.SKIP, Fold.FIRST, "2026-03-28T02:00", ["2026-03-30T00:30", "2026-03-31T00:30"]),
        (Gap.SKIP, Fold.BOTH, "2026-03-28T02:00", ["2026-03-30T00:30", "2026-03-31T00:30"]),
        (Gap.AFTER, Fold.BOTH, "2026-03-28T02:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        (Gap.AFTER, Fold.BOTH, "2026-10-24T01:00", ["2026-10-25T00:30", "2026-10-25T01:30"]),
        (Gap.SKIP, Fold.FIRST, "2026-10-24T01:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
    ],
)
def test_the_policies(gap: Gap, fold: Fold, after: str, expected: list[str]) -> None:
    spec = Spec(crons=("30 2 * * *",), zone="Europe/Berlin", gap=gap, fold=fold)
    assert fires(spec, after, len(expected)) == expected


def test_asking_from_inside_a_fold_does_not_run_it_again() -> None:
    spec = Spec(crons=("30 2 * * *",), zone="Europe/Berlin")
    # 01:00Z is where the second 02:00 begins.
    for after in ("2026-10-25T00:30", "2026-10-25T00:59", "2026-10-25T01:00", "2026-10-25T01:29"):
        assert fires(spec, after, 1) == ["2026-10-26T01:30"]


def test_asking_from_just_before_and_at_the_end_of_a_gap() -> None:
    spec = Spec(crons=("30 2 * * *",), zone="Europe/Berlin")
    end = instant("2026-03-29T01:00Z")
    assert next_fire(spec, end - 1) == end
    assert next_fire(spec, end - 1_000) == end
    assert next_fire(spec, end) == instant("2026-03-30T00:30Z")
