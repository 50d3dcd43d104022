"""What a client gives and gets: frozen dataclasses, one for each message of the public API.

Field names, units and defaults are those of protos/tickmesh/v1. Instants are datetimes in UTC,
lengths of time are timedeltas. None stands for what is not set, or has not happened yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

NO_TIME = timedelta(0)


class ExecutionState(StrEnum):
    """Where an execution is in its life."""

    PENDING = "PENDING"
    """Committed; waits for an executor with room."""
    ASSIGNED = "ASSIGNED"
    """An executor prepares it, or holds it ready for its due time."""
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    """Its process exited with 0."""
    FAILED = "FAILED"
    """See its reason."""
    CANCELLED = "CANCELLED"
    REVOKED = "REVOKED"
    """Taken back before it started, as its schedule was changed, paused or deleted."""
    UNKNOWN = "UNKNOWN"
    """A state that this version of the client does not know."""

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self in FINAL_STATES


FINAL_STATES = frozenset(
    {
        ExecutionState.SUCCEEDED,
        ExecutionState.FAILED,
        ExecutionState.CANCELLED,
        ExecutionState.REVOKED,
    }
)


class ExecutionReason(StrEnum):
    """Why an execution or an attempt ended other than by success."""

    NONE = ""
    """It succeeded, or has not ended."""
    EXIT_CODE = "EXIT_CODE"
    SIGNAL = "SIGNAL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"
    IMAGE_NOT_FOUND = "IMAGE_NOT_FOUND"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    IMAGE_CORRUPT = "IMAGE_CORRUPT"
    REGISTRY_UNAVAILABLE = "REGISTRY_UNAVAILABLE"
    COMMAND_NOT_STARTED = "COMMAND_NOT_STARTED"
    EXECUTOR_LOST = "EXECUTOR_LOST"
    INFRASTRUCTURE = "INFRASTRUCTURE"
    """The platform failed; not the customer's doing."""
    REVOKED = "REVOKED"
    JOB_DELETED = "JOB_DELETED"
    REPLACED = "REPLACED"
    """A later fire of its schedule took its place."""
    RETURNED = "RETURNED"
    """Only of attempts: the executor gave it back before it started."""
    UNKNOWN = "UNKNOWN"
    """A reason that this version of the client does not know."""


class ScheduleState(StrEnum):
    """Whether a schedule fires."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    """It has no further instants."""
    UNKNOWN = "UNKNOWN"
    """A state that this version of the client does not know."""


class GapPolicy(StrEnum):
    """What happens to a local time that does not exist (clocks go forward)."""

    AFTER = "AFTER"
    """It fires once, at the moment after the gap."""
    SKIP = "SKIP"


class FoldPolicy(StrEnum):
    """What happens to a fixed local time that happens twice (clocks go back)."""

    FIRST = "FIRST"
    BOTH = "BOTH"


class Network(StrEnum):
    """What an execution reaches over IP."""

    NONE = "NONE"
    EGRESS = "EGRESS"
    """The internet's public addresses, and a resolver."""


class OverlapPolicy(StrEnum):
    """What happens at an instant when an earlier execution of the schedule has not ended."""

    ALLOW = "ALLOW"
    """Both run."""
    SKIP = "SKIP"
    """The new one is skipped."""
    QUEUE = "QUEUE"
    """The new one waits; beyond overlap_queue_max it is skipped."""
    REPLACE = "REPLACE"
    """The old one is cancelled."""


class MisfirePolicy(StrEnum):
    """What happens to instants that passed while nobody could fire them."""

    LATEST = "LATEST"
    """The latest of them fires, and stands for the others."""
    SKIP = "SKIP"
    """None fires."""
    ALL = "ALL"
    """Each fires, the latest misfire_max of them."""


