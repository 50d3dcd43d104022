"""The machine's clocks."""

from __future__ import annotations

import subprocess
import sys

SUSPENDED_S = 1_000


def test_the_monotonic_clock_goes_on_while_the_machine_is_suspended() -> None:
    """In a time namespace whose machine was suspended for so long since it was started."""
    program = (
        "import time; from tickmesh.mesh.clock import SystemClock;"
        "print((SystemClock().monotonic_ns() - time.monotonic_ns()) / 1e9)"
    )
    own_s = float(subprocess.check_output([sys.executable, "-c", program]))
    unshare = ["unshare", "--time", "--boottime", str(SUSPENDED_S), "--fork"]
    there_s = float(subprocess.check_output([*unshare, sys.executable, "-c", program]))
    assert abs(there_s - own_s - SUSPENDED_S) < 1
