"""The columns of each kind of thing."""

from __future__ import annotations

from .. import types
from .output import Column
from .parameters import show_duration, show_instant, show_size


def short_name(execution: types.Execution) -> str:
    """JOB/EXECUTION, as the command line takes it."""
    return f"{execution.job_id}/{execution.id}"


def _command(job: types.Job) -> str:
    words = " ".join((*job.container.command, *job.container.args))
    return words if len(words) <= 40 else words[:39] + "…"


def _lateness(execution: types.Execution) -> str:
    return "" if execution.lateness_ms is None else f"{execution.lateness_ms:.1f}"


def _duration(execution: types.Execution) -> str:
    return "" if execution.duration is None else show_duration(execution.duration)


def _due(execution: types.Execution) -> str:
    """To the millisecond: that is what executions are about."""
    if execution.due_time is None:
        return ""
    return execution.due_time.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def _why(execution: types.Execution) -> str:
    words = execution.message.splitlines()[0] if execution.message else ""
    return f"{execution.reason} {words}".strip()[:100]


JOBS: tuple[Column[types.Job], ...] = (
    Column("JOB", lambda job: job.id),
    Column("IMAGE", lambda job: job.container.image),
    Column("COMMAND", _command),
    Column("MEMORY", lambda job: show_size(job.resources.memory_bytes), right=True),
    Column("CPU", lambda job: f"{job.resources.cpu_millis / 1_000:g}", right=True),
    Column("TIMEOUT", lambda job: show_duration(job.timeout) if job.timeout else "", right=True),
    Column("REVISION", lambda job: str(job.revision), right=True),
    Column("CREATED", lambda job: show_instant(job.create_time)),
)

SCHEDULES: tuple[Column[types.Schedule], ...] = (
    Column("SCHEDULE", lambda schedule: f"{schedule.job_id}/{schedule.id}"),
    Column("WHEN", lambda schedule: describe(schedule.recurrence)),
    Column("STATE", lambda schedule: str(schedule.state)),
    Column("NEXT", lambda schedule: show_instant(schedule.next_fire_time)),
    Column("LAST", lambda schedule: show_instant(schedule.last_fire_time)),
    Column("FIRED", lambda schedule: str(schedule.fire_count), right=True),
    Column("MISSED", lambda schedule: str(schedule.missed_count), right=True),
    Column("REASON", lambda schedule: schedule.pause_reason),
)

EXECUTIONS: tuple[Column[types.Execution], ...] = (
    Column("EXECUTION", short_name),
    Column("DUE", _due),
    Column("LATE (MS)", _lateness, right=True),
    Column("STATE", lambda execution: str(execution.state)),
    Column("EXIT", lambda e: "" if e.exit_code is None else str(e.exit_code), right=True),
    Column("DURATION", _duration, right=True),
    Column("WHY", _why),
)

IMAGES: tuple[Column[types.Image], ...] = (
    Column("IMAGE", lambda image: image.id),
    Column("DIGEST", lambda image: image.digest[:19]),
    Column("SIZE", lambda image: show_size(image.size_bytes), right=True),
)

FIRES: tuple[Column[types.Fire], ...] = (
    Column("DUE", lambda fire: show_instant(fire.due_time)),
    Column("LOCAL TIME", lambda fire: fire.local_time),
    Column("NOTE", lambda fire: fire.note),
)


def _role(replica: types.Replica) -> str:
    if not replica.reachable:
        return "unreachable"
    return "leader" if replica.leader else "follower"


REPLICAS: tuple[Column[types.Replica], ...] = (
    Column("REPLICA", lambda replica: replica.replica_id),
    Column("ADDRESS", lambda replica: replica.address),
    Column("ROLE", _role),
    Column("TERM", lambda replica: str(replica.term), right=True),
    Column("APPLIED", lambda replica: str(replica.applied_index), right=True),
    Column("SCHEDULES", lambda replica: str(replica.schedule_count), right=True),
    Column("ACTIVE", lambda replica: str(replica.active_execution_count), right=True),
    Column("MEMORY", lambda replica: show_size(replica.resident_memory_bytes), right=True),
)

EXECUTORS: tuple[Column[types.Executor], ...] = (
    Column("EXECUTOR", lambda executor: executor.executor_id),
    Column("ADDRESS", lambda executor: executor.address),
    Column("SLOTS", lambda e: f"{e.used_slot_count}/{e.slot_count}", right=True),
    Column("RUNTIME", lambda executor: executor.runtime),
)


def describe(recurrence: types.Recurrence) -> str:
    """When it fires, in a few words."""
    parts = list(recurrence.crons)
    parts += [f"every {show_duration(interval.every)}" for interval in recurrence.intervals]
    parts += [f"at {show_instant(time)}" for time in recurrence.times]
    return "; ".join(parts) + (f" ({recurrence.time_zone})" if recurrence.time_zone else "")
