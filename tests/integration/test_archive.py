"""Output in the archive: it gets there whatever dies, and is read there as if it never moved."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tickmesh.gateway import archive as reading
from tickmesh.gateway.archive import Archive as Reader
from tickmesh.mesh import output
from tickmesh.mesh.clock import SystemClock
from tickmesh.mesh.config import Archive
from tickmesh.mesh.errors import Overloaded
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.mesh.objects import Objects
from tickmesh.proto.tickmesh.v1 import (
    customer_pb2,
    customer_pb2_grpc,
    execution_pb2,
    image_pb2,
)

from .gateway.conftest import TIMEOUT_S, User, refusal
from .stores import SECRET, S3Server

pytestmark = pytest.mark.integration

LOOK_S = 0.02
SOON_S = 60.0
WORDS = ("print", "first", ";", "error", "oh", ";", "sleep", "0.05", ";", "print", "last")


@contextlib.asynccontextmanager
async def a_mesh(directory: Path, archive: Archive) -> AsyncIterator[tuple[LocalMesh, list[User]]]:
    """Two doors, one executor without containers."""
    options = LocalOptions(gateways=2, runtime="inprocess", archive=archive)
    async with LocalMesh(directory, options) as mesh:
        users = [User(address) for address in mesh.addresses]
        try:
            yield mesh, users
        finally:
            for user in users:
                await user.channel.close()


async def run(user: User, job: str) -> execution_pb2.Execution:
    """Execute a job once; as it ended."""
    request = execution_pb2.ExecuteJobRequest(name=job)
    execution = await user.executions.ExecuteJob(request, timeout=TIMEOUT_S)
    watch = execution_pb2.WatchExecutionsRequest(parent=execution.name)
    async for message in user.executions.WatchExecutions(watch, timeout=TIMEOUT_S):
        execution = message.executions[-1] if message.executions else execution
    assert execution.state == execution_pb2.EXECUTION_STATE_SUCCEEDED, execution
    return execution


async def read(user: User, execution: execution_pb2.Execution, **more: Any) -> list[Any]:
    request = execution_pb2.StreamLogsRequest(name=execution.name, **more)
    return [part async for part in user.executions.StreamLogs(request, timeout=TIMEOUT_S)]


def key_of(execution: execution_pb2.Execution) -> str:
    assigned = execution.attempts[-1].assign_time
    return output.object_key(execution.name, len(execution.attempts), assigned.ToMilliseconds())


async def archived(objects: Objects, execution: execution_pb2.Execution) -> bytes:
    """Its object, once it is there."""
    async with asyncio.timeout(SOON_S):
        while True:
            data = await objects.get(key_of(execution), 1 << 20)
            if data is not None:
                return data
            await asyncio.sleep(LOOK_S)


async def attached(user: User) -> None:
    """Wait until the shard knows of an executor, and a door has a connection to it."""
    async with asyncio.timeout(SOON_S):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                images = image_pb2.ListImagesRequest(parent="customers/acme")
                await user.images.ListImages(images, timeout=TIMEOUT_S)
                return
            await asyncio.sleep(LOOK_S)


def files_of(mesh: LocalMesh) -> list[Path]:
    """The outputs on its executor."""
    return list((mesh.directory / "executor-0" / "inprocess").glob("*/end")) or list(
        (mesh.directory / "executor-0").rglob("end")
    )


async def test_it_is_read_from_any_cursor_through_any_gateway_when_the_executor_is_gone(
    tmp_path: Path,
) -> None:
    async with a_mesh(tmp_path, Archive(url="archive")) as (mesh, users):
        job = await users[0].job("acme", "words", *WORDS)
        execution = await run(users[0], job)
        live = await read(users[0], execution, follow=True)
        assert [part.data for part in live if part.stream == 1] == [b"first\nlast\n"]
        silent = await run(users[0], await users[0].job("acme", "silent", "true"))
        objects = Objects(Archive(url=str(tmp_path / "archive")), "tests")
        await archived(objects, execution)
        await mesh.executors[0].kill()
        for user in users:
            assert await read(user, execution) == live
            assert await read(user, execution, follow=True) == live
            for index, part in enumerate(live):
                assert await read(user, execution, cursor=part.cursor) == live[index + 1 :]
            assert await read(user, silent) == []
        request = execution_pb2.StreamLogsRequest(name=execution.name, cursor="1.o2.9999.0")
        error = await refusal(users[1].executions.StreamLogs(request, timeout=TIMEOUT_S).read())
        assert error.fields[0][0] == "cursor" and "beyond the end" in error.fields[0][1]
        # What is damaged is said to be, and nothing of it is shown.
        path = tmp_path / "archive" / key_of(execution)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        error = await refusal(
            users[0]
            .executions.StreamLogs(
                execution_pb2.StreamLogsRequest(name=execution.name), timeout=TIMEOUT_S
            )
            .read()
        )
        assert error.reason == "OUTPUT_CORRUPT"
        # Its retention is over: gone.
        path.unlink()
        error = await refusal(
            users[0]
            .executions.StreamLogs(
                execution_pb2.StreamLogsRequest(name=execution.name), timeout=TIMEOUT_S
            )
            .read()
        )
        assert error.reason == "NO_EXECUTOR"


async def test_a_local_copy_that_is_gone_is_not_missed_in_the_middle_of_a_stream(
    tmp_path: Path,
) -> None:
    async with a_mesh(tmp_path, Archive(url="archive")) as (mesh, users):
        job = await users[0].job("acme", "words", *WORDS)
        execution = await run(users[0], job)
        live = await read(users[0], execution)
        await archived(Objects(Archive(url=str(tmp_path / "archive")), "tests"), execution)
        for end in files_of(mesh):  # as the executor does with what is archived
            for file in end.parent.iterdir():
                file.unlink()
            end.parent.rmdir()
        assert await read(users[1], execution, cursor=live[0].cursor) == live[1:]
        assert await read(users[1], execution) == live


async def test_an_executor_killed_before_the_upload_and_a_store_that_is_away_lose_nothing(
    tmp_path: Path,
) -> None:
    server = S3Server(tmp_path)
    try:
        async with a_mesh(tmp_path / "mesh", server.archive()) as (mesh, users):
            job = await users[0].job("acme", "words", *WORDS)
            executions = [await run(users[0], job) for _ in range(3)]
            live = [await read(users[0], execution) for execution in executions]
            # The store has never been there: nothing is archived, nothing is lost.
            await mesh.executors[0].kill()
            request = execution_pb2.StreamLogsRequest(name=executions[0].name)
            stream = users[0].executions.StreamLogs(request, timeout=TIMEOUT_S)
            assert (await refusal(stream.read())).reason == "UNAVAILABLE"
            await mesh.executors[0].spawn()
            await mesh.executors[0].serving()
            await attached(users[0])
            assert [await read(users[0], execution) for execution in executions] == live
            await server.start()
            objects = Objects(server.archive(), "tests")
            for execution in executions:
                await archived(objects, execution)
            await mesh.executors[0].kill()
            for user in users:
                assert [await read(user, execution) for execution in executions] == live
            for child in mesh.children:
                assert SECRET not in child.log.read_text()
            server.stop()
            stream = users[1].executions.StreamLogs(request, timeout=TIMEOUT_S)
            error = await refusal(stream.read())
            assert error.reason == "UNAVAILABLE" and "archive" in error.message
    finally:
        server.stop()


class Later(SystemClock):
    """So many days later."""

    def __init__(self, days: float) -> None:
        self._ns = int(days * 86_400 * 1e9)

    def now_ns(self) -> int:
        return super().now_ns() + self._ns


async def as_all(customer: str) -> None:
    """No customer has a retention of its own."""


async def test_what_a_customer_wants_to_be_kept_for_less_is_deleted_sooner(tmp_path: Path) -> None:
    archive = Archive(url="archive", retention_s=30 * 86_400)
    objects = Objects(Archive(url=str(tmp_path / "archive")), "tests")
    old = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=4)).strftime(output.DAY)
    older = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=6)).strftime(output.DAY)
    for day in (old, older):
        for customer in ("brief", "briefly", "patient"):
            await objects.put(f"{day}/{customer}/words/01/1", b"x")
    async with a_mesh(tmp_path, archive) as (mesh, users):
        customers = customer_pb2_grpc.CustomerServiceStub(users[0].channel)
        request = customer_pb2.UpdateCustomerRequest()
        request.customer.name = "customers/brief"
        request.customer.retention.max_age.FromSeconds(3 * 86_400)
        request.update_mask.paths.append("retention.max_age")
        await customers.UpdateCustomer(request, timeout=TIMEOUT_S)
        await mesh.gateways[1].end()  # it sweeps when it starts
        await mesh.gateways[1].spawn()
        async with asyncio.timeout(SOON_S):
            while True:
                left = await objects.children(older)
                if "brief" not in left:
                    break
                await asyncio.sleep(LOOK_S)
        assert left == ["briefly", "patient"]
        assert await objects.children(old) == ["brief", "briefly", "patient"]
        await mesh.gateways[1].serving()


async def test_a_day_is_deleted_once_the_retention_of_all_in_it_is_over(tmp_path: Path) -> None:
    settings = Archive(url=str(tmp_path), retention_s=3 * 86_400)
    objects = Objects(settings, "tests")
    today = datetime.datetime.now(datetime.UTC).strftime(output.DAY)
    key = f"{today}/acme/words/01/1"
    await objects.put(key, b"x")
    await objects.put("2026-01-31/acme/words/01/1", b"x")
    await objects.put("2026-01-31/acme/words/01/2", b"x")
    await objects.put("somebody-else/2026-01-31/x", b"x")
    assert await Reader(settings, SystemClock(), as_all).sweep() == 2
    assert await objects.children("") == [today, "somebody-else"]
    assert await Reader(settings, Later(3), as_all).sweep() == 0
    assert await Reader(settings, Later(6), as_all).sweep() == 1
    assert await objects.children("") == ["somebody-else"]
    now_ms = SystemClock().now_ns() // 1_000_000
    assert not Reader(settings, Later(3), as_all).expired(now_ms)
    assert Reader(settings, Later(6), as_all).expired(now_ms)


async def test_who_reads_slowly_keeps_no_other_customer_from_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READS_OF_CUSTOMER_MAX", 1)
    reader = Reader(Archive(url=str(tmp_path)), SystemClock(), as_all)
    async with reader.opened("2026-01-31/acme/words/01/1"):
        with pytest.raises(Overloaded, match="of customer acme"):
            async with reader.opened("2026-01-31/acme/words/02/1"):
                pass
        async with reader.opened("2026-01-31/other/words/01/1") as other:
            assert other is None
    async with reader.opened("2026-01-31/acme/words/02/1"):
        pass


async def test_no_more_outputs_are_read_at_one_time_than_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READS_MAX", 1)
    reader = Reader(Archive(url=str(tmp_path)), SystemClock(), as_all)
    key = "2026-01-31/acme/words/01/1"
    async with reader.opened(key) as first:
        assert first is None
        with pytest.raises(Overloaded):
            async with reader.opened(key):
                pass
    async with reader.opened(key):
        pass
