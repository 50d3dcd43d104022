"""What the executor must not forget: the attempts it accepted, and their ends until acknowledged.

One SQLite file, written by one thread, in a transaction for each batch of whatever came meanwhile.
Ends are on the disk before anybody is told of them. The rest outlives this process, and may be lost
with the host's power: no sandbox outlives that either, and of an attempt that another process of
this executor was given, and that this one does not know, the shard says that it is lost.

It holds bytes (a Work, an AttemptReport, as the shard's messages) and knows nothing of their
meaning; and it remembers which outputs are kept, oldest first, so that they can be dropped in that
order, and which of them are to be archived.
"""

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

BATCH_MAX = 1_000
"""Writes in one transaction: about 10 ms."""

ROWS_MAX = 250
"""Rows in one statement. Each statement lets go of the interpreter and must win it back from a busy
event loop, which takes half a millisecond: a statement a row would take seconds when many attempts
come at once."""

OUTPUT_OVERHEAD_BYTES = 16 * 1024
"""What an output costs on disk beyond its bytes: a directory and three small files."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
  attempt_id TEXT PRIMARY KEY, shard_id TEXT NOT NULL, work BLOB NOT NULL, report BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outputs (
  attempt_id TEXT PRIMARY KEY, ended_ns INTEGER NOT NULL, bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS outputs_by_end ON outputs (ended_ns);
CREATE TABLE IF NOT EXISTS uploads (
  attempt_id TEXT PRIMARY KEY, ended_ns INTEGER NOT NULL, key TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS uploads_by_end ON uploads (ended_ns);
"""

_Result = TypeVar("_Result")


class Entry(NamedTuple):
    """An attempt as it was remembered."""

    attempt_id: str
    shard_id: str
    work: bytes
    report: bytes | None
    """Its end; None if none was written."""


class Output(NamedTuple):
    """A kept output."""

    attempt_id: str
    ended_ns: int
    bytes: int
    """On disk, with OUTPUT_OVERHEAD_BYTES."""


class Upload(NamedTuple):
    """An output that is to be archived."""

    attempt_id: str
    ended_ns: int
    key: str
    """Of the object."""


class _Batch:
    """Writes of one transaction. An attempt is accepted, ends, is forgotten: so in that order."""

    def __init__(self) -> None:
        self.accepts: list[tuple[str, str, bytes]] = []
        self.ends: list[tuple[str, bytes]] = []
        self.outputs: list[tuple[str, int, Path]] = []
        self.forgets: list[tuple[str]] = []
        self.forgotten_outputs: list[Output] = []
        self.uploads: list[Upload] = []
        self.uploaded: list[tuple[str]] = []
        self.done: list[asyncio.Future[None]] = []
        self.size = 0

    def decided(self, written: asyncio.Future[None]) -> None:
        """The transaction is over, or has failed."""
        error = written.exception()
        for done in self.done:
            if done.done():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
                done.exception()  # whoever waits gets it; where nobody does, `run` raises it


