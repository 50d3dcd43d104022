"""What may be done to a shard, and what came of it.

An Entry is what one Raft entry carries: commands that were committed together, with the one time at
which they happen. A command is refused whole or done whole; a refusal changes nothing. Commands are
stored in the log as msgpack arrays: fields may only be appended, with a default.
"""

from __future__ import annotations

import enum

import msgspec

from . import recurrence
from .model import (
    ApiKey,
    Attempt,
    Calendar,
    Customer,
    Execution,
    Job,
    JobSpec,
    Policy,
    Reason,
    Record,
    RegistryCredential,
    Schedule,
    Zone,
)
from .recurrence import Spec


class Command(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of every command."""


class NewJob(Record, frozen=True):
    """One job to create."""

    job_id: str
    uid: bytes
    display_name: str
    labels: tuple[tuple[str, str], ...]
    spec: JobSpec


class CreateJobs(Command, frozen=True):
    """Create all of these, or none."""

    customer: str
    jobs: list[NewJob]
    request: bytes


class UpdateJob(Command, frozen=True):
    """Replace what a job says; a new spec makes a new revision."""

    customer: str
    job_id: str
    version: int
    """The version that the change was made from; 0: any."""
    display_name: str
    labels: tuple[tuple[str, str], ...]
    spec: JobSpec


class DeleteJob(Command, frozen=True):
    """Delete a job that has no schedules."""

    customer: str
    job_id: str
    version: int


class NewSchedule(Record, frozen=True):
    """One schedule to create."""

    schedule_id: str
    uid: bytes
    labels: tuple[tuple[str, str], ...]
    spec: Spec
    policy: Policy
    payload: bytes


class CreateSchedules(Command, frozen=True):
    """Create all of these, or none."""

    customer: str
    job_id: str
    schedules: list[NewSchedule]
    request: bytes


class UpdateSchedule(Command, frozen=True):
    """Replace what a schedule says; armed fires that are not due yet are taken back."""

    customer: str
    job_id: str
    schedule_id: str
    version: int
    labels: tuple[tuple[str, str], ...]
    spec: Spec
    policy: Policy
    payload: bytes


class DeleteSchedules(Command, frozen=True):
    """Delete these schedules of one job; those that are not there are passed over if `lenient`."""

    customer: str
    job_id: str
    schedule_ids: list[str]
    version: int
    lenient: bool


class PauseSchedule(Command, frozen=True):
    """Stop a schedule from firing."""

    customer: str
    job_id: str
    schedule_id: str
    reason: str


class ResumeSchedule(Command, frozen=True):
    """Let a paused schedule fire again, from its next instant after now."""

    customer: str
    job_id: str
    schedule_id: str


class Placement(Record, frozen=True):
    """The executor that the leader chose for an attempt."""

    executor: str
    incarnation: str
    revision: int = 0
    """Of the job, that it was chosen for: another one waits for its own choice. 0: any."""


class NewExecution(Record, frozen=True):
    """One execution to create."""

    job_id: str
    origin: bytes
    payload: bytes
    placement: Placement | None
    active_key: bytes = b""
    """If an execution of the job with this key has not ended, that one is answered instead."""


class ExecuteJobs(Command, frozen=True):
    """Execute all of these now, or none."""

    customer: str
    executions: list[NewExecution]
    request: bytes


class DueFire(Record, frozen=True):
    """A schedule whose timer came up."""

    job_uid: bytes
    schedule_id: str
    due_ms: int
    """The timer's due time: if the schedule's is another by now, the fire is stale."""
    placement: Placement | None
    deferred: bool = False
    """The timer came up at its due time (TimerKind.DECIDE)."""


class Fire(Command, frozen=True):
    """Create the executions of timers that came up, and move their schedules on."""

    fires: list[DueFire]
    floor_ms: int
    """No timer is due before this: where a new leader begins to look."""


class Assign(Command, frozen=True):
    """Give waiting executions to executors."""

    assignments: list[tuple[bytes, bytes, Placement]]
    """(job uid, execution id, executor)"""


class TriggerSchedule(Command, frozen=True):
    """Fire a schedule now, besides its instants and whatever its policy and state."""

    customer: str
    job_id: str
    schedule_id: str
    origin: bytes
    placement: Placement | None
    request: bytes


class BackfillSchedule(Command, frozen=True):
    """Fire every instant of a past range, as executions of their own that are due now."""

    customer: str
    job_id: str
    schedule_id: str
    start_ms: int
    end_ms: int
    """The range: start included, end not."""
    origin: bytes
    """10 bytes, new: with an instant it makes the id of that instant's execution."""
    request: bytes


class Cancel(Command, frozen=True):
    """Ask executions to end; those that are not there (any more) are passed over."""

    executions: list[tuple[bytes, bytes]]
    """(job uid, execution id)"""
    reason: Reason = Reason.CANCELLED
    """CANCELLED, or TIMEOUT: the total one."""


class EndAttempts(Command, frozen=True):
    """Attempts ended. One that has ended already is passed over: the first report stands."""

    ends: list[tuple[bytes, bytes, Attempt]]
    """(job uid, execution id, the attempt as it ended)"""


class DropHistory(Command, frozen=True):
    """Forget the history of every period before one: see history.py."""

    before: int


class CreateApiKey(Command, frozen=True):
    """Create an API key, or give the one that the same request made a new secret."""

    customer: str
    key_id: bytes
    hash: bytes
    """Of its text: the text itself is never in a log."""
    display_name: str
    scopes: tuple[int, ...]
    expire_ms: int
    request: bytes


class RevokeApiKey(Command, frozen=True):
    """Forget an API key."""

    customer: str
    key_id: bytes


class CreateCalendar(Command, frozen=True):
    """Create a calendar."""

    customer: str
    calendar_id: str
    uid: bytes
    display_name: str
    labels: tuple[tuple[str, str], ...]
    content: recurrence.Calendar
    request: bytes


class UpdateCalendar(Command, frozen=True):
    """Replace what a calendar says, and change the first schedules that use it."""

    customer: str
    calendar_id: str
    version: int
    """The version that the change was made from; 0: any."""
    display_name: str
    labels: tuple[tuple[str, str], ...]
    content: recurrence.Calendar


class DeleteCalendar(Command, frozen=True):
    """Delete a calendar that no schedule uses."""

    customer: str
    calendar_id: str
    version: int


class PinSchedules(Command, frozen=True):
    """Change the next schedules that use a calendar to what it says now."""

    customer: str
    calendar_id: str


class UpdateCustomer(Command, frozen=True):
    """Change what is kept of a customer's history, and its plan."""

    customer: str
    version: int
    """The version that the change was made from; 0: any."""
    max_age_ms: int
    executions_per_job_max: int
    plan: str = ""
    """As in Customer. Older than PLAN_SINCE none is, and no customer has another plan yet."""


class PurgeExecutions(Command, frozen=True):
    """Forget ended executions that a customer's retention does not keep."""

    customer: str
    version: int
    """Of the customer, as whose retention says so: if it is another by now, nothing is done."""
    executions: list[tuple[bytes, bytes]]
    """(job uid, execution id)"""
    surplus: bool
    """More ended later than are kept of their jobs; otherwise they are too old."""


class LearnZones(Command, frozen=True):
    """Know time zones by their files from now on."""

    zones: tuple[tuple[str, bytes], ...]
    """(name, content of its file)"""
    version: str
    """The release of tzdata that the files are from."""
    upgrade: bool
    """Also those that are known by another file: then the schedules in them change."""


class PutRegistryCredential(Command, frozen=True):
    """Keep a customer's login to a registry, in the place of an earlier one."""

    customer: str
    host: str
    username: str
    key_id: str
    sealed: bytes
    """The secret itself is never in a log."""


class DeleteRegistryCredential(Command, frozen=True):
    """Forget a customer's login to a registry."""

    customer: str
    host: str


class PinZones(Command, frozen=True):
    """Change the next schedules to what their time zones mean now."""


AnyCommand = (
    CreateJobs
    | UpdateJob
    | DeleteJob
    | CreateSchedules
    | UpdateSchedule
    | DeleteSchedules
    | PauseSchedule
    | ResumeSchedule
    | ExecuteJobs
    | TriggerSchedule
    | BackfillSchedule
    | Fire
    | Assign
    | Cancel
    | EndAttempts
    | DropHistory
    | CreateApiKey
    | RevokeApiKey
    | CreateCalendar
    | UpdateCalendar
    | DeleteCalendar
    | PinSchedules
    | UpdateCustomer
    | PurgeExecutions
    | LearnZones
    | PinZones
    | PutRegistryCredential
    | DeleteRegistryCredential
)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What one Raft entry carries."""

    version: int
    """Of the commands' meaning: what every replica knew when it was proposed, at most
    ENTRY_VERSION."""
    time_ms: int
    """When it happens: the leader's clock, never before an earlier entry's."""
    commands: list[AnyCommand]


ENTRY_VERSION = 5
"""What this program knows. Raise it with every command that is new, and with every change of what
one means; an entry of an older version keeps its meaning for ever."""

OUTPUT_SINCE = 2
"""The first version in which an attempt's end tells how much it wrote."""

UNCERTAINTY_SINCE = 3
"""The first version in which an attempt's end tells how certain its executor was of the time."""

PLAN_SINCE = 4
"""The first version in which customers have plans."""

INSTANTS_SINCE = 5
"""The first version in which instants are decided throughout as fires.py says."""

OUTWEIGHED_SINCE = 5
"""The first version in which what is cancelled while it is being taken back ends as cancelled,
whichever of the two its executor heard of first."""

FINISHED_SINCE = 5
"""The first version in which what has no instant left may be changed in all but its recurrence."""

PLACEMENT_SINCE = 2
"""The first version with Reason.RETURNED, JobSpec.executor_labels and Placement.revision."""

DELETED_SINCE = 2
"""The first version in which the ledger of a deleted schedule is ended and kept."""

SINCE: dict[type, int] = {
    CreateApiKey: 2,
    RevokeApiKey: 2,
    CreateCalendar: 2,
    UpdateCalendar: 2,
    DeleteCalendar: 2,
    PinSchedules: 2,
    UpdateCustomer: 2,
    PurgeExecutions: 2,
    LearnZones: 2,
    PinZones: 2,
    PutRegistryCredential: 2,
    DeleteRegistryCredential: 2,
}
"""Commands that version 1 does not know: the version that they are new in. They are proposed only
once every replica knows it."""


class Why(enum.IntEnum):
    """Why a command was refused."""

    NOT_FOUND = 1
    ALREADY_EXISTS = 2
    VERSION_MISMATCH = 3
    HAS_SCHEDULES = 4
    NOT_PAUSED = 5
    NEVER_FIRES = 6
    TOO_MANY = 7
    TOO_MANY_KEYS = 8
    IN_USE = 9
    """By the schedules that `what` names."""
    LEAVES_NOTHING = 10
    """To fire for the schedules that `what` names."""
    TOO_MANY_CALENDARS = 11
    FORGOTTEN = 12
    TOO_MANY_CREDENTIALS = 13


class Refused(Exception):
    """A command was refused: nothing of it was done."""

    def __init__(self, why: Why, what: str, index: int = 0) -> None:
        """what: the thing's id; index: which item of the batch."""
        super().__init__(why.name, what)
        self.why = why
        self.what = what
        self.index = index


Outcome = (
    list[Job]
    | list[Zone]
    | list[Schedule]
    | list[Execution]
    | list[Customer]
    | list[ApiKey]
    | list[RegistryCredential]
    | list[Calendar]
    | list[int]
    | Refused
)
"""What came of a command: the records that it made changed or deleted (for DropHistory the period,
for PurgeExecutions how many), or why it was refused."""
