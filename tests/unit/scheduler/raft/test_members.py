"""A group whose replicas come and go, in virtual time: see members.py for the rules."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tickmesh.scheduler.raft.errors import AlreadyMember, ChangeRefused, NoSuchMember, NotLeader

from .clusters import Cluster, Node, running, until, virtual


async def join(cluster: Cluster, name: str, leader: Node) -> None:
    """A replica without data is started and added, and becomes a voter."""
    cluster.nodes[name] = Node(name)
    await cluster.start(name, bootstrap=False)
    await leader.replica.add_replica(name, f"at {name}")
    await until(lambda: name in leader.replica.committed_members.voters)


@virtual
async def test_a_replica_joins_and_the_leader_leaves(tmp_path: Path) -> None:
    async with running(tmp_path, retain_entries=5) as cluster:
        leader = await cluster.leader()
        lists: list[int] = []
        leader.replica.on_members(lambda: lists.append(leader.replica.committed_members.number))
        for number in range(30):
            await leader.replica.propose(b"%d" % number)
        await join(cluster, "d", leader)
        assert lists == [1, 2], "each once"
        await cluster.applied(30)
        with pytest.raises(NotLeader):
            await leader.replica.remove_replica(leader.name)
        others = [name for name in cluster.nodes if name != leader.name]
        second = await cluster.leader(*others)
        await second.replica.remove_replica(leader.name)
        await asyncio.wait_for(leader.replica.removed.wait(), 5.0)
        await cluster.crash(leader.name)
        assert second.replica.committed_members.ids == tuple(sorted(others))
        assert await second.replica.propose(b"after") == 31
        # It is told again, and draws nobody into an election.
        term = second.replica.term
        await cluster.start(leader.name, bootstrap=False)
        await asyncio.wait_for(leader.replica.removed.wait(), 5.0)
        await asyncio.sleep(3.0)
        assert second.replica.is_leader
        assert second.replica.term == term


@virtual
async def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        replica = leader.replica
        follower = cluster.others(leader)[0]
        with pytest.raises(NotLeader):
            await follower.replica.add_replica("d", "")
        with pytest.raises(AlreadyMember, match="'a' is in the list"):
            await replica.add_replica("a", "")
        with pytest.raises(NoSuchMember, match="there are: a, b, c"):
            await replica.remove_replica("x")
        with pytest.raises(ChangeRefused, match="2 voters"):
            await replica.remove_replica(follower.name)
        assert replica.committed_members.number == 0
        # One that never comes is given up; meanwhile nothing else changes.
        await replica.add_replica("d", "nowhere")
        for change in (replica.add_replica("e", ""), replica.remove_replica(follower.name)):
            with pytest.raises(ChangeRefused, match="one change at a time"):
                await change
        assert (await replica.remove_replica("d")).number == 2
        assert await replica.propose(b"on it goes") == 1


@virtual
async def test_none_is_removed_if_those_that_are_left_could_not_write(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        await join(cluster, "d", leader)
        one, two, three = cluster.others(leader)
        await cluster.crash(one.name, two.name)
        with pytest.raises(ChangeRefused, match="not connected or have not caught up"):
            await leader.replica.remove_replica(three.name)
