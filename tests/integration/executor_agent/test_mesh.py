"""The executor's own process in a whole mesh of real processes: killed, restarted, ended."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from tests.conformance.test_runtime import WORDS
from tickmesh.executor import archive
from tickmesh.executor.containerd import launch
from tickmesh.executor.haste import PRIORITY
from tickmesh.mesh.config import Peer, ShardMembers
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.mesh.tls import DevelopmentAuthority
from tickmesh.proto.tickmesh.v1 import (
    execution_pb2,
    execution_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
)

pytestmark = pytest.mark.integration

CUSTOMER = "customers/acme"
TIMEOUT_S = 30.0
RUNNING = execution_pb2.EXECUTION_STATE_RUNNING
SUCCEEDED = execution_pb2.EXECUTION_STATE_SUCCEEDED
FAILED = execution_pb2.EXECUTION_STATE_FAILED


class User:
    """Somebody who runs jobs on a mesh."""

    def __init__(self, channel: grpc.aio.Channel, *prefix: str) -> None:
        self.jobs = job_pb2_grpc.JobServiceStub(channel)
        self.executions = execution_pb2_grpc.ExecutionServiceStub(channel)
        self.images = image_pb2_grpc.ImageServiceStub(channel)
        self._prefix = prefix
        self._count = 0

    async def execute(self, *words: str) -> str:
        """Run a job of these words; the execution's name."""
        self._count += 1
        job = job_pb2.Job(
            container=job_pb2.Container(image="words:1", command=[*self._prefix, *words])
        )
        request = job_pb2.CreateJobRequest(parent=CUSTOMER, job_id=f"j{self._count}", job=job)
        made = await self.jobs.CreateJob(request, timeout=TIMEOUT_S)
        execute = execution_pb2.ExecuteJobRequest(name=made.name)
        return (await self.executions.ExecuteJob(execute, timeout=TIMEOUT_S)).name

    async def until(
        self, name: str, true: Callable[[execution_pb2.Execution], bool]
    ) -> execution_pb2.Execution:
        """Watch an execution until something is true of it."""
        request = execution_pb2.WatchExecutionsRequest(parent=name)
        async for batch in self.executions.WatchExecutions(request, timeout=TIMEOUT_S):
            for execution in batch.executions:
                if true(execution):
                    return execution
        raise AssertionError("the stream ended")

    async def in_state(self, name: str, state: int) -> execution_pb2.Execution:
        return await self.until(name, lambda execution: execution.state == state)

    async def output(self, name: str) -> str:
        request = execution_pb2.StreamLogsRequest(name=name, follow=True)
        parts = [part async for part in self.executions.StreamLogs(request, timeout=TIMEOUT_S)]
        return b"".join(part.data for part in parts).decode()


