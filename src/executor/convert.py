"""Pure: the shard's messages as the executor's own values, and how things ended as reasons."""

import datetime
import signal as signals
from dataclasses import dataclass

from ..mesh.limits import OUTPUT_BYTES_MAX, STATUS_MESSAGE_CHARACTERS_MAX
from ..mesh.output import object_key
from ..proto.tickmesh.internal.v1 import shard_pb2
from ..proto.tickmesh.v1 import execution_pb2, job_pb2
from .clockwork import Reading
from .errors import ExecutorError, ImageError, ImageReason, StartError, StartReason
from .sandbox import NETWORK_EGRESS, NETWORK_NONE, Exit, Work

_MS = 1_000
_IMAGE_REASONS = {
    ImageReason.NOT_FOUND: execution_pb2.EXECUTION_REASON_IMAGE_NOT_FOUND,
    ImageReason.REFERENCE_INVALID: execution_pb2.EXECUTION_REASON_IMAGE_NOT_FOUND,
    ImageReason.UNSUPPORTED: execution_pb2.EXECUTION_REASON_IMAGE_NOT_FOUND,
    ImageReason.TOO_LARGE: execution_pb2.EXECUTION_REASON_IMAGE_TOO_LARGE,
    ImageReason.CORRUPT: execution_pb2.EXECUTION_REASON_IMAGE_CORRUPT,
    ImageReason.REGISTRY_UNAVAILABLE: execution_pb2.EXECUTION_REASON_REGISTRY_UNAVAILABLE,
    ImageReason.REGISTRY_DENIED: execution_pb2.EXECUTION_REASON_REGISTRY_UNAVAILABLE,
    ImageReason.USER_UNKNOWN: execution_pb2.EXECUTION_REASON_COMMAND_NOT_STARTED,
    ImageReason.NO_COMMAND: execution_pb2.EXECUTION_REASON_COMMAND_NOT_STARTED,
}


@dataclass(frozen=True, slots=True)
class Order:
    """An attempt as its shard asked for it."""

    work: Work
    shard_id: str
    start_at_ns: int
    """By the leader's clock."""
    grace_s: float
    """Between SIGTERM and SIGKILL."""
    output_key: str = ""
    """Of its archived output; "" from a shard that does not know of archives."""


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended."""

    reason: int
    """A tickmesh.v1.ExecutionReason; 0 for success."""
    message: str
    """For people."""
    ended_ns: int
    exit_code: int | None = None
    """None: its command did not exit, or nobody knows how."""
    signal: int = 0
    peak_memory_bytes: int = 0
    cpu_ns: int = 0
    output_bytes: int | None = None
    """Written to stdout and stderr, kept or not; None: nobody knows."""
    dropped_bytes: int = 0


def order(message: shard_pb2.Work, shard_id: str) -> Order:
    """A shard's Work."""
    environment = dict(message.env)
    environment["TICKMESH_EXECUTION"] = message.execution
    environment["TICKMESH_ATTEMPT"] = str(message.attempt_number)
    environment["TICKMESH_DUE_TIME"] = timestamp(message.due_ns)
    work = Work(
        attempt_id=message.attempt_id,
        customer=message.customer,
        image=message.image,
        command=tuple(message.command),
        args=tuple(message.args),
        env=environment,
        working_dir=message.working_dir,
        payload=message.payload,
        memory_bytes=message.memory_bytes,
        cpu_millis=message.cpu_millis,
        pids=message.pids,
        scratch_bytes=message.scratch_bytes,
        timeout_s=message.timeout_ms / _MS,
        output_bytes_max=OUTPUT_BYTES_MAX,
        job=message.execution.rpartition("/executions/")[0],
        revision=message.job_revision,
        network=NETWORK_EGRESS if message.network == job_pb2.NETWORK_EGRESS else NETWORK_NONE,
        runtime=message.runtime,
        capabilities=tuple(message.capabilities),
    )
    key = ""
    if message.assign_ms:
        key = object_key(message.execution, message.attempt_number, message.assign_ms)
    return Order(work, shard_id, message.start_at_ns, message.grace_ms / _MS, key)


