"""What goes wrong, and when: one fault after the other, several at a time, all from the seed.

crash, crash_all    a process is killed, or its machine loses power: what was not flushed is
                    lost but for some prefix of its batches (a batch is whole, or not there)
crash_at_point      the same at a write, a flush, a message's sending, before or after it
fail_disk           flushes fail; fill_disk: writes do; slow_disk: flushes take up to 0.4 s
wipe                a disk is replaced by an empty one
find_disk           a lost disk is found, and started for a while in the place of its successor
jump_clock          a wall clock jumps, to 0.4 s from true time at most; all wander, always; in some
                    simulations those of worker hosts jump, too, farther, and their hosts reboot
isolate             a replica is cut off, from the others alone or from everybody
cut_one_way         nothing gets from one replica to another
rough_network       messages are lost, doubled, delayed, and so reordered
flap                two replicas lose their connection, and find it again
change_members      replicas are added, with empty disks, and removed, the leader too, at any time
transfer            leadership goes to another replica, at once; and with every loss of a leader
lose_executor       a worker host's process dies, the host reboots, or is replaced
isolate_executor    a worker host is cut off, for longer than its lease or not
isolate_client      a client is cut off from a replica, one way
stop                a replica's or a worker host's process does nothing for a while, as when it is
                    stopped or its machine is; then it finds what has come, and all that is due
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from tickmesh.scheduler.raft.errors import ChangeRefused, NotLeader, OutcomeUnknown

if TYPE_CHECKING:
    from tickmesh.scheduler.raft.members import Members

    from .world import Node, World

PAUSE_S = 2.5
"""Mean between two faults."""

STOP_PAUSE_S = 2.5
"""Mean between two stops of processes, where there are any."""

REPLICAS_MAX = 5
"""At one time."""

SET_PAUSE_S = 2.5
"""Mean between two times that a worker host's clock is set, where they are."""

ELECTION_LOOKS, ELECTION_LOOK_S = 400, 0.0005
"""How often and how long a new leader is looked for."""

CLOCK_BOUND_MS = 400.0
"""How far replicas' wall clocks are from true time at most."""

HOST_CLOCK_BOUND_MS = 2_000.0
"""And those of worker hosts, which follow their leader's."""


def is_about_members(seed: int) -> bool:
    """In every fifth simulation replicas are added and removed all the time."""
    return seed % 5 == 0


def is_about_disks(seed: int) -> bool:
    """In every fifth simulation disks are lost and found."""
    return seed % 5 == 4


def is_about_stops(seed: int) -> bool:
    """In every seventh simulation processes are stopped for a while, beside all else."""
    return seed % 7 == 6


def is_about_clocks(seed: int) -> bool:
    """In every seventh simulation worker hosts' clocks are set again and again."""
    return seed % 7 == 3


