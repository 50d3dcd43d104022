"""Run as a program: becomes a service that ends when the process that started it is gone.

    python -I -S launch.py PARENT_PID SIGNAL PROGRAM ARGUMENT...

The kernel sends SIGNAL to the service at its parent's death, whatever that died of. It is a program
of its own because code between fork and exec is not safe in a parent with threads.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """See the module."""
    parent, number = int(sys.argv[1]), int(sys.argv[2])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, number) != 0:
        sys.exit(f"cannot follow the parent's death: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before we asked to be told
        sys.exit("the parent is gone")
    os.execv(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
