"""The leader's side of snapshots: who is being sent one, and what of the journal that pins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .config import ReplicaConfig
from .environment import Worker
from .journal import Journal
from .limits import SNAPSHOT_DEADLINE_S, SNAPSHOT_PIN_S, SNAPSHOT_RETRY_S
from .member import Member
from .messages import SnapshotHeader
from .snapshots import clear, read_parts
from .state_machine import StateMachine
from .transport import RaftTransport, TransportError

logger = logging.getLogger(__name__)


class Shipping:
    """One checkpoint at a time: they cost the disk that commits need."""

    def __init__(
        self,
        config: ReplicaConfig,
        state: StateMachine,
        state_lock: asyncio.Lock,
        member: Member,
        transport: RaftTransport,
        worker: Worker,
    ) -> None:
        self._config = config
        self._state = state
        self._state_lock = state_lock
        self._member = member
        self._transport = transport
        self._worker = worker
        self._busy = False
        self._not_before_s: dict[str, float] = {}
        self._pins: dict[str, tuple[int, float]] = {}  # peer: (index, until)

    def claim(self, peer: str, now_s: float) -> bool:
        """Whether a shipment to `peer` may begin now; if so, `ship` must follow."""
        if self._busy or now_s < self._not_before_s.get(peer, now_s):
            return False
        self._busy = True
        return True

    async def ship(self, peer: str, clock: Callable[[], float]) -> None:
        """Sends a checkpoint of now; a failure is logged and tried again later."""
        directory = self._config.directory / "outgoing"
        try:
            await self._worker.run(lambda: clear(directory))
            async with self._state_lock:
                await self._worker.run(self._state.flush)
                index, term = self._state.checkpoint(directory)
            self._pins[peer] = (index, clock() + SNAPSHOT_DEADLINE_S)
            header = SnapshotHeader(
                self._config.group_id,
                self._config.replica_id,
                peer,
                self._member.term,
                index,
                term,
                self._member.journal.lists_from(index)[0],
            )
            reply = await asyncio.wait_for(
                self._transport.ship(peer, header, read_parts(directory, self._worker)),
                SNAPSHOT_DEADLINE_S,
            )
            if not reply.accepted:
                raise TransportError(f"refused: {reply.reason}")
            self._pins[peer] = (index, clock() + SNAPSHOT_PIN_S)
            self._member.shipped(peer, index)
        except (TransportError, TimeoutError) as error:
            logger.warning("a snapshot for %s was not delivered: %s", peer, error)
            self._pins.pop(peer, None)
        finally:
            self._not_before_s[peer] = clock() + SNAPSHOT_RETRY_S
            try:
                await self._worker.run(lambda: clear(directory))
            finally:
                self._busy = False

    def expire(self, now_s: float) -> None:
        """Pins end after a while: a follower that has caught up by then does not feel it."""
        for peer, (_, until_s) in list(self._pins.items()):
            if not self._member.is_leader or now_s > until_s:
                del self._pins[peer]

    def compaction_index(self, journal: Journal, durable_index: int) -> int:
        """The new base: what the limits allow to forget, of what is durable and not pinned.

        A pin moves with its follower, which needs nothing that it already holds.
        """
        highest = durable_index
        if journal.size_bytes <= self._config.pinned_bytes_max:
            for peer, (index, _) in self._pins.items():
                highest = min(highest, max(index, self._member.progress_of(peer)))
        entries, size_bytes = len(journal.entries) - 1, journal.size_bytes
        base = journal.base.index
        while entries > self._config.retain_entries or size_bytes > self._config.retain_bytes:
            entry = journal.at(base + 1)
            if entry is None or entry.index > highest:
                break
            base = entry.index
            entries -= 1
            size_bytes -= len(entry.command)
        return base
