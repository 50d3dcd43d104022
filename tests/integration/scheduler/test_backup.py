"""Backups: whole or refused, whatever is wrong with them, and never in place of something."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.unit.scheduler.worlds import START_MS, World
from tickmesh.mesh.config import ConfigError, ObjectStore, Peer, SchedulerConfig, ShardMembers, Tls
from tickmesh.mesh.objects import Objects
from tickmesh.scheduler import backup
from tickmesh.scheduler.backup import BackupError, BackupExists, Manifest, Origin
from tickmesh.scheduler.core.commands import ENTRY_VERSION
from tickmesh.scheduler.raft.config import ReplicaConfig
from tickmesh.scheduler.raft.errors import RaftError
from tickmesh.scheduler.raft.memory_transport import MemoryNetwork
from tickmesh.scheduler.raft.replica import Replica
from tickmesh.scheduler.store.rocksdb import RocksBackend
from tickmesh.scheduler.store.state import State, encode_entry

from ..stores import BUCKET, SECRET, S3Server

pytestmark = pytest.mark.integration

JOBS = 40
LOOK_S = 0.01


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a small shard."""
    directory = tmp_path_factory.mktemp("shard")
    backend = RocksBackend(directory / "state")
    world = World(backend)
    for number in range(JOBS):
        world.job(f"job-{number}")
    backend.flush()
    backend.checkpoint(directory / "checkpoint")
    index, term = world.state.applied
    backend.close()
    origin = Origin("shard-0", "shard-0", "a", index, term, START_MS, ENTRY_VERSION)
    backup.write(directory / "checkpoint", at(directory / "backups" / "first"), origin)
    return directory / "backups" / "first"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """One that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def at(directory: Path) -> backup.Place:
    """A backup's place, which may not be there yet."""
    return backup.Place(Objects(ObjectStore(str(directory.parent)), "tests"), directory.name)


def settings(directory: Path, replica_id: str = "a", **changes: str) -> SchedulerConfig:
    peers = tuple(Peer(name, f"127.0.0.1:{port}") for port, name in enumerate("abc", start=1))
    fields = {"shard_id": "shard-0", "group_id": "restored", **changes}
    return SchedulerConfig(
        replica_id=replica_id,
        shard=ShardMembers(fields["shard_id"], peers),
        data_directory=str(directory / replica_id),
        tls=Tls("", "", ""),
        group_id=fields["group_id"],
    )


def refused(directory: Path, target: SchedulerConfig, *says: str) -> None:
    """It is, for a reason that says these, and nothing is left."""
    before = sorted(Path(target.data_directory).rglob("*"))
    with pytest.raises(BackupError) as error:
        backup.restore(str(directory), target)
    for words in says:
        assert words in str(error.value)
    assert sorted(Path(target.data_directory).rglob("*")) == before


def reseal(directory: Path, change: Callable[[Manifest], Manifest], format_: int = 1) -> None:
    """Another manifest, under a checksum that is right."""
    manifest = backup.read_manifest(at(directory))
    encoded = msgspec.json.encode(change(manifest))
    sealed = {
        "format": format_,
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "manifest": json.loads(encoded),
    }
    (directory / backup.MANIFEST).write_bytes(
        json.dumps(sealed, separators=(",", ":"), ensure_ascii=False).encode()
    )


def test_what_is_restored_is_what_was_there(made: Path, tmp_path: Path) -> None:
    manifest = backup.restore(str(made), settings(tmp_path))
    assert manifest == backup.read_manifest(at(made))
    backend = RocksBackend(tmp_path / "a" / "state")
    state = State(backend)
    assert state.applied == (manifest.origin.index, manifest.origin.term)
    backend.close()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["raft", "state"]


