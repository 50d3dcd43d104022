"""The backend that lasts: RocksDB through rocksdict, in raw (bytes) mode.

Timers live in a column family of their own, because they are written and deleted in time order: it
compacts itself when many deletions come together, so that a scan never wades through tombstones.
Each period of history has its own too, so that it can be dropped whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    Env,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from .keys import HISTORY, PERIOD_BYTES, TIMERS, history, period_of_key

BLOCK_CACHE_BYTES = 16 * 1024 * 1024
"""What of the files is kept in memory: the same however much is stored."""

WRITE_BUFFER_BYTES = 8 * 1024 * 1024
WRITE_BUFFERS_MAX = 4
"""Memtables of a column family: one that is written, others that wait to be flushed. With fewer a
burst of writes waits for a flush, and the whole process with it: the interpreter lock is held, no
heartbeat leaves, and the shard elects another leader. Bounds memory and recovery time."""

LEVEL_ZERO_SLOWDOWN_FILES = 40
LEVEL_ZERO_STOP_FILES = 80
"""Files not yet compacted at which writes are held back, for the same reason later than usual:
reads look at more files meanwhile."""

WAL_BYTES_MAX = 128 * 1024 * 1024
"""Of state not yet in files; the journal has it too, so this bounds only the restart."""

TIMERS_KIND, HISTORY_KIND = TIMERS[0], HISTORY[0]

PERIOD_NAME = "history-"
"""The name of a period's column family, before its number."""

BLOOM_BITS = 10
"""One miss in a hundred reads a block in vain: creates ask for keys that are not there."""

INDEX_BLOCK_BYTES = 4_096
"""Of a file's index and filter. In one piece they are half a megabyte each; those of ten million
schedules do not all fit into the cache, and then each read would read and check them whole."""

DELETION_WINDOW = 4_096
DELETION_TRIGGER = 2_048
"""A file in which half of any 4,096 entries are deletions is compacted."""


def _options(cache: Cache) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(WRITE_BUFFERS_MAX)
    options.set_level_zero_slowdown_writes_trigger(LEVEL_ZERO_SLOWDOWN_FILES)
    options.set_level_zero_stop_writes_trigger(LEVEL_ZERO_STOP_FILES)
    options.set_max_total_wal_size(WAL_BYTES_MAX)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_bloom_filter(BLOOM_BITS, False)
    table.set_cache_index_and_filter_blocks(True)
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_metadata_block_size(INDEX_BLOCK_BYTES)
    table.set_pin_top_level_index_and_filter(True)
    options.set_block_based_table_factory(table)
    options.set_memtable_prefix_bloom_ratio(0.1)
    options.set_memtable_whole_key_filtering(True)
    return options


def _compacting(cache: Cache) -> Options:
    """For what is deleted in the order of its keys, as timers are, and executions that a customer
    does not keep."""
    options = _options(cache)
    options.add_compact_on_deletion_collector_factory(DELETION_WINDOW, DELETION_TRIGGER, 0.0)
    return options


