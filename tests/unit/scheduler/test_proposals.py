"""How much one entry holds: as much as is applied in time."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tickmesh.mesh import limits
from tickmesh.scheduler.core import commands
from tickmesh.scheduler.proposals import APPLY_S_MAX, WEIGHT_MAX, WEIGHT_MIN, Proposals
from tickmesh.scheduler.raft.limits import PAYLOAD_BYTES_MAX
from tickmesh.scheduler.store.state import State

from .worlds import World

EACH = 10


class Clock:
    def now_ns(self) -> int:
        return 0

    def monotonic_ns(self) -> int:
        return 0


class Log:
    """A log of one replica, which applies as slowly as the test says."""

    entry_version = 1

    def __init__(self, state: State) -> None:
        self._state = state
        self.apply_s = 0.0
        self.weights: list[int] = []

    async def propose(self, payload: bytes) -> object:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError("more than a replica takes")
        self.weights.append(len(msgspec.msgpack.decode(payload)[2]) * EACH)
        return self._state.apply(self._state.applied[0] + 1, 1, payload)


async def test_an_entry_holds_less_while_applying_takes_too_long() -> None:
    state = World().state
    log = Log(state)
    proposals = Proposals(log, state, Clock())
    running = asyncio.create_task(proposals.run())

    async def load() -> None:
        count = 4 * WEIGHT_MAX // EACH
        await asyncio.gather(
            *(proposals.submit(commands.Fire([], 0), weight=EACH) for _ in range(count))
        )

    await load()
    assert log.weights == [WEIGHT_MAX] * 4
    log.apply_s = 2 * APPLY_S_MAX
    await load()
    assert log.weights[4:8] == [WEIGHT_MAX >> halvings for halvings in range(4)]
    assert log.weights[-2] == WEIGHT_MIN
    log.apply_s = 0.0
    for _ in range(6):
        await load()
    assert log.weights[-2] == WEIGHT_MAX, "it takes up speed again"
    running.cancel()


async def test_an_entry_holds_what_the_log_takes() -> None:
    """Two hundred executions with large payloads at once all failed: together they were too much
    for one entry. A fire among them ended the process of its leader."""
    world = World()
    world.job()
    log = Log(world.state)
    proposals = Proposals(log, world.state, Clock())
    running = asyncio.create_task(proposals.run())
    payload = b"x" * limits.PAYLOAD_BYTES_MAX
    count = 3 * PAYLOAD_BYTES_MAX // len(payload) // 2
    submitted = [
        proposals.submit(
            commands.ExecuteJobs(
                "acme", [commands.NewExecution("hello", world.next_uid(), payload, None)], b""
            )
        )
        for _ in range(count)
    ]
    made = await asyncio.gather(*submitted)
    assert [len(each) for each in made] == [1] * count
    assert len(log.weights) == 2
    running.cancel()


async def test_what_cannot_be_encoded_fails_alone() -> None:
    """It ended the queue, and with it the process; sent again by its gateway, the next leader's."""
    state = World().state
    proposals = Proposals(Log(state), state, Clock())
    running = asyncio.create_task(proposals.run())
    good = proposals.submit(commands.Fire([], 0))
    with pytest.raises(OverflowError):
        proposals.submit(commands.Fire([], 1 << 70))
    assert await good == []
    assert await proposals.submit(commands.Fire([], 0)) == []
    running.cancel()
