"""bench burst: a herd of one-off schedules, all due at one instant."""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from typing import Any

import bed
import fires
from bed import BATCH, CALL_DEADLINE_S, Api, milliseconds, say, spread

from tickmesh.mesh.local import LocalOptions
from tickmesh.proto.tickmesh.v1 import schedule_pb2

SCHEDULES = 10_000
ROUNDS = 3
LEAD_S = 6.0
"""Between the first create and the instant: creating takes a second, arming two."""


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Some herds after one another; the middle one by its p99 stands for all."""
    count = arguments.schedules or SCHEDULES
    options = LocalOptions(
        replicas=arguments.replicas,
        executors=arguments.executors,
        runtime="inprocess",
        executor=(("slot_count", max(bed.NOOP_SLOTS, 2 * count)),),
    )
    noise = await bed.noise()
    async with bed.mesh(options, arguments.keep) as (local, api):
        rounds = [await _herd(api, number, count) for number in range(ROUNDS)]
        rounds.sort(key=lambda one: one["start_ms"]["p99"])
        return {
            "benchmark": "burst",
            "schedules": count,
            **rounds[ROUNDS // 2],
            "missed": sum(one["missed"] for one in rounds),
            "duplicated": sum(one["duplicated"] for one in rounds),
            "p99_of_rounds_ms": [one["start_ms"]["p99"] for one in rounds],
            "rss_mib": bed.resident_mib(local),
            "replicas": arguments.replicas,
            "executors": arguments.executors,
            "noise_ms": noise,
            "machine": bed.machine(),
            "versions": bed.versions("inprocess"),
        }


async def _herd(api: Api, number: int, count: int) -> dict[str, Any]:
    job = await api.create_job(f"herd-{number}", "nothing:1")
    due_ms = math.ceil(time.time() + LEAD_S) * 1_000
    began = time.perf_counter()
    for start in range(0, count, BATCH):
        request = schedule_pb2.BatchCreateSchedulesRequest(parent=job)
        for index in range(start, min(count, start + BATCH)):
            new = request.schedules.add(schedule_id=fires.name(index))
            new.schedule.recurrence.times.add().FromMilliseconds(due_ms)
        await api.schedules.BatchCreateSchedules(request, timeout=CALL_DEADLINE_S)
    created_s = time.perf_counter() - began
    say(f"{count:,} schedules due at one instant, created in {created_s:.1f} s")
    # Nobody asks anything while they start and end.
    await asyncio.sleep(due_ms / 1_000 - time.time() + 2.0)
    found = await fires.ended(api, job, due_ms + 1)
    expected = fires.Counter({(fires.name(index), due_ms): 1 for index in range(count)})
    counts, wanted = fires.compare(expected, found)
    last_ms = max(milliseconds(e.end_time) for e in wanted)
    result = {
        "start_ms": spread(milliseconds(e.start_time) - due_ms for e in wanted),
        "armed_ahead_ms": spread(due_ms - milliseconds(e.create_time) for e in wanted),
        # Where a start was late: was it prepared, and armed, in time?
        "prepared_late": sum(milliseconds(e.attempts[-1].prepare_time) > due_ms for e in wanted),
        "armed_late": sum(milliseconds(e.create_time) > due_ms for e in wanted),
        "all_ended_ms": round(last_ms - due_ms, 1),
        "creates_per_s": round(count / created_s),
        **counts,
    }
    say(f"started: {result['start_ms']}, {result['prepared_late']} prepared after they were due")
    return result
