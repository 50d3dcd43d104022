"""What a schedule will do, explained: its fires, the instants it skips, and why.

The explanations are found from the zone's transitions, apart from the search that decides when
something fires; the tests hold the two against each other.
"""

import datetime
from collections.abc import Iterator

import msgspec

from .cron import parse
from .errors import BadSpec
from .limits import (
    HORIZON_MS,
    NOTE_TIMES_MAX,
    PREVIEW_MAX,
    PREVIEW_QUIET_MS,
    PREVIEW_SKIPPED_MAX,
)
from .pattern import NO_LOCAL
from .program import due_ms, program
from .spec import Spec
from .walker import Walker, walker
from .zones import EPOCH_ORDINAL, load


class Fire(msgspec.Struct, frozen=True):
    """One instant of a schedule. A skipped one is due never; `due_ms` is then its nominal time."""

    nominal_ms: int
    due_ms: int
    local: str
    """The nominal instant on the zone's clocks, ISO 8601 with its offset."""
    note: str = ""
    skipped: bool = False


def preview(
    spec: Spec, after_ms: int, count: int, *, hash_key: str = "", fired: int = 0
) -> list[Fire]:
    """Returns the next `count` fires strictly after an instant, in order of nominal time.

    Among them, marked and not counted, are instants that are skipped: by daylight saving or by an
    exclusion (PREVIEW_SKIPPED_MAX of them at most). `fired` is how often the schedule has fired,
    for `max_fires`. Raises BadSpec for a count beyond PREVIEW_MAX.
    """
    if not 0 <= count <= PREVIEW_MAX:
        raise BadSpec(f"a preview of {count} fires; at most {PREVIEW_MAX} are computed at once")
    wanted = count if spec.max_fires is None else min(count, max(0, spec.max_fires - fired))
    ready = program(spec, hash_key)
    nominals: list[int] = []
    last = after_ms
    while len(nominals) < wanted:
        last = ready.next_ms(last)
        if last >= HORIZON_MS:
            break
        nominals.append(last)
    if not wanted:
        return []
    until_ms = last
    if last >= HORIZON_MS:
        until_ms = min(HORIZON_MS - 1, (nominals or [after_ms])[-1] + PREVIEW_QUIET_MS)
    return _explained(spec, after_ms, until_ms, nominals, hash_key)


def _explained(
    spec: Spec, after_ms: int, until_ms: int, nominals: list[int], hash_key: str
) -> list[Fire]:
    notes: dict[int, list[str]] = {}
    skipped: dict[int, list[str]] = {}
    fires = set(nominals)
    start_ms = max(after_ms + 1, spec.start_ms or 0)
    end_ms = min(until_ms + 1, HORIZON_MS if spec.end_ms is None else spec.end_ms)
    for instant_ms, note, runs in clock_notes(spec, after_ms, until_ms, hash_key):
        if instant_ms in fires:
            notes.setdefault(instant_ms, []).append(note)
        elif not runs and start_ms <= instant_ms < end_ms and len(skipped) < PREVIEW_SKIPPED_MAX:
            skipped.setdefault(instant_ms, []).append(note)
    for instant_ms, calendar in _excluded(spec, start_ms, end_ms, hash_key):
        if len(skipped) >= PREVIEW_SKIPPED_MAX:
            break
        note = f"excluded by calendar {calendar}" if calendar else "excluded"
        skipped.setdefault(instant_ms, []).append(note)
    result = [
        Fire(
            instant_ms,
            due_ms(spec, instant_ms, hash_key=hash_key),
            local_text(spec.zone, instant_ms, spec.zone_digest),
            "; ".join(notes.get(instant_ms, ())),
        )
        for instant_ms in nominals
    ]
    result.extend(
        Fire(
            instant_ms,
            instant_ms,
            local_text(spec.zone, instant_ms, spec.zone_digest),
            "; ".join(texts),
            True,
        )
        for instant_ms, texts in skipped.items()
    )
    return sorted(result, key=lambda fire: fire.nominal_ms)


def _excluded(spec: Spec, start_ms: int, end_ms: int, hash_key: str) -> Iterator[tuple[int, str]]:
    """Yields the instants that the spec's parts name and its exclusions take away, with the
    calendar that does so."""
    if not (spec.excluded_dates or spec.excluded_windows or spec.calendars):
        return
    ready = program(spec, hash_key)
    instant_ms = ready.next_unexcluded_ms(start_ms)
    while instant_ms < end_ms:
        until_ms, calendar = ready.exclusion(instant_ms)
        if until_ms:
            yield instant_ms, calendar
        instant_ms = ready.next_unexcluded_ms(instant_ms + 1)


