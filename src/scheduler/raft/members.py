"""Who belongs to a group: a list that is replicated in the group's own log, one change at a time.

A list takes effect on a replica when it is appended there, and is taken back when it is truncated;
the journal keeps which one is in force. Lists that follow each other differ by one voter at most,
so that any majority of the one meets any majority of the other.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .errors import AlreadyMember, ChangeRefused, NoSuchMember
from .limits import REMOVED_MAX, REPLICAS_MAX, VOTERS_MIN


class Listed(msgspec.Struct, frozen=True, array_like=True):
    """One replica in a list. Who is no voter is sent the log and counts for nothing. Of a voter
    only the named disk counts (0: whichever it has, as in a list that was configured)."""

    id: str
    address: str
    voter: bool
    incarnation: int = 0


class Removed(msgspec.Struct, frozen=True, array_like=True):
    """A disk that was in an earlier list, and never is in a later one."""

    id: str
    incarnation: int


class Members(msgspec.Struct, frozen=True, array_like=True):
    """The list. `number` rises by one with each change; 0 is what a group was configured with."""

    number: int
    replicas: tuple[Listed, ...]
    removed: tuple[Removed, ...] = ()  # the latest

    def find(self, replica_id: str) -> Listed | None:
        """The replica of that id, if it is in the list."""
        return next((each for each in self.replicas if each.id == replica_id), None)

    def names(self, replica_id: str, incarnation: int) -> bool:
        """Whether the replica is in the list with this disk; one of 0 is not known."""
        found = self.find(replica_id)
        return found is not None and (
            found.incarnation == incarnation or not found.incarnation or not incarnation
        )

    def has_removed(self, replica_id: str, incarnation: int) -> bool:
        """Whether this very disk was removed."""
        return Removed(replica_id, incarnation) in self.removed

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

    def _changed(self, replicas: Iterable[Listed], *gone: Listed) -> Members:
        removed = [*self.removed]
        removed += [Removed(each.id, each.incarnation) for each in gone if each.incarnation]
        return Members(
            self.number + 1,
            tuple(sorted(replicas, key=lambda each: each.id)),
            tuple(removed[-REMOVED_MAX:]),
        )

    def _others(self, replica_id: str) -> list[Listed]:
        return [each for each in self.replicas if each.id != replica_id]

    def with_learner(self, replica_id: str, address: str, incarnation: int = 0) -> Members:
        """The list after a replica was added, with the disk that it has. Raises ChangeRefused."""
        for each in self.replicas:
            if each.id == replica_id:
                raise AlreadyMember(
                    f"{replica_id!r} is in the list already, at {each.address!r}: nothing to add"
                )
            if address and each.address == address:
                raise AlreadyMember(f"{address!r} is where {each.id!r} listens: nothing to add")
        if self.has_removed(replica_id, incarnation):
            raise ChangeRefused(
                f"{replica_id!r} was removed with the data that it has: start it with an empty data"
                " directory"
            )
        if self.learners:
            raise self._one_at_a_time()
        if len(self.replicas) >= REPLICAS_MAX:
            raise ChangeRefused(
                f"the group has {len(self.replicas)} replicas, and more than {REPLICAS_MAX} cost"
                " every write more than they protect: remove one first"
            )
        return self._changed((*self.replicas, Listed(replica_id, address, False, incarnation)))

    def with_voter(self, replica_id: str) -> Members:
        """The list after a replica has caught up."""
        found = self.find(replica_id)
        assert found is not None and not found.voter
        promoted = msgspec.structs.replace(found, voter=True)
        return self._changed((*self._others(replica_id), promoted))

    def with_disk(self, replica_id: str, incarnation: int) -> Members:
        """The list after a replica has lost its disk: with another one it counts for nothing until
        it has caught up, and the lost one never again."""
        found = self.find(replica_id)
        assert found is not None
        wiped = Listed(found.id, found.address, False, incarnation)
        gone = () if found.incarnation == incarnation else (found,)
        return self._changed((*self._others(replica_id), wiped), *gone)

    def without(self, replica_id: str) -> Members:
        """The list after a replica was removed. Raises ChangeRefused."""
        found = self.find(replica_id)
        if found is None:
            raise NoSuchMember(
                f"there is no replica {replica_id!r}; there are: {', '.join(self.ids)}"
            )
        if found.voter and self.learners:
            raise self._one_at_a_time()
        if found.voter and len(self.voters) <= VOTERS_MIN:
            raise ChangeRefused(
                f"without {replica_id!r} the group would have {len(self.voters) - 1} voters, and"
                f" with fewer than {VOTERS_MIN} it stops when one is lost: add another replica"
                " first, and remove this one when that is a voter"
            )
        return self._changed(self._others(replica_id), found)

    def _one_at_a_time(self) -> ChangeRefused:
        return ChangeRefused(
            f"{self.learners[0]!r} has not caught up yet: one change at a time. Wait until it is a"
            " voter, or remove it"
        )


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