def test_any_flipped_byte_of_a_file_is_refused_by_its_name(copy: Path, tmp_path: Path) -> None:
    for file in backup.read_manifest(at(copy)).files:
        path = copy / file.name
        whole = path.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1} if whole else ():
            damaged = bytearray(whole)
            damaged[place] ^= 1 << (place % 8)
            path.write_bytes(damaged)
            refused(copy, settings(tmp_path), str(path), "damaged")
        path.write_bytes(whole + b"x")
        refused(copy, settings(tmp_path), str(path), "damaged")
        path.unlink()
        refused(copy, settings(tmp_path), str(path), "missing")
        path.write_bytes(whole)
    backup.restore(str(copy), settings(tmp_path))


def test_any_flipped_bit_of_the_manifest_is_refused_by_its_name(copy: Path) -> None:
    path = copy / backup.MANIFEST
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(BackupError, match=backup.MANIFEST):
            backup.read_manifest(at(copy))
    for shorter in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:shorter])
        with pytest.raises(BackupError, match=backup.MANIFEST):
            backup.read_manifest(at(copy))


def test_what_is_no_backup_is_said_to_be_none(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", settings(tmp_path), "manifest.json", "Is it a backup?")


def test_what_does_not_fit_is_refused(copy: Path, tmp_path: Path) -> None:
    refused(copy, settings(tmp_path, shard_id="shard-1"), "'shard-0'", "'shard-1'")
    refused(copy, settings(tmp_path, group_id="shard-0"), "scheduler.group_id")
    refused(copy, settings(tmp_path, group_id=""), "scheduler.group_id")
    origin = backup.read_manifest(at(copy)).origin

    def newer(manifest: Manifest) -> Manifest:
        changed = msgspec.structs.replace(origin, entry_version=ENTRY_VERSION + 1)
        return msgspec.structs.replace(manifest, origin=changed)

    def elsewhere(manifest: Manifest) -> Manifest:
        changed = msgspec.structs.replace(origin, index=origin.index + 1)
        return msgspec.structs.replace(manifest, origin=changed)

    def outside(manifest: Manifest) -> Manifest:
        escaping = msgspec.structs.replace(manifest.files[0], name="../escaped")
        return msgspec.structs.replace(
            manifest, origin=origin, files=(escaping, *manifest.files[1:])
        )

    whole = (copy / backup.MANIFEST).read_bytes()
    reseal(copy, newer)
    refused(copy, settings(tmp_path), "upgrade it first")
    (copy / backup.MANIFEST).write_bytes(whole)
    reseal(copy, elsewhere)
    refused(copy, settings(tmp_path), "its manifest says")
    (copy / backup.MANIFEST).write_bytes(whole)
    reseal(copy, outside)
    refused(copy, settings(tmp_path), "'../escaped'")
    (copy / backup.MANIFEST).write_bytes(whole)
    reseal(copy, lambda manifest: manifest, format_=2)
    refused(copy, settings(tmp_path), "format 2", "reads 1")


def test_data_is_never_overwritten(made: Path, tmp_path: Path) -> None:
    backup.restore(str(made), settings(tmp_path))
    refused(made, settings(tmp_path), "overwrites no data")
    (tmp_path / "b" / "state").mkdir(parents=True)
    refused(made, settings(tmp_path, "b"), "overwrites no data")


def test_a_restore_that_was_cut_off_can_be_repeated(made: Path, tmp_path: Path) -> None:
    left = tmp_path / "a" / "restoring" / "state"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    backup.restore(str(made), settings(tmp_path))
    assert not (tmp_path / "a" / "restoring").exists()


def test_a_backup_is_written_whole_or_not_at_all(made: Path, tmp_path: Path) -> None:
    origin = backup.read_manifest(at(made)).origin
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "a").write_bytes(b"1")
    (checkpoint / "b").mkdir()  # it cannot be read as a file
    with pytest.raises(BackupError, match="could not be written"):
        backup.write(checkpoint, at(tmp_path / "to" / "one"), origin)
    assert list((tmp_path / "to").iterdir()) == []
    (checkpoint / "b").rmdir()
    backup.write(checkpoint, at(tmp_path / "to" / "one"), origin)
    with pytest.raises(BackupExists):
        backup.write(checkpoint, at(tmp_path / "to" / "one"), origin)


