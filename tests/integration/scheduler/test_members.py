"""Replicas of a shard come and go, as real processes, while its fires and writes go on."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc.aio
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tickmesh.mesh import errors
from tickmesh.mesh.config import REMOVED, Config, ShardMembers
from tickmesh.mesh.local import Child
from tickmesh.mesh.tls import CHANNEL_OPTIONS, channel_credentials
from tickmesh.proto.tickmesh.v1 import cluster_pb2, execution_pb2

from .test_operations import (
    LATE_S_MAX,
    LOOK_S,
    OUTAGE_S_MAX,
    TIMEOUT_S,
    Operator,
    Writer,
    mesh_with_fires,
    refusal,
)

pytestmark = pytest.mark.integration

ENDS_S = 60.0
DISKS = ("raft", "state")
"""What a replica stores, in its data directory."""


def address_of(child: Child) -> str:
    settings = child.settings.scheduler
    assert settings is not None
    return next(p.address for p in settings.shard.replicas if p.replica_id == settings.replica_id)


def add(operator: Operator, address: str, shard_id: str = "shard-0") -> Any:
    request = cluster_pb2.AddReplicaRequest(shard_id=shard_id, address=address)
    return operator.cluster.AddReplica(request, timeout=TIMEOUT_S)


def remove(operator: Operator, replica_id: str, shard_id: str = "shard-0") -> Any:
    request = cluster_pb2.RemoveReplicaRequest(shard_id=shard_id, replica_id=replica_id)
    return operator.cluster.RemoveReplica(request, timeout=TIMEOUT_S)


async def voters(operator: Operator, *names: str) -> None:
    """Waits until exactly these vote, and all of them answer."""
    while True:
        replicas = (await operator.shard()).replicas
        if all(each.reachable and not each.learner for each in replicas) and {
            each.replica_id for each in replicas
        } == set(names):
            return
        await asyncio.sleep(LOOK_S)


async def further(operator: Operator, name: str) -> Child:
    """A process that serves, without data, and is no member."""
    child = operator.mesh.further_replica(name)
    await child.spawn()
    await child.serving()
    return child


async def ends_by_itself(child: Child) -> None:
    """It was removed: exit code 0, and it says why."""
    assert child.process is not None
    async with asyncio.timeout(ENDS_S):
        await child.process.wait()
    assert child.process.returncode == 0, child.last_words()
    assert "removed from its shard" in child.log.read_text()


async def voter_health(operator: Operator, child: Child) -> int:
    """What a replica says of itself by grpc.health.v1."""
    authority = operator.mesh._authority
    assert authority is not None
    credentials = channel_credentials(authority.issue("gateway", "gateway-health"))
    address = address_of(child)
    async with grpc.aio.secure_channel(address, credentials, CHANNEL_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="voter")
        return int((await stub.Check(request, timeout=TIMEOUT_S)).status)


async def says(child: Child, *texts: str) -> None:
    """Waits until its log has all of these."""
    while True:
        log = await asyncio.to_thread(child.log.read_text)
        if all(text in log for text in texts):
            return
        await asyncio.sleep(LOOK_S)


async def fires_after(operator: Operator, job: str, since_s: int) -> None:
    """Waits for a fire that was due later than that, and ran."""
    while True:
        for each in await operator.fired(job):
            succeeded = each.state == execution_pb2.EXECUTION_STATE_SUCCEEDED
            if succeeded and each.due_time.seconds >= since_s:
                return
        await asyncio.sleep(LOOK_S)


async def told(replica: Path) -> None:
    """Waits until the replica of this directory has heard that it was removed."""
    while True:
        if await asyncio.to_thread((replica / REMOVED).exists):
            return
        await asyncio.sleep(LOOK_S)


async def command(operator: Operator, *arguments: str) -> tuple[int, str, str]:
    """`tickmesh cluster ...`: exit code, output, errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tickmesh", "--address", operator.mesh.address),
        *("cluster", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_replicas_are_added_removed_and_replaced_while_fires_go_on(tmp_path: Path) -> None:
    async with mesh_with_fires(tmp_path) as (operator, job):
        writer = Writer(operator)
        first_s = int(time.time()) + 3
        async with writer.running():
            await writer.more()
            since_s = time.monotonic()
            # A fourth one, by the command line.
            fourth = await further(operator, "shard-0-3")
            code, out, err = await command(
                operator, "add-replica", address_of(fourth), "-o", "json"
            )
            assert code == 0, err
            shown = json.loads(out)
            assert {r["replica_id"]: r["learner"] for r in shown["replicas"]}["shard-0-3"] is False
            await voters(operator, "shard-0-0", "shard-0-1", "shard-0-2", "shard-0-3")
            await writer.more()
            # The leader goes.
            leader = await operator.leader()
            code, out, err = await command(operator, "remove-replica", leader.name)
            assert code == 0, err
            assert f"{leader.name} is no replica of shard-0 any more" in out
            await ends_by_itself(leader)
            left = {f"shard-0-{n}" for n in range(4)} - {leader.name}
            await voters(operator, *left)
            await writer.more()
            # It is of no use any more, and says so again.
            await leader.spawn()
            await ends_by_itself(leader)
            # One of those that are left is replaced, by one with another name.
            old = next(child for child in operator.mesh.replicas if child.name in left)
            await old.kill()
            fifth = await further(operator, "shard-0-4")
            await add(operator, address_of(fifth))
            while True:
                replicas = {r.replica_id: r for r in (await operator.shard()).replicas}
                if replicas["shard-0-4"].reachable and not replicas["shard-0-4"].learner:
                    break
                await asyncio.sleep(LOOK_S)
            answer = await remove(operator, old.name)
            left = (left | {"shard-0-4"}) - {old.name}
            assert {each.replica_id for each in answer.replicas} == left
            assert answer.members_number == 6
            await voters(operator, *left)
            await writer.more()
            print(f"no write for {writer.outage_s(since_s):.3f} s at most")
            # Who was away when it was removed is told when it comes back.
            await old.spawn()
            await ends_by_itself(old)
        last_s = int(time.time())
        late_s = await operator.whole(job, first_s, last_s)
        print(f"{last_s - first_s} s of fires, the latest by {late_s:.3f} s")
        assert late_s < LATE_S_MAX
        assert writer.outage_s(since_s) < OUTAGE_S_MAX
        assert await operator.job_names() == writer.written | {job}
        # Only the list says where they are: all that was configured first may be gone.
        first = operator.child("shard-0-4")
        answer = await operator.cluster.TransferLeadership(
            cluster_pb2.TransferLeadershipRequest(shard_id="shard-0", replica_id=first.name),
            timeout=TIMEOUT_S,
        )
        assert answer.leader_id == first.name
        await writer.operator.job("after")


async def test_a_change_that_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with mesh_with_fires(tmp_path) as (operator, _):
        mesh = operator.mesh
        names = [child.name for child in mesh.replicas]
        await operator.converged()

        async def refused(call: Any, kind: type[errors.TickmeshError], *texts: str) -> None:
            error = await refusal(call)
            assert isinstance(error, kind), error
            for text in texts:
                assert text in error.message, error.message
            shard = await operator.shard()
            assert [each.replica_id for each in shard.replicas] == names
            assert shard.members_number == 0

        own = address_of(mesh.replicas[1])
        again = await add(operator, own)
        assert (again.members_number, [each.replica_id for each in again.replicas]) == (0, names)
        await refused(add(operator, "127.0.0.1:1"), errors.FailedPrecondition, "no replica answers")
        await refused(add(operator, "", "shard-0"), errors.InvalidRequest, "address")
        await refused(add(operator, own, "shard-7"), errors.NotFound, "there are: shard-0")
        await refused(remove(operator, "nobody"), errors.NotFound, "there are: shard-0-0")
        await refused(remove(operator, names[0]), errors.FailedPrecondition, "2 voters", "add")

        # One with data, of this shard; and one of another group.
        told = mesh.further_replica("shard-0-3")
        assert told.settings.scheduler is not None
        voting = msgspec.structs.replace(told.settings.scheduler, bootstrap=True)
        told.configure(Config(scheduler=voting))
        await told.spawn()
        await told.serving()
        await refused(
            add(operator, address_of(told)), errors.FailedPrecondition, "shard-0-3", "has data"
        )
        await told.end()
        shutil.rmtree(voting.data_directory)
        strange = msgspec.structs.replace(voting, bootstrap=False, group_id="shard-9")
        told.configure(Config(scheduler=strange))
        await told.spawn()
        await told.serving()
        await refused(add(operator, address_of(told)), errors.FailedPrecondition, "'shard-9'")
        await told.end()
        # Who says that it is somebody who is in the list.
        double = msgspec.structs.replace(
            strange,
            replica_id=names[2],
            group_id="",
            shard=ShardMembers(
                "shard-0",
                tuple(
                    msgspec.structs.replace(peer, address=address_of(told))
                    if peer.replica_id == names[2]
                    else peer
                    for peer in strange.shard.replicas
                    if peer.replica_id != told.name
                ),
            ),
            tls=operator.child(names[2]).settings.scheduler.tls,  # type: ignore[union-attr]
            data_directory=f"{strange.data_directory}-double",
        )
        told.configure(Config(scheduler=double))
        await told.spawn()
        await told.serving()
        await refused(add(operator, address_of(told)), errors.AlreadyExists, names[2])
        await told.end()

        # A second change while one is under way: a learner that cannot catch up.
        clean = msgspec.structs.replace(
            strange, group_id="", data_directory=f"{strange.data_directory}-clean"
        )
        told.configure(Config(scheduler=clean))
        await told.spawn()
        await told.serving()
        added = await add(operator, address_of(told))
        assert added.members_number == 1
        await told.kill()
        error = await refusal(remove(operator, names[0]))
        assert isinstance(error, errors.FailedPrecondition)
        assert "one change at a time" in error.message
        code, _, err = await command(
            operator, "add-replica", address_of(told), "--shard", "shard-0"
        )
        assert code == 4, err
        # It is given up.
        code, out, err = await command(operator, "remove-replica", "shard-0-3", "-o", "json")
        assert code == 0, err
        assert [each["replica_id"] for each in json.loads(out)["replicas"]] == names
        assert (await operator.shard()).members_number == 2


async def test_a_mesh_whose_replicas_changed_starts_again(tmp_path: Path) -> None:
    """As `tickmesh dev` starts it, in the directory where another replica took a first one's place;
    and a further one was removed while it was away."""
    directory = tmp_path / ".tickmesh"
    async with mesh_with_fires(directory) as (operator, job):
        for name in ("shard-0-3", "shard-0-4"):
            await add(operator, address_of(await further(operator, name)))
            await voters(operator, *(child.name for child in operator.mesh.replicas))
        first = operator.child("shard-0-0")
        answer = await remove(operator, first.name)
        await ends_by_itself(first)
        away = operator.child("shard-0-4")
        await away.kill()
        answer = await remove(operator, away.name)
        left = sorted(each.replica_id for each in answer.replicas)
        assert left == ["shard-0-1", "shard-0-2", "shard-0-3"]
        await operator.job("before")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tickmesh", "dev", "--replicas", "3", "--runtime", "inprocess"),
        *("--port", "0", "--data", str(directory)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        banner = (await process.stdout.readline()).decode()
        found = re.search(r"serves at ([0-9.:]+): ", banner)
        assert found is not None, (banner, await process.communicate())
        since_s = int(time.time()) + 1
        again = Operator(SimpleNamespace(address=found[1]))  # type: ignore[arg-type]
        await voters(again, *left)
        assert {"customers/acme/jobs/before", job} <= await again.job_names()
        await again.job("after")
        await fires_after(again, job, since_s)
        await again.channel.close()
        # The one that was away has been told, and is no part of the mesh any more.
        await told(directory / away.name)
    finally:
        process.terminate()
        said = await process.communicate()
    assert process.returncode == 0, said


async def test_an_addition_that_was_lost_is_made_again(tmp_path: Path) -> None:
    async with mesh_with_fires(tmp_path) as (operator, job):
        joiner = await further(operator, "shard-0-3")
        address = address_of(joiner)
        await says(joiner, f"tickmesh cluster add-replica {address}")
        waits = health_pb2.HealthCheckResponse.NOT_SERVING
        assert await voter_health(operator, joiner) == waits
        # The leader has it in a list that nobody else has, and is lost.
        old = await operator.leader()
        others = [child for child in operator.mesh.replicas if child not in (old, joiner)]
        for child in others:
            child.signal(signal.SIGSTOP)
        error = await refusal(add(operator, address))
        assert isinstance(error, errors.OutcomeUnknown), error
        await old.kill()
        for child in others:
            child.signal(signal.SIGCONT)
        await old.spawn()
        await operator.leader()
        assert await voter_health(operator, joiner) == waits
        # Asked again, it is added; and then it is.
        added = await add(operator, address)
        assert [each.replica_id for each in added.replicas if each.learner] == [joiner.name]
        await voters(operator, *(child.name for child in operator.mesh.replicas))
        again = await add(operator, address)
        assert again.members_number == added.members_number + 1
        assert not any(each.learner for each in again.replicas)
        assert await voter_health(operator, joiner) == health_pb2.HealthCheckResponse.SERVING
        await fires_after(operator, job, int(time.time()) + 1)


def exchange(replica: Path, other: Path) -> None:
    """The disk of a replica that has ended is put aside, and another one put in its place."""
    for name in DISKS:
        kept = replica / f"{name}.kept"
        (replica / name).rename(kept)
        if (other / name).exists():
            (other / name).rename(replica / name)
        other.mkdir(exist_ok=True)
        kept.rename(other / name)


async def test_a_disk_that_was_removed_never_takes_part_again(tmp_path: Path) -> None:
    async with mesh_with_fires(tmp_path) as (operator, job):
        fourth = await further(operator, "shard-0-3")
        everybody = [child.name for child in operator.mesh.replicas]
        data, aside = tmp_path / fourth.name, tmp_path / "aside"
        await add(operator, address_of(fourth))
        await voters(operator, *everybody)
        # Removed while it is away; its id is added again, with another disk.
        await fourth.kill()
        await remove(operator, fourth.name)
        await asyncio.to_thread(exchange, data, aside)
        await fourth.spawn()
        await fourth.serving()
        await says(fourth, "is without shard-0-3", "tickmesh cluster add-replica")
        added = await add(operator, address_of(fourth))
        await voters(operator, *everybody)
        # The old disk is started under an id that is in use. It thinks that it is a voter.
        await fourth.kill()
        await asyncio.to_thread(exchange, data, aside)
        await fourth.spawn()
        await ends_by_itself(fourth)
        await fourth.spawn()  # and without hearing of it again
        await ends_by_itself(fourth)
        # The right one goes on.
        await asyncio.to_thread(exchange, data, aside)
        (data / REMOVED).unlink()
        await fourth.spawn()
        await fourth.serving()
        await voters(operator, *everybody)
        assert (await operator.shard()).members_number == added.members_number + 1
        # A learner that is removed while it is away hears of it, too.
        fifth = await further(operator, "shard-0-4")
        await add(operator, address_of(fifth))
        await fifth.kill()
        await remove(operator, fifth.name)
        await fifth.spawn()
        await ends_by_itself(fifth)
        await fires_after(operator, job, int(time.time()) + 1)
