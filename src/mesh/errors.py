"""The one error tree: what every service raises, and how it crosses the wire.

    TickmeshError                     code                 reason
    ├── InvalidRequest                INVALID_ARGUMENT     FIELD_INVALID (names the fields)
    │   ├── DeadlineRequired          INVALID_ARGUMENT     DEADLINE_REQUIRED
    │   ├── PageTokenInvalid          INVALID_ARGUMENT     PAGE_TOKEN_INVALID
    │   └── ImageCorrupt              INVALID_ARGUMENT     IMAGE_CORRUPT
    ├── NotFound                      NOT_FOUND            NOT_FOUND
    ├── AlreadyExists                 ALREADY_EXISTS       ALREADY_EXISTS
    ├── EtagMismatch                  ABORTED              ETAG_MISMATCH
    ├── FailedPrecondition            FAILED_PRECONDITION
    │   ├── JobHasSchedules                                JOB_HAS_SCHEDULES
    │   ├── NotPaused                                      NOT_PAUSED
    │   └── CalendarInUse                                  CALENDAR_IN_USE
    ├── ResourceExhausted             RESOURCE_EXHAUSTED
    │   ├── Overloaded                                     OVERLOADED (with RetryInfo)
    │   ├── TooManyAttempts                                TOO_MANY_ATTEMPTS (with RetryInfo)
    │   ├── TooManyKeys                                    TOO_MANY_KEYS
    │   ├── MessageTooLarge                                MESSAGE_TOO_LARGE
    │   └── ImageTooLarge                                  IMAGE_TOO_LARGE
    ├── CursorExpired                 OUT_OF_RANGE         CURSOR_EXPIRED
    ├── Unauthenticated               UNAUTHENTICATED
    │   ├── KeyRequired                                    KEY_REQUIRED
    │   └── KeyInvalid                                     KEY_INVALID
    ├── PermissionDenied              PERMISSION_DENIED    ROLE_REFUSED
    │   └── ScopeMissing                                   SCOPE_MISSING
    ├── Unavailable                   UNAVAILABLE
    │   ├── NoLeader                                       NO_LEADER
    │   ├── OutcomeUnknown                                 OUTCOME_UNKNOWN
    │   └── NoExecutor                                     NO_EXECUTOR
    ├── DeadlineExceeded              DEADLINE_EXCEEDED    DEADLINE_EXCEEDED
    ├── OutputCorrupt                 DATA_LOSS            OUTPUT_CORRUPT
    ├── NotBuilt                      UNIMPLEMENTED        NOT_BUILT
    └── InternalError                 INTERNAL             INTERNAL

Each class has one gRPC code and one stable reason (protos/tickmesh/v1/error_reason.proto).
`to_status` maps an error out, `from_status` maps it back; nothing else builds or reads a status.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "tickmesh"
STATUS_METADATA_KEY = "grpc-status-details-bin"


class TickmeshError(Exception):
    """Anything that tickmesh refuses or fails at. `message` says what, where, and what to do."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    reason: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        fields: tuple[tuple[str, str], ...] = (),
        metadata: dict[str, str] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        """fields: (path, what is wrong with it); metadata: for machines."""
        super().__init__(message)
        self.message = message
        self.fields = fields
        self.metadata = metadata or {}
        self.retry_after_ms = retry_after_ms


class InvalidRequest(TickmeshError):
    """A field of the request is wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "FIELD_INVALID"


class DeadlineRequired(InvalidRequest):
    """The call carries no deadline."""

    reason = "DEADLINE_REQUIRED"


class PageTokenInvalid(InvalidRequest):
    """The page token is damaged or belongs to another listing."""

    reason = "PAGE_TOKEN_INVALID"


class ImageCorrupt(InvalidRequest):
    """An image's data is damaged."""

    reason = "IMAGE_CORRUPT"


class NotFound(TickmeshError):
    """There is no such thing, or it belongs to somebody else."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(TickmeshError):
    """The id is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class EtagMismatch(TickmeshError):
    """Somebody else changed it first."""

    code = grpc.StatusCode.ABORTED
    reason = "ETAG_MISMATCH"


class FailedPrecondition(TickmeshError):
    """The thing is not in the state that the call needs."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class JobHasSchedules(FailedPrecondition):
    """The job still has schedules."""

    reason = "JOB_HAS_SCHEDULES"


class NotPaused(FailedPrecondition):
    """The schedule is not paused."""

    reason = "NOT_PAUSED"


class CalendarInUse(FailedPrecondition):
    """Schedules use the calendar."""

    reason = "CALENDAR_IN_USE"


class ResourceExhausted(TickmeshError):
    """A limit was reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class Overloaded(ResourceExhausted):
    """A queue of the mesh is full."""

    reason = "OVERLOADED"


class TooManyAttempts(ResourceExhausted):
    """Too many calls from one address carried no good key."""

    reason = "TOO_MANY_ATTEMPTS"


class TooManyKeys(ResourceExhausted):
    """The customer has as many API keys as it may have."""

    reason = "TOO_MANY_KEYS"


class MessageTooLarge(ResourceExhausted):
    """The message is over its limit."""

    reason = "MESSAGE_TOO_LARGE"

    TOGETHER = "together"
    """In its metadata: an answer did not fit beside those of other calls in one message between
    services, and by itself it does."""


