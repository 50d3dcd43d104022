"""An agent with real containers keeps spares for a job that is executed often."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest

from tickmesh.executor import archive
from tickmesh.executor.containerd.runtime import ContainerdRuntime

from ..executor.conftest import nothing_left
from .leader import World, work, world

pytestmark = pytest.mark.integration

IMAGE = "acme/host:1"
PROGRAM = "import os,sys; print(os.uname().nodename, os.environ['MINE'], sys.stdin.read())"
MADE_DEADLINE_S = 30.0


async def execute(mesh: World, attempt_id: str, **more: object) -> list[str]:
    """Execute the job once more: the words of its output, its host's name first."""
    command = ("python3", "-c", PROGRAM)
    mesh.leader.work(
        work(attempt_id, *command, image=IMAGE, env={"MINE": attempt_id}, payload=b"P", **more)
    )
    end = await mesh.leader.end(attempt_id)
    assert (end.has_exit_code, end.exit_code, end.message) == (True, 0, "")
    mesh.leader.acknowledge(attempt_id)
    return (mesh.runtime.output_directory(attempt_id) / "stdout").read_text().split()


async def test_an_execute_finds_a_spare_and_the_next_process_none_of_them(tmp_path: Path) -> None:
    owner = f"spares-{uuid.uuid4().hex[:8]}"
    runtime = ContainerdRuntime(owner, tmp_path / "executor")
    await runtime.start()
    try:
        image = tmp_path / "python.tar"
        await asyncio.to_thread(archive.python_image, image)
        await runtime.import_image(IMAGE, image)
        async with world(tmp_path) as mesh:
            await mesh.start(runtime)
            await mesh.leader.lead(5)
            assert await execute(mesh, "a-1") == ["a-1", "a-1", "P"]
            await execute(mesh, "a-2")
            await spare_made(runtime)
            host, mine, payload = await execute(mesh, "a-3")
            assert host.startswith("spare-")
            assert (mine, payload) == ("a-3", "P")
            # Not for another revision, though nothing that it fixes is different.
            await spare_made(runtime)
            assert (await execute(mesh, "a-4", job_revision=2))[0] == "a-4"
            assert (await execute(mesh, "a-5", job_revision=2))[0] == "a-5"
            await spare_made(runtime)
            # What a killed process leaves at its gates is nobody's.
            await mesh.kill()
            await mesh.start(runtime)
            assert not spares(runtime)
            await mesh.end()
    finally:
        await runtime.close()
    await asyncio.to_thread(nothing_left, tmp_path, owner)
    assert not [path.name for path in (tmp_path / "executor" / "output").glob("spare-*")]


def spares(runtime: ContainerdRuntime) -> list[str]:
    directory = runtime.paths("x").directory.parent
    return [path.name for path in directory.glob("spare-*") if (path / "opened").exists()]


async def spare_made(runtime: ContainerdRuntime) -> None:
    """Wait until a spare waits at its gate: its FIFOs have lost their names by then."""
    async with asyncio.timeout(MADE_DEADLINE_S):
        while True:
            for name in spares(runtime):
                paths = runtime.paths(name)
                if not (paths.exchange / "go").exists() and paths.opened.exists():
                    return
            await asyncio.sleep(0.01)
