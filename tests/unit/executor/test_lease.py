"""The lease, and the leader's time, as an executor knows them when its process was stopped for a
while, or its clock was set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from tickmesh.executor.clockwork import Reading
from tickmesh.executor.uplink import LEASE_S_DEFAULT, Shard, Stream
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2

from .clocks import Host

MS = 1_000_000
LEASE_NS = int(LEASE_S_DEFAULT * 1_000 * MS)


class Timer:
    """In the place of a Clockwork: what waits for an instant is called when the test says so."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.due: list[tuple[int, Callable[[], None]]] = []
        self.asked = asyncio.Event()

    def at(self, instant_ns: int, act: Callable[[], None]) -> None:
        """See Clockwork."""
        self.due.append((instant_ns, act))
        self.asked.set()

    def wake(self, *, was_set: bool = False) -> None:
        """See Clockwork._wake."""
        self.asked.clear()
        now_ns = self._host.now_ns()
        due = [each for each in self.due if was_set or each[0] <= now_ns]
        self.due = [each for each in self.due if each not in due]
        for _, act in due:
            act()


class Wire:
    """What an executor writes."""

    def __init__(self) -> None:
        self.heartbeats: list[shard_pb2.Heartbeat] = []

    async def write(self, message: shard_pb2.ExecutorMessage) -> None:
        """See grpc.aio.StreamStreamCall."""
        if message.HasField("heartbeat"):
            self.heartbeats.append(message.heartbeat)

    def reply(self, at_ns: int) -> shard_pb2.HeartbeatReply:
        """To the first heartbeat that has none."""
        return shard_pb2.HeartbeatReply(sent_ns=self.heartbeats.pop(0).sent_ns, replied_ns=at_ns)


@pytest.fixture
async def host() -> Host:
    return Host()


@pytest.fixture
async def timer(host: Host) -> Timer:
    return Timer(host)


@pytest.fixture
async def shard(host: Host, timer: Timer) -> Shard:
    return Shard("shard-0", cast(Any, None), host, cast(Any, timer))


@pytest.fixture
async def stream(shard: Shard) -> Stream:
    """To a leader that has just begun to lead."""
    made = Stream(shard, "replica-0", "there:1", cast(Any, None), shard_pb2.Hello())
    shard.led_by(made, 1, 0)
    made._owes_inventory = True
    return made


async def test_the_lease_begins_when_the_heartbeat_is_sent_and_not_when_its_answer_is_read(
    host: Host, shard: Shard, stream: Stream
) -> None:
    """Whoever is stopped in between finds an answer that is old: it may have been given up."""
    wire = Wire()
    await stream._say_what_is_new(cast(Any, wire))
    reply = wire.reply(host.now_ns())
    host.pass_ns(LEASE_NS)
    stream._heard_reply(reply)
    assert not shard.in_lease
    await stream._write_heartbeat(cast(Any, wire))
    host.pass_ns(LEASE_NS - 1)
    stream._heard_reply(wire.reply(host.now_ns()))
    assert shard.in_lease
    host.pass_ns(1)
    assert not shard.in_lease


async def test_an_old_answer_lets_nothing_start_that_waits_for_the_lease(
    host: Host, shard: Shard, stream: Stream, timer: Timer
) -> None:
    wire, started = Wire(), []
    await stream._say_what_is_new(cast(Any, wire))
    stream._heard_reply(wire.reply(host.now_ns()))
    waiting = asyncio.create_task(
        shard.due(host.now_ns() + 1_000 * MS, lambda: started.append("it"))
    )
    await timer.asked.wait()
    await stream._write_heartbeat(cast(Any, wire))
    old = wire.reply(host.now_ns())
    host.pass_ns(2 * LEASE_NS)
    timer.wake()
    stream._heard_reply(old)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not started
    await stream._write_heartbeat(cast(Any, wire))
    stream._heard_reply(wire.reply(host.now_ns()))
    await waiting
    assert started


@pytest.mark.parametrize("step_ms", [3_600_000, -3_600_000])
async def test_a_clock_that_is_set_neither_ends_the_lease_nor_moves_the_leaders_time(
    host: Host, shard: Shard, stream: Stream, timer: Timer, step_ms: int
) -> None:
    wire, started = Wire(), []
    await stream._say_what_is_new(cast(Any, wire))
    stream._heard_reply(wire.reply(host.now_ns() + 40 * MS))
    assert shard.reading.offset_ns == 40 * MS
    waiting = asyncio.create_task(
        shard.due(host.now_ns() + 1_040 * MS, lambda: started.append("it"))
    )
    await timer.asked.wait()
    host.set_ns(step_ms * MS)
    assert shard.reading.offset_ns == (40 - step_ms) * MS
    timer.wake(was_set=True)
    await timer.asked.wait()
    assert [at_ns - host.now_ns() for at_ns, _ in timer.due] == [1_000 * MS]
    host.pass_ns(LEASE_NS - 1)
    await stream._write_heartbeat(cast(Any, wire))
    stream._heard_reply(wire.reply(host.now_ns() + (40 - step_ms) * MS))
    host.pass_ns(LEASE_NS - 1)
    assert shard.in_lease
    timer.wake()
    reading, _ = await waiting
    assert started
    assert reading == Reading((40 - step_ms) * MS, 1)


async def test_an_answer_to_nothing_that_was_asked_is_passed_over(
    host: Host, shard: Shard, stream: Stream
) -> None:
    wire = Wire()
    await stream._say_what_is_new(cast(Any, wire))
    reply = wire.reply(host.now_ns())
    stream._heard_reply(reply)
    host.pass_ns(LEASE_NS)
    stream._heard_reply(reply)
    assert not shard.in_lease
