"""Cron text to fields: the grammar, its errors, and what `H` means for one schedule.

    [second] minute hour day-of-month month day-of-week

Five fields, or six with the seconds first. In any field: `*`, a value, `a-b`, `a,b`, `*/n`,
`a-b/n`, `a/n` (from a to the end), `H`, `H/n`, `H(a-b)`, `H(a-b)/n`. Months and weekdays have
English names; Sunday is 0 and 7. `?` is `*` in the day fields. Day of month: `L`, `L-3`, `LW`,
`15W`. Day of week: `5L` or `L5` (the last Friday), `MON#2` (the second Monday). Ranges wrap around
in every field but the day of month (`FRI-MON`, `22-2`), without a step.
"""

import hashlib
import re
from functools import lru_cache
from typing import Final, NamedTuple, NoReturn

from .errors import CronError
from .limits import CRON_CHARACTERS_MAX, TEMPLATES_CACHED_MAX
from .pattern import Fields

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

MONTH_NAMES: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV",
                      "DEC")  # fmt: skip
WEEKDAY_NAMES: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


class Column(NamedTuple):
    """One field of the grammar: its name, its values, and the range that `H` draws from."""

    name: str
    low: int
    high: int
    hash_high: int
    names: dict[str, int]


COLUMNS: Final = (
    Column("second", 0, 59, 59, {}),
    Column("minute", 0, 59, 59, {}),
    Column("hour", 0, 23, 23, {}),
    Column("day of month", 1, 31, 28, {}),
    Column("month", 1, 12, 12, {name: at for at, name in enumerate(MONTH_NAMES, 1)}),
    # 7 is read as Sunday too; it is folded into 0 once ranges are expanded.
    Column("day of week", 0, 7, 6, {name: at for at, name in enumerate(WEEKDAY_NAMES)}),
)
_DAY_OF_MONTH: Final = 3
_DAY_OF_WEEK: Final = 5


class Hash(NamedTuple):
    """An `H`: one value of [low, high], or with a step every step-th from one below low + step."""

    column: int
    low: int
    high: int
    step: int


class Template(NamedTuple):
    """A parsed expression whose `H` are still open."""

    fields: Fields
    hashes: tuple[Hash, ...]
    fixed: bool
    """Neither minute nor hour is starred: fires at set local times, so daylight saving is a
    matter of policy. The others follow elapsed time."""
    has_seconds: bool

    def resolve(self, hash_key: str) -> Fields:
        """Returns the fields with each `H` drawn for a schedule: stable for the key and field."""
        if not self.hashes:
            return self.fields
        drawn = [0] * len(COLUMNS)
        for column, low, high, step in self.hashes:
            draw = _draw(hash_key, column)
            if step:
                start = low + draw % min(step, high - low + 1)
                drawn[column] |= _bits(range(start, high + 1, step))
            else:
                drawn[column] |= 1 << (low + draw % (high - low + 1))
        seconds, minutes, hours, days, months, weekdays = drawn
        return self.fields._replace(
            seconds=self.fields.seconds | seconds,
            minutes=self.fields.minutes | minutes,
            hours=self.fields.hours | hours,
            days=self.fields.days | days,
            months=self.fields.months | months,
            weekdays=self.fields.weekdays | weekdays,
        )


def _draw(hash_key: str, column: int) -> int:
    """Returns a number that depends on the key and the field only, not on the rest of the text."""
    content = f"{COLUMNS[column].name}\0{hash_key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _bits(values: range) -> int:
    return sum(1 << value for value in values)


