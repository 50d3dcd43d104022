"""A group whose replicas come and go, in virtual time: see members.py for the rules."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from tickmesh.scheduler.raft.errors import (
    AlreadyMember,
    ChangeRefused,
    NoSuchMember,
    NotLeader,
    OutcomeUnknown,
)
from tickmesh.scheduler.raft.limits import REMOVED_MAX
from tickmesh.scheduler.raft.members import configured, decode, encode
from tickmesh.scheduler.raft.messages import MEMBERS_SINCE, Exclusion, Greeting

from .clusters import Cluster, Node, running, until, virtual


async def add(leader: Node, node: Node) -> None:
    """As the operator does, who asks a process first which disk it has."""
    incarnation = node.replica.introduction.incarnation
    await leader.replica.add_replica(node.name, f"at {node.name}", incarnation)


async def removed(node: Node) -> None:
    """It hears that it was removed."""
    await asyncio.wait_for(node.replica.removed.wait(), 5.0)


async def join(cluster: Cluster, name: str, leader: Node) -> None:
    """A replica without data is started and added, and becomes a voter."""
    cluster.nodes[name] = Node(name)
    await cluster.start(name, bootstrap=False)
    await add(leader, cluster[name])
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


def test_a_log_line_names_the_list_that_was_committed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @virtual
    async def two_lists_reach_a_follower_at_once() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            follower = cluster.others(leader)[0]
            await cluster.crash(follower.name)
            await join(cluster, "d", leader)
            await leader.replica.propose(b"after both")
            await cluster.applied(1, *(cluster.nodes.keys() - {follower.name}))
            with caplog.at_level(logging.INFO):
                await cluster.start(follower.name)
                await cluster.applied(1)

    two_lists_reach_a_follower_at_once()
    lines = [line for line in caplog.messages if line.endswith("committed")]
    assert lines == [f"list {number} of the replicas is committed" for number in (1, 2)]


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


@virtual
async def test_an_old_disk_under_an_id_that_is_in_use_again_takes_no_part(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        await join(cluster, "d", leader)
        await cluster.crash("d")
        old = cluster["d"]
        await join(cluster, "e", leader)
        await leader.replica.remove_replica("d")
        await join(cluster, "d", leader)
        await cluster.crash("d")
        new = cluster["d"]
        cluster.nodes["d"] = old
        await cluster.start("d", bootstrap=False)
        assert old.replica.status().is_voter, "as it knows"
        await removed(old)
        assert set(leader.replica.status().connected) == set("abce") - {leader.name}
        await cluster.crash("d")
        cluster.nodes["d"] = new
        await cluster.start("d", bootstrap=False)
        assert await leader.replica.propose(b"goes on") == 1
        await cluster.applied(1)
        assert not new.replica.removed.is_set()


@virtual
async def test_a_learner_that_was_removed_while_it_was_away_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        learner = cluster.nodes["d"] = Node("d")
        await cluster.start("d", bootstrap=False)
        cluster.network.isolate("d", ["a", "b", "c"])
        await add(leader, learner)
        await cluster.crash("d")
        await leader.replica.remove_replica("d")
        cluster.network.heal()
        await cluster.start("d", bootstrap=False)
        await removed(learner)
        with pytest.raises(ChangeRefused, match="removed with the data that it has"):
            await add(leader, learner)
        # An empty disk is another one: it waits until it is added.
        await cluster.wipe("d")
        await cluster.start("d", bootstrap=False)
        await asyncio.sleep(5.0)
        assert not learner.replica.removed.is_set()
        await add(leader, learner)
        await until(lambda: "d" in leader.replica.committed_members.voters)


@virtual
async def test_a_joiner_whose_addition_was_lost_is_added_again_as_it_is(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        joiner = cluster.nodes["d"] = Node("d")
        await cluster.start("d", bootstrap=False)
        others = [node.name for node in cluster.others(leader) if node is not joiner]
        cluster.network.isolate(leader.name, others)
        adding = asyncio.create_task(add(leader, joiner))
        await until(lambda: joiner.replica.status().members.number == 1)
        await cluster.crash(leader.name)
        with pytest.raises(OutcomeUnknown):
            await adding
        cluster.network.heal()
        second = await cluster.leader(*others)
        # Another change is committed under the number that the lost one had.
        await second.replica.add_replica("x", "nowhere", 9)
        await second.replica.remove_replica("x")
        await cluster.crash("d")
        await cluster.start("d", bootstrap=False)
        await asyncio.sleep(5.0)
        assert joiner.replica.introduction.last_index > 1
        assert not joiner.replica.removed.is_set()
        await add(second, joiner)
        await until(lambda: "d" in second.replica.committed_members.voters)


@virtual
async def test_who_is_behind_tells_no_voter_that_it_was_removed(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.replica.add_replica("x", "nowhere", 9)
        await leader.replica.remove_replica("x")
        await until(
            lambda: all(n.replica.committed_members.number == 2 for n in cluster.others(leader))
        )
        behind = cluster.others(leader)[0]
        cluster.network.isolate(behind.name, ["a", "b", "c", "d"])
        await join(cluster, "d", leader)
        # Its commit index is found again from a leader, and it hears of none.
        cluster.network.heal()
        for name in ("a", "b", "c"):
            if name != behind.name:
                await cluster.crash(name)
        await cluster.crash("d")
        await cluster.start("d", bootstrap=False)
        assert cluster["d"].replica.committed_members.number < 2
        await asyncio.sleep(3.0)
        assert behind.replica.committed_members.find("d") is None
        assert not cluster["d"].replica.removed.is_set()


@virtual
async def test_a_lost_disk_does_not_count_until_another_has_caught_up(tmp_path: Path) -> None:
    async with running(tmp_path, entry_version=MEMBERS_SINCE) as cluster:
        leader = await cluster.leader()
        lost = cluster.others(leader)[0]
        for number in range(5):
            await leader.replica.propose(b"%d" % number)
        await cluster.applied(5)
        disk, state = lost.disk.after_crash(), lost.state.after_crash()
        await cluster.wipe(lost.name)
        await cluster.start(lost.name, bootstrap=False)
        await until(lambda: leader.replica.committed_members.learners == (lost.name,))
        await until(lambda: leader.replica.committed_members.number == 2)
        assert leader.replica.committed_members.voters == frozenset("abc")
        await cluster.applied(5)
        # The lost disk is found again.
        await cluster.crash(lost.name)
        lost.disk, lost.state = disk, state
        await cluster.start(lost.name, bootstrap=False)
        await removed(lost)


@virtual
async def test_a_second_process_of_an_id_is_not_taken_for_a_lost_disk(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        await join(cluster, "d", leader)
        second = Greeting(0, 999, learner=True)
        assert leader.replica.excludes("d", second) == Exclusion(2)
        await cluster.crash("d")
        await until(lambda: "d" not in leader.replica.status().connected)
        assert leader.replica.excludes("d", second) is None
        assert leader.replica.excludes("e", second) == Exclusion(2)


def test_the_disks_that_were_removed_are_remembered_and_the_latest_stay() -> None:
    members = configured("abc", {}).with_disk("c", 7).with_voter("c")
    assert members.removed == (), "which one it had at first is not known"
    assert not members.with_disk("c", 7).has_removed("c", 7)
    members = members.with_disk("c", 8)
    assert members.has_removed("c", 7)
    assert not members.has_removed("c", 8)
    for incarnation in range(9, 9 + REMOVED_MAX):
        members = members.with_disk("c", incarnation)
    assert len(members.removed) == REMOVED_MAX
    assert not members.has_removed("c", 7)
    assert members.has_removed("c", 8)
    assert decode(encode(members)) == members
