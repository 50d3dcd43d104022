"""What another release of tzdata would do to a schedule, before anybody installs it."""

from collections.abc import Iterator
from itertools import pairwise

import msgspec

from .limits import HORIZON_MS
from .program import Program, program
from .spec import Spec
from .zones import Timeline, load, parse

COMPARED_MAX = 20_000
"""Fires looked at in one comparison, about 0.1 s: then those that move are told as far as that."""

AROUND_S = 2 * 86_400
"""Looked at before and after a stretch in which zones differ."""


class Moves(msgspec.Struct, frozen=True):
    """Fires that only one of two tzdata releases has, in order; `more` if there are others."""

    gone_ms: tuple[int, ...] = ()
    new_ms: tuple[int, ...] = ()
    more: bool = False


def fires_moved(
    spec: Spec,
    zone_file: bytes,
    after_ms: int,
    until_ms: int,
    *,
    hash_key: str = "",
    most: int = 100,
) -> Moves:
    """Compares the fires in (after, until] of the spec's zone and of a candidate's TZif file.

    Looks only at where the two differ, and at COMPARED_MAX fires at most there. `most` bounds the
    fires returned. Raises BadZoneFile.
    """
    if not spec.crons and not spec.excluded_dates and not spec.calendars:
        return Moves()
    present = program(spec, hash_key)
    timeline = parse(zone_file)
    candidate = Program(spec, hash_key, timeline)
    gone: list[int] = []
    new: list[int] = []
    compared = 0
    until_ms = min(until_ms, HORIZON_MS - 1)
    zone = load(spec.zone, spec.zone_digest)
    for start_ms, end_ms in _differing(zone, timeline, after_ms, until_ms):
        left, right = present.next_ms(start_ms), candidate.next_ms(start_ms)
        while min(left, right) <= end_ms:
            compared += 1
            if compared > COMPARED_MAX:
                return Moves(tuple(gone), tuple(new), more=True)
            if left != right:
                if len(gone) + len(new) >= most:
                    return Moves(tuple(gone), tuple(new), more=True)
                (gone if left < right else new).append(min(left, right))
            earlier = min(left, right)
            left, right = present.next_ms(earlier), candidate.next_ms(earlier)
    return Moves(tuple(gone), tuple(new))


def _differing(
    one: Timeline, other: Timeline, after_ms: int, until_ms: int
) -> Iterator[tuple[int, int]]:
    """Yields the stretches (start, end] of a range in which two timelines differ, with some days
    around: a fixed time in a gap or a fold is moved to another instant, and dates are long."""
    first_s, last_s = after_ms // 1_000 - AROUND_S, until_ms // 1_000 + AROUND_S
    inside = {start for start in (*one.starts, *other.starts) if first_s < start < last_s}
    edges = [first_s, *sorted(inside), last_s]
    begun_s: int | None = None
    end_s = first_s
    for start_s, stop_s in pairwise(edges):
        if one.offset_s(start_s) == other.offset_s(start_s):
            continue
        if begun_s is not None and start_s - end_s > 2 * AROUND_S:
            yield _within(begun_s, end_s, after_ms, until_ms)
            begun_s = None
        if begun_s is None:
            begun_s = start_s
        end_s = stop_s
    if begun_s is not None:
        yield _within(begun_s, end_s, after_ms, until_ms)


def _within(start_s: int, end_s: int, after_ms: int, until_ms: int) -> tuple[int, int]:
    start_ms, end_ms = (start_s - AROUND_S) * 1_000, (end_s + AROUND_S) * 1_000
    return max(start_ms, after_ms), min(end_ms, until_ms)
