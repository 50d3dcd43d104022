"""Real scheduler processes under load: killed, stopped, wiped. What was acknowledged must be there.

Each replica is `python -m tickmesh.scheduler` with its own RocksDB on disk and mutual TLS between
them; the clients speak to ShardService as a gateway does.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import grpc.aio
import msgspec
import pytest
from google.rpc import status_pb2

from tickmesh.mesh import errors, tls
from tickmesh.mesh.config import Config, Peer, SchedulerConfig, ShardMembers
from tickmesh.mesh.local import Child, free_ports
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2, shard_pb2_grpc
from tickmesh.proto.tickmesh.v1 import cluster_pb2, job_pb2
from tickmesh.scheduler.raft.journal import Journal
from tickmesh.scheduler.raft.members import configured
from tickmesh.scheduler.raft.storage import RocksStorage
from tickmesh.scheduler.store import keys
from tickmesh.scheduler.store.rocksdb import RocksBackend
from tickmesh.scheduler.store.state import State

pytestmark = pytest.mark.integration

GROUP = "shard-0"
CALL_TIMEOUT_S = 2.0
LOOK_S = 0.01
# A shared machine may pause any process for a while; the usual outage is about half a second.
OUTAGE_MAX_S = 5.0
BACKOFF = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.max_send_message_length", 32 << 20),
    ("grpc.max_receive_message_length", 32 << 20),
)


class Group:
    """Replica processes, and a client that speaks to each of them."""

    def __init__(self, directory: Path, size: int) -> None:
        authority = tls.DevelopmentAuthority(directory / "certificates")
        names = [f"{GROUP}-{number}" for number in range(size)]
        ports = free_ports(size)
        peers = [Peer(n, f"127.0.0.1:{p}") for n, p in zip(names, ports, strict=True)]
        credentials = tls.channel_credentials(authority.issue("gateway", "gateway-0"))
        self.directory = directory
        self.children: dict[str, Child] = {}
        self.channels: dict[str, grpc.aio.Channel] = {}
        self.stubs: dict[str, shard_pb2_grpc.ShardServiceAsyncStub] = {}
        self.likely = names[0]
        for peer in peers:
            settings = SchedulerConfig(
                replica_id=peer.replica_id,
                shard=ShardMembers(GROUP, tuple(peers)),
                data_directory=str(directory / peer.replica_id),
                tls=authority.issue("scheduler", peer.replica_id),
                bootstrap=True,
                ready_file=str(directory / "run" / f"{peer.replica_id}.ready"),
            )
            child = Child(peer.replica_id, "scheduler", directory, Config(scheduler=settings))
            channel = grpc.aio.secure_channel(
                peer.address, credentials, (*tls.CHANNEL_OPTIONS, *BACKOFF)
            )
            self.children[peer.replica_id] = child
            self.channels[peer.replica_id] = channel
            self.stubs[peer.replica_id] = shard_pb2_grpc.ShardServiceStub(channel)

    async def start(self, *names: str) -> None:
        """Start some or all, and let no later start of theirs be a first one."""
        chosen = [self.children[name] for name in names or self.children]
        for child in chosen:
            await child.spawn()
        for child in chosen:
            await child.serving()
            assert child.settings.scheduler is not None
            later = msgspec.structs.replace(child.settings.scheduler, bootstrap=False)
            child.configure(Config(scheduler=later))

    async def kill(self, *names: str) -> None:
        """SIGKILL, all at once."""
        for name in names:
            self.children[name].signal(signal.SIGKILL)
        for name in names:
            await self.children[name].kill()

    async def end(self) -> None:
        """SIGTERM; every process must end by itself, with exit code 0."""
        for child in self.children.values():
            child.signal(signal.SIGCONT)
        for child in self.children.values():
            await child.end()

    async def call(self, name: str, *calls: shard_pb2.Call) -> shard_pb2.CallResponse:
        """One message to one replica."""
        return await self.stubs[name].Call(
            shard_pb2.CallRequest(calls=calls), timeout=CALL_TIMEOUT_S, wait_for_ready=False
        )

    async def ask(self, *calls: shard_pb2.Call) -> list[bytes]:
        """The answers of whoever leads; repeated until there are some that are final."""
        while True:
            name = self.likely
            with suppress(grpc.RpcError):
                answer = await self.call(name, *calls)
                if answer.not_leader and answer.leader_id and answer.leader_id != name:
                    self.likely = answer.leader_id
                    continue
                if not answer.not_leader:
                    with suppress(errors.Unavailable):
                        return [result(reply) for reply in answer.replies]
            names = list(self.children)
            self.likely = names[(names.index(name) + 1) % len(names)]
            await asyncio.sleep(LOOK_S)

    async def leader(self) -> str:
        """Whoever answers a linearizable read."""
        await self.ask(get("nobody-has-this", missing_is_fine=True))
        return self.likely

    async def converged(self) -> None:
        """Waits until all replicas have applied the same."""
        while True:
            with suppress(grpc.RpcError):
                statuses = await asyncio.gather(
                    *(
                        stub.GetStatus(shard_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)
                        for stub in self.stubs.values()
                    )
                )
                replicas = [cluster_pb2.Replica.FromString(s.replica) for s in statuses]
                if len({replica.applied_index for replica in replicas}) == 1:
                    return
            await asyncio.sleep(LOOK_S)

    def digests(self) -> set[str]:
        """Of every byte of every replica's state, once they have ended."""
        return {digest(self.directory / name / "state") for name in self.children}

    def journal_base(self, name: str) -> int:
        """The first index that an ended replica's journal still knows."""
        storage = RocksStorage(self.directory / name / "raft" / "journal")
        try:
            return Journal(storage, GROUP, name, configured([name], {}), bootstrap=False).base.index
        finally:
            storage.close()


