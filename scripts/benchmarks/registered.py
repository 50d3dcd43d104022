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
from tickmesh.scheduler.raft.storage import RocksStorage
from tickmesh.scheduler.store.rocksdb import RocksBackend
from tickmesh.scheduler.store.state import State, encode_entry

SCHEDULES = 1_000_000
FEW = 10_000
JOBS = 1_000
ENTRY = 5_000
"""Schedules in one entry."""

TERM = 1
RETENTION_MS = 7 * 24 * 3_600_000
CALLS = 300
SETTLE_S = 5.0
REPLICA = f"{SHARD_ID}-0"


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """First the few, then the many: the same calls of each."""
    noise = await bed.noise()
    count = arguments.schedules or SCHEDULES
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="tickmesh-"))
        few = await _measured(Path(arguments.keep or scratch) / "few", FEW)
        many = await _measured(Path(arguments.keep or scratch) / "many", count)
    return {
        "benchmark": "registered",
        "schedules": count,
        **many,
        "few": {"schedules": FEW, **few},
        "ratio": {
            name: round(many[name]["p50"] / few[name]["p50"], 2)
            for name in ("create_ms", "preview_ms", "get_ms")
        },
        "noise_ms": noise,
        "machine": bed.machine(),
        "versions": bed.versions("none"),
    }


async def _measured(directory: Path, count: int) -> dict[str, Any]:
    shutil.rmtree(directory, ignore_errors=True)
    replica = directory / REPLICA
    (replica / "raft").mkdir(parents=True)
    # In a process of its own: what it needs of memory is nobody's afterwards.
    filler = multiprocessing.get_context("spawn").Process(target=_fill, args=(replica, count))
    began = time.perf_counter()
    filler.start()
    await asyncio.to_thread(filler.join)
    if filler.exitcode:
        raise SystemExit(f"filling {directory} failed")
    fill_s = time.perf_counter() - began
    say(f"{count:,} schedules stored in {fill_s:.0f} s")
    opener = multiprocessing.get_context("spawn").Pool(1)
    with opener:
        open_s = await asyncio.to_thread(opener.apply, _open, (replica,))
    options = LocalOptions(replicas=1, executors=0, runtime="inprocess")
    local = LocalMesh(directory, options)
    began = time.perf_counter()
    async with local:
        ready_s = time.perf_counter() - began
        say(f"open in {open_s:.2f} s; the mesh is whole after {ready_s:.1f} s")
        api = Api(local.address)
        measured = {
            "open_s": round(open_s, 3),
            "process_to_leader_s": round(ready_s, 3),
            **await _calls(api, count),
        }
        await asyncio.sleep(SETTLE_S)
        measured["rss_mib"] = bed.resident_mib(local)[REPLICA]
        measured["rss_anonymous_mib"] = _anonymous_mib(local.replicas[0].pid)
        measured["disk_mib"] = bed.disk_mib(local)[REPLICA]
        measured["fill_per_s"] = round(count / fill_s)
        await api.channel.close()
    say(f"{measured}")
    return measured


def _fill(replica: Path, count: int) -> None:
    backend = RocksBackend(replica / "state")
    state = State(backend, RETENTION_MS)
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
        # A day's fires, spread: none of the first hours, so that nothing fires while we measure.
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
    journal = Journal(RocksStorage(replica / "raft" / "journal"), SHARD_ID, REPLICA, bootstrap=True)
    journal.begin_install(Position(index, TERM))
    journal.end_install()
    journal.set_ballot(TERM, None)
    journal.write()
    journal.flush()
    journal.close()


def _open(replica: Path) -> float:
    began = time.perf_counter()
    backend = RocksBackend(replica / "state")
    State(backend, RETENTION_MS)
    taken_s = time.perf_counter() - began
    backend.close()
    return taken_s


async def _calls(api: Api, count: int) -> dict[str, Any]:
    """One after the other, all over the jobs."""
    create, preview, get = [], [], []
    spec = schedule_pb2.Recurrence(crons=["30 4 1 1 *"])
    last = max(1, count // ENTRY)
    for number in range(CALLS):
        entry = number * 7 % last
        job = f"customers/bench/jobs/job-{entry % JOBS}"
        began = time.perf_counter()
        await api.schedules.CreateSchedule(
            schedule_pb2.CreateScheduleRequest(
                parent=job, schedule=schedule_pb2.Schedule(recurrence=spec)
            ),
            timeout=CALL_DEADLINE_S,
        )
        create.append((time.perf_counter() - began) * 1_000)
        began = time.perf_counter()
        await api.schedules.PreviewSchedule(
            schedule_pb2.PreviewScheduleRequest(
                parent="customers/bench", recurrence=spec, count=10
            ),
            timeout=CALL_DEADLINE_S,
        )
        preview.append((time.perf_counter() - began) * 1_000)
        name = f"{job}/schedules/schedule-{entry * ENTRY + number:08d}"
        began = time.perf_counter()
        await api.schedules.GetSchedule(
            schedule_pb2.GetScheduleRequest(name=name), timeout=CALL_DEADLINE_S
        )
        get.append((time.perf_counter() - began) * 1_000)
    return {
        "create_ms": spread(create),
        "preview_ms": spread(preview),
        "get_ms": spread(get),
    }


def _anonymous_mib(pid: int) -> float:
    """Resident memory that is not a file's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0
