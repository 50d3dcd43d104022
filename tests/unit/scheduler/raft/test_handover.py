"""Giving leadership away on purpose."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tickmesh.scheduler.raft.errors import NotLeader, OutcomeUnknown
from tickmesh.scheduler.raft.limits import HAND_OVER_RETRY_S, HAND_OVER_S

from .clusters import Cluster, running, until, virtual

AT_ONCE_S = 0.05


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def writing(cluster: Cluster, name: str, told: list[object]) -> None:
    """Writes to one node for as long as it leads; what came of each."""
    for number in range(10_000):
        try:
            told.append(await cluster[name].replica.propose(b"%s-%d" % (name.encode(), number)))
        except NotLeader as error:
            told.append(error)
            return


@virtual
async def test_under_load_every_proposal_has_a_certain_answer(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        told: list[object] = []
        writers = [asyncio.create_task(writing(cluster, leader.name, told)) for _ in range(20)]
        await until(lambda: len(told) >= 200)
        asked_s = now_s()
        heir = await leader.replica.hand_over()
        assert heir is not None and heir != leader.name
        await asyncio.gather(*writers)
        await cluster.leader(heir)
        assert now_s() - asked_s < AT_ONCE_S, "not by a timeout"
        refused = [answer for answer in told if isinstance(answer, NotLeader)]
        assert len(refused) == 20, "each writer's last, and nobody was told that it is unknown"
        # Everything that was acknowledged is there, and nothing that was refused.
        await cluster[heir].replica.read_barrier()
        assert len(cluster[heir].state.items) == len(told) - len(refused)


@virtual
async def test_the_one_that_is_named_leads(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        for heir in cluster.others(leader):
            now = await cluster.leader()
            await now.replica.propose(b"x")
            assert await now.replica.hand_over(heir.name) == heir.name
            assert await cluster.leader(heir.name) is heir


@virtual
async def test_a_peer_that_does_not_take_over_is_passed_over(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.replica.propose(b"x")
        await cluster.applied(1)
        first, second = sorted(cluster.others(leader), key=lambda node: node.name)
        # It hears the leader and answers, but its disk hangs when it is to write its vote.
        first.disk.flush_s = 10 * HAND_OVER_S
        asked_s = now_s()
        assert await leader.replica.hand_over() == second.name
        assert HAND_OVER_RETRY_S <= now_s() - asked_s < HAND_OVER_RETRY_S + 0.1
        first.disk.flush_s = 0.0


@virtual
async def test_without_a_ready_peer_the_leader_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        behind, other = cluster.others(leader)
        cluster.network.isolate(behind.name, [leader.name, other.name])
        await leader.replica.propose(b"which one lacks")
        writer = asyncio.create_task(leader.replica.propose(b"while waiting"))
        asked_s = now_s()
        assert await leader.replica.hand_over(behind.name) is None
        assert HAND_OVER_S <= now_s() - asked_s < HAND_OVER_S + 0.1
        await writer
        assert leader.replica.is_leader
        assert await leader.replica.propose(b"after") == 3
        await cluster.crash(behind.name)
        asked_s = now_s()
        assert await leader.replica.hand_over(behind.name) is None
        assert now_s() - asked_s < AT_ONCE_S, "nobody is there to be waited for"
        with pytest.raises(ValueError, match="no other voter"):
            await leader.replica.hand_over("somebody")
        with pytest.raises(NotLeader):
            await other.replica.hand_over()


@virtual
async def test_a_replica_that_stops_ends_its_handing_over(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        names = [node.name for node in cluster.others(leader)]
        cluster.network.isolate(leader.name, names)
        await asyncio.sleep(0.01)
        writing = asyncio.create_task(leader.replica.propose(b"nobody hears"))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(leader.replica.hand_over())
        await asyncio.sleep(0.01)
        await leader.replica.stop()
        leader.up = False
        assert await waiting is None
        with pytest.raises(OutcomeUnknown):
            await writing
