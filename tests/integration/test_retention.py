"""What a customer keeps of its history, through a real mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask

from tickmesh import sdk
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.proto.tickmesh.v1 import customer_pb2
from tickmesh.sdk import AsyncClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

WITHIN_S = 60.0
"""Far more than the ten seconds that are promised, twice: the machine may be busy."""


LOOK_S = 0.2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    options = LocalOptions(replicas=1, executors=1, runtime="inprocess")
    async with LocalMesh(tmp_path_factory.mktemp("mesh"), options) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def client(mesh: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(mesh.address, "keeps") as made:
        yield made


async def until(holds: Callable[[], Awaitable[Any]]) -> None:
    """Look until it holds."""
    for _ in range(int(WITHIN_S / LOOK_S)):
        if await holds():
            return
        await asyncio.sleep(LOOK_S)
    raise AssertionError(f"{holds.__name__} did not hold within {WITHIN_S:g} s")


async def test_only_what_the_customer_keeps_stays_and_the_audit_knows(
    client: AsyncClient,
) -> None:
    await client.jobs.create("hello", image="words:1", command=["print", "hello"])
    await client.schedules.create("hello", "often", every=1, max_fires=6)
    by_call = [await client.execute("hello") for _ in range(3)]
    for handle in by_call:
        await handle.result()

    async def ids() -> list[str]:
        return [each.id async for each in client.executions.list("hello")]

    async def finished() -> bool:
        schedule = await client.schedules.get("hello/often")
        ended = [e.state.final async for e in client.executions.list("hello")]
        return schedule.state is sdk.ScheduleState.FINISHED and all(ended) and len(ended) == 9

    await until(finished)
    everything = await ids()
    before = await client.get_customer()
    assert before.retention == sdk.Retention() and before.history_max_age == timedelta(days=7)
    wanted = sdk.Retention(executions_per_job_max=2)
    made = await client.set_retention(wanted, etag=before.etag)
    assert made.retention == wanted == (await client.get_customer()).retention

    async def two_are_left() -> bool:
        return len(await ids()) == 2

    await until(two_are_left)
    assert await ids() == everything[:2]
    with pytest.raises(sdk.NotFound, match="kept for a time only"):
        await client.executions.get(f"hello/{everything[-1]}")
    report = await client.schedules.verify("hello/often")
    assert (report.problems, report.complete, report.instant_count) == ((), True, 6)
    rows = [row async for row in client.schedules.fires("hello/often")]
    purged = [row for row in rows if row.outcome is sdk.FireOutcome.PURGED]
    assert sum(row.count for row in purged) == 4
    statistics = await client.schedules.statistics("hello/often")
    assert statistics.fired_count == 6 and not statistics.skipped

    await client.set_retention(sdk.Retention(max_age=timedelta(seconds=10)))

    async def none_is_left() -> bool:
        return not await ids()

    await until(none_is_left)
    assert (await client.schedules.verify("hello/often")).problems == ()


async def test_a_request_whose_executions_are_gone_executes_nothing(client: AsyncClient) -> None:
    await client.jobs.create("once", image="words:1")
    handle = await client.execute("once", request_id="the same")
    await handle.result()
    await client.set_retention(sdk.Retention(max_age=timedelta(seconds=10)))

    async def gone() -> bool:
        try:
            await handle.get()
        except sdk.NotFound:
            return True
        return False

    await until(gone)
    with pytest.raises(sdk.AlreadyExists, match="not kept any more"):
        await client.execute("once", request_id="the same")
    assert [e async for e in client.executions.list("once")] == []


@pytest.mark.parametrize(
    ("fields", "paths", "field"),
    [
        ({"max_age": 8 * 86_400}, ["retention"], "customer.retention.max_age"),
        ({"max_age": 9}, ["retention"], "customer.retention.max_age"),
        ({"max_age": -1}, ["retention.max_age"], "customer.retention.max_age"),
        ({"count": -1}, ["retention"], "customer.retention.executions_per_job_max"),
        ({"count": 10_001}, ["retention"], "customer.retention.executions_per_job_max"),
        ({"count": 1}, [], "update_mask"),
        ({"count": 1}, ["name"], "update_mask"),
        ({"count": 1}, ["retention.nothing"], "update_mask"),
        ({"name": "customers/Bad"}, ["retention"], "customer.name"),
    ],
)
async def test_what_cannot_be_kept_is_refused_and_changes_nothing(
    client: AsyncClient, fields: dict[str, Any], paths: list[str], field: str
) -> None:
    before = await client.get_customer()
    customer = customer_pb2.Customer(name=fields.get("name", "customers/keeps"))
    if "max_age" in fields:
        customer.retention.max_age.FromSeconds(fields["max_age"])
    customer.retention.executions_per_job_max = fields.get("count", 0)
    request = customer_pb2.UpdateCustomerRequest(
        customer=customer, update_mask=FieldMask(paths=paths)
    )
    with pytest.raises(sdk.InvalidRequest) as refused:
        await client._transport.unary(client._customers.UpdateCustomer, request, 10)
    assert refused.value.fields[0][0] == field
    assert await client.get_customer() == before


async def test_a_stale_etag_changes_nothing(client: AsyncClient) -> None:
    before = await client.get_customer()
    await client.set_retention(sdk.Retention(executions_per_job_max=7), etag=before.etag)
    with pytest.raises(sdk.EtagMismatch):
        await client.set_retention(sdk.Retention(), etag=before.etag)
    assert (await client.get_customer()).retention.executions_per_job_max == 7
