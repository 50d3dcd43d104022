"""Giving leadership away on purpose: everything proposed is committed first, new proposals wait, a
peer that holds the whole log is asked to lead. So nobody is told "unknown", and nobody waits for an
election timeout."""

from __future__ import annotations

import asyncio

from .limits import HAND_OVER_RETRY_S
from .member import Member


class HandOver:
    """One attempt, advanced in the rounds of a replica. `done` is who leads then; None if that is
    still this replica, or not known in time."""

    def __init__(
        self,
        member: Member,
        candidates: tuple[str, ...],
        until_s: float,
        *,
        retires: bool = False,
    ) -> None:
        """candidates: who may be asked to lead. retires: leads no more, whether or not one does."""
        self.retires = retires
        self.done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._member = member
        self._asked = dict.fromkeys(candidates, 0)
        self._until_s = until_s
        self._ask_again_s = 0.0

    def advance(self, now_s: float) -> bool:
        """Whether it is over."""
        member = self._member
        if not member.is_leader and member.leader_id is not None:
            self.end(member.leader_id)
        elif now_s >= self._until_s or (
            member.is_leader and member.connected.isdisjoint(self._asked)
        ):
            self.end(None)
        elif member.is_leader and now_s >= self._ask_again_s and self._nothing_is_open():
            for peer in sorted(self._asked, key=self._asked.__getitem__):
                if member.transfer_to(peer):
                    self._asked[peer] += 1
                    self._ask_again_s = now_s + HAND_OVER_RETRY_S
                    break
        return self.done.done()

    def end(self, leader_id: str | None) -> None:
        """It is over, and this is who leads."""
        if not self.done.done():
            self.done.set_result(leader_id)

    def _nothing_is_open(self) -> bool:
        """Whether every proposal has had its answer."""
        member = self._member
        return member.applied_index == member.commit_index == member.journal.last_index
