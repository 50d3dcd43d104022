"""Whole groups in virtual time: what callers are promised, whatever crashes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tickmesh.scheduler.raft.errors import (
    NotLeader,
    OutcomeUnknown,
    ReplicaBusy,
    ReplicaFailed,
)
from tickmesh.scheduler.raft.limits import PAYLOAD_BYTES_MAX, PROPOSALS_PENDING_MAX

from .clusters import Cluster, VirtualLoop, running, until, virtual


@virtual
async def test_a_proposal_is_applied_everywhere(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        assert await leader.replica.propose(b"one") == 1
        assert await leader.replica.propose(b"two") == 2
        await cluster.applied(2)
        assert {node.state.items for node in cluster.nodes.values()} == {(b"one", b"two")}


@virtual
async def test_one_replica_alone_commits_in_one_round(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as cluster:
        leader = await cluster.leader()
        flushes = leader.disk.flushes
        assert await leader.replica.propose(b"one") == 1
        assert leader.disk.flushes == flushes + 1
        await leader.replica.read_barrier()


@virtual
async def test_one_replica_alone_leads_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as cluster:
        started_s = asyncio.get_running_loop().time()
        await cluster.leader()
        assert asyncio.get_running_loop().time() - started_s < 0.05


@virtual
async def test_proposals_of_one_moment_share_a_flush(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as cluster:
        leader = await cluster.leader()
        flushes = leader.disk.flushes
        await asyncio.gather(*(leader.replica.propose(b"%d" % i) for i in range(100)))
        assert leader.disk.flushes <= flushes + 2


@virtual
async def test_a_follower_refuses_and_names_the_leader(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        for follower in cluster.others(leader):
            await until(lambda follower=follower: follower.replica.leader_id is not None)  # type: ignore[misc]
            with pytest.raises(NotLeader) as refused:
                await follower.replica.propose(b"x")
            assert refused.value.leader == leader.name
            with pytest.raises(NotLeader):
                await follower.replica.read_barrier()


@virtual
async def test_limits_refuse_before_anything_is_proposed(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        with pytest.raises(ValueError, match=str(PAYLOAD_BYTES_MAX)):
            await leader.replica.propose(bytes(PAYLOAD_BYTES_MAX + 1))
        proposals = [
            asyncio.ensure_future(leader.replica.propose(b"x"))
            for _ in range(PROPOSALS_PENDING_MAX + 1)
        ]
        results = await asyncio.gather(*proposals, return_exceptions=True)
        assert [type(result) for result in results[-2:]] == [int, ReplicaBusy]


@virtual
async def test_a_majority_that_crashed_has_what_was_acknowledged(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        for round_ in range(5):
            leader = await cluster.leader()
            await leader.replica.propose(b"%d" % round_)
            await cluster.crash("a", "b", "c")
            await cluster.start()
        await cluster.leader()
        await cluster.applied(5)
        assert {node.state.items for node in cluster.nodes.values()} == {
            (b"0", b"1", b"2", b"3", b"4")
        }


@virtual
async def test_a_crashed_leader_is_replaced_and_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        old = await cluster.leader()
        await old.replica.propose(b"one")
        await cluster.crash(old.name)
        crashed_s = asyncio.get_running_loop().time()
        new = await cluster.leader()
        assert asyncio.get_running_loop().time() - crashed_s < 1.0
        assert await new.replica.propose(b"two") == 2
        await cluster.start(old.name)
        await cluster.applied(2)
        assert new.replica.is_leader, "the live leader was disturbed"


@virtual
async def test_proposals_end_when_leadership_does(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        cluster.network.isolate(leader.name, [node.name for node in cluster.others(leader)])
        proposed = asyncio.ensure_future(leader.replica.propose(b"lost?"))
        with pytest.raises(OutcomeUnknown):
            await proposed
        with pytest.raises(NotLeader):
            await leader.replica.propose(b"refused")
        assert leader.terms[-1] is None
        new = await cluster.leader()
        await new.replica.propose(b"kept")
        cluster.network.heal()
        await cluster.applied(1)
        assert {node.state.items for node in cluster.nodes.values()} == {(b"kept",)}


@virtual
async def test_a_deposed_leader_answers_no_read(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        old = await cluster.leader()
        await old.replica.propose(b"one")
        cluster.network.isolate(old.name, [node.name for node in cluster.others(old)])
        assert old.replica.is_leader, "it cannot know yet"
        with pytest.raises(NotLeader):
            await old.replica.read_barrier()


@virtual
async def test_a_read_sees_every_write_that_was_acknowledged(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        old = await cluster.leader()
        for number in range(20):
            await old.replica.propose(b"%d" % number)
        await cluster.crash(old.name)
        new = await cluster.leader()
        await new.replica.read_barrier()
        assert len(new.state.items) == 20


@virtual
async def test_a_follower_that_was_cut_off_does_not_disturb_the_leader(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        term = leader.replica.term
        cut_off = cluster.others(leader)[0]
        cluster.network.isolate(cut_off.name, [node.name for node in cluster.others(cut_off)])
        await asyncio.sleep(30)
        assert cut_off.replica.term == term, "it asks first (pre-vote), which moves no term"
        cluster.network.heal()
        await leader.replica.propose(b"one")
        await cluster.applied(1)
        assert (leader.replica.is_leader, leader.replica.term) == (True, term)


@virtual
async def test_a_follower_that_hears_but_is_not_heard_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        mute, other = cluster.others(leader)
        cluster.network.cut(mute.name, leader.name)
        cluster.network.cut(mute.name, other.name)
        term = leader.replica.term
        for number in range(50):
            await leader.replica.propose(b"%d" % number)
            await asyncio.sleep(0.1)
        assert leader.replica.term == term
        cluster.network.heal()
        await cluster.applied(50)
        assert leader.replica.term == term


@virtual
async def test_lossy_slow_reordering_duplicating_network_loses_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        faults = cluster.network.faults
        faults.drop, faults.duplicate, faults.delay_max_s = 0.1, 0.2, 0.03
        acknowledged: list[bytes] = []
        for number in range(200):
            leader = await cluster.leader()
            try:
                await leader.replica.propose(b"%d" % number)
            except (NotLeader, OutcomeUnknown):
                continue
            acknowledged.append(b"%d" % number)
        faults.drop = faults.duplicate = faults.delay_max_s = 0.0
        leader = await cluster.leader()
        await leader.replica.read_barrier()
        count = len(leader.state.items)
        await cluster.applied(count)
        assert len(acknowledged) > 150
        assert set(acknowledged) <= set(leader.state.items)
        assert len({node.state.items for node in cluster.nodes.values()}) == 1


@virtual
async def test_leadership_can_be_handed_over(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.replica.propose(b"one")
        await cluster.applied(1)
        heir = cluster.others(leader)[0]
        await until(lambda: leader.replica.transfer_leadership(heir.name))
        asked_s = asyncio.get_running_loop().time()
        assert await cluster.leader(heir.name) is heir
        assert asyncio.get_running_loop().time() - asked_s < 0.1, "not by a timeout"
        assert await heir.replica.propose(b"two") == 2


# -- disks and states that fail ----------------------------------------------------------------


@virtual
async def test_a_journal_that_cannot_be_written_stops_the_replica(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        leader.disk.broken = True
        with pytest.raises(OutcomeUnknown):
            await leader.replica.propose(b"x")
        await leader.replica.failed.wait()
        assert "the disk is broken" in str(leader.replica.failure)
        with pytest.raises(ReplicaFailed):
            await leader.replica.propose(b"y")
        assert leader.terms[-1] is None
        new = await cluster.leader(*(node.name for node in cluster.others(leader)))
        # Its outcome was not known; the others had x, as a leader sends before its own disk has it.
        assert await new.replica.propose(b"z") == 2


@virtual
async def test_an_entry_that_cannot_be_applied_stops_the_replica(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        unlucky = cluster.others(leader)[0]

        def refuse(payload: bytes) -> None:
            raise ValueError(f"cannot apply {payload!r}")

        unlucky.state.apply_hook = refuse
        assert await leader.replica.propose(b"x") == 1
        await unlucky.replica.failed.wait()
        assert "cannot apply b'x'" in str(unlucky.replica.failure)
        assert unlucky.state.items == (), "it was neither skipped nor repeated"


@virtual
async def test_nothing_is_led_any_more_after_a_failure_beside_the_rounds(tmp_path: Path) -> None:
    """A worker's failure comes while a round waits for its flush; that round must not lead on."""
    async with running(tmp_path, retain_entries=1, retain_bytes=1) as cluster:
        leader = await cluster.leader()

        def refuse() -> None:
            raise OSError("the state's disk is broken")

        leader.state.flush_wal = refuse  # type: ignore[method-assign]
        proposals = [asyncio.ensure_future(leader.replica.propose(bytes(10))) for _ in range(100)]
        await leader.replica.failed.wait()
        await asyncio.gather(*proposals, return_exceptions=True)
        await asyncio.sleep(1.0)
        assert leader.terms[-1] is None


@virtual
async def test_stopping_ends_what_waits(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    await cluster.start()
    leader = await cluster.leader()
    cluster.network.isolate(leader.name, [node.name for node in cluster.others(leader)])
    waiting = asyncio.gather(
        leader.replica.propose(b"x"), leader.replica.read_barrier(), return_exceptions=True
    )
    await asyncio.sleep(0.01)
    await cluster.stop()
    assert [type(result) for result in await waiting] == [OutcomeUnknown, NotLeader]


@virtual
async def test_a_backlog_that_is_slow_to_apply_does_not_cost_the_leadership(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        def slowly(payload: bytes) -> None:
            loop.now_s += 0.03

        leader.state.apply_hook = slowly
        await asyncio.gather(*(leader.replica.propose(b"%d" % i) for i in range(100)))
        assert {node.replica.term for node in cluster.nodes.values()} == {1}
