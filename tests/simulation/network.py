"""Everything that goes from one machine to another: Raft messages and snapshots (on the product's
own MemoryNetwork), unary calls, and an executor's stream. All links share one set of cuts.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

from tickmesh.scheduler.raft.limits import PROBE_S
from tickmesh.scheduler.raft.memory_transport import Faults, MemoryNetwork, MemoryTransport
from tickmesh.scheduler.raft.messages import Message, SnapshotHeader, SnapshotPart, SnapshotReply
from tickmesh.scheduler.raft.transport import TransportError

from .loop import OUTSIDE, Process, outside
from .machine import Machine

T = TypeVar("T")
KEEPALIVE_S = 3.0
"""A stream whose link is cut so long is given up, by each end for itself. At a busy pace, as all
that follow."""

RETRY_S = 0.1
"""How often what a cut holds back is tried again: as TCP does."""

LOOK_S = 0.25
"""How often each end of a stream looks whether the other is there."""


class Network:
    """The links between machines, by name."""

    def __init__(self, seed: str, stretch: float) -> None:
        self.chance = random.Random(f"{seed}/network")
        self.stretch = stretch
        self.raft = MemoryNetwork(self.chance.getrandbits(32))
        self.raft.context = OUTSIDE
        self.raft.later = lambda delay_s, function, *arguments: (
            asyncio.get_running_loop().call_later(
                delay_s * stretch, function, *arguments, context=OUTSIDE
            )
        )
        self._cuts: dict[tuple[str, str], float] = {}
        self.calm()

    def calm(self) -> None:
        """A good network: no losses, short delays."""
        self.raft.faults = Faults(delay_min_s=0.0001, delay_max_s=0.001)

    def rough(self, drop: float, duplicate: float, delay_s: float) -> None:
        """A bad one, for Raft's messages and for everything else."""
        self.raft.faults = Faults(drop, duplicate, 0.0001, delay_s)

    def cut(self, sender: str, recipient: str) -> None:
        """One way only."""
        self._cuts.setdefault((sender, recipient), asyncio.get_running_loop().time())
        self.raft.cut(sender, recipient)

    def mend(self, links: list[tuple[str, str]]) -> None:
        """These links work again."""
        for link in links:
            self._cuts.pop(link, None)
        self.raft.heal()
        for link in self._cuts:
            self.raft.cut(*link)

    def mend_all(self) -> None:
        """All links work again."""
        self.mend(list(self._cuts))

    def carries(self, sender: str, recipient: str) -> bool:
        """Whether the link works now."""
        return (sender, recipient) not in self._cuts

    def cut_for_s(self, one: str, other: str) -> float:
        """How long at least one direction has been cut."""
        now_s = asyncio.get_running_loop().time()
        since = [self._cuts.get(link, now_s) for link in ((one, other), (other, one))]
        return now_s - min(since)

    def delay_s(self) -> float:
        """Of one message."""
        faults = self.raft.faults
        return self.chance.uniform(faults.delay_min_s, faults.delay_max_s)

    def later(self, sender: str, recipient: str, function: Callable[[], None]) -> None:
        """Call a function when a message would arrive, if it does."""

        def arrive() -> None:
            if self.carries(sender, recipient):
                function()

        if self.chance.random() >= self.raft.faults.drop / 4:  # TCP repeats what is lost
            loop = asyncio.get_running_loop()
            loop.call_later(self.delay_s(), arrive, context=OUTSIDE)


