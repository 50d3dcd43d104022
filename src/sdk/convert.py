"""Between the public API's messages and the dataclasses of types.py. Conversion only."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from ..mesh.errors import invalid
from ..proto.tickmesh.v1 import (
    calendar_pb2,
    cluster_pb2,
    customer_pb2,
    execution_pb2,
    image_pb2,
    job_pb2,
    schedule_pb2,
    zone_pb2,
)
from . import names, types

E = TypeVar("E", bound=StrEnum)


def to_timestamp(time: datetime.datetime | None, field: str) -> Timestamp | None:
    """InvalidRequest naming the field for a datetime without a zone: it is no instant."""
    if time is None:
        return None
    if time.tzinfo is None:
        raise invalid(
            field, "has no time zone, so it names no instant: use datetime(..., tzinfo=UTC)"
        )
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def from_timestamp(message: Any, field: str) -> datetime.datetime | None:
    """The field of a message as an instant in UTC; None if it is not set."""
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=datetime.UTC)


def _instant(stamp: Timestamp) -> datetime.datetime:
    return stamp.ToDatetime(tzinfo=datetime.UTC)


def length(given: timedelta | float | None) -> timedelta | None:
    """A length of time as people give it: a timedelta, or seconds."""
    return given if given is None or isinstance(given, timedelta) else timedelta(seconds=given)


def to_duration(given: timedelta | None) -> Duration | None:
    """As the API says it."""
    if given is None:
        return None
    duration = Duration()
    duration.FromTimedelta(given)
    return duration


def from_duration(message: Any, field: str) -> timedelta | None:
    """The field of a message as a timedelta; None if it is not set."""
    if not message.HasField(field):
        return None
    duration: Duration = getattr(message, field)
    return duration.ToTimedelta()


def _to_enum(kind: Any, prefix: str, value: StrEnum | None) -> Any:
    return 0 if value is None else kind.Value(f"{prefix}_{value}")


def _from_enum(kind: Any, prefix: str, number: int, mine: type[E], unknown: E) -> E:
    """Our value for the API's; `unknown` for one that is newer than this client."""
    try:
        return mine(kind.Name(number).removeprefix(f"{prefix}_"))
    except ValueError:
        return unknown


def _optional_enum(kind: Any, prefix: str, number: int, mine: type[E]) -> E | None:
    try:
        return mine(kind.Name(number).removeprefix(f"{prefix}_"))
    except ValueError:
        return None


# Jobs ---------------------------------------------------------------------------------------------


def to_container(container: types.Container) -> job_pb2.Container:
    """As the API says it."""
    return job_pb2.Container(
        image=container.image,
        command=container.command,
        args=container.args,
        env=container.env,
        working_dir=container.working_dir,
        network=_to_enum(job_pb2.Network, "NETWORK", container.network),
    )


def to_job(job: types.Job) -> job_pb2.Job:
    """As the API says it; what the server sets is left out, but the name and etag."""
    retry = job.retry_policy
    resources = job.resources
    return job_pb2.Job(
        name=job.name,
        etag=job.etag,
        display_name=job.display_name,
        labels=job.labels,
        container=to_container(job.container),
        resources=job_pb2.Resources(
            memory_bytes=resources.memory_bytes,
            cpu_millis=resources.cpu_millis,
            scratch_bytes=resources.scratch_bytes,
            pids=resources.pids,
        ),
        timeout=to_duration(job.timeout),
        total_timeout=to_duration(job.total_timeout),
        grace_period=to_duration(job.grace_period),
        retry_policy=job_pb2.RetryPolicy(
            max_attempts=retry.max_attempts,
            backoff=to_duration(retry.backoff),
            backoff_max=to_duration(retry.backoff_max),
            exit_codes=retry.exit_codes,
        )
        if retry
        else None,
        at_most_once=job.at_most_once,
        executor_labels=job.executor_labels,
    )


