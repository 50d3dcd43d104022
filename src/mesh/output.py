"""What an attempt wrote, as executors keep it and as it is archived: chunks, cursors, one format.

Of each stream the beginning and the end are kept, in parts; what is missing between two parts was
dropped. A position is an offset in all that the stream ever said, so a cursor is good whatever is
dropped, and wherever the output is read from: the executor's files, or the archive.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import zstandard

from ..proto.tickmesh.internal.v1 import executor_pb2

STDOUT, STDERR = 1, 2
STREAMS = ((STDOUT, "stdout"), (STDERR, "stderr"))
CURSOR_BEGIN = ""

CHUNK_BYTES_MAX = 64 * 1024
CHUNK_TIMES_MAX = 4_096
"""Times in one chunk: 64 KiB byte by byte would be a message of megabytes."""

DAY = "%Y-%m-%d"

PACKED_BYTES_MAX = 32 * 1024 * 1024
"""Of an archived output as it is stored."""

UNPACKED_BYTES_MAX = 64 * 1024 * 1024
"""Of an archived output: both streams, and 16 bytes for each time; far more than any plan keeps."""

_LEVEL = 3
"""Of zstd: 1 MiB of text takes 3 ms, and a higher level saves little of it."""

_CURSOR = re.compile(r"o2\.([0-9]{1,15})\.([0-9]{1,15})")  # offsets in both streams

Times = tuple[tuple[int, int], ...]
"""(from this byte on, it was read at this instant, nanoseconds since 1970), in the bytes' order."""


class DamagedOutput(ValueError):
    """An archived output is not what was archived."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some output of one stream."""

    stream: int
    """STDOUT or STDERR."""
    data: bytes
    """At most CHUNK_BYTES_MAX; empty only when the stream's very last bytes were dropped."""
    cursor: str
    """Where to go on after this."""
    dropped_bytes: int = 0
    """Output of this stream that was dropped just before this, as it was over the limit."""
    times: Times = ()
    """By the chunk's own offsets, the first of them 0. Empty: not known."""

    @property
    def truncated(self) -> bool:
        """Whether something was."""
        return self.dropped_bytes > 0


def to_wire(chunk: Chunk) -> executor_pb2.StreamOutputResponse:
    """A chunk as an executor sends it, and a gateway that reads it from the archive."""
    return executor_pb2.StreamOutputResponse(
        data=chunk.data,
        stream=chunk.stream,
        cursor=chunk.cursor,
        dropped_bytes=chunk.dropped_bytes,
        time_offsets=[offset for offset, _ in chunk.times],
        times_ns=[instant for _, instant in chunk.times],
    )


class Piece(NamedTuple):
    """What is kept of a stream from some position on."""

    start: int
    """Where it begins: the position, or behind it, if what is between was dropped."""
    data: bytes
    """Nothing: that is all, for now or (of an output that is whole) for ever."""
    times: Times = ()
    """As in Chunk."""


def format_cursor(positions: dict[int, int]) -> str:
    """The cursor of a position in each stream."""
    return f"o2.{positions[STDOUT]}.{positions[STDERR]}"


def parse_cursor(cursor: str) -> dict[int, int]:
    """The position in each stream. Raises ValueError for a cursor that was never given out."""
    if cursor == CURSOR_BEGIN:
        return {STDOUT: 0, STDERR: 0}
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise ValueError(f"{cursor[:64]!r} is not a cursor of an output")
    return {STDOUT: int(match[1]), STDERR: int(match[2])}


def check_positions(cursor: str, positions: dict[int, int], sizes: dict[int, int]) -> None:
    """Raises ValueError for a cursor that points beyond what was written."""
    for stream, name in STREAMS:
        if positions[stream] > sizes[stream]:
            raise ValueError(
                f"cursor {cursor!r} is beyond the end of {name} ({sizes[stream]} bytes)"
            )


