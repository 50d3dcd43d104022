"""Backups of a shard, and replicas made from them: files, a manifest, checksums. Blocking calls.

A backup is a name in a directory or an S3-compatible store, and under it the files of one RocksDB
checkpoint and `manifest.json`, which names each with its size and SHA-256, and is itself under a
checksum. The manifest is put last: what has none is no backup. The
same backup restored on several replicas gives them the same state at the same place of the log, so
that they are one group at once; a further one may join without data, as a learner.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..mesh.config import ConfigError, ObjectStore, SchedulerConfig
from ..mesh.objects import Objects, ObjectsUnavailable
from .core.commands import ENTRY_VERSION
from .raft.errors import JournalError
from .raft.journal import Journal, Position
from .raft.members import configured
from .raft.snapshots import sync_directory
from .raft.storage import RocksStorage
from .store.rocksdb import RocksBackend
from .store.state import State

FORMAT = 1
"""Of the directory: raise it when an older program must not read a newer one's."""

MANIFEST = "manifest.json"

MANIFEST_BYTES_MAX = 64 * 1024 * 1024
"""A terabyte in files of 8 MiB is 20 MB of manifest."""

CHUNK_BYTES = 1024 * 1024
SYNC_BYTES = 32 * 1024 * 1024
"""What is restored is synced this often, so that another replica's journal on the same disk never
waits behind a whole file."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}")


class BackupError(ValueError):
    """A backup cannot be made or restored; nothing was changed. The message says what is wrong."""


class BackupExists(BackupError):
    """There is something where the backup should be."""


class File(msgspec.Struct, frozen=True):
    """One file of a backup."""

    name: str
    size_bytes: int
    sha256: str


class Origin(msgspec.Struct, frozen=True):
    """Of which shard a backup is, and of what moment."""

    shard_id: str
    group_id: str
    replica_id: str
    index: int
    """Of the last entry of the log that it holds."""
    term: int
    time_ms: int
    """The shard's time by then."""
    entry_version: int
    """Of the program that made it: an older one may not know what is in it."""


class Manifest(msgspec.Struct, frozen=True):
    """What is in a backup."""

    origin: Origin
    version: str
    """Of the package that made it, for people."""
    files: tuple[File, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files)


class _Sealed(msgspec.Struct, frozen=True):
    """manifest.json: the manifest's own bytes, and their checksum."""

    format: int
    sha256: str
    manifest: msgspec.Raw


class Place(NamedTuple):
    """Where a backup is."""

    objects: Objects
    name: str

    def __str__(self) -> str:
        return f"{self.objects.url}/{self.name}"

    def key(self, file: str) -> str:
        """Of one of its files."""
        return f"{self.name}/{file}"


def backups(settings: SchedulerConfig) -> Objects | None:
    """Where backups are made, as configured; None: nowhere. Raises ConfigError."""
    if settings.backup_directory and settings.backup_store:
        raise ConfigError("scheduler.backup_directory and backup_store: set one of them")
    if settings.backup_store is not None:
        return Objects(settings.backup_store, "scheduler.backup_store")
    if not settings.backup_directory:
        return None
    if not Path(settings.backup_directory).is_absolute():
        raise ConfigError(
            f"scheduler.backup_directory {settings.backup_directory!r} is not an absolute path"
        )
    return Objects(ObjectStore(settings.backup_directory), "scheduler.backup_directory")


def place(where: str, settings: SchedulerConfig) -> Place:
    """A backup by its directory, or by "s3://bucket/prefix/name", which is reached as backup_store
    says. Raises BackupError."""
    if where.startswith("s3://"):
        url, _, name = where.rstrip("/").rpartition("/")
        store = settings.backup_store or ObjectStore(url)
        store = msgspec.structs.replace(store, url=url)
    else:
        path = Path(where).absolute()
        if not path.is_dir():
            raise BackupError(
                f"{path / MANIFEST} cannot be read: no such directory. Is it a backup?"
            )
        store, name = ObjectStore(str(path.parent)), path.name
    try:
        return Place(Objects(store, "--restore"), name)
    except ConfigError as error:
        raise BackupError(str(error)) from error


def write(checkpoint: Path, destination: Place, origin: Origin) -> Manifest:
    """Make a backup of a checkpoint's files. Raises BackupError; then there is none."""
    objects = destination.objects
    try:
        if objects.exists(destination.name):
            raise BackupExists(f"{destination} is there already: name another")
        try:
            files = tuple(
                _put(checkpoint / name, destination)
                for name in sorted(path.name for path in checkpoint.iterdir())
            )
            manifest = Manifest(origin, metadata.version("tickmesh"), files)
            encoded = msgspec.json.encode(manifest)
            sealed = _Sealed(FORMAT, hashlib.sha256(encoded).hexdigest(), msgspec.Raw(encoded))
            if not objects.put_new(destination.key(MANIFEST), msgspec.json.encode(sealed)):
                raise BackupExists(f"{destination} was made by somebody else meanwhile")
        except (OSError, ObjectsUnavailable):
            with contextlib.suppress(ObjectsUnavailable):
                objects.remove(destination.name)
            raise
    except (OSError, ObjectsUnavailable) as error:
        raise BackupError(f"the backup {destination} could not be written: {error}") from error
    return manifest


