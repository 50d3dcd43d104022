"""Starting on time: one kernel timer for all that is due, and how far another clock is from ours.

The timer is a timerfd on the wall clock, not the event loop's own: the loop's wake up to a
millisecond early or three late, the kernel's never early and about 0.1 ms late; and when somebody
sets the clock, the kernel says so.
"""

import asyncio
import contextlib
import ctypes
import heapq
import itertools
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..mesh.clock import Clock

SAMPLES_MAX = 16
"""Heartbeats that an estimate is the best of: so many seconds, in which clocks drift apart by well
under a millisecond."""

DELAY_NS_MAX = 1_000_000_000
"""A round trip longer than this says nothing about clocks."""

_CLOCK_REALTIME = 0
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_NS = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class _Timer(ctypes.Structure):
    """struct itimerspec; the interval stays zero."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Clockwork:
    """Does what is due at an instant of the wall clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        """A heap: instant, number, what to do then. Those of one instant are done in one go."""
        self._numbers = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._timer = _libc.timerfd_create(_CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop.add_reader(self._timer, self._wake)

    def close(self) -> None:
        """End it; nothing is done any more."""
        self._loop.remove_reader(self._timer)
        os.close(self._timer)

    def at(self, instant_ns: int, act: Callable[[], None]) -> None:
        """Call `act` at an instant, nanoseconds since 1970: never before it by this host's clock.

        It must be quick, and not raise: all others that are due then wait for it. One that is not
        wanted any more should do nothing.
        """
        number = next(self._numbers)
        heapq.heappush(self._due, (instant_ns, number, act))
        if self._due[0][1] == number:
            self._arm()

    def _arm(self) -> None:
        """Set the timer to the earliest instant."""
        if self._due:
            seconds, nanoseconds = divmod(max(1, self._due[0][0]), _NS)
            timer = _Timer(0, 0, seconds, nanoseconds)
            flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
            if _libc.timerfd_settime(self._timer, flags, ctypes.byref(timer), None) < 0:
                raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _wake(self) -> None:
        # ECANCELED says that the clock was set: then look at it anew, as at any other wake.
        with contextlib.suppress(OSError):
            os.read(self._timer, 8)
        now_ns = self._clock.now_ns()
        while self._due and self._due[0][0] <= now_ns:
            _, _, act = heapq.heappop(self._due)
            act()
        self._arm()


@dataclass(frozen=True, slots=True)
class Reading:
    """How another's clock stands against ours."""

    offset_ns: int = 0
    """It minus ours, as far as that is certain."""
    uncertainty_ns: int = 0
    """The truth is within this of it. 0: nothing is known."""


class ClockOffset:
    """How far another process's wall clock is ahead of ours, from its answers to heartbeats.

    Pure. The true offset is within half a round trip of what one answer says; the quickest answer
    says it best. Only what is certain is corrected: two processes on one host, whose answers always
    allow an offset of zero, start at exactly the instant they were told.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque(maxlen=SAMPLES_MAX)

    def sample(self, sent_ns: int, replied_ns: int, received_ns: int) -> None:
        """An answer: sent and received by our clock, replied by the other's."""
        delay_ns = received_ns - sent_ns
        if 0 <= delay_ns <= DELAY_NS_MAX:
            self._samples.append((delay_ns, replied_ns - (sent_ns + received_ns) // 2))

    @property
    def reading(self) -> Reading:
        """The other clock minus ours, as far as is certain."""
        if not self._samples:
            return Reading()
        delay_ns, offset_ns = min(self._samples)
        half_ns = (delay_ns + 1) // 2
        certain_ns = max(0, abs(offset_ns) - half_ns)
        # The truth is at the far side of what one answer allows, at worst.
        worst_ns = abs(offset_ns) + half_ns - certain_ns
        return Reading(certain_ns if offset_ns > 0 else -certain_ns, max(1, worst_ns))

    @property
    def estimate_ns(self) -> tuple[int, int]:
        """The other clock minus ours, and how far from that the truth may be; 0, 0: not known."""
        if not self._samples:
            return 0, 0
        delay_ns, offset_ns = min(self._samples)
        return offset_ns, max(1, (delay_ns + 1) // 2)