class Ledger:
    """See the module. `run` must run for writes to be done."""

    def __init__(self, path: Path, archives: bool = False) -> None:
        """archives: outputs are archived."""
        self._path = path
        self.archives = archives
        # One thread, and so one order of writes; SQLite lets go of the interpreter while it syncs.
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._connection: sqlite3.Connection
        self._level = "FULL"
        """What is synced of a transaction; in this mode of the journal NORMAL means: nothing."""
        self._pending: deque[_Batch] = deque()
        self._wake = asyncio.Event()
        self.output_bytes = 0
        """Of all kept outputs."""

    async def open(self) -> list[Entry]:
        """Open the file, or make it. Answers what it holds. Raises sqlite3.Error."""
        return await self._in_thread(self._open)

    def _open(self) -> list[Entry]:
        self._connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(f"PRAGMA synchronous={self._level}")
        self._connection.executescript(_SCHEMA)
        if not self.archives:  # any more: what waited for it is kept as all others are
            self._connection.execute("DELETE FROM uploads")
        self.output_bytes = self._connection.execute(
            "SELECT coalesce(sum(bytes), 0) FROM outputs"
        ).fetchone()[0]
        rows = self._connection.execute("SELECT attempt_id, shard_id, work, report FROM attempts")
        return [Entry(*row) for row in rows]

    async def close(self) -> None:
        """Write what is pending, and close. After `run` has ended."""
        await self._write_pending()
        await self._in_thread(self._connection.close)
        self._thread.shutdown()

    async def run(self) -> None:
        """Write until cancelled. Raises sqlite3.Error: then nothing can be promised any more."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._write_pending()

    async def _write_pending(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch = self._pending.popleft()
            written = loop.run_in_executor(self._thread, self._commit, batch)
            written.add_done_callback(batch.decided)
            # A batch under way is finished even when this task is cancelled.
            await asyncio.shield(written)

    def _commit(self, batch: _Batch) -> None:
        sizes = [(key, at_ns, _size(path)) for key, at_ns, path in batch.outputs]
        outputs = [output for output in sizes if output[2] is not None]
        gone = [(output.attempt_id,) for output in batch.forgotten_outputs]
        # Not synced, a commit is written to the file all the same.
        level = "FULL" if batch.ends else "NORMAL"
        if level != self._level:
            self._connection.execute(f"PRAGMA synchronous={level}")
            self._level = level
        with self._transaction():
            self._rows(
                "INSERT OR IGNORE INTO attempts (attempt_id, shard_id, work) VALUES {}",
                batch.accepts,
            )
            self._rows(
                "UPDATE attempts SET report = ended.column2 FROM (VALUES {}) AS ended "
                "WHERE attempt_id = ended.column1",
                batch.ends,
            )
            self._rows("INSERT OR REPLACE INTO outputs VALUES {}", outputs)
            self._rows("DELETE FROM attempts WHERE attempt_id IN (VALUES {})", batch.forgets)
            self._rows("DELETE FROM outputs WHERE attempt_id IN (VALUES {})", gone)
            self._rows("INSERT OR REPLACE INTO uploads VALUES {}", batch.uploads)
            uploaded = batch.uploaded + gone
            self._rows("DELETE FROM uploads WHERE attempt_id IN (VALUES {})", uploaded)
        self.output_bytes += sum(size or 0 for _, _, size in outputs)
        self.output_bytes -= sum(output.bytes for output in batch.forgotten_outputs)

    def _rows(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Execute a statement for all rows, which stand where it says {}."""
        for start in range(0, len(rows), ROWS_MAX):
            part = rows[start : start + ROWS_MAX]
            places = ",".join(["(" + ",".join("?" * len(part[0])) + ")"] * len(part))
            values = [value for row in part for value in row]
            self._connection.execute(statement.format(places), values)

    @contextlib.contextmanager
    def _transaction(self):  # type: ignore[no-untyped-def]
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _batch(self) -> _Batch:
        """The batch that takes the next write."""
        if not self._pending or self._pending[-1].size >= BATCH_MAX:
            self._pending.append(_Batch())
            self._wake.set()
        batch = self._pending[-1]
        batch.size += 1
        return batch

    @staticmethod
    def _done(batch: _Batch) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        batch.done.append(done)
        return done

    async def _in_thread(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    # -- attempts ------------------------------------------------------------------------------

    def accept(self, attempt_id: str, shard_id: str, work: bytes) -> asyncio.Future[None]:
        """Remember an attempt. Done once the next process would know it: nothing starts before."""
        batch = self._batch()
        batch.accepts.append((attempt_id, shard_id, work))
        return self._done(batch)

    def end(
        self, attempt_id: str, report: bytes, ended_ns: int, output: Path, key: str = ""
    ) -> asyncio.Future[None]:
        """Remember an attempt's end, and its output, which is to be archived if it has a key. Done
        once it is on disk."""
        batch = self._batch()
        batch.ends.append((attempt_id, report))
        if output.exists():
            batch.outputs.append((attempt_id, ended_ns, output))
            if key and self.archives:
                batch.uploads.append(Upload(attempt_id, ended_ns, key))
        return self._done(batch)

    def forget(self, attempt_id: str) -> None:
        """The shard has an attempt's end: it need not be known here any more."""
        self._batch().forgets.append((attempt_id,))

    # -- outputs -------------------------------------------------------------------------------

    async def oldest_outputs(self, count: int, archived: bool = True) -> list[Output]:
        """The outputs that ended first, of those that are not to be archived (any more); or of
        those that are."""

        def read() -> list[Output]:
            rows = self._connection.execute(
                "SELECT attempt_id, ended_ns, bytes FROM outputs WHERE "
                f"{'NOT ' if archived else ''}EXISTS "
                "(SELECT 1 FROM uploads WHERE uploads.attempt_id = outputs.attempt_id) "
                "ORDER BY ended_ns LIMIT ?",
                (count,),
            )
            return [Output(*row) for row in rows]

        return await self._in_thread(read)

    async def oldest_uploads(self, count: int) -> list[Upload]:
        """The outputs to be archived that ended first."""

        def read() -> list[Upload]:
            rows = self._connection.execute(
                "SELECT attempt_id, ended_ns, key FROM uploads ORDER BY ended_ns LIMIT ?", (count,)
            )
            return [Upload(*row) for row in rows]

        return await self._in_thread(read)

    def uploaded(self, attempt_ids: list[str]) -> asyncio.Future[None]:
        """These are archived. Done once that is on disk."""
        batch = self._batch()
        batch.uploaded += [(attempt_id,) for attempt_id in attempt_ids]
        return self._done(batch)

    def forget_outputs(self, outputs: list[Output]) -> asyncio.Future[None]:
        """These have been removed."""
        batch = self._batch()
        batch.forgotten_outputs += outputs
        return self._done(batch)


def _size(directory: Path) -> int | None:
    """What an output takes on disk; None if there is none."""
    try:
        files = list(directory.iterdir())
    except OSError:
        return None
    size = OUTPUT_OVERHEAD_BYTES
    for file in files:
        with contextlib.suppress(OSError):
            size += file.stat().st_size
    return size
