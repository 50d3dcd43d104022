"""Who belongs to a group: a list that is replicated in the group's own log, one change at a time.

A list takes effect on a replica when it is appended there, and is taken back when it is truncated;
the journal keeps which one is in force. Lists that follow each other differ by one voter at most,
so that any majority of the one meets any majority of the other.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .errors import AlreadyMember, ChangeRefused, NoSuchMember
from .limits import REPLICAS_MAX, VOTERS_MIN


class Listed(msgspec.Struct, frozen=True, array_like=True):
    """One replica in a list. Who is no voter is sent the log and counts for nothing."""

    id: str
    address: str
    voter: bool


class Members(msgspec.Struct, frozen=True, array_like=True):
    """The list. `number` rises by one with each change; 0 is what a group was configured with."""

    number: int
    replicas: tuple[Listed, ...]

    def find(self, replica_id: str) -> Listed | None:
        """The replica of that id, if it is in the list."""
        return next((each for each in self.replicas if each.id == replica_id), None)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all, in the list's order."""
        return tuple(each.id for each in self.replicas)

    @property
    def voters(self) -> frozenset[str]:
        """The ids of those who count."""
        return frozenset(each.id for each in self.replicas if each.voter)

    @property
    def learners(self) -> tuple[str, ...]:
        """The ids of those who do not count yet."""
        return tuple(each.id for each in self.replicas if not each.voter)

    def _changed(self, replicas: Iterable[Listed]) -> Members:
        return Members(self.number + 1, tuple(sorted(replicas, key=lambda each: each.id)))

    def with_learner(self, replica_id: str, address: str) -> Members:
        """The list after a replica was added. Raises ChangeRefused."""
        for each in self.replicas:
            if each.id == replica_id:
                raise AlreadyMember(
                    f"{replica_id!r} is in the list already, at {each.address!r}: nothing to add"
                )
            if address and each.address == address:
                raise AlreadyMember(f"{address!r} is where {each.id!r} listens: nothing to add")
        if self.learners:
            raise ChangeRefused(
                f"{self.learners[0]!r} was added and has not caught up yet: one change at a time."
                " Wait until it is a voter, or remove it"
            )
        if len(self.replicas) >= REPLICAS_MAX:
            raise ChangeRefused(
                f"the group has {len(self.replicas)} replicas, and more than {REPLICAS_MAX} cost"
                " every write more than they protect: remove one first"
            )
        return self._changed((*self.replicas, Listed(replica_id, address, False)))

    def with_voter(self, replica_id: str) -> Members:
        """The list after a replica has caught up."""
        kept = [each for each in self.replicas if each.id != replica_id]
        found = self.find(replica_id)
        assert found is not None and not found.voter
        return self._changed((*kept, Listed(found.id, found.address, True)))

    def without(self, replica_id: str) -> Members:
        """The list after a replica was removed. Raises ChangeRefused."""
        found = self.find(replica_id)
        if found is None:
            raise NoSuchMember(
                f"there is no replica {replica_id!r}; there are: {', '.join(self.ids)}"
            )
        if found.voter and self.learners:
            raise ChangeRefused(
                f"{self.learners[0]!r} was added and has not caught up yet: one change at a time."
                " Wait until it is a voter, or remove it"
            )
        if found.voter and len(self.voters) <= VOTERS_MIN:
            raise ChangeRefused(
                f"without {replica_id!r} the group would have {len(self.voters) - 1} voters, and"
                f" with fewer than {VOTERS_MIN} it stops when one is lost: add another replica"
                " first, and remove this one when that is a voter"
            )
        return self._changed(each for each in self.replicas if each.id != replica_id)


def configured(ids: Iterable[str], addresses: dict[str, str]) -> Members:
    """The list that a group begins with."""
    return Members(0, tuple(Listed(name, addresses.get(name, ""), True) for name in sorted(ids)))


def encode(members: Members) -> bytes:
    """As an entry's payload, and as the journal keeps it."""
    return msgspec.msgpack.encode(members)


_DECODER = msgspec.msgpack.Decoder(Members)


def decode(data: bytes) -> Members:
    """What `encode` made. Raises msgspec.DecodeError."""
    return _DECODER.decode(data)
