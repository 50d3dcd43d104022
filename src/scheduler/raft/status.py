"""What an operator wants to see of one replica."""

from __future__ import annotations

from dataclasses import dataclass

from .clocks import PeerClock
from .members import Members


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica, at one moment."""

    group_id: str
    replica_id: str
    leader_id: str | None
    is_leader: bool
    is_voter: bool
    term: int
    applied_index: int
    commit_index: int
    journal_first_index: int
    journal_last_index: int
    journal_bytes: int
    connected: tuple[str, ...]
    failure: str | None
    peer_clocks: tuple[PeerClock, ...]  # while it leads
    clock_step_count: int
    last_clock_step_ns: int
    clock_fault: str  # empty: nothing is known to be wrong
    members: Members  # the list in force here
    members_committed: bool
