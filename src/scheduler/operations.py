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
from .raft.errors import ChangeRefused
from .raft.members import Members
from .raft.messages import MEMBERS_SINCE, Introduction
from .raft.replica import Replica
from .raft.snapshots import clear
from .raft.transport import TransportError
from .store.state import State

LINKS = "raft/backup"
"""In the data directory: the checkpoint that a backup is copied from."""

_PREFIX = "tickmesh.v1.ClusterService"


class Operations:
    """The methods of one replica, by their names, for while it leads."""

    def __init__(
        self,
        replica: Replica,
        state: State,
        settings: SchedulerConfig,
        introduce: Callable[[str], Awaitable[Introduction]],
    ) -> None:
        """introduce: who listens at an address; raises TransportError."""
        self._replica = replica
        self._introduce = introduce
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
            f"{_PREFIX}/AddReplica": (cluster_pb2.AddReplicaRequest, self.add_replica),
            f"{_PREFIX}/RemoveReplica": (cluster_pb2.RemoveReplicaRequest, self.remove_replica),
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
        config, members = self._replica.config, self._replica.committed_members
        if request.replica_id == config.replica_id:
            return cluster_pb2.TransferLeadershipResponse(leader_id=config.replica_id)
        if request.replica_id and request.replica_id not in members.voters:
            known = ", ".join(sorted(members.voters))
            raise NotFound(f"there is no replica {request.replica_id!r}; there are: {known}")
        leader = await self._replica.hand_over(request.replica_id)
        if leader is None:
            who = request.replica_id or "any other replica"
            raise FailedPrecondition(
                f"{config.replica_id} leads on: {who} was not connected, not up to date, or did "
                "not take over in time. See GetCluster"
            )
        return cluster_pb2.TransferLeadershipResponse(leader_id=leader)

    async def add_replica(self, request: cluster_pb2.AddReplicaRequest) -> cluster_pb2.Shard:
        """See cluster.proto."""
        address, config = request.address, self._replica.config
        self._check_versions()
        try:
            found = await self._introduce(address)
        except TransportError as error:
            raise FailedPrecondition(
                f"no replica answers at {address!r}: start it first, with an empty data directory "
                f"and this shard's replicas and its own in scheduler.shard ({error})"
            ) from error
        who = f"the replica {found.replica_id!r} at {address!r}"
        if found.group_id != config.group_id:
            raise FailedPrecondition(
                f"{who} belongs to the group {found.group_id!r}, not to {config.group_id!r}: check "
                "the address, and its scheduler.shard and scheduler.group_id"
            )
        if self._replica.committed_members.find(found.replica_id) is not None:
            await self._replica.read_barrier()  # what is said of a list is said of the last one
        members = self._replica.committed_members
        listed = members.find(found.replica_id)
        if listed is not None:
            if listed.address == address and members.names(listed.id, found.incarnation):
                return self._answer(members)  # asked again, perhaps as nobody knew the outcome
            raise AlreadyExists(
                f"{who} is in the list already, at {listed.address!r}: nothing to add. A replica "
                "that moves to another address is added under another id, and the old one removed"
            )
        if found.voter:  # a learner's data, as of an addition that was lost, counts for nothing
            raise FailedPrecondition(
                f"{who} has data, up to entry {found.last_index}, or was started with bootstrap: "
                "start it with an empty data directory and without"
            )
        if found.entry_version < max(self._state.meta.entry_version, MEMBERS_SINCE):
            raise FailedPrecondition(
                f"{who} runs an older version of the scheduler, which does not know what is in "
                "this shard's log: upgrade it first"
            )
        return await self._changed(
            self._replica.add_replica(found.replica_id, address, found.incarnation)
        )

    async def remove_replica(self, request: cluster_pb2.RemoveReplicaRequest) -> cluster_pb2.Shard:
        """See cluster.proto."""
        self._check_versions()
        return await self._changed(self._replica.remove_replica(request.replica_id))

    async def _changed(self, change: Awaitable[Members]) -> cluster_pb2.Shard:
        """The list that a change makes. Only the last one refuses it."""
        try:
            return self._answer(await change)
        except ChangeRefused:
            await self._replica.read_barrier()
            raise

    def _check_versions(self) -> None:
        # What was once committed in a version is applied by whoever still is a replica.
        if max(self._replica.entry_version, self._state.meta.entry_version) < MEMBERS_SINCE:
            raise FailedPrecondition(
                "this needs a newer version of the scheduler on every replica of the shard: one "
                "runs an older one, or has not been heard of since the last election. Upgrade or "
                "start it"
            )

    def _answer(self, members: Members) -> cluster_pb2.Shard:
        return cluster_pb2.Shard(
            shard_id=self._settings.shard.shard_id,
            members_number=members.number,
            replicas=[
                cluster_pb2.Replica(
                    replica_id=each.id, address=each.address, learner=not each.voter
                )
                for each in members.replicas
            ],
        )

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
            # With all that was acknowledged before: another replica may lead, unknown to this one.
            await self._replica.read_barrier()
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
