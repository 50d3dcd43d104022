"""bench registered: a replica with millions of schedules on its disk, beside one with few.

The data is made by the state machine itself, entry by entry, as replication would; the process that
opens it is the real one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import bed
from bed import CALL_DEADLINE_S, Api, say, spread

from tickmesh.mesh.local import SHARD_ID, LocalMesh, LocalOptions
from tickmesh.proto.tickmesh.v1 import schedule_pb2
from tickmesh.scheduler.core import commands
from tickmesh.scheduler.core.model import JobSpec, Policy
from tickmesh.scheduler.core.recurrence import Spec
from tickmesh.scheduler.raft.journal import Journal, Position
from tickmesh.scheduler.raft.members import configured
from tickmesh.scheduler.raft.storage import RocksStorage
from tickmesh.scheduler.store.rocksdb import RocksBackend
from tickmesh.scheduler.store.state import State, encode_entry

SCHEDULES = 10_000_000
FEW = 10_000
JOBS = 1_000
ENTRY = 5_000
"""Schedules in one entry."""

TERM = 1
CALLS = 500
CALLED = ("create_ms", "preview_ms", "get_ms")
PREVIEWED = 10
SETTLE_S = 5.0
QUIET_SHARE = 0.1
QUIET_DEADLINE_S = 120.0
"""Compaction goes on after the filling, in whatever process opens what was filled: what calls cost
is measured once a replica uses less than a tenth of a core."""

REPLICA = f"{SHARD_ID}-0"


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both stand side by side, and the same calls go to one and the other in turn: whatever else
    the machine does is in both."""
    noise = await bed.noise()
    count = arguments.schedules or SCHEDULES
    with contextlib.ExitStack() as stack:
        scratch = arguments.keep or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="tickmesh-")
        )
        directories = {number: Path(scratch) / f"{number}" for number in (FEW, count)}
        results = {number: await _prepared(directories[number], number) for number in directories}
        async with contextlib.AsyncExitStack() as running:
            sides = []
            for number, directory in directories.items():
                local = LocalMesh(directory, LocalOptions(executors=0, runtime="inprocess"))
                began = time.perf_counter()
                await running.enter_async_context(local)
                results[number]["process_to_leader_s"] = round(time.perf_counter() - began, 3)
                sides.append((number, local, Api(local.address)))
            for _, local, _ in sides:
                await _quiet(local)
            for call in range(CALLS):
                for number, _, api in sides:
                    await _call(api, number, call, results[number])
            await asyncio.sleep(SETTLE_S)
            for number, local, api in sides:
                results[number]["rss_mib"] = bed.resident_mib(local)[REPLICA]
                results[number]["rss_anonymous_mib"] = _anonymous_mib(local.replicas[0].pid)
                results[number]["disk_mib"] = bed.disk_mib(local)[REPLICA]
                await api.channel.close()
    for result in results.values():
        result.update({name: spread(result[name]) for name in CALLED})
    few, many = results[FEW], results[count]
    return {
        "benchmark": "registered",
        "schedules": count,
        **many,
        "few": {"schedules": FEW, **few},
        "ratio": {name: round(many[name]["p50"] / few[name]["p50"], 2) for name in CALLED},
        "noise_ms": noise,
        "machine": bed.machine(),
        "versions": bed.versions("none"),
    }


async def _quiet(local: LocalMesh) -> None:
    """Return when the replica has nothing more to do, or at the deadline, and say so."""
    deadline = time.monotonic() + QUIET_DEADLINE_S
    while time.monotonic() < deadline:
        before = bed.cpu_s(local)[REPLICA]
        await asyncio.sleep(SETTLE_S)
        if bed.cpu_s(local)[REPLICA] - before < QUIET_SHARE * SETTLE_S:
            return
    say(f"it still compacts after {QUIET_DEADLINE_S:g} s")


