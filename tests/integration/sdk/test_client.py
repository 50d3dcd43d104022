"""The clients against a real mesh of processes, with in-process work: all that a client does, and
what it does when parts of the mesh are killed."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tickmesh import sdk
from tickmesh.mesh.local import Child, LocalMesh, LocalOptions
from tickmesh.sdk import AsyncClient, Client

pytestmark = pytest.mark.integration


@pytest.fixture(params=[1])
async def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LocalMesh]:
    options = LocalOptions(replicas=request.param, executors=1, runtime="inprocess")
    async with LocalMesh(tmp_path / "mesh", options) as mesh:
        yield mesh


three_replicas = pytest.mark.parametrize("mesh", [3], indirect=True)


async def leader(client: AsyncClient, mesh: LocalMesh) -> Child:
    shard = (await client.cluster()).shards[0]
    name = next(replica.replica_id for replica in shard.replicas if replica.leader)
    return next(child for child in mesh.replicas if child.name == name)


async def test_everything_that_a_client_does(mesh: LocalMesh) -> None:
    async with AsyncClient(mesh.address, "acme") as client:
        job = await client.jobs.create(
            "report",
            image="report:1",
            command=("print", "out", ";", "error", "err", ";", "payload", ";", "exit", "3"),
            env={"MODE": "daily"},
            memory_bytes=2**26,
            timeout=90,
            labels={"team": "data"},
        )
        assert await client.jobs.get("report") == job
        assert [each.id async for each in client.jobs.list(page_size=1)] == ["report"]
        renamed = dataclasses.replace(job, display_name="Report")
        assert (await client.jobs.update(renamed, ["display_name"])).display_name == "Report"
        with pytest.raises(sdk.EtagMismatch):
            await client.jobs.update(dataclasses.replace(job, etag="stale"), ["display_name"])
        with pytest.raises(sdk.AlreadyExists):
            await client.jobs.create("report", image="report:1")

        handle = await client.execute("report", "for it")
        execution = await handle.wait(deadline_s=20)
        assert (execution.state, execution.exit_code) == (sdk.ExecutionState.FAILED, 3)
        assert execution.reason is sdk.ExecutionReason.EXIT_CODE
        assert execution.lateness_ms is not None and execution.lateness_ms >= 0
        with pytest.raises(sdk.ExecutionFailed, match="exit code 3"):
            await handle.result()
        output = dict.fromkeys(sdk.LogStream, b"")
        async for chunk in handle.logs():
            output[chunk.stream] += chunk.data
        assert output[sdk.LogStream.STDOUT] == b"out\nfor it"
        assert output[sdk.LogStream.STDERR] == b"err\n"
        assert (await client.executions.get(handle.id)).name == handle.name
        failed = client.executions.list("report", states=[sdk.ExecutionState.FAILED])
        assert [each.name async for each in failed] == [handle.name]

        at = datetime(2040, 1, 1, tzinfo=UTC)
        schedule = await client.schedules.create(
            "report", "later", cron="0 2 * * *", at=at, time_zone="Europe/Berlin", payload="x"
        )
        assert await client.schedules.get("report/later") == schedule
        assert (await client.schedules.pause("report/later", "why")).pause_reason == "why"
        await client.schedules.resume("report/later")
        with pytest.raises(sdk.NotPaused):
            await client.schedules.resume("report/later")
        fires = await client.schedules.preview(schedule.recurrence, count=3)
        assert len(fires) == 3 and fires[0].local_time.endswith(("+01:00", "+02:00"))
        for wrong in ({"cron": "0 0 31 2 *"}, {"cron": "@daily", "time_zone": "Mars/Olympus"}):
            with pytest.raises(sdk.InvalidRequest) as caught:
                await client.schedules.create("report", **wrong)  # type: ignore[arg-type]
            assert caught.value.fields[0][0].startswith("schedule.recurrence.")
        with pytest.raises(sdk.JobHasSchedules):
            await client.jobs.delete("report")
        batch = [sdk.NewSchedule(schedule=schedule, schedule_id=f"s-{n}") for n in range(3)]
        assert len(await client.schedules.add_batch("report", batch)) == 3
        ids = [each.id async for each in client.schedules.list("report", page_size=2)]
        assert ids == ["later", "s-0", "s-1", "s-2"]
        await client.schedules.delete("report/later")

        async with AsyncClient(mesh.address, "other") as other:
            with pytest.raises(sdk.NotFound):
                await other.jobs.get("report")
        await client.jobs.delete("report", force=True)
        with pytest.raises(sdk.NotFound):
            await client.jobs.get("report")


async def test_what_runs_can_be_cancelled_and_followed(mesh: LocalMesh) -> None:
    async with AsyncClient(mesh.address) as client:
        await client.jobs.create("long", image="x", command=("print", "begun", ";", "sleep", "60"))
        handle = await client.execute("long")
        logs = handle.logs(follow=True)
        assert (await anext(logs)).data == b"begun\n"
        await handle.cancel()
        assert [chunk async for chunk in logs] == []
        assert (await handle.wait(deadline_s=20)).state is sdk.ExecutionState.CANCELLED


@three_replicas
async def test_a_watch_loses_nothing_when_the_leader_is_killed(mesh: LocalMesh) -> None:
    async with AsyncClient(mesh.address) as client:
        await client.jobs.create("hello", image="x", command=("print", "hello"))
        ended: set[str] = set()
        begun, changed = asyncio.Event(), asyncio.Event()

        async def watching() -> None:
            async for each in client.executions.watch("hello"):
                begun.set()
                if each.state.final:
                    ended.add(each.name)
                    changed.set()

        task = asyncio.create_task(watching())
        while not begun.is_set():  # it begins at some moment: executions until it has seen one
            await (await client.execute("hello")).wait(deadline_s=20)
        names = set()
        for number in range(20):
            if number == 10:
                await (await leader(client, mesh)).kill()
            names.add((await client.execute("hello")).name)
        done = asyncio.get_running_loop().time() + 30
        while not names <= ended and asyncio.get_running_loop().time() < done:
            changed.clear()
            signs = [task, asyncio.create_task(changed.wait())]
            await asyncio.wait(signs, timeout=1, return_when=asyncio.FIRST_COMPLETED)
            signs[1].cancel()
            if task.done():
                await task
        task.cancel()
        unseen = [await client.executions.get(name) for name in names - ended]
        assert unseen == []


async def test_a_gateway_that_is_started_again_is_found_again(mesh: LocalMesh) -> None:
    async with AsyncClient(mesh.address) as client:
        await client.jobs.create("long", image="x", command=("sleep", "2", ";", "exit", "4"))
        handle = await client.execute("long")
        waiting = asyncio.create_task(handle.wait(deadline_s=30))
        gateway = mesh.gateways[0]
        await gateway.kill()
        await gateway.spawn()
        await gateway.serving()
        assert (await waiting).exit_code == 4


async def test_the_blocking_client_does_the_same_in_threads(mesh: LocalMesh) -> None:
    with Client(mesh.address) as client:
        client.jobs.create("hello", image="x", command=("print", "hello"))

        def once() -> bytes:
            handle = client.execute("hello")
            handle.result(deadline_s=20)
            return b"".join(chunk.data for chunk in handle.logs())

        outputs = await asyncio.gather(*(asyncio.to_thread(once) for _ in range(8)))
        assert outputs == [b"hello\n"] * 8
