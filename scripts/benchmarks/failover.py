"""bench failover: fires and writes go on; then the leader, or every replica, gets SIGKILL."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import bed
import fires
import grpc
from bed import CALL_DEADLINE_S, Api, milliseconds, say, spread

from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.proto.tickmesh.v1 import schedule_pb2

RATE_DEFAULT = 20.0
LATE_MS = 100.0
SETTLE_S = 3.0
WRITERS = 4
WRITE_TIMEOUT_S = 10.0
DOWN_S = 2.0
"""With --kill all: how long nothing runs; long enough that fires fall due meanwhile."""


@dataclass(slots=True)
class Writes:
    """Acknowledged writes, and when."""

    acknowledged: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)

    def outage_s(self, since_s: float) -> float:
        """The longest time without an acknowledgement, from an instant on."""
        later = sorted(at_s for at_s in self.times_s if at_s >= since_s)
        gaps = [after - before for before, after in itertools.pairwise([since_s, *later])]
        return round(max(gaps), 3) if gaps else float("inf")


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """See main.py for the arguments. No-op work: what is measured is the scheduling."""
    options = LocalOptions(
        replicas=arguments.replicas,
        runtime="inprocess",
        executor=(("slot_count", bed.NOOP_SLOTS),),
    )
    noise = await bed.noise()
    async with bed.mesh(options, arguments.keep) as (local, api):
        job = await api.create_job("noop", "nothing:1")
        written = await api.create_job("written", "nothing:1")
        plan = fires.Plan.of(arguments.schedules or fires.SCHEDULES, arguments.rate or RATE_DEFAULT)
        await plan.create(api, job)
        began_ms = (time.time() + SETTLE_S) * 1_000
        until_ms = began_ms + arguments.seconds * 1_000
        writes = Writes()
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(_write(api, written, writes, stop))
            await asyncio.sleep(SETTLE_S + arguments.seconds / 2)
            killed_s = await _kill(local, api, arguments.kill)
            await asyncio.sleep(max(0.0, until_ms / 1_000 - time.time()))
            stop.set()
        found = await fires.ended(api, job, until_ms)
        counts, wanted = fires.compare(plan.expected(began_ms, until_ms), found)
        late = [
            milliseconds(e.start_time) - milliseconds(e.due_time)
            for e in wanted
            if e.HasField("start_time")
        ]
        stood_for = sum(execution.missed_fires for execution in found)
        return {
            "benchmark": "failover",
            "killed": arguments.kill,
            **counts,
            # With every replica down, instants pass that the latest one stands for, and says so.
            "missed_and_told": stood_for,
            "missed": counts["missed"] - stood_for,
            "late_over_100_ms": sum(value > LATE_MS for value in late),
            "start_ms": spread(late),
            "writes": len(writes.acknowledged),
            "lost_writes": await _lost(api, written, writes),
            "write_outage_s": writes.outage_s(killed_s),
            "rate": plan.count / plan.period_ms * 1_000,
            "seconds": arguments.seconds,
            "replicas": arguments.replicas,
            "noise_ms": noise,
            "machine": bed.machine(),
            "versions": bed.versions("inprocess"),
        }


async def _write(api: Api, job: str, writes: Writes, stop: asyncio.Event) -> None:
    """Create schedules one after the other; a call that fails is repeated with its request_id."""
    schedule = schedule_pb2.Schedule(recurrence=schedule_pb2.Recurrence(crons=[bed.NEVER_SOON]))
    while not stop.is_set():
        request = schedule_pb2.CreateScheduleRequest(
            parent=job, schedule=schedule, request_id=uuid.uuid4().hex
        )
        while True:
            with contextlib.suppress(grpc.RpcError):
                made = await api.schedules.CreateSchedule(request, timeout=WRITE_TIMEOUT_S)
                writes.acknowledged.append(made.name)
                writes.times_s.append(time.monotonic())
                break
            await asyncio.sleep(0.01)


async def _kill(local: LocalMesh, api: Api, whom: str) -> float:
    leader = await api.leader()
    victims = [c for c in local.replicas if whom == "all" or c.name == leader]
    killed_s = time.monotonic()
    await asyncio.gather(*(child.kill() for child in victims))
    say(f"SIGKILL to {', '.join(child.name for child in victims)}")
    if whom == "all":
        await asyncio.sleep(DOWN_S)
    for child in victims:
        await child.spawn()
    if whom == "all":
        killed_s = time.monotonic()  # from when they may serve again
    return killed_s


async def _lost(api: Api, job: str, writes: Writes) -> int:
    """Acknowledged schedules that are not there."""
    there = set()
    token = ""
    while True:
        request = schedule_pb2.ListSchedulesRequest(parent=job, page_size=1_000, page_token=token)
        page = await api.schedules.ListSchedules(request, timeout=CALL_DEADLINE_S)
        there.update(schedule.name for schedule in page.schedules)
        token = page.next_page_token
        if not token:
            return len(set(writes.acknowledged) - there)
