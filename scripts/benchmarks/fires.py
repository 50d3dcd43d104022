"""Schedules that fire at an even rate, and what should have come of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bed import BATCH, CALL_DEADLINE_S, Api, milliseconds, say

from tickmesh.proto.tickmesh.v1 import execution_pb2, schedule_pb2

SCHEDULES = 1_000
"""That fire, where not said otherwise."""

DRAIN_DEADLINE_S = 30.0
ACTIVE = (
    execution_pb2.EXECUTION_STATE_PENDING,
    execution_pb2.EXECUTION_STATE_ASSIGNED,
    execution_pb2.EXECUTION_STATE_RUNNING,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """`count` schedules, each every period_ms, their phases spread evenly: one fire each
    period_ms / count, or `burst` fires at one instant, so many times less often. (Rounded down to
    whole milliseconds.)"""

    count: int
    period_ms: int
    burst: int = 1

    @classmethod
    def of(cls, count: int, rate: float, burst: int = 1) -> Plan:
        """At least a second between two fires of one schedule, as the API asks."""
        count = max(count, int(rate), burst)
        return cls(count, max(1_000, int(count / rate * 1_000)), burst)

    def phase_ms(self, index: int) -> int:
        """When, in its period, a schedule fires."""
        return index // self.burst * self.burst * self.period_ms // self.count

    def expected(self, from_ms: float, until_ms: float) -> Counter[tuple[str, int]]:
        """Every (schedule id, instant) with from <= instant < until."""
        found: Counter[tuple[str, int]] = Counter()
        for index in range(self.count):
            phase = self.phase_ms(index)
            period = -(-(int(from_ms) - phase) // self.period_ms)
            while (instant := period * self.period_ms + phase) < until_ms:
                found[(name(index), instant)] += 1
                period += 1
        return found

    async def create(self, api: Api, job: str) -> None:
        """Create the schedules."""
        for start in range(0, self.count, BATCH):
            request = schedule_pb2.BatchCreateSchedulesRequest(parent=job)
            for index in range(start, min(self.count, start + BATCH)):
                new = request.schedules.add(schedule_id=name(index))
                interval = new.schedule.recurrence.intervals.add()
                interval.every.FromMilliseconds(self.period_ms)
                interval.phase.FromMilliseconds(self.phase_ms(index))
            await api.schedules.BatchCreateSchedules(request, timeout=CALL_DEADLINE_S)


def name(index: int) -> str:
    """Id of the n-th schedule."""
    return f"often-{index}"


async def ended(api: Api, job: str, until_ms: float) -> list[execution_pb2.Execution]:
    """The executions of a job that were due before an instant, once they all have ended."""
    deadline = time.monotonic() + DRAIN_DEADLINE_S
    while True:
        found = [e for e in await api.executions_of(job) if milliseconds(e.due_time) < until_ms]
        active = sum(execution.state in ACTIVE for execution in found)
        if not active or time.monotonic() > deadline:
            if active:
                say(f"{active} executions have not ended after {DRAIN_DEADLINE_S:.0f} s")
            return found
        await asyncio.sleep(0.2)


def compare(
    expected: Counter[tuple[str, int]], found: list[execution_pb2.Execution]
) -> tuple[dict[str, Any], list[execution_pb2.Execution]]:
    """What fired, was missed, fired twice or did not succeed; and those that were expected."""
    wanted = []
    fired: Counter[tuple[str, int]] = Counter()
    for execution in found:
        key = (execution.schedule.rpartition("/")[2], round(milliseconds(execution.due_time)))
        if key in expected:
            fired[key] += 1
            wanted.append(execution)
    failed = [e for e in wanted if e.state != execution_pb2.EXECUTION_STATE_SUCCEEDED]
    for execution in failed[:3]:
        say(f"{execution.name}: state {execution.state}, {execution.message}")
    return {
        "expected": expected.total(),
        "fired": len(fired),
        "missed": expected.total() - len(fired),
        "duplicated": sum(count - 1 for count in fired.values()),
        "failed": len(failed),
    }, wanted