def from_job(message: job_pb2.Job) -> types.Job:
    """From the API's message."""
    container, resources = message.container, message.resources
    retry = None
    if message.HasField("retry_policy"):
        retry = types.RetryPolicy(
            max_attempts=message.retry_policy.max_attempts,
            backoff=from_duration(message.retry_policy, "backoff"),
            backoff_max=from_duration(message.retry_policy, "backoff_max"),
            exit_codes=tuple(message.retry_policy.exit_codes),
        )
    return types.Job(
        name=message.name,
        uid=message.uid,
        display_name=message.display_name,
        labels=dict(sorted(message.labels.items())),
        container=types.Container(
            image=container.image,
            command=tuple(container.command),
            args=tuple(container.args),
            env=dict(sorted(container.env.items())),
            working_dir=container.working_dir,
            network=_optional_enum(job_pb2.Network, "NETWORK", container.network, types.Network),
        ),
        resources=types.Resources(
            memory_bytes=resources.memory_bytes,
            cpu_millis=resources.cpu_millis,
            scratch_bytes=resources.scratch_bytes,
            pids=resources.pids,
        ),
        timeout=from_duration(message, "timeout"),
        total_timeout=from_duration(message, "total_timeout"),
        grace_period=from_duration(message, "grace_period"),
        retry_policy=retry,
        at_most_once=message.at_most_once,
        executor_labels=dict(sorted(message.executor_labels.items())),
        revision=message.revision,
        create_time=from_timestamp(message, "create_time"),
        update_time=from_timestamp(message, "update_time"),
        etag=message.etag,
    )


# Schedules ----------------------------------------------------------------------------------------


def recurrence_of(
    *,
    cron: str | Sequence[str] = (),
    every: timedelta | float | types.Interval | None = None,
    at: datetime.datetime | Sequence[datetime.datetime] = (),
    time_zone: str = "",
    gap_policy: types.GapPolicy | None = None,
    fold_policy: types.FoldPolicy | None = None,
    start_time: datetime.datetime | None = None,
    end_time: datetime.datetime | None = None,
    jitter: timedelta | float | None = None,
    max_fires: int = 0,
    excluded_dates: Sequence[str | datetime.date] = (),
    excluded_windows: Sequence[types.TimeWindow] = (),
    excluded_calendars: Sequence[str] = (),
) -> types.Recurrence:
    """A recurrence from the short forms that people write: one cron, an interval, an instant."""
    if not isinstance(every, types.Interval):
        interval = length(every)
        every = None if interval is None else types.Interval(every=interval)
    return types.Recurrence(
        crons=(cron,) if isinstance(cron, str) else tuple(cron),
        intervals=() if every is None else (every,),
        times=(at,) if isinstance(at, datetime.datetime) else tuple(at),
        time_zone=time_zone,
        gap_policy=gap_policy,
        fold_policy=fold_policy,
        start_time=start_time,
        end_time=end_time,
        jitter=length(jitter),
        max_fires=max_fires,
        excluded_dates=tuple(str(date) for date in excluded_dates),
        excluded_windows=tuple(excluded_windows),
        excluded_calendars=tuple(excluded_calendars),
    )


def _to_windows(windows: Sequence[types.TimeWindow], path: str) -> list[schedule_pb2.TimeWindow]:
    return [
        schedule_pb2.TimeWindow(
            start_time=to_timestamp(window.start_time, f"{path}[{number}].start_time"),
            end_time=to_timestamp(window.end_time, f"{path}[{number}].end_time"),
        )
        for number, window in enumerate(windows)
    ]


def _from_windows(windows: Iterable[schedule_pb2.TimeWindow]) -> tuple[types.TimeWindow, ...]:
    return tuple(
        types.TimeWindow(start_time=_instant(each.start_time), end_time=_instant(each.end_time))
        for each in windows
    )