def applied(state: Path) -> int:
    """The last entry that a replica's state holds, once it has ended."""
    backend = RocksBackend(state)
    index, _ = State(backend).applied
    backend.close()
    return index


def digest(state: Path) -> str:
    """Of every byte of a replica's state, once it has ended."""
    backend = RocksBackend(state)
    found = hashlib.sha256()
    after_timers = bytes([keys.TIMERS[0] + 1])
    ranges = ((b"\x00", b"\xff" * 64), (keys.TIMERS, after_timers))
    for key, value in (pair for ends in ranges for pair in backend.scan(*ends)):
        found.update(b"%d %d " % (len(key), len(value)) + key + value)
    backend.close()
    return found.hexdigest()


def result(reply: shard_pb2.Reply) -> bytes:
    """The response, or the error raised."""
    if reply.status:
        raise errors.from_status(status_pb2.Status.FromString(reply.status))
    return reply.response


def create(job_id: str, request_id: str, args: tuple[str, ...] = ()) -> shard_pb2.Call:
    """CreateJob."""
    request = job_pb2.CreateJobRequest(
        parent="customers/load",
        job_id=job_id,
        job=job_pb2.Job(container=job_pb2.Container(image="image:1", args=args)),
        request_id=request_id,
    )
    return shard_pb2.Call(
        method="tickmesh.v1.JobService/CreateJob",
        request=request.SerializeToString(),
        timeout_ms=int(CALL_TIMEOUT_S * 1000),
    )


def get(job_id: str, *, missing_is_fine: bool = False) -> shard_pb2.Call:
    """GetJob, or a listing that is empty where it is missing."""
    if missing_is_fine:
        request = job_pb2.ListJobsRequest(parent=f"customers/{job_id}").SerializeToString()
        return shard_pb2.Call(method="tickmesh.v1.JobService/ListJobs", request=request)
    name = f"customers/load/jobs/{job_id}"
    return shard_pb2.Call(
        method="tickmesh.v1.JobService/GetJob",
        request=job_pb2.GetJobRequest(name=name).SerializeToString(),
        timeout_ms=int(CALL_TIMEOUT_S * 1000),
    )


