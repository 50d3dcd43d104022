"""Between the public messages and the records: shapes only, and the defaults of unset fields.

Refusals name the field as it stands in the request. What a library can check by annotation was
checked at the gateway; here is what needs knowledge: zones, crons, images, fields together.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from ..mesh import names
from ..mesh.errors import EtagMismatch, InvalidRequest, invalid
from ..mesh.plans import Plan
from ..proto.tickmesh.internal.v1 import shard_pb2
from ..proto.tickmesh.v1 import calendar_pb2, execution_pb2, job_pb2, schedule_pb2
from .core import recurrence
from .core.ids import execution_id, spell
from .core.ledger import Outcome, Row, definition_of
from .core.model import (
    Attempt,
    Calendar,
    Execution,
    ExecutionState,
    Job,
    JobSpec,
    Misfire,
    Network,
    Overlap,
    Policy,
    Reason,
    Retry,
    Schedule,
)
from .core.recurrence.limits import HORIZON_MS

MEMORY_BYTES_DEFAULT = 256 * 1024 * 1024
CPU_MILLIS_DEFAULT = 1_000
SCRATCH_BYTES_DEFAULT = 64 * 1024 * 1024
PIDS_DEFAULT = 128
TIMEOUT_MS_DEFAULT = 3_600_000
GRACE_MS_DEFAULT = 10_000
BACKOFF_MAX_MS_DEFAULT = Retry().backoff_max_ms
FIRES_PER_MINUTE_MAX = 60
"""Of one schedule: one a second. What has more is a loop of jobs, and wants one long job."""
MINUTE_MS = 60_000
RATE_BURSTS_MAX = 64
RATE_APART_MS = 3_600_000
"""Minutes of each cron in which fires are counted, and how far apart they are: 64 days of one that
fires daily, 2 days of one that fires each second. Some milliseconds each."""
_OVERLAP = schedule_pb2.OverlapPolicy.ValueType
_MISFIRE = schedule_pb2.MisfirePolicy.ValueType
_OUTCOME = schedule_pb2.FireOutcome.ValueType
_SCHEDULE_STATE = schedule_pb2.ScheduleState.ValueType
_EXECUTION_STATE = execution_pb2.ExecutionState.ValueType
_REASON = execution_pb2.ExecutionReason.ValueType
RESERVED_ENV = "TICKMESH_"
FIRED = frozenset({Outcome.FIRED, Outcome.CAUGHT_UP})
"""Outcomes of instants that have an execution."""
SPECS_CACHED_MAX = 8_192
"""Recurrences that were checked lately: batches repeat the same few."""
POLICIES_CACHED_MAX = 256
"""The same of policies."""

# registry host with a dot or a port (else it would be a customer), a path, then :tag or @digest
_REGISTRY_IMAGE = re.compile(
    r"([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:[0-9]{1,5})?|[A-Za-z0-9-]+:[0-9]{1,5})"
    r"(/[a-z0-9]+([._-]+[a-z0-9]+)*)+"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_OWN_IMAGE = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,63})?")


def from_ms(time_ms: int) -> Timestamp:
    """A timestamp."""
    return Timestamp(seconds=time_ms // 1_000, nanos=time_ms % 1_000 * 1_000_000)


def from_ns(time_ns: int) -> Timestamp:
    """A timestamp."""
    return Timestamp(seconds=time_ns // 1_000_000_000, nanos=time_ns % 1_000_000_000)


def to_ms(timestamp: Timestamp) -> int:
    """Milliseconds since 1970, rounded down."""
    return timestamp.seconds * 1_000 + timestamp.nanos // 1_000_000


def etag(version: int) -> str:
    """The etag of a version."""
    return f"v{version}"


def version_of(etag_given: str) -> int:
    """The version in an etag, 0 for none. Raises EtagMismatch for one that was never given out."""
    if not etag_given:
        return 0
    if re.fullmatch(r"v[1-9][0-9]{0,17}", etag_given) is None:
        raise EtagMismatch(f"etag {etag_given!r} is not one that was given out: read it again")
    return int(etag_given[1:])


def image_reference(image: str, customer: str, field: str) -> str:
    """What an executor runs: a registry's reference as it is, or "{customer}/{name}:{tag}"."""
    if _OWN_IMAGE.fullmatch(image):
        return f"{customer}/{image if ':' in image else image + ':latest'}"
    if _REGISTRY_IMAGE.fullmatch(image):
        return image
    raise invalid(
        field,
        f"{image!r} is neither an imported image (as report:1) nor an image in a registry with "
        "its host (as registry.example/team/report@sha256:...)",
    )


