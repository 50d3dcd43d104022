"""Executions: create, assign, end, stop.

    PENDING ──assign──► ASSIGNED ──end──► SUCCEEDED · FAILED · CANCELLED · REVOKED
       ▲  └────────stop────│─────────────► CANCELLED · REVOKED
       └───────retry───────┘
    REVOKED ──fire again──► PENDING        (its schedule was changed or resumed, and fires then too)

RUNNING is ASSIGNED with a process: a soft fact that is not stored until the end tells when it
began. A stop of what is assigned is a request: the executor's end says what won.
"""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from . import jobs
from .commands import (
    INSTANTS_SINCE,
    OUTWEIGHED_SINCE,
    Assign,
    Cancel,
    EndAttempts,
    ExecuteJobs,
    NewExecution,
    Placement,
    Refused,
    Why,
)
from .ids import execution_id
from .model import (
    ACTIVE_STATES,
    Attempt,
    Execution,
    ExecutionState,
    Job,
    JobSpec,
    Reason,
)
from .view import View

FINAL_BY_REASON = {
    Reason.NONE: ExecutionState.SUCCEEDED,
    Reason.CANCELLED: ExecutionState.CANCELLED,
    Reason.REVOKED: ExecutionState.REVOKED,
    Reason.REPLACED: ExecutionState.CANCELLED,
}

STOPPED = {
    Reason.TIMEOUT: "the job's total timeout is over",
    Reason.REPLACED: "a later fire of its schedule took its place",
}
"""Stops that an executor carries out as a cancellation, and what they really were."""

NEVER_STARTED = frozenset({Reason.REVOKED, Reason.RETURNED})
"""Ends of attempts that do not count as tries."""

RETURN_WAIT_MS = 50
"""Before what an executor gave back is given to another; doubled each time. The leader's picture of
the executors was wrong: it is right again once it has heard of them."""

RETURN_WAIT_MS_MAX = 60_000

RETURNS_MAX = 40
"""Half an hour of it: then something is wrong that waiting does not mend."""

RETRIED = frozenset(
    {
        *(Reason.EXIT_CODE, Reason.SIGNAL, Reason.OUT_OF_MEMORY, Reason.TIMEOUT),
        *(Reason.REGISTRY_UNAVAILABLE, Reason.EXECUTOR_LOST, Reason.INFRASTRUCTURE),
    }
)
"""What may go better the next time. An image that is not there will not be there either."""


def create(
    view: View,
    job: Job,
    identity: bytes,
    *,
    due_ms: int,
    now_ms: int,
    payload: bytes,
    placement: Placement | None,
    schedule_id: str = "",
    nominal_ms: int = 0,
    missed: int = 0,
    watched: bool = False,
    active_key: bytes = b"",
) -> Execution:
    """Create an execution, given to an executor if the leader chose one."""
    execution = Execution(
        customer=job.customer,
        job_id=job.job_id,
        job_uid=job.uid,
        id=identity,
        revision=job.revision,
        schedule_id=schedule_id,
        state=ExecutionState.PENDING,
        due_ms=due_ms,
        create_ms=now_ms,
        payload=payload,
        nominal_ms=nominal_ms,
        missed=missed,
        watched=watched,
        active_key=active_key,
    )
    if placement is not None:
        execution = _placed(execution, placement, now_ms)
    # Its id is a new one, or that of an instant which was never decided before.
    view.put_execution(execution, fresh=True)
    return execution


def fire_again(
    view: View,
    job: Job,
    execution: Execution,
    *,
    payload: bytes,
    placement: Placement | None,
    watched: bool,
    now_ms: int,
) -> Execution | None:
    """The instant of an execution comes up anew, as its schedule was changed or resumed meanwhile.

    What was taken back runs after all, with another attempt, as the schedule and the job say now.
    What was not taken back stands: None.
    """
    execution = replace(execution, watched=watched)
    if execution.state is ExecutionState.REVOKED:
        fresh = _anew(execution, job, payload)
        if placement is not None:
            fresh = _placed(fresh, placement, now_ms)
        view.put_execution(fresh)
        return fresh
    if execution.state in ACTIVE_STATES and execution.stop is Reason.REVOKED:
        execution = replace(execution, again=True)
        view.put_execution(execution)
        return execution
    return None


def _anew(execution: Execution, job: Job, payload: bytes) -> Execution:
    return replace(
        execution,
        state=ExecutionState.PENDING,
        revision=job.revision,
        payload=payload,
        stop=Reason.NONE,
        reason=Reason.NONE,
        message="",
        end_ms=0,
        again=False,
    )


