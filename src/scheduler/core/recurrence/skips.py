"""Which instants a recurrence leaves out between two of its fires, and why."""

from collections.abc import Iterator

import msgspec

from .limits import COUNT_MAX, PREVIEW_SKIPPED_MAX
from .preview import clock_notes
from .program import program
from .spec import Spec
from .zones import load


class Skip(msgspec.Struct, frozen=True):
    """A run of instants that do not fire: bounds (both inclusive) and how many, up to COUNT_MAX."""

    first_ms: int
    last_ms: int
    count: int
    by_clock: bool
    """By daylight saving; else by an exclusion."""
    calendar: str = ""
    """Which calendar's; empty: the schedule's own."""


def skips(
    spec: Spec, after_ms: int, until_ms: int, *, hash_key: str = ""
) -> tuple[list[Skip], int]:
    """Returns what is skipped strictly between two instants, oldest first, and until when that is.

    Nearly always nothing, and then cheap. At most PREVIEW_SKIPPED_MAX runs are told, and COUNT_MAX
    instants looked at that do fire: then it ends earlier.
    """
    found: list[Skip] = []
    told_ms = until_ms
    if spec.crons and _clocks_change(spec, after_ms, until_ms):
        found += _by_clock(spec, after_ms, until_ms, hash_key)
    if spec.excluded_dates or spec.excluded_windows or spec.calendars:
        excluded, told_ms = _by_exclusion(spec, after_ms, until_ms, hash_key)
        found = [skip for skip in found if skip.first_ms < told_ms] + excluded
    found.sort(key=lambda skip: skip.first_ms)
    if len(found) > PREVIEW_SKIPPED_MAX:
        found = found[:PREVIEW_SKIPPED_MAX]
        told_ms = found[-1].last_ms + 1
    return found, told_ms


def _clocks_change(spec: Spec, after_ms: int, until_ms: int) -> bool:
    timeline = load(spec.zone, spec.zone_digest)
    if len(timeline.offsets) == 1:
        return False
    # A day more, as a time that happens twice is first seen before its transition.
    first = timeline.segment(max(0, after_ms // 1_000 - 86_400))
    return first != timeline.segment(until_ms // 1_000 + 86_400)


def _by_clock(spec: Spec, after_ms: int, until_ms: int, hash_key: str) -> Iterator[Skip]:
    ready = program(spec, hash_key)
    seen: set[int] = set()
    for instant_ms, _, runs in clock_notes(spec, max(0, after_ms - 86_400_000), until_ms, hash_key):
        if runs or not after_ms < instant_ms < until_ms or instant_ms in seen:
            continue
        seen.add(instant_ms)
        if ready.next_ms(instant_ms - 1) != instant_ms:
            yield Skip(instant_ms, instant_ms, 1, True)


def _by_exclusion(
    spec: Spec, after_ms: int, until_ms: int, hash_key: str
) -> tuple[list[Skip], int]:
    ready = program(spec, hash_key)
    start_ms = max(after_ms + 1, spec.start_ms or 0)
    found: list[Skip] = []
    fires = 0
    while len(found) < PREVIEW_SKIPPED_MAX and fires < COUNT_MAX:
        first_ms = ready.next_unexcluded_ms(start_ms)
        if first_ms >= until_ms:
            return found, until_ms
        end_ms, calendar = ready.exclusion(first_ms)
        end_ms = min(end_ms, until_ms)
        if not end_ms:
            fires += 1
            start_ms = first_ms + 1
            continue
        count, instant_ms = 0, first_ms
        while instant_ms < end_ms and count < COUNT_MAX:
            count += 1
            last_ms = instant_ms
            instant_ms = ready.next_unexcluded_ms(instant_ms + 1)
        last_ms = last_ms if instant_ms >= end_ms else end_ms - 1
        found.append(Skip(first_ms, last_ms, count, False, calendar))
        start_ms = end_ms
    return found, min(start_ms, until_ms)