class Faults:
    """See the module. `run` until cancelled; the world heals what is left."""

    def __init__(self, world: World, seed: str) -> None:
        self._world = world
        self._chance = random.Random(f"{seed}/faults")
        self._stops = random.Random(f"{seed}/stops")
        self._clocks = random.Random(f"{seed}/clocks")
        self.made = 0
        self._changing = 0
        self._choices: list[tuple[int, Callable[[], Coroutine[Any, Any, None]]]] = [
            (5, self.crash),
            (5, self.crash_at_point),
            (1, self.crash_all),
            (4, self.isolate),
            (3, self.cut_one_way),
            (3, self.rough_network),
            (4, self.jump_clock),
            (2, self.slow_disk),
            (1, self.fail_disk),
            (1, self.fill_disk),
            (15 if is_about_disks(world.report.seed) else 1, self.wipe),
            (2, self.flap),
            (2, self.transfer),
            (60 if is_about_members(world.report.seed) else 3, self.change_members),
            (3, self.lose_executor),
            (5, self.isolate_executor),
            (2, self.isolate_client),
            (30 if is_about_disks(world.report.seed) else 0, self.find_disk),
        ]

    async def run(self) -> None:
        """Until cancelled."""
        weights = [weight for weight, _ in self._choices]
        async with asyncio.TaskGroup() as group:
            if is_about_stops(self._world.report.seed):
                group.create_task(self._stop_again_and_again())
            if is_about_clocks(self._world.report.seed):
                group.create_task(self._set_again_and_again())
            while True:
                await asyncio.sleep(
                    self._chance.expovariate(1 / PAUSE_S) * self._world.pace.stretch
                )
                (_, fault) = self._chance.choices(self._choices, weights)[0]
                self.made += 1
                group.create_task(fault())

    def _node(self) -> Node:
        world, chance = self._world, self._chance
        leaders = [node for node in world.nodes if node.leads]
        return chance.choice(leaders if leaders and chance.random() < 0.5 else world.nodes)

    async def _for(self, low_s: float, high_s: float) -> None:
        await asyncio.sleep(self._chance.uniform(low_s, high_s) * self._world.pace.stretch)

    async def _stop_again_and_again(self) -> None:
        world, chance = self._world, self._stops
        while True:
            await asyncio.sleep(chance.expovariate(1 / STOP_PAUSE_S) * world.pace.stretch)
            self.made += 1
            if chance.random() < 0.4:
                leaders = [node for node in world.nodes if node.leads]
                node = chance.choice(leaders if leaders and chance.random() < 0.5 else world.nodes)
                for_s = chance.uniform(0.2, 5.0) * world.pace.stretch
                if node.machine.process is not None:
                    world.note(f"{node.name} is stopped for {for_s:.1f} s")
                    node.machine.process.stop(for_s)
                continue
            # Until its lease is over, or two are; the answer to its heartbeat waits for it.
            host = chance.choice(world.hosts)
            low_s, high_s = chance.choice(((0.5, 9.0), (10.5, 13.0), (10.5, 13.0)))
            host.stops_for_s = chance.uniform(low_s, high_s) * world.pace.stretch
            world.note(f"{host.machine.name} is stopped for {host.stops_for_s:.1f} s")

    async def _set_again_and_again(self) -> None:
        world, chance = self._world, self._clocks
        while True:
            await asyncio.sleep(chance.expovariate(1 / SET_PAUSE_S) * world.pace.stretch)
            self.made += 1
            host = chance.choice(world.hosts)
            machine, reboots = host.machine, chance.random() < 0.4
            if reboots and machine.process is not None:
                host.reboot(forget=False)
            machine.set_clock(chance.uniform(-HOST_CLOCK_BOUND_MS, HOST_CLOCK_BOUND_MS))
            what = "reboots, and its clock is" if reboots else "has its clock"
            world.note(f"{machine.name} {what} set to {machine.offset_ms:+.0f} ms")

    # -- replicas ------------------------------------------------------------------------------

    async def crash(self) -> None:
        self._node().machine.die(power_lost=self._chance.random() < 0.5)

    async def crash_at_point(self) -> None:
        machine = self._node().machine
        machine.power_lost_at_point = self._chance.random() < 0.8
        machine.points_left = self._chance.randint(1, 60)

    async def crash_all(self) -> None:
        for node in self._world.nodes:
            node.machine.die(power_lost=True)

    async def jump_clock(self) -> None:
        machine = self._node().machine
        machine.set_clock(self._chance.uniform(-CLOCK_BOUND_MS, CLOCK_BOUND_MS))
        self._world.note(f"{machine.name}'s clock jumps to {machine.offset_ms:+.0f} ms")

    async def slow_disk(self) -> None:
        machine = self._node().machine
        flush_s = machine.flush_s
        machine.flush_s = self._chance.choice((0.02, 0.1, 0.4))
        self._world.note(f"{machine.name}'s disk slows down to {machine.flush_s:g} s")
        await self._for(0.5, 6.0)
        machine.flush_s = flush_s

    async def fail_disk(self) -> None:
        machine = self._node().machine
        machine.flush_fails = True
        self._world.note(f"{machine.name}'s disk fails")
        await self._for(0.2, 2.0)
        machine.flush_fails = False

    async def fill_disk(self) -> None:
        machine = self._node().machine
        machine.is_full = True
        self._world.note(f"{machine.name}'s disk is full")
        await self._for(0.2, 4.0)
        machine.is_full = False

    async def wipe(self) -> None:
        """A disk is lost for good, while no other replica is still catching up, nor a list of the
        replicas under way: three are needed to bear it."""
        node, lists = self._node(), self._world.lists()
        numbers = {members.number for members in lists}
        enough = all(len(members.voters) >= 3 for members in lists)
        voters = {name for members in lists for name in members.voters}
        if (
            enough
            and len(numbers) == 1
            and not self._changing
            # What a disk that was lost before says of itself is not so any more.
            and not any(each.is_old for each in self._world.nodes)
            and all(
                other.is_voter
                for other in self._world.nodes
                if other is not node and other.name in voters
            )
        ):
            node.wipe()

    async def find_disk(self) -> None:
        """Somebody starts it by mistake. It thinks that it is a voter."""
        found = [node for node in self._world.nodes if node.may_be_old and not node.is_old]
        if not found:
            return
        node = self._chance.choice(found)
        node.exchange_disks()
        node.boot()
        if not node.is_old:
            return
        try:
            await self._for(0.5, 8.0)
        finally:
            node.exchange_disks()
        if node in self._world.nodes:
            node.boot()

    async def change_members(self) -> None:
        """Asked of who says that it leads, whether or not that is a good moment."""
        world, chance = self._world, self._chance
        leaders = [node for node in world.nodes if node.leads]
        if not leaders:
            return
        leader = chance.choice(leaders)
        if chance.random() < 0.4:  # just elected: nothing of its own is committed yet
            leader = await self._next_leader(leader)
        replica, process = leader.replica, leader.machine.process
        if replica is None or process is None:
            return
        async with asyncio.TaskGroup() as group:
            if chance.random() < 0.3:  # what it appends stays without a majority for a while
                others = [node.name for node in world.nodes if node is not leader]
                unheard = chance.sample(others, chance.randint(1, len(others)))
                links = [(leader.name, name) for name in unheard]
                what = f"{leader.name} is not heard by {unheard}"
                group.create_task(self._cut(what, links, 0.2, 2.0))
            removes = chance.random() < 0.6
            for _ in range(chance.choice((1, 1, 2, 3))):
                change = self._some_change(leader, removes)
                removes = not removes
                if change is not None:
                    self._changing += 1
                    process.spawn(self._change(change))
                    await asyncio.sleep(chance.uniform(0.0, 0.02))
            await self._for(5.0, 5.0)
        self._changing = 0

    async def _next_leader(self, leader: Node) -> Node:
        """After an election that is asked for; the old one if there is none soon."""
        world = self._world
        assert leader.replica is not None
        term = leader.replica.term
        others = [node for node in world.nodes if node is not leader]
        leader.replica.transfer_leadership(self._chance.choice(others).name)
        for _ in range(ELECTION_LOOKS):
            for node in others:
                if node.leads and node.replica is not None and node.replica.term > term:
                    return node
            await asyncio.sleep(ELECTION_LOOK_S)
        return leader

    def _some_change(
        self, leader: Node, removes: bool
    ) -> Callable[[], Coroutine[Any, Any, Members]] | None:
        world, chance, replica = self._world, self._chance, leader.replica
        if replica is None:
            return None
        listed = world.lists()[-1].ids
        if len(listed) >= REPLICAS_MAX or (len(listed) > 3 and removes):
            node = leader if chance.random() < 0.3 else chance.choice(world.nodes)
            world.note(f"{leader.name} is asked to remove {node.name}")
            return partial(replica.remove_replica, node.name)
        fresh = [node for node in world.nodes if node.name not in listed and not node.was_voter]
        if not fresh and not world.has_room:
            return None
        node = fresh[0] if fresh else world.add_node()
        world.note(f"{leader.name} is asked to add {node.name}")
        disk = node.replica.introduction.incarnation if node.replica is not None else 0
        return partial(replica.add_replica, node.name, node.name, disk)

    async def _change(self, change: Callable[[], Coroutine[Any, Any, Members]]) -> None:
        with contextlib.suppress(ChangeRefused, NotLeader, OutcomeUnknown):
            await change()

    async def transfer(self) -> None:
        for node in self._world.nodes:
            if node.leads and node.replica is not None:
                other = self._chance.choice([n for n in self._world.nodes if n is not node])
                if node.replica.transfer_leadership(other.name):
                    self._world.note(f"{node.name} hands over to {other.name}")

    # -- the network ---------------------------------------------------------------------------

    async def isolate(self) -> None:
        node = self._node()
        others = [other.name for other in self._world.nodes if other is not node]
        if self._chance.random() < 0.4:  # from its clients and executors too
            others += self._world.outsiders
        else:
            for each in (*self._world.clients, *self._world.operators):
                each.process.spawn(each.tell_apart(node.name, 1.5 * self._world.pace.stretch))
        links = [link for name in others for link in ((node.name, name), (name, node.name))]
        await self._cut(f"{node.name} is isolated", links, 0.3, 8.0)

    async def cut_one_way(self) -> None:
        one, other = self._chance.sample([node.name for node in self._world.nodes], 2)
        await self._cut(f"nothing gets from {one} to {other}", [(one, other)], 0.3, 8.0)

    async def isolate_executor(self) -> None:
        host = self._chance.choice(self._world.hosts).machine.name
        names = [node.name for node in self._world.nodes]
        if self._chance.random() < 0.4:
            names = self._chance.sample(names, 1)
        links = [link for name in names for link in ((host, name), (name, host))]
        # Often for just longer than two leases: its attempts go elsewhere meanwhile.
        low_s, high_s = self._chance.choice(((0.5, 25.0), (10.5, 15.0)))
        await self._cut(f"{host} cannot reach {names}", links, low_s, high_s)

    async def isolate_client(self) -> None:
        client = self._chance.choice(self._world.clients).name
        node = self._node().name
        links = self._chance.choice(([(client, node)], [(node, client)]))
        await self._cut(f"{links} is cut", links, 0.5, 4.0)

    async def _cut(
        self, what: str, links: list[tuple[str, str]], low_s: float, high_s: float
    ) -> None:
        self._world.note(what)
        for link in links:
            self._world.network.cut(*link)
        await self._for(low_s, high_s)
        self._world.network.mend(links)

    async def rough_network(self) -> None:
        chance = self._chance
        drop, duplicate = chance.choice((0.0, 0.05, 0.3)), chance.choice((0.0, 0.05, 0.3))
        delay_s = chance.choice((0.005, 0.05, 0.25))
        self._world.note(f"the network drops {drop:g}, doubles {duplicate:g}, delays {delay_s:g} s")
        self._world.network.rough(drop, duplicate, delay_s)
        await self._for(0.5, 6.0)
        self._world.network.calm()

    async def flap(self) -> None:
        one, other = self._chance.sample(self._world.nodes, 2)
        ends = [(one, other.name), (other, one.name)]
        self._world.note(f"{one.name} and {other.name} lose their connection")
        for node, peer in ends:
            if node.transport is not None:
                node.transport.handle_disconnected(peer)
        await self._for(0.0, 1.0)
        for node, peer in ends:
            if node.transport is not None:
                node.transport.handle_connected(peer)

    # -- executors -----------------------------------------------------------------------------

    async def lose_executor(self) -> None:
        host = self._chance.choice(self._world.hosts)
        if host.machine.process is None:
            return
        match self._chance.randrange(3):
            case 0:
                host.kill()
            case 1:
                host.reboot(forget=False)
                self._world.note(f"{host.machine.name} reboots")
            case 2:
                host.reboot(forget=True)
                self._world.note(f"{host.machine.name} is replaced")
