"""Excluded local dates: their text, and whether an instant lies on one."""

import datetime
import re

from .errors import BadSpec
from .zones import EPOCH_ORDINAL, Timeline

_DATE = re.compile(r"(?:([0-9]{4})-)?([0-9]{2})-([0-9]{2})")
_LEAP_YEAR = 2000


def read_date(text: str) -> tuple[int, int, int]:
    """Returns (year, month, day), year 0 for a date of every year. Raises BadSpec."""
    match = _DATE.fullmatch(text)
    if match is None:
        raise BadSpec(f"'{text[:20]}' is not a date: write 2026-12-25, or 12-25 for every year")
    year, month, day = int(match[1] or 0), int(match[2]), int(match[3])
    try:
        datetime.date(year if match[1] else _LEAP_YEAR, month, day)
    except ValueError as error:
        raise BadSpec(f"'{text}' is not a date: {error}") from error
    return year, month, day


class ExcludedDates:
    """The excluded dates of one spec, on its zone's timeline."""

    __slots__ = ("_ordinals", "_timeline", "_yearly")

    def __init__(self, dates: tuple[str, ...], timeline: Timeline) -> None:
        read = [read_date(text) for text in dates]
        self._yearly = frozenset((month, day) for year, month, day in read if not year)
        self._ordinals = frozenset(
            datetime.date(year, month, day).toordinal() for year, month, day in read if year
        )
        self._timeline = timeline

    def excluded_until_s(self, instant_s: int) -> int:
        """Returns where an excluded date's current stretch ends, 0 if the date is not excluded.

        A stretch also ends where the clocks change: a date can be interrupted, and come again.
        """
        if not self._yearly and not self._ordinals:
            return 0
        at = self._timeline.segment(instant_s)
        offset_s = self._timeline.offsets[at]
        number = (instant_s + offset_s) // 86_400
        ordinal = number + EPOCH_ORDINAL
        if ordinal not in self._ordinals:
            day = datetime.date.fromordinal(ordinal)
            if (day.month, day.day) not in self._yearly:
                return 0
        return min((number + 1) * 86_400 - offset_s, self._timeline.starts[at + 1])
