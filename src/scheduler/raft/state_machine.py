"""What a replica replicates, seen from Raft."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class StateMachine(Protocol):
    """Deterministic: the same payloads in the same order give the same bytes on every replica.

    Everything but flush_wal and flush is called on the event loop. An exception from any of these
    stops the replica for good.
    """

    @property
    def applied(self) -> tuple[int, int]:
        """(index, term) of the last payload that this state holds, (0, 0) at first."""
        ...

    def apply(self, index: int, term: int, payload: bytes) -> object:
        """Applies one committed payload and stores (index, term) in the same batch, unsynced.

        Indexes rise, with gaps: Raft's own entries are not passed on.
        """
        ...

    def flush_wal(self) -> None:
        """Makes everything applied so far durable. In a worker thread."""
        ...

    def flush(self) -> None:
        """Brings memory to files, so that the checkpoint that follows is short. In a worker."""
        ...

    def checkpoint(self, directory: Path) -> tuple[int, int]:
        """Writes the whole state into the new, flat `directory`; the (index, term) it holds."""
        ...

    def install(self, directory: Path) -> None:
        """Replaces the whole state by a checkpoint's files, which it may take away.

        After a crash within it the state, opened again, is the old or the new one as a whole, and
        the replica calls it again: if the files are gone, it is the new one, and all that is left
        to do is to remove what is left of the old one.
        """
        ...