async def caught_up(replica: Replica, leader: Replica) -> None:
    while True:
        if replica.applied_index == leader.applied_index and replica.status().is_voter:
            return
        await asyncio.sleep(LOOK_S)


async def test_restored_replicas_are_a_group_and_take_a_new_one_in(
    made: Path, tmp_path: Path
) -> None:
    network = MemoryNetwork()
    backends, replicas = [], []
    index = backup.read_manifest(at(made)).origin.index
    for name in "abc":
        if name != "c":  # it joins with an empty disk
            backup.restore(str(made), settings(tmp_path, name))
        backend = RocksBackend(tmp_path / name / "state")
        backends.append(backend)
        config = ReplicaConfig(
            group_id="restored",
            replica_id=name,
            peers=tuple(other for other in "abc" if other != name),
            directory=tmp_path / name / "raft",
            election_timeout_min_s=0.16,
            election_timeout_max_s=0.3,
        )
        replica = Replica(config, State(backend), network.transport(name))
        replicas.append(replica)
        await replica.start()
    leads: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
    for replica in replicas:
        replica.subscribe(
            lambda term, replica=replica: (  # type: ignore[misc]
                leads.set_result(replica) if term and not leads.done() else None
            )
        )
    leader = await leads
    assert leader.term > backup.read_manifest(at(made)).origin.term
    await leader.propose(encode_entry(START_MS, []))
    assert leader.applied_index > index
    await caught_up(replicas[2], leader)
    for replica in replicas:
        await replica.stop()
    for backend in backends:
        assert State(backend).applied[0] > index
        backend.close()


class Group:
    """Replicas on real disks, with a network inside this process."""

    def __init__(self, directory: Path, group_id: str, names: str) -> None:
        self.replicas: dict[str, Replica] = {}
        self._directory = directory
        self._group_id = group_id
        self._names = names
        self._network = MemoryNetwork()
        self._backends: list[RocksBackend] = []

    async def start(self, name: str, *, bootstrap: bool = False) -> Replica:
        backend = RocksBackend(self._directory / name / "state")
        self._backends.append(backend)
        config = ReplicaConfig(
            group_id=self._group_id,
            replica_id=name,
            peers=tuple(other for other in self._names if other != name),
            directory=self._directory / name / "raft",
            bootstrap=bootstrap,
            entry_version=ENTRY_VERSION,
        )
        replica = Replica(config, State(backend), self._network.transport(name))
        await replica.start()
        self.replicas[name] = replica
        return replica

    async def leader(self) -> Replica:
        """Once it can write."""
        while True:
            for replica in self.replicas.values():
                with contextlib.suppress(RaftError):
                    await replica.propose(encode_entry(START_MS, []))
                    return replica
            await asyncio.sleep(LOOK_S)

    async def voters(self, names: str) -> None:
        """Waits until everybody knows that these vote, and nobody else."""
        while True:
            lists = [replica.committed_members for replica in self.replicas.values()]
            if all(members.voters == frozenset(names) for members in lists):
                return
            await asyncio.sleep(LOOK_S)

    async def stop(self) -> None:
        for replica in self.replicas.values():
            await replica.stop()
        for backend in self._backends:
            backend.close()


