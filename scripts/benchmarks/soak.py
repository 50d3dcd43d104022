"""bench soak: 10,000 executions in a row, and what they leave behind.

Eight callers execute one container after the other, one in ten with a network of its own; output is
archived. The host is compared before the first and after the last, once everything that is kept for
a while (spares, local copies of output) is gone: the sandboxes' mounts, cgroups, processes and
network namespaces, what containerd and the executor hold, files, and open descriptors. Memory is
looked at on the way: the slope is per 1,000 executions, over the second half, when caches are warm.
What grows to a bound and no further: replicas fill a memtable with history, 2 to 3 MiB per 1,000
until it is flushed at 8 MiB, and a block cache of 16 MiB; the executor remembers the last 50,000
acknowledged attempts, 0.2 MiB per 1,000.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bed
import grpc
import grpc.aio
from bed import CALL_DEADLINE_S, Api, say
from fire import stamp_job

from tickmesh.executor.containerd.client import ContainerdClient
from tickmesh.executor.containerd.daemon import Daemon
from tickmesh.executor.containerd.runtime import NAMESPACE
from tickmesh.executor.server import host_name
from tickmesh.mesh.config import Archive, Egress
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.proto.tickmesh.v1 import execution_pb2, job_pb2

EXECUTIONS = 10_000
CALLERS = 8
EGRESS_EVERY = 10
SAMPLES = 50
"""Of memory, in equal steps of executions."""

SETTLE_S_MAX = 240.0
"""Spares are kept for two minutes after the last execution."""

WARM_UP = 50
"""Executions before memory is looked at: what is loaded at the first use is."""

EXECUTION_DEADLINE_S = 120.0
ASKED_AGAIN_MAX = 100
"""Then the mesh is not just between two leaders."""

CGROUPS = Path("/sys/fs/cgroup")


class Host:
    """What a mesh has on its host, as counts."""

    def __init__(self, local: LocalMesh) -> None:
        self._local = local
        self._directory = local.directory / "executor-0"
        self._owner = host_name("executor-0", self._directory)
        self._daemon = Daemon(self._directory / "containerd")

    @property
    def containerd_pid(self) -> int:
        """Of the executor's private containerd."""
        return int(json.loads((self._directory / "containerd/containerd.pid").read_text())["pid"])

    def processes(self) -> dict[str, int]:
        """Those whose memory is looked at."""
        return {
            **{child.name: child.pid for child in self._local.children},
            "containerd": self.containerd_pid,
        }

    async def counts(self) -> dict[str, int]:
        """Everything that must be as it was."""
        found = await asyncio.to_thread(self._on_host)
        client = ContainerdClient(self._daemon.socket, NAMESPACE)
        try:
            await client.connected(CALL_DEADLINE_S)
            found["containerd_containers"] = len(
                await client.list_containers("tickmesh.io/owner", self._owner)
            )
            found["containerd_snapshots"] = len(await client.list_snapshots())
            found["containerd_leases"] = len(await client.list_leases())
            found["containerd_blobs"] = len(await client.list_content())
        finally:
            await client.close()
        return found

    def _on_host(self) -> dict[str, int]:
        parent = f"tickmesh-{self._owner}"
        cgroups = sum(
            len([path for path in _paths(hierarchy / parent) if path.is_dir()])
            for hierarchy in (CGROUPS, *_paths(CGROUPS))
        )
        ledger = sqlite3.connect(f"file:{self._directory}/ledger.db?mode=ro", uri=True)
        try:
            rows = {
                f"ledger_{table}": ledger.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("attempts", "outputs", "uploads")
            }
        finally:
            ledger.close()
        executor = self._local.executors[0].pid
        return {
            "mounts": _lines(f"/proc/{os.getpid()}/mountinfo"),
            "mounts_of_containerd": _lines(f"/proc/{self.containerd_pid}/mountinfo"),
            "cgroups": cgroups,
            "processes": len(self._own_processes()),
            "network_namespaces": len(set(_links(f"/proc/{executor}/fd", "net:["))),
            "network_links": sum(1 for _ in Path("/sys/class/net").glob("tm*")),
            **{f"descriptors_{n}": len(_listed(f"/proc/{p}/fd")) for n, p in self._pids()},
            **rows,
            "sandboxes": len(_listed(self._directory / "sandboxes")),
            "outputs": len(_listed(self._directory / "output")),
            "files_of_executor": _files(self._directory),
            "files_of_runtime": _files(Path(self._daemon.socket).parent),
            "scratch_files": _files(self._directory / "spool"),
        }

    def _pids(self) -> Iterable[tuple[str, int]]:
        return self.processes().items()

    def _own_processes(self) -> list[int]:
        """Those in the executor's cgroups, and those whose arguments name the mesh's files: the
        services, containerd, its shims, recorders."""
        marks = (str(self._local.directory), str(Path(self._daemon.socket).parent))
        own = []
        for name in _listed("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                arguments = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
                cgroup = Path(f"/proc/{name}/cgroup").read_text()
                if f"tickmesh-{self._owner}/" in cgroup or any(mark in arguments for mark in marks):
                    own.append(int(name))
        return own

    def memory_mib(self) -> dict[str, float]:
        """Resident, of each process."""
        page = os.sysconf("SC_PAGE_SIZE")
        return {
            name: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page / (1 << 20)
            for name, pid in self._pids()
        }


def _lines(path: str) -> int:
    return len(Path(path).read_text().splitlines())


def _paths(directory: str | Path) -> list[Path]:
    try:
        return list(Path(directory).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _listed(directory: str | Path) -> list[str]:
    return [path.name for path in _paths(directory)]


def _links(directory: str, prefix: str) -> Iterable[str]:
    for name in _listed(directory):
        with contextlib.suppress(OSError):
            target = str(Path(directory, name).readlink())
            if target.startswith(prefix):
                yield target


def _files(directory: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(directory))


class Soak:
    """The callers, and what is looked at meanwhile."""

    def __init__(self, api: Api, host: Host, jobs: tuple[str, str], count: int) -> None:
        self._api = api
        self._host = host
        self._jobs = jobs
        self._count = count
        self._begun = 0
        self.done = 0
        self.asked_again = 0
        self.samples: list[tuple[int, dict[str, float]]] = []

    async def run(self) -> None:
        """Execute them all."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._caller())

    async def _caller(self) -> None:
        step = max(1, self._count // SAMPLES)
        while self._begun < self._count:
            self._begun += 1
            job = self._jobs[self._begun % EGRESS_EVERY == 0]
            self.asked_again += await execute(self._api, job)
            self.done += 1
            if self.done % step == 0:
                self.samples.append((self.done, self._host.memory_mib()))
            if self.done % max(1, self._count // 10) == 0:
                sizes = {name: round(size) for name, size in self.samples[-1][1].items()}
                say(f"{self.done} executions; MiB: {json.dumps(sizes)}")

    def slopes(self) -> dict[str, float]:
        """MiB per 1,000 executions, by least squares over the second half."""
        late = [sample for sample in self.samples if sample[0] >= self._count // 2]
        return {
            name: round(_slope([(done / 1_000, sizes[name]) for done, sizes in late]), 3)
            for name in late[0][1]
        }


def _slope(points: list[tuple[float, float]]) -> float:
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


async def execute(api: Api, job: str) -> int:
    """One execution, to its end. Answers how often something had to be asked again: a leader may
    change meanwhile."""
    request = execution_pb2.ExecuteJobRequest(name=job, request_id=uuid.uuid4().hex)
    again = 0
    while True:
        try:
            made = await api.executions.ExecuteJob(request, timeout=CALL_DEADLINE_S)
            watch = api.executions.WatchExecutions(
                execution_pb2.WatchExecutionsRequest(parent=made.name),
                timeout=EXECUTION_DEADLINE_S,
            )
            async for message in watch:
                made = message.executions[-1] if message.executions else made
            break
        except grpc.aio.AioRpcError as error:
            again += 1
            if error.code() is not grpc.StatusCode.UNAVAILABLE or again > ASKED_AGAIN_MAX:
                raise
            await asyncio.sleep(0.1)
    if made.state != execution_pb2.EXECUTION_STATE_SUCCEEDED:
        raise SystemExit(f"{made.name} ended in state {made.state}: {made.message}")
    return again


async def settled(host: Host, before: dict[str, int]) -> tuple[dict[str, int], float]:
    """The host once it is as it was, or after SETTLE_S_MAX; and how long that took."""
    began = time.monotonic()
    while True:
        after = await host.counts()
        took = time.monotonic() - began
        if took > SETTLE_S_MAX or not difference(before, after):
            return after, took
        await asyncio.sleep(1.0)


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, list[int]]:
    """What is not as it was."""
    return {name: [before[name], after[name]] for name in before if after.get(name) != before[name]}


async def network_job(api: Api) -> str:
    """The stamp job, with a network."""
    job = job_pb2.Job(
        container=job_pb2.Container(image="stamp:1", network=job_pb2.NETWORK_EGRESS),
        resources=job_pb2.Resources(memory_bytes=64 << 20),
    )
    request = job_pb2.CreateJobRequest(parent=bed.CUSTOMER, job_id="egress", job=job)
    return (await api.jobs.CreateJob(request, timeout=CALL_DEADLINE_S)).name


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """See main.py for the arguments."""
    count = arguments.executions
    options = LocalOptions(
        replicas=arguments.replicas,
        executor=(("egress", Egress()), ("output_archived_s", 1)),
        archive=Archive(url="archive"),
    )
    load = os.getloadavg()
    async with bed.mesh(options, arguments.keep) as (local, api):
        host = Host(local)
        jobs = (await stamp_job(api), await network_job(api))
        warm = Soak(api, host, jobs, WARM_UP)
        await warm.run()
        nothing = {"sandboxes": 0, "outputs": 0, "ledger_uploads": 0}
        say(f"{WARM_UP} executions; waiting until nothing is left of them")
        await settled(host, nothing)
        before = await host.counts()
        memory_before = host.memory_mib()
        soak = Soak(api, host, jobs, count)
        began = time.monotonic()
        await soak.run()
        took = time.monotonic() - began
        say(f"{count} executions in {took:.0f} s; waiting until nothing is left of them")
        after, settle_s = await settled(host, before)
        memory_after = host.memory_mib()
        archived = _files(local.directory / "archive")
        cluster = await api.cluster.GetCluster(
            bed.cluster_pb2.GetClusterRequest(), timeout=CALL_DEADLINE_S
        )
        return {
            "benchmark": "soak",
            "executions": count,
            "executions_per_s": round(count / took, 1),
            "left_behind": difference(before, after),
            "asked_again": soak.asked_again,
            "settle_s": round(settle_s, 1),
            "archived": archived,
            "archived_expected": count + WARM_UP,
            "rss_slope_mib_per_1000": soak.slopes(),
            "rss_mib": {
                name: [round(memory_before[name], 1), round(memory_after[name], 1)]
                for name in memory_after
            },
            "rss_samples_mib": [
                [done, {name: round(size, 1) for name, size in sizes.items()}]
                for done, sizes in soak.samples[:: max(1, len(soak.samples) // 10)]
            ],
            "host": after,
            "replicas": arguments.replicas,
            "load": load,
            "machine": bed.machine(),
            "versions": bed.versions(cluster.executors[0].runtime),
        }