def to_recurrence(
    recurrence: types.Recurrence, path: str, customer: str
) -> schedule_pb2.Recurrence:
    """As the API says it. path: of the recurrence in the request, for errors; customer: whose
    calendars are meant by their ids."""
    times = [
        to_timestamp(time, f"{path}.times[{number}]")
        for number, time in enumerate(recurrence.times)
    ]
    return schedule_pb2.Recurrence(
        crons=recurrence.crons,
        intervals=[
            schedule_pb2.Interval(
                every=to_duration(interval.every), phase=to_duration(interval.phase)
            )
            for interval in recurrence.intervals
        ],
        times=[time for time in times if time is not None],
        time_zone=recurrence.time_zone,
        gap_policy=_to_enum(schedule_pb2.GapPolicy, "GAP_POLICY", recurrence.gap_policy),
        fold_policy=_to_enum(schedule_pb2.FoldPolicy, "FOLD_POLICY", recurrence.fold_policy),
        start_time=to_timestamp(recurrence.start_time, f"{path}.start_time"),
        end_time=to_timestamp(recurrence.end_time, f"{path}.end_time"),
        jitter=to_duration(recurrence.jitter),
        max_fires=recurrence.max_fires,
        excluded_dates=recurrence.excluded_dates,
        excluded_windows=_to_windows(recurrence.excluded_windows, f"{path}.excluded_windows"),
        excluded_calendars=[
            names.calendar(customer, each) for each in recurrence.excluded_calendars
        ],
    )


def from_recurrence(message: schedule_pb2.Recurrence) -> types.Recurrence:
    """From the API's message."""
    return types.Recurrence(
        crons=tuple(message.crons),
        intervals=tuple(
            types.Interval(every=each.every.ToTimedelta(), phase=each.phase.ToTimedelta())
            for each in message.intervals
        ),
        times=tuple(each.ToDatetime(tzinfo=datetime.UTC) for each in message.times),
        time_zone=message.time_zone,
        gap_policy=_optional_enum(
            schedule_pb2.GapPolicy, "GAP_POLICY", message.gap_policy, types.GapPolicy
        ),
        fold_policy=_optional_enum(
            schedule_pb2.FoldPolicy, "FOLD_POLICY", message.fold_policy, types.FoldPolicy
        ),
        start_time=from_timestamp(message, "start_time"),
        end_time=from_timestamp(message, "end_time"),
        jitter=from_duration(message, "jitter"),
        max_fires=message.max_fires,
        excluded_dates=tuple(message.excluded_dates),
        excluded_windows=_from_windows(message.excluded_windows),
        excluded_calendars=tuple(message.excluded_calendars),
    )


def to_calendar(calendar: types.Calendar) -> calendar_pb2.Calendar:
    """As the API says it; what the server sets is left out, but the name and etag."""
    return calendar_pb2.Calendar(
        name=calendar.name,
        etag=calendar.etag,
        display_name=calendar.display_name,
        labels=calendar.labels,
        dates=calendar.dates,
        windows=_to_windows(calendar.windows, "calendar.windows"),
        time_zone=calendar.time_zone,
    )


def from_calendar(message: calendar_pb2.Calendar) -> types.Calendar:
    """From the API's message."""
    return types.Calendar(
        name=message.name,
        uid=message.uid,
        display_name=message.display_name,
        labels=dict(sorted(message.labels.items())),
        dates=tuple(message.dates),
        windows=_from_windows(message.windows),
        time_zone=message.time_zone,
        create_time=from_timestamp(message, "create_time"),
        update_time=from_timestamp(message, "update_time"),
        etag=message.etag,
    )


def to_schedule(schedule: types.Schedule, customer: str) -> schedule_pb2.Schedule:
    """As the API says it; what the server sets is left out, but the name and etag. customer: whose
    calendars are meant by their ids."""
    return schedule_pb2.Schedule(
        name=schedule.name,
        etag=schedule.etag,
        labels=schedule.labels,
        recurrence=to_recurrence(schedule.recurrence, "schedule.recurrence", customer),
        payload=schedule.payload,
        overlap_policy=_to_enum(
            schedule_pb2.OverlapPolicy, "OVERLAP_POLICY", schedule.overlap_policy
        ),
        misfire_policy=_to_enum(
            schedule_pb2.MisfirePolicy, "MISFIRE_POLICY", schedule.misfire_policy
        ),
        start_deadline=to_duration(schedule.start_deadline),
        overlap_queue_max=schedule.overlap_queue_max,
        misfire_window=to_duration(schedule.misfire_window),
        misfire_max=schedule.misfire_max,
        pause_after_failures=schedule.pause_after_failures,
    )