@lru_cache(maxsize=TEMPLATES_CACHED_MAX)
def parse(text: str) -> Template:
    """Returns the template of a cron expression. Raises CronError."""
    if len(text) > CRON_CHARACTERS_MAX:
        raise CronError(f"{len(text)} characters; at most {CRON_CHARACTERS_MAX} are allowed")
    odd = re.search(r"[^A-Za-z0-9*?/,#()@=\-+_:. \t]", text)
    if odd:
        raise CronError("not a character of a cron expression", odd[0], odd.start() + 1)
    words = [(match[0], match.start() + 1) for match in re.finditer(r"\S+", text)]
    if not words:
        raise CronError("empty; a cron expression has 5 fields, or 6 with seconds first")
    if words[0][0].startswith("@"):
        words = _expand_alias(words)
    if "=" in text:
        raise CronError("a zone inside the expression is not supported: set `zone`", *words[0])
    if len(words) == 7:
        raise CronError("a seventh field (year) is not supported: use start and end", *words[6])
    if len(words) not in (5, 6):
        raise CronError(
            f"{len(words)} field{'s' * (len(words) > 1)}; a cron expression has 5 "
            "(minute hour day-of-month month day-of-week), or 6 with seconds first"
        )
    readers = [_Reader(at) for at in range(6)]
    if len(words) == 5:
        readers[0].mask = 1
    for reader, (word, column) in zip(readers[6 - len(words) :], words, strict=True):
        reader.read(word, column)
    return _template(readers, len(words) == 6)


def _expand_alias(words: list[tuple[str, int]]) -> list[tuple[str, int]]:
    alias, column = words[0]
    if alias.lower() == "@every":
        raise CronError("not a cron expression: write a period into `every`", alias, column)
    if alias.lower() == "@reboot":
        raise CronError("there is no reboot here: execute the job instead", alias, column)
    if alias.lower() not in ALIASES:
        raise CronError(f"unknown alias; there are {' '.join(ALIASES)}", alias, column)
    if len(words) > 1:
        raise CronError("nothing may follow an alias", *words[1])
    return [(word, column) for word in ALIASES[alias.lower()].split()]


def _template(readers: list["_Reader"], has_seconds: bool) -> Template:
    days, weekdays = readers[_DAY_OF_MONTH], readers[_DAY_OF_WEEK]
    weekday_mask = (weekdays.mask | weekdays.mask >> 7) & 0x7F
    fields = Fields(
        readers[0].mask,
        readers[1].mask,
        readers[2].mask,
        days.mask,
        readers[4].mask,
        weekday_mask,
        days.last_offsets,
        days.last_workday,
        days.near_workdays,
        weekdays.last_weekdays,
        weekdays.nth_weekdays,
        either=not days.starred and not weekdays.starred,
    )
    hashes = tuple(drawn for reader in readers for drawn in reader.hashes)
    fixed = not readers[1].starred and not readers[2].starred
    return Template(fields, hashes, fixed, has_seconds)


_HASH = re.compile(r"H(?:\((?P<low>[A-Z0-9]+)-(?P<high>[A-Z0-9]+)\))?(?:/(?P<step>[A-Z0-9]+))?")
_LAST_WEEKDAY = re.compile(r"(?:L(?P<after>[0-7]|[A-Z]{3})|(?P<before>[0-7]|[A-Z]{3})L)")