class RocksBackend:
    """One RocksDB in a directory. Writes are not synced: see `flush_wal`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open()

    def _open(self) -> None:
        # Of the whole process. Compacting a million schedules takes a processor for seconds; what
        # is due goes before it. (Flushes are of another pool: writes may have to wait for one.)
        Env().lower_thread_pool_cpu_priority()
        self._cache = Cache(BLOCK_CACHE_BYTES)
        families = {"default": _options(self._cache), "timers": _compacting(self._cache)}
        if (self.directory / "CURRENT").exists():
            for name in Rdict.list_cf(str(self.directory), _options(self._cache)):
                if name.startswith(PERIOD_NAME):
                    families[name] = _compacting(self._cache)
        self._db = Rdict(str(self.directory), _options(self._cache), column_families=families)
        self._timers = self._db.get_column_family("timers")
        self._timers_handle = self._db.get_column_family_handle("timers")
        self._periods: dict[bytes, Rdict] = {}
        """By the prefix of their keys."""
        self._period_handles: dict[bytes, Any] = {}
        for name in families:
            if name.startswith(PERIOD_NAME):
                self._know(int(name.removeprefix(PERIOD_NAME)))
        self._write_options = WriteOptions()

    def _know(self, period: int) -> None:
        name, prefix = f"{PERIOD_NAME}{period}", history(period)
        self._periods[prefix] = self._db.get_column_family(name)
        self._period_handles[prefix] = self._db.get_column_family_handle(name)

    def _family(self, key: bytes) -> Rdict | None:
        """Where a key is; None: its period has no history."""
        kind = key[:1]
        if kind == HISTORY:
            return self._periods.get(key[: 1 + PERIOD_BYTES])
        return self._timers if kind == TIMERS else self._db

    def get(self, key: bytes) -> bytes | None:
        """See Backend."""
        family = self._family(key)
        value: bytes | None = None if family is None else family.get(key)
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See Backend. Keys of timers are not asked for."""
        groups: dict[bytes, list[int]] = {}
        for at, key in enumerate(keys):
            prefix = key[: 1 + PERIOD_BYTES] if key[:1] == HISTORY else b""
            groups.setdefault(prefix, []).append(at)
        values: list[bytes | None] = [None] * len(keys)
        for prefix, places in groups.items():
            family = self._periods.get(prefix) if prefix else self._db
            if family is not None:
                found: Any = family.get([keys[at] for at in places])
                for at, value in zip(places, found, strict=True):
                    values[at] = value
        return values

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """See Backend."""
        family = self._family(start)
        if family is None:
            return
        pairs: Any = family.items(
            backwards=reverse, from_key=stop if reverse else start, read_opt=ReadOptions()
        )
        for key, value in pairs:
            if key < start if reverse else key >= stop:
                return
            if key < stop:  # in reverse the iteration may begin at `stop` itself
                yield key, value

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """See Backend."""
        batch = WriteBatch(raw_mode=True)
        put, delete, timers = batch.put, batch.delete, self._timers_handle
        for key, value in changes.items():
            kind = key[0]
            if kind == TIMERS_KIND:
                if value is None:
                    delete(key, timers)
                else:
                    put(key, value, timers)
            elif kind == HISTORY_KIND:
                handle = self._handle(key)
                if value is None:
                    delete(key, handle)
                else:
                    put(key, value, handle)
            elif value is None:
                delete(key)
            else:
                put(key, value)
        self._db.write(batch, self._write_options)

    def _handle(self, key: bytes) -> Any:
        """Of the period of a history key, which is made when it is first written to."""
        handle = self._period_handles.get(key[: 1 + PERIOD_BYTES])
        if handle is None:
            period = period_of_key(key)
            self._db.create_column_family(f"{PERIOD_NAME}{period}", _compacting(self._cache))
            self._know(period)
            handle = self._period_handles[key[: 1 + PERIOD_BYTES]]
        return handle

    def periods(self) -> list[int]:
        """See Backend."""
        return sorted(period_of_key(prefix) for prefix in self._periods)

    def drop_period(self, period: int) -> None:
        """See Backend."""
        prefix = history(period)
        if self._periods.pop(prefix, None) is not None:
            # Not closed: a worker may be flushing it, for a backup or a snapshot.
            del self._period_handles[prefix]
            self._db.drop_column_family(f"{PERIOD_NAME}{period}")

    def flush_wal(self) -> None:
        """Make everything written durable. Blocks without the interpreter lock: use a thread."""
        self._db.flush_wal(True)

    def flush(self) -> None:
        """Write memtables to files. Blocks without the interpreter lock: use a thread."""
        self._db.flush()
        self._timers.flush()
        for prefix, family in list(self._periods.items()):
            try:
                family.flush()
            except Exception:
                if prefix in self._periods:  # else it was dropped meanwhile
                    raise

    def checkpoint(self, directory: Path) -> None:
        """A consistent copy in a new directory, by hard links: flush first, then this is fast."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        Checkpoint(self._db).create_checkpoint(str(directory))

    def close(self) -> None:
        """Release the directory."""
        del self._timers_handle
        self._timers.close()
        self._period_handles.clear()
        for family in self._periods.values():
            family.close()
        self._periods.clear()
        self._db.close()

    def reopen(self) -> None:
        """Open again after `close`, on whatever is in the directory now."""
        self._open()
