"""One scheduler replica's process: opens the state, joins the group, serves, ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from ..mesh import process, telemetry, tls
from ..mesh.clock import SystemClock
from ..mesh.config import REMOVED, Config, ConfigError
from ..mesh.limits import INTERNAL_MESSAGE_BYTES_MAX
from ..proto.tickmesh.internal.v1 import shard_pb2_grpc
from . import backup
from .core.commands import ENTRY_VERSION
from .operations import LINKS, Operations
from .raft.config import ReplicaConfig
from .raft.errors import RaftError, WrongJournal
from .raft.mesh_transport import MeshTransport
from .raft.replica import Replica
from .raft.snapshots import clear, sync_directory
from .raft.transport import TransportError
from .secrets import Secrets
from .service import ShardService
from .shard import Shard
from .steady import SteadyClock
from .store.rocksdb import RocksBackend
from .store.state import State

VOTER = "voter"
"""A name for grpc.health.v1: serving while this replica votes and is counted. One that is new, or
whose disk was lost, is not: it waits to be added, or catches up, as its log says."""

log = telemetry.logger(__name__)


def restore(config: Config, where: str) -> str:
    """Make this replica's data from a backup; what was made. Raises backup.BackupError."""
    settings = config.scheduler
    assert settings is not None
    manifest = backup.restore(where, settings)
    return (
        f"{settings.data_directory} holds {manifest.origin.shard_id} as of entry "
        f"{manifest.origin.index}: {len(manifest.files)} files, {manifest.size_bytes:,} bytes"
    )


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises what made the replica fail."""
    settings = config.scheduler
    assert settings is not None
    members = {peer.replica_id: peer.address for peer in settings.shard.replicas}
    if settings.replica_id not in members:
        raise ConfigError(f"scheduler.replica_id {settings.replica_id!r} is not in its shard")
    await asyncio.to_thread(backup.backups, settings)  # what is wrong with it is said at the start
    clock = SteadyClock(SystemClock())
    directory = Path(settings.data_directory)
    if (directory / REMOVED).exists():
        log.error((directory / REMOVED).read_text().strip())
        return
    (directory / "raft").mkdir(parents=True, exist_ok=True)
    clear(directory / LINKS)  # of a backup that was cut off
    backend = RocksBackend(directory / "state")
    state = State(backend)
    shard = Shard(
        state,
        clock,
        arm_ahead_ms=settings.arm_ahead_ms,
        executor_lease_ms=settings.executor_lease_ms,
        retention_ms=settings.execution_retention_s * 1_000,
        plans=config.plans,
        secrets=Secrets(settings.secret_keys),
    )
    state.observe(shard.observe)
    group_id = settings.group_id or settings.shard.shard_id
    address = members[settings.replica_id]
    transport = MeshTransport(
        group_id,
        settings.replica_id,
        settings.tls,
        f"{address.rpartition(':')[0]}:{settings.frames_port}",
    )
    low_ms, high_ms = settings.election_timeout_ms
    replica = Replica(
        ReplicaConfig(
            group_id=group_id,
            replica_id=settings.replica_id,
            peers=tuple(sorted(set(members) - {settings.replica_id})),
            addresses=members,
            directory=directory / "raft",
            bootstrap=settings.bootstrap,
            election_timeout_min_s=low_ms / 1_000,
            election_timeout_max_s=high_ms / 1_000,
            clock_skew_max_s=settings.clock_skew_max_ms / 1_000,
            entry_version=ENTRY_VERSION,
        ),
        state,
        transport,
    )
    # Before the shard hears of it: a new leader's clock has just been compared with the others'.
    replica.subscribe(lambda term: None if term is None else clock.trust())
    shard.bind(replica)
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", INTERNAL_MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", INTERNAL_MESSAGE_BYTES_MAX),
        )
    )
    operations = Operations(replica, state, settings, transport.introduce)
    service = ShardService(
        shard, clock, settings.shard.shard_id, settings.replica_id, operations=operations
    )
    shard_pb2_grpc.add_ShardServiceServicer_to_server(service, server)
    transport.add_to_server(server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_secure_port(address, tls.server_credentials(settings.tls))
    try:
        await replica.start()
    except (WrongJournal, TransportError) as error:
        raise ConfigError(str(error)) from error
    await server.start()
    process.settle()
    await process.serving(health)
    process.announce(settings.ready_file, address)
    try:
        await _until_ended(shard, replica, health, stop)
        if replica.removed.is_set():
            await asyncio.to_thread(_retire, directory, replica)
    finally:
        await health.enter_graceful_shutdown()
        await operations.close()
        await replica.stop()
        await server.stop(process.STOP_GRACE_S)
        backend.close()


async def _until_ended(
    shard: Shard, replica: Replica, health: HealthServicer, stop: asyncio.Event
) -> None:
    tasks = [
        asyncio.create_task(_tell_health(replica, health)),
        asyncio.create_task(shard.run()),
        asyncio.create_task(stop.wait()),
        asyncio.create_task(replica.failed.wait()),
        asyncio.create_task(replica.removed.wait()),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            await _hand_over(replica)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    if replica.failure is not None:
        log.error("the replica has failed; the process ends", error=str(replica.failure))
        raise replica.failure


def _retire(directory: Path, replica: Replica) -> None:
    """Its data is of no use any more: leave a note that says so, also to every later start."""
    text = (
        f"{replica.config.replica_id} was removed from its shard, {replica.config.group_id}, and "
        f"does not start with this data. Delete its data directory, {directory}; to have a replica "
        "of this id again, start it with an empty one and add it: tickmesh cluster add-replica"
    )
    with (directory / REMOVED).open("w") as note:
        note.write(text + "\n")
        note.flush()
        os.fsync(note.fileno())
    sync_directory(directory)
    log.error(text)


async def _tell_health(replica: Replica, health: HealthServicer) -> None:
    """Beside the process's own health: whether the replica is one that counts."""
    changed = asyncio.Event()
    replica.on_members(changed.set)
    statuses = health_pb2.HealthCheckResponse
    while True:
        await health.set(VOTER, statuses.SERVING if replica.votes else statuses.NOT_SERVING)
        await changed.wait()
        changed.clear()


async def _hand_over(replica: Replica) -> None:
    """A planned stop costs the shard no election timeout: another replica leads first."""
    if replica.is_leader and len(replica.committed_members.voters) > 1:
        with contextlib.suppress(RaftError):
            successor = await replica.hand_over()
            log.info("handed leadership over", leader=successor or "nobody could take it")
