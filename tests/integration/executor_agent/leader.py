"""A shard for the agent's tests: replicas that do as the test says, over real mutual-TLS gRPC.

It decides nothing by itself: a test makes a replica lead, sends, and waits for what comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc

from tickmesh.executor.agent import Agent, Identity, Limits
from tickmesh.executor.clockwork import Clockwork
from tickmesh.executor.room import Capacity
from tickmesh.executor.sandbox import Runtime
from tickmesh.executor.uplink import dialler
from tickmesh.mesh.clock import SystemClock
from tickmesh.mesh.config import Peer, ShardMembers
from tickmesh.mesh.tls import DevelopmentAuthority, server_credentials
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2, shard_pb2_grpc

SHARD_ID = "shard-0"
WAIT_S = 10.0
SECOND_NS = 1_000_000_000


class Attached:
    """One stream of an executor, seen from its replica."""

    def __init__(self) -> None:
        self.outbox: asyncio.Queue[shard_pb2.ShardMessage | None] = asyncio.Queue()

    def send(self, **message: Any) -> None:
        self.outbox.put_nowait(shard_pb2.ShardMessage(**message))


class Replica(shard_pb2_grpc.ShardServiceServicer):
    """One replica: hears everything, answers heartbeats unless told not to."""

    def __init__(self, skew_ns: int = 0) -> None:
        self.skew_ns = skew_ns
        self.answers = True
        self.leads_term: int | None = None
        self.term = 0
        self.stream: Attached | None = None
        self.lease_ms = 0
        self.hellos: list[shard_pb2.Hello] = []
        self.offers: list[shard_pb2.Offer] = []
        self.inventories: list[shard_pb2.Inventory] = []
        self.reports: dict[str, list[shard_pb2.AttemptReport]] = {}
        self.heartbeats = 0
        self._changed = asyncio.Event()

    async def Attach(
        self, request_iterator: AsyncIterator[shard_pb2.ExecutorMessage], context: Any
    ) -> AsyncIterator[shard_pb2.ShardMessage]:
        stream = Attached()
        reading = asyncio.create_task(self._read(stream, request_iterator))
        self._announce(stream)
        self.stream = stream
        self._tell()
        try:
            while (message := await stream.outbox.get()) is not None:
                yield message
        finally:
            reading.cancel()
            if self.stream is stream:
                self.stream = None

    async def _read(self, stream: Attached, messages: Any) -> None:
        async for message in messages:
            kind = message.WhichOneof("message")
            if kind == "hello":
                self.hellos.append(message.hello)
                self.offers.append(message.hello.offer)
            elif kind == "offer":
                self.offers.append(message.offer)
            elif kind == "heartbeat":
                self.heartbeats += 1
                if self.answers:
                    now_ns = time.time_ns() + self.skew_ns
                    reply = shard_pb2.HeartbeatReply(
                        sent_ns=message.heartbeat.sent_ns, replied_ns=now_ns
                    )
                    stream.send(heartbeat_reply=reply)
            elif kind == "inventory":
                self.inventories.append(message.inventory)
                self._note(message.inventory.attempts)
            else:
                self._note(message.reports.reports)
            self._tell()

    def _note(self, reports: Iterable[shard_pb2.AttemptReport]) -> None:
        for report in reports:
            self.reports.setdefault(report.attempt_id, []).append(report)

    def _tell(self) -> None:
        self._changed.set()
        self._changed.clear()

    async def until(self, true: Callable[[], Any]) -> Any:
        """Wait until something heard makes it true; answers that."""
        async with asyncio.timeout(WAIT_S):
            while not (value := true()):
                await self._changed.wait()
            return value

    def _announce(self, stream: Attached) -> None:
        leader = self.leads_term is not None
        term = self.leads_term if leader else self.term
        leadership = shard_pb2.Leadership(
            leader=leader, term=term, shard_id=SHARD_ID, lease_ms=self.lease_ms
        )
        stream.send(leadership=leadership)

    async def lead(self, term: int) -> shard_pb2.Inventory:
        """Take the lead; answers the executor's inventory for the term."""
        await self.until(lambda: self.stream)
        self.leads_term = term
        assert self.stream is not None
        self._announce(self.stream)
        return await self.until(lambda: next((i for i in self.inventories if i.term == term), None))

    def follow(self) -> None:
        self.leads_term = None
        assert self.stream is not None
        self._announce(self.stream)

    def drop(self) -> None:
        """End the stream."""
        assert self.stream is not None
        self.stream.outbox.put_nowait(None)

    def work(self, *work: shard_pb2.Work, term: int | None = None) -> None:
        assert self.stream is not None
        batch = shard_pb2.WorkBatch(work=work, term=term or self.leads_term)
        self.stream.send(work=batch)

    def stop(self, attempt_id: str, reason: int, term: int | None = None) -> None:
        assert self.stream is not None
        stops = [shard_pb2.Stop(attempt_id=attempt_id, reason=reason)]
        self.stream.send(stop=shard_pb2.StopBatch(stops=stops, term=term or self.leads_term))

    def acknowledge(self, *attempt_ids: str) -> None:
        assert self.stream is not None
        self.stream.send(acknowledgement=shard_pb2.Acknowledgement(attempt_ids=attempt_ids))

    def latest(self, attempt_id: str) -> shard_pb2.AttemptReport:
        return self.reports[attempt_id][-1]

    async def phase(self, attempt_id: str, phase: int) -> shard_pb2.AttemptReport:
        """Wait for a report with that phase."""
        return await self.until(
            lambda: next(
                (report for report in self.reports.get(attempt_id, ()) if report.phase == phase),
                None,
            )
        )

    async def end(self, attempt_id: str) -> shard_pb2.AttemptReport:
        return await self.phase(attempt_id, shard_pb2.ATTEMPT_PHASE_ENDED)

    async def answered(self, count: int = 1) -> None:
        """Wait for so many more heartbeats: what was sent before has been handled by then."""
        target = self.heartbeats + count
        await self.until(lambda: self.heartbeats >= target)


