"""A group under everything at once, from a seed: crashes, cuts, lost disks, loss, delay, repeats.

A failing seed fails again, the same way.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest

from tickmesh.scheduler.raft.errors import NotLeader, OutcomeUnknown, ReplicaBusy

from .clusters import Cluster, until, virtual

SEEDS = range(1250, 1900)
WRITERS = 4
STEPS = 40
PAUSE_MAX_S = 0.3
CALM_S = 30.0


class Chaos:
    """What goes on at one time: writers, readers and accidents."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.cluster = Cluster(directory, network_seed=seed, retain_entries=20)
        self.acknowledged: set[bytes] = set()
        self._writing = True
        self._written = 0

    async def write(self) -> None:
        """Proposes to whoever says that it leads, and reads from whoever says so."""
        while self._writing:
            await asyncio.sleep(self.random.uniform(0.0, PAUSE_MAX_S))
            leading = [
                node for node in self.cluster.nodes.values() if node.up and node.replica.is_leader
            ]
            if not leading:
                continue
            node = self.random.choice(leading)
            try:
                if self.random.random() < 0.3:
                    wanted = set(self.acknowledged)
                    await node.replica.read_barrier()
                    assert wanted <= set(node.state.items), "a stale read"
                else:
                    self._written += 1
                    payload = b"%d" % self._written
                    await node.replica.propose(payload)
                    self.acknowledged.add(payload)
            except (NotLeader, OutcomeUnknown, ReplicaBusy):
                continue

    async def accident(self) -> None:
        """One thing that happens."""
        cluster, chance = self.cluster, self.random
        up = [node.name for node in cluster.nodes.values() if node.up]
        down = [node.name for node in cluster.nodes.values() if not node.up]
        faults = cluster.network.faults
        match chance.randrange(9):
            case 0 | 1 if up:
                await cluster.crash(chance.choice(up))
            case 2 | 3 if down:
                await cluster.start(chance.choice(down), bootstrap=False)
            case 4:
                one, other = chance.sample(list(cluster.nodes), 2)
                cluster.network.cut(one, other)
            case 5:
                name = chance.choice(list(cluster.nodes))
                cluster.network.isolate(name, [n for n in cluster.nodes if n != name])
            case 6:
                cluster.network.heal()
            case 7:
                faults.drop, faults.duplicate = chance.choice([(0.0, 0.0), (0.2, 0.2)])
                faults.delay_max_s = chance.choice([0.0, 0.0, 0.05, 0.2])
            case 8 if not down and all(
                node.replica.status().is_voter for node in cluster.nodes.values()
            ):
                # One lost disk at a time is what three replicas can bear.
                name = chance.choice(up)
                await cluster.wipe(name)
                await cluster.start(name, bootstrap=False)

    async def calm(self) -> None:
        """Everything works again, and must become whole by itself."""
        cluster = self.cluster
        cluster.network.heal()
        faults = cluster.network.faults
        faults.drop = faults.duplicate = faults.delay_max_s = 0.0
        for node in cluster.nodes.values():
            if not node.up:
                await cluster.start(node.name, bootstrap=False)
        async with asyncio.timeout(CALM_S):
            self._writing = False
            while b"calm" not in self.acknowledged:
                leader = await cluster.leader()
                # What went on before the calm may cost one more election.
                with suppress(NotLeader, OutcomeUnknown):
                    await leader.replica.propose(b"calm")
                    self.acknowledged.add(b"calm")
            await cluster.applied(len(leader.state.items))
            await until(lambda: all(n.replica.status().is_voter for n in cluster.nodes.values()))


@pytest.mark.parametrize("seed", SEEDS)
@virtual
async def test_nothing_acknowledged_is_lost_nor_is_anything_applied_twice(
    tmp_path: Path, seed: int
) -> None:
    chaos = Chaos(tmp_path, seed)
    cluster = chaos.cluster
    await cluster.start()
    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(chaos.write())
        for _ in range(STEPS):
            await asyncio.sleep(chaos.random.uniform(0.0, 1.0))
            await chaos.accident()
        await chaos.calm()
    assert all(node.replica.failure is None for node in cluster.nodes.values())
    await asyncio.sleep(1.0)
    states = {node.state.items for node in cluster.nodes.values()}
    await cluster.stop()
    (items,) = states
    assert chaos.acknowledged <= set(items)
    assert len(set(items) - {b"calm"}) == len(items) - items.count(b"calm")
