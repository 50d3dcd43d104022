"""A sandbox's counters, out of either version's files."""

import signal
import subprocess
from pathlib import Path

import pytest

from tickmesh.executor import accounting

GROUP = "/tickmesh-x/a-1"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(accounting, "ROOT", tmp_path)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_version_2(root: Path) -> None:
    write(root / "cgroup.controllers", "cpu memory pids\n")
    group = root / GROUP[1:]
    write(group / "memory.events", "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n")
    write(group / "memory.peak", "1048576\n")
    write(group / "cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n")
    write(group / "cgroup.procs", "1\n2\n")
    assert accounting.unified() and accounting.swap_accounting()
    assert accounting.read(GROUP) == accounting.Usage(1, 1_048_576, 1_500_000)
    assert accounting.processes(GROUP) == 2
    assert accounting.children("/tickmesh-x") == {"a-1"}


def test_version_1(root: Path) -> None:
    memory = root / "memory" / GROUP[1:]
    write(memory / "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    write(memory / "memory.max_usage_in_bytes", "2097152\n")
    write(root / "cpuacct" / GROUP[1:] / "cpuacct.usage", "42\n")
    write(root / "pids" / GROUP[1:] / "cgroup.procs", "7\n")
    assert not accounting.unified() and not accounting.swap_accounting()
    write(root / "memory/memory.memsw.limit_in_bytes", "1\n")
    assert accounting.swap_accounting()
    assert accounting.read(GROUP) == accounting.Usage(3, 2_097_152, 42)
    assert accounting.processes(GROUP) == 1
    assert accounting.children("/tickmesh-x") == {"a-1"}


def test_what_is_gone_has_used_nothing(root: Path) -> None:
    assert accounting.read(GROUP) == accounting.Usage()
    assert accounting.processes(GROUP) == 0
    assert accounting.children("/tickmesh-x") == set()


def test_who_ended_meanwhile_does_not_save_the_others(root: Path) -> None:
    write(root / "cgroup.controllers", "cpu memory pids\n")
    with subprocess.Popen(["sleep", "600"]) as over, subprocess.Popen(["sleep", "600"]) as runs:
        over.kill()
        over.wait()
        try:
            write(root / GROUP[1:] / "cgroup.procs", f"{over.pid}\n{runs.pid}\n")
            accounting.end(GROUP)
            assert runs.poll() == -signal.SIGKILL
        finally:
            runs.kill()
