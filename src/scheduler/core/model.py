"""What is stored: jobs, schedules, executions. Frozen; a change makes a new one.

Records are stored and replicated as msgpack arrays in the order of the fields here, so fields may
only be appended, with a default (docs/decisions/0002-records.md). Times are integers since 1970 UTC
and say their unit.
"""

from __future__ import annotations

import enum

import msgspec

from . import recurrence
from .recurrence import Spec


class Overlap(enum.IntEnum):
    """What happens at an instant when an earlier execution has not ended. Numbers as in the API."""

    ALLOW = 1
    """Both run."""
    SKIP = 2
    """The new one is skipped."""
    QUEUE = 3
    """The new one waits for the end of those before it; beyond `queue_max` it is skipped."""
    REPLACE = 4
    """The running one is cancelled, and the new one starts when it has ended."""


class Misfire(enum.IntEnum):
    """What happens to instants that nobody fired in time. Numbers as in the public API."""

    LATEST = 1
    """The latest of them fires, and stands for the others."""
    SKIP = 2
    """None fires."""
    ALL = 3
    """Each fires."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Base of everything stored."""


class ScheduleState(enum.IntEnum):
    """Whether a schedule fires. Numbers as in the public API."""

    ACTIVE = 1
    PAUSED = 2
    FINISHED = 3


class ExecutionState(enum.IntEnum):
    """Where an execution is in its life. Numbers as in the public API.

    RUNNING is never stored: it is a soft fact that the executor reports.
    """

    PENDING = 1
    ASSIGNED = 2
    RUNNING = 3
    SUCCEEDED = 4
    FAILED = 5
    CANCELLED = 6
    REVOKED = 7


class Reason(enum.IntEnum):
    """Why an execution ended other than by success. Numbers as in the public API."""

    NONE = 0
    EXIT_CODE = 1
    SIGNAL = 2
    OUT_OF_MEMORY = 3
    TIMEOUT = 4
    CANCELLED = 5
    IMAGE_NOT_FOUND = 6
    IMAGE_TOO_LARGE = 7
    IMAGE_CORRUPT = 8
    REGISTRY_UNAVAILABLE = 9
    COMMAND_NOT_STARTED = 10
    EXECUTOR_LOST = 11
    INFRASTRUCTURE = 12
    REVOKED = 13
    JOB_DELETED = 14
    REPLACED = 15
    """A later fire took its place (Overlap.REPLACE)."""
    RETURNED = 16
    """Only of attempts: the executor gave it back before it started."""


ACTIVE_STATES = frozenset({ExecutionState.PENDING, ExecutionState.ASSIGNED, ExecutionState.RUNNING})


class Policy(Record, frozen=True):
    """What a schedule does when things are not as planned."""

    overlap: Overlap = Overlap.ALLOW
    queue_max: int = 1
    """Instants that wait under Overlap.QUEUE."""
    misfire: Misfire = Misfire.LATEST
    misfire_window_ms: int = 0
    """Instants older than this are never caught up; 0: no such bound."""
    misfire_max: int = 100
    """Instants that are caught up at most under Misfire.ALL: the latest ones."""
    start_deadline_ms: int = 0
    """A fire later than this is skipped; 0: none is too late."""
    pause_after_failures: int = 0
    """The schedule is paused after so many failures in a row; 0: never."""


class Retry(Record, frozen=True):
    """When an attempt that failed is followed by another."""

    max_attempts: int = 1
    backoff_ms: int = 1_000
    """Before the second attempt; doubled before each further one."""
    backoff_max_ms: int = 600_000
    exit_codes: tuple[int, ...] = ()
    """Only these exit codes are worth another try; empty: all."""


class Network(enum.IntEnum):
    """What an execution reaches. Numbers as in the public API."""

    NONE = 1
    EGRESS = 2


class JobSpec(Record, frozen=True):
    """What a revision of a job runs. Every limit is set: defaults were applied at the door."""

    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    """Sorted by name."""
    working_dir: str
    memory_bytes: int
    cpu_millis: int
    scratch_bytes: int
    pids: int
    timeout_ms: int
    grace_ms: int
    at_most_once: bool
    retry: Retry = Retry()
    total_timeout_ms: int = 0
    """To the end of the last attempt, see executions.total_timeout_over_ms; 0: no bound but the
    attempts' own."""
    network: Network = Network.NONE
    executor_labels: tuple[tuple[str, str], ...] = ()
    """Sorted. Only executors with all of these run it."""


class Job(Record, frozen=True):
    """A job and its current revision."""

    customer: str
    job_id: str
    uid: bytes
    display_name: str
    labels: tuple[tuple[str, str], ...]
    spec: JobSpec
    revision: int
    create_ms: int
    update_ms: int
    version: int
    """The etag: one more with every change."""
    request: bytes
    """Hash of the request_id that created it; empty if there was none."""


