"""What was written is there for the next process, whole; nothing is said to be before it is."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tickmesh.executor.inprocess import InProcessRuntime
from tickmesh.executor.ledger import OUTPUT_OVERHEAD_BYTES, Entry, Ledger, Upload
from tickmesh.executor.outputs import Archiver, Keeping, OutputKeeper
from tickmesh.mesh import output
from tickmesh.mesh.clock import SystemClock
from tickmesh.mesh.config import ObjectStore
from tickmesh.mesh.objects import Objects

NOTHING = Path("/nonexistent")
SECOND_NS = 1_000_000_000


@contextlib.asynccontextmanager
async def opened(path: Path, archives: bool = False) -> AsyncIterator[tuple[Ledger, list[Entry]]]:
    ledger = Ledger(path, archives)
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


async def test_the_disk_is_waited_for_where_an_end_would_be_lost(tmp_path: Path) -> None:
    async with opened(tmp_path / "ledger.db") as (ledger, _):
        said: list[str] = []
        level = ledger._connection.execute("PRAGMA synchronous").fetchone()
        assert level == (2,)  # FULL
        ledger._connection.set_trace_callback(said.append)
        await ledger.accept("a-1", "shard-0", b"w")
        await ledger.accept("a-2", "shard-0", b"w")
        ledger.end("a-1", b"r", 7, NOTHING)
        await ledger.accept("a-3", "shard-0", b"w")
        await ledger.end("a-2", b"r", 7, NOTHING)
        ledger.forget("a-1")
        await ledger.accept("a-4", "shard-0", b"w")
        ledger._connection.set_trace_callback(None)
        order = [text for text in said if text.startswith(("PRAGMA", "COMMIT"))]
        normal, full = "PRAGMA synchronous=NORMAL", "PRAGMA synchronous=FULL"
        assert order == [normal, "COMMIT", "COMMIT", full, "COMMIT", "COMMIT", normal, "COMMIT"]


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
        keeper = OutputKeeper(runtime, ledger, clock, Keeping(85, 85, bytes_max=3 * size))
        assert await keeper.drop() == 3  # two are too old, one is too much
        assert await keeper.drop() == 0
    assert sorted(path.name for path in (tmp_path / "runtime/output").iterdir()) == [
        "a-3",
        "a-4",
        "a-5",
    ]
    async with opened(tmp_path / "ledger.db") as (ledger, _):
        assert ledger.output_bytes == 3 * size


def write_output(runtime: InProcessRuntime, attempt_id: str, end: str | None = "5 0\n") -> Path:
    directory = runtime.output_directory(attempt_id)
    directory.mkdir(parents=True)
    (directory / "stdout").write_bytes(b"words")
    (directory / "stderr").touch()
    if end is not None:
        (directory / "end").write_text(end)
    return directory


async def test_what_is_to_be_archived_is_known_to_the_next_process(tmp_path: Path) -> None:
    runtime = InProcessRuntime(tmp_path / "runtime", SystemClock())
    path = tmp_path / "ledger.db"
    async with opened(path, archives=True) as (ledger, _):
        for number in (2, 1):
            directory = write_output(runtime, f"a-{number}")
            await ledger.end(f"a-{number}", b"r", number, directory, f"2026-01-31/{number}")
        await ledger.end("silent", b"r", 1, write_output(runtime, "silent"), "")
        await ledger.end("without", b"r", 1, NOTHING, "2026-01-31/without")
    async with opened(path, archives=True) as (ledger, _):
        first, second = await ledger.oldest_uploads(9)
        assert (first, second.key) == (Upload("a-1", 1, "2026-01-31/1"), "2026-01-31/2")
        await ledger.uploaded(["a-1"])
        assert await ledger.oldest_uploads(9) == [second]
        kept = await ledger.oldest_outputs(9)
        assert sorted(each.attempt_id for each in kept) == ["a-1", "silent"]
        assert [each.attempt_id for each in await ledger.oldest_outputs(9, archived=False)] == [
            "a-2"
        ]
        await ledger.forget_outputs(await ledger.oldest_outputs(9, archived=False))
        assert await ledger.oldest_uploads(9) == []
        await ledger.end("a-3", b"r", 3, write_output(runtime, "a-3"), "2026-01-31/3")
    async with opened(path) as (ledger, _):  # there is no archive any more
        assert await ledger.oldest_uploads(9) == []
        assert len(await ledger.oldest_outputs(9)) == 3


async def test_what_is_not_archived_is_dropped_last(tmp_path: Path) -> None:
    clock = SystemClock()
    runtime = InProcessRuntime(tmp_path / "runtime", clock)
    size = 9 + OUTPUT_OVERHEAD_BYTES
    async with opened(tmp_path / "ledger.db", archives=True) as (ledger, _):
        for number in range(4):
            directory = write_output(runtime, f"a-{number}")
            ended_ns = clock.now_ns() - (100 - number) * SECOND_NS
            await ledger.end(f"a-{number}", b"r", ended_ns, directory, f"2026-01-31/{number}")
        await ledger.uploaded(["a-3"])

        async def left(keeping: Keeping) -> list[str]:
            await OutputKeeper(runtime, ledger, clock, keeping).drop()
            return sorted(path.name for path in (tmp_path / "runtime/output").iterdir())

        assert await left(Keeping(200, 200, 4 * size)) == ["a-0", "a-1", "a-2", "a-3"]
        assert await left(Keeping(10, 200, 4 * size)) == ["a-0", "a-1", "a-2"]
        assert await left(Keeping(10, 200, 2 * size)) == ["a-1", "a-2"]
        assert await left(Keeping(10, 10, 2 * size)) == []
        assert await ledger.oldest_uploads(9) == []


async def test_an_output_goes_to_the_archive_whole_or_is_given_up(tmp_path: Path) -> None:
    runtime = InProcessRuntime(tmp_path / "runtime", SystemClock())
    objects = Objects(ObjectStore(str(tmp_path / "archive")), "tests.archive")
    async with opened(tmp_path / "ledger.db", archives=True) as (ledger, _):
        # One whose recorder was lost, one that is whole, one whose files are gone.
        for number, end in enumerate([None, "5 0\n", "5 0\n"]):
            directory = write_output(runtime, f"a-{number}", end)
            await ledger.end(f"a-{number}", b"r", number, directory, f"2026-01-31/{number}")
        await runtime.discard_output("a-2")
        damaged = write_output(runtime, "a-4", "no numbers")
        await ledger.end("a-4", b"r", 0, damaged, "2026-01-31/4")
        archiver = Archiver(runtime, ledger, objects)
        running = asyncio.create_task(archiver.run())
        await archiver.idle.wait()
        assert await ledger.oldest_uploads(9) == []
        for number in range(2):
            data = await objects.get(f"2026-01-31/{number}", 1_000)
            assert data is not None
            archived = output.unpack(data, f"2026-01-31/{number}")
            assert archived.written == (5, 0) and archived.parts[0][0].data == b"words"
        assert await objects.get("2026-01-31/2", 1_000) is None
        await ledger.end("a-3", b"r", 3, write_output(runtime, "a-3"), "2026-01-31/3")
        archiver.wake()
        await archiver.idle.wait()
        assert await objects.get("2026-01-31/3", 1_000) is not None
        running.cancel()