def _placed(execution: Execution, placement: Placement, now_ms: int) -> Execution:
    """Give it to an executor, unless that was chosen for what the job said before."""
    if placement.revision not in (0, execution.revision):
        return execution
    attempt = Attempt(
        number=len(execution.attempts) + 1,
        executor=placement.executor,
        incarnation=placement.incarnation,
        assign_ms=now_ms,
    )
    return replace(
        execution, state=ExecutionState.ASSIGNED, attempts=(*execution.attempts, attempt)
    )


def execute(view: View, command: ExecuteJobs, now_ms: int) -> list[Execution]:
    """All or none; the same request again answers what it made the first time."""
    earlier = of_request(view, command.customer, command.request)
    if earlier is not None:
        return earlier
    targets = [
        jobs.existing(view, command.customer, new.job_id, index)
        for index, new in enumerate(command.executions)
    ]
    made = [
        _execute(view, job, new, command.request, now_ms)
        for job, new in zip(targets, command.executions, strict=True)
    ]
    keep_request(view, command.customer, command.request, made)
    return made


def of_request(view: View, customer: str, request: bytes) -> list[Execution] | None:
    """What a request made the first time; None: it is new."""
    earlier = view.request(customer, request) if request else None
    if earlier is None:
        return None
    found = [view.execution(*key) for key in earlier]
    kept = [execution for execution in found if execution is not None]
    if len(kept) < len(earlier):
        raise Refused(Why.FORGOTTEN, "the request_id")
    return kept


def keep_request(view: View, customer: str, request: bytes, made: list[Execution]) -> None:
    """Remember what a request made: for a day at least."""
    if request:
        view.put_request(customer, request, [(each.job_uid, each.id) for each in made])


def _execute(view: View, job: Job, new: NewExecution, request: bytes, now_ms: int) -> Execution:
    if new.active_key:
        active = view.active_by_key(job.uid, new.active_key)
        found = None if active is None else view.execution(job.uid, active)
        if found is not None:
            return found
    made = create(
        view,
        job,
        execution_id(now_ms, new.origin),
        due_ms=now_ms,
        now_ms=now_ms,
        payload=new.payload,
        placement=new.placement,
        active_key=new.active_key,
    )
    if new.active_key:
        view.put_active_by_key(job.uid, new.active_key, made.id)
    return made


def assign(view: View, command: Assign, now_ms: int) -> list[Execution]:
    """Those that do not wait any more are passed over."""
    changed = []
    for job_uid, identity, placement in command.assignments:
        execution = view.execution(job_uid, identity)
        if execution is not None and execution.state is ExecutionState.PENDING:
            execution = _placed(execution, placement, now_ms)
            view.put_execution(execution)
            changed.append(execution)
    return changed


def cancel(view: View, command: Cancel, now_ms: int) -> tuple[list[Execution], list[Execution]]:
    """All that there are, and those that this has changed: not what had ended already."""
    found, stopped = [], []
    for job_uid, identity in command.executions:
        execution = view.execution(job_uid, identity)
        if execution is not None:
            found.append(stop(view, execution, command.reason, now_ms))
            if found[-1] is not execution or view.version < INSTANTS_SINCE:
                stopped.append(found[-1])
    return found, stopped


def stop(view: View, execution: Execution, reason: Reason, now_ms: int) -> Execution:
    """End what waits; ask the executor to end what it holds. A revocation is outweighed by all."""
    if execution.state is ExecutionState.PENDING:
        return _finished(view, execution, reason, STOPPED.get(reason, ""), now_ms)
    weaker = execution.stop in (Reason.NONE, Reason.REVOKED)
    if execution.state in ACTIVE_STATES and weaker:
        execution = replace(execution, stop=reason, again=False)
        view.put_execution(execution)
    return execution


def total_timeout_over_ms(execution: Execution, spec: JobSpec) -> int:
    """When the total timeout is over; 0: it has none. It begins with the due time, or when the
    execution was made if that is later: it was caught up, or waited for another's end."""
    if not spec.total_timeout_ms:
        return 0
    return max(execution.due_ms, execution.create_ms) + spec.total_timeout_ms


def end(view: View, command: EndAttempts, now_ms: int) -> list[Execution]:
    """The first report of an attempt's end stands."""
    changed = []
    for job_uid, identity, attempt in command.ends:
        execution = view.execution(job_uid, identity)
        if execution is None or execution.state is not ExecutionState.ASSIGNED:
            continue
        last = execution.attempts[-1]
        if last.number != attempt.number:
            continue
        ended = replace(
            attempt,
            executor=last.executor,
            incarnation=last.incarnation,
            assign_ms=last.assign_ms,
        )
        execution = replace(execution, attempts=(*execution.attempts[:-1], ended))
        changed.append(_ended(view, execution, attempt, now_ms))
    return changed


