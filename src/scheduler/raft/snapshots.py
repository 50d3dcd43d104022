"""Checkpoints as files: read in bounded parts on one side, written, synced and handed over on the
other. What is in them is the state machine's business."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from .environment import Worker
from .limits import SNAPSHOT_BYTES_MAX, SNAPSHOT_CHUNK_BYTES, SNAPSHOT_FILES_MAX
from .messages import SnapshotChunk, SnapshotEnd, SnapshotPart
from .transport import TransportError

_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}")


def clear(directory: Path) -> None:
    """Removes the directory and all in it, if it is there."""
    shutil.rmtree(directory, ignore_errors=True)


def sync_directory(directory: Path) -> None:
    """Makes the names in it durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def read_parts(directory: Path, worker: Worker) -> AsyncIterator[SnapshotPart]:
    """The files of a flat directory in the order of their names, then the end."""
    names = await worker.run(lambda: sorted(path.name for path in directory.iterdir()))
    size_bytes = 0
    for name in names:
        with (directory / name).open("rb") as file:
            offset = 0
            while True:
                data = await worker.run(lambda file=file: file.read(SNAPSHOT_CHUNK_BYTES))  # type: ignore[misc]
                if not data and offset:
                    break
                yield SnapshotChunk(name, offset, data, zlib.crc32(data))
                if not data:
                    break
                offset += len(data)
        size_bytes += offset
    yield SnapshotEnd(len(names), size_bytes)


class Receiver:
    """Writes parts into a fresh directory; complete only after `receive` returned."""

    def __init__(self, directory: Path, worker: Worker) -> None:
        self._directory = directory
        self._worker = worker
        self._file: BinaryIO | None = None
        self._name = ""
        self._offset = 0
        self._files = 0
        self._size_bytes = 0

    async def receive(self, parts: AsyncIterator[SnapshotPart]) -> None:
        """Raises TransportError when the parts are not a whole snapshot; then nothing is kept."""
        await self._worker.run(lambda: clear(self._directory))
        self._directory.mkdir(parents=True)
        try:
            async for part in parts:
                if isinstance(part, SnapshotEnd):
                    await self._end(part)
                    return
                if not isinstance(part, SnapshotChunk):
                    raise TransportError("a snapshot holds a second header")
                await self._chunk(part)
            raise TransportError("a snapshot ended without its end")
        except BaseException:
            if self._file is not None:
                self._file.close()
            clear(self._directory)
            raise

    async def _chunk(self, part: SnapshotChunk) -> None:
        if zlib.crc32(part.data) != part.checksum:
            raise TransportError(f"{part.name} at {part.offset} fails its checksum")
        if part.offset == 0:
            await self._open(part.name)
        if self._file is None or (part.name, part.offset) != (self._name, self._offset):
            raise TransportError(
                f"{part.name} at {part.offset} does not follow {self._name} at {self._offset}"
            )
        self._size_bytes += len(part.data)
        if self._size_bytes > SNAPSHOT_BYTES_MAX:
            raise TransportError(f"a snapshot exceeds {SNAPSHOT_BYTES_MAX} bytes")
        file = self._file
        await self._worker.run(lambda: file.write(part.data))
        self._offset += len(part.data)

    async def _open(self, name: str) -> None:
        await self._close()
        if not _FILE_NAME.fullmatch(name):
            raise TransportError(f"{name!r} is not a name that a checkpoint's file can have")
        self._files += 1
        if self._files > SNAPSHOT_FILES_MAX:
            raise TransportError(f"a snapshot exceeds {SNAPSHOT_FILES_MAX} files")
        try:
            self._file = (self._directory / name).open("xb")
        except FileExistsError:
            raise TransportError(f"a snapshot holds {name} twice") from None
        self._name, self._offset = name, 0

    async def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            await self._worker.run(lambda: _sync_and_close(file))

    async def _end(self, end: SnapshotEnd) -> None:
        await self._close()
        if (end.files, end.size_bytes) != (self._files, self._size_bytes):
            raise TransportError(
                f"a snapshot of {end.files} files, {end.size_bytes} bytes arrived as"
                f" {self._files} files, {self._size_bytes} bytes"
            )
        await self._worker.run(lambda: sync_directory(self._directory))
        await self._worker.run(lambda: sync_directory(self._directory.parent))


def _sync_and_close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
