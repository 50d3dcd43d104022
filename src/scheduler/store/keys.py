"""What is stored under which key. Keys sort as listings need them.

    j customer 0 job                        Job
    v job_uid revision(4)                   JobSpec of an earlier revision, or of a deleted job
    s job_uid schedule                      Schedule
    c job_uid                               how many schedules the job has
    a job_uid id(16)                        empty: executions that have not ended
    nc customer 0 calendar                  Calendar
    nn customer                             how many calendars the customer has
    nu customer 0 calendar 0 job_uid schedule   empty: schedules that use a calendar
    np customer 0 calendar                  up to which of those follow the calendar's last change
    zn name                                 Zone: a time zone that schedules use
    zc digest                               its file
    zp                                      up to which schedule all follow the zones' last upgrade
    k job_uid active_key                    id of the execution with that key that has not ended
    t due_ms(8) kind(1) job_uid id          empty: timers, soonest first
    u customer                              Customer
    p customer 0 key(10)                    ApiKey
    g customer 0 host                       RegistryCredential
    m                                       Meta

and history, which begins with `h period(4)` and is dropped by the period, a day:

    x job_uid newest(6) origin(10)          Execution, newest first
    y customer 0 newest(6) origin(10)       job_uid: a customer's executions, newest first
    l schedule_uid number(8)                Row of a schedule's ledger
    w index(8) number(2)                    job_uid id(16): an execution that an entry changed
    q customer 0 request                    executions that a request made
    r digest                                what a calendar said until an entry changed it
    d customer 0 job 0 schedule 0 uid       Schedule that an entry deleted, for its ledger

Integers are big-endian; `newest` is the complement of the due time, so that newer sorts first. An
execution is in the period of its due time; the others are in that of the entry that wrote them.
"""

from __future__ import annotations

from functools import lru_cache

from ..core.history import period
from ..core.ids import EXECUTION_ID_BYTES, UID_BYTES
from ..core.model import Timer, TimerKind

META = b"m"
TIMERS = b"t"
ACTIVE = b"a"
PENDING = b"np"
ZONES = b"zn"
ZONE_FILES = b"zc"
ZONES_PENDING = b"zp"
SCHEDULES = b"s"
HISTORY = b"h"
PERIOD_BYTES = 4
NEWEST = (1 << 48) - 1


@lru_cache(maxsize=64)
def history(period: int) -> bytes:
    """The prefix of a period's history."""
    return HISTORY + period.to_bytes(PERIOD_BYTES, "big")


def period_of_key(key: bytes) -> int:
    """The period of a history key."""
    return int.from_bytes(key[1 : 1 + PERIOD_BYTES], "big")


def job(customer: str, job_id: str) -> bytes:
    """Of a Job; with an empty job_id the prefix of a customer's."""
    return b"j%b\0%b" % (customer.encode(), job_id.encode())


def spec(job_uid: bytes, revision: int) -> bytes:
    """Of an earlier revision."""
    return b"v" + job_uid + revision.to_bytes(4, "big")


def schedule(job_uid: bytes, schedule_id: str) -> bytes:
    """Of a Schedule; with an empty schedule_id the prefix of a job's."""
    return SCHEDULES + job_uid + schedule_id.encode()


def schedule_count(job_uid: bytes) -> bytes:
    """Of a job's number of schedules."""
    return b"c" + job_uid


def zone(name: str) -> bytes:
    """Of a Zone."""
    return ZONES + name.encode()


def zone_file(digest: bytes) -> bytes:
    """Of a zone's file."""
    return ZONE_FILES + digest


def calendar(customer: str, calendar_id: str) -> bytes:
    """Of a Calendar; with an empty calendar_id the prefix of a customer's."""
    return b"nc%b\0%b" % (customer.encode(), calendar_id.encode())


def calendar_count(customer: str) -> bytes:
    """Of a customer's number of calendars."""
    return b"nn" + customer.encode()


def calendar_user(customer: str, calendar_id: str, user: bytes) -> bytes:
    """Of a schedule that uses a calendar: its job's uid and its id; empty: the prefix of all."""
    return b"nu%b\0%b\0%b" % (customer.encode(), calendar_id.encode(), user)


