"""A cron's fields as bit masks, and the search for the next local time that they match.

Knows the calendar, not zones: local times here are seconds since 1970-01-01T00:00 on a clock that
never changes. Text becomes a pattern in `cron`; zones come in `walker`.
"""

import datetime
from typing import Final, NamedTuple

from .limits import HORIZON_YEAR, MONTHS_CACHED_MAX, SEARCH_YEARS
from .zones import EPOCH_ORDINAL

NO_LOCAL: Final = -(2**60)
"""Stands for no local time: before all of them. West of Greenwich, 1970 begins in 1969."""

MONTHS_SEARCHED: Final = SEARCH_YEARS * 12
_MONTH_DAYS: Final = (0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class Fields(NamedTuple):
    """What each field allows; bit n stands for the value n. Weekdays count from Sunday 0."""

    seconds: int
    minutes: int
    hours: int
    days: int
    months: int
    weekdays: int
    last_offsets: int = 0
    """Bit n: the n-th day before the month's last (`L` is bit 0, `L-3` bit 3)."""
    last_workday: bool = False
    """`LW`: the month's last Monday to Friday."""
    near_workdays: int = 0
    """Bit n: `nW`, the Monday to Friday nearest to day n, in the same month."""
    last_weekdays: int = 0
    """Bit w: `wL`, the month's last weekday w."""
    nth_weekdays: int = 0
    """Bit w * 8 + k: `w#k`, the month's k-th weekday w."""
    either: bool = False
    """Both day fields are restricted: a day that matches one of them is enough."""


def month_days(year: int, month: int) -> int:
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if leap else _MONTH_DAYS[month]


def lowest_bit(mask: int) -> int:
    """Returns the number of the lowest bit set, -1 if none is."""
    return (mask & -mask).bit_length() - 1


class Pattern:
    """Searches for the local times that some fields match.

    Its only state is a cache of day masks, which never changes an answer.
    """

    __slots__ = ("_first_minute_s", "_first_s", "_months", "fields")

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self._months: dict[int, int] = {}
        # The first match within an hour, and within a day.
        self._first_minute_s = lowest_bit(fields.minutes) * 60 + lowest_bit(fields.seconds)
        self._first_s = lowest_bit(fields.hours) * 3_600 + self._first_minute_s

    def next_local(self, local_s: int) -> int:
        """Returns the first match at or after a local second, NO_LOCAL if none is in reach."""
        number, second = divmod(local_s, 86_400)
        day = datetime.date.fromordinal(number + EPOCH_ORDINAL)
        year, month = day.year, day.month
        mask = self._months.get(year * 16 + month)
        if mask is None:
            mask = self.day_mask(year, month)
        mask >>= day.day
        if mask & 1:
            found = self._next_in_day(second)
            if found >= 0:
                return number * 86_400 + found
        mask >>= 1
        if mask:
            return (number + (mask & -mask).bit_length()) * 86_400 + self._first_s
        return self._next_in_months(year, month)

    def _next_in_months(self, year: int, month: int) -> int:
        months = self.fields.months
        for _ in range(MONTHS_SEARCHED):
            month += 1
            if month == 13:
                month = 1
                year += 1
                if year > HORIZON_YEAR:
                    return NO_LOCAL
            if months >> month & 1:
                mask = self.day_mask(year, month)
                if mask:
                    ordinal = datetime.date(year, month, lowest_bit(mask)).toordinal()
                    return (ordinal - EPOCH_ORDINAL) * 86_400 + self._first_s
        return NO_LOCAL

    def _next_in_day(self, second: int) -> int:
        """Returns the first matching second of a matching day at or after one, -1 if none is."""
        fields = self.fields
        hour, rest = divmod(second, 3_600)
        if fields.hours >> hour & 1:
            minute, rest = divmod(rest, 60)
            left = fields.minutes >> minute
            if left & 1:
                seconds = fields.seconds >> rest
                if seconds:
                    return second + (seconds & -seconds).bit_length() - 1
            left >>= 1
            if left:
                minute += (left & -left).bit_length()
                return hour * 3_600 + minute * 60 + lowest_bit(fields.seconds)
        left = fields.hours >> (hour + 1)
        if left:
            return (hour + (left & -left).bit_length()) * 3_600 + self._first_minute_s
        return -1

    def day_mask(self, year: int, month: int) -> int:
        """Returns the days of a month that match, day n as bit n."""
        key = year * 16 + month
        mask = self._months.get(key)
        if mask is None:
            if len(self._months) >= MONTHS_CACHED_MAX:
                self._months = {}  # replaced, not cleared: another thread may be reading it
            mask = self._months[key] = self._days_of(year, month)
        return mask

    def _days_of(self, year: int, month: int) -> int:
        fields = self.fields
        if not fields.months >> month & 1:
            return 0
        length = month_days(year, month)
        whole = (2 << length) - 2
        first = datetime.date(year, month, 1).isoweekday() % 7
        by_date = fields.days
        if fields.last_offsets or fields.last_workday or fields.near_workdays:
            by_date |= self._dates_counted(length, first)
        by_weekday = 0
        for weekday in range(7):
            start = 1 + (weekday - first) % 7
            if fields.weekdays >> weekday & 1:
                by_weekday |= 0x10204081 << start  # every seventh day
            nth = fields.nth_weekdays >> (8 * weekday) & 0xFF
            for week in range(1, 6):
                if nth >> week & 1:
                    by_weekday |= 1 << (start + 7 * (week - 1))
            if fields.last_weekdays >> weekday & 1:
                by_weekday |= 1 << (start + (length - start) // 7 * 7)
        return whole & (by_date | by_weekday if fields.either else by_date & by_weekday)

    def _dates_counted(self, length: int, first: int) -> int:
        """Returns the days that L, L-n, LW and nW mean in a month that starts on `first`."""
        fields = self.fields
        mask = 0
        for offset in range(length):
            if fields.last_offsets >> offset & 1:
                mask |= 1 << (length - offset)
        if fields.last_workday:
            weekday = (first + length - 1) % 7
            mask |= 1 << (length - (2 if weekday == 0 else 1 if weekday == 6 else 0))
        for day in range(1, length + 1):
            if fields.near_workdays >> day & 1:
                weekday = (first + day - 1) % 7
                if weekday == 6:
                    mask |= 1 << (day - 1 if day > 1 else 3)
                elif weekday == 0:
                    mask |= 1 << (day + 1 if day < length else length - 2)
                else:
                    mask |= 1 << day
        return mask
