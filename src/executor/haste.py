"""The executor's place before what it runs, for the host's processors.

Taken before anything else, and this module imports next to nothing: most of what a start takes is
imports, and what ran on without an executor, and may want every processor, is found again after.
"""

import contextlib
import os
from pathlib import Path

PRIORITY = -10
"""The executor's own niceness: it opens gates on time though what it runs wants every processor.
(Four such on two processors: lateness p50 0.1 ms instead of 80.) Its session has it too: where the
kernel schedules sessions as groups (sched(7), autogroup), niceness counts within one alone."""


def hurry() -> None:
    """A wish; containerd gives it up again, see launch.py."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        if os.getsid(0) == os.getpid():  # else it is not ours alone
            Path("/proc/self/autogroup").write_text(str(PRIORITY))
