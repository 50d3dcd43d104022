"""An operator who has backups made whatever goes wrong meanwhile, and looks into each: it is the
state as of the entry that it names, and has all that was applied anywhere before it was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tickmesh.mesh.config import ObjectStore
from tickmesh.mesh.errors import AlreadyExists, FailedPrecondition
from tickmesh.mesh.objects import Objects
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import cluster_pb2
from tickmesh.scheduler import backup
from tickmesh.scheduler.backup import BackupError, Manifest, Place
from tickmesh.scheduler.store.backend import MemoryBackend
from tickmesh.scheduler.store.state import State

from .clients import CALL_TIMEOUT_S, Client, Unknown
from .ledger import Ledger
from .machine import digest_of
from .network import Refused, call
from .pace import Pace

T = TypeVar("T")
METHOD = "tickmesh.v1.ClusterService/BackupShard"
EVERY_S = 1.5
"""Mean between two backups, at a busy pace."""

THREAD_S = 0.2
"""How long a thread takes at most, before and after it does what it is for."""


def is_backed_up(seed: int) -> bool:
    """In every eighth simulation; the others go as if there were no such thing."""
    return seed % 8 == 5


@contextlib.contextmanager
def threads(seed: int, pace: Pace) -> Iterator[None]:
    """A backup is copied in a thread: here that takes its time, and there is none."""
    chance = random.Random(f"{seed}/threads")

    async def to_thread(call: Callable[..., T], *arguments: Any) -> T:
        await asyncio.sleep(chance.uniform(0.0, THREAD_S) * pace.stretch)
        result = call(*arguments)
        await asyncio.sleep(chance.uniform(0.0, THREAD_S) * pace.stretch)
        return result

    kept = asyncio.to_thread
    asyncio.to_thread = to_thread  # type: ignore[assignment]
    try:
        yield
    finally:
        asyncio.to_thread = kept


class Operator(Client):
    """See the module."""

    def __init__(
        self,
        directory: Path,
        ledger: Ledger,
        number: int,
        *shared: Any,
    ) -> None:
        """directory: where the replicas put backups."""
        super().__init__(number, *shared)
        self._directory = directory
        self._ledger = ledger
        self._asked = 0
        self.looked_into = 0

    async def run(self) -> None:
        """Until told to stop."""
        while not self.stopping:
            await asyncio.sleep(self.chance.uniform(0.2, 1.8) * EVERY_S * self._pace.stretch)
            request, applied = self._next()
            try:
                await self.ask(METHOD, request, cluster_pb2.BackupShardResponse)
            except AlreadyExists:
                pass  # an earlier try has made it, or has been cut off
            except FailedPrecondition:
                pass  # one that was given up is still under way, or its checkpoint was taken away
            except Unknown:
                self._note(f"{self.name} does not know")
            self._look_into(request.directory, applied)

    async def tell_apart(self, isolated: str, seconds: float) -> None:
        """While a leader is cut off from the others: ask it, which may still believe that it
        leads."""
        await asyncio.sleep(self.chance.uniform(0.2, 1.0) * seconds)
        request, applied = self._next()
        message = shard_pb2.CallRequest(
            calls=[shard_pb2.Call(method=METHOD, request=request.SerializeToString())]
        )
        with contextlib.suppress(TimeoutError, ConnectionError, Refused):
            await call(
                self._network,
                self.name,
                isolated,
                lambda: self._find(isolated),
                message,
                CALL_TIMEOUT_S * self._pace.stretch,
            )
        self._look_into(request.directory, applied)

    def _next(self) -> tuple[cluster_pb2.BackupShardRequest, int]:
        """The next backup, and the last entry that anybody has applied."""
        self._asked += 1
        request = cluster_pb2.BackupShardRequest(directory=f"backup-{self._asked}")
        return request, max(self._ledger.entries, default=0)

    def _look_into(self, name: str, applied: int) -> None:
        objects = Objects(ObjectStore(str(self._directory)), "the operator")
        place = Place(objects, name)
        try:
            manifest = backup.read_manifest(place)
        except BackupError:
            return  # it was cut off: there is none
        try:
            content = self._restore(place, manifest)
        except BackupError as error:
            self._violate(f"{name} cannot be restored: {error}")
            return
        self.looked_into += 1
        origin, ledger = manifest.origin, self._ledger
        self._note(f"{name} is of {origin.replica_id}, as of entry {origin.index}")
        digest = reduce(int.__xor__, (digest_of(*pair) for pair in content.items()), 0)
        ledger.holds(name, origin.index, digest)
        restored = MemoryBackend()
        restored.write(content)
        meta = State(restored).meta  # type: ignore[arg-type]
        if (meta.index, meta.term, meta.time_ms) != (origin.index, origin.term, origin.time_ms):
            self._violate(f"{name} is of {origin}, and holds {meta}")
        if origin.index < applied:
            self._violate(f"{name} is of entry {origin.index}, and asked for after {applied}")

    def _restore(self, place: Place, manifest: Manifest) -> dict[bytes, bytes]:
        """Every pair in it. Raises BackupError."""
        scratch = self._directory / "scratch"
        scratch.mkdir()
        try:
            for file in manifest.files:
                backup._restore_file(place, scratch, file)
            return dict(msgspec.msgpack.decode((scratch / "state").read_bytes()))
        finally:
            shutil.rmtree(scratch)
