"""Executions: create, assign, end, stop, purge.

    PENDING ──assign──► ASSIGNED ──end──► SUCCEEDED · FAILED · CANCELLED · REVOKED
       └───────────stop──────────────────► CANCELLED · REVOKED
    REVOKED ──fire again──► PENDING        (its schedule was changed or resumed, and fires then too)

RUNNING is ASSIGNED with a process: a soft fact that is not stored until the end tells when it
began. A stop of what is assigned is a request: the executor's end says what won.
"""

from __future__ import annotations

from msgspec.structs import replace

from . import jobs
from .commands import (
    Assign,
    Cancel,
    EndAttempts,
    ExecuteJobs,
    Placement,
    Purge,
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
    Reason,
    Timer,
    TimerKind,
)
from .view import View

FINAL_BY_REASON = {
    Reason.NONE: ExecutionState.SUCCEEDED,
    Reason.CANCELLED: ExecutionState.CANCELLED,
    Reason.REVOKED: ExecutionState.REVOKED,
}


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
    missed: int = 0,
    request: bytes = b"",
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
        missed=missed,
        request=request,
    )
    if placement is not None:
        execution = _assigned(execution, placement, now_ms)
    view.put_execution(execution)
    return execution


def fire_again(
    view: View,
    job: Job,
    execution: Execution,
    payload: bytes,
    placement: Placement | None,
    now_ms: int,
) -> Execution | None:
    """The instant of an execution comes up anew, as its schedule was changed or resumed meanwhile.

    What was taken back runs after all, with another attempt, as the schedule and the job say now.
    What was not taken back stands: None.
    """
    if execution.state is ExecutionState.REVOKED:
        fresh = _anew(execution, job, payload)
        if placement is not None:
            fresh = _assigned(fresh, placement, now_ms)
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


def _assigned(execution: Execution, placement: Placement, now_ms: int) -> Execution:
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
    if command.request:
        earlier = view.request(command.customer, command.request)
        if earlier is not None:
            found = [view.execution(*key) for key in earlier]
            return [execution for execution in found if execution is not None]
    targets = [
        jobs.existing(view, command.customer, new.job_id, index)
        for index, new in enumerate(command.executions)
    ]
    made = [
        create(
            view,
            job,
            execution_id(now_ms, new.origin),
            due_ms=now_ms,
            now_ms=now_ms,
            payload=new.payload,
            placement=new.placement,
            request=command.request,
        )
        for job, new in zip(targets, command.executions, strict=True)
    ]
    if command.request:
        view.put_request(command.customer, command.request, [(e.job_uid, e.id) for e in made])
    return made


def assign(view: View, command: Assign, now_ms: int) -> list[Execution]:
    """Those that do not wait any more are passed over."""
    changed = []
    for job_uid, identity, placement in command.assignments:
        execution = view.execution(job_uid, identity)
        if execution is not None and execution.state is ExecutionState.PENDING:
            execution = _assigned(execution, placement, now_ms)
            view.put_execution(execution)
            changed.append(execution)
    return changed


def cancel(view: View, command: Cancel, now_ms: int) -> list[Execution]:
    """Cancelling what has ended changes nothing."""
    execution = view.execution(command.job_uid, command.execution)
    if execution is None:
        raise Refused(Why.NOT_FOUND, "execution")
    return [stop(view, execution, Reason.CANCELLED, now_ms)]


def stop(view: View, execution: Execution, reason: Reason, now_ms: int) -> Execution:
    """End what waits; ask the executor to end what it holds. A cancel outweighs a revocation."""
    if execution.state is ExecutionState.PENDING:
        return _finished(view, execution, reason, "", now_ms)
    if execution.state in ACTIVE_STATES and execution.stop is not Reason.CANCELLED:
        execution = replace(execution, stop=reason, again=False)
        view.put_execution(execution)
    return execution


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
    if attempt.reason is Reason.REVOKED and execution.again:
        job = view.job(execution.customer, execution.job_id)
        schedule = view.schedule(execution.job_uid, execution.schedule_id)
        # A pause or a deletion meanwhile would have cleared `again`.
        assert job is not None and schedule is not None
        execution = _anew(execution, job, schedule.payload)
        view.put_execution(execution)
        return execution
    return _finished(view, execution, attempt.reason, attempt.message, now_ms)


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
    view.put_timer(_purge_timer(finished, view.retention_ms))
    return finished


def _purge_timer(execution: Execution, retention_ms: int) -> Timer:
    due_ms = execution.end_ms + retention_ms
    return Timer(due_ms, TimerKind.PURGE, execution.job_uid, execution.id)


def purge(view: View, command: Purge) -> list[Execution]:
    """Forget executions, and the requests that made them."""
    forgotten = []
    if command.floor_ms > view.floor_ms():
        view.set_floor_ms(command.floor_ms)
    for job_uid, identity, due_ms in command.executions:
        view.delete_timer(Timer(due_ms, TimerKind.PURGE, job_uid, identity))
        execution = view.execution(job_uid, identity)
        if execution is not None and execution.state not in ACTIVE_STATES:
            view.delete_execution(execution)
            forgotten.append(execution)
            if execution.request:
                view.delete_request(execution.customer, execution.request)
    return forgotten