def clock_notes(
    spec: Spec, after_ms: int, until_ms: int, hash_key: str
) -> Iterator[tuple[int, str, bool]]:
    """Yields (instant, note, whether it runs) for what clock changes do to the spec's crons."""
    timeline = load(spec.zone, spec.zone_digest)
    # A day more: the first time of a fold is before its transition.
    first = timeline.segment(max(0, after_ms // 1_000))
    last = timeline.segment(until_ms // 1_000 + 86_400)
    for cron in spec.crons:
        one = walker(spec, cron, hash_key)
        for at in range(max(1, first), last + 1):
            start_local = timeline.starts[at] + timeline.offsets[at]
            high = timeline.highs[at]
            if high < start_local and parse(cron).fixed:
                yield from _gap_note(spec, one, at, high, start_local)
            elif start_local < high:
                yield from _fold_notes(spec, one, at, start_local, high)


def _gap_note(
    spec: Spec, one: Walker, at: int, high: int, start_local: int
) -> Iterator[tuple[int, str, bool]]:
    times = list(_matches(one, high, start_local))
    if times:
        verb = "does not exist" if len(times) == 1 else "do not exist"
        outcome = f"runs at {clock_text(start_local)}" if one.moves else "skipped"
        if one.moves and start_local // 86_400 != times[0] // 86_400:
            outcome += f" on {date_text(start_local)}"
        note = f"{_named(times)} {verb} on {date_text(times[0])} in {spec.zone}: {outcome}"
        yield one.timeline.starts[at] * 1_000, note, one.moves


def _fold_notes(
    spec: Spec, one: Walker, at: int, start_local: int, high: int
) -> Iterator[tuple[int, str, bool]]:
    timeline = one.timeline
    for shown, local in enumerate(_matches(one, start_local, high)):
        first_s = local - timeline.offsets[at - 1]
        second_s = local - timeline.offsets[at]
        if shown == PREVIEW_SKIPPED_MAX or second_s >= timeline.starts[at + 1]:
            return
        twice = f"{clock_text(local)} happens twice on {date_text(local)} in {spec.zone}: "
        if one.once:
            yield first_s * 1_000, twice + "runs the first time only", True
            yield second_s * 1_000, twice + "does not run the second time", False
        else:
            yield first_s * 1_000, twice + "runs both times, this is the first", True
            yield second_s * 1_000, twice + "runs both times, this is the second", True


def _matches(one: Walker, local_s: int, until_s: int) -> Iterator[int]:
    found = one.pattern.next_local(local_s)
    while NO_LOCAL < found < until_s:
        yield found
        found = one.pattern.next_local(found + 1)


def _named(times: list[int]) -> str:
    """Returns local times by name, those beyond NOTE_TIMES_MAX by number."""
    named = ", ".join(clock_text(local) for local in times[:NOTE_TIMES_MAX])
    more = len(times) - NOTE_TIMES_MAX
    return f"{named} and {more} more" if more > 0 else named


def clock_text(local_s: int) -> str:
    """Returns a local second as 02:30, or 02:30:15."""
    minutes, second = divmod(local_s % 86_400, 60)
    text = f"{minutes // 60:02}:{minutes % 60:02}"
    return f"{text}:{second:02}" if second else text


def date_text(local_s: int) -> str:
    """Returns the date of a local second as 29 March 2026."""
    day = datetime.date.fromordinal(local_s // 86_400 + EPOCH_ORDINAL)
    return f"{day.day} {_MONTHS[day.month]} {day.year}"


_MONTHS = ("", "January", "February", "March", "April", "May", "June", "July", "August",
           "September", "October", "November", "December")  # fmt: skip


def local_text(zone: str, instant_ms: int, digest: bytes = b"") -> str:
    """Returns an instant on a zone's clocks, ISO 8601 with its offset."""
    offset = datetime.timedelta(seconds=load(zone, digest).offset_s(instant_ms // 1_000))
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    moment += datetime.timedelta(milliseconds=instant_ms)
    precision = "milliseconds" if instant_ms % 1_000 else "seconds"
    return moment.astimezone(datetime.timezone(offset)).isoformat(timespec=precision)
