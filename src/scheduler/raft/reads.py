"""Linearizable reads without a log entry: a leader that a majority still follows after the read
arrived, and whose state holds everything that was committed then, may answer from it."""

from __future__ import annotations

import asyncio

from .errors import NotLeader, ReplicaBusy
from .limits import READS_PENDING_MAX
from .member import Member


class Reads:
    """Readers that arrive while a round is under way share the next one."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._waiting: list[asyncio.Future[None]] = []
        self._asked: list[asyncio.Future[None]] = []
        self._asked_round = 0
        self._asked_index = 0

    def add(self) -> asyncio.Future[None]:
        """A future that ends when a read may be answered; NotLeader when it may not be here."""
        if len(self._waiting) >= READS_PENDING_MAX:
            raise ReplicaBusy(f"{READS_PENDING_MAX} reads are waiting already")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    @property
    def wait(self) -> bool:
        """Whether there are readers."""
        return bool(self._asked or self._waiting)

    def ask(self) -> None:
        """Before sending: the waiting readers' question goes out with this round's appends."""
        if not self._asked and self._waiting and self._member.leads_with_own_entry:
            self._asked, self._waiting = self._waiting, []
            self._asked_round = self._member.round + 1
            self._asked_index = self._member.commit_index
            self._member.broadcast_wanted = True

    def answer(self) -> bool:
        """After receiving and applying; whether further readers wait for a round to begin."""
        member = self._member
        if (
            self._asked
            and member.confirmed_round >= self._asked_round
            and member.applied_index >= self._asked_index
        ):
            for future in self._asked:
                if not future.done():
                    future.set_result(None)
            self._asked = []
        return bool(self._waiting and not self._asked and member.leads_with_own_entry)

    def fail(self, error: Exception) -> None:
        """Leadership is lost, or the replica stops."""
        waiting, self._waiting, self._asked = self._waiting + self._asked, [], []
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def refuse(self) -> None:
        """Called while this member does not lead."""
        if self._waiting or self._asked:
            self.fail(NotLeader(self._member.leader_id))
