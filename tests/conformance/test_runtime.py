"""Every runtime keeps the promises of sandbox.Runtime: the same suite for each.

A sandbox's command is a script in the words of tickmesh/executor/inprocess.py; in containerd a
program in a real image (words.py) follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path
from typing import Any

import pytest

from tickmesh.executor import archive, limits, logs
from tickmesh.executor.containerd.client import RUNC_RUNTIME
from tickmesh.executor.containerd.daemon import Daemon
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.errors import (
    ImageError,
    ImageReason,
    SandboxError,
    SpareUnfit,
    StartError,
    StartReason,
)
from tickmesh.executor.gate import EXIT_NOT_STARTED
from tickmesh.executor.inprocess import InProcessRuntime
from tickmesh.executor.sandbox import Exit, Runtime, Sandbox, Work, mould
from tickmesh.executor.watch import Watcher
from tickmesh.mesh.clock import SystemClock

IMAGE = "tests/words:1"
WORDS = Path(__file__).with_name("words.py")
LONG = ("sleep", "60")
RUNSC = "io.containerd.runsc.v1"


@dataclass
class Bed:
    """A runtime with IMAGE, and how to make sandboxes on it."""

    runtime: Runtime
    prefix: tuple[str, ...]
    archive: Path
    watcher: Watcher
    asks_for: str = ""
    """The runtime that work names."""

    def work(self, *words: str, attempt_id: str = "", **more: Any) -> Work:
        command = words if words[:1] == ("nothing-here",) else (*self.prefix, *words)
        more.setdefault("runtime", self.asks_for)
        return Work(attempt_id or f"a-{uuid.uuid4().hex[:8]}", "tests", IMAGE, command, **more)

    async def prepare(self, *words: str, **more: Any) -> Sandbox:
        return await self.runtime.prepare(self.work(*words, **more))

    async def run(self, *words: str, **more: Any) -> tuple[Exit, str, str]:
        """Run to the end: exit, stdout, stderr."""
        sandbox = await self.prepare(*words, **more)
        await sandbox.start()
        exit = await sandbox.wait()
        out, err = await self.output(sandbox.attempt_id)
        await sandbox.delete()
        return exit, out, err

    async def output(self, attempt_id: str) -> tuple[str, str]:
        """All that was written, once it is whole."""
        texts = {logs.STDOUT: b"", logs.STDERR: b""}
        directory = self.runtime.output_directory(attempt_id)
        async for chunk in logs.read(directory, "", True, self.watcher):
            texts[chunk.stream] += chunk.data
        return texts[logs.STDOUT].decode(), texts[logs.STDERR].decode()


@pytest.fixture(scope="module")
def words_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "words.tar"
    archive.python_image(path, {"/words.py": archive.File(WORDS)})
    return path


@pytest.fixture(scope="module")
def containerd() -> Iterator[tuple[str, Path]]:
    """A private containerd for all of these tests: its socket, and a runtime's data directory."""
    with open_directory() as directory, asyncio.Runner() as runner:
        daemon = Daemon(directory / "containerd")
        runner.run(daemon.start())
        try:
            yield daemon.socket, directory
        finally:
            runner.run(daemon.close())


