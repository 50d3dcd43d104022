"""A mesh of real processes while its operators work on it: fires go on, and nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import pytest

from tickmesh.mesh import errors
from tickmesh.mesh.config import Config, ObjectStore, ShardMembers
from tickmesh.mesh.local import Child, LocalMesh, LocalOptions
from tickmesh.mesh.objects import Objects
from tickmesh.proto.tickmesh.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    execution_pb2,
    execution_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    schedule_pb2,
    schedule_pb2_grpc,
)

from ..stores import BUCKET, SECRET, S3Server

pytestmark = pytest.mark.integration

TIMEOUT_S = 20.0
LOOK_S = 0.02
SCHEDULES = 20
"""Each fires every second."""

REGISTERED = 100_000
"""Schedules that only lie there: enough that a wiped replica needs a checkpoint."""

WRITES = 25
OUTAGE_S_MAX = 2.0
"""A shared machine may pause any process; what it is usually is printed: below 0.1 s."""

LATE_S_MAX = 2.0

BATCH = 1_000


class Operator:
    """Somebody at the door of a mesh."""

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh
        self.channel = grpc.aio.insecure_channel(mesh.address)
        self.cluster: Any = cluster_pb2_grpc.ClusterServiceStub(self.channel)
        self.jobs: Any = job_pb2_grpc.JobServiceStub(self.channel)
        self.schedules: Any = schedule_pb2_grpc.ScheduleServiceStub(self.channel)
        self.executions: Any = execution_pb2_grpc.ExecutionServiceStub(self.channel)

    async def shard(self) -> cluster_pb2.Shard:
        """As the gateway sees it."""
        request = cluster_pb2.GetClusterRequest()
        cluster = await self.cluster.GetCluster(request, timeout=TIMEOUT_S)
        return cluster.shards[0]

    async def leader(self) -> Child:
        """The replica that leads, once there is one."""
        while True:
            for replica in (await self.shard()).replicas:
                if replica.leader:
                    return self.child(replica.replica_id)
            await asyncio.sleep(LOOK_S)

    def child(self, name: str) -> Child:
        return next(child for child in self.mesh.replicas if child.name == name)

    async def converged(self) -> None:
        """Waits until every replica answers, one leads and all hold what it has committed."""
        while True:
            replicas = (await self.shard()).replicas
            goal = max(replica.commit_index for replica in replicas)
            if any(replica.leader for replica in replicas):
                while any(replica.applied_index < goal for replica in replicas):
                    await asyncio.sleep(LOOK_S)
                    replicas = (await self.shard()).replicas
                return
            await asyncio.sleep(LOOK_S)

    async def job(self, job_id: str = "tick") -> str:
        request = job_pb2.CreateJobRequest(parent="customers/acme", job_id=job_id)
        request.job.container.image = "nothing:1"
        return str((await self.jobs.CreateJob(request, timeout=TIMEOUT_S)).name)

    async def job_names(self) -> set[str]:
        """Of every job."""
        found: set[str] = set()
        request = job_pb2.ListJobsRequest(parent="customers/acme", page_size=1_000)
        while True:
            page = await self.jobs.ListJobs(request, timeout=TIMEOUT_S)
            found |= {job.name for job in page.jobs}
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def schedule(self, job: str, schedule_id: str, cron: str = "* * * * * *") -> Any:
        request = schedule_pb2.CreateScheduleRequest(parent=job, schedule_id=schedule_id)
        request.schedule.recurrence.crons.append(cron)
        return await self.schedules.CreateSchedule(request, timeout=TIMEOUT_S)

    async def register(self, job: str, count: int) -> None:
        """So many schedules of a job, which fire at night."""
        for start in range(0, count, BATCH):
            request = schedule_pb2.BatchCreateSchedulesRequest(parent=job)
            for number in range(start, start + BATCH):
                one = request.schedules.add(schedule_id=f"n{number}")
                one.schedule.recurrence.crons.append("0 3 1 1 *")
            await self.schedules.BatchCreateSchedules(request, timeout=TIMEOUT_S)

    async def fired(self, job: str) -> list[execution_pb2.Execution]:
        """Every execution of a job."""
        found: list[execution_pb2.Execution] = []
        token = ""
        while True:
            request = execution_pb2.ListExecutionsRequest(
                parent=job, page_size=1_000, page_token=token
            )
            page = await self.executions.ListExecutions(request, timeout=TIMEOUT_S)
            found += page.executions
            token = page.next_page_token
            if not token:
                return found

    async def whole(self, job: str, first_s: int, last_s: int, count: int = SCHEDULES) -> float:
        """Waits for the last fires' starts, then checks that in each of these seconds every
        schedule has fired once, and started; the worst lateness."""
        while True:
            fired = [e for e in await self.fired(job) if first_s <= e.due_time.seconds <= last_s]
            done = (execution_pb2.EXECUTION_STATE_SUCCEEDED, execution_pb2.EXECUTION_STATE_FAILED)
            if len(fired) >= count * (last_s - first_s + 1) and all(e.state in done for e in fired):
                break
            await asyncio.sleep(LOOK_S)
        assert {e.state for e in fired} == {execution_pb2.EXECUTION_STATE_SUCCEEDED}
        times = Counter((e.schedule, e.due_time.seconds) for e in fired)
        assert set(times.values()) == {1}, "doubled"
        assert len(times) == count * (last_s - first_s + 1), "missed"
        assert not any(e.missed_fires for e in fired)
        return max(e.lateness.ToTimedelta().total_seconds() for e in fired)


class Writer:
    """Writes jobs one after the other, and keeps what was acknowledged and when."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.written: set[str] = set()
        self.finished_s: list[float] = []
        self.took_s: list[float] = []
        self._more = asyncio.Event()

    @asynccontextmanager
    async def running(self, writers: int = 4) -> AsyncIterator[Writer]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(writers):
                group.create_task(self._write(number, stop))
            try:
                yield self
            finally:
                stop.set()

    async def _write(self, writer: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            begun_s = time.monotonic()
            self.written.add(await self.operator.job(f"w{writer}-{len(self.finished_s)}"))
            self.finished_s.append(time.monotonic())
            self.took_s.append(self.finished_s[-1] - begun_s)
            self._more.set()

    async def more(self, count: int = WRITES) -> None:
        """Waits for so many further writes."""
        target = len(self.finished_s) + count
        while len(self.finished_s) < target:
            self._more.clear()
            await self._more.wait()

    def latency(self, first: int) -> str:
        """Of the writes from the first-th on."""
        took = sorted(self.took_s[first:])
        p50_ms, p99_ms = (took[int(len(took) * share)] * 1_000 for share in (0.5, 0.99))
        return f"{len(took)} writes, p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms"

    def outage_s(self, since_s: float) -> float:
        """The longest time without a finished write."""
        later = [since_s, *(at for at in self.finished_s if at >= since_s)]
        return max((after - before for before, after in pairwise(later)), default=0.0)


@asynccontextmanager
async def mesh_with_fires(directory: Path, **options: Any) -> AsyncIterator[tuple[Operator, str]]:
    """A mesh, its operator, and a job whose schedules all fire every second."""
    settings = LocalOptions(
        runtime="inprocess", **{"replicas": 3, "scheduler": (("arm_ahead_ms", 2_000),), **options}
    )
    async with LocalMesh(directory, settings) as mesh:
        operator = Operator(mesh)
        try:
            job = await operator.job()
            for number in range(SCHEDULES):
                await operator.schedule(job, f"s{number}")
            yield operator, job
        finally:
            await operator.channel.close()


async def refusal(call: Any) -> errors.TickmeshError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return errors.from_rpc_error(refused.value)


async def test_a_rolling_restart_fails_no_write_and_no_fire(tmp_path: Path) -> None:
    async with mesh_with_fires(tmp_path) as (operator, job):
        first_s = int(time.time()) + 3
        writer = Writer(operator)
        async with writer.running():
            await writer.more()
            for name in sorted(child.name for child in operator.mesh.replicas):
                child = operator.child(name)
                led = await operator.leader() is child
                since_s = time.monotonic()
                await child.end()
                assert child.process is not None and child.process.returncode == 0
                await writer.more()
                print(f"{name} ({'led' if led else 'followed'}): {writer.outage_s(since_s):.3f} s")
                await child.spawn()
                await child.serving()
                await operator.converged()
                assert writer.outage_s(since_s) < OUTAGE_S_MAX
        last_s = int(time.time())
        late_s = await operator.whole(job, first_s, last_s)
        print(f"{last_s - first_s} s of fires, the latest by {late_s:.3f} s")
        assert late_s < LATE_S_MAX
        assert await operator.job_names() == writer.written | {job}


async def test_leadership_goes_where_the_operator_wants_it(tmp_path: Path) -> None:
    async with mesh_with_fires(tmp_path) as (operator, _):
        writer = Writer(operator)
        async with writer.running():
            await writer.more()
            since_s = time.monotonic()
            for child in operator.mesh.replicas:
                await writer.more()
                request = cluster_pb2.TransferLeadershipRequest(
                    shard_id="shard-0", replica_id=child.name
                )
                answer = await operator.cluster.TransferLeadership(request, timeout=TIMEOUT_S)
                assert answer.leader_id == child.name
                assert await operator.leader() is child
            await writer.more()
            old = await operator.leader()
            request = cluster_pb2.TransferLeadershipRequest(shard_id="shard-0")
            answer = await operator.cluster.TransferLeadership(request, timeout=TIMEOUT_S)
            assert answer.leader_id not in ("", old.name)
            await writer.more()
            print(f"no write for {writer.outage_s(since_s):.3f} s at most")
        assert writer.outage_s(since_s) < OUTAGE_S_MAX
        for shard_id, replica_id in (("shard-7", ""), ("shard-0", "nobody")):
            request = cluster_pb2.TransferLeadershipRequest(
                shard_id=shard_id, replica_id=replica_id
            )
            call = operator.cluster.TransferLeadership(request, timeout=TIMEOUT_S)
            error = await refusal(call)
            assert isinstance(error, errors.NotFound)
            assert "there are: shard-0" in error.message
        leader = await operator.leader()
        for child in operator.mesh.replicas:
            if child is not leader:
                await child.kill()
        request = cluster_pb2.TransferLeadershipRequest(shard_id="shard-0")
        call = operator.cluster.TransferLeadership(request, timeout=3)
        # Unavailable: it has noticed already that it is alone.
        assert isinstance(await refusal(call), errors.FailedPrecondition | errors.Unavailable)


async def restored(
    child: Child, target: Path, directory: str, *more: tuple[str, Any]
) -> tuple[int, str]:
    """Make a replica's data in another mesh from a backup: exit code and what was said."""
    assert child.settings.scheduler is not None
    settings = msgspec.structs.replace(
        child.settings.scheduler, data_directory=str(target / child.name), **dict(more)
    )
    config = target / f"restore-{child.name}.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    set_keys = {k: v for k, v in msgspec.to_builtins(settings).items() if v is not None}
    config.write_bytes(msgspec.toml.encode({"scheduler": set_keys}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tickmesh.scheduler", "--config", config, "--restore", directory),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


def flip_a_byte(directory: Path) -> Path:
    """Of one of a backup's files: which."""
    victim = next(path for path in directory.iterdir() if path.suffix == ".sst")
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    victim.write_bytes(damaged)
    return victim


async def test_a_backup_under_load_becomes_another_mesh(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    options = {"scheduler": (("backup_directory", str(backups)),)}
    request = cluster_pb2.BackupShardRequest(shard_id="shard-0", directory="monday")
    async with mesh_with_fires(tmp_path / "old", **options) as (operator, job):
        writer = Writer(operator)
        first_s = int(time.time()) + 3
        async with writer.running():
            await writer.more()
            while time.time() < first_s + 3:
                await writer.more()
            before, begun_s = set(writer.written), time.monotonic()
            # Asked twice at once, it is made once.
            made, same = await asyncio.gather(
                *(operator.cluster.BackupShard(request, timeout=TIMEOUT_S) for _ in range(2))
            )
            took_s = time.monotonic() - begun_s
            await writer.more()
            print(
                f"backup of {made.size_bytes:,} bytes in {made.file_count} files took"
                f" {took_s:.3f} s; no write for {writer.outage_s(begun_s):.3f} s at most"
            )
        assert made == same
        assert made.path == str(backups / "monday")
        assert made.replica_id == (await operator.leader()).name
        error = await refusal(operator.cluster.BackupShard(request, timeout=TIMEOUT_S))
        assert isinstance(error, errors.AlreadyExists)
        # What had ended before the backup is in it.
        old = {e.name: e for e in await operator.fired(job) if e.due_time.seconds < first_s}
        replicas = list(operator.mesh.replicas)

    new = tmp_path / "new"
    group = ("group_id", "from-monday")
    code, said = await restored(replicas[0], new, made.path)
    assert code == 1
    assert "set scheduler.group_id" in said
    for child in replicas:
        code, said = await restored(child, new, made.path, group)
        assert code == 0, said
    code, said = await restored(replicas[0], new, made.path, group)
    assert code == 1
    assert "overwrites no data" in said
    victim = flip_a_byte(Path(made.path))
    code, said = await restored(replicas[0], tmp_path / "other", made.path, group)
    assert code == 1
    assert str(victim) in said
    assert "damaged" in said

    shape = LocalOptions(replicas=3, runtime="inprocess", scheduler=(group,))
    async with LocalMesh(new, shape) as mesh:
        operator = Operator(mesh)
        since_s = int(time.time()) + 4
        found = await operator.job_names()
        assert before <= found
        kept = {e.name: e for e in await operator.fired(job)}
        assert all(kept[name] == execution for name, execution in old.items())
        assert len(old) >= SCHEDULES
        while time.time() < since_s + 3:
            await operator.job(f"new-{time.monotonic_ns()}")
        await operator.whole(job, since_s, since_s + 1)
        # Nobody has a place to put backups here.
        error = await refusal(operator.cluster.BackupShard(request, timeout=TIMEOUT_S))
        assert isinstance(error, errors.FailedPrecondition)
        assert "backup_directory" in error.message
        await operator.channel.close()


async def test_a_replica_with_a_new_disk_takes_the_old_one_s_place(tmp_path: Path) -> None:
    async with mesh_with_fires(tmp_path) as (operator, job):
        await operator.register(await operator.job("many"), REGISTERED)
        leader = await operator.leader()
        replaced, other = (child for child in operator.mesh.replicas if child is not leader)
        first_s = int(time.time()) + 3
        writer = Writer(operator)
        async with writer.running():
            await writer.more(100)
            print(f"before: {writer.latency(0)}")
            await replaced.kill()
            shutil.rmtree(tmp_path / replaced.name)
            # A replica whose disk is new must not vote, whatever its configuration was made with.
            assert replaced.settings.scheduler is not None
            assert not replaced.settings.scheduler.bootstrap
            count, begun_s = len(writer.took_s), time.monotonic()
            await replaced.spawn()
            await replaced.serving()
            await operator.converged()
            # Two lists: it was made a learner, and a voter again.
            while (await operator.shard()).members_number < 2:  # noqa: ASYNC110  # it is asked
                await asyncio.sleep(LOOK_S)
            print(f"back after {time.monotonic() - begun_s:.2f} s: {writer.latency(count)}")
            assert await operator.leader() is leader
            # It counts again: without it there would be no majority now.
            await other.kill()
            await writer.more()
            await other.spawn()
            await other.serving()
        late_s = await operator.whole(job, first_s, int(time.time()))
        print(f"the latest fire by {late_s:.3f} s")
        assert late_s < LATE_S_MAX
        await operator.converged()
        replicas = (await operator.shard()).replicas
        assert {r.schedule_count for r in replicas} == {REGISTERED + SCHEDULES}


async def test_a_replica_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    options = LocalOptions(runtime="inprocess", executors=0)
    async with LocalMesh(tmp_path / "a", options) as mesh:
        (child,) = mesh.replicas
        operator = Operator(mesh)
        await operator.job()
        await operator.channel.close()
    settings = child.settings.scheduler
    assert settings is not None
    data = Path(settings.data_directory)
    (peer,) = settings.shard.replicas
    stranger = msgspec.structs.replace(peer, replica_id="shard-1-0")
    for wrong, says in (
        ({"shard": ShardMembers("shard-1", (peer,))}, "of group 'shard-0', not to"),
        ({"group_id": "another"}, "of group 'shard-0', not to"),
        (
            {"shard": ShardMembers("shard-0", (stranger,)), "replica_id": "shard-1-0"},
            "belongs to replica 'shard-0-0'",
        ),
    ):
        before = child.log.read_text()
        changed = msgspec.structs.replace(settings, **wrong)
        child.configure(Config(scheduler=changed))
        await child.spawn()
        assert child.process is not None
        assert await asyncio.wait_for(child.process.wait(), TIMEOUT_S) == 2
        said = child.log.read_text()[len(before) :]
        assert says in said
        assert "check the configured directory" in said
        assert "Traceback" not in said
    # A state under a journal that is not its own.
    shutil.rmtree(data / "raft")
    child.configure(Config(scheduler=settings))
    await child.spawn()
    assert await asyncio.wait_for(child.process.wait(), TIMEOUT_S) == 1
    assert "do not belong together" in child.log.read_text()


async def test_the_leader_tells_what_it_knows_of_clocks(tmp_path: Path) -> None:
    async with mesh_with_fires(tmp_path) as (operator, _):
        while True:
            request = cluster_pb2.GetClusterRequest()
            cluster = await operator.cluster.GetCluster(request, timeout=TIMEOUT_S)
            (executor,) = cluster.executors
            if executor.clock_uncertainty_ns:
                break
            await asyncio.sleep(LOOK_S)
        # All on one host: the truth is 0.
        assert abs(executor.clock_offset_ns) <= executor.clock_uncertainty_ns < 1_000_000_000
        (leader,) = [replica for replica in cluster.shards[0].replicas if replica.leader]
        others = {child.name for child in operator.mesh.replicas} - {leader.replica_id}
        assert {clock.replica_id for clock in leader.peer_clocks} == others
        for clock in leader.peer_clocks:
            assert abs(clock.offset_ns) <= clock.uncertainty_ns < 1_000_000_000
        assert not any(r.clock_fault or r.clock_step_count for r in cluster.shards[0].replicas)


async def test_a_backup_goes_to_an_s3_compatible_store_and_comes_from_it(tmp_path: Path) -> None:
    server = S3Server(tmp_path)
    store = ObjectStore(f"s3://{BUCKET}/shards", server.address, "eu-central-1", "tests", SECRET)
    options = LocalOptions(runtime="inprocess", scheduler=(("backup_store", store),))
    where = f"s3://{BUCKET}/shards/monday"
    request = cluster_pb2.BackupShardRequest(shard_id="shard-0", directory="monday")
    group = ("group_id", "again")
    try:
        async with LocalMesh(tmp_path / "old", options) as mesh:
            operator = Operator(mesh)
            job = job_pb2.CreateJobRequest(parent="customers/acme", job_id="kept")
            job.job.container.image = "words:1"
            await operator.jobs.CreateJob(job, timeout=TIMEOUT_S)
            error = await refusal(operator.cluster.BackupShard(request, timeout=90))
            assert isinstance(error, errors.FailedPrecondition)
            assert where in error.message and SECRET not in error.message
            await server.start()
            made = await operator.cluster.BackupShard(request, timeout=90)
            assert (made.path, made.replica_id) == (where, "shard-0-0")
            error = await refusal(operator.cluster.BackupShard(request, timeout=TIMEOUT_S))
            assert isinstance(error, errors.AlreadyExists)
            (child,) = mesh.replicas
            await operator.channel.close()
        code, said = await restored(child, tmp_path / "new", where, group)
        assert (code, f"{made.file_count} files" in said) == (0, True), said
        again = tmp_path / "again"
        code, said = await restored(child, again, f"{where}-not", group)
        assert code == 1 and "Is it a backup?" in said
        objects = Objects(store, "tests")
        stored = [key async for keys in objects.keys("monday") for key in keys]
        victim = next(key for key in stored if key.endswith(".sst"))
        data = await objects.get(victim, 1 << 30)
        assert data is not None
        await objects.put(victim, data[:-1] + bytes([data[-1] ^ 1]))
        code, said = await restored(child, again, where, group)
        assert code == 1 and f"s3://{BUCKET}/shards/{victim} is damaged" in said
        server.stop()
        code, said = await restored(child, again, where, group)
        assert code == 1 and "cannot be read" in said and SECRET not in said
        assert not list((again / child.name).glob("*"))
        assert SECRET not in child.log.read_text()
    finally:
        server.stop()