def job_spec(
    job: job_pb2.Job, customer: str, field: str, plan: Plan, earlier: JobSpec | None = None
) -> JobSpec:
    """What a job runs, defaults applied. Raises InvalidRequest.

    plan: its customer's. earlier: what the job ran before, which it may go on with.
    """
    container, resources = job.container, job.resources
    image_reference(container.image, customer, f"{field}.container.image")
    for name in container.env:
        if name.startswith(RESERVED_ENV):
            raise invalid(
                f"{field}.container.env[{name!r}]", f"names with {RESERVED_ENV} are the server's"
            )
    for values, path in ((container.command, "command"), (container.args, "args")):
        for index, value in enumerate(values):
            if "\0" in value:
                raise invalid(f"{field}.container.{path}[{index}]", "must not contain a NUL")
    for name, value in container.env.items():
        if "\0" in value:
            raise invalid(f"{field}.container.env[{name!r}]", "must not contain a NUL")
    total_timeout_ms = job.total_timeout.ToMilliseconds()
    timeout_max_ms = plan.timeout_s_max * 1_000
    timeout_ms = min(TIMEOUT_MS_DEFAULT, timeout_max_ms, total_timeout_ms or TIMEOUT_MS_DEFAULT)
    if job.HasField("timeout"):
        timeout_ms = job.timeout.ToMilliseconds()
        if total_timeout_ms and total_timeout_ms < timeout_ms:
            raise invalid(f"{field}.total_timeout", "is shorter than timeout, that of one attempt")
    memory_bytes = resources.memory_bytes or min(MEMORY_BYTES_DEFAULT, plan.memory_bytes_max)
    cpu_millis = resources.cpu_millis or min(CPU_MILLIS_DEFAULT, plan.cpu_millis_max)
    for path, wanted, value_max, before in (
        ("resources.memory_bytes", memory_bytes, plan.memory_bytes_max, "memory_bytes"),
        ("resources.cpu_millis", cpu_millis, plan.cpu_millis_max, "cpu_millis"),
        ("timeout", timeout_ms, timeout_max_ms, "timeout_ms"),
    ):
        if wanted > value_max and (earlier is None or getattr(earlier, before) != wanted):
            unit = " ms" if path == "timeout" else ""
            raise invalid(
                f"{field}.{path}",
                f"{wanted}{unit} is more than the plan of customers/{customer} allows: at most "
                f"{value_max}{unit}",
            )
    return JobSpec(
        image=container.image,
        command=tuple(container.command),
        args=tuple(container.args),
        env=tuple(sorted(container.env.items())),
        working_dir=container.working_dir,
        memory_bytes=memory_bytes,
        cpu_millis=cpu_millis,
        scratch_bytes=resources.scratch_bytes or SCRATCH_BYTES_DEFAULT,
        pids=resources.pids or PIDS_DEFAULT,
        timeout_ms=timeout_ms,
        grace_ms=(
            job.grace_period.ToMilliseconds() if job.HasField("grace_period") else GRACE_MS_DEFAULT
        ),
        at_most_once=job.at_most_once,
        retry=_retry(job.retry_policy, f"{field}.retry_policy"),
        total_timeout_ms=total_timeout_ms,
        network=Network(container.network or Network.NONE),
        executor_labels=tuple(sorted(job.executor_labels.items())),
    )


