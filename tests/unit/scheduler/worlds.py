"""A shard's state in memory, driven by commands: the small world that core tests play in."""

from __future__ import annotations

import itertools
from typing import Any

from tickmesh.mesh.clock import SystemClock
from tickmesh.scheduler.core import commands, recurrence
from tickmesh.scheduler.core.commands import ENTRY_VERSION, AnyCommand, Outcome, Placement
from tickmesh.scheduler.core.ids import UID_BYTES
from tickmesh.scheduler.core.ledger import Row
from tickmesh.scheduler.core.model import Attempt, Execution, Job, JobSpec, Policy, Schedule
from tickmesh.scheduler.shard import Shard
from tickmesh.scheduler.store import keys
from tickmesh.scheduler.store.backend import MemoryBackend
from tickmesh.scheduler.store.queries import Queries
from tickmesh.scheduler.store.state import Applied, State, encode_entry

START_MS = 1_800_000_000_000  # 2027-01-15T08:00:00Z
HERE = Placement("executor-0", "first")

SPEC = JobSpec(
    image="hello",
    command=("true",),
    args=(),
    env=(),
    working_dir="",
    memory_bytes=1 << 28,
    cpu_millis=1_000,
    scratch_bytes=1 << 26,
    pids=128,
    timeout_ms=3_600_000,
    grace_ms=10_000,
    at_most_once=False,
)


def uid(number: int) -> bytes:
    """A uid for tests."""
    return number.to_bytes(UID_BYTES, "big")


class World:
    """Applies commands at a time that only the test moves."""

    def __init__(self, backend: Any = None) -> None:
        self.backend = backend or MemoryBackend()
        self.state = State(self.backend)
        self.queries = Queries(self.backend)
        self.now_ms = START_MS
        self.version = ENTRY_VERSION
        self.last: Applied | None = None
        self._uids = 0

    def do(self, *batch: AnyCommand) -> Outcome:
        """Apply one entry; the outcome of its last command."""
        index = self.state.applied[0] + 1
        self.last = self.state.apply(index, 1, encode_entry(self.now_ms, list(batch), self.version))
        return self.last.outcomes[-1]

    def next_uid(self) -> bytes:
        """A new uid."""
        self._uids += 1
        return uid(self._uids)

    def job(self, job_id: str = "hello", request: bytes = b"", spec: JobSpec = SPEC) -> Job:
        """Create a job."""
        new = commands.NewJob(job_id, self.next_uid(), "", (), spec)
        made = self.do(commands.CreateJobs("acme", [new], request))
        assert isinstance(made, list)
        assert isinstance(made[0], Job)
        return made[0]

    def new_schedule(
        self, schedule_id: str, policy: Policy | None = None, **spec: Any
    ) -> commands.NewSchedule:
        """A schedule to create."""
        recur = recurrence.Spec(**(spec or {"every": ((10_000, 0),)}))
        return commands.NewSchedule(
            schedule_id, self.next_uid(), (), recur, policy or Policy(), b"payload"
        )

    def schedule(
        self,
        schedule_id: str = "often",
        job_id: str = "hello",
        policy: Policy | None = None,
        **spec: Any,
    ) -> Schedule:
        """Create a schedule: every 10 seconds unless told otherwise."""
        new = self.new_schedule(schedule_id, policy, **spec)
        made = self.do(commands.CreateSchedules("acme", job_id, [new], b""))
        assert isinstance(made, list), made
        assert isinstance(made[0], Schedule)
        return made[0]

    def calendar(self, calendar_id: str = "holidays", request: bytes = b"", **content: Any) -> Any:
        """Create a calendar."""
        return self.do(
            commands.CreateCalendar(
                "acme",
                calendar_id,
                self.next_uid(),
                "",
                (),
                recurrence.Calendar(**content),
                request,
            )
        )

    def change_calendar(
        self, calendar_id: str = "holidays", version: int = 0, **content: Any
    ) -> Any:
        """Replace what a calendar says."""
        said = recurrence.Calendar(**content)
        return self.do(commands.UpdateCalendar("acme", calendar_id, version, "", (), said))

    def zones(self, upgrade: bool = False, **files: str) -> Any:
        """Learn zones: by name with _ for /, the zone whose file it gets."""
        read = recurrence.read_zone_file
        zones = tuple((name.replace("_", "/"), read(other)) for name, other in files.items())
        return self.do(commands.LearnZones(zones, "2099z", upgrade))

    def stored(self, schedule: Schedule) -> Schedule:
        """A schedule as it stands now."""
        found = self.queries.schedule(schedule.job_uid, schedule.schedule_id)
        assert found is not None
        return found

    def fire(self, schedule: Schedule, placement: Placement | None = HERE) -> list[Execution]:
        """Fire the schedule's timer."""
        due = commands.DueFire(
            schedule.job_uid, schedule.schedule_id, schedule.due_ms, placement, schedule.deferred
        )
        made = self.do(commands.Fire([due], 0))
        assert isinstance(made, list)
        return made  # type: ignore[return-value]

    def execute(self, job_id: str = "hello", request: bytes = b"", count: int = 1) -> Any:
        """Execute a job."""
        new = [commands.NewExecution(job_id, self.next_uid(), b"", HERE) for _ in range(count)]
        return self.do(commands.ExecuteJobs("acme", new, request))

    def end(self, execution: Execution) -> None:
        """End an execution's last attempt well."""
        attempt = Attempt(len(execution.attempts), "", "", 0, started_ns=1, exit_code=0)
        self.do(commands.EndAttempts([(execution.job_uid, execution.id, attempt)]))

    def execution(self, execution: Execution) -> Execution:
        """An execution as it stands now."""
        found = self.queries.execution(execution.job_uid, execution.id)
        assert found is not None
        return found

    def rows(self, schedule_uid: bytes, first: int, count: int) -> list[Row]:
        """Rows of a ledger."""
        return [row for _, row in self.queries.rows(schedule_uid, first, count)]

    def timers(self) -> list[Any]:
        """All timers."""
        return self.queries.timers(0, 1 << 62, 1 << 30)

    def everything(self) -> dict[bytes, bytes]:
        """All that is stored."""
        bounds = [b"", keys.HISTORY, b"i", keys.TIMERS, b"u", b"\xff"]
        ranges = [pair for pair in itertools.pairwise(bounds) if pair[0] != keys.HISTORY]
        periods = self.backend.periods()
        ranges += [(keys.history(when), keys.history(when + 1)) for when in periods]
        found: dict[bytes, bytes] = {}
        for start, stop in ranges:
            found |= dict(self.backend.scan(start, stop))
        return found


def shard_of(world: World, replica: Any) -> Shard:
    """A shard over the state of a world, and what stands in for its replica."""
    made = Shard(
        world.state,
        SystemClock(),
        arm_ahead_ms=1_000,
        executor_lease_ms=1_000,
        retention_ms=1_000,
    )
    made.bind(replica)
    return made
