"""Real partitions: three replicas on hosts of their own, each with its own kernel's TCP, while
clients write and schedules fire.

The test makes the network and runs this very module inside it, from where all hosts can be reached.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
import msgspec
import pytest

from tickmesh.mesh import errors, tls
from tickmesh.mesh.config import Config, Peer, ShardMembers
from tickmesh.mesh.local import SHARD_ID, Child, LocalMesh, LocalOptions
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2, shard_pb2_grpc
from tickmesh.proto.tickmesh.v1 import cluster_pb2, schedule_pb2

from .namespaces import Namespaces, unavailable
from .test_operations import LATE_S_MAX, LOOK_S, SCHEDULES, TIMEOUT_S, Operator, Writer
from .test_raft_processes import CALL_TIMEOUT_S, applied, create, digest, get, result

pytestmark = pytest.mark.integration

REPLICAS = 3
PORT = 7301
WRITES = 25
PROCESS_S_MAX = 120.0
"""It usually takes less than half of that."""


class Hosts(LocalMesh):
    """A mesh whose replicas are on hosts of their own; all else is where this process is."""

    def __init__(self, directory: Path, network: Namespaces) -> None:
        self.network = network
        super().__init__(directory, LocalOptions(replicas=REPLICAS, runtime="inprocess"))

    def _configure(self) -> None:
        super()._configure()
        peers = [
            Peer(child.name, f"{self.network.address(host)}:{PORT}")
            for host, child in enumerate(self.replicas)
        ]
        shard = ShardMembers(SHARD_ID, tuple(peers))
        for host, child in enumerate(self.replicas):
            child.within = self.network.within(self.network.name(host))
            scheduler = child.settings.scheduler
            assert scheduler is not None
            child.configure(Config(scheduler=msgspec.structs.replace(scheduler, shard=shard)))
        for child in self.executors:
            executor = child.settings.executor
            assert executor is not None
            child.configure(Config(executor=msgspec.structs.replace(executor, shards=(shard,))))
        for child in self.gateways:
            gateway = child.settings.gateway
            assert gateway is not None
            child.configure(Config(gateway=msgspec.structs.replace(gateway, shards=(shard,))))
        assert self._authority is not None
        self.tls = self._authority.issue("gateway", "gateway-direct")


class Direct:
    """Speaks to one replica as a gateway does, whoever leads."""

    def __init__(self, mesh: Hosts, host: int) -> None:
        self.channel = grpc.aio.secure_channel(
            f"{mesh.network.address(host)}:{PORT}",
            tls.channel_credentials(mesh.tls),
            tls.CHANNEL_OPTIONS,
        )
        self.stub = shard_pb2_grpc.ShardServiceStub(self.channel)

    async def acknowledges(self, call: shard_pb2.Call) -> bool:
        """Whether the replica does what it is asked."""
        try:
            answer = await self.stub.Call(
                shard_pb2.CallRequest(calls=[call]), timeout=CALL_TIMEOUT_S * 2
            )
        except grpc.aio.AioRpcError:
            return False
        try:
            return not answer.not_leader and bool([result(reply) for reply in answer.replies])
        except (errors.Unavailable, errors.OutcomeUnknown):
            return False

    async def status(self) -> cluster_pb2.Replica:
        answer = await self.stub.GetStatus(shard_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
        return cluster_pb2.Replica.FromString(answer.replica)

    async def stands_down(self) -> None:
        """Waits until it does not lead."""
        while True:
            if not (await self.status()).leader:
                return
            await asyncio.sleep(LOOK_S)


class Scenario:
    """See the module."""

    def __init__(self, mesh: Hosts) -> None:
        self.mesh = mesh
        self.operator = Operator(mesh)
        self.writer = Writer(self.operator)
        self._numbers = itertools.count()
        self._acknowledged: list[str] = []

    def host(self, child: Child) -> int:
        return self.mesh.replicas.index(child)

    @contextmanager
    def cut(self, links: Iterable[tuple[int, int]]) -> Iterator[None]:
        """Nothing gets from the first of each pair to the second."""
        links, network = list(links), self.mesh.network
        for link in links:
            network.cut(*link)
        try:
            yield
        finally:
            for link in links:
                network.mend(*link)

    async def another_leader(self, old: Child) -> Child:
        while True:
            leader = await self.operator.leader()
            if leader is not old:
                return leader
            await asyncio.sleep(LOOK_S)

    async def minority(self, name: str, *, hears: bool, is_heard: bool) -> None:
        """The leader is cut off from the others, both ways or one; everybody else reaches all."""
        old = await self.operator.leader()
        host = self.host(old)
        others = [each for each in self.mesh.network.hosts if each != host]
        links = [] if is_heard else [(host, other) for other in others]
        links += [] if hears else [(other, host) for other in others]
        direct = Direct(self.mesh, host)
        before = f"before-{next(self._numbers)}"
        assert await direct.acknowledges(create(before, before))
        self._acknowledged.append(before)
        since_s = time.monotonic()
        with self.cut(links):
            # Whoever is asked first still leads; what it cannot commit it must not acknowledge.
            asked = [f"alone-{next(self._numbers)}" for _ in range(3)]
            told = await asyncio.gather(*(direct.acknowledges(create(a, a)) for a in asked))
            assert told == [False] * len(asked), "a minority acknowledges"
            await direct.stands_down()
            assert not await direct.acknowledges(create("later", "later"))
            assert not await direct.acknowledges(get(before)), "a minority answers a read"
            leader = await self.another_leader(old)
            await self.writer.more(WRITES)
            assert not (await direct.status()).leader
        await self.operator.converged()
        await self.writer.more(WRITES)
        print(f"{name}: {leader.name} took over, {self.writer.outage_s(since_s):.3f} s no write")
        await direct.channel.close()

    async def vanished(self) -> None:
        """The leader's host is gone, and closes no connection."""
        old = await self.operator.leader()
        host = self.host(old)
        since_s = time.monotonic()
        self.mesh.network.vanish(host)
        await self.another_leader(old)
        await self.writer.more(WRITES)
        self.mesh.network.appear(host)
        await self.operator.converged()
        await self.writer.more(WRITES)
        print(f"the leader's host is gone: {self.writer.outage_s(since_s):.3f} s no write")

    async def quiet(self) -> None:
        """Nothing changes any more, and all replicas have applied the same."""
        schedules = self.operator.schedules
        for number in range(SCHEDULES):
            request = schedule_pb2.DeleteScheduleRequest(
                name=f"customers/acme/jobs/tick/schedules/s{number}"
            )
            await schedules.DeleteSchedule(request, timeout=TIMEOUT_S)
        while True:
            replicas = (await self.operator.shard()).replicas
            if len({(each.applied_index, each.commit_index) for each in replicas}) == 1:
                return
            await asyncio.sleep(LOOK_S)

    async def run(self) -> None:
        operator, writer = self.operator, self.writer
        job = await operator.job()
        for number in range(SCHEDULES):
            await operator.schedule(job, f"s{number}")
        first_s = int(time.time()) + 3
        async with writer.running():
            await writer.more(WRITES)
            await self.minority("cut off both ways", hears=False, is_heard=False)
            await self.minority("not heard", hears=True, is_heard=False)
            await self.minority("hears nobody", hears=False, is_heard=True)
            await self.vanished()
        last_s = int(time.time()) - 1
        late_s = await operator.whole(job, first_s, last_s)
        print(f"{last_s - first_s} s of fires, the latest by {late_s:.3f} s")
        assert late_s < LATE_S_MAX
        assert await operator.job_names() == writer.written | {job}
        leader = Direct(self.mesh, self.host(await operator.leader()))
        for before in self._acknowledged:
            assert await leader.acknowledges(get(before)), "an acknowledged write is gone"
        await leader.channel.close()
        await self.quiet()
        await operator.channel.close()


async def main(directory: Path, prefix: str) -> None:
    mesh = Hosts(directory, Namespaces(prefix, REPLICAS))
    async with mesh:
        await Scenario(mesh).run()
    while len({applied(mesh.directory / child.name / "state") for child in mesh.replicas}) > 1:
        # A timer that was in memory still went off between the end of one and that of another.
        async with mesh:
            await Operator(mesh).converged()
    digests = {digest(mesh.directory / child.name / "state") for child in mesh.replicas}
    assert len(digests) == 1, "the replicas differ"


def test_partitions_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    prefix = f"tickmesh-{os.getpid()}"
    network = Namespaces(prefix, REPLICAS)
    with network.made():
        program = (sys.executable, "-m", __name__, str(tmp_path / "mesh"), prefix)
        done = subprocess.run(
            (*network.within(network.hub), *program),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PROCESS_S_MAX,
        )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