class Load:
    """Writers that never give up; what they were told is kept, with when."""

    def __init__(self, group: Group, writers: int = 8) -> None:
        self._group = group
        self._writers = writers
        self._changed = asyncio.Event()
        self.acknowledged: dict[str, str] = {}  # job id: uid

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Writes until left; then every write under way is acknowledged too."""
        stop = asyncio.Event()
        writers = [asyncio.create_task(self._write(n, stop)) for n in range(self._writers)]
        try:
            yield self
        finally:
            stop.set()
            await asyncio.gather(*writers)

    async def _write(self, writer: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            job_id = f"job-{writer}-{len(self.acknowledged)}"
            (answer,) = await self._group.ask(create(job_id, request_id=f"r-{job_id}"))
            self.acknowledged[job_id] = job_pb2.Job.FromString(answer).uid
            self._changed.set()

    async def more(self, count: int) -> float:
        """Waits for so many further writes; seconds until the first of them."""
        begun_s, first_s = time.monotonic(), 0.0
        target = len(self.acknowledged) + count
        while len(self.acknowledged) < target:
            self._changed.clear()
            await self._changed.wait()
            first_s = first_s or time.monotonic() - begun_s
        return first_s

    async def verify(self) -> None:
        """Everything that was acknowledged is there, and is what was acknowledged."""
        wanted = list(self.acknowledged.items())
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            answers = await self._group.ask(*(get(job_id) for job_id, _ in part))
            for (_, uid), answer in zip(part, answers, strict=True):
                assert job_pb2.Job.FromString(answer).uid == uid


@asynccontextmanager
async def running(directory: Path, size: int) -> AsyncIterator[Group]:
    group = Group(directory, size)
    try:
        await group.start()
        yield group
    finally:
        for channel in group.channels.values():
            await channel.close()
        await group.end()


async def ended_in_order(group: Group) -> None:
    """Every replica ends when asked to, and all states are the same bytes."""
    await group.converged()
    await group.end()
    codes = [child.process and child.process.returncode for child in group.children.values()]
    assert set(codes) == {0}, codes
    assert len(group.digests()) == 1


async def test_sigkill_of_leaders_and_of_all_loses_no_write(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as group:
        outages = []
        load = Load(group)
        async with load.running():
            await load.more(100)
            for _ in range(3):
                victim = await group.leader()
                await group.kill(victim)
                outages.append(round(await load.more(100), 2))
                await group.start(victim)
            await group.kill(*group.children)
            await group.start()
            await load.more(100)
        assert max(outages) < OUTAGE_MAX_S, outages
        await load.verify()
        await ended_in_order(group)


async def test_a_wiped_replica_comes_back_by_a_snapshot(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as group:
        wiped, *others = group.children
        await group.kill(wiped)
        shutil.rmtree(tmp_path / wiped)
        args = ("x" * 32_000,) * 40
        for number in range(50):
            await group.ask(create(f"large-{number}", f"r{number}", args))
        # Nobody has the first entries any more, so that nothing but a snapshot can help.
        for number in range(10):
            await group.kill(*others)
            bases = [group.journal_base(name) for name in others]
            await group.start(*others)
            if min(bases) > 1:
                break
            await group.ask(create(f"more-{number}", f"more-{number}", args))
        assert min(bases) > 1
        await group.leader()
        await group.start(wiped)
        await group.converged()
        await group.ask(*(get(f"large-{number}") for number in range(3)))
        await ended_in_order(group)
        assert group.journal_base(wiped) > 1


async def test_a_leader_that_was_stopped_and_goes_on_answers_nothing_stale(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as group:
        await group.ask(create("before", "before"))
        old = await group.leader()
        group.children[old].signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        # It will find this in its socket at the moment in which it goes on and still means to lead.
        early = [asyncio.create_task(group.call(old, get("after"))) for _ in range(20)]
        group.likely = next(name for name in group.children if name != old)
        await group.ask(create("after", "after"))
        assert time.monotonic() - stopped_s < OUTAGE_MAX_S
        assert group.likely != old
        group.children[old].signal(signal.SIGCONT)
        answers = await asyncio.gather(*early, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                assert isinstance(answer, grpc.RpcError)
            elif not answer.not_leader:
                with suppress(errors.Unavailable):
                    assert result(answer.replies[0])
        await group.ask(get("after"))
        await ended_in_order(group)


async def test_one_replica_alone_survives_sigkill(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as group:
        load = Load(group)
        async with load.running():
            for _ in range(2):
                await load.more(50)
                await group.kill(*group.children)
                await group.start()
        await load.verify()
        await ended_in_order(group)