def _retry(message: job_pb2.RetryPolicy, field: str) -> Retry:
    default = Retry()
    backoff_ms = message.backoff.ToMilliseconds() or default.backoff_ms
    backoff_max_ms = max(backoff_ms, BACKOFF_MAX_MS_DEFAULT)
    if message.HasField("backoff_max"):
        backoff_max_ms = message.backoff_max.ToMilliseconds()
        if backoff_max_ms < backoff_ms:
            raise invalid(f"{field}.backoff_max", f"is shorter than backoff ({backoff_ms} ms)")
    return Retry(
        max_attempts=message.max_attempts or default.max_attempts,
        backoff_ms=backoff_ms,
        backoff_max_ms=backoff_max_ms,
        exit_codes=tuple(sorted(set(message.exit_codes))),
    )


def job_message(job: Job) -> job_pb2.Job:
    """The public message of a job."""
    spec = job.spec
    message = job_pb2.Job(
        name=names.job_name(job.customer, job.job_id),
        uid=spell(job.uid),
        display_name=job.display_name,
        labels=dict(job.labels),
        container=job_pb2.Container(
            image=spec.image,
            command=spec.command,
            args=spec.args,
            env=dict(spec.env),
            working_dir=spec.working_dir,
            network=job_pb2.Network.ValueType(spec.network),
        ),
        resources=job_pb2.Resources(
            memory_bytes=spec.memory_bytes,
            cpu_millis=spec.cpu_millis,
            scratch_bytes=spec.scratch_bytes,
            pids=spec.pids,
        ),
        at_most_once=spec.at_most_once,
        executor_labels=dict(spec.executor_labels),
        revision=job.revision,
        create_time=from_ms(job.create_ms),
        update_time=from_ms(job.update_ms),
        etag=etag(job.version),
    )
    message.timeout.FromMilliseconds(spec.timeout_ms)
    message.grace_period.FromMilliseconds(spec.grace_ms)
    if spec.total_timeout_ms:
        message.total_timeout.FromMilliseconds(spec.total_timeout_ms)
    if spec.retry != Retry():
        retry = message.retry_policy
        retry.max_attempts = spec.retry.max_attempts
        retry.backoff.FromMilliseconds(spec.retry.backoff_ms)
        retry.backoff_max.FromMilliseconds(spec.retry.backoff_max_ms)
        retry.exit_codes.extend(spec.retry.exit_codes)
    return message


# -- schedules ---------------------------------------------------------------------------------

_GAPS = {
    schedule_pb2.GAP_POLICY_SKIP: recurrence.Gap.SKIP,
}
_FOLDS = {
    schedule_pb2.FOLD_POLICY_BOTH: recurrence.Fold.BOTH,
}
# A problem's field in the engine's words -> in the message's.
_PROBLEM_FIELDS = (
    (re.compile(r"^every\[(\d+)\]"), r"intervals[\1].every"),
    (re.compile(r"^at_ms\[(\d+)\]"), r"times[\1]"),
    (re.compile(r"^every$"), "intervals"),
    (re.compile(r"^at_ms$"), "times"),
    (re.compile(r"^zone$"), "time_zone"),
    (re.compile(r"^gap$"), "gap_policy"),
    (re.compile(r"^fold$"), "fold_policy"),
    (re.compile(r"^start_ms$"), "start_time"),
    (re.compile(r"^end_ms$"), "end_time"),
    (re.compile(r"^jitter_ms$"), "jitter"),
    (re.compile(r"^spec$"), ""),
)


def _problem_field(field: str) -> str:
    for pattern, replacement in _PROBLEM_FIELDS:
        if pattern.search(field):
            return pattern.sub(replacement, field)
    return field