def timestamp(instant_ns: int) -> str:
    """RFC 3339 in UTC, to the millisecond, as "2026-01-31T12:00:00.000Z"."""
    seconds, rest_ns = divmod(instant_ns, 1_000_000_000)
    instant = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{instant:%Y-%m-%dT%H:%M:%S}.{rest_ns // 1_000_000:03d}Z"


def report(
    attempt_id: str,
    phase: shard_pb2.AttemptPhase.ValueType,
    prepared_ns: int,
    started_ns: int,
    end: End | None,
    reading: Reading = Reading(),  # noqa: B008 - it is immutable
) -> shard_pb2.AttemptReport:
    """Where an attempt is. reading: of the leader's clock, when it started."""
    message = shard_pb2.AttemptReport(
        attempt_id=attempt_id,
        phase=phase,
        prepared_ns=prepared_ns + reading.offset_ns if prepared_ns else 0,
        started_ns=started_ns + reading.offset_ns if started_ns else 0,
        clock_uncertainty_ns=reading.uncertainty_ns,
    )
    if end is not None:
        message.ended_ns = end.ended_ns + reading.offset_ns
        message.reason = end.reason
        message.message = end.message[:STATUS_MESSAGE_CHARACTERS_MAX]
        message.signal = end.signal
        message.peak_memory_bytes = end.peak_memory_bytes
        message.cpu_ns = end.cpu_ns
        if end.output_bytes is not None:
            message.output_bytes = end.output_bytes
        message.dropped_output_bytes = end.dropped_bytes
        if end.exit_code is not None:
            message.exit_code = end.exit_code
            message.has_exit_code = True
    return message


def reported_end(message: shard_pb2.AttemptReport) -> End:
    """The end that a report tells of."""
    return End(
        reason=message.reason,
        message=message.message,
        ended_ns=message.ended_ns,
        exit_code=message.exit_code if message.has_exit_code else None,
        signal=message.signal,
        peak_memory_bytes=message.peak_memory_bytes,
        cpu_ns=message.cpu_ns,
        output_bytes=message.output_bytes if message.HasField("output_bytes") else None,
        dropped_bytes=message.dropped_output_bytes,
    )


def exited(exit: Exit, memory_bytes: int, stop: int, stop_message: str) -> End:
    """A command that ended: by itself, or (stop is a reason) because it was made to."""
    if stop:
        reason, message = stop, stop_message
    elif exit.oom:
        reason = execution_pb2.EXECUTION_REASON_OUT_OF_MEMORY
        message = f"the kernel killed it: it needed more than its {memory_bytes} bytes of memory"
    elif exit.signal:
        reason = execution_pb2.EXECUTION_REASON_SIGNAL
        message = f"signal {exit.signal} ({_signal_name(exit.signal)}) ended it"
    elif exit.exit_code:
        reason = execution_pb2.EXECUTION_REASON_EXIT_CODE
        message = f"its command exited with code {exit.exit_code}"
    else:
        reason, message = execution_pb2.EXECUTION_REASON_UNSPECIFIED, ""
    return End(
        reason=reason,
        message=message,
        ended_ns=exit.finished_ns,
        exit_code=exit.exit_code,
        signal=exit.signal,
        peak_memory_bytes=exit.peak_memory_bytes,
        cpu_ns=exit.cpu_ns,
        output_bytes=exit.output_bytes,
        dropped_bytes=exit.dropped_bytes,
    )


def failed(error: Exception, ended_ns: int) -> End:
    """An attempt that came to nothing because of an error."""
    reason = execution_pb2.EXECUTION_REASON_INFRASTRUCTURE
    match error:
        case ImageError():
            reason = _IMAGE_REASONS[error.reason]
            message = str(error)
        case StartError():
            if error.reason is not StartReason.GATE_LOST:
                reason = execution_pb2.EXECUTION_REASON_COMMAND_NOT_STARTED
            message = str(error)
        case ExecutorError():
            message = str(error)
        case _:
            message = f"a bug of ours: {type(error).__name__}: {error}"
    return End(reason=reason, message=message, ended_ns=ended_ns)


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return "a real-time signal"
