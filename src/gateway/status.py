"""How an error leaves the gateway: a gRPC status with google.rpc details in trailing metadata."""

from __future__ import annotations

import uuid
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.rpc import status_pb2

from ..mesh import errors
from ..mesh.telemetry import logger

STATUS_BYTES_MAX = 3 * 1024
"""A status with its details: it travels in trailing metadata as base64 beside the message, and gRPC
clients accept 8 KiB of metadata."""

MESSAGE_UTF8_BYTES_MAX = 1_024
"""An error's message, for the same reason: as a header of its own each byte that is not ASCII takes
three."""

METADATA_MAX = 8
METADATA_UTF8_BYTES_MAX = 256
"""What is kept of an error's metadata where a status is too large: so many, and of each so much."""

_log = logger(__name__)
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Context = grpc.aio.ServicerContext[Any, Any]


async def refuse(context: Context, error: errors.TickmeshError) -> NoReturn:
    """End the call with the error. Raises what gRPC needs to be raised."""
    await refuse_with(context, errors.to_status(error))


async def refuse_with(context: Context, status: status_pb2.Status) -> NoReturn:
    """End the call with a status, as a shard answers it."""
    fitted = fit(status)
    await context.abort(
        _CODES.get(fitted.code, grpc.StatusCode.UNKNOWN),
        fitted.message,
        ((errors.STATUS_METADATA_KEY, fitted.SerializeToString()),),
    )
    raise AssertionError("abort returns never")


def fit(status: status_pb2.Status) -> status_pb2.Status:
    """The status, with fewer details (the last field violations first) where it is too large."""
    status.message = _cut(status.message, MESSAGE_UTF8_BYTES_MAX)
    if status.ByteSize() <= STATUS_BYTES_MAX:
        return status
    error = errors.from_status(status)
    error.metadata = {
        key: _cut(value, METADATA_UTF8_BYTES_MAX)
        for key, value in list(error.metadata.items())[:METADATA_MAX]
    }
    fields = error.fields
    while fields:
        fields = fields[: len(fields) * 3 // 4]
        error.fields = fields
        smaller = errors.to_status(error)
        if smaller.ByteSize() <= STATUS_BYTES_MAX:
            return smaller
    smaller = errors.to_status(error)
    if smaller.ByteSize() > STATUS_BYTES_MAX:
        error.metadata = {}
        smaller = errors.to_status(error)
    return smaller


def _cut(text: str, bytes_max: int) -> str:
    encoded = text.encode()
    if len(encoded) <= bytes_max:
        return text
    return encoded[: bytes_max - 3].decode(errors="ignore") + "..."


def unexpected(method: str, error: BaseException) -> errors.InternalError:
    """The answer to a bug of ours: an id to look for in the log, and nothing of what happened."""
    error_id = uuid.uuid4().hex
    _log.error("a call failed by a bug", method=method, error_id=error_id, exc_info=error)
    return errors.InternalError(
        f"internal error {error_id}: a bug of tickmesh; the gateway's log has its details",
        metadata={"error_id": error_id},
    )
