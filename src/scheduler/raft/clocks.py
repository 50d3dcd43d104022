"""Whether this replica's wall clock can be believed: against its monotonic clock, which shows every
step, and against the other replicas' wall clocks, which show who is wrong. Pure: the member feeds
it, the replica acts on it.

A leader's appends carry its monotonic clock, the replies echo it and add the peer's wall clock. So
the peer's clock is known to within half a round trip, whatever either wall clock does meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

SAMPLES_MAX = 16
"""Replies that an estimate is the best of: so many heartbeats, in which clocks hardly drift."""

DELAY_NS_MAX = 1_000_000_000
"""A round trip longer than this says nothing about clocks."""

STEP_NS_MIN = 10_000_000
"""Wall and monotonic clock may part by so much between two looks: far more than any slewing does
in a heartbeat, and than it takes to read both."""

READ_NS_MAX = 1_000_000
"""Reading both clocks took longer: the process was interrupted, and the look is worth nothing."""


class PeerClock(NamedTuple):
    """Another replica's wall clock minus ours: within uncertainty_ns of offset_ns."""

    peer: str
    offset_ns: int
    uncertainty_ns: int


class Clocks:
    """What one replica knows about clocks."""

    def __init__(
        self,
        monotonic_s: Callable[[], float],
        wall_ns: Callable[[], int],
        skew_ns_max: int,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._wall_ns = wall_ns
        self._skew_ns_max = skew_ns_max
        self._samples: dict[str, deque[tuple[int, int]]] = {}
        self._known: tuple[PeerClock, ...] | None = ()  # None: samples have changed since
        self._off: tuple[PeerClock, ...] = ()
        self._agreed: frozenset[str] = frozenset()
        """Whose clocks agreed with ours until it was set, if none has been seen to since."""
        self._difference_ns: int | None = None
        self.step_count = 0
        self.last_step_ns = 0

    def follow(self, peers: Iterable[str]) -> None:
        """Whose clocks count: those of the group's other voters."""
        self._samples = {
            peer: self._samples.get(peer) or deque(maxlen=SAMPLES_MAX) for peer in sorted(peers)
        }
        self._known = None

    def monotonic_ns(self) -> int:
        """To be echoed by whoever is asked."""
        return int(self._monotonic_s() * 1e9)

    def wall_ns(self) -> int:
        """To be told to whoever asks."""
        return self._wall_ns()

    def look(self) -> int:
        """By how much the wall clock was set since the last look, 0 if it was not."""
        before_ns = self.monotonic_ns()
        wall_ns = self._wall_ns()
        after_ns = self.monotonic_ns()
        if after_ns - before_ns > READ_NS_MAX:
            return 0
        difference_ns = wall_ns - after_ns
        last_ns, self._difference_ns = self._difference_ns, difference_ns
        if last_ns is None or abs(difference_ns - last_ns) < STEP_NS_MIN:
            return 0
        self.step_count += 1
        self.last_step_ns = difference_ns - last_ns
        agreed = self._agreed.union(clock.peer for clock in self.known if clock not in self.off)
        self.forget()  # what was measured was measured against the clock as it was
        self._agreed = agreed
        return self.last_step_ns

    def sample(self, peer: str, asked_ns: int, clock_ns: int) -> None:
        """A reply has come: `asked_ns` echoed, `clock_ns` its sender's wall clock; 0: not told."""
        if not asked_ns or not clock_ns or peer not in self._samples:
            return
        delay_ns = self.monotonic_ns() - asked_ns
        if 0 <= delay_ns <= DELAY_NS_MAX:
            offset_ns = clock_ns - (self._wall_ns() - delay_ns // 2)
            self._samples[peer].append((delay_ns, offset_ns))
            self._known = None

    def forget(self, *peers: str) -> None:
        """What is known of some peers' clocks, or of all, counts no more."""
        for peer in peers or self._samples:
            if peer in self._samples:
                self._samples[peer].clear()
        self._known = None
        if not peers:
            self._agreed = frozenset()

    @property
    def known(self) -> tuple[PeerClock, ...]:
        """Every clock that was measured."""
        if self._known is None:
            found = []
            for peer, samples in self._samples.items():
                if samples:
                    delay_ns, offset_ns = min(samples)
                    found.append(PeerClock(peer, offset_ns, (delay_ns + 1) // 2))
            self._known = tuple(found)
            self._off = tuple(
                clock
                for clock in found
                if abs(clock.offset_ns) - clock.uncertainty_ns > self._skew_ns_max
            )
            if len(self._off) < len(found):
                self._agreed = frozenset()
        return self._known

    @property
    def off(self) -> tuple[PeerClock, ...]:
        """Those that differ from ours by more than the bound for certain."""
        return self._off if self.known else ()

    @property
    def against(self) -> tuple[PeerClock, ...]:
        """A majority of the group whose clocks agree with each other and differ from ours by more
        than the bound: then ours is the one that is wrong. Empty if there is none."""
        needed = (len(self._samples) + 1) // 2 + 1
        off = sorted(self.off, key=lambda clock: clock.offset_ns)
        for first in range(len(off) - needed + 1):
            group = [
                clock
                for clock in off[first:]
                if clock.offset_ns - off[first].offset_ns <= self._skew_ns_max
            ]
            if len(group) >= needed:
                return tuple(group)
        return ()

    @property
    def left(self) -> tuple[PeerClock, ...]:
        """Those that agreed with ours until it was set, and differ by more than the bound since,
        while no other agrees: then ours is the one that is wrong, however few there are."""
        return tuple(clock for clock in self.off if clock.peer in self._agreed)
