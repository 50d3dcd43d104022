"""bench execute: from a client's Execute to the process's first instruction, cold and warm.

Cold: jobs that were never executed before, so that a sandbox is made for each execution. Warm: one
job, executed often, so that a spare waits at its gate. One execution at a time, each to its end;
output is read when all are over.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any

import bed
from bed import CALL_DEADLINE_S, Api, milliseconds, say, spread
from fire import stamp_job

from tickmesh.mesh.local import LocalOptions
from tickmesh.proto.tickmesh.v1 import execution_pb2

RATE_DEFAULT = 4.0
"""Executes a second: a spare takes 0.1 s of a processor to make, and the host has others."""

LEARN = 8
"""Executes before measuring: how a job becomes one that is executed often."""

WARM_MS = 20.0
"""Prepared so soon after it was assigned: from a spare; making a sandbox takes longer."""

COUNT_MIN = 100


@dataclass(slots=True)
class Taken:
    """One execution, and when its Execute was called and answered."""

    execution: execution_pb2.Execution
    called_ms: float
    answered_ms: float
    ran_ms: float = 0.0
    """By the process's own clock at its first instruction."""


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """See main.py for the arguments."""
    noise = await bed.noise()
    count = max(COUNT_MIN, arguments.executes)
    period_s = 1 / (arguments.rate or RATE_DEFAULT)
    options = LocalOptions(replicas=arguments.replicas)
    load = os.getloadavg()
    async with bed.mesh(options, arguments.keep) as (local, api):
        job = await stamp_job(api)
        colds = [await api.create_job(f"cold-{number}", "stamp:1") for number in range(count)]
        await one_after_another(api, colds[:1], period_s)  # what is loaded at the first use is
        cold = await one_after_another(api, colds[1:], period_s)
        say(f"{len(cold)} cold")
        await one_after_another(api, [job] * LEARN, period_s)
        warm = await one_after_another(api, [job] * count, period_s)
        say(f"{len(warm)} warm")
        for taken in (*cold, *warm):
            taken.ran_ms = int(await api.output(taken.execution.name)) / 1e6
        cluster = await api.cluster.GetCluster(
            bed.cluster_pb2.GetClusterRequest(), timeout=CALL_DEADLINE_S
        )
        return {
            "benchmark": "execute",
            "warm_ms": spread(taken.ran_ms - taken.called_ms for taken in warm),
            "cold_ms": spread(taken.ran_ms - taken.called_ms for taken in cold),
            "warm_parts_ms": parts(warm),
            "cold_parts_ms": parts(cold),
            "from_spares": sum(prepared_ms(taken) < WARM_MS for taken in warm),
            "rate": 1 / period_s,
            "rss_mib": bed.resident_mib(local),
            "replicas": arguments.replicas,
            "noise_ms": noise,
            "load": load,
            "machine": bed.machine(),
            "versions": bed.versions(cluster.executors[0].runtime),
        }


async def one_after_another(api: Api, jobs: list[str], period_s: float) -> list[Taken]:
    """Execute jobs at an even rate, each after the end of the one before."""
    found = []
    for job in jobs:
        next_s = time.monotonic() + period_s
        called_ms = time.time() * 1_000
        made = await api.executions.ExecuteJob(
            execution_pb2.ExecuteJobRequest(name=job), timeout=CALL_DEADLINE_S
        )
        answered_ms = time.time() * 1_000
        watch = api.executions.WatchExecutions(
            execution_pb2.WatchExecutionsRequest(parent=made.name), timeout=CALL_DEADLINE_S
        )
        async for message in watch:
            made = message.executions[-1] if message.executions else made
        if made.state != execution_pb2.EXECUTION_STATE_SUCCEEDED:
            raise SystemExit(f"{made.name} ended in state {made.state}: {made.message}")
        found.append(Taken(made, called_ms, answered_ms))
        await asyncio.sleep(max(0.0, next_s - time.monotonic()))
    return found


def prepared_ms(taken: Taken) -> float:
    """From the assignment, on the leader, to a sandbox that waits at its gate."""
    attempt = taken.execution.attempts[-1]
    return milliseconds(attempt.prepare_time) - milliseconds(attempt.assign_time)


def parts(all_taken: list[Taken]) -> dict[str, Any]:
    """Where the time went."""
    return {
        "call_to_leader": spread(
            milliseconds(t.execution.attempts[-1].assign_time) - t.called_ms for t in all_taken
        ),
        "call_to_answer": spread(t.answered_ms - t.called_ms for t in all_taken),
        "leader_to_gate": spread(prepared_ms(t) for t in all_taken),
        "gate_to_open": spread(
            milliseconds(t.execution.attempts[-1].start_time)
            - milliseconds(t.execution.attempts[-1].prepare_time)
            for t in all_taken
        ),
        # The executor learns of the exec after it: mostly negative.
        "open_to_running": spread(
            t.ran_ms - milliseconds(t.execution.attempts[-1].start_time) for t in all_taken
        ),
    }
