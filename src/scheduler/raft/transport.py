"""How a replica reaches the others: a small protocol, so that a simulator can be the network.

A connection is per peer. Messages may be lost, and a lost connection loses what was in flight;
Raft repeats what matters. Snapshots travel beside the messages and do not delay them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from .messages import (
    Exclusion,
    Greeting,
    Introduction,
    Message,
    SnapshotHeader,
    SnapshotPart,
    SnapshotReply,
)


class TransportError(Exception):
    """A peer could not be reached or answered nonsense; try again later."""


class TransportHandler(Protocol):
    """What a transport calls, always on the event loop, for whoever proves to be a replica and
    means this group. Who was removed from it is told so instead: see `excludes`."""

    @property
    def greeting(self) -> Greeting:
        """What this replica says of itself."""
        ...

    def excludes(self, peer: str, greeting: Greeting) -> Exclusion | None:
        """Why `peer`, which says that of itself, is not to be listened to; None if it is."""
        ...

    def on_excluded(self, peer: str, exclusion: Exclusion) -> None:
        """`peer` does not listen to this replica, for that reason."""
        ...

    @property
    def introduction(self) -> Introduction:
        """Who this replica is."""
        ...

    def on_message(self, peer: str, message: Message) -> None:
        """It may answer by `send` at once."""
        ...

    def on_connected(self, peer: str) -> None: ...
    def on_disconnected(self, peer: str) -> None: ...
    async def on_snapshot(
        self, peer: str, header: SnapshotHeader, parts: AsyncIterator[SnapshotPart]
    ) -> SnapshotReply:
        """`parts` follow the header; TransportError from them ends it."""
        ...


class RaftTransport(Protocol):
    """One replica's end of its group's connections."""

    async def start(self, handler: TransportHandler) -> None: ...
    async def stop(self) -> None: ...
    def set_peers(self, addresses: Mapping[str, str]) -> None:
        """Whom to be connected with, and where they are. Before `start`, and at any time. Who is
        missing now and was not before is disconnected; it may come back, and is greeted anew."""
        ...

    def send(self, peer: str, message: Message) -> None:
        """Queues a message; drops it when there is no connection or too much waits."""
        ...

    async def answers(self, peer: str) -> bool:
        """Whether the peer's host is there and can be reached, however late its process is."""
        ...

    async def ship(
        self, peer: str, header: SnapshotHeader, parts: AsyncIterator[SnapshotPart]
    ) -> SnapshotReply:
        """Sends a snapshot. Raises TransportError."""
        ...
