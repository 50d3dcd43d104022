"""An executor that is killed with SIGKILL, and the one that comes after it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tickmesh.executor import gate
from tickmesh.executor.containerd.runtime import ContainerdRuntime

from .conftest import PYTHON_IMAGE, nothing_left, read_output

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60.0
OWNER = "killed-executor"

# What it runs: says that it has begun, and ends when it is told to.
PROGRAM = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("begun", flush=True)
signal.sigwait([signal.SIGUSR1])
print("done")
exit(7)
"""

EXECUTOR = """
import asyncio, sys
from pathlib import Path
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.sandbox import Work, mould

async def main(owner, directory, archive, image, program):
    runtime = ContainerdRuntime(owner, Path(directory))
    await runtime.start()
    await runtime.import_image(image, Path(archive))
    command = ("python3", "-c", program)
    work = Work("running", "tests", image, command=command)
    await runtime.prepare_spare(mould(work))
    spare = await runtime.prepare_spare(mould(work))
    running = await spare.assign(work)
    await runtime.prepare(Work("waiting", "tests", image, command=command))
    started_ns = await running.start()
    directory = runtime.output_directory("running")
    written = directory / "stdout"
    with runtime._watcher.changes(directory) as changed:
        while not (written.exists() and written.stat().st_size):
            await changed.wait()
            changed.clear()
    print(started_ns, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_the_next_one_finds_status_and_output_and_no_gate_opens_by_itself(
    tmp_path: Path, python_archive: Path
) -> None:
    directory = tmp_path / "executor"
    arguments = (OWNER, str(directory), str(python_archive), PYTHON_IMAGE, PROGRAM)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", EXECUTOR, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    started_ns = int(await asyncio.wait_for(process.stdout.readline(), DEADLINE_S))
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()

    runtime = ContainerdRuntime(OWNER, directory)
    await runtime.start()
    try:
        # A gate whose executor is dead exits, and its command never runs.
        answer = await asyncio.wait_for(runtime._client.wait_task("waiting"), DEADLINE_S)
        assert answer.exit_status == gate.EXIT_CLOSED
        assert await runtime.adopt("waiting") is None
        assert await runtime.list_images() == [PYTHON_IMAGE]

        found = await runtime.adopt("running")
        assert found is not None
        assert found.started_ns == started_ns
        # What runs was a spare once; one that still waits is nobody's.
        assert await runtime.sweep(frozenset(["running"])) == 2
        await found.kill(signal.SIGUSR1)
        assert (await asyncio.wait_for(found.wait(), DEADLINE_S)).exit_code == 7
        assert await read_output(runtime, "running") == (b"begun\ndone\n", b"")
        assert await read_output(runtime, "waiting") == (b"", b"")
        await found.delete()
        outputs = await asyncio.to_thread(list, (directory / "output").iterdir())
        assert sorted(path.name for path in outputs) == ["running", "waiting"]
    finally:
        await runtime.close()
    await asyncio.to_thread(nothing_left, tmp_path, OWNER)
