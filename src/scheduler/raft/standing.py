"""Whether this replica belongs to its group, by its own lists and by what the others say; whom the
transport connects it with; and who is told that it is not listened to.

A disk that was removed takes no part for good. What is known of it:

- Its id is missing in a committed list whose number is not below that of the last list which names
  it here. An older list says nothing: whoever tells it may be behind.
- A list remembers the latest removed disks. That is how a learner is told, which cannot know
  whether it was ever in a committed list.

A learner that no list names is not removed: it waits for its addition.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from .config import ReplicaConfig
from .member import Member
from .members import Members
from .messages import Exclusion, Greeting
from .transport import RaftTransport

logger = logging.getLogger(__name__)


class Standing:
    """See the module. `removed` is set once, when it is known that this replica was."""

    def __init__(
        self,
        config: ReplicaConfig,
        member: Member,
        transport: RaftTransport,
        removed: asyncio.Event,
        watchers: Iterable[Callable[[], None]],
    ) -> None:
        """watchers: called when another list is committed, and when it begins or ceases to vote."""
        self._config = config
        self._member = member
        self._journal = member.journal
        self._transport = transport
        self._removed = removed
        self._watchers = watchers
        self._told_peers: dict[str, str] = {}
        self._told_members: Members | None = None
        self._told_committed: Members | None = None
        self._waits_for: int | None = None
        self._votes: bool | None = None
        self._decided_by: tuple[Members, bool] | None = None

    @property
    def votes(self) -> bool:
        """Whether it counts: its disk is complete, and its list has it as a voter."""
        return self._member.may_lead

    def follow(self) -> None:
        """In each round: the lists may have changed."""
        self._tell_votes()
        member = self._member
        settled = self._journal.members_index <= member.commit_index
        if settled and self._told_members is member.members:
            return
        self._told_members = member.members if settled else None
        lists = self._journal.lists_from(member.commit_index)
        me = self._config.replica_id
        if lists[0] is not self._told_committed:
            self._told_committed = lists[0]
            for watcher in self._watchers:
                watcher()
        # All who are in the list, and who were while that is not committed.
        peers = {
            each.id: each.address for members in lists for each in members.replicas if each.id != me
        }
        if peers != self._told_peers:
            self._told_peers = peers
            self._transport.set_peers(peers)
        if self._journal.voter and not any(self._names_this(members) for members in lists):
            self._end(lists[0].number, "it has it itself")

    def _tell_votes(self) -> None:
        decided_by = self._member.members, self._journal.voter
        if decided_by == self._decided_by:
            return
        self._decided_by = decided_by
        votes = self.votes
        if votes == self._votes:
            return
        first, self._votes = self._votes is None, votes
        config = self._config
        for watcher in self._watchers:
            watcher()
        if votes and not first:
            logger.info("%s votes in %s", config.replica_id, config.group_id)
        elif not self._journal.voter:
            logger.warning(
                "the data of %s is not complete: it counts for nothing until the leader of %s has"
                " brought it up to date. %s",
                config.replica_id,
                config.group_id,
                self._how_to_add,
            )

    @property
    def _how_to_add(self) -> str:
        address = self._config.addresses.get(self._config.replica_id) or "ADDRESS"
        return f"If it is no replica of it, it waits for: tickmesh cluster add-replica {address}"

    # -- what the transport asks and tells -----------------------------------------------------

    @property
    def greeting(self) -> Greeting:
        """See TransportHandler."""
        journal = self._journal
        number = self._member.committed_members.number
        return Greeting(number, journal.identity.incarnation, not journal.voter)

    def excludes(self, peer: str, greeting: Greeting) -> Exclusion | None:
        """See TransportHandler."""
        lists = self._journal.lists_from(self._member.commit_index)
        committed = lists[0]
        if committed.has_removed(peer, greeting.incarnation):
            return Exclusion(committed.number, removed=True)
        if greeting.members_number >= committed.number:
            return None  # it may know later lists than this replica does
        if any(members.names(peer, greeting.incarnation) for members in lists):
            return None
        # Who has lost its disk is brought up to date: the leader puts its new one into the list.
        # But not while the disk that is in there is connected: then that is not lost.
        if (
            greeting.learner
            and peer not in self._member.connected
            and any(members.find(peer) for members in lists)
        ):
            return None
        return Exclusion(committed.number)

    def on_excluded(self, peer: str, exclusion: Exclusion) -> None:
        """See TransportHandler."""
        number = exclusion.members_number
        named = max(
            (each.number for each in self._journal.lists_from(0) if self._names_this(each)),
            default=0,
        )
        if exclusion.removed or (self._journal.voter and number >= named):
            self._end(number, f"{peer} says so")
        elif not self._journal.voter and number >= named and number != self._waits_for:
            self._waits_for = number
            logger.warning(
                "list %d of the replicas of %s is without %s. %s",
                number,
                self._config.group_id,
                self._config.replica_id,
                self._how_to_add,
            )

    def _names_this(self, members: Members) -> bool:
        return members.names(self._config.replica_id, self._journal.identity.incarnation)

    def _end(self, number: int, how: str) -> None:
        if not self._removed.is_set():
            logger.warning(
                "%s is no replica of %s any more: list %d is without it (%s)",
                self._config.replica_id,
                self._config.group_id,
                number,
                how,
            )
            self._removed.set()
