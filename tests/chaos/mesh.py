"""A mesh of three replicas, two executors and two gateways, its callers, and what goes wrong."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tickmesh.executor import archive
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.sdk.aio import AsyncClient
from tickmesh.sdk.types import Execution, ExecutionReason, ExecutionState

from .callers import DEADLINE_S, IMAGE, KINDS, Caller, Follower
from .faults import Faults
from .witnesses import WHOLE, Witness, witnesses

CUSTOMER = "chaos"
WORDS = Path(__file__).parents[1] / "conformance" / "words.py"
LEASE_S = 3.0
"""Of an executor: short, so that it is often over."""

SETTLE_S = 120.0
"""For everything to come to rest after the last fault: four attempts, leases, restarts."""

FIRST_WORD_S = 1.0
"""From a start to the first word, at most: Python begins, on a machine with much else to do."""

LOGS_READ_MAX = 100
LOOK_S = 0.2
PROGRAM: dict[str, tuple[str, ...]] = {
    "inprocess": (),
    "containerd": ("python3", "/words.py"),
}
"""What follows the words of a job's command."""

SCHEDULES_MAX = {"inprocess": 4, "containerd": 1}
"""Of each caller, at a time: with what they run, what two processors do beside the faults."""


@dataclass
class Report:
    """What came of it."""

    seed: int
    runtime: str
    seconds: float
    violations: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    counts: dict[str, object] = field(default_factory=dict)


