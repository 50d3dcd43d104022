"""The timer of a replica's rounds: one, that is set anew as seldom as possible."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

# A timer may fire this early, and the library compares strictly.
_TIMER_SLACK_S = 0.0005


class Alarm:
    """Rings when a deadline has come. Most rounds put it off: a timer that is earlier stays as it
    is, and looks again."""

    def __init__(
        self,
        clock: Callable[[], float],
        deadline: Callable[[], float],
        ring: Callable[[], None],
    ) -> None:
        """deadline: by the clock; infinite for none."""
        self._clock = clock
        self._deadline = deadline
        self._ring = ring
        self._timer: asyncio.Handle | None = None
        self._when_s = 0.0
        """When it looks, by the loop's clock. Not the handle's to say: uvloop's has no `when` where
        that is within half a millisecond."""

    def set(self) -> None:
        """The deadline may have changed."""
        delay_s = self._deadline() - self._clock()
        if delay_s == math.inf:
            return
        loop = asyncio.get_running_loop()
        when_s = loop.time() + max(delay_s, 0.0) + _TIMER_SLACK_S
        if self._timer is not None:
            if self._when_s <= when_s + _TIMER_SLACK_S:
                return
            self._timer.cancel()
        self._timer, self._when_s = loop.call_at(when_s, self._look), when_s

    def cancel(self) -> None:
        """It rings no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._clock() > self._deadline():
            self._ring()
        else:
            self.set()
