"""The first fire of a schedule is on time though no executor has its image."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tickmesh.executor import archive
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.sdk import AsyncClient, Execution, ExecutionState

from .executor.conftest import STAMP
from .executor.registries import Door, push, registry

pytestmark = pytest.mark.integration

WAIT_S = 60.0
LOOK_EVERY_S = 0.02
AHEAD_S = 12.0
ARMED_S = 2.0


async def first(client: AsyncClient) -> Execution | None:
    """The job's execution, once it has ended."""
    async for execution in client.executions.list("cold"):
        if execution.state in (ExecutionState.SUCCEEDED, ExecutionState.FAILED):
            return execution
    return None


async def test_a_cold_first_fire_is_on_time(tmp_path: Path) -> None:
    image = tmp_path / "image.tar"
    files = {"/stamp": archive.File(STAMP, archive.EXECUTABLE)}
    archive.files_image(image, files, archive.Process(entrypoint=("/stamp",)))
    async with registry(tmp_path / "registry") as host, Door(host) as door:
        await push(host, "team/cold", "1", image)
        options = LocalOptions(executor=(("insecure_registries", (door.host,)),))
        async with (
            LocalMesh(tmp_path / "mesh", options) as mesh,
            AsyncClient(mesh.address, "acme") as client,
        ):
            await client.jobs.create("cold", image=f"{door.host}/team/cold:1")
            due = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=AHEAD_S)
            await client.schedules.create("cold", "once", at=[due])
            async with asyncio.timeout(WAIT_S):
                while not any("/blobs/" in asked for asked in door.requests):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_EVERY_S)
            assert time.time() < due.timestamp() - ARMED_S, "it comes before the fire is armed"
            async with asyncio.timeout(WAIT_S):
                while (ended := await first(client)) is None:  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_EVERY_S)
            assert ended.state is ExecutionState.SUCCEEDED, ended.message
            started = ended.attempts[-1].start_time
            assert started is not None
            assert timedelta(0) <= started - due < timedelta(seconds=2)
