"""Wall clocks that jump, drift and lie: what a replica notices, and who leads then."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tickmesh.scheduler.raft.clocks import (
    DELAY_NS_MAX,
    READ_NS_MAX,
    SAMPLES_MAX,
    STEP_NS_MIN,
    Clocks,
)
from tickmesh.scheduler.raft.limits import CLOCK_RETIREMENT_S, HAND_OVER_S

from .clusters import Cluster, Node, running, until, virtual

MS = 1_000_000
SKEW_NS = 250 * MS


class Host:
    """Two clocks, and what one replica makes of them."""

    def __init__(self, peers: str = "bc") -> None:
        self.monotonic_ns = 5_000 * MS
        self.wall_ns = 1_800_000_000_000 * MS
        self.clocks = Clocks(lambda: self.monotonic_ns / 1e9, lambda: self.wall_ns, SKEW_NS)
        self.clocks.follow(peers)

    def wait(self, ms: float) -> None:
        self.monotonic_ns += int(ms * MS)
        self.wall_ns += int(ms * MS)

    def hears(self, peer: str, off_ms: float, there_ms: float = 1, back_ms: float = 1) -> None:
        """A reply of a peer whose clock is ahead by so much."""
        asked_ns = self.clocks.monotonic_ns()
        self.wait(there_ms)
        clock_ns = self.wall_ns + int(off_ms * MS)
        self.wait(back_ms)
        self.clocks.sample(peer, asked_ns, clock_ns)


def test_a_step_is_noticed_and_a_slow_wall_clock_is_none() -> None:
    host = Host()
    assert host.clocks.look() == 0, "there is nothing to compare with yet"
    for _ in range(100):
        host.wait(50)
        host.wall_ns += 25_000  # slewed by 500 parts in a million
        assert host.clocks.look() == 0
    host.wall_ns -= 3_000 * MS
    assert host.clocks.look() == pytest.approx(-3_000 * MS, abs=MS)
    assert host.clocks.look() == 0, "once"
    assert (host.clocks.step_count, host.clocks.last_step_ns < 0) == (1, True)
    host.wall_ns += STEP_NS_MIN + MS
    assert host.clocks.look() > 0
    assert host.clocks.step_count == 2


def test_a_reading_that_was_interrupted_is_no_step() -> None:
    host = Host()
    host.clocks.look()
    readings = iter([host.monotonic_ns, host.monotonic_ns + READ_NS_MAX + 100 * MS])
    clocks = Clocks(lambda: next(readings) / 1e9, lambda: host.wall_ns, SKEW_NS)
    assert clocks.look() == 0
    assert clocks._difference_ns is None, "nothing is concluded from it, now or later"


def test_the_truth_is_within_the_uncertainty_however_slow_one_way_is() -> None:
    for there_ms, back_ms in ((1, 1), (0, 80), (80, 0), (5, 300)):
        host = Host()
        host.hears("b", 40, there_ms, back_ms)
        (clock,) = host.clocks.known
        assert abs(clock.offset_ns - 40 * MS) <= clock.uncertainty_ns + 1_000


def test_the_quickest_of_the_last_replies_counts_and_slow_ones_do_not() -> None:
    host = Host()
    host.hears("b", 40, 0.1, 0.1)
    host.hears("b", 40, 0, 100)
    assert abs(host.clocks.known[0].offset_ns - 40 * MS) < MS
    for _ in range(SAMPLES_MAX):
        host.hears("b", 900)
    assert host.clocks.known[0].offset_ns > 800 * MS, "the peer's clock was set meanwhile"
    host = Host()
    host.hears("b", 40, 0, DELAY_NS_MAX / MS + 1)
    host.clocks.sample("b", 0, host.wall_ns)
    host.clocks.sample("b", host.monotonic_ns, 0)
    assert host.clocks.known == ()


def test_our_own_step_makes_old_measurements_worthless() -> None:
    host = Host()
    host.clocks.look()
    host.hears("b", 0)
    host.clocks.look()
    host.wall_ns += 1_000 * MS
    host.clocks.look()
    assert host.clocks.known == ()


@pytest.mark.parametrize(
    ("peers", "offsets_ms", "against"),
    [
        ("bc", {"b": 400, "c": 410}, "bc"),
        ("bc", {"b": -400, "c": -410}, "bc"),
        ("bc", {"b": 400}, ""),  # one of three: nobody knows who is wrong
        ("bc", {"b": 400, "c": 10}, ""),  # b is wrong
        ("bc", {"b": 400, "c": -400}, ""),  # all differ
        ("bc", {"b": 400, "c": 900}, ""),
        ("bc", {"b": 240, "c": 240}, ""),  # within the bound
        ("b", {"b": 400}, ""),  # of two
        ("bcde", {"b": 400, "c": 410}, ""),  # two of five
        ("bcde", {"b": 400, "c": 410, "d": 420, "e": 0}, "bcd"),
        ("bcde", {"b": -9_000, "c": 410, "d": 420, "e": 430}, "cde"),
        ("", {}, ""),
    ],
)
def test_who_is_wrong_is_a_question_of_majorities(
    peers: str, offsets_ms: dict[str, float], against: str
) -> None:
    host = Host(peers)
    for peer, off_ms in offsets_ms.items():
        host.hears(peer, off_ms)
    assert {clock.peer for clock in host.clocks.against} == set(against)


def test_of_two_the_one_that_was_set_is_wrong() -> None:
    host = Host()
    host.clocks.look()
    host.hears("b", 10)
    host.hears("c", 900)  # it has been wrong before
    host.clocks.look()
    host.wall_ns += 1_000 * MS
    host.clocks.look()
    host.hears("b", -990)
    assert host.clocks.against == ()
    assert [clock.peer for clock in host.clocks.left] == ["b"]
    host.hears("c", -100)  # somebody agrees with us
    assert host.clocks.left == ()
    host.clocks.forget("c")
    assert host.clocks.left == (), "that has settled it"


def test_of_two_that_always_differed_nobody_knows_which_is_wrong() -> None:
    host = Host()
    host.clocks.look()
    host.hears("b", 900)
    host.clocks.look()
    host.wall_ns += 5_000 * MS
    host.clocks.look()
    host.hears("b", -4_100)
    assert host.clocks.left == ()
    host.wall_ns -= 4_100 * MS
    host.clocks.look()
    host.hears("b", 0)
    assert host.clocks.off == host.clocks.left == ()


def test_what_may_be_the_network_s_delay_is_no_fault() -> None:
    host = Host()
    for peer in "bc":
        host.hears(peer, 300, 0, 120)  # measured as 360, give or take 60
        host.hears(peer, 280, 120, 0)
    assert host.clocks.against == ()


# -- a group whose clocks go wrong -------------------------------------------------------------


async def measured(node: Node) -> None:
    """Waits until a leader knows both others' clocks."""
    await until(lambda: len(node.replica.status().peer_clocks) == 2)


