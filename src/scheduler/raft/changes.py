"""Changes of the list of members, as a leader makes them in its rounds: what was asked for, one at
a time, and what follows by itself, of who has caught up or has lost its disk."""

from __future__ import annotations

import asyncio
import logging

from .errors import ChangeRefused, NotLeader
from .journal import Position
from .member import Member
from .members import Members

logger = logging.getLogger(__name__)


class Changes:
    """See the module. Whoever asks waits for the commit as for that of a proposal."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._asked: tuple[Members, asyncio.Future[object]] | None = None

    def check(self) -> None:
        """Raises ChangeRefused while a change is under way."""
        member = self._member
        if self._asked is not None or member.journal.members_index > member.commit_index:
            raise ChangeRefused(
                f"list {member.members.number} of the group's replicas is not committed yet: one"
                " change at a time. Ask again"
            )

    def check_sound(self, replica_id: str, without: Members) -> None:
        """Raises ChangeRefused if those that are left without a replica could not write."""
        others = without.voters - {self._member.replica_id}
        left = self._member.sound & others
        needed = len(without.voters) // 2 + (replica_id == self._member.replica_id)
        if len(left) < needed:
            raise ChangeRefused(
                f"without {replica_id!r} nothing could be written: of the voters that are left,"
                f" {', '.join(sorted(without.voters))}, these are not connected or have not caught"
                f" up: {', '.join(sorted(others - left))}. Start or replace them first"
            )

    def ask(self, members: Members) -> asyncio.Future[object]:
        """A future that ends when the list is applied, once a round has appended it."""
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._asked = members, future
        return future

    def make(self) -> tuple[Position, asyncio.Future[object]] | None:
        """In a round: where the list that was asked for is appended, if it is, and who waits."""
        member = self._member
        if self._asked is None:
            if member.is_leader:
                self._make_unasked()
            return None
        members, future = self._asked
        if not member.is_leader:
            self.abandon(member.leader_id)
        elif member.may_change_members:
            self._asked = None
            if members.number == member.members.number + 1:
                return member.change_members(members), future
            if not future.done():
                future.set_exception(
                    ChangeRefused("the list of replicas has just changed: ask again")
                )
        return None

    def _make_unasked(self) -> None:
        """Who has lost its disk does not count with another one until it has caught up."""
        member = self._member
        replaced = member.replaced
        if not (replaced or member.learners) or not member.may_change_members:
            return
        if replaced:
            peer, incarnation = replaced
            logger.warning("%s has lost its disk: it catches up, and does not count", peer)
            member.change_members(member.members.with_disk(peer, incarnation))
        elif (caught_up := member.caught_up) is not None:
            logger.info("%s has caught up, and becomes a voter", caught_up)
            member.change_members(member.members.with_voter(caught_up))

    def abandon(self, leader_id: str | None) -> None:
        """This replica does not lead any more, or stops: nothing was appended."""
        if self._asked is not None and not self._asked[1].done():
            self._asked[1].set_exception(NotLeader(leader_id))
        self._asked = None
