"""What a replica takes from the machine: time, chance, threads and a disk. A simulator brings its
own."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from .journal import new_incarnation
from .storage import JournalStorage, RocksStorage

T = TypeVar("T")


class Worker(Protocol):
    """Runs blocking calls one after the other, beside the event loop."""

    async def run(self, call: Callable[[], T]) -> T: ...
    def close(self) -> None: ...


class ThreadWorker:
    """One thread. It pays because fsync releases the interpreter lock."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        self._executor.shutdown(wait=False)


class Environment:
    """The real machine."""

    def clock(self) -> float:
        """Seconds that only go forward."""
        return time.monotonic()

    def wall_ns(self) -> int:
        """What the host holds for the time, nanoseconds since 1970: it may jump, and be wrong."""
        return time.time_ns()

    def random(self) -> float:
        """From 0 to before 1."""
        return random.random()

    def incarnation(self) -> int:
        """A number for a new disk that no other one has."""
        return new_incarnation()

    def worker(self, name: str) -> Worker:
        """A worker of its own for each purpose: a snapshot's flush must not delay the journal's."""
        return ThreadWorker(name)

    def storage(self, directory: Path) -> JournalStorage:
        """The journal's disk."""
        return RocksStorage(directory)
