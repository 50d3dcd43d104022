"""What a sandbox used, and whether the kernel killed in it for want of memory: from its cgroup."""

import contextlib
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

from . import limits

ROOT = Path("/sys/fs/cgroup")

CPU_SHARES_OF_ONE, CPU_SHARES_MAX = 1024, 262_144
"""A group's weight in the first version of cgroups: by default that of one process."""
CPU_WEIGHT_OF_ONE, CPU_WEIGHT_MAX = 100, 10_000
"""And in the second."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters at the end of a sandbox; zeros when the cgroup is gone."""

    oom_kills: int = 0
    peak_memory_bytes: int = 0
    cpu_ns: int = 0


def unified() -> bool:
    """Whether this host has only cgroup version 2."""
    return (ROOT / "cgroup.controllers").exists()


def swap_accounting() -> bool:
    """Whether the kernel can limit swap."""
    return unified() or (ROOT / "memory/memory.memsw.limit_in_bytes").exists()


def read(cgroup_path: str) -> Usage:
    """Reads a sandbox's counters; they vanish when its task is deleted."""
    relative = cgroup_path.lstrip("/")
    if unified():
        group = ROOT / relative
        return Usage(
            oom_kills=_named(group / "memory.events", "oom_kill"),
            peak_memory_bytes=_number(group / "memory.peak"),  # Linux 5.19 and later
            cpu_ns=_named(group / "cpu.stat", "usage_usec") * 1000,
        )
    memory = ROOT / "memory" / relative
    return Usage(
        oom_kills=_named(memory / "memory.oom_control", "oom_kill"),
        peak_memory_bytes=_number(memory / "memory.max_usage_in_bytes"),
        cpu_ns=_number(ROOT / "cpuacct" / relative / "cpuacct.usage"),
    )


def weigh(cgroup_path: str, weight: int) -> None:
    """Makes a cgroup that weighs as much as so many processes, on every processor. Raises OSError.

    A group's weight is shared out over the processors that it has work on.
    """
    total = weight * (os.cpu_count() or 1)
    relative = cgroup_path.lstrip("/")
    if unified():
        (ROOT / "cgroup.subtree_control").write_text("+cpu")
        (ROOT / relative).mkdir(exist_ok=True)
        value = min(CPU_WEIGHT_MAX, total * CPU_WEIGHT_OF_ONE)
        (ROOT / relative / "cpu.weight").write_text(str(value))
    else:
        (ROOT / "cpu" / relative).mkdir(exist_ok=True)
        value = min(CPU_SHARES_MAX, total * CPU_SHARES_OF_ONE)
        (ROOT / "cpu" / relative / "cpu.shares").write_text(str(value))


def processes(cgroup_path: str) -> int:
    """How many processes a sandbox has; 0 when its cgroup is gone."""
    relative = cgroup_path.lstrip("/")
    group = ROOT / relative if unified() else ROOT / "pids" / relative
    try:
        return len((group / "cgroup.procs").read_text().split())
    except OSError:
        return 0


def children(cgroup_path: str) -> set[str]:
    """The names of the cgroups below one, in any hierarchy."""
    found: set[str] = set()
    for parent in _groups(cgroup_path):
        with contextlib.suppress(OSError):  # it is being removed
            found.update(child.name for child in parent.iterdir() if child.is_dir())
    return found


def end(cgroup_path: str) -> None:
    """Ends what runs in a cgroup. Blocks: call it in a thread."""
    for group in _groups(cgroup_path):
        pids: list[str] = []
        with contextlib.suppress(OSError):
            pids = (group / "cgroup.procs").read_text().split()
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                _kill(int(pid))


def remove(cgroup_path: str) -> None:
    """Ends what still runs in a cgroup and removes it; one that holds others stays.

    A runtime does so itself, unless it was killed half-way. Blocks: call it in a thread.
    """
    end(cgroup_path)
    for group in _groups(cgroup_path):
        with contextlib.suppress(OSError):
            group.rmdir()


def _groups(cgroup_path: str) -> list[Path]:
    """A cgroup's directories, one for each hierarchy that has it."""
    relative = cgroup_path.lstrip("/")
    return [ROOT / relative] if unified() else list(ROOT.glob(f"*/{relative}"))


def _kill(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        waited = select.poll()
        waited.register(descriptor, select.POLLIN)
        waited.poll(limits.CALL_DEADLINE_S * 1000)
    finally:
        os.close(descriptor)


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _named(path: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
