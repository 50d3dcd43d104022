"""What the executor must not forget: the attempts it accepted, and their ends until acknowledged.

One SQLite file, written by one thread, fsynced once for each batch of whatever came meanwhile. It
holds bytes (a Work, an AttemptReport, as the shard's messages) and knows nothing of their meaning;
and it remembers which outputs are kept, oldest first, so that they can be dropped in that order.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

BATCH_MAX = 1_000
"""Writes in one transaction: about 10 ms."""

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
"""

_Write = Callable[[sqlite3.Connection], None]
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


class Ledger:
    """See the module. `run` must run for writes to be done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # One thread, and so one order of writes; SQLite lets go of the interpreter while it syncs.
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._connection: sqlite3.Connection
        self._pending: list[tuple[_Write, asyncio.Future[None]]] = []
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
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)
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
        while self._pending:
            batch, self._pending = self._pending[:BATCH_MAX], self._pending[BATCH_MAX:]
            # A batch under way is finished even when this task is cancelled.
            await asyncio.shield(self._write(batch))

    async def _write(self, batch: list[tuple[_Write, asyncio.Future[None]]]) -> None:
        try:
            await self._in_thread(lambda: self._commit([write for write, _ in batch]))
        except sqlite3.Error as error:
            for _, done in batch:
                if not done.done():
                    done.set_exception(error)
                    done.exception()  # whoever waits gets it; where nobody does, `run` raises it
            raise
        for _, done in batch:
            if not done.done():
                done.set_result(None)

    def _commit(self, writes: list[_Write]) -> None:
        with self._transaction():
            for write in writes:
                write(self._connection)

    @contextlib.contextmanager
    def _transaction(self):  # type: ignore[no-untyped-def]
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _submit(self, write: _Write) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((write, done))
        self._wake.set()
        return done

    async def _in_thread(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    # -- attempts ------------------------------------------------------------------------------

    def accept(self, attempt_id: str, shard_id: str, work: bytes) -> asyncio.Future[None]:
        """Remember an attempt. Done once it is on disk: nothing may start before."""
        return self._submit(
            lambda connection: _execute(
                connection,
                "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, NULL)",
                (attempt_id, shard_id, work),
            )
        )

    def end(
        self, attempt_id: str, report: bytes, ended_ns: int, output: Path
    ) -> asyncio.Future[None]:
        """Remember an attempt's end, and its output. Done once it is on disk."""

        def write(connection: sqlite3.Connection) -> None:
            _execute(
                connection,
                "UPDATE attempts SET report = ? WHERE attempt_id = ?",
                (report, attempt_id),
            )
            size = _size(output)
            if size is not None:
                _execute(
                    connection,
                    "INSERT OR REPLACE INTO outputs VALUES (?, ?, ?)",
                    (attempt_id, ended_ns, size),
                )
                self.output_bytes += size

        return self._submit(write)

    def forget(self, attempt_id: str) -> None:
        """The shard has an attempt's end: it need not be known here any more."""
        self._submit(
            lambda connection: _execute(
                connection, "DELETE FROM attempts WHERE attempt_id = ?", (attempt_id,)
            )
        )

    # -- outputs -------------------------------------------------------------------------------

    async def oldest_outputs(self, count: int) -> list[Output]:
        """The outputs that ended first."""

        def read() -> list[Output]:
            rows = self._connection.execute(
                "SELECT attempt_id, ended_ns, bytes FROM outputs ORDER BY ended_ns LIMIT ?",
                (count,),
            )
            return [Output(*row) for row in rows]

        return await self._in_thread(read)

    def forget_outputs(self, outputs: list[Output]) -> asyncio.Future[None]:
        """These have been removed."""

        def write(connection: sqlite3.Connection) -> None:
            for output in outputs:
                _execute(
                    connection, "DELETE FROM outputs WHERE attempt_id = ?", (output.attempt_id,)
                )
                self.output_bytes -= output.bytes

        return self._submit(write)


def _execute(
    connection: sqlite3.Connection, statement: str, values: tuple[str | bytes | int, ...]
) -> None:
    connection.execute(statement, values)


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
