"""A spec made ready to answer when it fires: the union of its parts, less what it excludes."""

from bisect import bisect_left, bisect_right
from functools import lru_cache

from .cron import parse
from .dates import ExcludedDates
from .errors import BadSpec
from .jitter import draw_ms
from .limits import (
    CALENDARS_CACHED_MAX,
    COUNT_MAX,
    EXCLUDED_STEPS_MAX,
    HORIZON_MS,
    PROGRAMS_CACHED_MAX,
)
from .spec import Calendar, Spec
from .walker import walker
from .zones import Timeline, load


class Program:
    """Answers for one spec (and one hash key, if its crons hash).

    Remembers one stretch between two fires, as walkers do, and as harmlessly.
    """

    __slots__ = (
        "_ats", "_end_ms", "_everies", "_exclusions", "_memory", "_start_ms", "_walkers", "hashed",
    )  # fmt: skip

    def __init__(self, spec: Spec, hash_key: str, timeline: Timeline | None = None) -> None:
        if any(period_ms < 1 for period_ms, _ in spec.every):
            raise BadSpec("a period must be positive")
        self.hashed = any(parse(cron).hashes for cron in spec.crons)
        self._walkers = tuple(walker(spec, cron, hash_key, timeline) for cron in spec.crons)
        self._everies = spec.every
        self._ats = tuple(sorted(spec.at_ms))
        self._start_ms = max(0, spec.start_ms or 0)
        self._end_ms = HORIZON_MS if spec.end_ms is None else min(spec.end_ms, HORIZON_MS)
        self._exclusions = _exclusions(spec, timeline)
        self._memory = (1, 0)

    def next_ms(self, after_ms: int) -> int:
        """Returns the first fire strictly after an instant, HORIZON_MS if there is none."""
        known_after, known = self._memory
        if known_after <= after_ms < known:
            return known
        first = max(after_ms + 1, self._start_ms)
        if first >= self._end_ms:
            return HORIZON_MS
        for _ in range(EXCLUDED_STEPS_MAX):
            found = self.next_unexcluded_ms(first)
            if found >= self._end_ms:
                found = HORIZON_MS
                break
            if not self._exclusions:
                break
            first = self.excluded_until_ms(found)
            if not first:
                break
        else:
            return HORIZON_MS  # gave up: not remembered, or answers would depend on who asks first
        self._memory = (after_ms, found)
        return found

    def next_unexcluded_ms(self, first_ms: int) -> int:
        """Returns the first instant at or after one that any part names, exclusions ignored."""
        best = HORIZON_MS
        if self._walkers:
            first_s = -(-first_ms // 1_000)
            for one in self._walkers:
                found = one.next_s(first_s) * 1_000
                if found < best:
                    best = found
        for period_ms, phase_ms in self._everies:
            found = first_ms + (phase_ms - first_ms) % period_ms
            if found < best:
                best = found
        if self._ats:
            at = bisect_left(self._ats, first_ms)
            if at < len(self._ats) and self._ats[at] < best:
                best = self._ats[at]
        return best

    def excluded_until_ms(self, instant_ms: int) -> int:
        """Returns where the exclusion around an instant ends, 0 if it is not excluded."""
        return self.exclusion(instant_ms)[0]

    def exclusion(self, instant_ms: int) -> tuple[int, str]:
        """Returns where the exclusion around an instant ends (0 if it is not excluded), and the
        name of the calendar that excludes it, empty if the spec does so itself."""
        for name, one in self._exclusions:
            until_ms = one.until_ms(instant_ms)
            if until_ms:
                return until_ms, name
        return 0, ""


class _Exclusion:
    """Dates and windows that are left out."""

    __slots__ = ("_dates", "_window_ends", "_window_starts")

    def __init__(
        self, dates: tuple[str, ...], windows: tuple[tuple[int, int], ...], timeline: Timeline
    ) -> None:
        self._dates = ExcludedDates(dates, timeline)
        merged = _merged(windows)
        self._window_starts = [start for start, _ in merged]
        self._window_ends = [end for _, end in merged]

    def until_ms(self, instant_ms: int) -> int:
        """Returns where the exclusion around an instant ends, 0 if it is not excluded."""
        at = bisect_right(self._window_starts, instant_ms) - 1
        if at >= 0 and instant_ms < self._window_ends[at]:
            return self._window_ends[at]
        return self._dates.excluded_until_s(instant_ms // 1_000) * 1_000


@lru_cache(maxsize=CALENDARS_CACHED_MAX)
def _exclusion(calendar: Calendar, zone: str, digest: bytes) -> _Exclusion:
    return _Exclusion(calendar.dates, calendar.windows, load(zone, digest))


def _exclusions(spec: Spec, timeline: Timeline | None) -> tuple[tuple[str, _Exclusion], ...]:
    """Returns what the spec itself, then what each calendar takes away, with the latter's name.

    `timeline` takes the place of the spec's own zone, wherever that is named.
    """
    parts = [("", Calendar(spec.excluded_dates, spec.excluded_windows), b"")]
    for pin in spec.calendars:
        if pin.content is None:
            raise BadSpec(f"calendar {pin.name!r} has no content: use with_calendars")
        parts.append((pin.name, pin.content, pin.zone_digest))
    found = []
    for name, part, digest in parts:
        if not part.dates and not part.windows:
            continue
        if timeline is not None and part.zone in ("", spec.zone):
            found.append((name, _Exclusion(part.dates, part.windows, timeline)))
        elif part.zone:
            found.append((name, _exclusion(part, part.zone, digest)))
        else:
            found.append((name, _exclusion(part, spec.zone, spec.zone_digest)))
    return tuple(found)


def _merged(windows: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Returns windows in order, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return merged


@lru_cache(maxsize=PROGRAMS_CACHED_MAX)
def _shared(spec: Spec) -> Program:
    return Program(spec, "")


@lru_cache(maxsize=PROGRAMS_CACHED_MAX)
def _keyed(spec: Spec, hash_key: str) -> Program:
    return Program(spec, hash_key)


def program(spec: Spec, hash_key: str) -> Program:
    """Returns the program of a spec. Raises RecurrenceError if the spec was never valid."""
    if not (spec.crons or spec.excluded_dates or spec.excluded_windows or spec.calendars):
        return Program(spec, "")  # cheaper to make than to keep: phases are rarely shared
    found = _shared(spec)
    return _keyed(spec, hash_key) if found.hashed else found


def draws(spec: Spec) -> bool:
    """Returns whether it is due at other times under another `hash_key`: by `H`, or by jitter."""
    return spec.jitter_ms > 0 or any(parse(cron).hashes for cron in spec.crons)


def next_fire(spec: Spec, after_ms: int, *, hash_key: str = "") -> int | None:
    """Returns the nominal instant of the first fire strictly after `after_ms`; None: never again.

    `hash_key` is the schedule's uid: `H` in its crons draws from it. `max_fires` is not looked at.
    """
    found = program(spec, hash_key).next_ms(after_ms)
    return found if found < HORIZON_MS else None


def latest_fire(
    spec: Spec, after_ms: int, until_ms: int, *, hash_key: str = ""
) -> tuple[int | None, int]:
    """Returns the last fire in (after, until] and how many there are, counted up to COUNT_MAX."""
    if until_ms >= HORIZON_MS:
        raise BadSpec(f"until_ms {until_ms} is not before the horizon {HORIZON_MS}")
    following = program(spec, hash_key).next_ms
    last, count = after_ms, 0
    while count < COUNT_MAX:
        found = following(last)
        if found > until_ms:
            return (last if count else None), count
        last, count = found, count + 1
    # "Is there another fire by `until`" turns from yes to no at the last one: halve down to it.
    beyond = until_ms
    while last < beyond:
        middle = (last + beyond) // 2
        found = following(middle)
        if found <= until_ms:
            last = found
        else:
            beyond = middle
    return last, count


def due_ms(spec: Spec, nominal_ms: int, *, hash_key: str = "") -> int:
    """Returns when the fire of a nominal instant is due: up to `jitter_ms` later.

    Always before the next nominal fire, so due times keep the nominal order. It may be after
    `end_ms`, which bounds nominal instants.
    """
    if spec.jitter_ms <= 0:
        return nominal_ms
    following = program(spec, hash_key).next_ms(nominal_ms)
    room_ms = min(spec.jitter_ms, following - nominal_ms - 1)
    return nominal_ms + draw_ms(hash_key, nominal_ms, room_ms)
