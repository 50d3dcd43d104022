"""The columns of each kind of thing."""

from __future__ import annotations

from datetime import datetime, timedelta

from .. import types
from .output import Column
from .parameters import show_duration, show_instant, show_size

EXCLUDED_SHOWN_MAX = 3
"""Excluded dates that are named in a table; more are counted."""


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
    if execution.next_attempt_time is not None:
        last = execution.attempts[-1].reason if execution.attempts else ""
        number = len(execution.attempts) + 1
        return f"{last}; attempt {number} at {show_instant(execution.next_attempt_time)}"
    if execution.pending_reason:
        return execution.pending_reason[:100]
    words = execution.message.splitlines()[0] if execution.message else ""
    tries = f"(attempt {len(execution.attempts)})" if len(execution.attempts) > 1 else ""
    return " ".join(each for each in (execution.reason, tries, words) if each)[:100]


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


def _attempt_length(attempt: types.Attempt) -> str:
    if attempt.start_time is None or attempt.end_time is None:
        return ""
    return show_duration(attempt.end_time - attempt.start_time)


def _attempt_output(attempt: types.Attempt) -> str:
    if attempt.output_bytes is None:
        return ""
    dropped = attempt.dropped_output_bytes
    less = f" ({show_size(dropped)} dropped)" if dropped else ""
    return show_size(attempt.output_bytes) + less


def _attempt_why(attempt: types.Attempt) -> str:
    words = attempt.message.splitlines()[0] if attempt.message else ""
    return " ".join(each for each in (attempt.reason, words) if each)[:100]


ATTEMPTS: tuple[Column[types.Attempt], ...] = (
    Column("ATTEMPT", lambda attempt: str(attempt.number), right=True),
    Column("EXECUTOR", lambda attempt: attempt.executor),
    Column("EXIT", lambda a: "" if a.exit_code is None else str(a.exit_code), right=True),
    Column("DURATION", _attempt_length, right=True),
    Column(
        "PEAK MEMORY",
        lambda a: show_size(a.peak_memory_bytes) if a.peak_memory_bytes else "",
        right=True,
    ),
    Column("CPU", lambda a: "" if a.cpu_time is None else show_duration(a.cpu_time), right=True),
    Column("OUTPUT", _attempt_output, right=True),
    Column("WHY", _attempt_why),
)

IMAGES: tuple[Column[types.Image], ...] = (
    Column("IMAGE", lambda image: image.id),
    Column("DIGEST", lambda image: image.digest[:19]),
    Column("SIZE", lambda image: show_size(image.size_bytes), right=True),
)


CREDENTIALS: tuple[Column[types.RegistryCredential], ...] = (
    Column("HOST", lambda credential: credential.host),
    Column("USER", lambda credential: credential.username),
    Column("CREATED", lambda credential: show_instant(credential.create_time)),
)


KEYS: tuple[Column[types.ApiKey], ...] = (
    Column("KEY", lambda key: key.id),
    Column("SCOPES", lambda key: ", ".join(key.scopes)),
    Column("EXPIRES", lambda key: show_instant(key.expire_time)),
    Column("CREATED", lambda key: show_instant(key.create_time)),
    Column("NAME", lambda key: key.display_name),
)


CALENDARS: tuple[Column[types.Calendar], ...] = (
    Column("CALENDAR", lambda calendar: calendar.id),
    Column("DATES", lambda calendar: _listed(calendar.dates, "dates")),
    Column("WINDOWS", lambda calendar: str(len(calendar.windows)), right=True),
    Column("TIME ZONE", lambda calendar: calendar.time_zone),
    Column("CHANGED", lambda calendar: show_instant(calendar.update_time)),
    Column("NAME", lambda calendar: calendar.display_name),
)


def _times(times: tuple[datetime, ...]) -> str:
    """The first of some, and how many more."""
    first = show_instant(times[0]) if times else ""
    return first + (f" and {len(times) - 1} more" if len(times) > 1 else "")


MOVED: tuple[Column[types.MovedSchedule], ...] = (
    Column("SCHEDULE", lambda moved: "/".join(moved.name.split("/")[1::2])),
    Column("ZONE", lambda moved: moved.time_zone),
    Column("OLD", lambda moved: _times(moved.old_times)),
    Column("NEW", lambda moved: _times(moved.new_times)),
    Column("MORE", lambda moved: "yes" if moved.more else ""),
)


def _listed(things: tuple[str, ...], name: str) -> str:
    """A few by name, more by number."""
    return ", ".join(things) if len(things) <= EXCLUDED_SHOWN_MAX else f"{len(things)} {name}"


def _plan(customer: types.Customer) -> str:
    """Its plan; and what holds instead, if the mesh has no such plan any more."""
    holds = customer.effective_plan.name
    return customer.plan if holds == customer.plan else f"{customer.plan} (gone: {holds})"


