"""Customers on one executor, some with a plan: its runtime, its capabilities, its limits."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from tickmesh import sdk
from tickmesh.executor.archive import python_image
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.mesh.plans import Plan
from tickmesh.sdk import AsyncClient

from ..conformance.test_runtime import RUNSC, open_directory, runsc

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

WAIT_S = 60.0
MIB = 1 << 20
KERNEL = "print(open('/proc/version').read(), end='')"
BIND = """
import os, socket
try:
    socket.socket().bind(("", 80))
    print(os.getuid(), "bound")
except OSError as error:
    print(os.getuid(), error.errno)
"""
PLANS = (
    ("sealed", Plan(runtime=RUNSC, memory_bytes_max=2 << 30, interval_s_min=60)),
    ("kata", Plan(runtime="io.containerd.kata.v2")),
    ("ports", Plan(capabilities=("CAP_NET_BIND_SERVICE",))),
)


class Bed:
    """A mesh that authenticates, and its operator, who may be any customer's."""

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh
        self.key = mesh.operator_key_file.read_text()

    def operator(self, customer: str) -> AsyncClient:
        return AsyncClient(self.mesh.address, customer, api_key=self.key)

    async def customer(self, customer: str, plan: str = "") -> AsyncClient:
        """A client with a key of a customer's own, who is put on a plan."""
        async with self.operator(customer) as operator:
            made = await operator.keys.create([sdk.ApiScope.ADMIN])
            if plan:
                assert (await operator.set_plan(plan)).effective_plan.name == plan
        return AsyncClient(self.mesh.address, api_key=made.text)


async def said(client: AsyncClient, job: str) -> str:
    """What an execution of a job writes."""
    handle = await client.execute(job)
    execution = await handle.result(deadline_s=WAIT_S)
    chunks = [chunk.data async for chunk in handle.logs(deadline_s=WAIT_S)]
    assert execution.exit_code == 0, b"".join(chunks)
    return b"".join(chunks).decode().strip()


async def create(client: AsyncClient, name: str, program: str) -> None:
    command = ("python3", "-c", program)
    await client.jobs.create(name, image="python:3", command=command, memory_bytes=64 * MIB)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    archive = tmp_path_factory.mktemp("image") / "python.tar"
    await asyncio.to_thread(python_image, archive)
    with open_directory() as directory:
        options = LocalOptions(
            plans=PLANS,
            authentication="api_keys",
            executor=(("runtimes", {RUNSC: str(runsc(directory))}),),
        )
        async with LocalMesh(directory / "mesh", options) as mesh:
            made = Bed(mesh)
            for name in ("acme", "sealed", "ports", "waits"):
                async with await made.customer(name) as client:
                    await client.images.import_archive("python:3", archive)
            yield made


async def test_executors_tell_what_plans_may_ask_of_them(bed: Bed) -> None:
    async with bed.operator("acme") as operator:
        (executor,) = (await operator.cluster()).executors
    assert executor.runtimes == (RUNSC, "tickmesh")
    assert executor.capabilities


async def test_one_customer_runs_on_gvisor_by_its_plan_and_another_does_not(bed: Bed) -> None:
    async with await bed.customer("sealed", "sealed") as sealed, await bed.customer("acme") as acme:
        for client in (sealed, acme):
            await create(client, "kernel", KERNEL)
        # The second of each may find a spare, which is of its own kind too.
        for _ in range(3):
            ours, theirs = await asyncio.gather(said(acme, "kernel"), said(sealed, "kernel"))
            assert os.uname().release in ours
            assert os.uname().release not in theirs


async def test_a_capability_is_for_those_whose_plan_has_it(bed: Bed) -> None:
    async with await bed.customer("ports", "ports") as ports, await bed.customer("acme") as acme:
        for client in (ports, acme):
            await create(client, "bind", BIND)
        assert await said(ports, "bind") == "65534 bound"
        assert await said(acme, "bind") == f"65534 {errno.EACCES}"
        async with bed.operator("ports") as operator:
            await operator.set_plan("standard")
        assert await said(ports, "bind") == f"65534 {errno.EACCES}", "spares are of a plan too"


async def test_what_no_executor_can_run_waits_and_says_why(bed: Bed) -> None:
    async with await bed.customer("waits", "kata") as client:
        await create(client, "kernel", KERNEL)
        handle = await client.execute("kernel")
        execution = await handle.get()
        wanted = "no executor has the runtime io.containerd.kata.v2, which the customer's plan asks"
        assert execution.pending_reason.startswith(wanted)
        async with bed.operator("waits") as operator:
            await operator.set_plan("standard")
        assert (await handle.result(deadline_s=WAIT_S)).exit_code == 0


async def test_only_an_operator_changes_a_plan_and_its_limits_hold(bed: Bed) -> None:
    async with await bed.customer("sealed", "sealed") as client:
        with pytest.raises(sdk.PermissionDenied, match="operator's key only"):
            await client.set_plan("standard")
        seen = await client.get_customer()
        assert (seen.plan, seen.effective_plan.runtime) == ("sealed", RUNSC)
        assert seen.effective_plan.interval_min == timedelta(minutes=1)
        await client.jobs.create("large", image="python:3", memory_bytes=2 << 30)
        with pytest.raises(sdk.InvalidRequest, match=r"job\.resources\.memory_bytes: .* at most"):
            await client.jobs.create("larger", image="python:3", memory_bytes=(2 << 30) + 1)
        with pytest.raises(sdk.InvalidRequest, match=r"fires 2 times within 60 s"):
            await client.schedules.create("large", "often", cron="0,30 * * * * *")
        assert [each async for each in client.schedules.list("large")] == []
        async with bed.operator("sealed") as operator:
            there = "there are: kata, ports, sealed, standard"
            with pytest.raises(sdk.InvalidRequest, match=there):
                await operator.set_plan("golden")
        with pytest.raises(sdk.InvalidRequest, match="at most 1073741824"):
            async with await bed.customer("acme") as acme:
                await acme.jobs.create("large", image="python:3", memory_bytes=2 << 30)


async def test_a_plan_that_the_configuration_lost_is_the_standard_one(bed: Bed) -> None:
    """Last: the scheduler starts anew without plans."""
    client = await bed.customer("ports", "ports")
    (replica,) = bed.mesh.replicas
    replica.configure(msgspec.structs.replace(replica.settings, plans={}))
    await replica.end()
    await replica.spawn()
    await replica.serving()
    async with client:
        seen = await client.get_customer()
        assert (seen.plan, seen.effective_plan.name) == ("ports", "standard")
        assert await said(client, "bind") == f"65534 {errno.EACCES}"
    log = await asyncio.to_thread(Path(replica.log).read_text)
    assert '"plan": "ports"' in log and "the standard one holds" in log
