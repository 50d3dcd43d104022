"""Starting on time: one kernel timer for all that is due, and how far another clock is from ours.

The timer is a timerfd on the wall clock, not the event loop's own: the loop's wake up to a
millisecond early or three late, the kernel's never early and about 0.1 ms late; and when somebody
sets the clock, the kernel says so.
"""

import asyncio
import ctypes
import errno
import heapq
import itertools
import math
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..mesh.clock import Clock

SAMPLES_MAX = 16
"""Heartbeats that an estimate is the best of: so many seconds, in which clocks drift apart by well
under a millisecond."""

DELAY_NS_MAX = 1_000_000_000
"""A round trip longer than this says nothing about clocks."""

STEP_NS_MIN = 10_000_000
"""Wall and monotonic clock may part by so much between two looks: far more than any slewing does in
a heartbeat, and than it takes to read both."""

READ_NS_MAX = 1_000_000
READ_TRIES = 5
"""Of reading both: it usually takes less than a microsecond."""

_CLOCK_REALTIME = 0
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_NS = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class _TimerSpec(ctypes.Structure):
    """struct itimerspec; the interval stays zero."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Timer(Protocol):
    """Wakes somebody once, at an instant of the wall clock, or when that is set before."""

    def arm(self, instant_ns: int) -> None:
        """Wake at this instant, and not at the one before: never early, at once if it is past."""
        ...

    def close(self) -> None:
        """Wake nobody any more."""
        ...


Wake = Callable[[bool], None]
"""Told whether the clock was set."""


class KernelTimer:
    """Implements Timer."""

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._timer = _libc.timerfd_create(_CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop.add_reader(self._timer, self._expired)

    def close(self) -> None:
        """See Timer."""
        self._loop.remove_reader(self._timer)
        os.close(self._timer)

    def arm(self, instant_ns: int) -> None:
        """See Timer."""
        timer = _TimerSpec(0, 0, *divmod(max(1, instant_ns), _NS))
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        if _libc.timerfd_settime(self._timer, flags, ctypes.byref(timer), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _expired(self) -> None:
        was_set = False
        try:
            os.read(self._timer, 8)
        except OSError as error:
            was_set = error.errno == errno.ECANCELED
        self._wake(was_set)


class Clockwork:
    """Does what is due at an instant of the wall clock."""

    def __init__(self, clock: Clock, timer: Callable[[Wake], Timer] = KernelTimer) -> None:
        self.clock = clock
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        """A heap: instant, number, what to do then. Those of one instant are done in one go."""
        self._numbers = itertools.count()
        self._timer = timer(self._wake)

    def close(self) -> None:
        """End it; nothing is done any more."""
        self._timer.close()

    def at(self, instant_ns: int, act: Callable[[], None]) -> None:
        """Call `act` at an instant, nanoseconds since 1970: never before it by this host's clock,
        unless that is set meanwhile. Then it is called at once, to see when its time is now.

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
            self._timer.arm(self._due[0][0])

    def _wake(self, was_set: bool) -> None:
        now_ns = math.inf if was_set else self.clock.now_ns()
        due: list[Callable[[], None]] = []
        while self._due and self._due[0][0] <= now_ns:
            due.append(heapq.heappop(self._due)[2])
        for act in due:
            act()
        self._arm()


class Steps:
    """By how much the wall clock was set, as the monotonic clock shows, which nobody sets."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._total_ns = 0
        self._difference_ns = self._read()

    def look(self) -> int:
        """All steps until now together."""
        difference_ns = self._read()
        stepped_ns = difference_ns - self._difference_ns
        self._difference_ns = difference_ns
        if abs(stepped_ns) >= STEP_NS_MIN:
            self._total_ns += stepped_ns
        return self._total_ns

    def _read(self) -> int:
        """Wall minus monotonic clock. Who is interrupted between the two reads them again."""
        clock = self._clock
        found = []
        for _ in range(READ_TRIES):
            before_ns = clock.monotonic_ns()
            now_ns = clock.now_ns()
            took_ns = clock.monotonic_ns() - before_ns
            found.append((took_ns, now_ns - before_ns))
            if took_ns <= READ_NS_MAX:
                break
        return min(found)[1]


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

    def __init__(self, steps: Steps) -> None:
        """steps: of our clock. What was measured before one tells as much after it."""
        self._steps = steps
        self._samples: deque[tuple[int, int]] = deque(maxlen=SAMPLES_MAX)
        """Round trips, and the other clock minus ours as if that was never set."""

    def sample(self, delay_ns: int, replied_ns: int, received_ns: int) -> None:
        """An answer, so long after its question: received by our clock, replied by the other's."""
        if 0 <= delay_ns <= DELAY_NS_MAX:
            offset_ns = replied_ns - received_ns + delay_ns // 2
            self._samples.append((delay_ns, offset_ns + self._steps.look()))

    def _quickest(self) -> tuple[int, int]:
        """Round trip and offset of the answer that tells most."""
        delay_ns, offset_ns = min(self._samples)
        return delay_ns, offset_ns - self._steps.look()

    @property
    def reading(self) -> Reading:
        """The other clock minus ours, as far as is certain."""
        if not self._samples:
            return Reading()
        delay_ns, offset_ns = self._quickest()
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
        delay_ns, offset_ns = self._quickest()
        return offset_ns, max(1, (delay_ns + 1) // 2)
