"""bench fire: how late real containers start, beside many schedules that only stand there."""

from __future__ import annotations

import argparse
import asyncio
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import bed
import fires
from bed import CALL_DEADLINE_S, Api, milliseconds, say, spread

from tickmesh.executor.archive import File, Process, files_image
from tickmesh.mesh.local import LocalOptions
from tickmesh.proto.tickmesh.v1 import execution_pb2

RATE_DEFAULT = 10.0
SINGLE_SECONDS = 3.0
SINGLE_CALLERS = 64
SETTLE_S = 3.0
"""Between creating and measuring: longer than fires are armed ahead."""

AFTER_S = 1.0
"""Between the load and reading what came of it: reading disturbs nothing that is measured."""

STAMP_PROGRAM = Path(__file__).parent / f"stamp-{platform.machine()}"
"""Prints the time of its first instruction, in nanoseconds, and ends: see stamp.c."""


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """See main.py for the arguments."""
    real = arguments.runtime == "containerd"
    rate = arguments.rate or RATE_DEFAULT
    options = LocalOptions(
        replicas=arguments.replicas,
        runtime=arguments.runtime,
        # Without spares: Execute is measured cold here (warm: see execute.py).
        executor=(("spares_max", 0),) if real else (("slot_count", bed.NOOP_SLOTS),),
    )
    noise = await bed.noise()
    async with bed.mesh(options, arguments.keep) as (local, api):
        job = await _job(api, real)
        batch = await api.create_idle(job, arguments.idle)
        say(f"{arguments.idle:,} idle schedules: {batch:,.0f} a second in batches")
        single = await api.create_single(job, SINGLE_SECONDS, SINGLE_CALLERS)
        say(f"{single:,.0f} a second one by one")
        execute = await _execute(api, job, arguments.executes, real)
        schedules = arguments.schedules or (fires.SCHEDULES if arguments.burst == 1 else 0)
        plan = fires.Plan.of(schedules, rate, arguments.burst)
        firing = await _job(api, real, "firing")
        await plan.create(api, firing)
        began_ms = (time.time() + SETTLE_S) * 1_000
        until_ms = began_ms + arguments.seconds * 1_000
        say(f"{plan.count:,} schedules fire {plan.count / plan.period_ms * 1_000:g} times a second")
        await asyncio.sleep(SETTLE_S)
        before, disk_before = bed.cpu_s(local), max(bed.disk_mib(local).values())
        await asyncio.sleep(arguments.seconds)
        after, disk_after = bed.cpu_s(local), max(bed.disk_mib(local).values())
        await asyncio.sleep(AFTER_S)
        found = await fires.ended(api, firing, until_ms)
        counts, wanted = fires.compare(plan.expected(began_ms, until_ms), found)
        say(f"reading the output of {len(wanted)} executions")
        late = await _stamps(api, wanted) if real else []
        await api.leader()
        cluster = await api.cluster.GetCluster(
            bed.cluster_pb2.GetClusterRequest(), timeout=CALL_DEADLINE_S
        )
        registered = max(r.schedule_count for s in cluster.shards for r in s.replicas)
        return {
            "benchmark": "fire",
            "lateness_ms": spread(late),
            "start_ms": spread(
                milliseconds(e.start_time) - milliseconds(e.due_time)
                for e in wanted
                if e.HasField("start_time")
            ),
            "execute_ms": spread(execute),
            "early": sum(value < 0 for value in late),
            "creates_per_s": {"single": round(single), "batch": round(batch)},
            # Of one core, while the load lasted.
            "cpu_share": {
                name: round((after[name] - before[name]) / arguments.seconds, 3) for name in after
            },
            "rss_mib": bed.resident_mib(local),
            "disk_mib": bed.disk_mib(local),
            # Of a replica, its journal included.
            "disk_bytes_per_fire": round(
                (disk_after - disk_before) * (1 << 20) / (arguments.seconds * rate)
            ),
            "registered": registered,
            **counts,
            "rate": plan.count / plan.period_ms * 1_000,
            "burst": plan.burst,
            "seconds": arguments.seconds,
            "replicas": arguments.replicas,
            "noise_ms": noise,
            "machine": bed.machine(),
            "versions": bed.versions(cluster.executors[0].runtime),
        }


async def _job(api: Api, real: bool, job_id: str = "stamp") -> str:
    return await (stamp_job(api, job_id) if real else api.create_job(job_id, "nothing:1"))


async def stamp_job(api: Api, job_id: str = "stamp") -> str:
    """A job whose process prints when its first instruction was; with its image."""
    with tempfile.TemporaryDirectory() as scratch:
        await api.import_image("stamp:1", stamp_archive(Path(scratch)))
    return await api.create_job(job_id, "stamp:1")


def stamp_archive(directory: Path) -> Path:
    """That image, as an OCI archive."""
    archive = directory / "stamp.tar"
    files_image(archive, {"/stamp": File(STAMP_PROGRAM, 0o755)}, Process(command=("/stamp",)))
    return archive


async def _execute(api: Api, job: str, count: int, real: bool) -> list[float]:
    """From a client's Execute to the process's first instruction, one after the other."""
    measured = []
    for _ in range(count):
        began_ms = time.time() * 1_000
        made = await api.executions.ExecuteJob(
            execution_pb2.ExecuteJobRequest(name=job), timeout=CALL_DEADLINE_S
        )
        watch = api.executions.WatchExecutions(
            execution_pb2.WatchExecutionsRequest(parent=made.name), timeout=CALL_DEADLINE_S
        )
        last = made
        async for message in watch:
            last = message.executions[-1] if message.executions else last
        if last.state != execution_pb2.EXECUTION_STATE_SUCCEEDED:
            raise SystemExit(f"{last.name} ended in state {last.state}: {last.message}")
        if real:
            measured.append(int(await api.output(made.name)) / 1e6 - began_ms)
        else:
            measured.append(milliseconds(last.start_time) - began_ms)
    return measured


async def _stamps(api: Api, executions: list[execution_pb2.Execution]) -> list[float]:
    """Lateness of each process's first instruction by its own clock, in milliseconds."""
    late = []
    for execution in executions:
        if execution.state == execution_pb2.EXECUTION_STATE_SUCCEEDED:
            stamp_ms = int(await api.output(execution.name)) / 1e6
            late.append(stamp_ms - milliseconds(execution.due_time))
    return late