class Transport(MemoryTransport):
    """One life's end of the Raft network."""

    def __init__(self, network: Network, machine: Machine, process: Process) -> None:
        super().__init__(network.raft, machine.name)
        self._links = network
        self._machine = machine
        self._process = process
        self._ends: dict[str, Transport] = {}
        self.sent: Callable[[str, str, Message], None] = lambda sender, peer, message: None

    def know(self, ends: dict[str, Transport]) -> None:
        """All ends by replica id, this one included."""
        self._ends = ends

    def send(self, peer: str, message: Message) -> None:
        self._machine.point("a message's sending")
        self.sent(self.replica_id, peer, message)
        super().send(peer, message)

    def handle_message(self, peer: str, message: Message) -> None:
        if self._process.is_stopped:
            self._process.call(self.handle_message, peer, message)
        elif self._process.alive:
            self._process.context.run(super().handle_message, peer, message)

    async def answers(self, peer: str) -> bool:
        await asyncio.sleep(self._links.delay_s())
        there = all(
            self._links.carries(*ends)
            for ends in ((self.replica_id, peer), (peer, self.replica_id))
        )
        if not there:
            await asyncio.sleep(PROBE_S * self._links.stretch)
        return there

    async def ship(
        self, peer: str, header: SnapshotHeader, parts: AsyncIterator[SnapshotPart]
    ) -> SnapshotReply:
        end = self._ends.get(peer)
        if end is None or not self._works(end):
            raise TransportError(f"{peer} cannot be reached")
        pipe: Pipe[SnapshotPart] = Pipe(self._links, self.replica_id, peer)
        reply: asyncio.Future[SnapshotReply] = asyncio.get_running_loop().create_future()

        async def receive() -> None:
            handler = end._handler
            if handler is not None:
                try:
                    answer = await handler.on_snapshot(self.replica_id, header, _parts(pipe))
                except TransportError as error:
                    answer = SnapshotReply(False, str(error))
                self._links.later(peer, self.replica_id, lambda: _answer(reply, answer))

        receiving = end._process.spawn(receive())
        outside(asyncio.create_task, self._watch(end, pipe, receiving))
        async for part in parts:
            pipe.send(part)
            await asyncio.sleep(self._links.delay_s())
            if not self._works(end):
                break
        try:
            return await asyncio.wait_for(reply, 10.0 * self._links.stretch)
        except TimeoutError:
            outside(pipe.close)
            raise TransportError(f"{peer} was lost") from None

    async def _watch(
        self, end: Transport, pipe: Pipe[SnapshotPart], receiving: asyncio.Task[None]
    ) -> None:
        """Break the stream when its sender is gone or its link is cut for long: in nobody's
        process."""
        while end._process.alive and not receiving.done():
            await asyncio.sleep(LOOK_S * self._links.stretch)
            cut_s = self._links.cut_for_s(self.replica_id, end.replica_id)
            if not self._process.alive or cut_s > KEEPALIVE_S * self._links.stretch:
                pipe.close()

    def _works(self, end: Transport) -> bool:
        return (
            end._process.alive
            and end._handler is not None
            and self._links.carries(self.replica_id, end.replica_id)
            and self._links.carries(end.replica_id, self.replica_id)
        )


def _answer(reply: asyncio.Future[SnapshotReply], answer: SnapshotReply) -> None:
    if not reply.done():
        reply.set_result(answer)


async def _parts(pipe: Pipe[SnapshotPart]) -> AsyncIterator[SnapshotPart]:
    async for part in pipe:
        yield part
    raise TransportError("the stream was lost")


class Pipe(Generic[T]):
    """One direction of a stream: in order, delayed, held back while its link is cut."""

    def __init__(self, network: Network, sender: str, recipient: str) -> None:
        self._network = network
        self._sender = sender
        self._recipient = recipient
        self._flying: deque[T] = deque()
        self._arrived: deque[T] = deque()
        self._ready = asyncio.Event()
        self.closed = False
        self._last_s = 0.0

    def send(self, item: T) -> None:
        """Goes on its way."""
        if not self.closed:
            self._flying.append(item)
            loop = asyncio.get_running_loop()
            self._last_s = max(self._last_s, loop.time() + self._network.delay_s())
            loop.call_at(self._last_s, self._arrive, context=OUTSIDE)

    def _arrive(self) -> None:
        if self.closed:
            return
        if not self._network.carries(self._sender, self._recipient):
            asyncio.get_running_loop().call_later(RETRY_S * self._network.stretch, self._arrive)
            return
        self._arrived.append(self._flying.popleft())
        self._ready.set()

    def close(self) -> None:
        """Nothing more arrives; the reader's loop ends after what has arrived."""
        self.closed = True
        self._ready.set()

    def __aiter__(self) -> Pipe[T]:
        return self

    async def __anext__(self) -> T:
        while not self._arrived:
            if self.closed:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return self._arrived.popleft()


class Refused(Exception):
    """The service ended the call with a status."""


