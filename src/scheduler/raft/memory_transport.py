"""A network inside one process, with the faults that a network has. For tests and the simulator."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import Context
from dataclasses import dataclass

from .limits import PROBE_S
from .messages import Message, SnapshotHeader, SnapshotPart, SnapshotReply
from .transport import TransportError, TransportHandler


@dataclass
class Faults:
    """What happens to messages: chances from 0 to 1, delays in seconds."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay_min_s: float = 0.0
    delay_max_s: float = 0.0  # above the minimum, messages overtake each other


GREET_AGAIN_S = 1.0
"""Who was not listened to tries again."""


class MemoryNetwork:
    """Connects transports by replica id. One network carries one group."""

    def __init__(self, seed: int = 0) -> None:
        self.faults = Faults()
        self.trace: Callable[[str, str, Message], None] | None = None
        self._random = random.Random(seed)
        self._up: dict[str, MemoryTransport] = {}
        self._cut: set[tuple[str, str]] = set()
        self.context: Context | None = None
        """What messages arrive in; None: in a copy of their sender's."""
        self.later: Callable[..., object] = lambda delay_s, function, *arguments: (
            asyncio.get_running_loop().call_later(delay_s, function, *arguments)
        )

    def transport(self, replica_id: str) -> MemoryTransport:
        """A fresh end for `replica_id`, connected once started."""
        return MemoryTransport(self, replica_id)

    def cut(self, sender: str, recipient: str) -> None:
        """One way only: nothing from sender reaches recipient, and neither notices."""
        self._cut.add((sender, recipient))

    def isolate(self, replica_id: str, others: list[str]) -> None:
        """Both ways, from all the others."""
        for other in others:
            self._cut |= {(replica_id, other), (other, replica_id)}

    def heal(self) -> None:
        """All links work again."""
        self._cut.clear()

    def attach(self, transport: MemoryTransport) -> None:
        """The transport is up: both sides of each pair learn it."""
        self._up[transport.replica_id] = transport
        for other in list(self._up.values()):
            if other is not transport:
                self.greet(transport, other)

    def greet(self, one: MemoryTransport, other: MemoryTransport) -> None:
        """Connect two that are up, unless one is not listened to by the other."""
        if any(self._up.get(end.replica_id) is not end for end in (one, other)):
            return
        if not one.hears(other) or not other.hears(one):
            self.later(GREET_AGAIN_S, self.greet, one, other)
            return
        one.handle_connected(other.replica_id)
        other.handle_connected(one.replica_id)

    def part(self, one: MemoryTransport, other_id: str) -> None:
        """Disconnect two; they greet each other again after a while."""
        other = self._up.get(other_id)
        if other is not None and self._up.get(one.replica_id) is one:
            one.handle_disconnected(other_id)
            other.handle_disconnected(one.replica_id)
            self.later(GREET_AGAIN_S, self.greet, one, other)

    def detach(self, transport: MemoryTransport) -> None:
        """The transport is gone, as by a crash."""
        if self._up.get(transport.replica_id) is transport:
            del self._up[transport.replica_id]
            for other in self._up.values():
                other.handle_disconnected(transport.replica_id)

    def carries(self, sender: str, recipient: str) -> bool:
        """Whether the link works now."""
        return (sender, recipient) not in self._cut

    def deliver(self, sender: str, recipient: str, message: Message) -> None:
        """Sends with faults."""
        copies = 2 if self._random.random() < self.faults.duplicate else 1
        for _ in range(copies):
            if self._random.random() < self.faults.drop or not self.carries(sender, recipient):
                continue
            delay_s = self._random.uniform(self.faults.delay_min_s, self.faults.delay_max_s)
            loop = asyncio.get_running_loop()
            if delay_s:
                loop.call_later(
                    delay_s, self._arrive, sender, recipient, message, context=self.context
                )
            else:
                loop.call_soon(self._arrive, sender, recipient, message, context=self.context)

    def _arrive(self, sender: str, recipient: str, message: Message) -> None:
        end = self._up.get(recipient)
        if end is not None and self.carries(sender, recipient):
            if self.trace is not None:
                self.trace(sender, recipient, message)
            end.handle_message(sender, message)

    def find(self, sender: str, recipient: str) -> MemoryTransport:
        """The recipient's end, for a snapshot. Raises TransportError."""
        end = self._up.get(recipient)
        if end is None or not self.carries(sender, recipient):
            raise TransportError(f"{recipient} cannot be reached")
        return end


class MemoryTransport:
    """One replica's end of a MemoryNetwork."""

    def __init__(self, network: MemoryNetwork, replica_id: str) -> None:
        self.replica_id = replica_id
        self._network = network
        self._handler: TransportHandler | None = None
        self._peers: frozenset[str] = frozenset()

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        gone, self._peers = self._peers - addresses.keys(), frozenset(addresses)
        for peer in sorted(gone):
            self._network.part(self, peer)

    def hears(self, other: MemoryTransport) -> bool:
        """Whether the replica here listens to another; who is not listened to is told so."""
        here, there = self._handler, other._handler
        if here is None or there is None:
            return False
        exclusion = here.excludes(other.replica_id, there.greeting)
        if exclusion is not None:
            there.on_excluded(self.replica_id, exclusion)
        return exclusion is None

    async def start(self, handler: TransportHandler) -> None:
        self._handler = handler
        self._network.attach(self)

    async def stop(self) -> None:
        self.crash()

    def crash(self) -> None:
        """Silent from now on in both directions."""
        self._handler = None
        self._network.detach(self)

    def send(self, peer: str, message: Message) -> None:
        if self._handler is not None:
            self._network.deliver(self.replica_id, peer, message)

    async def answers(self, peer: str) -> bool:
        there = all(
            self._network.carries(*ends)
            for ends in ((self.replica_id, peer), (peer, self.replica_id))
        )
        await asyncio.sleep(0 if there else PROBE_S)
        return there

    async def ship(
        self, peer: str, header: SnapshotHeader, parts: AsyncIterator[SnapshotPart]
    ) -> SnapshotReply:
        end = self._network.find(self.replica_id, peer)

        async def carried() -> AsyncIterator[SnapshotPart]:
            async for part in parts:
                if self._network.find(self.replica_id, peer) is not end or self._handler is None:
                    raise TransportError(f"{peer} was lost")
                yield part

        handler = end._handler
        if handler is None:
            raise TransportError(f"{peer} cannot be reached")
        return await handler.on_snapshot(self.replica_id, header, carried())

    def handle_message(self, peer: str, message: Message) -> None:
        if self._handler is not None:
            self._handler.on_message(peer, message)

    def handle_connected(self, peer: str) -> None:
        if self._handler is not None:
            self._handler.on_connected(peer)

    def handle_disconnected(self, peer: str) -> None:
        if self._handler is not None:
            self._handler.on_disconnected(peer)
