"""What is stored under which key. Keys sort as listings need them.

    j customer 0 job                        Job
    v job_uid revision(4)                   JobSpec of an earlier revision, or of a deleted job
    s job_uid schedule                      Schedule
    c job_uid                               how many schedules the job has
    x job_uid newest(6) origin(10)          Execution, newest first
    y customer 0 newest(6) origin(10)       job_uid: a customer's executions, newest first
    a job_uid id(16)                        empty: executions that have not ended
    q customer 0 request                    executions that an ExecuteJobs made
    k job_uid active_key                    id of the execution with that key that has not ended
    l schedule_uid number(8)                Row of a schedule's ledger
    t due_ms(8) kind(1) job_uid id          empty: timers, soonest first
    m                                       Meta

Integers are big-endian; `newest` is the complement of the due time, so that newer sorts first.
"""

from __future__ import annotations

from ..core.ids import EXECUTION_ID_BYTES, UID_BYTES
from ..core.model import Timer, TimerKind

META = b"m"
TIMERS = b"t"
ACTIVE = b"a"
NEWEST = (1 << 48) - 1


def job(customer: str, job_id: str) -> bytes:
    """Of a Job; with an empty job_id the prefix of a customer's."""
    return b"j%b\0%b" % (customer.encode(), job_id.encode())


def spec(job_uid: bytes, revision: int) -> bytes:
    """Of an earlier revision."""
    return b"v" + job_uid + revision.to_bytes(4, "big")


def schedule(job_uid: bytes, schedule_id: str) -> bytes:
    """Of a Schedule; with an empty schedule_id the prefix of a job's."""
    return b"s" + job_uid + schedule_id.encode()


def schedule_count(job_uid: bytes) -> bytes:
    """Of a job's number of schedules."""
    return b"c" + job_uid


def newest_first(execution: bytes) -> bytes:
    """An execution's id with its time complemented; its own inverse."""
    return (NEWEST - int.from_bytes(execution[:6], "big")).to_bytes(6, "big") + execution[6:]


def execution(job_uid: bytes, execution: bytes) -> bytes:
    """Of an Execution."""
    return b"x" + job_uid + newest_first(execution)


def executions_of_job(job_uid: bytes) -> bytes:
    """The prefix of a job's executions."""
    return b"x" + job_uid


def customer_execution(customer: str, execution: bytes) -> bytes:
    """Of the entry in a customer's listing."""
    return executions_of_customer(customer) + newest_first(execution)


def executions_of_customer(customer: str) -> bytes:
    """The prefix of a customer's executions."""
    return b"y%b\0" % customer.encode()


def active(job_uid: bytes, execution: bytes) -> bytes:
    """Of an execution that has not ended."""
    return ACTIVE + job_uid + execution


def split_active(key: bytes) -> tuple[bytes, bytes]:
    """(job uid, execution id) of an `active` key."""
    return key[1 : 1 + UID_BYTES], key[1 + UID_BYTES : 1 + UID_BYTES + EXECUTION_ID_BYTES]


def request(customer: str, request: bytes) -> bytes:
    """Of what an ExecuteJobs made."""
    return b"q%b\0%b" % (customer.encode(), request)


def active_by_key(job_uid: bytes, key: bytes) -> bytes:
    """Of the execution with an active_key."""
    return b"k" + job_uid + key


def row(schedule_uid: bytes, number: int) -> bytes:
    """Of a row of a ledger."""
    return b"l" + schedule_uid + number.to_bytes(8, "big")


def timer(timer: Timer) -> bytes:
    """Of a timer."""
    return (
        TIMERS
        + timer.due_ms.to_bytes(8, "big")
        + timer.kind.to_bytes(1, "big")
        + timer.job_uid
        + timer.id
    )


def timers_from(due_ms: int) -> bytes:
    """Where timers due at or after an instant begin."""
    return TIMERS + due_ms.to_bytes(8, "big")


def split_timer(key: bytes) -> Timer:
    """The timer under a key."""
    return Timer(
        int.from_bytes(key[1:9], "big"),
        TimerKind(key[9]),
        key[10 : 10 + UID_BYTES],
        key[10 + UID_BYTES :],
    )


def after_prefix_of(prefix: bytes) -> bytes:
    """The first key beyond all that begin with a prefix."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1])
