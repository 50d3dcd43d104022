"""What happens to the processes of a mesh, drawn from a seed: each is killed, stopped (it may go on
as if nothing had been), ended in order, and started again; replicas are exchanged for new ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable

from tickmesh.mesh.local import SHARD_ID, Child, LocalMesh, MeshFailed
from tickmesh.sdk.aio import AsyncClient
from tickmesh.sdk.errors import TickmeshError

PAUSE_S = 2.0
"""Mean between two faults."""

AT_ONCE_MAX = 3
REPLACEMENTS_MAX = 5
"""Of replicas, in one run: each stays on the disk."""

LOOK_S = 0.2


class Faults:
    """See the module. `run` until cancelled, then `heal`."""

    def __init__(
        self,
        local: LocalMesh,
        client: AsyncClient,
        runtime: str,
        seed: int,
        lease_s: float,
        note: Callable[[str], None],
        violate: Callable[[str], None],
    ) -> None:
        self.made: dict[str, int] = {}
        self._local = local
        self._client = client
        self._chance = random.Random(f"{seed}/faults")
        self._lease_s = lease_s
        self._note = note
        self._violate = violate
        self._busy: set[Child] = set()
        self._under_way: set[asyncio.Task[None]] = set()
        self._replaced = 0
        self._faults: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (5, self.kill_replica),
            (4, self.stop_replica),
            (2, self.end_replica),
            (1, self.kill_replicas),
            (1, self.replace_replica),
            (4, self.kill_executor),
            (4, self.stop_executor),
            (2, self.end_executor),
            (2, self.kill_gateway),
        ]
        if runtime == "containerd":
            self._faults.append((2, self.kill_containerd))

    async def run(self) -> None:
        """One after the other, some at once."""
        weights = [weight for weight, _ in self._faults]
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / PAUSE_S))
            (_, fault) = self._chance.choices(self._faults, weights)[0]
            if len(self._under_way) < AT_ONCE_MAX:
                name = fault.__name__
                self.made[name] = self.made.get(name, 0) + 1
                task = asyncio.ensure_future(fault())
                self._under_way.add(task)
                task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._violate(f"{task.get_name()}: {task.exception()!r}")

    async def heal(self) -> None:
        """Wait until all that was begun is over, and everything serves."""
        while self._under_way:
            await asyncio.wait(self._under_way)
        for child in self._local.children:
            await self._serving(child)

    async def _serving(self, child: Child) -> None:
        """Wait until it serves, or has noticed that it was removed."""
        try:
            await child.serving()
        except MeshFailed:
            if not self._local._leaves(child):
                raise

    async def watch(self) -> None:
        """Until cancelled: nobody ends unasked."""
        while True:
            for child in self._local.children:
                ended = child.process is not None and child.process.returncode is not None
                if ended and child not in self._busy and not self._local._leaves(child):
                    self._violate(str(child.failed()))
                    self._busy.add(child)
            await asyncio.sleep(LOOK_S)

    def _some(self, children: list[Child]) -> Child | None:
        free = [child for child in children if child not in self._busy]
        return self._chance.choice(free) if free else None

    async def _replica(self) -> Child | None:
        """Half of the time the leader, if somebody knows it."""
        if self._chance.random() < 0.5:
            with contextlib.suppress(TickmeshError):
                cluster = await self._client.cluster(deadline_s=1.0)
                leaders = {r.replica_id for s in cluster.shards for r in s.replicas if r.leader}
                leading = [child for child in self._local.replicas if child.name in leaders]
                if leading:
                    return self._some(leading)
        return self._some(self._local.replicas)

    async def _down(
        self, child: Child | None, end: Callable[[Child], Awaitable[None]], down_s: float
    ) -> None:
        """End it, and start it again after a while."""
        if child is None:
            return
        self._busy.add(child)
        await end(child)
        await asyncio.sleep(down_s)
        await child.spawn()
        await self._serving(child)
        self._busy.discard(child)

    async def _stop(self, child: Child | None, for_s: float) -> None:
        if child is None:
            return
        self._busy.add(child)
        self._note(f"{child.name} is stopped for {for_s:.1f} s")
        child.signal(signal.SIGSTOP)
        await asyncio.sleep(for_s)
        child.signal(signal.SIGCONT)
        self._note(f"{child.name} goes on")
        self._busy.discard(child)

    async def _kill(self, child: Child) -> None:
        self._note(f"{child.name} is killed")
        await child.kill()

    async def _end(self, child: Child) -> None:
        self._note(f"{child.name} is asked to end")
        await child.end()

    async def kill_replica(self) -> None:
        await self._down(await self._replica(), self._kill, self._chance.uniform(0.0, 3.0))

    async def end_replica(self) -> None:
        await self._down(await self._replica(), self._end, self._chance.uniform(0.0, 3.0))

    async def stop_replica(self) -> None:
        await self._stop(await self._replica(), self._chance.uniform(0.2, 4.0))

    async def kill_replicas(self) -> None:
        """All at once, as if the lights went out."""
        down_s = self._chance.uniform(0.0, 2.0)
        free = [child for child in self._local.replicas if child not in self._busy]
        await asyncio.gather(*(self._down(child, self._kill, down_s) for child in free))

    async def replace_replica(self) -> None:
        """A new one comes, an old one leaves."""
        if self._replaced == REPLACEMENTS_MAX:
            return
        self._replaced += 1
        child = self._local.further_replica(f"{SHARD_ID}-further-{self._replaced}")
        self._busy.add(child)
        await child.spawn()
        await child.serving()
        self._note(f"{child.name} is added")
        scheduler = child.settings.scheduler
        assert scheduler is not None
        address = next(p.address for p in scheduler.shard.replicas if p.replica_id == child.name)
        await self._surely(lambda: self._client.add_replica(SHARD_ID, address))
        self._busy.discard(child)
        await self._until_it_counts(child.name)  # three stay
        old = self._some([each for each in self._local.replicas if each is not child])
        if old is not None:
            self._note(f"{old.name} is removed")
            await self._surely(lambda: self._client.remove_replica(SHARD_ID, old.name))

    async def _until_it_counts(self, name: str) -> None:
        """Until a replica has caught up: nobody but the mesh's own view tells."""
        while True:
            with contextlib.suppress(TickmeshError):
                cluster = await self._client.cluster(deadline_s=2.0)
                replicas = [r for shard in cluster.shards for r in shard.replicas]
                if any(r.replica_id == name and not r.learner for r in replicas):
                    return
            await asyncio.sleep(LOOK_S)

    async def _surely(self, change: Callable[[], Awaitable[object]]) -> None:
        for _ in range(60):
            try:
                await change()
            except TickmeshError as error:
                self._note(f"  refused: {error}")
                await asyncio.sleep(1.0)
            else:
                return
        self._violate("a change of replicas was refused for a minute")

    async def kill_executor(self) -> None:
        down_s = self._chance.choice((0.0, self._chance.uniform(0.0, 3 * self._lease_s)))
        await self._down(self._some(self._local.executors), self._kill, down_s)

    async def end_executor(self) -> None:
        await self._down(self._some(self._local.executors), self._end, 0.0)

    async def stop_executor(self) -> None:
        """For less than its lease, or for longer than two: then its work goes elsewhere."""
        low_s, high_s = self._chance.choice(((0.2, 1.0), (2.0, 2.6)))
        for_s = self._chance.uniform(low_s, high_s) * self._lease_s
        await self._stop(self._some(self._local.executors), for_s)

    async def kill_gateway(self) -> None:
        await self._down(
            self._some(self._local.gateways), self._kill, self._chance.uniform(0.0, 1.0)
        )

    async def kill_containerd(self) -> None:
        """An executor's own: it starts another one, and containers go on meanwhile."""
        child = self._chance.choice(self._local.executors)
        kept = self._local.directory / child.name / "containerd" / "containerd.pid"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = int(json.loads(kept.read_text())["pid"])
            self._note(f"{child.name}'s containerd is killed")
            os.kill(pid, signal.SIGKILL)
