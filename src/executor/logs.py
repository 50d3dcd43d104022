"""Reads an attempt's output files, from a cursor, as they grow.

The recorder (gate/recorder.c) writes `stdout` and `stderr`, each up to a limit, and `end` when both
are whole. What was written in which order between the two is not known: each is in its own order.
"""

import asyncio
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
# Offsets in both streams, and which of them were told that they are cut ("-" or "c").
_CURSOR = re.compile(r"o1\.([0-9]{1,15})([-c])\.([0-9]{1,15})([-c])")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some output of one stream."""

    stream: int
    """STDOUT or STDERR."""
    data: bytes
    """At most LOG_CHUNK_BYTES_MAX; empty only when `truncated`."""
    cursor: str
    """Where to go on after this."""
    truncated: bool
    """Output of this stream was dropped just before this, as it was over the limit: the last chunk
    of a stream that was cut, and told only once."""


@dataclass(slots=True)
class _Position:
    """How far one stream was read."""

    offset: int
    told: bool


def close(directory: Path) -> None:
    """Ends an output whose recorder was lost: what is there is all there will be."""
    sizes = [_size(directory / name) for _, name in STREAMS]
    scratch = directory / "end.new"
    scratch.write_text(f"{sizes[0]} {sizes[1]}\n")
    scratch.rename(directory / END)


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
    for stream, name in STREAMS:
        size = await asyncio.to_thread(_size, directory / name)
        if positions[stream].offset > size:
            raise ValueError(f"cursor {cursor!r} is beyond the end of {name} ({size} bytes)")
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


async def _available(directory: Path, positions: dict[int, _Position]) -> AsyncIterator[Chunk]:
    """What is there, both streams in turns, so that a long one does not hide the other."""
    seen = await asyncio.to_thread(_seen, directory)
    rest = list(STREAMS)
    while rest:
        for stream, name in tuple(rest):
            position = positions[stream]
            data = await asyncio.to_thread(_piece, directory / name, position.offset)
            if data:
                position.offset += len(data)
                yield Chunk(stream, data, _format(positions), truncated=False)
                continue
            rest.remove((stream, name))
            if seen is not None and seen[stream] > position.offset and not position.told:
                position.told = True
                yield Chunk(stream, b"", _format(positions), truncated=True)


def _ended(directory: Path) -> bool:
    return not directory.exists() or (directory / END).exists()


def _seen(directory: Path) -> dict[int, int] | None:
    """The bytes that were written to each stream, kept or not; None while that is not known."""
    try:
        fields = (directory / END).read_bytes().split()
    except FileNotFoundError:
        return None
    return {STDOUT: int(fields[0]), STDERR: int(fields[1])}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _piece(path: Path, offset: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""  # the recorder has not begun
    try:
        return os.pread(descriptor, limits.LOG_CHUNK_BYTES_MAX, offset)
    finally:
        os.close(descriptor)


def _format(positions: dict[int, _Position]) -> str:
    parts = (f"{at.offset}{'c' if at.told else '-'}" for at in positions.values())
    return f"o1.{'.'.join(parts)}"


def _parse(cursor: str) -> dict[int, _Position]:
    if cursor == CURSOR_BEGIN:
        return {STDOUT: _Position(0, told=False), STDERR: _Position(0, told=False)}
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise ValueError(f"{cursor[:64]!r} is not a cursor of an output")
    return {
        STDOUT: _Position(int(match[1]), told=match[2] == "c"),
        STDERR: _Position(int(match[3]), told=match[4] == "c"),
    }
