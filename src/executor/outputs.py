"""Archives what attempts wrote, and drops it here: when it is too old, or all of it is too much."""

import asyncio
import contextlib
import random
from dataclasses import dataclass
from pathlib import Path

from ..mesh import output, telemetry
from ..mesh.clock import Clock
from ..mesh.objects import Objects, ObjectsUnavailable
from . import logs
from .ledger import Ledger, Output, Upload
from .sandbox import Runtime

LOOK_S = 10.0
"""Between looks: how far the budget may be passed is what is written meanwhile."""

DROP_MAX = 200
"""Outputs removed in one go."""

UPLOADS_MAX = 64
"""Outputs archived in one go: then those that are, are forgotten in one write."""

UPLOADS_AT_ONCE = 8
"""So that a store that takes 50 ms for one takes 160 a second."""

PAUSE_S_MIN = 1.0
PAUSE_S_MAX = 300.0
"""After a store that could not be reached, doubling."""

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long outputs are kept on this executor."""

    seconds: int = 7 * 24 * 3600
    """Those that are archived, or that are not to be."""
    unarchived_seconds: int = 7 * 24 * 3600
    """Those that could not be archived: by then they would be deleted there."""
    bytes_max: int = 10 * 1024**3
    """Of all together."""


class OutputKeeper:
    """Holds the outputs of ended attempts to an age and to a budget of bytes on disk."""

    def __init__(self, runtime: Runtime, ledger: Ledger, clock: Clock, keeping: Keeping) -> None:
        self._runtime = runtime
        self._ledger = ledger
        self._clock = clock
        self._keeping = keeping

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await self.drop()
            await asyncio.sleep(LOOK_S)

    async def drop(self) -> int:
        """Drop what need not be kept, and then what cannot be. Answers how many."""
        dropped = await self._drop(self._keeping.seconds, archived=True)
        lost = await self._drop(self._keeping.unarchived_seconds, archived=False)
        if lost:
            log.error("outputs were dropped that could not be archived", count=lost)
        return dropped + lost

    async def _drop(self, seconds: int, archived: bool) -> int:
        horizon_ns = self._clock.now_ns() - seconds * 1_000_000_000
        dropped = 0
        while True:
            over = self._over(
                await self._ledger.oldest_outputs(DROP_MAX, archived=archived), horizon_ns
            )
            for each in over:
                await self._runtime.discard_output(each.attempt_id)
            if over:
                await self._ledger.forget_outputs(over)
            dropped += len(over)
            if len(over) < DROP_MAX:
                return dropped

    def _over(self, oldest: list[Output], horizon_ns: int) -> list[Output]:
        excess = self._ledger.output_bytes - self._keeping.bytes_max
        over = []
        for each in oldest:
            if each.ended_ns >= horizon_ns and excess <= 0:
                break
            over.append(each)
            excess -= each.bytes
        return over


class Archiver:
    """Takes ended attempts' outputs to the archive. What is to be taken is in the ledger, from the
    end on and until the store has it, so that no death of this process loses any."""

    def __init__(self, runtime: Runtime, ledger: Ledger, objects: Objects) -> None:
        self._runtime = runtime
        self._ledger = ledger
        self._objects = objects
        self._wake = asyncio.Event()
        self._places = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self.idle = asyncio.Event()
        """Set while nothing waits for the archive."""

    def wake(self) -> None:
        """An attempt has ended."""
        self.idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Archive, until cancelled. A store that cannot be reached is waited for."""
        pause_s = PAUSE_S_MIN
        while True:
            self._wake.clear()
            uploads = await self._ledger.oldest_uploads(UPLOADS_MAX)
            if not uploads:
                if not self._wake.is_set():
                    self.idle.set()
                await self._wake.wait()
                continue
            done, trouble = await self._archive(uploads)
            if done:
                await self._ledger.uploaded(done)
                pause_s = PAUSE_S_MIN
            if trouble:
                log.warning("outputs cannot be archived yet", error=trouble, again_in_s=pause_s)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(PAUSE_S_MAX, pause_s * 2)

    async def _archive(self, uploads: list[Upload]) -> tuple[list[str], str]:
        """Which are archived (or never can be), and what was wrong with another; "" if nothing."""
        outcomes = await asyncio.gather(
            *(self._upload(each) for each in uploads), return_exceptions=True
        )
        done, trouble = [], ""
        for upload, outcome in zip(uploads, outcomes, strict=True):
            if isinstance(outcome, ObjectsUnavailable):
                trouble = str(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                done.append(upload.attempt_id)
        return done, trouble

    async def _upload(self, upload: Upload) -> None:
        """Raises ObjectsUnavailable."""
        directory = self._runtime.output_directory(upload.attempt_id)
        async with self._places:
            try:
                data = await asyncio.to_thread(_packed, directory, upload.key)
            except Exception as error:  # whatever is wrong with one must not keep the others
                log.error(
                    "an output is lost: it cannot be read, nor archived",
                    attempt=upload.attempt_id,
                    exc_info=error,
                )
                return
            await self._objects.put(upload.key, data)


def _packed(directory: Path, key: str) -> bytes:
    """An ended attempt's output as it is archived."""
    if not (directory / logs.END).exists():  # its recorder was lost: what there is is all
        logs.close(directory)
    return output.pack(logs.archived(directory, key))


async def archived_soon(archiver: Archiver, seconds: float) -> None:
    """Wait until nothing waits for the archive, but not for longer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await archiver.idle.wait()
