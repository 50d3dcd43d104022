"""What cron text means, and how bad text is refused."""

import pytest

from tickmesh.scheduler.core.recurrence import CronError, parse_cron
from tickmesh.scheduler.core.recurrence.limits import CRON_CHARACTERS_MAX


def numbers(mask: int) -> list[int]:
    return [number for number in range(64) if mask >> number & 1]


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("*/15 * * * *", "minutes", [0, 15, 30, 45]),
        ("5/20 * * * *", "minutes", [5, 25, 45]),
        ("10-30/10 * * * *", "minutes", [10, 20, 30]),
        ("1,2,40-42 * * * *", "minutes", [1, 2, 40, 41, 42]),
        ("58-2 * * * *", "minutes", [0, 1, 2, 58, 59]),
        ("0 22-2 * * *", "hours", [0, 1, 2, 22, 23]),
        ("0 0 * NOV-feb *", "months", [1, 2, 11, 12]),
        ("0 0 * * 0", "weekdays", [0]),
        ("0 0 * * 7", "weekdays", [0]),
        ("0 0 * * SUN", "weekdays", [0]),
        ("0 0 * * 5-7", "weekdays", [0, 5, 6]),
        ("0 0 * * 0-7", "weekdays", [0, 1, 2, 3, 4, 5, 6]),
        ("0 0 * * FRI-MON", "weekdays", [0, 1, 5, 6]),
        ("0 0 * * 7-2", "weekdays", [0, 1, 2]),
        ("0 0 * * */2", "weekdays", [0, 2, 4, 6]),
        ("0 0 * * 1-7/2", "weekdays", [0, 1, 3, 5]),
        ("0 0 ? * MON", "days", list(range(1, 32))),
        ("15 30 6 * * *", "seconds", [15]),
        ("15 30 6 * * *", "minutes", [30]),
        ("30 6 * * *", "seconds", [0]),
        ("*/20 * * * * *", "seconds", [0, 20, 40]),
        ("@hourly", "minutes", [0]),
        ("@Weekly", "weekdays", [0]),
        ("@yearly", "months", [1]),
        ("  0\t0  * * *  ", "hours", [0]),
        ("0 0 L,L-3 * *", "last_offsets", [0, 3]),
        ("0 0 15W,1W * *", "near_workdays", [1, 15]),
        ("0 0 * * 5L", "last_weekdays", [5]),
        ("0 0 * * L5", "last_weekdays", [5]),
        ("0 0 * * FRIL", "last_weekdays", [5]),
        ("0 0 * * 7L", "last_weekdays", [0]),
        ("0 0 * * MON#2,1#5", "nth_weekdays", [10, 13]),
    ],
)
def test_a_field_allows(text: str, field: str, expected: list[int]) -> None:
    assert numbers(getattr(parse_cron(text).fields, field)) == expected


@pytest.mark.parametrize(
    ("text", "either"),
    [
        ("0 0 1 * MON", True),
        ("0 0 L * MON", True),
        ("0 0 H * MON", True),
        ("0 0 */2 * MON", False),
        ("0 0 1 * */2", False),
        ("0 0 1 * ?", False),
        ("0 0 * * MON", False),
    ],
)
def test_two_restricted_day_fields_are_alternatives(text: str, either: bool) -> None:
    assert parse_cron(text).fields.either is either


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("30 2 * * *", True),
        ("0-59 0-23 * * *", True),
        ("* 30 2 * * *", True),
        ("H H * * *", True),
        ("H(0-29)/10 2 * * *", True),
        ("@daily", True),
        ("*/30 2 * * *", False),
        ("H/30 2 * * *", False),
        ("30 * * * *", False),
        ("30 */2 * * *", False),
        ("5,*/30 2 * * *", False),
        ("@hourly", False),
    ],
)
def test_a_starred_minute_or_hour_makes_a_rhythm(text: str, fixed: bool) -> None:
    assert parse_cron(text).fixed is fixed


