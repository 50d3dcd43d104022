"""A sandbox from the import of its image to the last trace of it."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tickmesh.executor import accounting, archive
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.errors import SandboxError
from tickmesh.executor.sandbox import Work

from .conftest import PYTHON_IMAGE, STAMP_IMAGE, nothing_left

pytestmark = pytest.mark.integration

Output = Callable[[str], Awaitable[tuple[bytes, bytes]]]
Run = Callable[..., Awaitable[tuple[object, str, str]]]


@pytest.mark.parametrize("binary", ["crun", "runc"])
async def test_a_program_runs_when_its_gate_opens_and_not_before(
    tmp_path: Path, stamp_archive: Path, binary: str
) -> None:
    runtime = ContainerdRuntime(f"life-{binary}", tmp_path, runtime_binary=binary)
    await runtime.start()
    try:
        image = await runtime.import_image(STAMP_IMAGE, stamp_archive)
        assert await runtime.list_images() == [STAMP_IMAGE]
        sandbox = await runtime.prepare(Work("one", "tests", STAMP_IMAGE))
        assert sandbox.started_ns == 0
        opened_ns = time.time_ns()
        executed_ns = await sandbox.start()
        ended = await sandbox.wait()
        assert (ended.exit_code, ended.signal, ended.oom) == (0, 0, False)
        assert ended.cpu_ns > 0 and ended.peak_memory_bytes > 0
        printed_ns = int((runtime.output_directory("one") / "stdout").read_text())
        assert opened_ns < printed_ns < ended.finished_ns
        assert opened_ns < executed_ns == sandbox.started_ns
        assert sorted(path.name for path in runtime.output_directory("one").iterdir()) == [
            "end",
            "stdout",
            "stdout.times",
        ]
        await sandbox.delete()
        await sandbox.delete()
        assert await sandbox.wait() == ended
        await runtime.discard_output("one")
        assert not runtime.output_directory("one").exists()
        await runtime.delete_image(STAMP_IMAGE)
        assert image.reference == STAMP_IMAGE
        assert await runtime.list_images() == []
    finally:
        await runtime.close()


def _niceness(pid: int) -> tuple[int, int | None]:
    """Of a process, and of its session where the kernel schedules sessions as groups."""
    group = Path(f"/proc/{pid}/autogroup")
    session = int(group.read_text().split()[-1]) if group.exists() else None
    return os.getpriority(os.PRIO_PROCESS, pid), session


def _haste(runtime: ContainerdRuntime) -> dict[str, tuple[int, int | None]]:
    """Of what stands around the sandbox `one`."""
    assert runtime.daemon is not None
    found = {"containerd": _niceness(runtime.daemon.pid)}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().decode().split("\0")
            if str(runtime.paths("one").directory) in words:
                found["recorder"] = _niceness(int(path.name))
            elif "shim" in words[0] and runtime.daemon.socket in words and "one" in words:
                found["shim"] = _niceness(int(path.name))
    return found


async def test_what_is_due_goes_before_what_only_follows_from_it(stamp: ContainerdRuntime) -> None:
    await stamp.prepare(Work("one", "tests", STAMP_IMAGE))
    found = await asyncio.to_thread(_haste, stamp)
    sessions = found["containerd"][1] is not None
    assert found == {
        "containerd": (0, -5 if sessions else None),
        "shim": (0, -5 if sessions else None),
        "recorder": (10, 10 if sessions else None),
    }
    group = accounting.ROOT / "cpu" / stamp._cgroup_parent.lstrip("/") / "cpu.shares"
    weight, one = group, 1024
    if accounting.unified():
        weight, one = accounting.ROOT / stamp._cgroup_parent.lstrip("/") / "cpu.weight", 100
    assert int(weight.read_text()) == 4 * one * (os.cpu_count() or 1)


async def test_a_sandbox_deleted_at_its_gate_runs_nothing(
    stamp: ContainerdRuntime, output: Output
) -> None:
    sandbox = await stamp.prepare(Work("unused", "tests", STAMP_IMAGE))
    await sandbox.delete()
    assert await output("unused") == (b"", b"")


async def test_many_at_once(stamp: ContainerdRuntime, output: Output) -> None:
    async def one(number: int) -> None:
        name = f"many-{number}"
        sandbox = await stamp.prepare(Work(name, "tests", STAMP_IMAGE))
        await sandbox.start()
        assert (await sandbox.wait()).exit_code == 0
        assert (await output(name))[0].strip().isdigit()
        await sandbox.delete()

    async with asyncio.TaskGroup() as group:
        for number in range(16):
            group.create_task(one(number))


async def test_output_is_read_while_the_program_runs(
    python: ContainerdRuntime, output: Output
) -> None:
    program = "print('begun'); input(); print('never')"
    work = Work("live", "tests", PYTHON_IMAGE, command=("python3", "-c", program + " or 1/0"))
    sandbox = await python.prepare(work)
    await sandbox.start()
    ended = await sandbox.wait()  # its standard input is the empty payload
    assert ended.exit_code == 1
    out, err = await output("live")
    assert out == b"begun\n"
    assert b"EOFError" in err
    await sandbox.delete()


async def test_kill_ends_everything_in_the_sandbox(
    python: ContainerdRuntime, output: Output
) -> None:
    program = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0: os.setsid()\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    sandbox = await python.prepare(
        Work("killed", "tests", PYTHON_IMAGE, command=("python3", "-c", program))
    )
    await sandbox.start()
    await sandbox.kill(signal.SIGKILL)
    ended = await sandbox.wait()
    assert (ended.exit_code, ended.signal) == (137, signal.SIGKILL)
    await sandbox.kill(signal.SIGTERM)  # too late, and no error
    await sandbox.delete()


async def test_sweep_spares_what_is_claimed(stamp: ContainerdRuntime) -> None:
    kept = await stamp.prepare(Work("kept", "tests", STAMP_IMAGE))
    await stamp.prepare(Work("left", "tests", STAMP_IMAGE))
    assert await stamp.sweep(frozenset(["kept"])) == 1
    await kept.start()
    assert (await kept.wait()).exit_code == 0
    await kept.delete()


async def test_what_is_detached_from_goes_on(tmp_path: Path, stamp_archive: Path) -> None:
    first = ContainerdRuntime("detached", tmp_path / "executor")
    await first.start()
    assert first.daemon is not None
    daemon = first.daemon.pid
    await first.import_image(STAMP_IMAGE, stamp_archive)
    sandbox = await first.prepare(Work("ended", "tests", STAMP_IMAGE))
    started_ns = await sandbox.start()
    await first.detach()
    second = ContainerdRuntime("detached", tmp_path / "executor")
    await second.start()
    try:
        assert second.daemon is not None and second.daemon.pid == daemon
        found = await second.adopt("ended")
        assert found is not None and found.started_ns == started_ns
        assert (await found.wait()).exit_code == 0
        assert await second.adopt("never") is None
        await found.delete()
    finally:
        await second.close()
    await asyncio.to_thread(nothing_left, tmp_path, "detached")


async def test_one_image_in_many_names_is_stored_once_and_goes_with_the_last(
    runtime: ContainerdRuntime, stamp_archive: Path
) -> None:
    await runtime.import_image("tests/a:1", stamp_archive)
    await runtime.import_image("tests/b:1", stamp_archive)
    await runtime.delete_image("tests/a:1")
    sandbox = await runtime.prepare(Work("b", "tests", "tests/b:1"))
    await runtime.delete_image("tests/b:1")  # what runs from it goes on
    await sandbox.start()
    assert (await sandbox.wait()).exit_code == 0
    await sandbox.delete()


async def test_importing_a_name_again_moves_it(
    runtime: ContainerdRuntime, tmp_path: Path, stamp_archive: Path, output: Output
) -> None:
    await runtime.import_image("tests/x:1", stamp_archive)
    second = tmp_path / "second.tar"
    process = archive.Process(entrypoint=("/nothing",))
    digest = archive.files_image(second, {"/other": archive.File(b"other")}, process)
    image = await runtime.import_image("tests/x:1", second)
    assert image.digest == digest
    assert (await runtime.ensure_image("tests/x:1")).digest == digest


async def test_an_attempt_id_is_taken_once_and_its_sandbox_is_not_touched(
    stamp: ContainerdRuntime, output: Output
) -> None:
    first = await stamp.prepare(Work("twice", "tests", STAMP_IMAGE))
    with pytest.raises(SandboxError, match="sandbox twice exists already"):
        await stamp.prepare(Work("twice", "tests", STAMP_IMAGE))
    await first.start()
    assert (await first.wait()).exit_code == 0
    await first.delete()
    assert (await output("twice"))[0].strip().isdigit()


async def test_nobody_in_the_sandbox_reaches_the_gates_fifos(
    python: ContainerdRuntime, output: Output
) -> None:
    program = "import os; print(os.listdir('/.tickmesh/io'))"
    sandbox = await python.prepare(
        Work("names", "tests", PYTHON_IMAGE, command=("python3", "-c", program))
    )
    await sandbox.start()
    await sandbox.wait()
    assert (await output("names"))[0] == b"['payload']\n"
    await sandbox.delete()