class World:
    """A shard of replicas, and an agent that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = SystemClock()
        self.authority = DevelopmentAuthority(directory / "certificates")
        self.replicas: list[Replica] = []
        self.members: list[Peer] = []
        self.capacity = Capacity(64, 16 << 30)
        self.agent: Agent
        self.runtime: Runtime
        self._servers: list[grpc.aio.Server] = []
        self._running: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    @property
    def leader(self) -> Replica:
        return self.replicas[0]

    async def add_replica(self, skew_ns: int = 0) -> Replica:
        replica = Replica(skew_ns)
        server = grpc.aio.server()
        shard_pb2_grpc.add_ShardServiceServicer_to_server(replica, server)
        name = f"{SHARD_ID}-{len(self.replicas)}"
        tls = self.authority.issue("scheduler", name)
        port = server.add_secure_port("127.0.0.1:0", server_credentials(tls))
        await server.start()
        self._servers.append(server)
        self.replicas.append(replica)
        self.members.append(Peer(name, f"127.0.0.1:{port}"))
        return replica

    async def start(self, runtime: Runtime, limits: Limits | None = None) -> Agent:
        """Start the agent's (next) process."""
        self.runtime = runtime
        self._stop = asyncio.Event()
        self.agent = Agent(
            Identity("executor-0", "127.0.0.1:1", "inprocess", self.capacity, {"region": "eu"}),
            (ShardMembers(SHARD_ID, tuple(self.members)),),
            dialler(self.authority.issue("executor", "executor-0")),
            runtime,
            self.directory / "ledger.db",
            Clockwork(self.clock),
            limits or Limits(),
        )
        await self.agent.start()
        self._running = asyncio.create_task(self.agent.run(self._stop))
        return self.agent

    async def kill(self) -> None:
        """End the agent as a kill would: without a word."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    async def end(self) -> None:
        """End the agent in order."""
        self._stop.set()
        assert self._running is not None
        running, self._running = self._running, None
        async with asyncio.timeout(WAIT_S):
            await running

    async def close(self) -> None:
        await self.kill()
        for server in self._servers:
            await server.stop(None)


@contextlib.asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    made = World(directory)
    await made.add_replica()
    try:
        yield made
    finally:
        await made.close()


def work(attempt_id: str = "a-1", *command: str, in_s: float = 0.0, **more: Any) -> Any:
    """A shard's Work, due so many seconds from now."""
    due_ns = time.time_ns() + int(in_s * SECOND_NS)
    fields = {
        "attempt_id": attempt_id,
        "execution": "customers/acme/jobs/hello/executions/e1",
        "customer": "acme",
        "image": "acme/hello:1",
        "command": command,
        "memory_bytes": 1 << 26,
        "cpu_millis": 1000,
        "pids": 16,
        "scratch_bytes": 1 << 20,
        "timeout_ms": 60_000,
        "grace_ms": 1_000,
        "attempt_number": 1,
        "start_at_ns": due_ns,
        "due_ns": due_ns,
        **more,
    }
    return shard_pb2.Work(**fields)