class FireOutcome(StrEnum):
    """What became of an instant of a schedule."""

    DEFINED = "DEFINED"
    """Not an instant: the schedule was created, changed, paused, resumed, or has finished."""
    FIRED = "FIRED"
    CAUGHT_UP = "CAUGHT_UP"
    """Fired late, by the misfire policy."""
    MISSED = "MISSED"
    """Nobody fired it in time, and it is not made up for."""
    OVERLAP = "OVERLAP"
    DEADLINE = "DEADLINE"
    PAUSED = "PAUSED"
    CLOCK = "CLOCK"
    """Skipped by daylight saving."""
    EXCLUDED = "EXCLUDED"
    BRAKE = "BRAKE"
    """Skipped, and the schedule paused: it fired far more often than it may."""
    PURGED = "PURGED"
    """Not an instant: executions were forgotten, by what the customer keeps."""
    UNKNOWN = "UNKNOWN"
    """An outcome that this version of the client does not know."""


class LedgerProblemKind(StrEnum):
    """What can be wrong with a ledger."""

    TAMPERED = "TAMPERED"
    """A row is not what was written."""
    REMOVED = "REMOVED"
    """Rows are gone."""
    MISSING = "MISSING"
    """An instant has no row."""
    DOUBLED = "DOUBLED"
    """An instant has more than one row."""
    UNEXPECTED = "UNEXPECTED"
    """A row is about what was no instant of the schedule then."""
    NO_EXECUTION = "NO_EXECUTION"
    """A row says that an instant fired, and its execution is not there."""
    REVOKED = "REVOKED"
    """An execution was taken back though nothing changed the schedule."""
    UNKNOWN = "UNKNOWN"
    """A kind that this version of the client does not know."""


class LogStream(StrEnum):
    """Where output was written."""

    STDOUT = "STDOUT"
    STDERR = "STDERR"


