"""What operators ask of a shard's leader: the methods of ClusterService that need it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from ..mesh.config import SchedulerConfig
from ..mesh.errors import AlreadyExists, FailedPrecondition, NotFound
from ..proto.tickmesh.v1 import cluster_pb2
from . import backup
from .core.commands import ENTRY_VERSION
from .raft.replica import Replica
from .raft.snapshots import clear
from .store.state import State

LINKS = "raft/backup"
"""In the data directory: the checkpoint that a backup is copied from."""

_PREFIX = "tickmesh.v1.ClusterService"


class Operations:
    """The methods of one replica, by their names, for while it leads."""

    def __init__(self, replica: Replica, state: State, settings: SchedulerConfig) -> None:
        self._replica = replica
        self._state = state
        self._settings = settings
        self._backups = backup.backups(settings)
        self._backup: tuple[backup.Place, asyncio.Task[cluster_pb2.BackupShardResponse]] | None = (
            None
        )
        """The one under way, or the last."""
        self.steps: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]] = {
            f"{_PREFIX}/TransferLeadership": (
                cluster_pb2.TransferLeadershipRequest,
                self.transfer_leadership,
            ),
            f"{_PREFIX}/BackupShard": (cluster_pb2.BackupShardRequest, self.backup_shard),
        }

    async def close(self) -> None:
        """End what is under way."""
        if self._backup is not None:
            _, task = self._backup
            task.cancel()
            await asyncio.wait([task])

    async def transfer_leadership(
        self, request: cluster_pb2.TransferLeadershipRequest
    ) -> cluster_pb2.TransferLeadershipResponse:
        """See cluster.proto."""
        config = self._replica.config
        if request.replica_id == config.replica_id:
            return cluster_pb2.TransferLeadershipResponse(leader_id=config.replica_id)
        if request.replica_id and request.replica_id not in config.peers:
            known = ", ".join(sorted((config.replica_id, *config.peers)))
            raise NotFound(f"there is no replica {request.replica_id!r}; there are: {known}")
        leader = await self._replica.hand_over(request.replica_id)
        if leader is None:
            who = request.replica_id or "any other replica"
            raise FailedPrecondition(
                f"{config.replica_id} leads on: {who} was not connected, not up to date, or did "
                "not take over in time. See GetCluster"
            )
        return cluster_pb2.TransferLeadershipResponse(leader_id=leader)

    async def backup_shard(
        self, request: cluster_pb2.BackupShardRequest
    ) -> cluster_pb2.BackupShardResponse:
        """See cluster.proto. Goes on when its caller has gone; who asks again for the same waits
        for the same."""
        if self._backups is None:
            raise FailedPrecondition(
                f"{self._settings.replica_id}, which leads, has no scheduler.backup_directory or "
                "backup_store in its configuration: backups have no place to go"
            )
        destination = backup.Place(self._backups, request.directory)
        if self._backup is not None and not self._backup[1].done():
            under_way, task = self._backup
            if under_way != destination:
                raise FailedPrecondition(f"a backup to {under_way} is under way: wait for its end")
        else:
            task = asyncio.create_task(self._make_backup(destination))
            self._backup = destination, task
        return await asyncio.shield(task)

    async def _make_backup(self, destination: backup.Place) -> cluster_pb2.BackupShardResponse:
        settings = self._settings
        links = Path(settings.data_directory) / LINKS
        try:
            index, term = await self._replica.checkpoint(links)
            origin = backup.Origin(
                shard_id=settings.shard.shard_id,
                group_id=self._replica.config.group_id,
                replica_id=settings.replica_id,
                index=index,
                term=term,
                time_ms=self._state.meta.time_ms,
                entry_version=ENTRY_VERSION,
            )
            manifest = await asyncio.to_thread(backup.write, links, destination, origin)
        except backup.BackupExists as error:
            raise AlreadyExists(str(error)) from error
        except backup.BackupError as error:
            raise FailedPrecondition(str(error)) from error
        finally:
            await asyncio.to_thread(clear, links)
        return cluster_pb2.BackupShardResponse(
            replica_id=settings.replica_id,
            path=str(destination),
            applied_index=index,
            file_count=len(manifest.files),
            size_bytes=manifest.size_bytes,
        )
