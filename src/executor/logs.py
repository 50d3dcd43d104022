"""Reads an attempt's output files, from a cursor, as they grow.

The recorder (gate/recorder.c) keeps the beginning and the end of each stream, in parts: `stdout`,
and `stdout.N` for what follows from byte N on; the same for `stderr`; beside each part the times at
which it was read; and `end` when all is whole. What was written in which order between the two is
known by the times alone: each is in its own order. See mesh/output.py for positions and cursors.
"""

import asyncio
import contextlib
import functools
import os
import sys
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from ..mesh import output
from ..mesh.output import STDERR, STDOUT, STREAMS, Chunk, Piece
from .watch import Watcher

END = "end"
_TIMES = ".times"
_LISTINGS_MAX = 5  # of parts that are dropped while they are looked at


@dataclass(frozen=True, slots=True)
class _End:
    """What is known of an output that is whole."""

    seen: dict[int, int]
    """Bytes that were written to each stream, kept or not."""
    last_bytes: int | None
    """Of the part after the beginning, these are meant to be kept; None: all that is there."""
    status: int | None
    """See Written."""

    def last_from(self, stream: int) -> int:
        """Where what is kept after the beginning begins."""
        return 0 if self.last_bytes is None else self.seen[stream] - self.last_bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """A file, and which of the stream's bytes are in it."""

    path: Path
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Written:
    """How much an attempt wrote."""

    output_bytes: int | None = 0
    """To both streams, kept or not. None: nobody knows."""
    dropped_bytes: int = 0
    """Of these, what was not kept."""
    status: int | None = None
    """The command's wait status; None: its gate told none."""


def close(directory: Path) -> None:
    """Ends an output whose recorder was lost: what is there is all there will be."""
    sizes = [_written(_parts(directory, name)) for _, name in STREAMS]
    scratch = directory / "end.new"
    scratch.write_text(f"{sizes[0]} {sizes[1]}\n")
    scratch.rename(directory / END)


def written(directory: Path) -> Written:
    """How much is in an output that is whole; of one that is not, nobody knows."""
    end = _end(directory)
    if end is None:
        return Written(None)
    kept = 0
    for stream, name in STREAMS:
        for part in _parts(directory, name):
            kept += max(0, part.end - _kept_from(part, stream, end))
    total = sum(end.seen.values())
    return Written(total, total - kept, end.status)


def ended_ns(directory: Path) -> int:
    """When an output became whole, ns since 1970. Raises FileNotFoundError."""
    return (directory / END).stat().st_mtime_ns


def archived(directory: Path, name: str) -> output.Archived:
    """An output that is whole, as it is archived under a name. Raises FileNotFoundError."""
    end = _end(directory)
    if end is None:
        raise FileNotFoundError(f"there is no output that is whole in {directory.name}")
    parts: tuple[list[output.Part], list[output.Part]] = ([], [])
    for stream, stream_name in STREAMS:
        for part in _parts(directory, stream_name):
            start = _kept_from(part, stream, end)
            if start < part.end:
                data = _read(part.path, start - part.start, part.end - start)
                offsets, instants = _times(part.path)
                parts[stream - STDOUT].append(output.Part(start, data, offsets, instants))
    return output.Archived(name, (end.seen[STDOUT], end.seen[STDERR]), parts)


async def read(
    directory: Path, cursor: str, follow: bool, watcher: Watcher
) -> AsyncIterator[Chunk]:
    """The output after `cursor` ("" for the beginning).

    Ends at what is there; or, with `follow`, when the output is whole or its directory is removed.
    Raises ValueError for a cursor that is not one of this output's, FileNotFoundError when there is
    no such output.
    """
    positions = output.parse_cursor(cursor)
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
    sizes = {stream: _written(_parts(directory, name)) for stream, name in STREAMS}
    output.check_positions(cursor, positions, sizes if end is None else end.seen)


async def _available(directory: Path, positions: dict[int, int]) -> AsyncIterator[Chunk]:
    """What is there; files are read in threads, one piece at a time."""
    end = await asyncio.to_thread(_end, directory)
    pieces = output.chunks(positions, functools.partial(_piece, directory, end))
    while (chunk := await asyncio.to_thread(next, pieces, None)) is not None:
        yield chunk


def _piece(directory: Path, end: _End | None, stream: int, position: int) -> Piece:
    """What is kept of a stream from `position` on."""
    name = dict(STREAMS)[stream]
    for _ in range(_LISTINGS_MAX):
        with contextlib.suppress(FileNotFoundError):  # dropped since it was listed: list again
            for part in _parts(directory, name):
                start = max(position, _kept_from(part, stream, end))
                if start < part.end:
                    stop, times = output.bound(start, part.end, *_times(part.path))
                    return Piece(start, _read(part.path, start - part.start, stop - start), times)
            break
    return Piece(max(position, end.seen[stream]) if end is not None else position, b"")


def _kept_from(part: _Part, stream: int, end: _End | None) -> int:
    """Where in the stream what counts of a part begins; perhaps behind its end."""
    return max(part.start, end.last_from(stream)) if end is not None and part.start else part.start


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
    last_bytes, status = (*numbers[2:], None, None)[:2]
    return _End({STDOUT: numbers[0], STDERR: numbers[1]}, last_bytes, status)


def _times(path: Path) -> tuple[list[int], list[int]]:
    """The times of a part: offsets in the stream, and instants. Outputs of before had none."""
    pairs = array("Q")
    with contextlib.suppress(FileNotFoundError):
        content = path.with_name(path.name + _TIMES).read_bytes()
        pairs.frombytes(content[: len(content) // 16 * 16])
    if sys.byteorder == "big":
        pairs.byteswap()
    return pairs[::2].tolist(), pairs[1::2].tolist()


def _read(path: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