class Schedule(Record, frozen=True):
    """A schedule: its definition, and where it stands."""

    customer: str
    job_id: str
    schedule_id: str
    job_uid: bytes
    uid: bytes
    labels: tuple[tuple[str, str], ...]
    spec: Spec
    policy: Policy
    payload: bytes
    state: ScheduleState
    pause_reason: str
    next_ms: int
    """The nominal instant that fires next; 0 if there is none."""
    due_ms: int
    """next_ms with its jitter: the key of its timer."""
    last_ms: int
    """The nominal instant that fired last; 0 before the first."""
    fire_count: int
    missed_count: int
    create_ms: int
    update_ms: int
    version: int
    request: bytes
    deferred: bool = False
    """What becomes of the next instant is decided when it is due: an execution has not ended."""
    running: tuple[bytes, ...] = ()
    """Executions that have not ended, unless Overlap.ALLOW."""
    waiting: tuple[int, ...] = ()
    """Nominal instants that wait for those to end, oldest first."""
    failures: int = 0
    """In a row, if the policy counts them."""
    paused_ms: int = 0
    """Since when it is paused."""
    brake_minute: int = 0
    """The minute (since 1970) that `brake_count` is of."""
    brake_count: int = 0
    """Fires in that minute."""
    ledger_count: int = 0
    """Rows in its ledger."""
    ledger_hash: bytes = b""
    """Of the last row: see ledger.py."""
    purged_ms: int = 0
    """When executions of it were last forgotten before their time: see history.purge."""
    told_ms: int = 0
    """Up to which instant its ledger tells what is left out; 0: up to the next one. Since version
    5."""


class Calendar(Record, frozen=True):
    """A customer's named set of exclusions. Schedules are pinned to its content: see pins.py."""

    customer: str
    calendar_id: str
    uid: bytes
    display_name: str
    labels: tuple[tuple[str, str], ...]
    content: recurrence.Calendar
    digest: bytes
    """Of the content: what schedules are pinned to."""
    create_ms: int
    update_ms: int
    version: int
    """The etag: one more with every change."""
    request: bytes
    """Hash of the request_id that created it; empty if there was none."""


class Zone(Record, frozen=True):
    """A time zone that schedules use, as the shard knows it: see pins.py."""

    name: str
    digest: bytes
    """Of the zone file."""
    version: str
    """The release of tzdata that the file came from, as "2026a"."""


class Attempt(Record, frozen=True):
    """One try at an execution."""

    number: int
    executor: str
    incarnation: str
    """The start of that executor's process that it was given to: another one never had it."""
    assign_ms: int
    prepared_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    exit_code: int = -1
    """-1 if it did not exit by itself or by a signal."""
    signal: int = 0
    reason: Reason = Reason.NONE
    message: str = ""
    peak_memory_bytes: int = 0
    cpu_ns: int = 0
    output_bytes: int = -1
    """Written to stdout and stderr, kept or not; -1 if nobody knows. Since version 2."""
    dropped_bytes: int = 0
    """Of these, what was not kept."""
    uncertainty_ns: int = 0
    """The times are true to within this; 0 if nobody knows. Since version 3."""


class Execution(Record, frozen=True):
    """One run of a job."""

    customer: str
    job_id: str
    job_uid: bytes
    id: bytes
    """See ids.execution_id."""
    revision: int
    schedule_id: str
    """Empty if it was executed by a call."""
    state: ExecutionState
    due_ms: int
    create_ms: int
    payload: bytes = b""
    nominal_ms: int = 0
    """The schedule's instant, without jitter; 0 if it was executed by a call."""
    missed: int = 0
    """How many earlier instants of its schedule it stands for."""
    watched: bool = False
    """Its schedule's policy wants to know of its end."""
    not_before_ms: int = 0
    """When its next attempt is due, if that is later than the execution: a retry."""
    stop: Reason = Reason.NONE
    """Once somebody asked it to end: CANCELLED, TIMEOUT (the total one), REPLACED or REVOKED."""
    attempts: tuple[Attempt, ...] = ()
    reason: Reason = Reason.NONE
    message: str = ""
    end_ms: int = 0
    active_key: bytes = b""
    """See commands.NewExecution."""
    again: bool = False
    """Its instant came up anew while its revocation was under way: once that is confirmed, it
    waits for an executor again."""


class Customer(Record, frozen=True):
    """What a customer has beside its jobs. One without any of it has no record."""

    customer: str
    create_ms: int
    """When the record was first needed."""
    key_count: int = 0
    max_age_ms: int = 0
    """Executions are kept for so long after their end; 0: as long as all history."""
    executions_per_job_max: int = 0
    """Ended executions that are kept of each job, the latest; 0: all."""
    version: int = 1
    """Of the two fields before and the plan: one more with every change."""
    credential_count: int = 0
    """Logins to registries."""
    plan: str = ""
    """The name of its plan; empty: the standard one. What is in it, no replica can know from here:
    see scheduler/plans.py."""


class ApiKey(Record, frozen=True):
    """A key that acts for a customer. Its secret is nowhere, only a hash."""

    customer: str
    id: bytes
    """10 bytes."""
    hash: bytes
    """SHA-256 of its text."""
    display_name: str
    scopes: tuple[int, ...]
    """As in the public API, sorted."""
    create_ms: int
    expire_ms: int
    """From when on it is refused; 0: never."""
    request: bytes
    """Hash of the request_id that created it; empty if there was none."""


class RegistryCredential(Record, frozen=True):
    """A customer's login to a registry. Its secret is sealed (scheduler/secrets.py)."""

    customer: str
    host: str
    """With its port, if it has one."""
    username: str
    key_id: str
    """Of the key that its secret is sealed with."""
    sealed: bytes
    create_ms: int


class TimerKind(enum.IntEnum):
    """What a timer means when it is due. Numbers are stored."""

    FIRE = 1
    DECIDE = 2
    """As FIRE, but acted on when it is due and not ahead: see Schedule.deferred."""


class Timer(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One entry of the time-ordered index."""

    due_ms: int
    kind: TimerKind
    job_uid: bytes
    id: bytes
    """The schedule's id."""
