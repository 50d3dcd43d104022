"""The only reader of time outside of event loops' own timers."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall clock and monotonic clock of one process."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds that never run backwards, from an arbitrary start. Time for which the machine
        was suspended counts: others went on meanwhile, and a lease has ended."""
        ...


class SystemClock:
    """The operating system's clocks."""

    def now_ns(self) -> int:
        """See Clock."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """See Clock."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