class Chaos:
    """See the module."""

    def __init__(
        self, local: LocalMesh, runtime: str, seed: int, seconds: float, verbose: bool
    ) -> None:
        self.report = Report(seed, runtime, seconds)
        self._chance = random.Random(f"{seed}/checks")
        self._local = local
        self._verbose = verbose
        self._began_s = time.monotonic()
        self._clients = [
            AsyncClient(address, CUSTOMER, deadline_s=DEADLINE_S) for address in local.addresses
        ]
        self._callers = [
            Caller(
                self._clients[number % len(self._clients)],
                kind,
                PROGRAM[runtime],
                SCHEDULES_MAX[runtime],
                seed,
                self.violate,
            )
            for number, kind in enumerate(KINDS)
        ]
        self._follower = Follower(self._clients[0], self.violate)
        self._faults = Faults(
            local, self._clients[0], runtime, seed, LEASE_S, self.note, self.violate
        )

    def note(self, what: str) -> None:
        """A line of the trace."""
        self.report.trace.append(f"{time.monotonic() - self._began_s:9.3f}  {what}")
        if self._verbose:
            print(self.report.trace[-1], file=sys.stderr, flush=True)

    def violate(self, what: str) -> None:
        """Something did not hold."""
        self.note(f"VIOLATED: {what}")
        self.report.violations.append(what)

    async def run(self) -> None:
        """The whole course."""
        following = asyncio.create_task(self._follower.run())
        watching = asyncio.create_task(self._faults.watch())
        calling = [asyncio.create_task(caller.run()) for caller in self._callers]
        faulting = asyncio.create_task(self._faults.run())
        others = [following, watching, faulting]
        try:
            await asyncio.wait(
                (*calling, *others),
                timeout=self.report.seconds,
                return_when=asyncio.FIRST_EXCEPTION,
            )
            faulting.cancel()
            self.note("everything heals")
            async with asyncio.timeout(SETTLE_S):
                await self._faults.heal()
                for caller in self._callers:
                    caller.stopping = True
                await asyncio.gather(*calling)
                for caller in self._callers:
                    await caller.pause_all()
            found = await self._settled()
            self.note("settled")
            await self._check(found)
            self._count(found)
        except TimeoutError:
            self.violate(f"not settled in {SETTLE_S:g} s")
        finally:
            for task in (*others, *calling):
                task.cancel()
            ended = await asyncio.gather(*others, *calling, return_exceptions=True)
            for each in ended:
                if isinstance(each, Exception):
                    self.violate(f"{each!r}")
            for client in self._clients:
                await client.aclose()

    async def _settled(self) -> dict[str, Execution]:
        """All executions, once all have ended and the follower knows it."""
        until_s = time.monotonic() + SETTLE_S
        while True:
            found = {e.name: e async for e in self._clients[1].executions.list(page_size=1_000)}
            active = [e for e in found.values() if not e.state.final]
            if not active:
                break
            if time.monotonic() > until_s:
                self.violate(f"not ended: {active[:3]}")
                return found
            await asyncio.sleep(LOOK_S)
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._follower.has_seen(found)
        except TimeoutError:
            seen = self._follower.seen
            wrong = [e for name, e in found.items() if seen.get(name) != e]
            self.violate(f"the watch did not tell of {wrong[:2]}, but {seen.get(wrong[0].name)}")
        return found

    async def _check(self, found: dict[str, Execution]) -> None:
        for caller in self._callers:
            await caller.check()
        directories = {
            child.name: self._local.directory / child.name for child in self._local.executors
        }
        wrote = witnesses(directories)
        by_id = {execution.id: execution for execution in found.values()}
        for (identity, number), seen in sorted(wrote.items()):
            self._check_attempt(by_id.get(identity), identity, number, seen)
        for identity, execution in by_id.items():
            attempts = len(execution.attempts)
            started = [n for n in range(1, attempts + 1) if (identity, n) in wrote]
            what = f"{execution.name}, of which {started} of {attempts} attempts started"
            if "/jobs/once/" in execution.name and len(started) > 1:
                self.violate(f"more than once: {what}")
            if execution.state is ExecutionState.REVOKED and started:
                self.violate(f"revoked and started: {what}")
            if execution.state is ExecutionState.SUCCEEDED and not all(
                witness.ended for witness in wrote.get((identity, attempts), ())
            ):
                self.violate(f"succeeded before its end: {what}")
            if execution.state is ExecutionState.SUCCEEDED and attempts not in started:
                self.violate(f"succeeded without a start: {what}")
        succeeded = [e for e in found.values() if e.state is ExecutionState.SUCCEEDED]
        for execution in self._chance.sample(succeeded, min(len(succeeded), LOGS_READ_MAX)):
            chunks = [each.data async for each in self._clients[1].executions.logs(execution.name)]
            if b"".join(chunks) != WHOLE:
                self.violate(f"{execution.name} succeeded, and its logs are {chunks}")

    def _check_attempt(
        self, execution: Execution | None, identity: str, number: int, seen: list[Witness]
    ) -> None:
        what = f"{identity}-{number} wrote on {[witness.executor for witness in seen]}"
        if len(seen) > 1:
            self.violate(f"{what}: one attempt started twice")
        if execution is None or number > len(execution.attempts):
            self.violate(f"{what}: there is no such attempt: {execution}")
            return
        attempt = execution.attempts[number - 1]
        if attempt.executor != seen[0].executor:
            self.violate(f"{what}, and belongs to {attempt}")
        lost = attempt.reason is ExecutionReason.EXECUTOR_LOST
        if lost and attempt.end_time is not None:
            after_s = seen[0].first_ns / 1e9 - attempt.end_time.timestamp()
            if after_s > FIRST_WORD_S:
                self.violate(f"{what} {after_s:.3f} s after it was told as lost: {attempt}")
        if attempt.start_time is None and not lost:
            self.violate(f"{what}, and is said not to have started: {attempt}")

    def _count(self, found: dict[str, Execution]) -> None:
        attempts = [attempt for each in found.values() for attempt in each.attempts]
        lateness = sorted(
            e.lateness.total_seconds() * 1_000 for e in found.values() if e.lateness is not None
        )
        states: dict[str, int] = {}
        for each in found.values():
            states[each.state.value] = states.get(each.state.value, 0) + 1
        self.report.counts = {
            "faults": dict(sorted(self._faults.made.items())),
            "calls": sum(caller.done for caller in self._callers),
            "unknown": sum(caller.unknown for caller in self._callers),
            "schedules": sum(len(caller.uids) for caller in self._callers),
            "executions": dict(sorted(states.items())),
            "attempts": len(attempts),
            "lost_attempts": sum(a.reason is ExecutionReason.EXECUTOR_LOST for a in attempts),
            "told": self._follower.told,
            "late_p50_ms": round(lateness[len(lateness) // 2], 1) if lateness else None,
        }


async def run(
    seed: int, runtime: str, seconds: float, directory: Path, *, verbose: bool = False
) -> Report:
    """`seconds` of faults, then healing; the mesh's data and logs stay in `directory`."""
    options = LocalOptions(
        replicas=3,
        executors=2,
        gateways=2,
        runtime=runtime,
        scheduler=(("executor_lease_ms", int(LEASE_S * 1_000)),),
    )
    async with LocalMesh(directory, options) as local:
        if runtime == "containerd":
            image = directory / "words.tar"
            archive.python_image(image, {"/words.py": archive.File(WORDS)})
            async with AsyncClient(local.address, CUSTOMER) as client:
                await client.images.import_archive(IMAGE, image)
        chaos = Chaos(local, runtime, seed, seconds, verbose)
        await chaos.run()
    return chaos.report