@pytest.fixture
async def mesh(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[LocalMesh]:
    options = LocalOptions(runtime=getattr(request, "param", "inprocess"))
    async with LocalMesh(tmp_path / "mesh", options) as made:
        yield made
    left = [child.name for child in made.children if child.process.returncode]  # type: ignore[union-attr]
    assert left == [], made.executors[0].last_words()


@pytest.fixture
async def user(mesh: LocalMesh, request: pytest.FixtureRequest) -> AsyncIterator[User]:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        if mesh.options.runtime == "inprocess":
            yield User(channel)
            return
        made = User(channel, "python3", "/words.py")
        path = mesh.directory / "words.tar"
        await asyncio.to_thread(archive.python_image, path, {"/words.py": archive.File(WORDS)})

        def parts() -> Iterator[image_pb2.ImportImageRequest]:
            yield image_pb2.ImportImageRequest(name=f"{CUSTOMER}/images/words:1")
            with path.open("rb") as file:
                while data := file.read(1 << 20):
                    yield image_pb2.ImportImageRequest(data=data)

        await made.images.ImportImage(parts(), timeout=TIMEOUT_S)
        yield made


real = pytest.mark.parametrize("mesh", ["containerd"], indirect=True)
both = pytest.mark.parametrize("mesh", ["inprocess", "containerd"], indirect=True)


@both
async def test_a_job_runs_through_every_part(mesh: LocalMesh, user: User) -> None:
    name = await user.execute("print", "hello")
    execution = await user.in_state(name, SUCCEEDED)
    assert execution.exit_code == 0
    assert execution.attempts[0].executor == "executor-0"
    assert await user.output(name) == "hello\n"
    name = await user.execute("print", "bad", ";", "exit", "3")
    execution = await user.in_state(name, FAILED)
    assert (execution.exit_code, execution.reason) == (3, execution_pb2.EXECUTION_REASON_EXIT_CODE)
    name = await user.execute("sleep", "60")
    await user.in_state(name, RUNNING)
    cancel = execution_pb2.CancelExecutionRequest(name=name)
    await user.executions.CancelExecution(cancel, timeout=TIMEOUT_S)
    execution = await user.in_state(name, execution_pb2.EXECUTION_STATE_CANCELLED)
    assert execution.attempts[0].signal == 15


@real
async def test_a_killed_executor_finds_its_containers_again(mesh: LocalMesh, user: User) -> None:
    ends_meanwhile = await user.execute("print", "before", ";", "exit", "4")
    runs_on = await user.execute(
        *("print", "before", ";", "sleep", "4", ";", "print", "after", ";", "exit", "7")
    )
    await user.in_state(ends_meanwhile, FAILED)
    started = await user.in_state(runs_on, RUNNING)
    executor = mesh.executors[0]
    await executor.kill()
    await executor.spawn()
    await executor.serving()
    execution = await user.in_state(runs_on, FAILED)
    assert (execution.exit_code, len(execution.attempts)) == (7, 1)
    assert execution.start_time == started.start_time
    assert await user.output(runs_on) == "before\nafter\n"


@real
async def test_executor_containerd_and_a_shim_killed_at_once_under_load_invent_nothing(
    mesh: LocalMesh, user: User
) -> None:
    """What runs goes on or is told truthfully; what was being made ran once at most."""
    words = ("print", "before", ";", "sleep", "15", ";", "print", "after", ";", "exit", "7")
    names = [await user.execute(*words) for _ in range(4)]
    for name in names:
        await user.in_state(name, RUNNING)
    containerd, shim = _processes_of(mesh.directory, names[0].rpartition("/")[2])
    loaded = [await user.execute("print", "once") for _ in range(4)]
    executor = mesh.executors[0]
    for pid in (executor.pid, containerd, shim):
        os.kill(pid, signal.SIGKILL)
    assert executor.process is not None
    await executor.process.wait()
    await executor.spawn()
    await executor.serving()
    lost, *others = [await user.until(name, _has_ended) for name in names]
    # Nobody knows how it went on without its shim: it is not said to have ended by itself.
    assert lost.reason in (
        execution_pb2.EXECUTION_REASON_EXECUTOR_LOST,
        execution_pb2.EXECUTION_REASON_INFRASTRUCTURE,
        execution_pb2.EXECUTION_REASON_SIGNAL,
    )
    for execution in others:
        assert (execution.exit_code, len(execution.attempts)) == (7, 1)
        assert await user.output(execution.name) == "before\nafter\n"
    for name in loaded:
        execution = await user.until(name, _has_ended)
        told = [attempt.reason for attempt in execution.attempts]
        if execution.state == SUCCEEDED:
            assert (await user.output(name), len(told)) == ("once\n", 1)
        else:
            assert told == [execution_pb2.EXECUTION_REASON_EXECUTOR_LOST]


def _has_ended(execution: execution_pb2.Execution) -> bool:
    return execution.state in (SUCCEEDED, FAILED)


def _processes_of(directory: Path, execution: str) -> tuple[int, int]:
    """A mesh's containerd, and the shim of one execution's container."""
    containerd, shim = 0, 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        program = Path(words[0]).name
        if program == "containerd" and any(str(directory) in word for word in words):
            containerd = int(path.name)
        elif program.startswith("containerd-shim") and any(execution in word for word in words):
            shim = int(path.name)
    assert containerd and shim
    return containerd, shim


async def test_what_a_killed_executor_cannot_find_again_is_lost_not_invented(
    mesh: LocalMesh, user: User
) -> None:
    name = await user.execute("sleep", "60")
    await user.in_state(name, RUNNING)
    executor = mesh.executors[0]
    await executor.kill()
    await executor.spawn()
    await executor.serving()
    execution = await user.until(name, lambda execution: bool(execution.attempts[0].reason))
    assert execution.attempts[0].reason == execution_pb2.EXECUTION_REASON_EXECUTOR_LOST


@both
async def test_an_executor_that_is_ended_says_so_and_is_quick(mesh: LocalMesh, user: User) -> None:
    name = await user.execute("print", "ready", ";", "sleep", "60")
    await user.in_state(name, RUNNING)
    began = time.monotonic()
    await mesh.executors[0].end()
    assert time.monotonic() - began < 10
    assert mesh.executors[0].process is not None
    assert mesh.executors[0].process.returncode == 0
    execution = await user.until(name, lambda execution: bool(execution.attempts[0].reason))
    assert execution.attempts[0].reason == execution_pb2.EXECUTION_REASON_INFRASTRUCTURE
    assert "shut down" in execution.attempts[0].message
    if mesh.options.runtime == "containerd":
        assert _left(mesh.directory) == []


async def test_an_executor_goes_before_what_it_runs(mesh: LocalMesh) -> None:
    assert os.getpriority(os.PRIO_PROCESS, mesh.executors[0].pid) == PRIORITY


def test_containerd_does_not_inherit_the_executors_priority() -> None:
    command = [sys.executable, "-I", "-S", launch.__file__, shutil.which("nice") or "nice"]
    told = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
        preexec_fn=lambda: os.setpriority(os.PRIO_PROCESS, 0, PRIORITY),
    )
    assert told.stdout.strip() == "0"


def _left(directory: Path) -> list[str]:
    """Processes and mounts that have to do with a directory, the mesh's own processes apart."""
    found = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(directory) in line
    ]
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "containerd" in words and str(directory) in words:
            found.append(words)
    return found


def test_a_host_that_cannot_run_containers_is_told_so_with_exit_code_2(tmp_path: Path) -> None:
    tls = DevelopmentAuthority(tmp_path).issue("executor", "executor-0")
    path = tmp_path / "executor.toml"
    executor: dict[str, Any] = {
        "executor_id": "executor-0",
        "listen": "127.0.0.1:1",
        "shards": [ShardMembers("shard-0", (Peer("shard-0-0", "127.0.0.1:1"),))],
        "data_directory": str(tmp_path / "data"),
        "tls": tls,
        "runtime_binary": "no-such-runtime",
    }
    path.write_bytes(msgspec.toml.encode(msgspec.to_builtins({"executor": executor})))
    command = [sys.executable, "-m", "tickmesh.executor", "--config", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 2
    assert "no-such-runtime" in ended.stderr