def read_manifest(source: Place) -> Manifest:
    """What a backup says of itself. Raises BackupError."""
    path = f"{source}/{MANIFEST}"
    data = b""
    try:
        pieces = source.objects.read(source.key(MANIFEST))
        if pieces is None:
            raise BackupError(f"{path} cannot be read: there is none. Is it a backup?")
        for piece in pieces:
            data += piece
            if len(data) > MANIFEST_BYTES_MAX:
                break
    except ObjectsUnavailable as error:
        raise BackupError(f"{path} cannot be read: {error}") from error
    damaged = BackupError(f"{path} is damaged: take another copy of this backup")
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        if sealed.format != FORMAT:
            raise BackupError(
                f"{path} is of format {sealed.format}, and this program reads {FORMAT}: restore it"
                " with the version that made it"
            )
        if hashlib.sha256(sealed.manifest).hexdigest() != sealed.sha256:
            raise damaged
        return msgspec.json.decode(sealed.manifest, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged from error


def restore(where: str, settings: SchedulerConfig) -> Manifest:
    """Make a replica's data from a backup (see `place`), as the configuration names and places it.
    Raises BackupError; then there is no data."""
    source = place(where, settings)
    manifest = read_manifest(source)
    origin = manifest.origin
    group_id = settings.group_id or settings.shard.shard_id
    target = Path(settings.data_directory)
    _check_fit(origin, settings, group_id)
    journal, state = target / "raft" / "journal", target / "state"
    for there in (journal, state):
        if there.exists():
            raise BackupError(
                f"{there} is there already: a restore overwrites no data. Name another"
                " data_directory, or move this one away"
            )
    scratch = target / "restoring"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "state").mkdir(parents=True)
        for file in manifest.files:
            _restore_file(source, scratch / "state", file)
        sync_directory(scratch / "state")
        _check_state(scratch / "state", origin)
        _make_journal(scratch / "journal", origin, group_id, settings)
        journal.parent.mkdir(parents=True, exist_ok=True)
        # A crash between the two leaves a journal without its state: the replica refuses that.
        (scratch / "journal").rename(journal)
        sync_directory(journal.parent)
        (scratch / "state").rename(state)
        sync_directory(target)
    except (OSError, ObjectsUnavailable) as error:
        raise BackupError(f"{source} could not be restored to {target}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def _check_fit(origin: Origin, settings: SchedulerConfig, group_id: str) -> None:
    if origin.shard_id != settings.shard.shard_id:
        raise BackupError(
            f"the backup is of shard {origin.shard_id!r}, and scheduler.shard.shard_id is"
            f" {settings.shard.shard_id!r}: its customers belong to the former"
        )
    if origin.group_id == group_id:
        raise BackupError(
            f"the backup was made by the group {group_id!r}, and the new one would be taken for"
            " it: set scheduler.group_id, on every replica, to a name of the new group's own"
        )
    if origin.entry_version > ENTRY_VERSION:
        raise BackupError(
            f"the backup was made by a program that knows version {origin.entry_version} of"
            f" entries, and this one knows {ENTRY_VERSION}: upgrade it first"
        )


def _put(source: Path, destination: Place) -> File:
    """Put a file. Raises OSError, ObjectsUnavailable."""
    digest = hashlib.sha256()
    size_bytes = 0
    with source.open("rb") as reader:
        while data := reader.read(CHUNK_BYTES):
            digest.update(data)
            size_bytes += len(data)
    destination.objects.put_file(destination.key(source.name), source)
    return File(source.name, size_bytes, digest.hexdigest())


def _save(pieces: Iterator[bytes], target: Path) -> File:
    """Make a file, synced. Raises OSError, ObjectsUnavailable."""
    digest = hashlib.sha256()
    size_bytes = unsynced_bytes = 0
    with target.open("xb") as writer:
        for data in pieces:
            digest.update(data)
            writer.write(data)
            size_bytes += len(data)
            unsynced_bytes += len(data)
            if unsynced_bytes >= SYNC_BYTES:
                writer.flush()
                os.fsync(writer.fileno())
                unsynced_bytes = 0
        writer.flush()
        os.fsync(writer.fileno())
    return File(target.name, size_bytes, digest.hexdigest())


def _restore_file(backup: Place, target: Path, file: File) -> None:
    if not _FILE_NAME.fullmatch(file.name):
        raise BackupError(f"{file.name!r} is not a name that a backup's file can have")
    source = f"{backup}/{file.name}"
    pieces = backup.objects.read(backup.key(file.name))
    if pieces is None:
        raise BackupError(f"{source} is missing: take another copy of this backup")
    copied = _save(pieces, target / file.name)
    if copied != file:
        raise BackupError(
            f"{source} is damaged: it has {copied.size_bytes} bytes with SHA-256 {copied.sha256},"
            f" expected are {file.size_bytes} with {file.sha256}. Take another copy of this backup"
        )


def _check_state(directory: Path, origin: Origin) -> None:
    """The files are a state, and the one that the manifest says."""
    try:
        backend = RocksBackend(directory)
    except Exception as error:
        raise BackupError(f"the backup's files are no state of a shard: {error}") from error
    try:
        applied = State(backend).applied
    finally:
        backend.close()
    if applied != (origin.index, origin.term):
        raise BackupError(
            f"the backup's files hold entry {applied}, its manifest says"
            f" {(origin.index, origin.term)}"
        )


def _make_journal(
    directory: Path, origin: Origin, group_id: str, settings: SchedulerConfig
) -> None:
    """A journal that begins where the state ends, of a replica that may vote at once: one of those
    that are configured, whoever the backed up group consisted of."""
    addresses = {peer.replica_id: peer.address for peer in settings.shard.replicas}
    members = configured(addresses, addresses)
    storage = RocksStorage(directory)
    try:
        journal = Journal(storage, group_id, settings.replica_id, members, bootstrap=True)
        journal.begin_at(Position(origin.index, origin.term))
        journal.write()
        journal.flush()
    except JournalError as error:
        raise BackupError(f"the journal {directory} could not be made: {error}") from error
    finally:
        storage.close()
