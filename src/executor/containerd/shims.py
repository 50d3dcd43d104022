"""containerd's shims, as the host's processes: to end one that will not let go of its sandbox.

A shim outlives containerd. When containerd is killed between two steps of it, the two may never
agree again: the shim repeats for ever that its runtime does not know the container, or containerd
does not know the shim. Killed, a shim is something that containerd knows how to clean up after.
"""

import contextlib
import hashlib
import itertools
import os
import select
import signal
from pathlib import Path

from .. import limits

_SOCKETS = Path("/run/containerd/s")  # where every containerd's shims have theirs
_PROGRAM = "containerd-shim-"
_HELPER = "delete"  # the last word of the process in which containerd cleans up after a shim


def end(socket: str, namespace: str = "", container_id: str = "") -> int:
    """Kills the shims that the containerd at `socket` started, those that it is just starting with
    them: of one container, or of all. Returns when they are gone; answers how many there were.

    Blocks: call it in a thread.
    """
    wanted = {"-address": socket, "-namespace": namespace, "-id": container_id}
    wanted = {option: value for option, value in wanted.items() if value}
    total = 0
    while count := sum(_kill(pid, wanted) for pid in _processes() if _is_wanted(pid, wanted)):
        total += count  # and again: one of them may just have started another
    return total


def socket_of(socket: str, namespace: str, container_id: str) -> Path:
    """Where a container's shim is spoken to; one that was killed leaves it behind."""
    name = hashlib.sha256(f"{socket}/{namespace}/{container_id}".encode()).hexdigest()
    return _SOCKETS / name


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _is_wanted(pid: int, wanted: dict[str, str]) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        # In a sandbox anybody may call himself a shim.
        ours = Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
    except OSError:
        return False  # it has ended
    program, *arguments = line.rstrip(b"\0").decode(errors="replace").split("\0")
    if not ours or not Path(program).name.startswith(_PROGRAM):
        return False
    if arguments[-1:] == [_HELPER]:
        return False
    said = dict(itertools.pairwise(arguments))
    return wanted.items() <= said.items()


def _kill(pid: int, wanted: dict[str, str]) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not _is_wanted(pid, wanted):
            return False  # another process has the number by now
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        waited = select.poll()
        waited.register(descriptor, select.POLLIN)
        return bool(waited.poll(limits.CALL_DEADLINE_S * 1000))
    finally:
        os.close(descriptor)