@lru_cache(maxsize=SPECS_CACHED_MAX)
def _spec(raw: bytes) -> recurrence.Spec:
    message = schedule_pb2.Recurrence.FromString(raw)
    return recurrence.Spec(
        crons=tuple(message.crons),
        every=tuple(
            (interval.every.ToMilliseconds(), interval.phase.ToMilliseconds())
            for interval in message.intervals
        ),
        at_ms=tuple(to_ms(at) for at in message.times),
        zone=message.time_zone or "UTC",
        gap=_GAPS.get(message.gap_policy, recurrence.Gap.AFTER),
        fold=_FOLDS.get(message.fold_policy, recurrence.Fold.FIRST),
        start_ms=to_ms(message.start_time) if message.HasField("start_time") else None,
        end_ms=to_ms(message.end_time) if message.HasField("end_time") else None,
        jitter_ms=message.jitter.ToMilliseconds(),
        max_fires=message.max_fires or None,
        excluded_dates=tuple(message.excluded_dates),
        excluded_windows=tuple(
            (to_ms(window.start_time), to_ms(window.end_time))
            for window in message.excluded_windows
        ),
        calendars=tuple(
            recurrence.Pin(names.parse_calendar(name, "excluded_calendars").calendar)
            for name in message.excluded_calendars
        ),
    )


@lru_cache(maxsize=SPECS_CACHED_MAX)
def _problems(spec: recurrence.Spec, after_ms: int) -> tuple[tuple[str, str], ...]:
    return tuple(
        (_problem_field(problem.field), problem.message)
        for problem in recurrence.validate(spec, after_ms=after_ms)
    )


def spec_of(
    message: schedule_pb2.Recurrence,
    now_ms: int,
    field: str,
    ready: Callable[[recurrence.Spec], recurrence.Spec] = lambda spec: spec,
) -> recurrence.Spec:
    """The engine's spec. Raises InvalidRequest naming every field that is wrong.

    ready: gives a spec its calendars' content, for the check.
    """
    spec = _spec(message.SerializeToString(deterministic=True))
    past = [index for index, at_ms in enumerate(spec.at_ms) if at_ms <= now_ms]
    if past:
        raise InvalidRequest(
            f"{field}.times[{past[0]}]: is in the past",
            fields=tuple((f"{field}.times[{index}]", "is in the past") for index in past),
        )
    problems = _problems(ready(spec), _asked_at(spec, now_ms))
    if problems:
        fields = tuple((f"{field}.{path}" if path else field, text) for path, text in problems)
        raise InvalidRequest(f"{fields[0][0]}: {fields[0][1]}", fields=fields)
    return spec


def _asked_at(spec: recurrence.Spec, now_ms: int) -> int:
    """0 unless bounds or exclusions make what is right depend on when it is asked: then it need
    not be computed again."""
    dated = spec.at_ms or spec.excluded_dates or spec.excluded_windows or spec.calendars
    timeless = not dated and spec.end_ms is None and spec.start_ms is None
    return 0 if timeless else now_ms


