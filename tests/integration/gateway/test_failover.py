"""Two doors, three replicas, and leaders that die or hang."""

from __future__ import annotations

import asyncio
import signal
import time
from itertools import pairwise

import grpc.aio
import pytest

from tests.integration.gateway.conftest import TIMEOUT_S, User, refusal
from tickmesh.mesh.local import Child, LocalMesh
from tickmesh.proto.tickmesh.v1 import cluster_pb2, execution_pb2, image_pb2, schedule_pb2

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

OUTAGE_S_MAX = 5.0
"""Far above what an outage takes (the benchmark holds the product to its promise): this machine
does other things too."""

WRITES_BEFORE, WRITES_AFTER = 50, 100

LAST_ANSWERS_S = 0.1
"""Answers of the lost leader may still be on their way for so long."""


async def leader(mesh: LocalMesh, user: User) -> Child:
    """The replica that leads, once there is one."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            request = cluster_pb2.GetClusterRequest()
            cluster = await user.cluster.GetCluster(request, timeout=TIMEOUT_S)
            for replica in cluster.shards[0].replicas:
                if replica.leader and replica.reachable:
                    return next(c for c in mesh.replicas if c.name == replica.replica_id)


async def names(user: User, job: str) -> set[str]:
    """Of every schedule of a job."""
    request = schedule_pb2.ListSchedulesRequest(parent=job, page_size=1_000)
    listed = await user.schedules.ListSchedules(request, timeout=TIMEOUT_S)
    return {schedule.name for schedule in listed.schedules}


async def test_what_is_written_through_one_door_is_read_through_the_other(
    doors: tuple[User, User],
) -> None:
    first, second = doors
    job = await first.job("doors", "hello")
    for number in range(20):
        writer, reader = (first, second) if number % 2 else (second, first)
        made = await writer.schedule(job, f"s{number}")
        request = schedule_pb2.GetScheduleRequest(name=made.name)
        assert await reader.schedules.GetSchedule(request, timeout=TIMEOUT_S) == made


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_leader_that_is_lost_costs_no_write_and_no_error(
    mesh: LocalMesh, doors: tuple[User, User], number: signal.Signals
) -> None:
    first, second = doors
    job = await first.job("lost", f"by-{number.name.lower()}")
    written: set[str] = set()
    finished: list[float] = []
    begun, over = asyncio.Event(), asyncio.Event()
    lost_at = float("inf")

    async def write(user: User) -> None:
        while not over.is_set():
            written.add((await user.schedule(job)).name)
            finished.append(time.monotonic())
            if len(finished) >= WRITES_BEFORE:
                begun.set()
            after = [at for at in finished if at > lost_at + LAST_ANSWERS_S]
            if len(after) >= WRITES_AFTER:
                over.set()

    lost = await leader(mesh, first)
    async with asyncio.TaskGroup() as group:
        for user in (first, second) * 4:
            group.create_task(write(user))
        await begun.wait()
        lost.signal(number)
        lost_at = time.monotonic()
    outage_s = max(after - before for before, after in pairwise(finished))
    print(f"{number.name}: no write for {outage_s:.3f} s")
    assert outage_s < OUTAGE_S_MAX
    assert await names(second, job) == await names(first, job) == written
    if number is signal.SIGSTOP:
        lost.signal(signal.SIGCONT)
        # It may still believe that it leads; nobody is told so.
        assert await names(first, job) == written
        assert (await leader(mesh, first)).name != lost.name
    else:
        await lost.kill()
        await lost.spawn()
        await lost.serving()
    made = await first.schedule(job)
    assert made.name in await names(second, job)


async def test_a_door_that_closes_ends_what_it_took_and_sends_streams_elsewhere(
    mesh: LocalMesh, doors: tuple[User, User]
) -> None:
    first, second = doors
    job = await first.job("closing", "hello")
    watch = second.executions.WatchExecutions(
        execution_pb2.WatchExecutionsRequest(parent=job), timeout=TIMEOUT_S
    )
    cursor = (await watch.read()).cursor
    writes = [asyncio.create_task(second.schedule(job)) for _ in range(100)]
    async with asyncio.timeout(TIMEOUT_S):
        await writes[0]
        ended = asyncio.create_task(mesh.gateways[1].end())
        error = await refusal(watch.read())
        assert (error.reason, "go on from the last cursor" in error.message) == (
            "UNAVAILABLE",
            True,
        )
        results = await asyncio.gather(*writes, return_exceptions=True)
        await ended
    made = {each.name for each in results if isinstance(each, schedule_pb2.Schedule)}
    # Calls that gRPC had not handed over when it was told to stop, it refuses by itself.
    refused = [each for each in results if isinstance(each, grpc.aio.AioRpcError)]
    assert {each.code() for each in refused} <= {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAVAILABLE,
    }
    assert len(made) + len(refused) == len(results)
    assert mesh.gateways[1].process is not None and mesh.gateways[1].process.returncode == 0
    assert made <= await names(first, job)
    again = first.executions.WatchExecutions(
        execution_pb2.WatchExecutionsRequest(parent=job, cursor=cursor), timeout=TIMEOUT_S
    )
    assert (await again.read()).cursor
    again.cancel()
    await mesh.gateways[1].spawn()
    await mesh.gateways[1].serving()


async def test_logs_whose_executor_dies_end_with_its_name(
    mesh: LocalMesh, doors: tuple[User, User]
) -> None:
    user, _ = doors
    job = await user.job("orphans", "hello", "print", "hello", ";", "sleep", "60")
    execution = await user.executions.ExecuteJob(
        execution_pb2.ExecuteJobRequest(name=job), timeout=TIMEOUT_S
    )
    request = execution_pb2.StreamLogsRequest(name=execution.name, follow=True)
    stream = user.executions.StreamLogs(request, timeout=TIMEOUT_S)
    part = await stream.read()
    assert part.data == b"hello\n"
    await mesh.executors[0].kill()
    error = await refusal(stream.read())
    assert (error.reason, error.metadata) == ("NO_EXECUTOR", {"executor_id": "executor-0"})
    again = execution_pb2.StreamLogsRequest(name=execution.name, cursor=part.cursor)
    error = await refusal(user.executions.StreamLogs(again, timeout=TIMEOUT_S).read())
    assert error.reason == "NO_EXECUTOR"
    images = image_pb2.ListImagesRequest(parent="customers/orphans")
    assert (
        await refusal(user.images.ListImages(images, timeout=TIMEOUT_S))
    ).reason == "NO_EXECUTOR"
    await mesh.executors[0].spawn()
    await mesh.executors[0].serving()
