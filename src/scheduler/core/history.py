"""History is kept by the period, and dropped by it, whole; some of it goes before.

An execution belongs to the period of its due time; a row of a ledger, a change and a request to
that of the entry which wrote them. So the records of a period may be forgotten once everything that
was due in it has ended, and its retention after that is over.

A customer may keep less: executions are then purged one by one. Ledgers are not: they stay for as
long as all history does, and tell which executions were purged.
"""

from __future__ import annotations

from msgspec.structs import replace

from .commands import DropHistory, PurgeExecutions
from .ids import due_ms_of
from .ledger import make_purged
from .model import ACTIVE_STATES, Customer, Execution, Schedule
from .view import View

PERIOD_MS = 86_400_000
"""A day: a week of history is a handful of files to drop, and none to compact."""

KEPT_MS_MIN = 10_000
"""An execution is kept for so long after its end whatever the retention: who waited for the end can
still look at it."""


def period(time_ms: int) -> int:
    """The period of an instant."""
    return time_ms // PERIOD_MS


def drop(view: View, command: DropHistory) -> list[int]:
    """Forget every period before one, unless something that was due in them has not ended, or
    schedules are pinned to calendars' contents that are history by now."""
    if view.calendars_pending(1):
        return []
    if view.active_before(command.before * PERIOD_MS) or command.before <= view.history_from:
        return []
    view.drop_history(command.before)
    return [command.before]


def may_go(customer: Customer, execution: Execution, now_ms: int, *, surplus: bool) -> bool:
    """Whether a customer's retention does not keep an execution. surplus: enough of its job's ended
    later."""
    if execution.state in ACTIVE_STATES or execution.customer != customer.customer:
        return False
    over_ms = now_ms - execution.end_ms
    if surplus:
        return customer.executions_per_job_max > 0 and over_ms >= KEPT_MS_MIN
    return customer.max_age_ms > 0 and over_ms >= max(customer.max_age_ms, KEPT_MS_MIN)


def instant_of(schedule: Schedule | None, execution: Execution) -> int:
    """The instant of its schedule's ledger that an execution is of; 0: of none."""
    if schedule is None or not execution.id.endswith(schedule.uid):
        return 0
    return due_ms_of(execution.id)


def purge(view: View, command: PurgeExecutions, now_ms: int) -> list[int]:
    """Forget executions, and tell so in the ledgers of their schedules; how many."""
    customer = view.customer(command.customer)
    if customer is None or customer.version != command.version:
        return [0]
    count = 0
    told: dict[tuple[bytes, str], list[int]] = {}
    for job_uid, identity in command.executions:
        execution = view.execution(job_uid, identity)
        if execution is None or not may_go(customer, execution, now_ms, surplus=command.surplus):
            continue
        schedule = view.schedule(job_uid, execution.schedule_id) if execution.schedule_id else None
        instant_ms = instant_of(schedule, execution)
        if schedule is not None and instant_ms:
            if schedule.next_ms and instant_ms >= schedule.next_ms:
                continue  # it was taken back, and its instant comes up again
            told.setdefault((job_uid, schedule.schedule_id), []).append(instant_ms)
        view.delete_execution(execution)
        count += 1
    for (job_uid, schedule_id), instants in told.items():
        schedule = view.schedule(job_uid, schedule_id)
        assert schedule is not None, "it was there a moment ago"
        number = schedule.ledger_count
        row = make_purged(schedule.ledger_hash, number, now_ms, sorted(instants))
        view.put_row(schedule.uid, number, row)
        view.put_schedule(
            replace(schedule, ledger_count=number + 1, ledger_hash=row.hash, purged_ms=now_ms)
        )
    return [count]
