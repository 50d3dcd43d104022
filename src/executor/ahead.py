"""Images that shards say will be needed soon: pulled beside what is needed now, some at a time."""

import asyncio
from typing import Protocol

from ..mesh import telemetry
from .errors import ExecutorError
from .sandbox import ImageInfo

WAITING_MAX = 256
"""Images that wait to be pulled; what comes on top is pulled when it is needed."""

AT_ONCE = 2
"""Of the pulls that an executor makes at one time: the others are for what is needed now."""

log = telemetry.logger(__name__)


class Images(Protocol):
    """What pulls: a Runtime."""

    async def ensure_image(self, reference: str, customer: str = "") -> ImageInfo:
        """See Runtime."""
        ...


class PullAhead:
    """See the module."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._waiting: dict[tuple[str, str], None] = {}
        self._wake = asyncio.Event()

    def want(self, customer: str, image: str) -> None:
        """An image that will be needed soon. Nobody is told when it cannot be had."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting[customer, image] = None
            self._wake.set()

    async def run(self) -> None:
        """Pull, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._pull())

    async def _pull(self) -> None:
        while True:
            await self._wake.wait()
            if not self._waiting:
                self._wake.clear()
                continue
            customer, image = next(iter(self._waiting))
            del self._waiting[customer, image]
            try:
                await self._images.ensure_image(image, customer)
            except Exception as error:  # whatever is wrong with one must not end the executor
                # What needs it says why: this was only ahead of it.
                if isinstance(error, ExecutorError):
                    log.info("an image cannot be pulled ahead", image=image, why=str(error))
                else:
                    log.error("pulling an image ahead failed", image=image, exc_info=error)
