"""The follower's side of snapshots: what arrives, and how it takes the place of the state. The
order makes a crash harmless: files synced, then the journal with its mark, then the state, then the
mark's end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from .config import ReplicaConfig
from .environment import Worker
from .errors import JournalError, SafetyViolation
from .journal import Journal, Position
from .member import Member
from .members import Members
from .messages import SnapshotHeader, SnapshotPart, SnapshotReply
from .snapshots import Receiver, clear
from .state_machine import StateMachine

logger = logging.getLogger(__name__)


class Installation:
    """One snapshot at a time; `install` is for a replica's round."""

    def __init__(
        self,
        config: ReplicaConfig,
        state: StateMachine,
        state_lock: asyncio.Lock,
        worker: Worker,
        journal: Journal,
    ) -> None:
        self._config = config
        self._state = state
        self._state_lock = state_lock
        self._worker = worker
        self._journal = journal
        self._incoming = config.directory / "incoming"
        self._arrived: tuple[Position, Members | None, asyncio.Future[bool]] | None = None
        self._receiving = False

    def finish(self) -> None:
        """At the start: an installation that was interrupted. Raises JournalError."""
        position = self._journal.installing
        if position is not None:
            held = self._state.applied == (position.index, position.term)
            if not held and not self._incoming.is_dir():
                raise JournalError(
                    f"the installation of snapshot {position} was interrupted, and its files"
                    f" {self._incoming} are gone. Wipe this replica's directory and start it"
                    " without bootstrap"
                )
            self._state.install(self._incoming)
            self._check(position)
            self._journal.end_install()
        clear(self._incoming)
        clear(self._config.directory / "outgoing")

    def _check(self, position: Position) -> None:
        if self._state.applied != (position.index, position.term):
            raise SafetyViolation(
                f"the installed snapshot holds {self._state.applied}, announced was {position}"
            )

    async def receive(
        self,
        member: Member,
        header: SnapshotHeader,
        parts: AsyncIterator[SnapshotPart],
        arrived: Callable[[], None],
    ) -> SnapshotReply:
        """A leader sends one. `arrived()` when the next round should install it."""
        if self._receiving:
            return SnapshotReply(False, "busy")
        if header.term < member.term:
            return SnapshotReply(False, f"term {header.term} is over, it is {member.term}")
        position = Position(header.index, header.index_term)
        if self._holds(member, position):
            return SnapshotReply(True, "held already")
        self._receiving = True
        try:
            await Receiver(self._incoming, self._worker).receive(parts)
        except BaseException:
            self._receiving = False
            raise
        # From here on the files are the round's, also when the sender is lost: `_receiving` stays
        # until it has dealt with them, so that no other snapshot overwrites them.
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._arrived = (position, header.members, future)
        arrived()
        accepted = await asyncio.shield(future)
        return SnapshotReply(accepted, "" if accepted else "this replica leads or stops")

    def _holds(self, member: Member, position: Position) -> bool:
        held = self._journal.at(position.index)
        return position.index <= member.commit_index or (
            held is not None and held.term == position.term
        )

    async def install(self, member: Member, persist: Callable[[], Awaitable[None]]) -> None:
        """What has arrived takes the place of the state, unless this replica has come further."""
        if self._arrived is None:
            return
        position, members, future = self._arrived
        if not self._holds(member, position) and not member.is_leader:
            self._journal.begin_install(position, members)
            member.follow_list()
            await persist()
            async with self._state_lock:
                self._state.install(self._incoming)
            self._check(position)
            self._journal.end_install()
            member.jump_to(position.index)
            await persist()
            logger.info("%s installed %s", self._config.replica_id, position)
        await self._worker.run(lambda: clear(self._incoming))
        self._arrived = None
        self._receiving = False
        future.set_result(self._holds(member, position))

    def abandon(self) -> None:
        """The replica stops."""
        if self._arrived is not None:
            self._arrived[-1].set_result(False)
            self._arrived = None