async def test_a_restored_shard_has_the_replicas_that_are_configured(tmp_path: Path) -> None:
    """Not those of the shard that was copied, whose list had changed."""
    old = Group(tmp_path / "old", "shard-0", "abc")
    for name in "abc":
        await old.start(name, bootstrap=True)
    joiner = await old.start("d")
    leader = await old.leader()
    await leader.add_replica("d", "at d", joiner.introduction.incarnation)
    await old.voters("abcd")
    removed = next(name for name in "abc" if old.replicas[name] is not leader)
    await leader.remove_replica(removed)
    left = "abcd".replace(removed, "")
    await old.replicas.pop(removed).stop()
    await old.voters(left)
    index, term = await leader.checkpoint(tmp_path / "checkpoint")
    origin = Origin("shard-0", "shard-0", "a", index, term, START_MS, ENTRY_VERSION)
    backup.write(tmp_path / "checkpoint", at(tmp_path / "backups" / "one"), origin)
    await old.stop()

    new = Group(tmp_path / "new", "restored", "bxy")  # one of them has the id of an old one
    peers = tuple(Peer(name, f"127.0.0.1:{port}") for port, name in enumerate("bxy", start=1))
    for name in "bxy":
        target = msgspec.structs.replace(
            settings(tmp_path / "new", name), shard=ShardMembers("shard-0", peers)
        )
        backup.restore(str(tmp_path / "backups" / "one"), target)
        await new.start(name)
    leader = await new.leader()
    assert leader.applied_index > index
    assert (leader.committed_members.number, leader.committed_members.voters) == (
        0,
        frozenset("bxy"),
    )
    joiner = await new.start("d")
    await leader.add_replica("d", "at d", joiner.introduction.incarnation)
    await new.voters("bxyd")
    await new.stop()


async def test_the_same_in_an_s3_compatible_store(made: Path, tmp_path: Path) -> None:
    server = S3Server(tmp_path)
    store = ObjectStore(f"s3://{BUCKET}/backups", server.address, "eu-central-1", "tests", SECRET)
    with_store = msgspec.structs.replace(settings(tmp_path), backup_store=store)
    where = f"s3://{BUCKET}/backups/first"
    whole = tmp_path / "whole"
    for file in backup.read_manifest(at(made)).files:
        whole.mkdir(exist_ok=True)
        shutil.copy(made / file.name, whole / file.name)
    origin = backup.read_manifest(at(made)).origin
    objects = await asyncio.to_thread(backup.backups, with_store)
    assert objects is not None
    destination = backup.Place(objects, "first")
    with pytest.raises(BackupError, match="first could not be written"):  # it is not there yet
        await asyncio.to_thread(backup.write, whole, destination, origin)
    await server.start()
    try:
        manifest = await asyncio.to_thread(backup.write, whole, destination, origin)
        with pytest.raises(BackupExists):
            await asyncio.to_thread(backup.write, whole, destination, origin)
        assert await asyncio.to_thread(backup.restore, where, with_store) == manifest
        backend = RocksBackend(tmp_path / "a" / "state")
        assert State(backend).applied == (origin.index, origin.term)
        backend.close()
        other = msgspec.structs.replace(settings(tmp_path, "b"), backup_store=store)
        for missing in ("nothing", ""):
            with pytest.raises(BackupError, match="Is it a backup"):
                await asyncio.to_thread(backup.restore, f"s3://{BUCKET}/backups/{missing}x", other)
        # Damaged, in each file and in the manifest: refused by name, and nothing is made.
        for name in (*(file.name for file in manifest.files), backup.MANIFEST):
            data = await objects.get(f"first/{name}", 1 << 30)
            assert data is not None
            if not data:
                continue
            await objects.put(f"first/{name}", data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(BackupError, match=f"{where}/{name} is damaged"):
                await asyncio.to_thread(backup.restore, where, other)
            await objects.delete([f"first/{name}"])
            with pytest.raises(BackupError, match=f"{where}/{name}"):
                await asyncio.to_thread(backup.restore, where, other)
            await objects.put(f"first/{name}", data)
        assert not list((tmp_path / "b").glob("*"))
        await asyncio.to_thread(backup.restore, where, other)
    finally:
        server.stop()


def test_two_places_for_backups_are_one_too_many(tmp_path: Path) -> None:
    both = msgspec.structs.replace(
        settings(tmp_path), backup_directory="/tmp", backup_store=ObjectStore("s3://bucket")
    )
    with pytest.raises(ConfigError, match="set one of them"):
        backup.backups(both)
