"""Run as a program: becomes containerd in a mount namespace of its own.

Mounts made there (root file systems of containers) never reach the host, and vanish with the last
process that sees them. Mounts that the host makes still arrive. On a host with both cgroup versions
mounted the second, which has no controllers then, is hidden: crun refuses such a mixture. The file
of crun is mounted read-only: else it makes sure at each start, by starting itself once more, that
no container can write to it through /proc. And so is /dev/null: crun gives the sandbox's user
whatever its standard streams are, and who owns a device may close it to the whole host (chmod).

    python -I -S launch.py PROGRAM ARGUMENT...
"""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_RDONLY = 1
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 0x4000
MS_SLAVE = 1 << 19
MNT_DETACH = 2
OOM_SCORE = "-500"
SESSION_NICENESS = "-5"
"""Of its session, where the kernel schedules sessions as groups (sched(7), autogroup); its shims do
the same (shim/main.c). What runs in sandboxes has cgroups of its own."""
HYBRID = "/sys/fs/cgroup/unified"


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def must(what: str, result: int) -> None:
        if result != 0:
            sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")

    must("cannot make a mount namespace", libc.unshare(CLONE_NEWNS))
    must("cannot detach from mounts", libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None))
    if Path(HYBRID, "cgroup.procs").exists():
        must(f"cannot hide {HYBRID}", libc.umount2(HYBRID.encode(), MNT_DETACH))
    null = os.devnull.encode()  # written to all the same: it is its inode that stays as it is
    must("cannot mount /dev/null", libc.mount(null, null, None, MS_BIND, None))
    flags = MS_BIND | MS_REMOUNT | MS_RDONLY
    must("cannot make /dev/null read-only", libc.mount(None, null, None, flags, None))
    for directory in os.environ.get("PATH", "").split(":"):
        crun = os.fsencode(Path(directory, "crun"))
        if os.access(crun, os.X_OK):  # a wish: without it crun takes longer
            if libc.mount(crun, crun, None, MS_BIND, None) == 0:
                libc.mount(None, crun, None, flags, None)
            break
    with contextlib.suppress(OSError):  # a wish: a host short of memory takes sandboxes first
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    with contextlib.suppress(OSError):  # the executor's own haste is not for what it runs
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with contextlib.suppress(OSError):  # a wish: it makes what is due though all else wants to run
        Path("/proc/self/autogroup").write_text(SESSION_NICENESS)
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
