"""The bed that benchmarks lie in: a local mesh of real processes, its public API, statistics."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.proto.tickmesh.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    execution_pb2,
    execution_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    schedule_pb2,
    schedule_pb2_grpc,
)

CUSTOMER = "customers/bench"
CALL_DEADLINE_S = 30.0
LEADER_DEADLINE_S = 20.0
IMPORT_CHUNK_BYTES = 1 << 20
BATCH = 1_000
"""The largest batch of the API."""

BATCHES_AT_ONCE = 4
"""So that no part waits for another: gateway, leader and disks work at the same time."""

NOOP_SLOTS = 20_000
"""Of an executor without containers: what is armed ahead takes a slot, two seconds' fires."""

NEVER_SOON = "0 3 1 1 *"
"""The cron of an idle schedule: once a year."""

VERSIONS = ("grpcio", "protobuf", "pysyncobj", "rocksdict", "uvloop")


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


class Api:
    """The public API over one channel, on behalf of one customer."""

    def __init__(self, address: str, customer: str = CUSTOMER) -> None:
        self.customer = customer
        self.channel = grpc.aio.insecure_channel(address)
        self.jobs = job_pb2_grpc.JobServiceStub(self.channel)
        self.schedules = schedule_pb2_grpc.ScheduleServiceStub(self.channel)
        self.executions = execution_pb2_grpc.ExecutionServiceStub(self.channel)
        self.images = image_pb2_grpc.ImageServiceStub(self.channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(self.channel)

    async def leader(self, attached: bool = True) -> str:
        """Id of the replica that leads, once there is one and an executor is attached to it."""
        async with asyncio.timeout(LEADER_DEADLINE_S):
            while True:
                with contextlib.suppress(grpc.RpcError):
                    cluster = await self.cluster.GetCluster(
                        cluster_pb2.GetClusterRequest(), timeout=CALL_DEADLINE_S
                    )
                    leading = [r for s in cluster.shards for r in s.replicas if r.leader]
                    if leading and (cluster.executors or not attached):
                        return max(leading, key=lambda replica: replica.term).replica_id
                await asyncio.sleep(0.05)

    async def import_image(self, name: str, archive: Path) -> None:
        """Import an OCI archive."""

        async def parts() -> AsyncIterator[image_pb2.ImportImageRequest]:
            yield image_pb2.ImportImageRequest(name=f"{self.customer}/images/{name}")
            with archive.open("rb") as file:
                while data := file.read(IMPORT_CHUNK_BYTES):
                    yield image_pb2.ImportImageRequest(data=data)

        await self.images.ImportImage(parts(), timeout=120)

    async def create_job(self, job_id: str, image: str, **container: Any) -> str:
        """Create a job; its name."""
        job = job_pb2.Job(
            container=job_pb2.Container(image=image, **container),
            resources=job_pb2.Resources(memory_bytes=64 << 20),
        )
        request = job_pb2.CreateJobRequest(parent=self.customer, job_id=job_id, job=job)
        return (await self.jobs.CreateJob(request, timeout=CALL_DEADLINE_S)).name

    async def create_idle(self, job: str, count: int) -> float:
        """Create idle schedules in the largest batches; how many a second."""
        one = schedule_pb2.NewSchedule(
            schedule=schedule_pb2.Schedule(recurrence=schedule_pb2.Recurrence(crons=[NEVER_SOON]))
        )
        batches = asyncio.Queue[int]()
        for start in range(0, count, BATCH):
            batches.put_nowait(min(BATCH, count - start))

        async def worker() -> None:
            while not batches.empty():
                size = batches.get_nowait()
                request = schedule_pb2.BatchCreateSchedulesRequest(
                    parent=job, schedules=[one] * size
                )
                await self.schedules.BatchCreateSchedules(request, timeout=CALL_DEADLINE_S)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(BATCHES_AT_ONCE):
                group.create_task(worker())
        return count / (time.perf_counter() - began)

    async def create_single(self, job: str, seconds: float, at_once: int) -> float:
        """Create idle schedules one by one, from `at_once` callers; how many a second."""
        schedule = schedule_pb2.Schedule(recurrence=schedule_pb2.Recurrence(crons=[NEVER_SOON]))
        request = schedule_pb2.CreateScheduleRequest(parent=job, schedule=schedule)
        done = 0
        until = time.perf_counter() + seconds

        async def caller() -> None:
            nonlocal done
            while time.perf_counter() < until:
                await self.schedules.CreateSchedule(request, timeout=CALL_DEADLINE_S)
                done += 1

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(caller())
        return done / (time.perf_counter() - began)

    async def executions_of(self, job: str) -> list[execution_pb2.Execution]:
        """Every execution of a job, newest first."""
        found: list[execution_pb2.Execution] = []
        token = ""
        while True:
            request = execution_pb2.ListExecutionsRequest(
                parent=job, page_size=1_000, page_token=token
            )
            page = await self.executions.ListExecutions(request, timeout=CALL_DEADLINE_S)
            found += page.executions
            token = page.next_page_token
            if not token:
                return found

    async def output(self, execution: str) -> bytes:
        """What an execution wrote to stdout."""
        request = execution_pb2.StreamLogsRequest(name=execution)
        data = b""
        async for part in self.executions.StreamLogs(request, timeout=CALL_DEADLINE_S):
            if part.stream == execution_pb2.LOG_STREAM_STDOUT:
                data += part.data
        return data


@contextlib.asynccontextmanager
async def mesh(options: LocalOptions, keep: str) -> AsyncIterator[tuple[LocalMesh, Api]]:
    """A mesh in a scratch directory, with a leader and an executor, and its API."""
    with contextlib.ExitStack() as stack:
        directory = keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="tickmesh-"))
        began = time.perf_counter()
        async with LocalMesh(Path(directory), options) as local:
            api = Api(local.address)
            leader = await api.leader(options.executors > 0)
            say(f"the mesh serves after {time.perf_counter() - began:.1f} s, {leader} leads")
            try:
                yield local, api
            finally:
                await api.channel.close()


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """p50, p99 and max, rounded to microseconds; None of nothing."""
    known = list(values)
    if not known:
        return None
    return {
        "p50": round(percentile(known, 0.5), 3),
        "p99": round(percentile(known, 0.99), 3),
        "max": round(max(known), 3),
        "n": len(known),
    }


