"""What every replica of a group is known to understand."""

from __future__ import annotations

from pathlib import Path

from .clusters import Cluster, Node, running, until, virtual


async def known(cluster: Cluster, version: int) -> Node:
    """Waits until the leader knows that everybody understands a version."""
    leader = await cluster.leader()
    await until(lambda: leader.replica.entry_version == version)
    return leader


@virtual
async def test_a_rolling_upgrade_ends_with_the_new_version(tmp_path: Path) -> None:
    async with running(tmp_path, entry_version=1) as cluster:
        await known(cluster, 1)
        cluster.settings["entry_version"] = 3
        for count, name in enumerate(list(cluster.nodes), start=1):
            await cluster.crash(name)
            await cluster.start(name, bootstrap=False)
            leader = await cluster.leader()
            await leader.replica.propose(b"x")
            await cluster.applied(count)
            assert leader.replica.entry_version == (3 if count == 3 else 1)


@virtual
async def test_who_was_not_heard_of_may_be_old(tmp_path: Path) -> None:
    async with running(tmp_path, entry_version=2) as cluster:
        leader = await known(cluster, 2)
        gone, other = cluster.others(leader)
        await cluster.crash(gone.name)
        assert leader.replica.entry_version == 2, "it was heard of in this term"
        await leader.replica.hand_over(other.name)
        await cluster.leader(other.name)
        assert other.replica.entry_version == 1
        await cluster.start(gone.name, bootstrap=False)
        await until(lambda: other.replica.entry_version == 2)


@virtual
async def test_another_disk_may_be_of_another_program(tmp_path: Path) -> None:
    async with running(tmp_path, entry_version=2) as cluster:
        leader = await known(cluster, 2)
        wiped, _ = cluster.others(leader)
        await cluster.wipe(wiped.name)
        cluster.settings["entry_version"] = 1
        await cluster.start(wiped.name, bootstrap=False)
        await until(lambda: leader.replica.entry_version == 1)
        assert leader.replica.is_leader


@virtual
async def test_one_alone_knows_what_it_knows(tmp_path: Path) -> None:
    async with running(tmp_path, "a", entry_version=5) as cluster:
        assert (await cluster.leader()).replica.entry_version == 5