@pytest.fixture(
    params=[
        "inprocess",
        pytest.param("containerd", marks=pytest.mark.integration),
        pytest.param("containerd, its own shim", marks=pytest.mark.integration),
        pytest.param("containerd, started when due", marks=pytest.mark.integration),
        pytest.param("gvisor beside it, started when due", marks=pytest.mark.integration),
    ]
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest) -> tuple[str, Path] | None:
    """Where the containerd is, for the runtime that needs one."""
    return None if kind == "inprocess" else request.getfixturevalue("containerd")


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """One that others may go through, as an executor's: gVisor opens files as a sandbox's root.
    Those of pytest are closed, and so is what is above them."""
    with tempfile.TemporaryDirectory(prefix="tickmesh-tests-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def runsc(directory: Path) -> Path:
    """gVisor, as Debian has it: that one cannot tell a sandbox's network from the host's on a newer
    kernel, and needs to be told that there is none."""
    path = directory / "runsc"
    path.write_text('#!/bin/sh\nexec runsc --network=none "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
async def bed(
    kind: str, place: tuple[str, Path] | None, tmp_path: Path, words_archive: Path
) -> AsyncIterator[Bed]:
    runtime: Runtime
    prefix: tuple[str, ...] = ()
    asks_for = ""
    if place is None:
        runtime = InProcessRuntime(tmp_path / "runtime", SystemClock(), any_image=False)
    else:
        more: dict[str, Any] = {"gate": "off"} if kind == "containerd, started when due" else {}
        # A directory of each kind's own: it remembers there which mode the host can.
        directory = place[1] / kind.replace(", ", "-").replace(" ", "-")
        directory.mkdir(exist_ok=True)
        if "its own shim" in kind:
            more["containerd_runtime"] = RUNC_RUNTIME
        if "gvisor" in kind:
            asks_for = RUNSC
            more |= {"runtimes": {RUNSC: str(runsc(directory))}}
        runtime = ContainerdRuntime(f"conformance-{os.getpid()}", directory, place[0], **more)
        prefix = ("python3", "/words.py")
    await runtime.start()
    watcher = Watcher()
    try:
        if IMAGE not in await runtime.list_images():
            await runtime.import_image(IMAGE, words_archive)
        yield Bed(runtime, prefix, words_archive, watcher, asks_for)
    finally:
        watcher.close()
        for output in await asyncio.to_thread(list, runtime.output_directory("x").parent.glob("*")):
            await runtime.discard_output(output.name)
        await runtime.close()


async def test_nothing_runs_before_its_start_and_the_start_says_when(bed: Bed) -> None:
    sandbox = await bed.prepare("print", "hello")
    assert sandbox.started_ns == 0
    assert await bed.runtime.adopt(sandbox.attempt_id) is None
    before_ns = time.time_ns()
    started_ns = await sandbox.start()
    exit = await sandbox.wait()
    assert before_ns <= started_ns == sandbox.started_ns <= exit.finished_ns <= time.time_ns()
    assert (exit.exit_code, exit.signal, exit.oom) == (0, 0, False)
    assert await bed.output(sandbox.attempt_id) == ("hello\n", "")
    assert await sandbox.wait() == exit


async def test_exits_signals_and_want_of_memory_are_told_apart(bed: Bed, kind: str) -> None:
    exit, _, _ = await bed.run("print", "x", ";", "exit", "3")
    assert (exit.exit_code, exit.signal, exit.oom) == (3, 0, False)
    exit, _, _ = await bed.run("print", "x", ";", "signal", "11")
    assert (exit.exit_code, exit.signal, exit.oom) == (139, 11, False)
    exit, _, _ = await bed.run("print", "x", ";", "exit", "139")
    taken_for = 11 if "started when due" in kind else 0  # there, nobody tells one from the other
    assert (exit.exit_code, exit.signal, exit.oom) == (139, taken_for, False)
    exit, _, _ = await bed.run("print", "x", ";", "oom", memory_bytes=32 * limits.MIB)
    assert (exit.exit_code, exit.signal, exit.oom) == (137, 9, True)


async def test_environment_payload_and_both_streams_arrive(bed: Bed) -> None:
    exit, out, err = await bed.run(
        *("env", "MINE", ";", "payload", ";", "error", "two words"),
        env={"MINE": "x=y"},
        payload=b"data\n",
    )
    assert (exit.exit_code, out, err) == (0, "x=y\ndata\n", "two words\n")


async def test_output_over_the_limit_is_cut_and_counted(bed: Bed) -> None:
    sandbox = await bed.prepare(*("print", "0123456789", ";", "error", "kept"), output_bytes_max=5)
    began_ns = time.time_ns()
    await sandbox.start()
    exit = await sandbox.wait()
    assert (exit.output_bytes, exit.dropped_bytes) == (16, 6)
    directory = bed.runtime.output_directory(sandbox.attempt_id)
    assert (directory / "end").read_bytes().split()[:2] == [b"11", b"5"]
    kept, dropped = b"", 0
    async for chunk in logs.read(directory, "", True, bed.watcher):
        if chunk.stream == logs.STDOUT:
            kept += chunk.data
            dropped += chunk.dropped_bytes
        assert not chunk.data or chunk.times[0][0] == 0
        assert all(began_ns <= instant <= time.time_ns() for _, instant in chunk.times)
    assert kept in (b"01234", b"0129\n")  # one keeps the end too
    assert dropped == 6


async def test_a_command_that_is_not_there_cannot_be_started(bed: Bed, kind: str) -> None:
    sandbox = await bed.prepare("nothing-here")
    if "started when due" in kind:  # nobody waits for its exec: it ends at once, and says why
        await sandbox.start()
        assert (await sandbox.wait()).exit_code == EXIT_NOT_STARTED
        assert await bed.output(sandbox.attempt_id) == ("", f"tickmesh gate: x {ENOENT:03}\n")
        return
    with pytest.raises(StartError) as caught:
        await sandbox.start()
    assert caught.value.reason is StartReason.COMMAND_NOT_FOUND
    await sandbox.delete()


async def test_sigterm_can_be_ignored_sigkill_cannot(bed: Bed) -> None:
    sandbox = await bed.prepare("ignore", "15", ";", "print", "ready", ";", *LONG)
    await sandbox.start()
    directory = bed.runtime.output_directory(sandbox.attempt_id)
    async for _ in logs.read(directory, "", True, bed.watcher):
        break  # it ignores from here on
    waiting = asyncio.create_task(sandbox.wait())
    await sandbox.kill(signal.SIGTERM)
    await sandbox.kill(signal.SIGKILL)
    exit = await waiting
    assert (exit.exit_code, exit.signal, exit.oom) == (137, 9, False)
    await sandbox.kill(signal.SIGTERM)  # one that has ended takes no notice


async def test_sigterm_ends_what_does_not_ignore_it(bed: Bed) -> None:
    sandbox = await bed.prepare("print", "ready", ";", *LONG)
    await sandbox.start()
    directory = bed.runtime.output_directory(sandbox.attempt_id)
    async for _ in logs.read(directory, "", True, bed.watcher):
        break
    await sandbox.kill(signal.SIGTERM)
    assert (await sandbox.wait()).signal == signal.SIGTERM


async def test_a_sandbox_deleted_at_its_gate_never_runs(bed: Bed) -> None:
    sandbox = await bed.prepare("print", "never")
    await sandbox.delete()
    await sandbox.delete()
    with pytest.raises(StartError) as caught:
        await sandbox.start()
    assert caught.value.reason is StartReason.GATE_LOST
    assert await bed.output(sandbox.attempt_id) == ("", "")


async def test_output_outlives_its_sandbox_until_it_is_discarded(bed: Bed) -> None:
    sandbox = await bed.prepare("print", "kept", ";", *LONG)
    await sandbox.start()
    directory = bed.runtime.output_directory(sandbox.attempt_id)
    async for _ in logs.read(directory, "", True, bed.watcher):
        break
    await sandbox.delete()
    assert await bed.output(sandbox.attempt_id) == ("kept\n", "")
    await bed.runtime.discard_output(sandbox.attempt_id)
    assert not directory.exists()
    await bed.runtime.discard_output(sandbox.attempt_id)


async def test_what_runs_is_adopted_and_what_nobody_claims_is_swept(bed: Bed) -> None:
    mine = await bed.prepare(*LONG)
    other = await bed.prepare(*LONG)
    started_ns = await mine.start()
    await other.start()
    assert await bed.runtime.sweep(frozenset([mine.attempt_id])) == 1
    adopted = await bed.runtime.adopt(mine.attempt_id)
    assert adopted is not None
    assert (adopted.attempt_id, adopted.started_ns) == (mine.attempt_id, started_ns)
    await adopted.kill(signal.SIGKILL)
    assert (await adopted.wait()).signal == signal.SIGKILL
    await adopted.delete()
    assert await bed.runtime.adopt(other.attempt_id) is None
    assert await bed.runtime.adopt("never-was") is None


async def test_a_spare_becomes_the_sandbox_of_the_attempt_that_it_is_given_to(bed: Bed) -> None:
    work = bed.work(
        *("env", "MINE", ";", "payload", ";", "error", "two words", ";", *LONG),
        env={"MINE": "x=y"},
        payload=b"data\n",
    )
    spare = await bed.runtime.prepare_spare(mould(work))
    sandbox = await spare.assign(work)
    assert (sandbox.attempt_id, sandbox.started_ns) == (work.attempt_id, 0)
    before_ns = time.time_ns()
    assert before_ns <= await sandbox.start() == sandbox.started_ns <= time.time_ns()
    directory = bed.runtime.output_directory(work.attempt_id)
    async for chunk in logs.read(directory, "", True, bed.watcher):
        if chunk.stream == logs.STDERR:
            break  # it has said all that it has to say
    assert await bed.runtime.sweep(frozenset([work.attempt_id])) == 0
    adopted = await bed.runtime.adopt(work.attempt_id)
    assert adopted is not None
    assert (adopted.attempt_id, adopted.started_ns) == (work.attempt_id, sandbox.started_ns)
    await adopted.kill(signal.SIGKILL)
    assert (await adopted.wait()).signal == signal.SIGKILL
    await adopted.delete()
    assert await bed.output(work.attempt_id) == ("x=y\ndata\n", "two words\n")
    assert [path.name for path in directory.parent.iterdir()] == [work.attempt_id]


async def test_a_spare_whose_image_is_another_by_now_is_not_used(bed: Bed, tmp_path: Path) -> None:
    work = bed.work("print", "never")
    spare = await bed.runtime.prepare_spare(mould(work))
    other = tmp_path / "other.tar"
    archive.files_image(other, {"/empty": archive.File(b"")}, archive.Process(command=("/x",)))
    await bed.runtime.import_image(IMAGE, other)
    try:
        with pytest.raises(SpareUnfit):
            await spare.assign(work)
        await spare.close()
    finally:
        await bed.runtime.delete_image(IMAGE)
    assert not bed.runtime.output_directory(work.attempt_id).exists()


async def test_a_closed_spare_is_gone_and_of_no_use(bed: Bed) -> None:
    work = bed.work("print", "never")
    spare = await bed.runtime.prepare_spare(mould(work))
    await spare.close()
    await spare.close()
    with pytest.raises(SpareUnfit):
        await spare.assign(work)
    assert await bed.runtime.sweep(frozenset()) == 0
    assert not list(bed.runtime.output_directory("x").parent.glob("*"))


async def test_a_spare_that_nobody_was_given_is_swept(bed: Bed) -> None:
    await bed.runtime.prepare_spare(mould(bed.work("print", "never")))
    await bed.runtime.sweep(frozenset())
    assert not list(bed.runtime.output_directory("x").parent.glob("*"))


def test_whatever_fixes_a_sandbox_is_in_its_mould() -> None:
    one = Work("a", "tests", IMAGE, ("x",), ("y",), {"A": "b"}, "/", payload=b"p", timeout_s=1.0)
    assert mould(one) == mould(Work("b", "tests", IMAGE))
    for other in (
        Work("a", "others", IMAGE),
        Work("a", "tests", "tests/other:1"),
        Work("a", "tests", IMAGE, user="0"),
        Work("a", "tests", IMAGE, memory_bytes=1),
        Work("a", "tests", IMAGE, cpu_millis=1),
        Work("a", "tests", IMAGE, pids=1),
        Work("a", "tests", IMAGE, scratch_bytes=1),
        Work("a", "tests", IMAGE, output_bytes_max=1),
        Work("a", "tests", IMAGE, job="customers/tests/jobs/other"),
        Work("a", "tests", IMAGE, revision=1),
        Work("a", "tests", IMAGE, runtime=RUNSC),
        Work("a", "tests", IMAGE, capabilities=("CAP_CHOWN",)),
    ):
        assert mould(one) != mould(other)


async def test_a_bad_attempt_id_or_a_second_use_is_refused(bed: Bed) -> None:
    with pytest.raises(SandboxError):
        await bed.prepare(attempt_id="../escape")
    first = await bed.prepare("print", "mine", attempt_id="a-1")
    with pytest.raises(SandboxError):
        await bed.prepare(attempt_id="a-1")
    await first.start()
    await first.wait()
    assert await bed.output("a-1") == ("mine\n", "")


async def test_images_come_and_go_by_their_names(bed: Bed, tmp_path: Path) -> None:
    assert await bed.runtime.list_images() == [IMAGE]
    image = await bed.runtime.ensure_image(IMAGE)
    assert (image.reference, image.digest[:7]) == (IMAGE, "sha256:")
    assert image.size_bytes > 0
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"no archive")
    with pytest.raises(ImageError) as caught:
        await bed.runtime.import_image("tests/broken:1", broken)
    assert caught.value.reason is ImageReason.CORRUPT
    await bed.runtime.delete_image(IMAGE)
    assert await bed.runtime.list_images() == []
    for use in (bed.runtime.delete_image(IMAGE), bed.prepare("true")):
        with pytest.raises(ImageError) as caught:
            await use
        assert caught.value.reason is ImageReason.NOT_FOUND