class _Reader:
    """Reads one field."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.column = COLUMNS[at]
        self.mask = 0
        self.starred = False
        self.hashes: list[Hash] = []
        self.last_offsets = 0
        self.last_workday = False
        self.near_workdays = 0
        self.last_weekdays = 0
        self.nth_weekdays = 0

    def read(self, word: str, column: int) -> None:
        for item in word.split(","):
            self.where = (item or word, column)
            if not item:
                self.fail("an empty item in a list")
            self._item(item.upper())
            column += len(item) + 1

    def fail(self, message: str) -> NoReturn:
        raise CronError(f"{self.column.name}: {message}", *self.where)

    def _item(self, item: str) -> None:
        if item.startswith("H"):
            self._hash(item)
        elif not (self.at == _DAY_OF_MONTH and self._day_rule(item)) and not (
            self.at == _DAY_OF_WEEK and self._weekday_rule(item)
        ):
            self._range(item)

    def _range(self, item: str) -> None:
        body, slash, step_text = item.partition("/")
        step = self._step(step_text) if slash else 1
        low, high = self.column.low, min(self.column.high, self.column.hash_high)
        if self.at == _DAY_OF_MONTH:
            high = self.column.high
        if body == "*" or (body == "?" and self.at in (_DAY_OF_MONTH, _DAY_OF_WEEK)):
            self.starred = True
        elif body == "?":
            self.fail("'?' is for the two day fields")
        elif "-" in body:
            first, _, last = body.partition("-")
            low, high = self._value(first), self._value(last)
        else:
            low = self._value(body)
            if self.at == _DAY_OF_WEEK and low == 7:
                low = 0
            high = high if slash else low
        if low > high:
            self._wrap(low, high, bool(slash))
        else:
            self.mask |= _bits(range(low, high + 1, step))

    def _wrap(self, low: int, high: int, stepped: bool) -> None:
        if self.at == _DAY_OF_MONTH:
            self.fail("runs backwards; months differ in length, so write two ranges")
        if stepped:
            self.fail("a range that wraps around takes no step; write two ranges")
        top = 6 if self.at == _DAY_OF_WEEK else self.column.high
        self.mask |= _bits(range(low, top + 1)) | _bits(range(self.column.low, high + 1))
        if self.at == _DAY_OF_WEEK and low == 7:
            self.mask |= 1

    def _hash(self, item: str) -> None:
        match = _HASH.fullmatch(item)
        if match is None:
            self.fail("not a hash; write H, H/15, H(0-29) or H(0-29)/10")
        low, high = self.column.low, self.column.hash_high
        if match["low"]:
            low, high = self._value(match["low"]), self._value(match["high"])
            if low > high or high > max(self.column.hash_high, self.column.high - (self.at == 5)):
                self.fail("a hash draws from a range that runs upwards, within the field")
        elif match["step"]:
            self.starred = True  # spreads what */n says
            high = self.column.high if self.at != _DAY_OF_WEEK else 6
        step = self._step(match["step"]) if match["step"] else 0
        self.hashes.append(Hash(self.at, low, high, step))

    def _day_rule(self, item: str) -> bool:
        """Reads L, L-n, LW and nW; False if it is none of them."""
        if item == "L":
            self.last_offsets |= 1
        elif item == "LW":
            self.last_workday = True
        elif item.startswith("L-"):
            offset = self._number(item[2:])
            if offset > 30:
                self.fail("L-n goes back 30 days at most")
            self.last_offsets |= 1 << offset
        elif item.endswith("W"):
            self.near_workdays |= 1 << self._value(item[:-1])
        else:
            return False
        return True

    def _weekday_rule(self, item: str) -> bool:
        """Reads wL, Lw and w#k; False if it is none of them."""
        if item == "L":
            self.fail("L needs a weekday here: 5L is the last Friday, SAT every Saturday")
        last = _LAST_WEEKDAY.fullmatch(item)
        if last:
            self.last_weekdays |= 1 << self._value(last["after"] or last["before"]) % 7
        elif "#" in item:
            weekday, _, week_text = item.partition("#")
            week = self._number(week_text)
            if not 1 <= week <= 5:
                self.fail("a month has the first to the fifth of a weekday: #1 to #5")
            self.nth_weekdays |= 1 << (8 * (self._value(weekday) % 7) + week)
        else:
            return False
        return True

    def _step(self, text: str) -> int:
        step = self._number(text)
        span = min(self.column.high, 6 if self.at == _DAY_OF_WEEK else 99) - self.column.low
        if step < 1:
            self.fail("a step is at least 1")
        if step > max(span, 1):
            self.fail(f"a step of {step} is wider than the field, which spans {span}")
        return step

    def _value(self, text: str) -> int:
        if text in self.column.names:
            return self.column.names[text]
        value = self._number(text)
        if not self.column.low <= value <= self.column.high:
            self.fail(f"must be {self.column.low} to {self.column.high}")
        return value

    def _number(self, text: str) -> int:
        if not text.isdigit() or len(text) > 4:  # the text is ASCII by now
            self.fail(f"'{text}' is not a number" if text else "a number is missing")
        return int(text)