async def group_with_state(cluster: Cluster) -> Node:
    leader = await cluster.leader()
    await leader.replica.propose(b"before")
    await cluster.applied(1)
    await measured(leader)
    return leader


@virtual
@pytest.mark.parametrize("step_s", [3.0, -3.0, 3600.0])
async def test_a_leader_whose_clock_jumps_hands_over_at_once(tmp_path: Path, step_s: float) -> None:
    async with running(tmp_path) as cluster:
        leader = await group_with_state(cluster)
        loop = asyncio.get_running_loop()
        leader.disk.clock_off_s = step_s
        stepped_s = loop.time()
        await until(lambda: not leader.replica.is_leader)
        heir = await cluster.leader(*(node.name for node in cluster.others(leader)))
        assert loop.time() - stepped_s < 0.3, "not by an election timeout"
        assert await heir.replica.propose(b"after") == 2
        status = leader.replica.status()
        assert f"clock of {leader.name} is off" in status.clock_fault
        assert status.clock_step_count == 1
        assert status.last_clock_step_ns == pytest.approx(step_s * 1e9, rel=0.01)
        await measured(heir)
        (off,) = [c for c in heir.replica.status().peer_clocks if c.peer == leader.name]
        assert off.offset_ns == pytest.approx(step_s * 1e9, rel=0.01)
        assert heir.replica.status().clock_fault == ""
        # It goes on as a follower, and leads again once its clock is right.
        leader.disk.clock_off_s = 0.0
        await cluster.applied(2)
        await until(lambda: heir.replica._member.clocks.off == ())
        await heir.replica.hand_over(leader.name)
        await cluster.leader(leader.name)
        await measured(leader)
        await until(lambda: leader.replica.status().clock_fault == "")


