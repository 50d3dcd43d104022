"""What an executor gives back: what it has no room for, and what it is drained of."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tickmesh.executor import spares
from tickmesh.executor.agent import Limits
from tickmesh.executor.drain import State
from tickmesh.executor.inprocess import Image, InProcessRuntime, InProcessSpare
from tickmesh.executor.room import Capacity
from tickmesh.executor.sandbox import Sandbox, Work
from tickmesh.mesh.clock import SystemClock
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import execution_pb2, job_pb2

from .leader import SECOND_NS, World, work, world

pytestmark = pytest.mark.integration

PREPARED = shard_pb2.ATTEMPT_PHASE_PREPARED
RUNNING = shard_pb2.ATTEMPT_PHASE_RUNNING
RETURNED = execution_pb2.EXECUTION_REASON_RETURNED
MIB = 1 << 20


class Gated(InProcessRuntime):
    """Makes sandboxes when the test lets it, and notes for whom."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, SystemClock())
        self.made: list[str] = []
        self.spares: list[InProcessSpare] = []
        self.may_make = asyncio.Event()
        self.may_make.set()

    async def prepare(self, work: Work) -> Sandbox:  # type: ignore[override]
        self.made.append(work.attempt_id)
        await self.may_make.wait()
        return await super().prepare(work)

    async def prepare_spare(self, mould: Work) -> InProcessSpare:
        self.spares.append(await super().prepare_spare(mould))
        return self.spares[-1]


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[World]:
    """An agent with room for four attempts of 256 MiB together, and one of its sandboxes at a time
    in the making, and a leader of term 5."""
    async with world(tmp_path) as made:
        made.capacity = Capacity(4, 256 * MIB, 8_000, egress=False)
        runtime = Gated(tmp_path / "runtime")
        await runtime.start()
        await made.start(runtime, Limits(making_at_once=1, newcomers_max=1))
        await made.leader.lead(5)
        yield made


def runtime_of(mesh: World) -> Gated:
    assert isinstance(mesh.runtime, Gated)
    return mesh.runtime


async def test_what_there_is_no_slot_for_is_given_back_and_taken_when_there_is(
    mesh: World,
) -> None:
    mesh.leader.work(*(work(f"a-{n}", "sleep", "60", memory_bytes=MIB) for n in range(4)))
    for n in range(4):
        await mesh.leader.phase(f"a-{n}", RUNNING)
    mesh.leader.work(work("b-1", memory_bytes=MIB))
    end = await mesh.leader.end("b-1")
    assert (end.reason, end.started_ns) == (RETURNED, 0)
    assert end.message == "the executor did not take it: all of its 4 slots are taken"
    mesh.leader.stop("a-0", execution_pb2.EXECUTION_REASON_CANCELLED)
    await mesh.leader.end("a-0")
    mesh.leader.work(work("c-1", memory_bytes=MIB))
    assert (await mesh.leader.end("c-1")).reason == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"memory_bytes": 128 * MIB}, "of its 256 MiB of memory 192 are taken, and 128 were"),
        ({"memory_bytes": MIB, "cpu_millis": 4000}, "of its 8000 thousandths of a core 4"),
        ({"memory_bytes": MIB, "network": job_pb2.NETWORK_EGRESS}, "it gives no egress"),
    ],
)
async def test_what_does_not_fit_is_given_back_with_what_is_missing(
    mesh: World, more: dict[str, int], words: str
) -> None:
    mesh.leader.work(work("a-1", "sleep", "60", memory_bytes=192 * MIB, cpu_millis=4_001))
    await mesh.leader.phase("a-1", RUNNING)
    mesh.leader.work(work("b-1", **more))
    end = await mesh.leader.end("b-1")
    assert (end.reason, end.started_ns) == (RETURNED, 0)
    assert words in end.message


async def test_what_is_found_again_after_a_kill_still_takes_its_room(mesh: World) -> None:
    mesh.leader.work(work("a-1", "sleep", "60", memory_bytes=192 * MIB))
    await mesh.leader.phase("a-1", RUNNING)
    await mesh.kill()
    await mesh.start(mesh.runtime, Limits(making_at_once=1, newcomers_max=1))
    await mesh.leader.until(lambda: len(mesh.leader.inventories) > 1)
    mesh.leader.work(work("b-1", memory_bytes=128 * MIB))
    assert (await mesh.leader.end("b-1")).reason == RETURNED


async def test_one_customers_queue_of_sandboxes_does_not_keep_another_waiting(
    mesh: World,
) -> None:
    runtime = runtime_of(mesh)
    runtime.may_make.clear()
    many = [work(f"a-{n}", memory_bytes=MIB) for n in range(3)]
    mesh.leader.work(*many, work("z-1", customer="zoe", memory_bytes=MIB))
    async with asyncio.timeout(5):
        while "z-1" not in runtime.made:  # noqa: ASYNC110 - a turn of the loop is the event
            await asyncio.sleep(0)
    assert runtime.made == ["a-0", "z-1"]
    runtime.may_make.set()
    for attempt in ("a-0", "a-1", "a-2", "z-1"):
        assert (await mesh.leader.end(attempt)).reason == 0