CUSTOMERS: tuple[Column[types.Customer], ...] = (
    Column("CUSTOMER", lambda customer: customer.id),
    Column("PLAN", _plan),
    Column(
        "MAX AGE",
        lambda customer: show_duration(customer.retention.max_age or customer.history_max_age),
        right=True,
    ),
    Column(
        "EXECUTIONS PER JOB",
        lambda customer: str(customer.retention.executions_per_job_max or "all"),
        right=True,
    ),
)


def _row_about(row: types.LedgerRow) -> str:
    if row.calendar:
        return f"calendar {row.calendar.split('/')[-1]}"
    if row.definition is not None:
        return f"{row.definition.state} {describe(row.definition.recurrence)}"
    return "/".join(row.execution.split("/")[3::2])


def _run(row: types.LedgerRow) -> str:
    """Up to when a run of instants goes."""
    return show_instant(row.last_time) if row.last_time != row.first_time else ""


ROWS: tuple[Column[types.LedgerRow], ...] = (
    Column("ROW", lambda row: str(row.number), right=True),
    Column("OUTCOME", lambda row: str(row.outcome)),
    Column("INSTANT", lambda row: show_instant(row.first_time)),
    Column("UNTIL", _run),
    Column("COUNT", lambda row: str(row.count or "1000+"), right=True),
    Column("DECIDED", lambda row: show_instant(row.decide_time)),
    Column("WHAT", _row_about),
)


def _ms(length: timedelta | None) -> str:
    return "" if length is None else f"{length / timedelta(milliseconds=1):.1f}"


def _skipped(statistics: types.ScheduleStatistics) -> str:
    return " ".join(f"{name} {count}" for name, count in statistics.skipped.items()) or "0"


STATISTICS: tuple[Column[types.ScheduleStatistics], ...] = (
    Column("SINCE", lambda statistics: show_instant(statistics.start_time)),
    Column("FIRED", lambda statistics: str(statistics.fired_count), right=True),
    Column("CAUGHT UP", lambda statistics: str(statistics.caught_up_count), right=True),
    Column("MISSED", lambda statistics: str(statistics.missed_count), right=True),
    Column("SKIPPED", _skipped),
    Column("FAILED", lambda statistics: str(statistics.failed_count), right=True),
    Column("LATE", lambda statistics: str(statistics.late_count), right=True),
    Column("P50 (MS)", lambda statistics: _ms(statistics.lateness_p50), right=True),
    Column("P99 (MS)", lambda statistics: _ms(statistics.lateness_p99), right=True),
)

PROBLEMS: tuple[Column[types.LedgerProblem], ...] = (
    Column("PROBLEM", lambda problem: str(problem.kind)),
    Column("TIME", lambda problem: show_instant(problem.time)),
    Column("WHAT", lambda problem: problem.text),
)

FIRES: tuple[Column[types.Fire], ...] = (
    Column("DUE", lambda fire: "skipped" if fire.skipped else show_instant(fire.due_time)),
    Column("LOCAL TIME", lambda fire: fire.local_time),
    Column("NOTE", lambda fire: fire.note),
)


def _role(replica: types.Replica) -> str:
    if not replica.reachable:
        return "unreachable"
    if replica.leader:
        return "leader"
    return "learner" if replica.learner else "follower"


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


def _memory(executor: types.Executor) -> str:
    if not executor.memory_bytes:
        return "-"
    return f"{show_size(executor.used_memory_bytes)}/{show_size(executor.memory_bytes)}"


def _drain_state(executor: types.Executor) -> str:
    if not executor.draining:
        return "open"
    return "draining" if executor.used_slot_count else "drained"


EXECUTORS: tuple[Column[types.Executor], ...] = (
    Column("EXECUTOR", lambda executor: executor.executor_id),
    Column("ADDRESS", lambda executor: executor.address),
    Column("SLOTS", lambda e: f"{e.used_slot_count}/{e.slot_count}", right=True),
    Column("MEMORY", _memory, right=True),
    Column("STATE", _drain_state),
    Column("LABELS", lambda e: ",".join(f"{k}={v}" for k, v in e.labels.items()) or "-"),
    Column("RUNTIME", lambda executor: executor.runtime),
)


def describe(recurrence: types.Recurrence) -> str:
    """When it fires, in a few words."""
    parts = list(recurrence.crons)
    parts += [f"every {show_duration(interval.every)}" for interval in recurrence.intervals]
    parts += [f"at {show_instant(time)}" for time in recurrence.times]
    when = "; ".join(parts) + (f" ({recurrence.time_zone})" if recurrence.time_zone else "")
    dates, windows = recurrence.excluded_dates, recurrence.excluded_windows
    less = [_listed(dates, "dates")] if dates else []
    if windows:
        less.append(f"{len(windows)} window{'s' if len(windows) > 1 else ''}")
    less += [f"calendar {name.split('/')[-1]}" for name in recurrence.excluded_calendars]
    when += f", less {', '.join(less)}" if less else ""
    return when + (f", {recurrence.max_fires} times" if recurrence.max_fires else "")