def chunks(positions: dict[int, int], look: Callable[[int, int], Piece]) -> Iterator[Chunk]:
    """What there is from these positions on, which move along: both streams in turns, so that a
    long one does not hide the other. `look` finds a stream's piece at a position."""
    rest = [stream for stream, _ in STREAMS]
    while rest:
        for stream in tuple(rest):
            position = positions[stream]
            start, data, times = look(stream, position)
            positions[stream] = start + len(data)
            if start > position or data:
                dropped = start - position
                yield Chunk(stream, data, format_cursor(positions), dropped, times)
            if not data:
                rest.remove(stream)


def bound(start: int, end: int, offsets: list[int], instants: list[int]) -> tuple[int, Times]:
    """How far a chunk of the stream's bytes [start, end) may go, and its times, of those that are
    known (offsets in the stream, ascending, and the instants)."""
    end = min(end, start + CHUNK_BYTES_MAX)
    first = bisect_right(offsets, start) - 1
    times: list[tuple[int, int]] = []
    for index in range(max(first, 0), len(offsets)):
        if offsets[index] >= end:
            break
        if len(times) == CHUNK_TIMES_MAX:
            return offsets[index], tuple(times)
        times.append((max(0, offsets[index] - start), instants[index]))
    return end, tuple(times)


def object_key(execution: str, attempt: int, assign_ms: int) -> str:
    """Where an attempt's output is archived: by the day (UTC) on which it was assigned, which is
    what its end deletes, then by its names. execution: the resource name."""
    _, customer, _, job, _, execution_id = execution.split("/")
    day = time.strftime(DAY, time.gmtime(assign_ms // 1_000))
    return f"{day}/{customer}/{job}/{execution_id}/{attempt}"


def customer_of_key(key: str) -> str:
    """Whose an archived output is."""
    return key.split("/", 2)[1]


# -- archived --------------------------------------------------------------------------------------


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a stream that are kept."""

    start: int
    data: bytes
    offsets: list[int]
    """Of the times, in the stream."""
    instants: list[int]
    """From those on."""


class Archived(msgspec.Struct, frozen=True, array_like=True):
    """An attempt's whole output. Fields may only be appended, with a default."""

    name: str
    """Of what it is: see output_key."""
    written: tuple[int, int]
    """Bytes written to stdout and to stderr, kept or not."""
    parts: tuple[list[Part], list[Part]]
    """Of stdout and of stderr, in order."""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Archived)


def pack(output: Archived) -> bytes:
    """As it is archived: one zstd frame, with a checksum of its content."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    return compressor.compress(_ENCODER.encode(output))


def unpack(data: bytes, name: str) -> Archived:
    """What was archived under a name. Raises DamagedOutput."""
    try:
        if not 0 <= zstandard.frame_content_size(data) <= UNPACKED_BYTES_MAX:
            raise DamagedOutput(f"the archived output {name} is of no size that one can have")
        output = _DECODER.decode(zstandard.ZstdDecompressor().decompress(data))
    except (zstandard.ZstdError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedOutput(f"the archived output {name} is damaged: {error}") from error
    if output.name != name:
        raise DamagedOutput(f"the archived output {name} is that of {output.name}")
    return output


def archived_chunks(output: Archived, cursor: str) -> Iterator[Chunk]:
    """An archived output from a cursor on. Raises ValueError for one that is not of it."""
    positions = parse_cursor(cursor)
    sizes = dict(zip((STDOUT, STDERR), output.written, strict=True))
    check_positions(cursor, positions, sizes)

    def look(stream: int, position: int) -> Piece:
        for part in output.parts[stream - STDOUT]:
            if position < part.start + len(part.data):
                start = max(position, part.start)
                end, times = bound(start, part.start + len(part.data), part.offsets, part.instants)
                return Piece(start, part.data[start - part.start : end - part.start], times)
        return Piece(max(position, sizes[stream]), b"")

    return chunks(positions, look)
