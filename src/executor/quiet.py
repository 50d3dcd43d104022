"""What can wait, waits: for gates that are being opened, and for newcomers' sandboxes. No I/O."""

from __future__ import annotations

import asyncio

QUIET_S = 0.25
"""So long at most: some newcomers' sandboxes, or a herd's gates."""


class Quiet:
    """Whether something is under way for which the rest should wait."""

    def __init__(self, wait_s: float = QUIET_S) -> None:
        self._wait_s = wait_s
        self._under_way = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._limit: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Something is under way, until as many `end`s."""
        self._under_way += 1

    def end(self) -> None:
        """See `begin`."""
        self._under_way -= 1
        if not self._under_way:
            self._release()

    async def wait(self) -> None:
        """Return when nothing is under way, or soon."""
        if not self._under_way:
            return
        loop = asyncio.get_running_loop()
        if self._limit is None:  # one for all: a herd has thousands
            self._limit = loop.call_later(self._wait_s, self._release)
        released: asyncio.Future[None] = loop.create_future()
        self._waiting.append(released)
        await released

    def _release(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        waiting, self._waiting = self._waiting, []
        for released in waiting:
            if not released.done():
                released.set_result(None)