async def test_a_spare_outlasts_attempts_that_take_every_slot(
    mesh: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a queue that fills each slot that comes free has a spare made and removed each time."""
    looks = asyncio.Semaphore(0)

    def enough_memory() -> bool:
        looks.release()
        return False

    monkeypatch.setattr(spares, "_memory_is_short", enough_memory)
    monkeypatch.setattr(spares, "LOOK_S", 0.01)
    for n in range(2):
        mesh.leader.work(work(f"a-{n}", memory_bytes=MIB))
        await mesh.leader.end(f"a-{n}")
    await mesh.leader.until(lambda: mesh.leader.offers[-1].jobs)
    queue = {"customer": "zoe", "execution": "customers/zoe/jobs/long/executions/e1"}
    each = 256 * MIB // 4
    many = [work(f"z-{n}", "sleep", "60", memory_bytes=each, **queue) for n in range(4)]
    mesh.leader.work(*many)
    for n in range(4):
        await mesh.leader.phase(f"z-{n}", RUNNING)
    while not looks.locked():
        await looks.acquire()
    for _ in range(3):
        await looks.acquire()
    assert not any(spare.spent for spare in runtime_of(mesh).spares)
    mesh.leader.stop("z-0", execution_pb2.EXECUTION_REASON_CANCELLED)
    await mesh.leader.end("z-0")
    mesh.leader.work(work("a-2", memory_bytes=MIB))
    assert (await mesh.leader.end("a-2")).reason == 0
    assert sum(spare.spent for spare in runtime_of(mesh).spares) == 1


async def test_a_drained_executor_gives_back_what_is_armed_and_lets_run_what_runs(
    mesh: World,
) -> None:
    mesh.leader.work(
        work("runs-1", "sleep", "60", memory_bytes=MIB),
        work("soon-1", "print", "x", in_s=0.5, memory_bytes=MIB),
        work("later-1", in_s=30, memory_bytes=MIB),
    )
    await mesh.leader.phase("runs-1", RUNNING)
    await mesh.leader.phase("soon-1", PREPARED)
    await mesh.leader.phase("later-1", PREPARED)
    assert not mesh.leader.offers[-1].draining
    assert await mesh.agent.drain(State(draining=True)) == 3
    await mesh.leader.until(lambda: mesh.leader.offers[-1].draining)
    end = await mesh.leader.end("later-1")
    assert (end.reason, end.started_ns) == (RETURNED, 0)
    assert "drained" in end.message
    # What nobody else could start on time starts here.
    assert (await mesh.leader.end("soon-1")).reason == 0
    mesh.leader.work(work("new-1", memory_bytes=MIB))
    end = await mesh.leader.end("new-1")
    assert (end.reason, end.message) == (
        RETURNED,
        "the executor did not take it: it is being drained",
    )
    assert mesh.leader.latest("runs-1").phase == RUNNING


async def test_a_drain_outlives_the_process_and_ends_when_it_is_undone(mesh: World) -> None:
    await mesh.agent.drain(State(draining=True))
    await mesh.kill()
    await mesh.start(mesh.runtime)
    hello = await mesh.leader.until(lambda: len(mesh.leader.hellos) > 1 and mesh.leader.hellos[-1])
    assert hello.offer.draining
    await mesh.leader.until(lambda: len(mesh.leader.inventories) > 1)
    await mesh.agent.drain(State())
    await mesh.leader.until(lambda: not mesh.leader.offers[-1].draining)
    mesh.leader.work(work("a-1"))
    assert (await mesh.leader.end("a-1")).reason == 0
    await mesh.kill()
    await mesh.start(mesh.runtime)
    hello = await mesh.leader.until(lambda: len(mesh.leader.hellos) > 2 and mesh.leader.hellos[-1])
    assert not hello.offer.draining


async def test_a_drain_with_a_time_ends_what_still_runs_then_after_a_restart_too(
    mesh: World,
) -> None:
    mesh.leader.work(work("a-1", "sleep", "60"))
    await mesh.leader.phase("a-1", RUNNING)
    await mesh.agent.drain(State(draining=True, end_ns=mesh.clock.now_ns() + SECOND_NS))
    await mesh.kill()
    await mesh.start(mesh.runtime)
    end = await mesh.leader.end("a-1")
    assert (end.reason, end.signal) == (execution_pb2.EXECUTION_REASON_INFRASTRUCTURE, 15)
    assert "drained" in end.message


async def test_a_gate_that_is_lost_before_it_is_opened_is_replaced(mesh: World) -> None:
    mesh.leader.work(work("a-1", "print", "ran", in_s=0.5))
    await mesh.leader.phase("a-1", PREPARED)
    await runtime_of(mesh)._sandboxes["a-1"].kill(9)
    end = await mesh.leader.end("a-1")
    assert (end.reason, end.exit_code, end.message) == (0, 0, "")
    assert runtime_of(mesh).made == ["a-1", "a-1"]
    assert (mesh.runtime.output_directory("a-1") / "stdout").read_text() == "ran\n"


async def test_shards_are_told_which_images_are_here(mesh: World) -> None:
    runtime_of(mesh)._images["acme/hello:1"] = Image("acme/hello:1", "sha256:x", 1)
    digest = hashlib.blake2b(b"acme/hello:1", digest_size=8).digest()
    offer = await mesh.leader.until(
        lambda: bool(mesh.leader.offers[-1].images) and mesh.leader.offers[-1]
    )
    assert list(offer.images) == [int.from_bytes(digest, "big")]