def _ended(view: View, execution: Execution, attempt: Attempt, now_ms: int) -> Execution:
    again = _come_up_again(view, execution, attempt, now_ms)
    if again is not None:
        view.put_execution(again)
        return again
    reason, message = attempt.reason, attempt.message
    if _ends_as_stopped(view, execution, attempt):
        reason, message = execution.stop, STOPPED.get(execution.stop, "")
    elif attempt.reason is Reason.RETURNED:
        if wait_ms := _return_after_ms(execution):
            execution = replace(
                execution, state=ExecutionState.PENDING, not_before_ms=now_ms + wait_ms
            )
            view.put_execution(execution)
            return execution
        else:
            reason = Reason.INFRASTRUCTURE
            message = f"executors gave it back {RETURNS_MAX} times, the last time: {message}"
    elif wait_ms := _retry_after_ms(view, execution, attempt):
        execution = replace(execution, state=ExecutionState.PENDING, not_before_ms=now_ms + wait_ms)
        view.put_execution(execution)
        return execution
    return _finished(view, execution, reason, message, now_ms)


def _come_up_again(
    view: View, execution: Execution, attempt: Attempt, now_ms: int
) -> Execution | None:
    """A fire that was taken back and has come up again, for another attempt; None: it gets none."""
    if not execution.again:
        return None
    job = view.job(execution.customer, execution.job_id)
    schedule = view.schedule(execution.job_uid, execution.schedule_id)
    # A deletion before its due time would have cleared `again`; one after it did not look.
    if job is None or schedule is None or not execution.id.endswith(schedule.uid):
        return None
    anew = _anew(execution, job, schedule.payload)
    if attempt.reason in NEVER_STARTED:
        return anew
    if view.version < INSTANTS_SINCE:
        return None
    # What was tried allows another attempt (the revocation, which still stands there, is over), and
    # so does what would be tried now: either may be of a job that is at most once.
    allowed = _retry_after_ms(view, replace(execution, stop=Reason.NONE), attempt)
    wait_ms = _retry_after_ms(view, anew, attempt)
    return replace(anew, not_before_ms=now_ms + wait_ms) if allowed and wait_ms else None


def _ends_as_stopped(view: View, execution: Execution, attempt: Attempt) -> bool:
    """Whether what an executor ended, gave back or took back ends for the reason that it was
    stopped for."""
    match attempt.reason:
        case Reason.CANCELLED:
            return execution.stop in STOPPED
        case Reason.RETURNED:
            return execution.stop is not Reason.NONE
        case Reason.REVOKED:
            return execution.stop is not Reason.NONE and view.version >= OUTWEIGHED_SINCE
        case _:
            return False


def _return_after_ms(execution: Execution) -> int:
    """How long what was given back waits for another executor; 0: it was often enough."""
    returns = sum(each.reason is Reason.RETURNED for each in execution.attempts)
    if returns >= RETURNS_MAX:
        return 0
    return min(RETURN_WAIT_MS << min(returns - 1, 30), RETURN_WAIT_MS_MAX)


def _retry_after_ms(view: View, execution: Execution, attempt: Attempt) -> int:
    """How long to wait before the next attempt; 0: there is none.

    Exponential: backoff, doubled for each attempt, up to backoff_max; of that, between three
    quarters and all, drawn from the execution and the attempt, so that a herd does not return.
    """
    if attempt.reason not in RETRIED or execution.stop:
        return 0
    job = view.job(execution.customer, execution.job_id)
    current = job is not None and (job.uid, job.revision) == (
        execution.job_uid,
        execution.revision,
    )
    spec = job.spec if job is not None and current else None
    spec = spec or view.spec(execution.job_uid, execution.revision)
    assert spec is not None, "the revision of an active execution is always kept"
    retry = spec.retry
    tried = sum(each.reason not in NEVER_STARTED for each in execution.attempts)
    if tried >= retry.max_attempts:
        return 0
    may_have_started = attempt.started_ns > 0 or attempt.reason is Reason.EXECUTOR_LOST
    if spec.at_most_once and may_have_started:
        return 0
    worth = not retry.exit_codes or attempt.exit_code in retry.exit_codes
    if attempt.reason is Reason.EXIT_CODE and not worth:
        return 0
    full_ms = min(retry.backoff_ms << min(tried - 1, 30), retry.backoff_max_ms)
    draw = hashlib.blake2b(execution.id + bytes([tried]), digest_size=8).digest()
    spread_ms = full_ms // 4
    return max(1, full_ms - int.from_bytes(draw, "big") % (spread_ms + 1))


def _finished(
    view: View, execution: Execution, reason: Reason, message: str, now_ms: int
) -> Execution:
    finished = replace(
        execution,
        state=FINAL_BY_REASON.get(reason, ExecutionState.FAILED),
        reason=reason,
        message=message,
        end_ms=now_ms,
    )
    view.put_execution(finished)
    if execution.active_key:
        view.delete_active_by_key(execution.job_uid, execution.active_key)
    return finished
