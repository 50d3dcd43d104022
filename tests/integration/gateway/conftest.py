"""A mesh of real processes with two doors: three replicas, an executor without containers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from tickmesh.mesh.errors import TickmeshError, from_rpc_error
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.proto.tickmesh.v1 import (
    cluster_pb2_grpc,
    execution_pb2_grpc,
    image_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    schedule_pb2,
    schedule_pb2_grpc,
)

TIMEOUT_S = 20.0


class User:
    """Somebody at one door, with stubs as protoc makes them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(
            address, options=[("grpc.max_send_message_length", -1)]
        )
        self.jobs: Any = job_pb2_grpc.JobServiceStub(self.channel)
        self.schedules: Any = schedule_pb2_grpc.ScheduleServiceStub(self.channel)
        self.executions: Any = execution_pb2_grpc.ExecutionServiceStub(self.channel)
        self.images: Any = image_pb2_grpc.ImageServiceStub(self.channel)
        self.cluster: Any = cluster_pb2_grpc.ClusterServiceStub(self.channel)

    async def job(self, customer: str, job_id: str, *command: str) -> str:
        """Create a job; its name."""
        request = job_pb2.CreateJobRequest(parent=f"customers/{customer}", job_id=job_id)
        request.job.container.image = "words:1"
        request.job.container.command.extend(command)
        return str((await self.jobs.CreateJob(request, timeout=TIMEOUT_S)).name)

    async def schedule(self, job: str, schedule_id: str = "", **fields: Any) -> Any:
        """Create a schedule of a job; by default one for three in the morning."""
        request = new_schedule(job, schedule_id, **fields)
        return await self.schedules.CreateSchedule(request, timeout=TIMEOUT_S)


def new_schedule(
    job: str, schedule_id: str = "", cron: str = "0 3 * * *", zone: str = "UTC"
) -> schedule_pb2.CreateScheduleRequest:
    """A request for a schedule."""
    request = schedule_pb2.CreateScheduleRequest(parent=job, schedule_id=schedule_id)
    request.schedule.recurrence.crons.append(cron)
    request.schedule.recurrence.time_zone = zone
    return request


async def refusal(call: Awaitable[Any]) -> TickmeshError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return from_rpc_error(refused.value)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    directory: Path = tmp_path_factory.mktemp("mesh")
    options = LocalOptions(replicas=3, executors=1, gateways=2, runtime="inprocess")
    async with LocalMesh(directory, options) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def doors(mesh: LocalMesh) -> AsyncIterator[tuple[User, User]]:
    """A user at each gateway."""
    first, second = (User(address) for address in mesh.addresses)
    yield first, second
    await first.channel.close()
    await second.channel.close()


@pytest.fixture
def user(doors: tuple[User, User]) -> User:
    return doors[0]
