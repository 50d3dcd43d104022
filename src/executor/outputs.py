"""Drops what attempts wrote: the oldest first, when it is too old or all of it is too much."""

import asyncio

from ..mesh import telemetry
from ..mesh.clock import Clock
from .ledger import Ledger, Output
from .sandbox import Runtime

LOOK_S = 10.0
"""Between looks: how far the budget may be passed is what is written meanwhile."""

DROP_MAX = 200
"""Outputs removed in one go."""

log = telemetry.logger(__name__)


class OutputKeeper:
    """Holds the outputs of ended attempts to an age and to a budget of bytes on disk."""

    def __init__(
        self, runtime: Runtime, ledger: Ledger, clock: Clock, retention_s: int, bytes_max: int
    ) -> None:
        self._runtime = runtime
        self._ledger = ledger
        self._clock = clock
        self._retention_ns = retention_s * 1_000_000_000
        self._bytes_max = bytes_max

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await self.drop()
            await asyncio.sleep(LOOK_S)

    async def drop(self) -> int:
        """Drop what need not be kept. Answers how many."""
        dropped = 0
        while True:
            oldest = await self._ledger.oldest_outputs(DROP_MAX)
            over = self._over(oldest)
            for output in over:
                await self._runtime.discard_output(output.attempt_id)
            if over:
                await self._ledger.forget_outputs(over)
            dropped += len(over)
            if len(over) < DROP_MAX:
                return dropped

    def _over(self, oldest: list[Output]) -> list[Output]:
        horizon_ns = self._clock.now_ns() - self._retention_ns
        excess = self._ledger.output_bytes - self._bytes_max
        over = []
        for output in oldest:
            if output.ended_ns >= horizon_ns and excess <= 0:
                break
            over.append(output)
            excess -= output.bytes
        return over
