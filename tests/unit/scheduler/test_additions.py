"""What a replica that is to be added must be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tickmesh.mesh.config import Peer, SchedulerConfig, ShardMembers, Tls
from tickmesh.mesh.errors import FailedPrecondition
from tickmesh.proto.tickmesh.v1 import cluster_pb2
from tickmesh.scheduler.core.commands import ENTRY_VERSION
from tickmesh.scheduler.operations import Operations
from tickmesh.scheduler.raft.members import Members, configured
from tickmesh.scheduler.raft.messages import Introduction

from .worlds import World


async def add(entry_version: int) -> cluster_pb2.Shard:
    """A program that knows entries of that version, to a shard that has entries of ours."""
    world = World()
    world.job()
    assert world.state.meta.entry_version == ENTRY_VERSION
    members = configured("abc", {name: f"{name}:1" for name in "abc"})

    async def read_barrier() -> None: ...

    async def add_replica(replica_id: str, address: str, incarnation: int) -> Members:
        return members.with_learner(replica_id, address, incarnation)

    replica: Any = SimpleNamespace(
        config=SimpleNamespace(group_id="shard-0", replica_id="a"),
        entry_version=1,  # nobody was heard of yet
        committed_members=members,
        read_barrier=read_barrier,
        add_replica=add_replica,
    )

    async def introduce(_address: str) -> Introduction:
        return Introduction("shard-0", "d", 1, False, entry_version, 7)

    shard = ShardMembers("shard-0", tuple(Peer(name, f"{name}:1") for name in "abc"))
    settings = SchedulerConfig(
        replica_id="a", shard=shard, data_directory="/nowhere", tls=Tls("", "", "")
    )
    operations = Operations(replica, world.state, settings, introduce)
    return await operations.add_replica(cluster_pb2.AddReplicaRequest(address="d:1"))


async def test_a_replica_that_knows_what_is_in_the_log_is_added() -> None:
    shard = await add(ENTRY_VERSION)
    assert [each.replica_id for each in shard.replicas] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("version", [0, 1, ENTRY_VERSION - 1])
async def test_an_older_program_is_not_added_to_a_log_that_it_cannot_apply(version: int) -> None:
    with pytest.raises(FailedPrecondition, match=r"older version.*upgrade it first"):
        await add(version)