def milliseconds(timestamp: Any) -> float:
    """A protobuf timestamp in milliseconds since 1970."""
    return float(timestamp.seconds * 1_000 + timestamp.nanos / 1e6)


def resident_mib(local: LocalMesh) -> dict[str, float]:
    """Resident memory of each process."""
    sizes = {}
    for child in local.children:
        pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1])
        sizes[child.name] = round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)
    return sizes


def cpu_s(local: LocalMesh) -> dict[str, float]:
    """Processor time that each process has used so far, threads included."""
    ticks = os.sysconf("SC_CLK_TCK")
    used = {}
    for child in local.children:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        used[child.name] = (int(fields[11]) + int(fields[12])) / ticks
    return used


def disk_mib(local: LocalMesh) -> dict[str, float]:
    """What each replica has on disk."""
    sizes = {}
    for child in local.replicas:
        total = 0
        for path in (local.directory / child.name).rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # compacted away meanwhile
                total += path.stat().st_size
        sizes[child.name] = round(total / (1 << 20), 1)
    return sizes


async def noise() -> dict[str, float] | None:
    """The machine's own lateness, without any of us: how late 200 sleeps of 5 ms end, in ms."""

    def measured() -> list[float]:
        late = []
        for _ in range(200):
            began = time.perf_counter()
            time.sleep(0.005)
            late.append((time.perf_counter() - began - 0.005) * 1_000)
        return late

    return spread(await asyncio.to_thread(measured))


def machine() -> dict[str, Any]:
    """What this ran on."""
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpus": os.cpu_count(),
        "cpu": model,
        "memory_gib": round(memory / (1 << 30), 1),
        "kernel": platform.release(),
    }


def versions(runtime: str) -> dict[str, str]:
    """What it ran with."""
    found = {name: metadata.version(name) for name in ("tickmesh", *VERSIONS)}
    return {"python": platform.python_version(), **found, "runtime": runtime}
