"""What follows from the clocks: a leader whose own is wrong does not go on, and a new one decides
nothing before its clock has been compared. See clocks.py for what is measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from .clocks import PeerClock
from .config import ReplicaConfig
from .limits import CLOCK_VERDICT_S
from .member import Member

logger = logging.getLogger(__name__)


class Verdict:
    """See the module. Looked at in each round of a replica."""

    def __init__(self, config: ReplicaConfig, member: Member, clock: Callable[[], float]) -> None:
        self.fault = ""  # of this replica's clock; empty: nothing is known to be wrong
        self._config = config
        self._member = member
        self._clock = clock
        self._off: tuple[str, ...] = ()
        self._due_s = math.inf

    def watch(self) -> tuple[PeerClock, ...]:
        """Notes what has changed. Those whose clocks say that this leader's is wrong, which must
        not lead on then: a majority that agrees on another time, or those that this one has left
        when it was set. Empty if there are none."""
        member = self._member
        stepped_ns = member.clocks.look()
        if stepped_ns:
            logger.warning(
                "the wall clock of %s jumped by %+.3f s", self._config.replica_id, stepped_ns / 1e9
            )
        if not member.is_leader:
            self._off = ()
            return ()
        clocks_off = member.clocks.off
        if clocks_off or self._off:
            if against := member.clocks.against:
                return against
            # Of two that are left neither has a majority; but who was set is the one to doubt.
            if self._all_are_known and (against := member.clocks.left):
                return against
            off = tuple(clock.peer for clock in clocks_off)
            if off != self._off:
                self._off = off
                if off:
                    logger.warning("clocks differ from this leader's: %s", clocks_off)
        if (
            self.fault
            and not clocks_off
            and len(member.clocks.known) >= len(member.voting) // 2 + 1
        ):
            self.fault = ""
        return ()

    def condemn(self, against: tuple[PeerClock, ...], *, told: bool) -> None:
        """This replica's clock is wrong. told: that has been said."""
        config = self._config
        clocks = ", ".join(f"{clock.peer} {clock.offset_ns / 1e9:+.3f} s" for clock in against)
        fault = (
            f"the wall clock of {config.replica_id} is off by more than"
            f" {config.clock_skew_max_s:g} s: the others agree on another time ({clocks}). It does"
            " not lead: set its clock, and look at what disciplines it"
        )
        if not told and fault != self.fault:
            logger.error("%s", fault)
        self.fault = fault

    def forget(self) -> None:
        """Leadership is lost."""
        self._due_s = math.inf

    @property
    def is_given(self) -> bool:
        """Whether a new leader may decide by its clock: nobody's differs, or all are measured, or
        that was waited for long enough."""
        now_s = self._clock()
        if self._member.clocks.off and not self._all_are_known:
            self._due_s = min(self._due_s, now_s + CLOCK_VERDICT_S)
            if now_s < self._due_s:
                return False
        self._due_s = math.inf
        return True

    @property
    def _all_are_known(self) -> bool:
        """Whether the clocks of all who are connected are measured."""
        member = self._member
        return len(member.clocks.known) >= len(member.connected & member.voting)
