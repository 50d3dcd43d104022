"""Where a journal's bytes are: an ordered key-value store with atomic batches and one fsync."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from rocksdict import DBRecoveryMode, Options, Rdict, WriteBatch, WriteOptions

from .errors import JournalError

# (key, value) puts; (first key, end key) deletes everything from first to before end.
Put = tuple[bytes, bytes]
Operation = tuple[str, bytes, bytes]  # ("put" | "delete_range", first, second)


class JournalStorage(Protocol):
    """Keys in byte order. A batch is atomic; it survives a crash after the flush that follows."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, first: bytes) -> Iterator[Put]: ...
    def write(self, operations: list[Operation]) -> None: ...
    def flush(self) -> None: ...  # blocks until everything written is durable
    def close(self) -> None: ...


class RocksStorage:
    """A RocksDB of its own; only its write-ahead log is synced."""

    def __init__(self, directory: Path) -> None:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(4 << 20)
        options.set_max_total_wal_size(64 << 20)
        options.set_keep_log_file_num(2)
        # A record cut off at the end was never acknowledged. Anything else damaged is an error:
        # the default mode would silently drop every acknowledged record behind it.
        options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = Rdict(str(directory), options)
        except Exception as error:
            raise JournalError(
                f"cannot open the journal {directory}: {error}. If its disk is damaged, wipe this"
                " replica's directory and start it without bootstrap"
            ) from error
        self._write_options = WriteOptions()

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._db.get(key)
        return value

    def scan(self, first: bytes) -> Iterator[Put]:
        yield from self._db.items(from_key=first)

    def write(self, operations: list[Operation]) -> None:
        batch = WriteBatch(raw_mode=True)
        for kind, first, second in operations:
            if kind == "put":
                batch.put(first, second)
            else:
                batch.delete_range(first, second)
        self._db.write(batch, self._write_options)

    def flush(self) -> None:
        self._db.flush_wal(True)

    def close(self) -> None:
        self._db.close()