def from_schedule(message: schedule_pb2.Schedule) -> types.Schedule:
    """From the API's message."""
    return types.Schedule(
        name=message.name,
        uid=message.uid,
        labels=dict(sorted(message.labels.items())),
        recurrence=from_recurrence(message.recurrence),
        payload=message.payload,
        overlap_policy=_optional_enum(
            schedule_pb2.OverlapPolicy,
            "OVERLAP_POLICY",
            message.overlap_policy,
            types.OverlapPolicy,
        ),
        misfire_policy=_optional_enum(
            schedule_pb2.MisfirePolicy,
            "MISFIRE_POLICY",
            message.misfire_policy,
            types.MisfirePolicy,
        ),
        start_deadline=from_duration(message, "start_deadline"),
        overlap_queue_max=message.overlap_queue_max,
        misfire_window=from_duration(message, "misfire_window"),
        misfire_max=message.misfire_max,
        pause_after_failures=message.pause_after_failures,
        state=_from_enum(
            schedule_pb2.ScheduleState,
            "SCHEDULE_STATE",
            message.state,
            types.ScheduleState,
            types.ScheduleState.UNKNOWN,
        ),
        pause_reason=message.pause_reason,
        next_fire_time=from_timestamp(message, "next_fire_time"),
        last_fire_time=from_timestamp(message, "last_fire_time"),
        fire_count=message.fire_count,
        missed_count=message.missed_count,
        create_time=from_timestamp(message, "create_time"),
        update_time=from_timestamp(message, "update_time"),
        etag=message.etag,
    )


def to_zone_files(files: Mapping[str, bytes]) -> list[zone_pb2.ZoneFile]:
    """As the API says it."""
    return [zone_pb2.ZoneFile(name=name, content=files[name]) for name in sorted(files)]


def from_moved(message: zone_pb2.MovedSchedule) -> types.MovedSchedule:
    """From the API's message."""
    return types.MovedSchedule(
        name=message.name,
        time_zone=message.time_zone,
        old_times=tuple(_instant(each) for each in message.old_times),
        new_times=tuple(_instant(each) for each in message.new_times),
        more=message.more,
    )


def from_fire(message: schedule_pb2.PreviewedFire, *, skipped: bool = False) -> types.Fire:
    """From the API's message."""
    return types.Fire(
        due_time=message.due_time.ToDatetime(tzinfo=datetime.UTC),
        local_time=message.local_time,
        note=message.note,
        skipped=skipped,
    )


def _outcome(number: int) -> types.FireOutcome:
    return _from_enum(
        schedule_pb2.FireOutcome,
        "FIRE_OUTCOME",
        number,
        types.FireOutcome,
        types.FireOutcome.UNKNOWN,
    )


def from_row(message: schedule_pb2.LedgerRow) -> types.LedgerRow:
    """From the API's message."""
    return types.LedgerRow(
        number=message.number,
        outcome=_outcome(message.outcome),
        decide_time=_instant(message.decide_time),
        first_time=_instant(message.first_time),
        last_time=_instant(message.last_time),
        count=message.count,
        execution=message.execution,
        definition=from_schedule(message.definition) if message.HasField("definition") else None,
        hash=message.hash,
        calendar=message.calendar,
    )


def from_statistics(message: schedule_pb2.ScheduleStatistics) -> types.ScheduleStatistics:
    """From the API's message."""
    return types.ScheduleStatistics(
        start_time=_instant(message.start_time),
        end_time=_instant(message.end_time),
        complete=message.complete,
        fired_count=message.fired_count,
        caught_up_count=message.caught_up_count,
        missed_count=message.missed_count,
        skipped={str(_outcome(each.outcome)): each.count for each in message.skipped},
        failed_count=message.failed_count,
        late_count=message.late_count,
        started_count=message.started_count,
        lateness_p50=from_duration(message, "lateness_p50"),
        lateness_p99=from_duration(message, "lateness_p99"),
    )


def from_verification(message: schedule_pb2.VerifyScheduleResponse) -> types.Verification:
    """From the API's message."""
    return types.Verification(
        instant_count=message.instant_count,
        row_count=message.row_count,
        problems=tuple(
            types.LedgerProblem(
                kind=_from_enum(
                    schedule_pb2.LedgerProblemKind,
                    "LEDGER_PROBLEM_KIND",
                    each.kind,
                    types.LedgerProblemKind,
                    types.LedgerProblemKind.UNKNOWN,
                ),
                time=_instant(each.time),
                text=each.text,
            )
            for each in message.problems
        ),
        complete=message.complete,
    )


