"""Replicas that fell behind the journal, or lost their disk: snapshots, learners, crash points."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tickmesh.scheduler.raft.errors import JournalError, NotLeader
from tickmesh.scheduler.raft.limits import SNAPSHOT_CHUNK_BYTES
from tickmesh.scheduler.raft.messages import (
    SnapshotChunk,
    SnapshotEnd,
    SnapshotHeader,
    SnapshotPart,
    SnapshotReply,
    Vote,
)
from tickmesh.scheduler.raft.snapshots import Receiver, read_parts
from tickmesh.scheduler.raft.transport import TransportError

from .clusters import AtOnce, Cluster, Node, running, until, virtual

SHORT = {"retain_entries": 10}


async def write(cluster: Cluster, count: int, *among: str) -> Node:
    """Proposes, and returns the leader."""
    leader = await cluster.leader(*among)
    for number in range(count):
        await leader.replica.propose(b"%d" % number)
    return leader


async def far_behind(cluster: Cluster) -> tuple[Node, Node]:
    """(leader, a follower that is down and whose entries the leader's journal has no more)."""
    leader = await cluster.leader()
    follower = cluster.others(leader)[0]
    await cluster.crash(follower.name)
    await write(cluster, 200)
    await until(lambda: leader.replica.status().journal_first_index > 100)
    return leader, follower


# -- compaction --------------------------------------------------------------------------------


@virtual
async def test_the_journal_is_truncated_behind_durable_state_only(tmp_path: Path) -> None:
    async with running(tmp_path, "a", **SHORT) as cluster:
        node = cluster["a"]
        flushed = node.state.flush_wal
        node.state.flush_wal = lambda: None  # type: ignore[method-assign]
        await write(cluster, 100)
        node.state.flush_wal = flushed  # type: ignore[method-assign]
        await asyncio.sleep(5)
        await write(cluster, 1)
        await until(lambda: node.replica.status().journal_first_index > 80)
        assert node.state.durable.applied[0] >= node.replica.status().journal_first_index
        await cluster.crash("a")
        await cluster.start("a")
        await cluster.applied(101)


@virtual
async def test_entries_and_disk_stay_within_what_is_retained(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT) as cluster:
        for _ in range(10):
            await write(cluster, 100)
            await asyncio.sleep(1.1)
        await asyncio.sleep(3)
        for node in cluster.nodes.values():
            status = node.replica.status()
            assert status.journal_last_index - status.journal_first_index < 30
            assert len(node.disk.data) < 40


# -- shipping ----------------------------------------------------------------------------------


@virtual
async def test_a_follower_far_behind_is_sent_a_snapshot(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT) as cluster:
        leader, follower = await far_behind(cluster)
        await cluster.start(follower.name)
        await cluster.applied(200)
        assert follower.state.items == leader.state.items
        await leader.replica.propose(b"after")
        await cluster.applied(201)
        for name in ("incoming", "outgoing"):
            await until(lambda name=name: not list(tmp_path.glob(f"*/{name}")))  # type: ignore[misc]


@virtual
async def test_a_snapshot_that_is_interrupted_is_sent_again(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT) as cluster:
        _, follower = await far_behind(cluster)
        for _ in range(5):
            await cluster.start(follower.name)
            await until(lambda: (tmp_path / follower.name / "incoming").exists())
            await cluster.crash(follower.name)
        await cluster.start(follower.name)
        await cluster.applied(200)


@virtual
async def test_a_follower_catches_up_under_load_with_one_snapshot(tmp_path: Path) -> None:
    """What is written while a snapshot travels stays in the journal until the follower has it."""
    async with running(tmp_path, **SHORT) as cluster:
        leader, follower = await far_behind(cluster)
        checkpoints = 0
        checkpoint = leader.state.checkpoint

        def counted(directory: Path) -> tuple[int, int]:
            nonlocal checkpoints
            checkpoints += 1
            return checkpoint(directory)

        leader.state.checkpoint = counted  # type: ignore[method-assign]
        # Each append takes a while to be answered, so that catching up takes longer than a
        # compaction's interval.
        cluster.network.faults.delay_min_s = cluster.network.faults.delay_max_s = 0.02
        await cluster.start(follower.name)
        while len(follower.state.items) < len(leader.state.items) - 20:
            await asyncio.gather(*(leader.replica.propose(bytes(400_000)) for _ in range(4)))
        assert checkpoints == 1


@virtual
async def test_a_shipment_that_hangs_does_not_pin_the_journal_for_ever(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT, pinned_bytes_max=10_000) as cluster:
        leader, follower = await far_behind(cluster)
        hanging = asyncio.Event()

        async def hang(*_: object) -> SnapshotReply:
            hanging.set()
            await asyncio.sleep(1e6)
            raise AssertionError

        leader.transport.ship = hang  # type: ignore[method-assign,assignment]
        await cluster.start(follower.name)
        await hanging.wait()
        for _ in range(10):
            for _ in range(50):
                await leader.replica.propose(bytes(1_000))
            await asyncio.sleep(1)
        assert leader.replica.status().journal_bytes < 60_000


# -- an empty disk -----------------------------------------------------------------------------


@virtual
async def test_an_empty_disk_neither_votes_nor_counts(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await write(cluster, 3)
        wiped, lagging = cluster.others(leader)
        await cluster.applied(3)
        await cluster.crash(lagging.name)
        await leader.replica.propose(b"acknowledged by the leader and the one that will be wiped")
        await cluster.crash(leader.name)
        await cluster.wipe(wiped.name)
        # With the vote of the empty disk, the one that lags would lead and lose the write.
        await cluster.start(lagging.name)
        await cluster.start(wiped.name, bootstrap=False)
        await asyncio.sleep(30)
        assert not lagging.replica.is_leader
        assert not wiped.replica.status().is_voter
        await cluster.start(leader.name)
        await cluster.applied(4)
        await until(lambda: wiped.replica.status().is_voter)


@virtual
async def test_a_wiped_replica_counts_again_once_it_has_caught_up(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT) as cluster:
        leader = await write(cluster, 200)
        wiped, other = cluster.others(leader)
        await cluster.wipe(wiped.name)
        await cluster.start(wiped.name, bootstrap=False)
        await cluster.applied(200)
        await until(lambda: wiped.replica.status().is_voter)
        await cluster.crash(other.name)
        await leader.replica.propose(b"with the wiped one's acknowledgement")
        await cluster.crash(leader.name)
        await cluster.start(other.name)
        await cluster.leader()
        await cluster.applied(201, wiped.name, other.name)


@virtual
async def test_a_promotion_survives_a_crash(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await write(cluster, 3)
        wiped = cluster.others(leader)[0]
        await cluster.wipe(wiped.name)
        await cluster.start(wiped.name, bootstrap=False)
        await until(lambda: wiped.replica.status().is_voter)
        await asyncio.sleep(1.0)
        await cluster.crash(wiped.name)
        await cluster.start(wiped.name, bootstrap=False)
        assert wiped.replica.status().is_voter


# -- installation ------------------------------------------------------------------------------


@virtual
async def test_a_crash_before_the_state_is_installed_installs_at_the_next_start(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, **SHORT) as cluster:
        _, follower = await far_behind(cluster)

        def crash() -> None:
            raise SystemError("the process is gone")

        await cluster.start(follower.name)
        follower.state.install_hook = crash
        await follower.replica.failed.wait()
        await cluster.crash(follower.name)
        assert (tmp_path / follower.name / "incoming").exists()
        assert follower.state.items == ()
        cluster.network.isolate(follower.name, [node.name for node in cluster.others(follower)])
        await cluster.start(follower.name)
        assert len(follower.state.items) == 200, "without asking anybody"
        cluster.network.heal()
        await write(cluster, 1)
        await cluster.applied(201)


@virtual
async def test_a_crash_after_the_state_is_installed_does_not_install_again(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, **SHORT) as cluster:
        leader, follower = await far_behind(cluster)
        await cluster.start(follower.name)

        def lose_the_end_of_the_mark() -> None:
            follower.disk.write = lambda operations: None  # type: ignore[method-assign]
            follower.disk.flush = lambda: None  # type: ignore[method-assign]

        follower.state.install_hook = lose_the_end_of_the_mark
        await until(lambda: len(follower.state.items) == 200)
        await cluster.crash(follower.name)
        assert len(follower.state.items) == 200
        assert not (tmp_path / follower.name / "incoming").exists()
        await cluster.start(follower.name)
        await leader.replica.propose(b"after")
        await cluster.applied(201)


@virtual
async def test_an_installation_whose_files_are_gone_is_an_error(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT) as cluster:
        _, follower = await far_behind(cluster)

        def crash() -> None:
            raise SystemError("the process is gone")

        await cluster.start(follower.name)
        follower.state.install_hook = crash
        await follower.replica.failed.wait()
        await cluster.crash(follower.name)
        for file in (tmp_path / follower.name / "incoming").iterdir():
            file.unlink()
        (tmp_path / follower.name / "incoming").rmdir()
        with pytest.raises(JournalError, match="Wipe this replica's directory"):
            await cluster.start(follower.name)


@virtual
async def test_a_second_snapshot_waits_until_the_first_is_installed(tmp_path: Path) -> None:
    """Its sender was lost after the last part: the files must not be overwritten meanwhile."""
    async with running(tmp_path, **SHORT) as cluster:
        leader, follower = await far_behind(cluster)
        directory = tmp_path / "checkpoint"
        position = leader.state.checkpoint(directory)
        await cluster.start(follower.name)
        cluster.network.isolate(follower.name, [node.name for node in cluster.others(follower)])
        header = SnapshotHeader("group", leader.name, follower.name, leader.replica.term, *position)
        # The round that would install is busy with a flush: of the term that this makes known.
        follower.disk.flush_s = 1.0
        term = leader.replica.term + 7
        follower.replica.on_message(leader.name, Vote(term, 0, 0, transfer=True))
        header = SnapshotHeader("group", leader.name, follower.name, term, *position)
        first = asyncio.ensure_future(
            follower.replica.on_snapshot(leader.name, header, read_parts(directory, AtOnce()))
        )
        await asyncio.sleep(0.5)
        assert (tmp_path / follower.name / "incoming" / "state").exists()
        first.cancel()
        await asyncio.sleep(0.01)
        second = await follower.replica.on_snapshot(
            leader.name, header, parts(chunk("state", 0, b"cut short"))
        )
        assert second == SnapshotReply(False, "busy")
        await until(lambda: len(follower.state.items) == 200)
        assert follower.replica.failure is None


@virtual
async def test_a_leader_is_not_overwritten_by_a_snapshot(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await write(cluster, 3)
        directory = tmp_path / "checkpoint"
        index, term = leader.state.checkpoint(directory)
        header = SnapshotHeader("group", "x", leader.name, leader.replica.term, index + 50, term)
        reply = await leader.replica.on_snapshot("x", header, read_parts(directory, AtOnce()))
        assert not reply.accepted
        assert len(leader.state.items) == 3
        old = SnapshotHeader("group", "x", leader.name, leader.replica.term - 1, index, term)
        reply = await leader.replica.on_snapshot("x", old, read_parts(directory, AtOnce()))
        assert "is over" in reply.reason
        with pytest.raises(NotLeader):
            await cluster.others(leader)[0].replica.read_barrier()


# -- files -------------------------------------------------------------------------------------


async def parts(*items: SnapshotPart) -> AsyncIterator[SnapshotPart]:
    for item in items:
        yield item


def chunk(name: str, offset: int, data: bytes) -> SnapshotChunk:
    return SnapshotChunk(name, offset, data, zlib.crc32(data))


@virtual
async def test_files_arrive_as_they_were(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    contents = {"a": b"", "b.sst": bytes(SNAPSHOT_CHUNK_BYTES), "CURRENT": b"x" * 700_001}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    await Receiver(tmp_path / "target", AtOnce()).receive(read_parts(source, AtOnce()))
    assert {p.name: p.read_bytes() for p in (tmp_path / "target").iterdir()} == contents


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([SnapshotChunk("a", 0, b"x", 1), SnapshotEnd(1, 1)], "fails its checksum"),
        ([chunk("a", 0, b"x"), chunk("a", 2, b"y"), SnapshotEnd(1, 2)], "does not follow"),
        ([chunk("a", 5, b"x"), SnapshotEnd(1, 1)], "does not follow"),
        ([chunk("a", 0, b"x"), chunk("b", 1, b"y"), SnapshotEnd(1, 2)], "does not follow"),
        ([chunk("a", 0, b"x"), chunk("a", 0, b"y"), SnapshotEnd(1, 2)], "holds a twice"),
        ([chunk("../a", 0, b"x"), SnapshotEnd(1, 1)], "is not a name"),
        ([chunk("..", 0, b"x"), SnapshotEnd(1, 1)], "is not a name"),
        ([chunk("a/b", 0, b"x"), SnapshotEnd(1, 1)], "is not a name"),
        ([chunk("a", 0, b"x")], "without its end"),
        ([chunk("a", 0, b"x"), SnapshotEnd(2, 1)], "arrived as"),
        ([chunk("a", 0, b"x"), SnapshotEnd(1, 2)], "arrived as"),
        ([SnapshotHeader("g", "a", "b", 1, 1, 1), SnapshotEnd(0, 0)], "a second header"),
    ],
)
def test_what_is_not_a_whole_snapshot_leaves_nothing(
    tmp_path: Path, items: list[SnapshotPart], message: str
) -> None:
    @virtual
    async def attempt() -> None:
        with pytest.raises(TransportError, match=message):
            await Receiver(tmp_path / "target", AtOnce()).receive(parts(*items))

    attempt()
    assert not (tmp_path / "target").exists()
