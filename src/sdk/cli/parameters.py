"""Values as people write them: 90s, 64Mi, 0.5, KEY=VALUE, instants; and back again."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

_DURATION_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?")
_SIZE_UNITS: dict[str, int] = {
    "": 1,
    **{unit: 1_000 ** (power + 1) for power, unit in enumerate("KMGT")},
    **{f"{unit}i": 1_024 ** (power + 1) for power, unit in enumerate("KMGT")},
}


def parse_duration(text: str) -> timedelta:
    """ "90s", "1h30m", "500ms", or seconds. Raises ValueError."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return timedelta(seconds=float(text))
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a length of time, as 90s, 5m, 1h30m or 500ms")
    return timedelta(seconds=sum(float(number) * _DURATION_UNITS_S[unit] for number, unit in parts))


def parse_size(text: str) -> int:
    """ "64Mi", "1Gi", "500M", or bytes. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size, as 64Mi, 1Gi, 500M or a number of bytes")
    return round(float(match[1]) * _SIZE_UNITS[match[2] or ""])


def parse_cpu(text: str) -> int:
    """ "0.5" cores or "500m", in thousandths of a core. Raises ValueError."""
    match = re.fullmatch(r"(\d+)m|(\d+(?:\.\d+)?)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a number of cores, as 0.5 or 500m")
    return int(match[1]) if match[1] else round(float(match[2]) * 1_000)


def parse_instant(text: str) -> datetime:
    """ "2030-01-01T12:00:00Z", "+90s" from now, or "-1h" before now. Raises ValueError."""
    if text.startswith("+"):
        return datetime.now(UTC) + parse_duration(text[1:])
    if text.startswith("-"):
        return datetime.now(UTC) - parse_duration(text[1:])
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an instant, as 2030-01-01T12:00:00Z or +90s from now"
        ) from None
    if instant.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone: write {text}Z for UTC, or {text}+01:00")
    return instant


def parse_window(text: str) -> tuple[datetime, datetime]:
    """ "START/END", two instants. Raises ValueError."""
    start, separator, end = text.partition("/")
    if not separator:
        raise ValueError(f"{text!r} is not of the form START/END")
    return parse_instant(start), parse_instant(end)


def parse_count(text: str) -> int:
    """A whole number from 1. Raises ValueError."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise ValueError(f"{text!r} is not a whole number from 1")
    return int(text)


def parse_pair(text: str) -> tuple[str, str]:
    """ "KEY=VALUE". Raises ValueError."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"{text!r} is not of the form KEY=VALUE")
    return key, value


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # not generic in older versions


class _Parsed(_ParamType):
    """A parameter that one of the functions above reads."""

    def __init__(self, name: str, parse: Any) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except OverflowError:
            self.fail(f"{value!r} is too large", param, ctx)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = _Parsed("duration", parse_duration)
DURATION_OR_NONE = _Parsed("duration|none", lambda t: t if t == "none" else parse_duration(t))
COUNT_OR_NONE = _Parsed("number|none", lambda t: t if t == "none" else parse_count(t))
SIZE = _Parsed("size", parse_size)
CPU = _Parsed("cores", parse_cpu)
INSTANT = _Parsed("instant", parse_instant)
WINDOW = _Parsed("start/end", parse_window)
PAIR = _Parsed("key=value", parse_pair)


def show_duration(length: timedelta) -> str:
    """As parse_duration reads it: "1h30m", "1.5s", "250ms"."""
    left_ms = round(length / timedelta(milliseconds=1))
    if left_ms == 0:
        return "0s"
    if left_ms < 1_000:
        return f"{left_ms}ms"
    shown = ""
    for unit, unit_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
        count, left_ms = divmod(left_ms, unit_ms)
        shown += f"{count}{unit}" if count else ""
    return shown + (f"{left_ms / 1_000:.10g}s" if left_ms else "")


def show_size(size_bytes: int) -> str:
    """ "64Mi", "3.3Mi": three digits are enough for people."""
    size = float(size_bytes)
    for unit in ("", "Ki", "Mi", "Gi"):
        if size < 1_024 or unit == "Gi":
            break
        size /= 1_024
    return f"{size:.3g}{unit}" if size < 1_000 else f"{size:.0f}{unit}"


def show_instant(instant: datetime | None) -> str:
    """To the second, in UTC."""
    return "" if instant is None else instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
