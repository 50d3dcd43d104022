"""A leader that another one has replaced, and does not know it yet: what it has counts no more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.rpc import status_pb2

from tickmesh.mesh.clock import SystemClock
from tickmesh.mesh.config import Peer, SchedulerConfig, ShardMembers, Tls
from tickmesh.mesh.errors import NoLeader, NotFound, TickmeshError, from_status
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import cluster_pb2, schedule_pb2
from tickmesh.scheduler.operations import Operations
from tickmesh.scheduler.raft.errors import NoSuchMember, NotLeader
from tickmesh.scheduler.raft.members import configured
from tickmesh.scheduler.raft.messages import MEMBERS_SINCE, Introduction
from tickmesh.scheduler.service import ShardService

from .worlds import World, shard_of

HELLO = "customers/acme/jobs/hello"


class Outdated:
    """A replica that led, and hears at its next question to the others that another one does."""

    entry_version = MEMBERS_SINCE
    is_leader = True
    leader_id = "a"

    def __init__(self) -> None:
        self.is_replaced = True
        self.checkpoints = 0
        self.config = SimpleNamespace(group_id="shard-0", replica_id="a")
        self.committed_members = configured("abc", {name: f"{name}:1" for name in "abc"})

    async def read_barrier(self) -> None:
        if self.is_replaced:
            self.is_leader = False
            raise NotLeader("b")

    async def checkpoint(self, directory: Path) -> tuple[int, int]:
        return self._copy(directory)

    def _copy(self, directory: Path) -> tuple[int, int]:
        self.checkpoints += 1
        directory.mkdir(parents=True)
        (directory / "CURRENT").write_text("a state")
        return 1, 1

    async def remove_replica(self, replica_id: str) -> Any:
        raise NoSuchMember(replica_id)

    def subscribe(self, _callback: Any) -> None: ...
    def on_members(self, _callback: Any) -> None: ...


@pytest.fixture
def replica() -> Outdated:
    return Outdated()


async def answer(replica: Outdated, method: str, request: Any) -> TickmeshError:
    """What a call is refused with."""
    world = World()
    world.job()
    shard = shard_of(world, replica)
    service = ShardService(shard, SystemClock(), "shard-0", "a")
    call = shard_pb2.Call(method=f"tickmesh.v1.{method}", request=request.SerializeToString())
    (reply,) = await service._answer([call], SimpleNamespace())  # type: ignore[arg-type]
    return from_status(status_pb2.Status.FromString(reply.status))


def of_a_calendar() -> schedule_pb2.CreateScheduleRequest:
    """A schedule by a calendar that this state does not have, and the real leader's may."""
    request = schedule_pb2.CreateScheduleRequest(parent=HELLO, schedule_id="nightly")
    request.schedule.recurrence.crons.append("0 3 * * *")
    request.schedule.recurrence.excluded_calendars.append("customers/acme/calendars/holidays")
    return request


async def test_a_write_is_refused_only_by_who_leads(replica: Outdated) -> None:
    error = await answer(replica, "ScheduleService/CreateSchedule", of_a_calendar())
    assert isinstance(error, NoLeader)
    replica.is_replaced = False
    error = await answer(replica, "ScheduleService/CreateSchedule", of_a_calendar())
    assert isinstance(error, NotFound)
    assert "calendars/holidays" in error.message


@pytest.fixture
def operations(replica: Outdated, tmp_path: Path) -> Operations:
    peers = tuple(Peer(name, f"{name}:1") for name in "abc")
    settings = SchedulerConfig(
        replica_id="a",
        shard=ShardMembers("shard-0", peers),
        data_directory=str(tmp_path / "data"),
        tls=Tls("", "", ""),
        backup_directory=str(tmp_path / "backups"),
    )

    async def introduce(_address: str) -> Introduction:
        return Introduction("shard-0", "b", 1, False, MEMBERS_SINCE)

    return Operations(replica, World().state, settings, introduce)  # type: ignore[arg-type]


async def test_a_backup_has_all_that_was_acknowledged_before(
    replica: Outdated, operations: Operations, tmp_path: Path
) -> None:
    request = cluster_pb2.BackupShardRequest(directory="tonight")
    with pytest.raises(NotLeader):
        await operations.backup_shard(request)
    assert replica.checkpoints == 0
    assert not (tmp_path / "backups" / "tonight").exists()
    replica.is_replaced = False
    assert (await operations.backup_shard(request)).file_count == 1


async def test_the_list_of_replicas_is_the_last_one(operations: Operations) -> None:
    with pytest.raises(NotLeader):
        await operations.add_replica(cluster_pb2.AddReplicaRequest(address="b:1"))
    with pytest.raises(NotLeader):
        await operations.remove_replica(cluster_pb2.RemoveReplicaRequest(replica_id="d"))