async def _prepared(directory: Path, count: int) -> dict[str, Any]:
    """Store so many schedules. In a process of its own: what that needs of memory goes with it."""
    shutil.rmtree(directory, ignore_errors=True)
    replica = directory / REPLICA
    (replica / "raft").mkdir(parents=True)
    spawn = multiprocessing.get_context("spawn")
    filler = spawn.Process(target=_fill, args=(replica, count))
    began = time.perf_counter()
    filler.start()
    await asyncio.to_thread(filler.join)
    if filler.exitcode:
        raise SystemExit(f"filling {directory} failed")
    fill_s = time.perf_counter() - began
    with spawn.Pool(1) as opener:
        open_s = await asyncio.to_thread(opener.apply, _open, (replica,))
    say(f"{count:,} schedules stored in {fill_s:.0f} s, opened in {open_s:.2f} s")
    return {
        "open_s": round(open_s, 3),
        "fill_per_s": round(count / fill_s),
        **{name: [] for name in CALLED},
    }


def _fill(replica: Path, count: int) -> None:
    backend = RocksBackend(replica / "state")
    state = State(backend)
    now_ms = int(time.time() * 1_000)
    spec = JobSpec(
        "nothing:1", (), (), (), "", 64 << 20, 1_000, 64 << 20, 64, 3_600_000, 10_000, False
    )
    jobs = [
        commands.NewJob(f"job-{number}", os.urandom(10), "", (), spec) for number in range(JOBS)
    ]
    index = 2
    state.apply(index, TERM, encode_entry(now_ms, [commands.CreateJobs("bench", jobs, b"")]))
    policy = Policy()
    for start in range(0, count, ENTRY):
        numbers = range(start, min(count, start + ENTRY))
        job_id = f"job-{start // ENTRY % JOBS}"
        new = [
            commands.NewSchedule(
                f"schedule-{number:08d}",
                os.urandom(10),
                (),
                Spec(crons=(f"{number % 60} {number // 60 % 6} 1 1 *",)),
                policy,
                b"",
            )
            for number in numbers
        ]
        index += 1
        command = commands.CreateSchedules("bench", job_id, new, b"")
        outcome = state.apply(index, TERM, encode_entry(now_ms, [command])).outcomes[0]
        assert isinstance(outcome, list) and len(outcome) == len(new), outcome
    backend.flush()
    backend.flush_wal()
    backend.close()
    members = configured([REPLICA], {})
    storage = RocksStorage(replica / "raft" / "journal")
    journal = Journal(storage, SHARD_ID, REPLICA, members, bootstrap=True)
    journal.begin_install(Position(index, TERM))
    journal.end_install()
    journal.set_ballot(TERM, None)
    journal.write()
    journal.flush()
    journal.close()


def _open(replica: Path) -> float:
    began = time.perf_counter()
    backend = RocksBackend(replica / "state")
    State(backend)
    taken_s = time.perf_counter() - began
    backend.close()
    return taken_s


async def _call(api: Api, count: int, call: int, result: dict[str, Any]) -> None:
    """One of each, all over the jobs."""
    entry = call * 7 % max(1, count // ENTRY)
    job = f"customers/bench/jobs/job-{entry % JOBS}"
    spec = schedule_pb2.Recurrence(crons=[bed.NEVER_SOON])
    create = schedule_pb2.CreateScheduleRequest(
        parent=job, schedule=schedule_pb2.Schedule(recurrence=spec)
    )
    preview = schedule_pb2.PreviewScheduleRequest(
        parent=bed.CUSTOMER, recurrence=spec, count=PREVIEWED
    )
    get = schedule_pb2.GetScheduleRequest(
        name=f"{job}/schedules/schedule-{entry * ENTRY + call:08d}"
    )
    for name, method, request in (
        ("create_ms", api.schedules.CreateSchedule, create),
        ("preview_ms", api.schedules.PreviewSchedule, preview),
        ("get_ms", api.schedules.GetSchedule, get),
    ):
        began = time.perf_counter()
        await method(request, timeout=CALL_DEADLINE_S)
        result[name].append((time.perf_counter() - began) * 1_000)


def _anonymous_mib(pid: int) -> float:
    """Resident memory that is not a file's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0
