"""What a replica is told when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .members import Members, configured


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """One replica of one group. The peers are whom a new group consists of, and whom a replica
    without data may hear from; who belongs to a group later is in its log.

    `bootstrap` says that this is the first start of a new group: an empty disk may vote at once.
    Without it an empty disk is a learner that neither votes nor counts until the leader has
    brought it up to date. Setting it for a replica of an existing group whose disk was wiped can
    lose acknowledged writes.
    """

    group_id: str
    replica_id: str
    peers: tuple[str, ...]  # the other replicas' ids
    directory: Path  # ours alone: journal/, incoming/, outgoing/
    addresses: Mapping[str, str] = field(default_factory=dict)  # of peers and this one, if any
    bootstrap: bool = False
    election_timeout_min_s: float = 0.3
    election_timeout_max_s: float = 0.6
    heartbeat_interval_s: float = 0.05
    # A leader to which the connection stands is given so many times longer, while its host answers:
    # it is late, on a machine that has too much to do, and electing another there makes it later
    # still. One that is killed loses its connections.
    patience: float = 2.5
    # A leader whose wall clock is further than this from those of a majority does not go on.
    clock_skew_max_s: float = 0.25
    # The highest version of payloads that this program's state machine can apply.
    entry_version: int = 1
    # The journal keeps this much behind what is durable in the state, for followers that were
    # away for a moment; a longer absence costs a snapshot.
    retain_entries: int = 10_000
    retain_bytes: int = 8 << 20
    # A follower that is being sent a snapshot pins the journal up to this size.
    pinned_bytes_max: int = 512 << 20

    @property
    def silence_s(self) -> float:
        """A leader that is connected should be heard within so long: several heartbeats."""
        return 3 * self.heartbeat_interval_s

    @property
    def members(self) -> Members:
        """The list that a new group begins with."""
        return configured((self.replica_id, *self.peers), dict(self.addresses))

    def __post_init__(self) -> None:
        if not self.group_id or not self.replica_id:
            raise ValueError("group_id and replica_id must not be empty")
        if self.replica_id in self.peers or len(set(self.peers)) != len(self.peers):
            raise ValueError(
                f"peers of {self.replica_id!r} must be the other replicas, once each:"
                f" {self.peers!r}"
            )
        if not (
            0
            < 3 * self.heartbeat_interval_s
            < self.election_timeout_min_s
            < self.election_timeout_max_s
        ):
            raise ValueError(
                "the election timeout's minimum must exceed three heartbeat intervals and be"
                f" below its maximum: heartbeat_interval_s={self.heartbeat_interval_s},"
                f" election_timeout_min_s={self.election_timeout_min_s},"
                f" election_timeout_max_s={self.election_timeout_max_s}"
            )
        if self.patience < 1:
            raise ValueError(f"patience must be 1 or more: {self.patience}")
        if self.clock_skew_max_s <= 0:
            raise ValueError(f"clock_skew_max_s must be positive: {self.clock_skew_max_s}")
        if self.retain_entries < 1 or self.retain_bytes < 1:
            raise ValueError("retain_entries and retain_bytes must be positive")