def _part(name: str, position: int) -> str:
    parts = name.split("/")
    return parts[position] if len(parts) > position else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container image and how to run it."""

    image: str
    """As "registry.example:5000/team/report@sha256:..." or, imported, "report:1"."""
    command: tuple[str, ...] = ()
    """Replaces the image's entrypoint."""
    args: tuple[str, ...] = ()
    """Replaces the image's arguments."""
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""
    network: Network | None = None
    """None: NONE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Limits of one execution; 0 is the server's default."""

    memory_bytes: int = 0
    cpu_millis: int = 0
    """Thousandths of a core."""
    scratch_bytes: int = 0
    pids: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """What happens after an attempt that failed."""

    max_attempts: int = 1
    """The first included; at most 20."""
    backoff: timedelta | None = None
    """Before the second attempt; doubled before each further one. None: 1 s."""
    backoff_max: timedelta | None = None
    """The longest wait. None: 10 minutes."""
    exit_codes: tuple[int, ...] = ()
    """Only these are worth another attempt; empty: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to run, with which limits."""

    name: str = ""
    """customers/{customer}/jobs/{job}"""
    container: Container
    resources: Resources = Resources()
    timeout: timedelta | None = None
    """How long one attempt may run."""
    total_timeout: timedelta | None = None
    """From the due time, or from its creation if that is later, to the end of the last attempt."""
    grace_period: timedelta | None = None
    """Between SIGTERM and SIGKILL."""
    retry_policy: RetryPolicy | None = None
    at_most_once: bool = False
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    executor_labels: Mapping[str, str] = field(default_factory=dict)
    """Only executors with all of these labels run it; at most 8."""
    uid: str = ""
    revision: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None
    etag: str = ""

    @property
    def id(self) -> str:
        """The last part of the name."""
        return _part(self.name, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Fires at phase, phase + every, ... counted from 1970-01-01 UTC."""

    every: timedelta
    phase: timedelta = NO_TIME


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeWindow:
    """A stretch of time: its end is not in it."""

    start_time: datetime
    end_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """A set of instants: the union of crons, intervals and times, in one zone, less what is
    excluded."""

    crons: tuple[str, ...] = ()
    intervals: tuple[Interval, ...] = ()
    times: tuple[datetime, ...] = ()
    time_zone: str = ""
    """IANA, for crons; "" is UTC."""
    gap_policy: GapPolicy | None = None
    fold_policy: FoldPolicy | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    jitter: timedelta | None = None
    max_fires: int = 0
    """Finished after so many; 0: never."""
    excluded_dates: tuple[str, ...] = ()
    """In the time zone: "2026-12-25", or "12-25" for every year."""
    excluded_windows: tuple[TimeWindow, ...] = ()
    excluded_calendars: tuple[str, ...] = ()
    """Ids or resource names of the customer's calendars."""

    def __str__(self) -> str:
        """For people, in a few words."""
        parts = [f"cron {cron}" for cron in self.crons]
        parts += [f"every {interval.every}" for interval in self.intervals]
        parts += [f"at {time.isoformat()}" for time in self.times]
        zone = f" ({self.time_zone})" if self.time_zone else ""
        return ", ".join(parts) + zone


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a job fires."""

    name: str = ""
    """customers/{customer}/jobs/{job}/schedules/{schedule}"""
    recurrence: Recurrence
    payload: bytes = b""
    overlap_policy: OverlapPolicy | None = None
    """None is ALLOW."""
    overlap_queue_max: int = 0
    """Instants that may wait under QUEUE; 0 is the server's default, 1."""
    misfire_policy: MisfirePolicy | None = None
    """None is LATEST."""
    misfire_window: timedelta | None = None
    """Instants older than this are not caught up."""
    misfire_max: int = 0
    """Instants caught up under ALL; 0 is the server's default, 100."""
    start_deadline: timedelta | None = None
    """A fire that is decided later than this after its due time is skipped."""
    pause_after_failures: int = 0
    """Paused after so many failed executions in a row; 0: never."""
    labels: Mapping[str, str] = field(default_factory=dict)
    uid: str = ""
    state: ScheduleState = ScheduleState.UNKNOWN
    pause_reason: str = ""
    next_fire_time: datetime | None = None
    last_fire_time: datetime | None = None
    fire_count: int = 0
    missed_count: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None
    etag: str = ""

    @property
    def id(self) -> str:
        """The last part of the name."""
        return _part(self.name, 5)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return _part(self.name, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """Dates and windows on which schedules that use it do not fire."""

    name: str = ""
    """customers/{customer}/calendars/{calendar}"""
    dates: tuple[str, ...] = ()
    """Local: "2026-12-25", or "12-25" for every year."""
    windows: tuple[TimeWindow, ...] = ()
    time_zone: str = ""
    """IANA, for the dates; "" is that of each schedule."""
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    uid: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None
    etag: str = ""

    @property
    def id(self) -> str:
        """The last part of the name."""
        return _part(self.name, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedSchedule:
    """A schedule whose fires another release of tzdata would move."""

    name: str
    time_zone: str
    old_times: tuple[datetime, ...] = ()
    """Fires that it would not have any more; at most 20 in both lists."""
    new_times: tuple[datetime, ...] = ()
    """Fires that it would have instead."""
    more: bool = False
    """There may be more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZonesUpgrade:
    """What taking over another release of tzdata has changed."""

    changed_zones: tuple[str, ...]
    changed_schedule_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fire:
    """One instant of a recurrence."""

    due_time: datetime
    local_time: str
    """In the recurrence's zone, as "2027-03-29T03:00:00+02:00"."""
    note: str = ""
    """What daylight saving or an exclusion did to it; empty if nothing."""
    skipped: bool = False
    """It does not fire: the note says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """Executions that were made for the instants of a past range."""

    id: str
    """For cancel_backfill()."""
    fire_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """What became of an instant of a schedule, or of a run of them with the same outcome."""

    number: int
    """From 0, in the order of decision."""
    outcome: FireOutcome
    decide_time: datetime
    first_time: datetime
    last_time: datetime
    count: int
    """Instants of the run; 0: 1,000 or more."""
    execution: str = ""
    """A resource name, for FIRED and CAUGHT_UP."""
    definition: Schedule | None = None
    """What the schedule was from then on, for DEFINED."""
    hash: str = ""
    """Hexadecimal; chains the rows."""
    calendar: str = ""
    """The resource name of the calendar that excludes it, for EXCLUDED by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleStatistics:
    """How a schedule did in the last day."""

    start_time: datetime
    end_time: datetime
    complete: bool
    """False: there were more than 10,000 rows, and these are the latest."""
    fired_count: int = 0
    caught_up_count: int = 0
    """Of these, those that were caught up late."""
    missed_count: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    """By outcome, as {"OVERLAP": 3}."""
    failed_count: int = 0
    late_count: int = 0
    """Started more than 100 ms after their due time."""
    started_count: int = 0
    lateness_p50: timedelta | None = None
    lateness_p99: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerProblem:
    """One thing that is wrong with a ledger."""

    kind: LedgerProblemKind
    time: datetime
    """The instant, or that of the row."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Whether a schedule's ledger tells the truth: it does if there are no problems."""

    instant_count: int
    row_count: int
    problems: tuple[LedgerProblem, ...] = ()
    complete: bool = True
    """Whether everything asked for was looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at an execution."""

    number: int
    executor: str = ""
    assign_time: datetime | None = None
    prepare_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    exit_code: int | None = None
    signal: int = 0
    reason: ExecutionReason = ExecutionReason.NONE
    message: str = ""
    peak_memory_bytes: int = 0
    """Most memory in use at one time; what is in its /tmp counts. 0 if it was not measured."""
    cpu_time: timedelta | None = None
    output_bytes: int | None = None
    """Written to stdout and stderr, kept or not. None while it runs, or if nobody knows."""
    dropped_output_bytes: int = 0
    """Of output_bytes, those over the limit: of each stream the first and the last are kept."""
    clock_uncertainty: timedelta | None = None
    """start_time is true to within this. None if it has not started, or nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One run of a job."""

    name: str
    """customers/{customer}/jobs/{job}/executions/{execution}"""
    schedule: str = ""
    """The name of the schedule that fired it; "" if a call executed it."""
    job_uid: str = ""
    job_revision: int = 0
    state: ExecutionState = ExecutionState.UNKNOWN
    reason: ExecutionReason = ExecutionReason.NONE
    message: str = ""
    exit_code: int | None = None
    due_time: datetime | None = None
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    lateness: timedelta | None = None
    """From its due time to its process's first instruction."""
    missed_fires: int = 0
    schedule_time: datetime | None = None
    """The instant of its schedule that it stands for, without jitter."""
    next_attempt_time: datetime | None = None
    """While it waits for a retry."""
    pending_reason: str = ""
    """What it waits for while it is PENDING, for people."""
    active_key: str = ""
    attempts: tuple[Attempt, ...] = ()

    @property
    def id(self) -> str:
        """The last part of the name."""
        return _part(self.name, 5)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return _part(self.name, 3)

    @property
    def lateness_ms(self) -> float | None:
        """lateness in milliseconds."""
        return None if self.lateness is None else self.lateness / timedelta(milliseconds=1)

    @property
    def duration(self) -> timedelta | None:
        """How long its process ran, once it has ended."""
        if self.start_time is None or self.end_time is None:
            return None
        return self.end_time - self.start_time


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChunk:
    """Some output of an execution, read from it at one time."""

    data: bytes
    stream: LogStream
    truncated: bool = False
    """Whether output was dropped just before this, as it was over the limit."""
    dropped_bytes: int = 0
    """How much."""
    time: datetime | None = None
    """When, to the millisecond, by the executor's clock. None if it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A pushed or imported image."""

    name: str
    """customers/{customer}/images/{image}"""
    digest: str
    size_bytes: int

    @property
    def id(self) -> str:
        """What Container.image says, as "report:1"."""
        return _part(self.name, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedImage:
    """An image that was just pushed, and who has it."""

    image: Image
    executors: tuple[str, ...] = ()
    """Ids of those that hold it now; others pull it when they need it."""
    failures: tuple[tuple[str, str], ...] = ()
    """Ids of executors that could not pull it now, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryCredential:
    """A login to a registry. Its secret cannot be read."""

    name: str
    """customers/{customer}/registryCredentials/{host}"""
    username: str
    create_time: datetime | None = None

    @property
    def host(self) -> str:
        """As image references have it."""
        return _part(self.name, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One member of a shard."""

    replica_id: str
    address: str
    reachable: bool
    leader: bool
    term: int
    applied_index: int
    commit_index: int
    schedule_count: int
    active_execution_count: int
    resident_memory_bytes: int
    learner: bool
    """It was added and has not caught up: it is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A Raft group that owns some customers."""

    shard_id: str
    replicas: tuple[Replica, ...]
    members_number: int
    """One more with every change of the list of replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A copy of a shard that was made."""

    replica_id: str
    """Of who made it: a directory is on its host."""
    path: str
    """The directory there, or "s3://bucket/prefix/directory"."""
    applied_index: int
    """Of the last entry of the log that it holds."""
    file_count: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """A worker host."""

    executor_id: str
    address: str
    slot_count: int
    used_slot_count: int
    runtime: str
    draining: bool = False
    """It is given nothing new; once used_slot_count is 0 it has drained."""
    memory_bytes: int = 0
    """What it gives to executions; 0: it does not count it."""
    used_memory_bytes: int = 0
    cpu_millis: int = 0
    """Thousandths of a core that it gives to executions; 0: it does not count it."""
    used_cpu_millis: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    """For jobs that select executors by them."""
    egress: bool = False
    runtimes: tuple[str, ...] = ()
    """Those that plans may name."""
    capabilities: bool = False
    """It grants those that plans have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The mesh at one moment."""

    version: str
    shards: tuple[Shard, ...]
    executors: tuple[Executor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept of ended executions; over either limit one is forgotten."""

    max_age: timedelta | None = None
    """For so long after their end; None: for as long as the mesh keeps anything."""
    executions_per_job_max: int = 0
    """So many of each job, those that were due last; 0: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What customers on it may use."""

    name: str
    weight: int
    """Turns that each of them gets where others get one, while executions wait."""
    runtime: str
    """containerd's name of what runs their executions; "": whatever executors have."""
    capabilities: tuple[str, ...]
    """What processes may do beside what any process may."""
    memory_bytes_max: int
    """Of one execution."""
    cpu_millis_max: int
    """Thousandths of a core, of one execution."""
    timeout_max: timedelta
    """Of one attempt."""
    interval_min: timedelta
    """A schedule fires once in so long at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """A customer."""

    name: str
    """customers/{customer}"""
    retention: Retention
    history_max_age: timedelta
    """When the mesh forgets what is left, by the day."""
    plan: str
    """The name of its plan."""
    effective_plan: Plan
    """What holds: "standard" where the mesh has no plan of that name any more."""
    etag: str = ""

    @property
    def id(self) -> str:
        """The last part of the name."""
        return _part(self.name, 1)


class ApiScope(StrEnum):
    """What an API key may do. Each stands for itself, except that ADMIN has the others too."""

    READ = "READ"
    """Get, list, preview, watch and read output."""
    EXECUTE = "EXECUTE"
    """Execute jobs, trigger and backfill schedules, cancel."""
    ADMIN = "ADMIN"
    """Everything, also creating and deleting, images and keys."""
    UNKNOWN = "UNKNOWN"
    """A scope that this version of the client does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key, without its secret."""

    name: str
    """customers/{customer}/keys/{key}"""
    display_name: str
    scopes: tuple[ApiScope, ...]
    expire_time: datetime | None
    """From when on it is refused; None: never."""
    create_time: datetime | None

    @property
    def id(self) -> str:
        """The last part of the name."""
        return _part(self.name, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewApiKey:
    """A key that was just created."""

    key: ApiKey
    text: str = field(repr=False)
    """What is shown with calls: nobody can tell it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """One job of a batch. Its id; "" for one made by the server."""

    job: Job
    job_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSchedule:
    """One schedule of a batch. Its id; "" for one made by the server."""

    schedule: Schedule
    schedule_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewExecution:
    """One execution of a batch: the job's id or name."""

    job: str
    payload: bytes = b""
    active_key: str = ""
    """If an execution of the job with this key has not ended, that one is answered instead."""
