"""Periods of history in RocksDB are dropped while a worker flushes for a backup or a snapshot."""

from __future__ import annotations

import threading
from pathlib import Path

from tickmesh.scheduler.store import keys
from tickmesh.scheduler.store.rocksdb import RocksBackend

PERIODS = 60


def test_a_period_is_dropped_while_it_is_flushed(tmp_path: Path) -> None:
    backend = RocksBackend(tmp_path / "state")
    over = threading.Event()
    flushed: list[int] = []
    errors: list[Exception] = []

    def flush() -> None:
        while not over.is_set():
            try:
                backend.flush()
                flushed.append(1)
            except Exception as error:
                errors.append(error)
                return

    worker = threading.Thread(target=flush)
    worker.start()
    try:
        for period in range(PERIODS):
            for number in range(20):
                key = keys.history(period) + number.to_bytes(8, "big")
                backend.write({key: bytes(2_000), b"\x01other": bytes(1_000)})
            if period >= 2:
                backend.drop_period(period - 2)
    finally:
        over.set()
        worker.join()
    assert not errors
    assert len(flushed) > 1
    assert backend.periods() == [PERIODS - 2, PERIODS - 1]
    backend.close()
    again = RocksBackend(tmp_path / "state")
    assert again.periods() == [PERIODS - 2, PERIODS - 1]
    again.close()
