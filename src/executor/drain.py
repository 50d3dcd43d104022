"""Whether this executor is drained: its operator's word, kept on disk until it is taken back.

It is kept here, and not by the shards, as it is one fact about one executor that may serve several
of them: whoever leads any of them hears it from the executor itself, at every attach and every
change (docs/decisions/0011-placement.md).
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is on disk."""

    draining: bool = False
    end_ns: int = 0
    """When what still runs is ended, in nanoseconds since 1970; 0: never."""


class DrainFile:
    """One small file. Its functions block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> State:
        """What was written last. Raises OSError, and msgspec.DecodeError for a damaged file."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=State)
        except FileNotFoundError:
            return State()

    def write(self, state: State) -> None:
        """On disk when it returns; a crash leaves the one or the other. Raises OSError."""
        scratch = self._path.with_suffix(".new")
        with scratch.open("wb") as file:
            file.write(msgspec.json.encode(state))
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
