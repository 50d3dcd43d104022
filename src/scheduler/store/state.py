"""The replicated state machine: decodes an entry, applies it, writes one batch.

Stands between the Raft replica, which calls `apply` with committed entries in order, and the core.
The index of the entry is in the same batch as its changes, so a restart neither repeats nor loses
one. Writes are not synced: the journal holds every entry until `flush_wal` has made them durable.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from ..core import commands, machine, recurrence
from ..core.commands import ENTRY_VERSION, AnyCommand, Entry, Outcome
from ..core.model import Execution, Timer
from . import keys
from .backend import Backend
from .view import Meta, StoreView

PREFETCH_MIN = 8
"""Batches of so many keys are read at once; below, single reads are as fast."""

_ENTRY = msgspec.msgpack.Decoder(Entry)
_META = msgspec.msgpack.Decoder(Meta)
_encode = msgspec.msgpack.Encoder().encode


class Applied(msgspec.Struct, frozen=True):
    """What came of an entry: data for whoever acts on it (the leader), or for nobody."""

    index: int
    outcomes: list[Outcome]
    """One for each command."""
    executions: list[Execution]
    """Executions made or changed."""
    timers: list[Timer]
    """Timers made."""


class UnknownEntry(Exception):
    """An entry of a newer version than this program: it must be upgraded, not guess."""


class DurableBackend(Backend, Protocol):
    """A backend that a replica can stand on: see rocksdb.RocksBackend."""

    directory: Path

    def flush_wal(self) -> None: ...
    def flush(self) -> None: ...
    def checkpoint(self, directory: Path) -> None: ...
    def close(self) -> None: ...
    def reopen(self) -> None: ...


def encode_command(command: AnyCommand) -> msgspec.Raw:
    """A command as it stands in its entry."""
    return msgspec.Raw(_encode(command))


def encode_entry(
    time_ms: int, batch: Sequence[AnyCommand | msgspec.Raw], version: int = ENTRY_VERSION
) -> bytes:
    """What is proposed for a batch of commands, be they encoded already or not."""
    return _encode((version, time_ms, batch))


class _Head(msgspec.Struct, array_like=True):
    """The beginning of every version's entries."""

    version: int


_HEAD = msgspec.msgpack.Decoder(_Head)


def _decode_entry(index: int, payload: bytes) -> Entry:
    """Raises UnknownEntry for one that is newer than this program, however it looks."""
    try:
        entry = _ENTRY.decode(payload)
    except msgspec.ValidationError:
        version = _HEAD.decode(payload).version
        if version <= ENTRY_VERSION:
            raise
    else:
        version = entry.version
        if version <= ENTRY_VERSION:
            return entry
    raise UnknownEntry(
        f"entry {index} has version {version}, and this program knows {ENTRY_VERSION}: it was"
        " started in place of a newer one. Upgrade it"
    )


class State:
    """One shard's state on one replica."""

    def __init__(self, backend: DurableBackend) -> None:
        self.backend = backend
        self._observer: Callable[[Applied], None] | None = None
        self._load()

    def observe(self, observer: Callable[[Applied], None]) -> None:
        """Tell `observer` of every entry once it is applied, on leaders and followers alike."""
        self._observer = observer

    def _load(self) -> None:
        raw = self.backend.get(keys.META)
        self.meta = Meta() if raw is None else _META.decode(raw)
        for _, content in self.backend.scan(keys.ZONE_FILES, keys.after_prefix_of(keys.ZONE_FILES)):
            recurrence.register_zone_file(content)
        self._drop_history()

    def _drop_history(self) -> None:
        """Drop what an entry said is to be forgotten: after its changes, or at the next start."""
        for when in self.backend.periods():
            if when < self.meta.history_from:
                self.backend.drop_period(when)

    @property
    def applied(self) -> tuple[int, int]:
        """(index, term) of the last entry in the state."""
        return self.meta.index, self.meta.term

    def apply(self, index: int, term: int, payload: bytes) -> Applied:
        """Apply a committed entry."""
        assert index > self.meta.index, (index, self.meta.index)
        entry = _decode_entry(index, payload)
        meta = self.meta
        meta.time_ms = max(meta.time_ms, entry.time_ms)
        meta.entry_version = max(meta.entry_version, entry.version)
        view = StoreView(self.backend, meta)
        history_from = meta.history_from
        wanted = _wanted(self, entry.commands)
        if len(wanted) >= PREFETCH_MIN:
            view.prefetch(wanted)
        outcomes = machine.apply(view, entry.commands, meta.time_ms)
        meta.index, meta.term = index, term
        view.note_changes(index)
        changes = view.changes()
        changes[keys.META] = _encode(meta)
        self.backend.write(changes)
        if meta.history_from != history_from:
            self._drop_history()
        applied = Applied(index, outcomes, view.executions, view.timers)
        if self._observer is not None:
            self._observer(applied)
        return applied

    def flush_wal(self) -> None:
        """Make everything applied durable; in a worker thread."""
        self.backend.flush_wal()

    def flush(self) -> None:
        """Write memtables to files; in a worker thread, before a checkpoint."""
        self.backend.flush()

    def checkpoint(self, directory: Path) -> tuple[int, int]:
        """Copy the state to a new directory; (index, term) that the copy holds."""
        self.backend.checkpoint(directory)
        return self.applied

    def install(self, directory: Path) -> None:
        """Replace the whole state by the files in a directory, which is used up.

        Renames, so that a crash leaves the old state, none, or the new one; whoever calls keeps a
        marker and calls again after a crash.
        """
        target = self.backend.directory
        self.backend.close()
        old = target.with_name(target.name + ".old")
        if directory.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            if target.is_dir():
                target.rename(old)
            directory.rename(target)
            descriptor = os.open(target.parent, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        shutil.rmtree(old, ignore_errors=True)  # also what a crash has left of it
        self.backend.reopen()
        self._load()


def _wanted(state: State, batch: list[AnyCommand]) -> list[bytes]:
    """The keys that commands are sure to read, as far as they are known beforehand."""
    wanted: list[bytes] = []
    for command in batch:
        match command:
            case commands.Fire():
                wanted += [keys.schedule(f.job_uid, f.schedule_id) for f in command.fires]
            case commands.EndAttempts():
                wanted += [keys.execution(uid, identity) for uid, identity, _ in command.ends]
            case commands.CreateJobs():
                wanted += [keys.job(command.customer, new.job_id) for new in command.jobs]
            case commands.CreateSchedules():
                job = StoreView(state.backend, Meta()).job(command.customer, command.job_id)
                if job is not None:
                    wanted += [keys.schedule(job.uid, new.schedule_id) for new in command.schedules]
            case _:
                pass
    return wanted
