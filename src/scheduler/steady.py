"""The time by which a leader decides: the wall clock, except that a jump of it is not believed at
once.

A leader whose clock jumped away from the others' is replaced within a heartbeat or a second (see
raft.clocks); until that is sure, time goes on as the monotonic clock has it. Otherwise one bad step
could fire an hour's schedules at once, or put the shard's time, which never goes back, far ahead.
"""

from __future__ import annotations

from ..mesh.clock import Clock

STEP_NS_MIN = 10_000_000
"""Smaller differences are followed at once: slewing, and the time between two readings."""

HOLD_NS = 2_000_000_000
"""A jump is believed after so long: longer than a leader that is wrong takes to stand down."""


class SteadyClock:
    """A Clock on another."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stepped_ns: int | None = None
        """When the jump that is not believed yet was seen, by the monotonic clock."""
        self.trust()

    def trust(self) -> None:
        """The wall clock is right as it is: it was just compared, or there is no other."""
        self._difference_ns = self._clock.now_ns() - self._clock.monotonic_ns()
        self._stepped_ns = None

    def now_ns(self) -> int:
        """See Clock."""
        now_ns = self._clock.monotonic_ns()
        difference_ns = self._clock.now_ns() - now_ns
        if abs(difference_ns - self._difference_ns) < STEP_NS_MIN:
            self._difference_ns, self._stepped_ns = difference_ns, None
        elif self._stepped_ns is None:
            self._stepped_ns = now_ns
        elif now_ns - self._stepped_ns >= HOLD_NS:
            self._difference_ns, self._stepped_ns = difference_ns, None
        return now_ns + self._difference_ns

    def monotonic_ns(self) -> int:
        """See Clock."""
        return self._clock.monotonic_ns()