# Executions ---------------------------------------------------------------------------------------


def to_states(states: Sequence[types.ExecutionState]) -> list[Any]:
    """As the API says it."""
    return [_to_enum(execution_pb2.ExecutionState, "EXECUTION_STATE", each) for each in states]


def _reason(number: int) -> types.ExecutionReason:
    if number == execution_pb2.EXECUTION_REASON_UNSPECIFIED:
        return types.ExecutionReason.NONE
    return _from_enum(
        execution_pb2.ExecutionReason,
        "EXECUTION_REASON",
        number,
        types.ExecutionReason,
        types.ExecutionReason.UNKNOWN,
    )


def from_execution(message: execution_pb2.Execution) -> types.Execution:
    """From the API's message."""
    return types.Execution(
        name=message.name,
        schedule=message.schedule,
        job_uid=message.job_uid,
        job_revision=message.job_revision,
        state=_from_enum(
            execution_pb2.ExecutionState,
            "EXECUTION_STATE",
            message.state,
            types.ExecutionState,
            types.ExecutionState.UNKNOWN,
        ),
        reason=_reason(message.reason),
        message=message.message,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        due_time=from_timestamp(message, "due_time"),
        create_time=from_timestamp(message, "create_time"),
        start_time=from_timestamp(message, "start_time"),
        end_time=from_timestamp(message, "end_time"),
        lateness=from_duration(message, "lateness"),
        missed_fires=message.missed_fires,
        schedule_time=from_timestamp(message, "schedule_time"),
        next_attempt_time=from_timestamp(message, "next_attempt_time"),
        pending_reason=message.pending_reason,
        active_key=message.active_key,
        attempts=tuple(_from_attempt(each) for each in message.attempts),
    )


def _from_attempt(message: execution_pb2.Attempt) -> types.Attempt:
    return types.Attempt(
        number=message.number,
        executor=message.executor,
        assign_time=from_timestamp(message, "assign_time"),
        prepare_time=from_timestamp(message, "prepare_time"),
        start_time=from_timestamp(message, "start_time"),
        end_time=from_timestamp(message, "end_time"),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal,
        reason=_reason(message.reason),
        message=message.message,
        peak_memory_bytes=message.peak_memory_bytes,
        cpu_time=from_duration(message, "cpu_time"),
        output_bytes=message.output_bytes if message.HasField("output_bytes") else None,
        dropped_output_bytes=message.dropped_output_bytes,
        clock_uncertainty=from_duration(message, "clock_uncertainty"),
    )


def from_log(message: execution_pb2.StreamLogsResponse) -> list[types.LogChunk]:
    """From the API's message: a chunk for each of its times, in their order."""
    is_error = message.stream == execution_pb2.LOG_STREAM_STDERR
    starts = [each.offset for each in message.times] or [0]
    return [
        types.LogChunk(
            data=message.data[start:end],
            stream=types.LogStream.STDERR if is_error else types.LogStream.STDOUT,
            truncated=message.truncated and not index,
            dropped_bytes=0 if index else message.dropped_bytes,
            time=from_timestamp(message.times[index], "time") if message.times else None,
        )
        for index, (start, end) in enumerate(itertools.pairwise([*starts, len(message.data)]))
    ]


# Images and the mesh ------------------------------------------------------------------------------


def from_image(message: image_pb2.Image) -> types.Image:
    """From the API's message."""
    return types.Image(name=message.name, digest=message.digest, size_bytes=message.size_bytes)


def to_retention(retention: types.Retention) -> customer_pb2.Retention:
    """As the API says it."""
    return customer_pb2.Retention(
        max_age=to_duration(retention.max_age),
        executions_per_job_max=retention.executions_per_job_max,
    )


def from_customer(message: customer_pb2.Customer) -> types.Customer:
    """From the API's message."""
    return types.Customer(
        name=message.name,
        retention=types.Retention(
            max_age=from_duration(message.retention, "max_age"),
            executions_per_job_max=message.retention.executions_per_job_max,
        ),
        history_max_age=message.history_max_age.ToTimedelta(),
        plan=message.plan,
        effective_plan=from_plan(message.effective_plan),
        etag=message.etag,
    )


