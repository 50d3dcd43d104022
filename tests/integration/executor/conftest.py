"""A real runtime on a private containerd, and a check that nothing of it is left behind."""

import asyncio
import functools
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tickmesh.executor import archive, logs, volatile
from tickmesh.executor.containerd import shims
from tickmesh.executor.containerd.daemon import Daemon
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.watch import Watcher

STAMP = Path(__file__).parents[3] / "scripts" / "benchmarks" / f"stamp-{os.uname().machine}"
STAMP_IMAGE = "tests/stamp:1"
PYTHON_IMAGE = "tests/python:3"
GONE_DEADLINE_S = 10.0


@pytest.fixture(scope="session")
def python_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with this Python; built once, it takes a second."""
    path = tmp_path_factory.mktemp("images") / "python.tar"
    archive.python_image(path)
    return path


@pytest.fixture(scope="session")
def stamp_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with one static program that prints the time."""
    path = tmp_path_factory.mktemp("images") / "stamp.tar"
    process = archive.Process(entrypoint=("/stamp",))
    archive.files_image(path, {"/stamp": archive.File(STAMP, archive.EXECUTABLE)}, process)
    return path


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[ContainerdRuntime]:
    """A started runtime; when the test is over nothing of it may be left on the host."""
    owner = f"test-{uuid.uuid4().hex[:8]}"
    made = ContainerdRuntime(owner, tmp_path / "executor")
    await made.start()
    try:
        yield made
    finally:
        await made.close()
    await asyncio.to_thread(nothing_left, tmp_path, owner)


def nothing_left(directory: Path, owner: str) -> None:
    """Fails when a process, mount, cgroup or sandbox directory is still there."""
    deadline = time.monotonic() + GONE_DEADLINE_S
    daemon_directory = directory / "executor" / "containerd"
    daemon = Daemon(daemon_directory)
    assert shims.end(daemon.socket) == 0
    sandboxes = volatile.directory_of(directory / "executor" / "sandboxes")
    ours = (str(directory), str(sandboxes), str(volatile.directory_of(daemon_directory)))
    while left := [*_processes(ours), *_cgroups(owner), *_mounts(ours)]:
        # A shim answers before its process has quite ended: that is no event one could wait for.
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    assert not (directory / "executor" / "sandboxes").is_symlink()
    assert not any(path.exists() for path in map(Path, ours[1:]))


def _processes(directories: tuple[str, ...]) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (path / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        words_of_it = words + environment
        if int(path.name) != os.getpid() and any(each in words_of_it for each in directories):
            found.append(f"process {path.name}: {words}")
    return found


def _cgroups(owner: str) -> list[str]:
    root = Path("/sys/fs/cgroup")
    return [f"cgroup {path}" for path in (*root.glob(f"*{owner}*"), *root.glob(f"*/*{owner}*"))]


def _mounts(directories: tuple[str, ...]) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {line}" for line in lines if any(each in line for each in directories)]


@pytest.fixture
async def stamp(runtime: ContainerdRuntime, stamp_archive: Path) -> ContainerdRuntime:
    """The runtime, with STAMP_IMAGE."""
    await runtime.import_image(STAMP_IMAGE, stamp_archive)
    return runtime


@pytest.fixture
async def python(runtime: ContainerdRuntime, python_archive: Path) -> ContainerdRuntime:
    """The runtime, with PYTHON_IMAGE."""
    await runtime.import_image(PYTHON_IMAGE, python_archive)
    return runtime


async def read_output(runtime: ContainerdRuntime, attempt_id: str) -> tuple[bytes, bytes]:
    """All that an attempt wrote, to its very end: stdout and stderr."""
    watcher = Watcher()
    try:
        streams = {logs.STDOUT: b"", logs.STDERR: b""}
        async for chunk in logs.read(runtime.output_directory(attempt_id), "", True, watcher):
            streams[chunk.stream] += chunk.data
        return streams[logs.STDOUT], streams[logs.STDERR]
    finally:
        watcher.close()


@pytest.fixture
async def output(runtime: ContainerdRuntime) -> Callable[[str], Awaitable[tuple[bytes, bytes]]]:
    """Reads all that an attempt wrote."""
    return functools.partial(read_output, runtime)