@pytest.mark.parametrize(
    ("text", "token", "column", "part_of_message"),
    [
        ("61 * * * *", "61", 1, "minute: must be 0 to 59"),
        ("0 24 * * *", "24", 3, "hour: must be 0 to 23"),
        ("0 0 0 * *", "0", 5, "day of month: must be 1 to 31"),
        ("0 0 * 13 *", "13", 7, "month: must be 1 to 12"),
        ("0 0 * * 8", "8", 9, "day of week: must be 0 to 7"),
        ("60 0 0 * * *", "60", 1, "second: must be 0 to 59"),
        ("1,2,77 * * * *", "77", 5, "minute: must be"),
        ("*/0 * * * *", "*/0", 1, "at least 1"),
        ("*/60 * * * *", "*/60", 1, "wider than the field"),
        ("0 0 * * */7", "*/7", 9, "wider than the field"),
        ("1,,2 * * * *", "1,,2", 3, "an empty item"),
        ("1- * * * *", "1-", 1, "a number is missing"),
        ("-1 * * * *", "-1", 1, "a number is missing"),
        ("1-2-3 * * * *", "1-2-3", 1, "not a number"),
        ("1/2/3 * * * *", "1/2/3", 1, "not a number"),
        ("99999999999 * * * *", "99999999999", 1, "not a number"),
        ("? * * * *", "?", 1, "two day fields"),
        ("0 0 5-1 * *", "5-1", 5, "runs backwards"),
        ("22-4/2 * * * *", "22-4/2", 1, "takes no step"),
        ("0 0 * FOO *", "FOO", 7, "not a number"),
        ("MON * * * *", "MON", 1, "not a number"),
        ("L * * * *", "L", 1, "not a number"),
        ("0 0 32W * *", "32W", 5, "must be 1 to 31"),
        ("0 0 L-31 * *", "L-31", 5, "30 days at most"),
        ("0 0 * * L", "L", 9, "5L is the last Friday"),
        ("0 0 * * MON#6", "MON#6", 9, "#1 to #5"),
        ("0 0 * * MON#0", "MON#0", 9, "#1 to #5"),
        ("0 0 * * 8L", "8L", 9, "not a number"),
        ("H(5-2) * * * *", "H(5-2)", 1, "upwards"),
        ("H(0-61) * * * *", "H(0-61)", 1, "must be 0 to 59"),
        ("HH * * * *", "HH", 1, "not a hash"),
        ("@every 90s", "@every", 1, "`every`"),
        ("@reboot", "@reboot", 1, "reboot"),
        ("@fortnightly", "@fortnightly", 1, "unknown alias"),
        ("@daily *", "*", 8, "nothing may follow"),
        ("* * * * * * *", "*", 13, "seventh field"),
        ("CRON_TZ=UTC 0 0 * * *", "CRON_TZ=UTC", 1, "`zone`"),
        ("0 0 * * é", "é", 9, "not a character"),
        ("٣ * * * *", "٣", 1, "not a character"),
        ("0 0\u00a0* * *", "\u00a0", 4, "not a character"),
        ("0 0 * * *\n", "\n", 10, "not a character"),
    ],
)
def test_bad_text_is_refused_where_it_is_wrong(
    text: str, token: str, column: int, part_of_message: str
) -> None:
    with pytest.raises(CronError) as caught:
        parse_cron(text)
    assert part_of_message in str(caught.value)
    assert (caught.value.token, caught.value.column) == (token, column)
    assert f"column {column}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "   ", "*", "* * * *", "* * * * * * * *"])
def test_a_wrong_number_of_fields_is_refused(text: str) -> None:
    with pytest.raises(CronError, match="5 "):
        parse_cron(text)


def test_long_text_is_refused_before_it_is_read() -> None:
    with pytest.raises(CronError, match="characters"):
        parse_cron("0" * (CRON_CHARACTERS_MAX + 1))


def test_every_minute_written_out_is_accepted() -> None:
    text = ",".join(str(minute) for minute in range(60)) + " * * * *"
    assert parse_cron(text).fields.minutes == (1 << 60) - 1


def test_a_hash_stays_within_its_range_and_keeps_its_step() -> None:
    for uid in range(300):
        fields = parse_cron("H(10-29)/10 H/6 H * H").resolve(f"schedule-{uid}")
        minutes = numbers(fields.minutes)
        assert len(minutes) == 2
        assert 10 <= minutes[0] < 20
        assert minutes[1] == minutes[0] + 10
        assert numbers(fields.hours) == list(range(numbers(fields.hours)[0], 24, 6))
        assert len(numbers(fields.hours)) == 4
        assert numbers(fields.days)[0] <= 28
        assert len(numbers(fields.days)) == 1
        assert numbers(fields.weekdays)[0] <= 6


def test_a_hash_depends_on_the_key_and_the_field_only() -> None:
    first = parse_cron("H H * * *").resolve("a")
    assert parse_cron("H 5 * * MON").resolve("a").minutes == first.minutes
    drawn = {parse_cron("H * * * *").resolve(str(uid)).minutes for uid in range(2_000)}
    assert len(drawn) == 60  # a herd is spread over the whole hour


def test_a_hash_never_changes_between_releases() -> None:
    # Written down once: a change of the draw would move every hashed schedule there is.
    fields = parse_cron("H H H H H").resolve("customers/1/jobs/2/schedules/3")
    drawn = [fields.minutes, fields.hours, fields.days, fields.months, fields.weekdays]
    assert [numbers(mask) for mask in drawn] == [[24], [15], [26], [3], [0]]