def from_plan(message: customer_pb2.Plan) -> types.Plan:
    """From the API's message."""
    return types.Plan(
        name=message.name,
        weight=message.weight,
        runtime=message.runtime,
        capabilities=tuple(message.capabilities),
        memory_bytes_max=message.memory_bytes_max,
        cpu_millis_max=message.cpu_millis_max,
        timeout_max=message.timeout_max.ToTimedelta(),
        interval_min=message.interval_min.ToTimedelta(),
    )


def to_scopes(scopes: Sequence[types.ApiScope]) -> list[Any]:
    """As the API says them."""
    return [_to_enum(customer_pb2.ApiScope, "API_SCOPE", types.ApiScope(each)) for each in scopes]


def from_api_key(message: customer_pb2.ApiKey) -> types.ApiKey:
    """From the API's message."""
    unknown = types.ApiScope.UNKNOWN
    return types.ApiKey(
        name=message.name,
        display_name=message.display_name,
        scopes=tuple(
            _from_enum(customer_pb2.ApiScope, "API_SCOPE", each, types.ApiScope, unknown)
            for each in message.scopes
        ),
        expire_time=from_timestamp(message, "expire_time"),
        create_time=from_timestamp(message, "create_time"),
    )


def from_pull(message: image_pb2.PullImageResponse) -> types.PushedImage:
    """From the API's message."""
    return types.PushedImage(
        image=from_image(message.image),
        executors=tuple(message.executors),
        failures=tuple((each.executor, each.message) for each in message.failures),
    )


def from_registry_credential(message: image_pb2.RegistryCredential) -> types.RegistryCredential:
    """From the API's message."""
    return types.RegistryCredential(
        name=message.name,
        username=message.username,
        create_time=from_timestamp(message, "create_time"),
    )


def from_cluster(message: cluster_pb2.Cluster) -> types.Cluster:
    """From the API's message."""
    return types.Cluster(
        version=message.version,
        shards=tuple(from_shard(shard) for shard in message.shards),
        executors=tuple(from_executor(each) for each in message.executors),
    )


def from_backup(message: cluster_pb2.BackupShardResponse) -> types.Backup:
    """From the API's message."""
    return types.Backup(
        replica_id=message.replica_id,
        path=message.path,
        applied_index=message.applied_index,
        file_count=message.file_count,
        size_bytes=message.size_bytes,
    )


def from_executor(message: cluster_pb2.Executor) -> types.Executor:
    """From the API's message."""
    return types.Executor(
        executor_id=message.executor_id,
        address=message.address,
        slot_count=message.slot_count,
        used_slot_count=message.used_slot_count,
        runtime=message.runtime,
        draining=message.draining,
        memory_bytes=message.memory_bytes,
        used_memory_bytes=message.used_memory_bytes,
        cpu_millis=message.cpu_millis,
        used_cpu_millis=message.used_cpu_millis,
        labels=dict(sorted(message.labels.items())),
        egress=message.egress,
        runtimes=tuple(message.runtimes),
        capabilities=message.capabilities,
    )


def from_shard(message: cluster_pb2.Shard) -> types.Shard:
    """From the API's message."""
    return types.Shard(
        shard_id=message.shard_id,
        replicas=tuple(_from_replica(replica) for replica in message.replicas),
        members_number=message.members_number,
    )


def _from_replica(message: cluster_pb2.Replica) -> types.Replica:
    return types.Replica(
        replica_id=message.replica_id,
        address=message.address,
        reachable=message.reachable,
        leader=message.leader,
        term=message.term,
        applied_index=message.applied_index,
        commit_index=message.commit_index,
        schedule_count=message.schedule_count,
        active_execution_count=message.active_execution_count,
        resident_memory_bytes=message.resident_memory_bytes,
        learner=message.learner,
    )


def payload_bytes(payload: bytes | str) -> bytes:
    """Text is sent as UTF-8."""
    return payload.encode() if isinstance(payload, str) else payload