def calendar_pending(customer: str, calendar_id: str) -> bytes:
    """Of how far the users of a changed calendar follow it."""
    return PENDING + b"%b\0%b" % (customer.encode(), calendar_id.encode())


def split_calendar_pending(key: bytes) -> tuple[str, str]:
    """(customer, calendar id) of a `calendar_pending` key."""
    customer, _, calendar_id = key[len(PENDING) :].decode().partition("\0")
    return customer, calendar_id


def deleted_schedule(
    period: int, customer: str, job_id: str, schedule_id: str, uid: bytes
) -> bytes:
    """Of a deleted schedule; with an empty uid the prefix of all of its name."""
    name = b"%b\0%b\0%b\0" % (customer.encode(), job_id.encode(), schedule_id.encode())
    return history(period) + b"d" + name + uid


def calendar_content(period: int, digest: bytes) -> bytes:
    """Of what a calendar said."""
    return history(period) + b"r" + digest


def newest_first(execution: bytes) -> bytes:
    """An execution's id with its time complemented; its own inverse."""
    return (NEWEST - int.from_bytes(execution[:6], "big")).to_bytes(6, "big") + execution[6:]


def _period_of(execution: bytes) -> int:
    """The period of an execution, by its id, which begins with its due time."""
    return period(int.from_bytes(execution[:6], "big"))


def execution(job_uid: bytes, execution: bytes) -> bytes:
    """Of an Execution."""
    return executions_of_job(_period_of(execution), job_uid) + newest_first(execution)


def executions_of_job(period: int, job_uid: bytes) -> bytes:
    """The prefix of a job's executions in a period."""
    return history(period) + b"x" + job_uid


def customer_execution(customer: str, execution: bytes) -> bytes:
    """Of the entry in a customer's listing."""
    prefix = executions_of_customer(_period_of(execution), customer)
    return prefix + newest_first(execution)


def executions_of_customer(period: int, customer: str) -> bytes:
    """The prefix of a customer's executions in a period."""
    return b"%by%b\0" % (history(period), customer.encode())


def change(period: int, index: int, number: int) -> bytes:
    """Of an execution that the entry at an index changed."""
    return changes_from(period, index) + number.to_bytes(2, "big")


def changes_from(period: int, index: int) -> bytes:
    """Where a period's changes by entries from an index on begin."""
    return history(period) + b"w" + index.to_bytes(8, "big")


def index_of_change(key: bytes) -> int:
    """The index in a `change` key."""
    return int.from_bytes(key[-10:-2], "big")


def active(job_uid: bytes, execution: bytes) -> bytes:
    """Of an execution that has not ended."""
    return ACTIVE + job_uid + execution


def split_active(key: bytes) -> tuple[bytes, bytes]:
    """(job uid, execution id) of an `active` key."""
    return key[1 : 1 + UID_BYTES], key[1 + UID_BYTES : 1 + UID_BYTES + EXECUTION_ID_BYTES]


def request(period: int, customer: str, request: bytes) -> bytes:
    """Of what a request made."""
    return b"%bq%b\0%b" % (history(period), customer.encode(), request)


def active_by_key(job_uid: bytes, key: bytes) -> bytes:
    """Of the execution with an active_key."""
    return b"k" + job_uid + key


def row(period: int, schedule_uid: bytes, number: int) -> bytes:
    """Of a row of a ledger."""
    return history(period) + b"l" + schedule_uid + number.to_bytes(8, "big")


def customer(customer: str) -> bytes:
    """Of a Customer."""
    return b"u" + customer.encode()


def api_key(customer: str, key_id: bytes) -> bytes:
    """Of an ApiKey; with an empty id the prefix of a customer's."""
    return b"p%b\0%b" % (customer.encode(), key_id)


def registry_credential(customer: str, host: str) -> bytes:
    """Of a RegistryCredential; with an empty host the prefix of a customer's."""
    return b"g%b\0%b" % (customer.encode(), host.encode())


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