class ImageTooLarge(ResourceExhausted):
    """The image is over its limit."""

    reason = "IMAGE_TOO_LARGE"


class CursorExpired(TickmeshError):
    """The cursor is too old, or from the future."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "CURSOR_EXPIRED"


class Unauthenticated(TickmeshError):
    """Nobody knows who calls."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class KeyRequired(Unauthenticated):
    """The call carries no API key."""

    reason = "KEY_REQUIRED"


class KeyInvalid(Unauthenticated):
    """The API key is none, is expired or was revoked."""

    reason = "KEY_INVALID"


class PermissionDenied(TickmeshError):
    """The caller's certificate does not admit it here."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "ROLE_REFUSED"


class ScopeMissing(PermissionDenied):
    """The API key has not the scope that the method needs."""

    reason = "SCOPE_MISSING"


class Unavailable(TickmeshError):
    """Something that is needed cannot be reached now."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"


class NoLeader(Unavailable):
    """No leader of the shard could be reached. Nothing was changed."""

    reason = "NO_LEADER"


class OutcomeUnknown(Unavailable):
    """The leader was lost before it answered: it may or may not have been done."""

    reason = "OUTCOME_UNKNOWN"


class NoExecutor(Unavailable):
    """No executor is attached, or the one that is needed is not."""

    reason = "NO_EXECUTOR"


class DeadlineExceeded(TickmeshError):
    """The call's deadline passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class OutputCorrupt(TickmeshError):
    """What was archived of an execution's output is damaged."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "OUTPUT_CORRUPT"


class NotBuilt(TickmeshError):
    """Known, and not built yet."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "NOT_BUILT"


class InternalError(TickmeshError):
    """A bug of ours."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


def _tree(root: type[TickmeshError]) -> list[type[TickmeshError]]:
    return [root, *(c for child in root.__subclasses__() for c in _tree(child))]


BY_REASON: dict[str, type[TickmeshError]] = {c.reason: c for c in _tree(TickmeshError)}
# A status without our ErrorInfo (made by gRPC itself, as when no connection can be had).
BY_CODE: dict[int, type[TickmeshError]] = {
    code_pb2.INVALID_ARGUMENT: InvalidRequest,
    code_pb2.NOT_FOUND: NotFound,
    code_pb2.ALREADY_EXISTS: AlreadyExists,
    code_pb2.ABORTED: EtagMismatch,
    code_pb2.FAILED_PRECONDITION: FailedPrecondition,
    code_pb2.RESOURCE_EXHAUSTED: ResourceExhausted,
    code_pb2.OUT_OF_RANGE: CursorExpired,
    code_pb2.UNAUTHENTICATED: Unauthenticated,
    code_pb2.PERMISSION_DENIED: PermissionDenied,
    code_pb2.UNAVAILABLE: Unavailable,
    code_pb2.DEADLINE_EXCEEDED: DeadlineExceeded,
    code_pb2.UNIMPLEMENTED: NotBuilt,
    code_pb2.INTERNAL: InternalError,
}


def invalid(field: str, description: str) -> InvalidRequest:
    """One wrong field: its path as in the request, and what is wrong and what would be right."""
    return InvalidRequest(f"{field}: {description}", fields=((field, description),))


def to_status(error: TickmeshError) -> status_pb2.Status:
    """The error as a google.rpc.Status with ErrorInfo, BadRequest and RetryInfo as they apply."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    status.details.add().Pack(info)
    if error.fields:
        bad = error_details_pb2.BadRequest()
        for field, description in error.fields:
            bad.field_violations.add(field=field, description=description)
        status.details.add().Pack(bad)
    if error.retry_after_ms is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_after_ms)
        status.details.add().Pack(retry)
    return status


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: TickmeshError) -> None:
    """End a call of one of the mesh's own services with an error's status."""
    status = to_status(error)
    context.set_trailing_metadata(((STATUS_METADATA_KEY, status.SerializeToString()),))
    await context.abort(error.code, error.message)


def from_status(status: status_pb2.Status) -> TickmeshError:
    """The error that a status stands for; unknown reasons become the class of their code."""
    kind = BY_CODE.get(status.code, TickmeshError)
    fields: tuple[tuple[str, str], ...] = ()
    metadata: dict[str, str] = {}
    retry_after_ms: int | None = None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            kind = BY_REASON.get(info.reason, kind)
            metadata = dict(info.metadata)
        elif detail.Unpack(bad):
            fields = tuple((v.field, v.description) for v in bad.field_violations)
        elif detail.Unpack(retry):
            retry_after_ms = retry.retry_delay.ToMilliseconds()
    return kind(status.message, fields=fields, metadata=metadata, retry_after_ms=retry_after_ms)


def from_rpc_error(error: grpc.RpcError) -> TickmeshError:
    """The error behind a failed call made with grpc or grpc.aio."""
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    for key, value in metadata:
        if key == STATUS_METADATA_KEY and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    code: grpc.StatusCode = error.code()
    kind = BY_CODE.get(code.value[0], TickmeshError)
    return kind(error.details() or code.name)
