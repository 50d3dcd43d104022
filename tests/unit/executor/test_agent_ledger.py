"""What was written is there for the next process, whole; nothing is said to be before it is."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tickmesh.executor.inprocess import InProcessRuntime
from tickmesh.executor.ledger import OUTPUT_OVERHEAD_BYTES, Entry, Ledger
from tickmesh.executor.outputs import OutputKeeper
from tickmesh.mesh.clock import SystemClock

NOTHING = Path("/nonexistent")
SECOND_NS = 1_000_000_000


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[Ledger, list[Entry]]]:
    ledger = Ledger(path)
    entries = await ledger.open()
    running = asyncio.create_task(ledger.run())
    try:
        yield ledger, entries
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await ledger.close()


async def test_attempts_and_ends_are_there_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path) as (ledger, entries):
        assert entries == []
        await asyncio.gather(*(ledger.accept(f"a-{n}", "shard-0", b"w") for n in range(3)))
        await ledger.accept("a-0", "shard-0", b"again")
        await ledger.end("a-1", b"r", 7, NOTHING)
        await ledger.end("a-2", b"r", 7, NOTHING)
        ledger.forget("a-2")  # pending when it is closed
    async with opened(path) as (_, entries):
        assert sorted(entries) == [
            Entry("a-0", "shard-0", b"w", None),
            Entry("a-1", "shard-0", b"w", b"r"),
        ]


async def test_what_is_done_is_on_disk_though_nobody_closes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path) as (ledger, _):
        await ledger.accept("a-1", "shard-0", b"w")
        reader = sqlite3.connect(path)
        assert reader.execute("SELECT attempt_id FROM attempts").fetchall() == [("a-1",)]
        reader.close()


async def test_a_ledger_that_cannot_write_says_so_and_ends(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    await ledger.open()
    ledger._connection.execute("DROP TABLE attempts")  # the disk, as SQLite would see it
    done = ledger.accept("a-1", "shard-0", b"w")
    with pytest.raises(sqlite3.Error):
        await ledger.run()
    with pytest.raises(sqlite3.Error):
        await done
    await ledger.close()


async def test_outputs_are_dropped_oldest_first_by_age_and_by_bytes(tmp_path: Path) -> None:
    clock = SystemClock()
    runtime = InProcessRuntime(tmp_path / "runtime", clock)
    now_ns = clock.now_ns()
    size = 1000 + OUTPUT_OVERHEAD_BYTES
    async with opened(tmp_path / "ledger.db") as (ledger, _):
        for number in range(6):
            directory = runtime.output_directory(f"a-{number}")
            directory.mkdir(parents=True)
            (directory / "stdout").write_bytes(b"x" * 1000)
            age_s = 100 - 10 * number
            await ledger.accept(f"a-{number}", "shard-0", b"w")
            await ledger.end(f"a-{number}", b"r", now_ns - age_s * SECOND_NS, directory)
        await ledger.end("never-prepared", b"r", now_ns, NOTHING)
        assert ledger.output_bytes == 6 * size
        keeper = OutputKeeper(runtime, ledger, clock, retention_s=85, bytes_max=3 * size)
        assert await keeper.drop() == 3  # two are too old, one is too much
        assert await keeper.drop() == 0
    assert sorted(path.name for path in (tmp_path / "runtime/output").iterdir()) == [
        "a-3",
        "a-4",
        "a-5",
    ]
    async with opened(tmp_path / "ledger.db") as (ledger, _):
        assert ledger.output_bytes == 3 * size
