"""bench fairness: what one customer's queue of executions costs another customer's one.

First, on an idle mesh, a customer executes some jobs, one after the other, each for the first time
(so that a sandbox is made for it). Then another customer queues some thousand executions at once,
and the first does the same again with jobs like those. What counts is the wait of that one
execution: from the call to its process's own first instruction. The same is measured for one job
that is executed again and again, for which spares are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Any

import bed
from bed import CALL_DEADLINE_S, Api, say, spread
from execute import LEARN, Taken, one_after_another, prepared_ms
from fire import stamp_job

from tickmesh.mesh.local import LocalOptions
from tickmesh.proto.tickmesh.v1 import cluster_pb2, execution_pb2

QUEUED = 2_000
PERIOD_S = 1.0
"""Between the one customer's executes: a spare is made meanwhile, where one is kept."""

COUNT_DEFAULT = 20
SETTLE_S = 3.0
"""After the queue was filled, until it is measured beside it."""


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """See main.py for the arguments."""
    noise = await bed.noise()
    load = os.getloadavg()
    count = arguments.executes if arguments.executes != 50 else COUNT_DEFAULT
    async with bed.mesh(LocalOptions(replicas=arguments.replicas), arguments.keep) as (local, many):
        one = Api(local.address, "customers/one")
        try:
            queue_job = await stamp_job(many)
            warm_job = await stamp_job(one, "warm")
            jobs = [await one.create_job(f"cold-{n}", "stamp:1") for n in range(2 * count + 1)]
            await one_after_another(one, jobs[:1], PERIOD_S)  # what is loaded at the first use is
            await one_after_another(one, [warm_job] * LEARN, PERIOD_S / 4)
            idle = await one_after_another(one, jobs[1 : count + 1], PERIOD_S)
            idle_warm = await one_after_another(one, [warm_job] * count, PERIOD_S)
            say(f"{count} on an idle mesh")
            await _queue(many, queue_job)
            await asyncio.sleep(SETTLE_S)
            before = await _waiting(many, queue_job)
            beside = await one_after_another(one, jobs[count + 1 :], PERIOD_S)
            beside_warm = await one_after_another(one, [warm_job] * count, PERIOD_S)
            left = await _waiting(many, queue_job)
            say(f"{count} beside a queue of {before}, of which {left} are left")
            for taken in (*idle, *idle_warm, *beside, *beside_warm):
                taken.ran_ms = int(await one.output(taken.execution.name)) / 1e6
            cluster = await many.cluster.GetCluster(
                cluster_pb2.GetClusterRequest(), timeout=CALL_DEADLINE_S
            )
        finally:
            await one.channel.close()
        idle_ms, beside_ms = _waits(idle), _waits(beside)
        return {
            "benchmark": "fairness",
            "ratio": _ratio(idle, beside),
            "idle_ms": idle_ms,
            "beside_ms": beside_ms,
            "warm_ratio": _ratio(idle_warm, beside_warm),
            "warm_idle_ms": _waits(idle_warm),
            "warm_beside_ms": _waits(beside_warm),
            "idle_prepare_ms": spread(prepared_ms(taken) for taken in idle),
            "beside_prepare_ms": spread(prepared_ms(taken) for taken in beside),
            "queued": QUEUED,
            "queued_at_begin": before,
            "queued_at_end": left,
            "replicas": arguments.replicas,
            "noise_ms": noise,
            "load": load,
            "machine": bed.machine(),
            "versions": bed.versions(cluster.executors[0].runtime),
        }


def _waits(all_taken: list[Taken]) -> dict[str, float] | None:
    return spread(taken.ran_ms - taken.called_ms for taken in all_taken)


def _ratio(idle: list[Taken], beside: list[Taken]) -> float:
    """Of the medians."""
    low, high = _waits(idle), _waits(beside)
    assert low is not None and high is not None
    return round(high["p50"] / low["p50"], 3)


async def _queue(api: Api, job: str) -> None:
    """Execute a job QUEUED times at once."""
    for _ in range(0, QUEUED, bed.BATCH):
        request = execution_pb2.BatchExecuteJobsRequest(
            parent=api.customer, executions=[execution_pb2.NewExecution(name=job)] * bed.BATCH
        )
        await api.executions.BatchExecuteJobs(request, timeout=CALL_DEADLINE_S)


async def _waiting(api: Api, job: str) -> int:
    """How many executions of a job wait for an executor."""
    request = execution_pb2.ListExecutionsRequest(
        parent=job, page_size=1_000, states=[execution_pb2.EXECUTION_STATE_PENDING]
    )
    count = 0
    while True:
        page = await api.executions.ListExecutions(request, timeout=CALL_DEADLINE_S)
        count += len(page.executions)
        if not page.next_page_token:
            return count
        request.page_token = page.next_page_token