class ServicerContext:
    """What the service sees of gRPC: who calls."""

    def __init__(self, role: str, name: str) -> None:
        self._identity = f"tickmesh://{role}/{name}".encode()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_subject_alternative_name": [self._identity]}

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Not looked at."""

    async def abort(self, code: Any, message: str) -> None:
        raise Refused(code, message)


class Stream(Generic[T]):
    """An executor's stream to a replica, as both ends see it. Each notices for itself when the
    other is gone."""

    def __init__(self, network: Network, executor: str, replica: str) -> None:
        self.up: Pipe[Any] = Pipe(network, executor, replica)
        self.down: Pipe[Any] = Pipe(network, replica, executor)
        self._network = network
        self._executor = executor
        self._replica = replica
        self._server: asyncio.Task[Any] | None = None
        self._server_process: Process | None = None

    def open(self, process: Process, service: Any) -> None:
        """Begin serving in the replica's process."""
        self._server_process = process
        self._server = process.spawn(self._serve(service))

    async def _serve(self, service: Any) -> None:
        context = ServicerContext("executor", self._executor)
        messages = service.Attach(self.up, context)
        try:
            async for message in messages:
                self.down.send(message)
        except Refused:
            pass
        finally:
            await messages.aclose()
            loop = asyncio.get_running_loop()
            loop.call_later(self._network.delay_s(), self.down.close, context=OUTSIDE)

    async def watch(self, alive: Callable[[], bool]) -> None:
        """Give the stream up when one of its ends is gone or its link is cut for long: in nobody's
        process. `alive`: whether the executor's process lives."""
        chance = self._network.chance
        patience_s = [
            KEEPALIVE_S * self._network.stretch * chance.uniform(0.7, 1.5) for _ in range(2)
        ]
        while not (self.up.closed and self.down.closed):
            await asyncio.sleep(LOOK_S * self._network.stretch)
            cut_s = self._network.cut_for_s(self._executor, self._replica)
            assert self._server is not None and self._server_process is not None
            if not self._server_process.alive or self._server.done() or cut_s > patience_s[0]:
                self.down.close()
            given_up = not alive() or self.down.closed
            told = given_up and self._network.carries(self._executor, self._replica)
            if self._server.done() or not self._server_process.alive:
                self.up.close()
            elif told or cut_s > patience_s[1]:
                self.up.close()
                if not self._server.done():
                    self._server.cancel()


async def call(
    network: Network,
    caller: str,
    target: str,
    find: Callable[[], tuple[Process, Any] | None],
    request: Any,
    timeout_s: float,
) -> Any:
    """ShardService.Call across the network. Raises TimeoutError and ConnectionError."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def reply(value: Any) -> None:
        def arrive() -> None:
            if answer.done():
                return
            if isinstance(value, Exception):
                answer.set_exception(value)
            else:
                answer.set_result(value)

        network.later(target, caller, arrive)

    async def serve(service: Any) -> None:
        try:
            reply(await service.Call(request, ServicerContext("gateway", caller)))
        except Refused as error:
            reply(error)

    def arrive() -> None:
        found = find()
        if found is None:
            reply(ConnectionError(f"{target} is down"))
        else:
            process, service = found
            process.spawn(serve(service))

    network.later(caller, target, arrive)
    async with asyncio.timeout(timeout_s):
        return await answer


async def read_stream(
    network: Network,
    caller: str,
    target: str,
    find: Callable[[], tuple[Process, Any] | None],
    request: Any,
) -> AsyncIterator[Any]:
    """ShardService.Watch across the network, until it breaks. Raises Refused, ConnectionError."""
    loop = asyncio.get_running_loop()
    down: Pipe[Any] = Pipe(network, target, caller)
    refused: list[Refused] = []
    serving: list[tuple[Process, asyncio.Task[None]]] = []

    async def serve(service: Any) -> None:
        messages = service.Watch(request, ServicerContext("gateway", caller))
        try:
            async for message in messages:
                down.send(message)
        except Refused as error:
            refused.append(error)
        except asyncio.CancelledError:
            await messages.aclose()
            raise
        loop.call_later(network.delay_s(), down.close, context=OUTSIDE)

    def arrive() -> None:
        found = find()
        if found is None:
            down.close()
        else:
            process, service = found
            serving.append((process, process.spawn(serve(service))))

    async def watch() -> None:
        """See Stream.watch."""
        patience_s = KEEPALIVE_S * network.stretch * network.chance.uniform(0.7, 1.5)
        began_s = loop.time()
        while not down.closed:
            await asyncio.sleep(LOOK_S * network.stretch)
            lost = network.cut_for_s(caller, target) > patience_s
            if serving:
                process, task = serving[0]
                lost = lost or task.done() or not process.alive
            elif loop.time() - began_s > patience_s:
                lost = True
            if lost:
                down.close()
        if serving and not serving[0][1].done():
            serving[0][1].cancel()

    network.later(caller, target, arrive)
    outside(asyncio.create_task, watch())
    try:
        async for message in down:
            yield message
    finally:
        down.close()
    if refused:
        raise refused[0]