def check_rate(spec: recurrence.Spec, now_ms: int, field: str, interval_s: int = 1) -> None:
    """Raises InvalidRequest for what fires more often than a schedule may: once in so many seconds,
    counted by the minute, or by that interval if it is longer."""
    window_ms = max(MINUTE_MS, interval_s * 1_000)
    most = -(-window_ms // (interval_s * 1_000))
    count = _fires_within(spec, _asked_at(spec, now_ms), window_ms, most)
    if count <= most:
        return
    if interval_s == 1:
        raise invalid(field, f"fires {count} times a minute; at most {most}")
    raise invalid(
        field,
        f"fires {count} times within {window_ms // 1_000} s; by its customer's plan it may at most "
        f"{most} {'times' if most > 1 else 'time'}, as one fire in {interval_s} s",
    )


@lru_cache(maxsize=SPECS_CACHED_MAX)
def _fires_within(spec: recurrence.Spec, after_ms: int, window_ms: int, most_allowed: int) -> int:
    """The most in any such window that was looked at; COUNT_MAX for more than can be counted.

    Crons and whole seconds alone have at most 60 in a minute. More need times between seconds, and
    then a minute is crowded where one of the crons or single times is; where fewer are allowed, any
    two of them may be what is too near. So the windows are looked at that begin with the first
    fire, with each single time, and with the first RATE_BURSTS_MAX fires of each cron, and of each
    interval, that are at least an hour apart.
    """
    grid = spec.at_ms + tuple(part for period in spec.every for part in period)
    starts = [recurrence.next_fire(spec, after_ms)]
    if any(part % 1_000 for part in grid) or most_allowed < FIRES_PER_MINUTE_MAX:
        starts += [at_ms for at_ms in spec.at_ms if at_ms > after_ms]
        parts: list[dict[str, Any]] = [{"crons": (cron,)} for cron in spec.crons]
        if most_allowed < FIRES_PER_MINUTE_MAX and len(spec.every) > 1:
            parts += [{"every": (period,)} for period in spec.every]
        for part in parts:
            none: dict[str, Any] = {"crons": (), "every": (), "at_ms": ()}
            alone = msgspec.structs.replace(spec, **(none | part))
            instant_ms = recurrence.next_fire(alone, after_ms)
            for _ in range(RATE_BURSTS_MAX):
                if instant_ms is None:
                    break
                starts.append(instant_ms)
                instant_ms = recurrence.next_fire(alone, instant_ms + RATE_APART_MS - 1)
    most = 0
    for start_ms in starts:
        if start_ms is not None:
            until_ms = min(start_ms + window_ms, HORIZON_MS) - 1
            most = max(most, recurrence.latest_fire(spec, start_ms - 1, until_ms)[1])
            if most > most_allowed:
                break
    return most


def policy_of(schedule: schedule_pb2.Schedule) -> Policy:
    """What a schedule does when things are not as planned, defaults applied."""
    return _policy(
        schedule.overlap_policy,
        schedule.overlap_queue_max,
        schedule.misfire_policy,
        schedule.misfire_window.ToMilliseconds() if schedule.HasField("misfire_window") else 0,
        schedule.misfire_max,
        schedule.start_deadline.ToMilliseconds() if schedule.HasField("start_deadline") else 0,
        schedule.pause_after_failures,
    )


@lru_cache(maxsize=POLICIES_CACHED_MAX)
def _policy(
    overlap: int,
    queue_max: int,
    misfire: int,
    misfire_window_ms: int,
    misfire_max: int,
    start_deadline_ms: int,
    pause_after_failures: int,
) -> Policy:
    default = Policy()
    return Policy(
        overlap=Overlap(overlap or default.overlap),
        queue_max=queue_max or default.queue_max,
        misfire=Misfire(misfire or default.misfire),
        misfire_window_ms=misfire_window_ms,
        misfire_max=misfire_max or default.misfire_max,
        start_deadline_ms=start_deadline_ms,
        pause_after_failures=pause_after_failures,
    )


def _fill_policy(message: schedule_pb2.Schedule, policy: Policy) -> None:
    message.overlap_policy = _OVERLAP(policy.overlap)
    message.overlap_queue_max = policy.queue_max
    message.misfire_policy = _MISFIRE(policy.misfire)
    message.misfire_max = policy.misfire_max
    message.pause_after_failures = policy.pause_after_failures
    if policy.misfire_window_ms:
        message.misfire_window.FromMilliseconds(policy.misfire_window_ms)
    if policy.start_deadline_ms:
        message.start_deadline.FromMilliseconds(policy.start_deadline_ms)


def recurrence_message(spec: recurrence.Spec, customer: str) -> schedule_pb2.Recurrence:
    """The public message of a customer's spec."""
    message = schedule_pb2.Recurrence(crons=spec.crons, time_zone=spec.zone)
    for period_ms, phase_ms in spec.every:
        interval = message.intervals.add()
        interval.every.FromMilliseconds(period_ms)
        if phase_ms:
            interval.phase.FromMilliseconds(phase_ms)
    for at_ms in spec.at_ms:
        message.times.append(from_ms(at_ms))
    if spec.gap is not recurrence.Gap.AFTER:
        message.gap_policy = schedule_pb2.GAP_POLICY_SKIP
    if spec.fold is not recurrence.Fold.FIRST:
        message.fold_policy = schedule_pb2.FOLD_POLICY_BOTH
    if spec.start_ms is not None:
        message.start_time.CopyFrom(from_ms(spec.start_ms))
    if spec.end_ms is not None:
        message.end_time.CopyFrom(from_ms(spec.end_ms))
    if spec.jitter_ms:
        message.jitter.FromMilliseconds(spec.jitter_ms)
    message.max_fires = spec.max_fires or 0
    message.excluded_dates.extend(spec.excluded_dates)
    for start_ms, end_ms in spec.excluded_windows:
        message.excluded_windows.add(start_time=from_ms(start_ms), end_time=from_ms(end_ms))
    message.excluded_calendars.extend(
        names.calendar_name(customer, pin.name) for pin in spec.calendars
    )
    return message


@lru_cache(maxsize=SPECS_CACHED_MAX)
def _recurrence_shared(spec: recurrence.Spec) -> schedule_pb2.Recurrence:
    return recurrence_message(spec, "")


def _recurrence_cached(spec: recurrence.Spec, customer: str) -> schedule_pb2.Recurrence:
    return recurrence_message(spec, customer) if spec.calendars else _recurrence_shared(spec)


def fill_schedule(message: schedule_pb2.Schedule, schedule: Schedule) -> schedule_pb2.Schedule:
    """Set what the server sets; `message` may be new, or what the client sent."""
    message.name = names.schedule_name(schedule.customer, schedule.job_id, schedule.schedule_id)
    message.uid = spell(schedule.uid)
    message.state = _SCHEDULE_STATE(schedule.state)
    message.etag = etag(schedule.version)
    _fill_policy(message, schedule.policy)
    message.pause_reason = schedule.pause_reason
    message.fire_count = schedule.fire_count
    message.missed_count = schedule.missed_count
    message.create_time.FromMilliseconds(schedule.create_ms)
    message.update_time.FromMilliseconds(schedule.update_ms)
    if schedule.due_ms:
        message.next_fire_time.FromMilliseconds(schedule.due_ms)
    else:
        message.ClearField("next_fire_time")
    if schedule.last_ms:
        message.last_fire_time.FromMilliseconds(schedule.last_ms)
    else:
        message.ClearField("last_fire_time")
    return message


def schedule_message(schedule: Schedule) -> schedule_pb2.Schedule:
    """The public message of a schedule."""
    message = schedule_pb2.Schedule(
        recurrence=_recurrence_cached(schedule.spec, schedule.customer),
        payload=schedule.payload,
        labels=dict(schedule.labels),
    )
    return fill_schedule(message, schedule)


def outcome(value: Outcome) -> schedule_pb2.FireOutcome.ValueType:
    """The public number of an outcome."""
    return _OUTCOME(value)


def row_message(schedule: Schedule, number: int, row: Row) -> schedule_pb2.LedgerRow:
    """The public message of a row of a schedule's ledger."""
    message = schedule_pb2.LedgerRow(
        number=number,
        outcome=outcome(row.outcome),
        decide_time=from_ms(row.at_ms),
        first_time=from_ms(row.first_ms),
        last_time=from_ms(row.last_ms),
        count=row.count,
        hash=row.hash.hex(),
    )
    if row.outcome is Outcome.DEFINED:
        # A damaged one is for VerifySchedule to tell of.
        with contextlib.suppress(msgspec.DecodeError):
            _fill_definition(message.definition, schedule, row)
    elif row.outcome in FIRED:
        message.execution = names.execution_name(
            schedule.customer,
            schedule.job_id,
            spell(execution_id(row.first_ms, schedule.uid)),
        )
    elif row.outcome is Outcome.EXCLUDED and row.detail:
        message.calendar = names.calendar_name(schedule.customer, row.detail.decode())
    return message


def _fill_definition(message: schedule_pb2.Schedule, schedule: Schedule, row: Row) -> None:
    definition = definition_of(row)
    message.name = names.schedule_name(schedule.customer, schedule.job_id, schedule.schedule_id)
    message.uid = spell(definition.uid)
    message.recurrence.CopyFrom(_recurrence_cached(definition.spec, schedule.customer))
    message.state = _SCHEDULE_STATE(definition.state)
    message.etag = etag(definition.version)
    _fill_policy(message, definition.policy)


# -- calendars ---------------------------------------------------------------------------------


def calendar_content(
    calendar: calendar_pb2.Calendar, now_ms: int, field: str
) -> recurrence.Calendar:
    """What a calendar excludes. Raises InvalidRequest naming every field that is wrong."""
    content = recurrence.Calendar(
        dates=tuple(calendar.dates),
        windows=tuple(
            (to_ms(window.start_time), to_ms(window.end_time)) for window in calendar.windows
        ),
        zone=calendar.time_zone,
    )
    problems = recurrence.validate_calendar(content, after_ms=now_ms)
    if problems:
        fields = tuple(
            (
                f"{field}.{_problem_field(problem.field)}" if problem.field else field,
                problem.message,
            )
            for problem in problems
        )
        raise InvalidRequest(f"{fields[0][0]}: {fields[0][1]}", fields=fields)
    return content


def calendar_message(calendar: Calendar) -> calendar_pb2.Calendar:
    """The public message of a calendar."""
    return calendar_pb2.Calendar(
        name=names.calendar_name(calendar.customer, calendar.calendar_id),
        uid=spell(calendar.uid),
        display_name=calendar.display_name,
        labels=dict(calendar.labels),
        dates=calendar.content.dates,
        windows=[
            schedule_pb2.TimeWindow(start_time=from_ms(start_ms), end_time=from_ms(end_ms))
            for start_ms, end_ms in calendar.content.windows
        ],
        time_zone=calendar.content.zone,
        create_time=from_ms(calendar.create_ms),
        update_time=from_ms(calendar.update_ms),
        etag=etag(calendar.version),
    )


# -- executions --------------------------------------------------------------------------------


def execution_message(
    execution: Execution, soft: shard_pb2.AttemptReport | None, pending_reason: str = ""
) -> execution_pb2.Execution:
    """The public message of an execution; `soft`: what its executor says of its last attempt."""
    message = execution_pb2.Execution(
        name=names.execution_name(execution.customer, execution.job_id, spell(execution.id)),
        job_revision=execution.revision,
        state=_EXECUTION_STATE(execution.state),
        reason=_REASON(execution.reason),
        message=execution.message,
        due_time=from_ms(execution.due_ms),
        create_time=from_ms(execution.create_ms),
        missed_fires=execution.missed,
        job_uid=spell(execution.job_uid),
        active_key=execution.active_key.decode(),
        pending_reason=pending_reason,
    )
    if execution.nominal_ms:
        message.schedule_time.CopyFrom(from_ms(execution.nominal_ms))
    if execution.state is ExecutionState.PENDING and execution.not_before_ms:
        message.next_attempt_time.CopyFrom(from_ms(execution.not_before_ms))
    if execution.schedule_id:
        message.schedule = names.schedule_name(
            execution.customer, execution.job_id, execution.schedule_id
        )
    for attempt in execution.attempts:
        message.attempts.append(attempt_message(attempt))
    active = execution.state is ExecutionState.ASSIGNED
    if active and soft is not None:
        last = message.attempts[-1]
        if soft.prepared_ns:
            last.prepare_time.CopyFrom(from_ns(soft.prepared_ns))
        if soft.started_ns:
            last.start_time.CopyFrom(from_ns(soft.started_ns))
            if soft.clock_uncertainty_ns:
                last.clock_uncertainty.FromNanoseconds(soft.clock_uncertainty_ns)
            message.state = execution_pb2.EXECUTION_STATE_RUNNING
    _fill_ends(message, execution)
    return message


def _fill_ends(message: execution_pb2.Execution, execution: Execution) -> None:
    if message.attempts:
        last = message.attempts[-1]
        if last.HasField("start_time"):
            message.start_time.CopyFrom(last.start_time)
        if last.HasField("exit_code"):
            message.exit_code = last.exit_code
        first = message.attempts[first_try(execution)].start_time
        if started_ns := first.ToNanoseconds():
            message.lateness.FromNanoseconds(late_ns(execution, started_ns))
    if execution.end_ms:
        ended_ns = execution.attempts[-1].ended_ns if execution.attempts else 0
        if ended_ns < execution.not_before_ms * 1_000_000:
            ended_ns = 0  # it was ended while it waited for another attempt
        message.end_time.CopyFrom(from_ns(ended_ns) if ended_ns else from_ms(execution.end_ms))


def first_try(execution: Execution) -> int:
    """Which of its attempts is the first that was not given back before it started."""
    for index, attempt in enumerate(execution.attempts):
        if attempt.reason is not Reason.RETURNED:
            return index
    return len(execution.attempts) - 1


def late_ns(execution: Execution, started_ns: int) -> int:
    """How late an execution's first attempt started."""
    return max(0, started_ns - execution.due_ms * 1_000_000)


def attempt_message(attempt: Attempt) -> execution_pb2.Attempt:
    """The public message of an attempt."""
    message = execution_pb2.Attempt(
        number=attempt.number,
        executor=attempt.executor,
        assign_time=from_ms(attempt.assign_ms),
        signal=attempt.signal,
        reason=_REASON(attempt.reason),
        message=attempt.message,
        peak_memory_bytes=attempt.peak_memory_bytes,
        dropped_output_bytes=attempt.dropped_bytes,
    )
    if attempt.output_bytes >= 0:
        message.output_bytes = attempt.output_bytes
    if attempt.prepared_ns:
        message.prepare_time.CopyFrom(from_ns(attempt.prepared_ns))
    if attempt.started_ns:
        message.start_time.CopyFrom(from_ns(attempt.started_ns))
    if attempt.ended_ns:
        message.end_time.CopyFrom(from_ns(attempt.ended_ns))
    if attempt.exit_code >= 0:
        message.exit_code = attempt.exit_code
    if attempt.cpu_ns:
        message.cpu_time.FromNanoseconds(attempt.cpu_ns)
    if attempt.uncertainty_ns:
        message.clock_uncertainty.FromNanoseconds(attempt.uncertainty_ns)
    return message


def is_silent(attempt: Attempt) -> bool:
    """Whether an attempt has ended, and surely wrote nothing."""
    if not attempt.ended_ns or attempt.reason is Reason.EXECUTOR_LOST:
        return False
    return attempt.output_bytes == 0 or not attempt.started_ns


def work_message(execution: Execution, spec: JobSpec, plan: Plan) -> shard_pb2.Work:
    """What an executor is told of an execution's last attempt. plan: its customer's."""
    attempt = execution.attempts[-1]
    return shard_pb2.Work(
        attempt_id=f"{spell(execution.id)}-{attempt.number}",
        start_at_ns=max(execution.due_ms, execution.not_before_ms) * 1_000_000,
        due_ns=(execution.nominal_ms or execution.due_ms) * 1_000_000,
        execution=names.execution_name(execution.customer, execution.job_id, spell(execution.id)),
        customer=execution.customer,
        image=image_reference(spec.image, execution.customer, "image"),
        command=spec.command,
        args=spec.args,
        env=dict(spec.env),
        working_dir=spec.working_dir,
        payload=execution.payload,
        memory_bytes=spec.memory_bytes,
        cpu_millis=spec.cpu_millis,
        scratch_bytes=spec.scratch_bytes,
        pids=spec.pids,
        timeout_ms=spec.timeout_ms,
        grace_ms=spec.grace_ms,
        attempt_number=attempt.number,
        job_revision=execution.revision,
        network=spec.network,
        assign_ms=attempt.assign_ms,
        runtime=plan.runtime,
        capabilities=sorted(plan.capabilities),
    )
