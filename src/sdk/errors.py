"""What a client raises: the one error tree of tickmesh (see mesh/errors.py), and one of its own.

TickmeshError                 .message, .reason, .fields, .retry_after_ms
├── InvalidRequest            a field is wrong: .fields has (path, what is wrong)
│   ├── DeadlineRequired
│   ├── PageTokenInvalid
│   └── ImageCorrupt
├── NotFound
├── AlreadyExists
├── EtagMismatch              somebody else was faster: read again, then decide
├── FailedPrecondition
│   ├── JobHasSchedules
│   ├── NotPaused
│   └── CalendarInUse         schedules use it: .message names them
├── ResourceExhausted
│   ├── Overloaded            try again after .retry_after_ms
│   ├── TooManyAttempts       the same: too many calls carried no good API key
│   ├── TooManyKeys
│   ├── MessageTooLarge
│   └── ImageTooLarge
├── CursorExpired             list, then watch
├── Unauthenticated           nobody knows who calls
│   ├── KeyRequired
│   └── KeyInvalid            wrong, expired or revoked
├── PermissionDenied
│   └── ScopeMissing          the API key may not do that
├── Unavailable               nobody answers, or not now
│   ├── NoLeader
│   ├── OutcomeUnknown        it may or may not have been done
│   └── NoExecutor
├── DeadlineExceeded
├── NotBuilt
├── InternalError
└── ExecutionFailed           ExecutionHandle.result(): it ended other than by success
"""

from __future__ import annotations

from ..mesh.errors import (
    AlreadyExists,
    CalendarInUse,
    CursorExpired,
    DeadlineExceeded,
    DeadlineRequired,
    EtagMismatch,
    FailedPrecondition,
    ImageCorrupt,
    ImageTooLarge,
    InternalError,
    InvalidRequest,
    JobHasSchedules,
    KeyInvalid,
    KeyRequired,
    MessageTooLarge,
    NoExecutor,
    NoLeader,
    NotBuilt,
    NotFound,
    NotPaused,
    OutcomeUnknown,
    Overloaded,
    PageTokenInvalid,
    PermissionDenied,
    ResourceExhausted,
    ScopeMissing,
    TickmeshError,
    TooManyAttempts,
    TooManyKeys,
    Unauthenticated,
    Unavailable,
)
from .types import Execution, ExecutionReason

__all__ = [
    "AlreadyExists",
    "CalendarInUse",
    "CursorExpired",
    "DeadlineExceeded",
    "DeadlineRequired",
    "EtagMismatch",
    "ExecutionFailed",
    "FailedPrecondition",
    "ImageCorrupt",
    "ImageTooLarge",
    "InternalError",
    "InvalidRequest",
    "JobHasSchedules",
    "KeyInvalid",
    "KeyRequired",
    "MessageTooLarge",
    "NoExecutor",
    "NoLeader",
    "NotBuilt",
    "NotFound",
    "NotPaused",
    "OutcomeUnknown",
    "Overloaded",
    "PageTokenInvalid",
    "PermissionDenied",
    "ResourceExhausted",
    "ScopeMissing",
    "TickmeshError",
    "TooManyAttempts",
    "TooManyKeys",
    "Unauthenticated",
    "Unavailable",
]


class ExecutionFailed(TickmeshError):
    """An execution ended other than by success; `execution` tells how."""

    reason = "EXECUTION_FAILED"

    def __init__(self, execution: Execution) -> None:
        parts = [f"{execution.name} ended {execution.state.lower()}"]
        if execution.reason is not ExecutionReason.NONE:
            parts.append(f"({execution.reason})")
        if execution.exit_code is not None:
            parts.append(f"with exit code {execution.exit_code}")
        message = " ".join(parts)
        super().__init__(f"{message}: {execution.message}" if execution.message else message)
        self.execution = execution
