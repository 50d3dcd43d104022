"""One cron in one zone: the instants at which it fires, across every change of the clocks.

This is the only place that knows what daylight saving does. A fixed time (neither minute nor hour
starred) fires when the local clock first reaches or passes it: that is once after a gap, and the
first time in a fold. A starred one fires whenever the local clock shows a matching time, which is
what the policies "skip in a gap, both in a fold" say: so it is the same search with those.
"""

from functools import lru_cache
from typing import Final

from .cron import parse
from .limits import HORIZON_S, PATTERNS_CACHED_MAX
from .pattern import NO_LOCAL, Fields, Pattern
from .spec import Fold, Gap, Spec
from .zones import Timeline, load

NEVER_S: Final = HORIZON_S
"""Stands for "no more fires": at or after the horizon."""


class Walker:
    """Finds the fires of a pattern on a timeline.

    Remembers one stretch between two fires: whoever asks from inside it gets the answer at once.
    The memory never changes an answer, and is one tuple, so threads may share a walker.
    """

    __slots__ = ("_memory", "moves", "once", "pattern", "timeline")

    def __init__(self, pattern: Pattern, timeline: Timeline, moves: bool, once: bool) -> None:
        self.pattern = pattern
        self.timeline = timeline
        self.moves = moves
        """A time in a gap fires at the gap's end."""
        self.once = once
        """A time in a fold does not fire again."""
        self._memory = (1, 0)  # an empty stretch

    def next_s(self, first_s: int) -> int:
        """Returns the first fire at or after an instant of 1970 or later; NEVER_S if none is."""
        known_from, known = self._memory
        if known_from <= first_s <= known:
            return known
        found = self._search(first_s)
        self._memory = (first_s, found)
        return found

    def _search(self, first_s: int) -> int:
        starts, offsets, highs = self.timeline
        next_local = self.pattern.next_local
        at = self.timeline.segment(first_s)
        local = first_s + offsets[at]
        if starts[at] == first_s and self._gap_fires(at):
            return first_s
        if self.once and local < highs[at]:
            local = highs[at]
        found = next_local(local)
        while found != NO_LOCAL:
            if found - offsets[at] < starts[at + 1]:
                return found - offsets[at]
            at += 1
            if at == len(offsets):
                return NEVER_S
            start_local = starts[at] + offsets[at]
            if self._gap_fires(at):
                return starts[at]
            if self.once and start_local < highs[at]:
                start_local = highs[at]
            # `found` is the first match from `local` on: it stays so unless clocks went back.
            if not local <= start_local <= found:
                found = next_local(start_local)
            local = start_local
        return NEVER_S

    def _gap_fires(self, at: int) -> bool:
        """Whether a segment begins with the end of a gap in which a time was due."""
        if not self.moves:
            return False
        start_local = self.timeline.starts[at] + self.timeline.offsets[at]
        high = self.timeline.highs[at]
        return high < start_local and NO_LOCAL < self.pattern.next_local(high) < start_local


@lru_cache(maxsize=PATTERNS_CACHED_MAX)
def _walker(fields: Fields, zone: str, digest: bytes, moves: bool, once: bool) -> Walker:
    return Walker(Pattern(fields), load(zone, digest), moves, once)


def walker(spec: Spec, cron: str, hash_key: str, timeline: Timeline | None = None) -> Walker:
    """Returns the walker of one of a spec's crons, on another timeline than its zone's if given.

    Raises CronError and UnknownZone.
    """
    template = parse(cron)
    fields = template.resolve(hash_key)
    moves = template.fixed and spec.gap is Gap.AFTER
    once = template.fixed and spec.fold is Fold.FIRST
    if timeline is not None:
        return Walker(Pattern(fields), timeline, moves, once)
    return _walker(fields, spec.zone, spec.zone_digest, moves, once)
