"""The archive of what executions wrote: read from any gateway, swept by every one.

Executors put the objects; what is older than its retention is deleted here, by the day. Gateways do
that side by side and need not agree: what one has deleted, another does not find.
"""

from __future__ import annotations

import asyncio
import datetime
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ..mesh import output, telemetry
from ..mesh.clock import Clock
from ..mesh.config import Archive as Settings
from ..mesh.errors import OutputCorrupt, Overloaded, TickmeshError, Unavailable
from ..mesh.objects import Objects, ObjectsUnavailable

READS_MAX = 100
"""Archived outputs that are being streamed: each is in memory whole, 2 MiB as a rule."""

READS_OF_CUSTOMER_MAX = 25
"""Of these as many are one customer's, who may read them as slowly as it likes."""

RETRY_AFTER_MS = 1_000

SWEEP_S = 3600.0
"""Between sweeps: retention is to the day."""

RUN_DAYS_MAX = 1
"""From an attempt's assignment, whose day is in the key, to its end."""

_DAY = datetime.timedelta(days=1)

log = telemetry.logger(__name__)


class Archive:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        max_age: Callable[[str], Awaitable[datetime.timedelta | None]],
    ) -> None:
        """max_age: how long a customer wants its history to be kept; None: as long as all. Raises
        ConfigError."""
        self._max_age = max_age
        self._objects = Objects(settings, "gateway.archive")
        self._retention = datetime.timedelta(seconds=settings.retention_s)
        self._clock = clock
        self._reads: Counter[str] = Counter()
        """By their customers."""

    @asynccontextmanager
    async def opened(self, key: str) -> AsyncIterator[output.Archived | None]:
        """An archived output, for as long as it is read; None if there is none. Raises Unavailable,
        Overloaded, OutputCorrupt."""
        customer = output.customer_of_key(key)
        if self._reads[customer] >= READS_OF_CUSTOMER_MAX:
            raise Overloaded(
                f"{READS_OF_CUSTOMER_MAX} archived outputs of customer {customer} are being read "
                "here: try again when one has been",
                retry_after_ms=RETRY_AFTER_MS,
            )
        if self._reads.total() >= READS_MAX:
            raise Overloaded(
                f"{READS_MAX} archived outputs are being read here: try again",
                retry_after_ms=RETRY_AFTER_MS,
            )
        self._reads[customer] += 1
        try:
            yield await self._read(key)
        finally:
            self._reads[customer] -= 1
            if not self._reads[customer]:
                del self._reads[customer]

    async def _read(self, key: str) -> output.Archived | None:
        try:
            data = await self._objects.get(key, output.PACKED_BYTES_MAX)
            return None if data is None else await asyncio.to_thread(output.unpack, data, key)
        except ObjectsUnavailable as error:
            log.warning("the archive cannot be read", error=str(error))
            raise Unavailable("the archive of outputs cannot be reached: try again later") from None
        except ValueError as error:
            log.error("an archived output is damaged", key=key, error=str(error))
            raise OutputCorrupt(
                "the archived output is damaged, and there is no other copy of it"
            ) from error

    def expired(self, assign_ms: int) -> bool:
        """Whether an output of an attempt that was assigned then has been deleted, or is about to
        be."""
        assigned = datetime.datetime.fromtimestamp(assign_ms / 1e3, datetime.UTC)
        day = assigned.replace(hour=0, minute=0, second=0, microsecond=0)
        return self._is_over(day, self._retention)

    def _is_over(self, day: datetime.datetime, retention: datetime.timedelta) -> bool:
        now = datetime.datetime.fromtimestamp(self._clock.now_ns() / 1e9, datetime.UTC)
        return day + (1 + RUN_DAYS_MAX) * _DAY + retention <= now

    async def run(self) -> None:
        """Sweep, until cancelled."""
        while True:
            try:
                deleted = await self.sweep()
                if deleted:
                    log.info("archived outputs deleted: their retention is over", count=deleted)
            except (ObjectsUnavailable, TickmeshError) as error:
                log.warning("the archive cannot be swept", error=str(error))
            # Not all gateways at one time.
            await asyncio.sleep(SWEEP_S * random.uniform(0.5, 1.5))

    async def sweep(self) -> int:
        """Delete every day whose retention is over, and of younger ones what customers want to be
        kept for less; how many objects. Raises ObjectsUnavailable, and what `max_age` does."""
        deleted = 0
        max_ages: dict[str, datetime.timedelta | None] = {}
        for name in await self._objects.children(""):
            try:
                day = datetime.datetime.strptime(name, output.DAY).replace(tzinfo=datetime.UTC)
            except ValueError:
                continue  # somebody else's, in the same bucket
            if self._is_over(day, self._retention):
                deleted += await self._delete(name)
            elif self._is_over(day, datetime.timedelta()):
                for customer in await self._objects.children(name):
                    if customer not in max_ages:
                        max_ages[customer] = await self._max_age(customer)
                    wanted = max_ages[customer]
                    if wanted is not None and self._is_over(day, wanted):
                        deleted += await self._delete(f"{name}/{customer}")
        return deleted

    async def _delete(self, prefix: str) -> int:
        """Everything below a prefix; how many objects that was."""
        deleted = 0
        async for keys in self._objects.keys(prefix):
            await self._objects.delete(keys)
            deleted += len(keys)
        return deleted