@virtual
@pytest.mark.parametrize("step_s", [-3.0, 3600.0])
async def test_of_two_that_are_left_the_one_whose_clock_jumps_does_not_lead_on(
    tmp_path: Path, step_s: float
) -> None:
    async with running(tmp_path) as cluster:
        leader = await group_with_state(cluster)
        heir, away = cluster.others(leader)
        await cluster.crash(away.name)
        await until(lambda: len(leader.replica.status().connected) == 1)
        leader.disk.clock_off_s = step_s
        stepped_s = asyncio.get_running_loop().time()
        await until(lambda: not leader.replica.is_leader)
        await cluster.leader(heir.name)
        assert asyncio.get_running_loop().time() - stepped_s < 0.3, "not by an election timeout"
        assert await heir.replica.propose(b"after") == 2
        assert f"clock of {leader.name} is off" in leader.replica.status().clock_fault
        assert heir.replica.status().clock_fault == ""
        await asyncio.sleep(5.0)
        assert heir.replica.is_leader


@virtual
async def test_a_replica_with_a_wrong_clock_never_decides_anything(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await group_with_state(cluster)
        wrong, right = cluster.others(leader)
        wrong.disk.clock_off_s = 3600.0
        await until(lambda: wrong.replica.status().clock_step_count == 1)
        assert await leader.replica.hand_over(wrong.name) == wrong.name
        await until(lambda: wrong.replica.status().clock_fault != "")
        assert wrong.terms == [], "nobody was told that it leads"
        await cluster.leader(leader.name, right.name)
        # For a while it does not even try.
        refused_s = asyncio.get_running_loop().time()
        await asyncio.sleep(CLOCK_RETIREMENT_S / 2)
        assert not wrong.replica.is_leader
        assert asyncio.get_running_loop().time() - refused_s < CLOCK_RETIREMENT_S


@virtual
async def test_a_leader_that_cannot_hand_over_stands_down_all_the_same(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await group_with_state(cluster)
        names = [node.name for node in cluster.others(leader)]
        for name in names:
            # They answer from memory; nothing that they would have to write is ever done.
            cluster[name].disk.flush_s = 10.0
        leader.disk.clock_off_s = 2.0
        begun_s = asyncio.get_running_loop().time()
        writing = asyncio.create_task(leader.replica.propose(b"waits"))
        await until(lambda: not leader.replica.is_leader)
        assert asyncio.get_running_loop().time() - begun_s < HAND_OVER_S + 1.0
        for name in names:
            cluster[name].disk.flush_s = 0.0
        await asyncio.wait([writing])
        assert writing.exception() is not None
        await cluster.leader(*names)


@virtual
async def test_one_that_differs_is_not_followed(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await group_with_state(cluster)
        wrong, _ = cluster.others(leader)
        term = leader.replica.term
        wrong.disk.clock_off_s = -30.0
        await until(lambda: leader.replica._member.clocks.off != ())
        await asyncio.sleep(5.0)
        assert (leader.replica.is_leader, leader.replica.term) == (True, term)
        assert leader.replica.status().clock_fault == ""


@virtual
async def test_all_that_are_set_together_go_on(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        leader = await group_with_state(cluster)
        for node in cluster.nodes.values():
            node.disk.clock_off_s = -7.0
        await asyncio.sleep(5.0)
        assert leader.replica.is_leader
        assert leader.replica.status().clock_step_count == 1


@virtual
async def test_one_alone_believes_its_clock(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as cluster:
        leader = await cluster.leader()
        leader.disk.clock_off_s = 100.0
        await leader.replica.propose(b"x")
        assert leader.replica.is_leader
        assert leader.replica.status().clock_step_count == 1
