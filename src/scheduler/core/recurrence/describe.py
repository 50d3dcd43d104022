"""A spec as a short English text, for people who check what they wrote."""

from .cron import MONTH_NAMES, WEEKDAY_NAMES, Template, parse
from .errors import CronError
from .pattern import Fields
from .preview import local_text
from .spec import Spec

_TIMES_MAX = 6
_ORDINALS = ("", "1st", "2nd", "3rd", "4th", "5th")


def describe(spec: Spec, *, hash_key: str = "") -> str:
    """Returns what a valid spec says, or at least quotes a cron that cannot be read.

    Raises UnknownZone where an instant would have to be shown in one.
    """
    parts = [_cron(cron, hash_key) for cron in spec.crons]
    parts += [_every(period_ms, phase_ms) for period_ms, phase_ms in spec.every]
    if spec.at_ms:
        shown = ", ".join(
            local_text(spec.zone, instant, spec.zone_digest) for instant in sorted(spec.at_ms)[:3]
        )
        more = len(spec.at_ms) - 3
        parts.append(f"once at {shown}" + (f" and {more} more instants" if more > 0 else ""))
    text = "; and ".join(parts) or "never"
    if spec.crons:
        text += f" ({spec.zone})"
    if spec.start_ms is not None:
        text += f", from {local_text(spec.zone, spec.start_ms, spec.zone_digest)}"
    if spec.end_ms is not None:
        text += f", until {local_text(spec.zone, spec.end_ms, spec.zone_digest)}"
    if spec.max_fires is not None:
        text += f", {spec.max_fires} times at most"
    if spec.jitter_ms:
        text += f", up to {_duration(spec.jitter_ms)} late on purpose"
    for count, name in ((len(spec.excluded_dates), "date"), (len(spec.excluded_windows), "window")):
        if count:
            text += f", except {count} {name}{'s' * (count > 1)}"
    if spec.calendars:
        text += f", except on {', '.join(pin.name for pin in spec.calendars)}"
    return text


def _every(period_ms: int, phase_ms: int) -> str:
    offset_ms = phase_ms % period_ms if period_ms > 0 else 0
    text = f"every {_duration(period_ms).removeprefix('1 ')}"
    return f"{text}, {_duration(offset_ms)} into each" if offset_ms else text


def _duration(length_ms: int) -> str:
    for unit_ms, name in ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute")):
        if length_ms % unit_ms == 0:
            count = length_ms // unit_ms
            return f"{count} {name}{'s' * (count > 1)}"
    return f"{length_ms / 1_000:g} s"


def _cron(cron: str, hash_key: str) -> str:
    try:
        template = parse(cron)
    except CronError:
        return f"'{cron}'"
    fields = template.resolve(hash_key)
    return f"{_time(template, fields)} {_days(fields)}{_months(fields)}".rstrip()


def _time(template: Template, fields: Fields) -> str:
    seconds, minutes, hours = (_numbers(mask) for mask in fields[:3])
    if len(hours) == 24 and len(minutes) == 60:
        return _stepped(seconds, 60, "second", "minute")
    at_second = "" if seconds == [0] else f" and seconds {_ranges(seconds)}"
    if len(hours) == 24:
        return _stepped(minutes, 60, "minute", "hour") + at_second
    if len(minutes) * len(hours) * len(seconds) <= _TIMES_MAX:
        with_seconds = template.has_seconds and seconds != [0]
        return "at " + ", ".join(
            f"{hour:02}:{minute:02}" + (f":{second:02}" if with_seconds else "")
            for hour in hours
            for minute in minutes
            for second in seconds
        )
    within = f", in hours {_ranges(hours)}"
    if minutes == [0] and not at_second:
        return _stepped(hours, 24, "hour", "day")
    return _stepped(minutes, 60, "minute", "hour") + at_second + within


def _stepped(numbers: list[int], size: int, unit: str, larger: str) -> str:
    """Returns "every 15 minutes" where that is what the numbers are, else lists them."""
    if len(numbers) == size:
        return f"every {unit}"
    step = numbers[1] - numbers[0] if len(numbers) > 1 else size
    if numbers == list(range(0, size, step)) and size % step == 0:
        return f"every {step} {unit}s" if len(numbers) > 1 else f"every {larger}"
    return f"every {larger} at {unit} {_ranges(numbers)}"


def _days(fields: Fields) -> str:
    by_date = _dates(fields)
    by_weekday = _weekdays(fields)
    if by_date and by_weekday:
        return f"{by_date} {'or' if fields.either else 'if it is'} {by_weekday}"
    return by_date or by_weekday or ("every day" if len(_numbers(fields.hours)) < 24 else "")


def _dates(fields: Fields) -> str:
    texts = []
    if fields.days.bit_count() == 31:
        return ""
    if fields.days:
        texts.append(f"day {_ranges(_numbers(fields.days))}")
    texts += [
        f"{offset} days before the last day" if offset else "the last day"
        for offset in _numbers(fields.last_offsets)
    ]
    if fields.last_workday:
        texts.append("the last weekday")
    texts += [f"the weekday nearest to day {day}" for day in _numbers(fields.near_workdays)]
    return f"on {' and '.join(texts)} of the month" if texts else ""


def _weekdays(fields: Fields) -> str:
    if fields.weekdays == 0x7F:
        return ""
    texts = []
    if fields.weekdays:
        texts.append(_ranges(_numbers(fields.weekdays), WEEKDAY_NAMES))
    texts += [
        f"the last {WEEKDAY_NAMES[day].capitalize()}" for day in _numbers(fields.last_weekdays)
    ]
    for bit in _numbers(fields.nth_weekdays):
        texts.append(f"the {_ORDINALS[bit % 8]} {WEEKDAY_NAMES[bit // 8].capitalize()}")
    return f"on {' and '.join(texts)}" if texts else ""


def _months(fields: Fields) -> str:
    if fields.months.bit_count() == 12:
        return ""
    return f" in {_ranges(_numbers(fields.months), ('', *MONTH_NAMES))}"


def _numbers(mask: int) -> list[int]:
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def _ranges(numbers: list[int], names: tuple[str, ...] = ()) -> str:
    """Returns numbers as 1-5, 8, 10; by name if there are names."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])

    def name(number: int) -> str:
        return names[number].capitalize() if names else str(number)

    return ", ".join(
        name(low) if low == high else f"{name(low)}-{name(high)}" for low, high in runs
    )
