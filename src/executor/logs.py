"""Reads an attempt's output files, from a cursor, as they grow.

The recorder (gate/recorder.c) keeps the beginning and the end of each stream, in parts: `stdout`,
and `stdout.N` for what follows from byte N on; the same for `stderr`; and `end` when all is whole.
What was written in which order between the two is not known: each is in its own order. A position
is an offset in all that the stream ever said, so a cursor stays good whatever is dropped.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from . import limits
from .watch import Watcher

STDOUT, STDERR = 1, 2
STREAMS = ((STDOUT, "stdout"), (STDERR, "stderr"))
END = "end"
CURSOR_BEGIN = ""
_CURSOR = re.compile(r"o2\.([0-9]{1,15})\.([0-9]{1,15})")  # offsets in both streams
_LISTINGS_MAX = 5  # of parts that are dropped while they are looked at


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some output of one stream."""

    stream: int
    """STDOUT or STDERR."""
    data: bytes
    """At most LOG_CHUNK_BYTES_MAX; empty only when the stream's very last bytes were dropped."""
    cursor: str
    """Where to go on after this."""
    dropped_bytes: int = 0
    """Output of this stream that was dropped just before this, as it was over the limit."""

    @property
    def truncated(self) -> bool:
        """Whether something was."""
        return self.dropped_bytes > 0


@dataclass(frozen=True, slots=True)
class _End:
    """What is known of an output that is whole."""

    seen: dict[int, int]
    """Bytes that were written to each stream, kept or not."""
    last_bytes: int | None
    """Of the part after the beginning, these are meant to be kept; None: all that is there."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A file, and which of the stream's bytes are in it."""

    path: Path
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


def close(directory: Path) -> None:
    """Ends an output whose recorder was lost: what is there is all there will be."""
    sizes = [_written(_parts(directory, name)) for _, name in STREAMS]
    scratch = directory / "end.new"
    scratch.write_text(f"{sizes[0]} {sizes[1]}\n")
    scratch.rename(directory / END)


def written_bytes(directory: Path) -> int:
    """What both streams of an output that is whole were told, kept or not; 0 when it is not."""
    end = _end(directory)
    return sum(end.seen.values()) if end is not None else 0


def check_cursor(cursor: str) -> None:
    """Raises ValueError for a cursor that was never given out; see `read`."""
    _parse(cursor)


async def read(
    directory: Path, cursor: str, follow: bool, watcher: Watcher
) -> AsyncIterator[Chunk]:
    """The output after `cursor` ("" for the beginning).

    Ends at what is there; or, with `follow`, when the output is whole or its directory is removed.
    Raises ValueError for a cursor that is not one of this output's, FileNotFoundError when there is
    no such output.
    """
    positions = _parse(cursor)
    if not await asyncio.to_thread(directory.is_dir):
        raise FileNotFoundError(f"there is no output in {directory.name}")
    await asyncio.to_thread(_check, directory, cursor, positions)
    if not follow:
        async for chunk in _available(directory, positions):
            yield chunk
        return
    try:
        with watcher.changes(directory) as changed:
            while True:
                changed.clear()
                # Looked at before the reading: what was written before `end` came is read then.
                whole = await asyncio.to_thread(_ended, directory)
                async for chunk in _available(directory, positions):
                    yield chunk
                if whole:
                    return
                await changed.wait()
    except FileNotFoundError:
        return  # discarded just now


def _check(directory: Path, cursor: str, positions: dict[int, int]) -> None:
    end = _end(directory)
    for stream, name in STREAMS:
        size = end.seen[stream] if end is not None else _written(_parts(directory, name))
        if positions[stream] > size:
            raise ValueError(f"cursor {cursor!r} is beyond the end of {name} ({size} bytes)")


async def _available(directory: Path, positions: dict[int, int]) -> AsyncIterator[Chunk]:
    """What is there, both streams in turns, so that a long one does not hide the other."""
    end = await asyncio.to_thread(_end, directory)
    rest = list(STREAMS)
    while rest:
        for stream, name in tuple(rest):
            position = positions[stream]
            start, data = await asyncio.to_thread(_piece, directory, stream, name, position, end)
            positions[stream] = start + len(data)
            if start > position or data:
                yield Chunk(stream, data, _format(positions), dropped_bytes=start - position)
            if not data:
                rest.remove((stream, name))


def _piece(
    directory: Path, stream: int, name: str, position: int, end: _End | None
) -> tuple[int, bytes]:
    """What is kept of a stream from `position` on: where the next of it begins, and its bytes.

    No bytes: that is all, for now or (of an output that is whole) for ever.
    """
    last = 0
    if end is not None and end.last_bytes is not None:
        last = end.seen[stream] - end.last_bytes
    for _ in range(_LISTINGS_MAX):
        with contextlib.suppress(FileNotFoundError):  # dropped since it was listed: list again
            for part in _parts(directory, name):
                start = max(position, part.start, last if part.start else 0)
                if start < part.end:
                    size = min(limits.LOG_CHUNK_BYTES_MAX, part.end - start)
                    return start, _read(part.path, start - part.start, size)
            break
    return (max(position, end.seen[stream]) if end is not None else position), b""


def _parts(directory: Path, name: str) -> list[_Part]:
    """A stream's files in order."""
    parts = []
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            base, _, start = entry.name.partition(".")
            if base == name and (not start or start.isdigit()):
                with contextlib.suppress(FileNotFoundError):
                    size = entry.stat(follow_symlinks=False).st_size
                    parts.append(_Part(directory / entry.name, int(start or "0"), size))
    return sorted(parts, key=lambda part: (part.start, part.end))


def _written(parts: list[_Part]) -> int:
    return max((part.end for part in parts), default=0)


def _ended(directory: Path) -> bool:
    return not directory.exists() or (directory / END).exists()


def _end(directory: Path) -> _End | None:
    """None while the output is not whole."""
    try:
        numbers = [int(field) for field in (directory / END).read_bytes().split()]
    except FileNotFoundError:
        return None
    return _End({STDOUT: numbers[0], STDERR: numbers[1]}, numbers[2] if numbers[2:] else None)


def _read(path: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def _format(positions: dict[int, int]) -> str:
    return f"o2.{positions[STDOUT]}.{positions[STDERR]}"


def _parse(cursor: str) -> dict[int, int]:
    if cursor == CURSOR_BEGIN:
        return {STDOUT: 0, STDERR: 0}
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise ValueError(f"{cursor[:64]!r} is not a cursor of an output")
    return {STDOUT: int(match[1]), STDERR: int(match[2])}
