"""What gateways get of an executor: output, images; and what others get: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tickmesh.executor import archive, service
from tickmesh.executor.inprocess import InProcessRuntime
from tickmesh.executor.service import ExecutorService
from tickmesh.executor.watch import Watcher
from tickmesh.mesh.clock import SystemClock
from tickmesh.mesh.errors import TickmeshError, from_rpc_error
from tickmesh.mesh.tls import CHANNEL_OPTIONS, channel_credentials, server_credentials
from tickmesh.proto.tickmesh.internal.v1 import executor_pb2, executor_pb2_grpc, shard_pb2

from .leader import World, work, world

pytestmark = pytest.mark.integration

TIMEOUT_S = 10.0
REFERENCE = "acme/report:1"


@dataclass
class Door:
    """An executor's service, and its world."""

    mesh: World
    stub: Any
    runtime: InProcessRuntime
    address: str
    spool: Path

    async def output(self, attempt_id: str, **more: Any) -> list[executor_pb2.StreamOutputResponse]:
        request = executor_pb2.StreamOutputRequest(attempt_id=attempt_id, **more)
        return [part async for part in self.stub.StreamOutput(request, timeout=TIMEOUT_S)]

    async def send(self, data: bytes, reference: str = REFERENCE, parts: int = 3) -> Any:
        size = max(1, len(data) // parts)

        def messages() -> Iterator[executor_pb2.ImportArchiveRequest]:
            yield executor_pb2.ImportArchiveRequest(reference=reference)
            for start in range(0, len(data), size):
                yield executor_pb2.ImportArchiveRequest(data=data[start : start + size])

        return await self.stub.ImportImage(messages(), timeout=TIMEOUT_S)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with world(tmp_path) as mesh:
        runtime = InProcessRuntime(tmp_path / "runtime", SystemClock())
        await runtime.start()
        agent = await mesh.start(runtime)
        await mesh.leader.lead(1)
        spool = tmp_path / "spool"
        spool.mkdir()
        watcher = Watcher()
        server = grpc.aio.server()
        executor_pb2_grpc.add_ExecutorServiceServicer_to_server(
            ExecutorService(agent, runtime, spool, watcher), server
        )
        tls = mesh.authority.issue("executor", "executor-1")
        port = server.add_secure_port("127.0.0.1:0", server_credentials(tls))
        await server.start()
        address = f"127.0.0.1:{port}"
        credentials = channel_credentials(mesh.authority.issue("gateway", "gateway-0"))
        async with grpc.aio.secure_channel(address, credentials, CHANNEL_OPTIONS) as channel:
            stub = executor_pb2_grpc.ExecutorServiceStub(channel)
            yield Door(mesh, stub, runtime, address, spool)
        await server.stop(None)
        watcher.close()


async def refusal(call: Any) -> TickmeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def text(parts: list[executor_pb2.StreamOutputResponse], stream: int) -> bytes:
    return b"".join(part.data for part in parts if part.stream == stream)


async def test_output_is_there_after_the_end_and_goes_on_from_a_cursor(door: Door) -> None:
    door.mesh.leader.work(work("a-1", "print", "out", ";", "error", "err"))
    await door.mesh.leader.end("a-1")
    parts = await door.output("a-1")
    assert (text(parts, 1), text(parts, 2)) == (b"out\n", b"err\n")
    rest = await door.output("a-1", cursor=parts[0].cursor)
    assert rest == parts[1:]
    door.mesh.leader.acknowledge("a-1")
    await door.mesh.leader.answered()
    assert await door.output("a-1", follow=True) == parts


async def test_following_begins_before_the_start_and_ends_with_the_attempt(door: Door) -> None:
    door.mesh.leader.work(work("a-1", "print", "out", in_s=0.2))
    await door.mesh.leader.phase("a-1", shard_pb2.ATTEMPT_PHASE_PREPARED)
    assert await door.output("a-1") == []
    parts = await door.output("a-1", follow=True)
    assert text(parts, 1) == b"out\n"


async def test_following_ends_though_the_output_is_never_finished(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "END_GRACE_S", 0.05)
    door.mesh.leader.work(work("a-1", "print", "out", ";", "sleep", "0.2"))
    following = asyncio.create_task(door.output("a-1", follow=True))
    await door.mesh.leader.end("a-1")
    # As if the recorder had been killed: no word that this is all.
    (door.runtime.output_directory("a-1") / "end").unlink(missing_ok=True)
    assert text(await following, 1) == b"out\n"
    assert text(await door.output("a-1", follow=True), 1) == b"out\n"


async def test_an_attempt_that_came_to_nothing_has_no_output(door: Door) -> None:
    door.runtime._any_image = False
    door.mesh.leader.work(work("a-1"))
    await door.mesh.leader.end("a-1")
    assert await door.output("a-1", follow=True) == []


async def test_what_is_not_known_is_not_found_and_what_is_wrong_is_named(door: Door) -> None:
    error = await refusal(door.output("b-1"))
    assert error.reason == "NOT_FOUND"
    error = await refusal(door.output("../../etc"))
    assert error.fields[0][0] == "attempt_id"
    door.mesh.leader.work(work("a-1", "print", "out"))
    await door.mesh.leader.end("a-1")
    error = await refusal(door.output("a-1", cursor="nonsense"))
    assert error.fields[0][0] == "cursor"


async def test_an_archive_is_taken_in_listed_and_deleted(door: Door, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    digest = archive.files_image(path, {"/x": archive.File(b"x")}, archive.Process())
    imported = await door.send(path.read_bytes())
    assert (imported.digest, imported.size_bytes > 0) == (digest, True)
    await door.send(path.read_bytes(), "other/report:1")
    listing = await door.stub.ListArchives(
        executor_pb2.ListArchivesRequest(prefix="acme/"), timeout=TIMEOUT_S
    )
    assert [(a.reference, a.digest) for a in listing.archives] == [(REFERENCE, digest)]
    request = executor_pb2.DeleteArchiveRequest(reference=REFERENCE)
    await door.stub.DeleteArchive(request, timeout=TIMEOUT_S)
    error = await refusal(door.stub.DeleteArchive(request, timeout=TIMEOUT_S))
    assert error.reason == "NOT_FOUND"
    assert list(door.spool.iterdir()) == []


async def test_a_bad_archive_changes_nothing_and_leaves_nothing(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = await refusal(door.send(b"no archive at all"))
    assert error.reason == "IMAGE_CORRUPT"
    error = await refusal(door.send(b""))
    assert error.reason == "IMAGE_CORRUPT"
    error = await refusal(door.send(b"data", reference=""))
    assert error.fields[0][0] == "reference"
    monkeypatch.setattr(service, "ARCHIVE_BYTES_MAX", 1000)
    error = await refusal(door.send(b"x" * 1001))
    assert error.reason == "IMAGE_TOO_LARGE"
    assert await door.runtime.list_images() == []
    assert list(door.spool.iterdir()) == []


@pytest.mark.parametrize("role", ["executor", "scheduler"])
async def test_only_gateways_are_admitted(door: Door, role: str) -> None:
    credentials = channel_credentials(door.mesh.authority.issue(role, f"{role}-9"))
    async with grpc.aio.secure_channel(door.address, credentials, CHANNEL_OPTIONS) as channel:
        door.stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        for call in (
            door.output("a-1"),
            door.send(b"x"),
            door.stub.ListArchives(executor_pb2.ListArchivesRequest(), timeout=TIMEOUT_S),
            door.stub.DeleteArchive(executor_pb2.DeleteArchiveRequest(), timeout=TIMEOUT_S),
        ):
            assert (await refusal(call)).reason == "ROLE_REFUSED"
