"""bench adopt: the executor is killed with containers running, and started again.

Each container prints the numbers from 0 on, before, while and after nobody is there to read them.
What counts: when the next process has found all of them again, that none is lost or ended, and that
every number of every container is there, once and in order.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import bed
import grpc
from bed import CALL_DEADLINE_S, Api, say, spread
from fires import ACTIVE

from tickmesh.executor.archive import python_image
from tickmesh.mesh.local import LocalOptions
from tickmesh.proto.tickmesh.v1 import cluster_pb2, execution_pb2

CONTAINERS = 50
LINE_S = 0.1
DEADLINE_S = 120.0
PROGRAM = """
import sys, time
for number in range(int(sys.argv[1])):
    print(number, flush=True)
    time.sleep(float(sys.argv[2]))
"""


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """See main.py for the arguments."""
    noise = await bed.noise()
    load = os.getloadavg()
    options = LocalOptions(replicas=arguments.replicas)
    lines = int(arguments.seconds / LINE_S)
    async with bed.mesh(options, arguments.keep) as (local, api):
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch) / "python.tar"
            await asyncio.to_thread(python_image, archive)
            await api.import_image("python:3", archive)
        command = ["python3", "-c", PROGRAM, str(lines), str(LINE_S)]
        job = await api.create_job("count", "python:3", command=command)
        for _ in range(CONTAINERS):
            await api.executions.ExecuteJob(
                execution_pb2.ExecuteJobRequest(name=job), timeout=CALL_DEADLINE_S
            )
        await _until(api, job, execution_pb2.EXECUTION_STATE_RUNNING)
        say(f"{CONTAINERS} containers run")
        executor = local.executors[0]
        await executor.kill()
        spawned_s = time.monotonic()
        await executor.spawn()
        await executor.serving()  # it says so once it has found again what it held
        adopted_s = time.monotonic() - spawned_s
        attached_s = await _attached(api) - spawned_s
        say(f"serves again after {adopted_s:.2f} s")
        running = sum(
            found.state == execution_pb2.EXECUTION_STATE_RUNNING
            for found in await api.executions_of(job)
        )
        found = await _until(api, job, execution_pb2.EXECUTION_STATE_SUCCEEDED)
        expected = "".join(f"{number}\n" for number in range(lines)).encode()
        outputs = [await api.output(execution.name) for execution in found]
        cluster = await api.cluster.GetCluster(
            cluster_pb2.GetClusterRequest(), timeout=CALL_DEADLINE_S
        )
        ended = [e for e in found if e.state == execution_pb2.EXECUTION_STATE_SUCCEEDED]
        return {
            "benchmark": "adopt",
            "adopted_s": round(adopted_s, 3),
            "attached_s": round(attached_s, 3),
            "containers": CONTAINERS,
            "running_after": running,
            "succeeded": len(ended),
            "attempts": spread(float(len(execution.attempts)) for execution in found),
            "outputs_whole": sum(output == expected for output in outputs),
            "lines_each": lines,
            "replicas": arguments.replicas,
            "noise_ms": noise,
            "load": load,
            "machine": bed.machine(),
            "versions": bed.versions(cluster.executors[0].runtime),
        }


async def _until(api: Api, job: str, state: int) -> list[execution_pb2.Execution]:
    """Wait until every execution of a job is in a state, or has ended in another."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = await api.executions_of(job)
            waiting = [e for e in found if e.state != state and e.state in ACTIVE]
            if len(found) == CONTAINERS and not waiting:
                break
            await asyncio.sleep(0.1)
    for execution in found:
        if execution.state != state:
            say(f"{execution.name}: state {execution.state}, {execution.message}")
    return found


async def _attached(api: Api) -> float:
    """When the leader has the executor again."""
    while True:
        try:
            cluster = await api.cluster.GetCluster(
                cluster_pb2.GetClusterRequest(), timeout=CALL_DEADLINE_S
            )
        except grpc.RpcError:
            continue
        if cluster.executors:
            return time.monotonic()
        await asyncio.sleep(0.01)
