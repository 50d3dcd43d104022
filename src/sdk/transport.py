"""Calls over gRPC, blocking and asyncio: channels, deadlines, retries, errors. Of tickmesh's own
methods it knows only which are safe to repeat."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from ..mesh.errors import (
    STATUS_METADATA_KEY,
    DeadlineExceeded,
    TickmeshError,
    Unavailable,
    from_rpc_error,
)
from . import limits
from .target import Target

Q = TypeVar("Q")
A = TypeVar("A")

REPEATABLE = {
    "JobService": ("CreateJob", "BatchCreateJobs", "GetJob", "ListJobs"),
    "ScheduleService": (
        *("CreateSchedule", "BatchCreateSchedules", "GetSchedule", "ListSchedules"),
        *("PauseSchedule", "PreviewSchedule", "TriggerSchedule", "BackfillSchedule"),
        *("CancelBackfill", "ListFires", "GetScheduleStatistics", "VerifySchedule"),
    ),
    "CalendarService": ("CreateCalendar", "GetCalendar", "ListCalendars"),
    "ZoneService": ("PreviewZones",),
    "ExecutionService": (
        *("ExecuteJob", "BatchExecuteJobs", "GetExecution", "ListExecutions", "CancelExecution"),
    ),
    "ImageService": (
        *("GetRegistry", "PullImage", "GetImage", "ListImages"),
        *("CreateRegistryCredential", "ListRegistryCredentials"),
    ),
    "CustomerService": ("GetCustomer", "CreateApiKey", "ListApiKeys"),
    "ClusterService": ("GetCluster", "DrainExecutor"),
}
"""Methods that may be called again when an answer is lost: they change nothing, or do the same
twice, or carry a request_id (which the client makes). Updates, deletes and resumes are not here: a
second one could be refused for the first one's success."""


def service_config() -> str:
    """The gRPC service config: retries of repeatable methods."""
    return json.dumps(
        {
            "methodConfig": [
                {
                    "name": [
                        {"service": f"tickmesh.v1.{service}", "method": method}
                        for service, methods in REPEATABLE.items()
                        for method in methods
                    ],
                    "retryPolicy": {
                        "maxAttempts": limits.RETRY_ATTEMPTS_MAX,
                        "initialBackoff": f"{limits.RETRY_DELAY_S}s",
                        "maxBackoff": f"{limits.RETRY_DELAY_MAX_S}s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ]
        }
    )


def _options() -> list[tuple[str, Any]]:
    return [
        ("grpc.service_config", service_config()),
        ("grpc.enable_retries", 1),
        # A gateway that restarts is found again soon, not after gRPC's default of up to 2 minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Whether the other side of a silent stream lives; servers refuse to be asked more often.
        ("grpc.keepalive_time_ms", 330_000),
    ]


def _credentials(target: Target) -> grpc.ChannelCredentials:
    authority = Path(target.ca_file).read_bytes() if target.ca_file else None
    return grpc.ssl_channel_credentials(root_certificates=authority)


def _metadata(target: Target) -> tuple[tuple[str, str], ...]:
    """Sent with each call. Never to another machine in plain text: see target.resolve."""
    return (("authorization", f"Bearer {target.api_key}"),) if target.api_key else ()


def explain(error: grpc.RpcError, address: str, deadline_s: float) -> TickmeshError:
    """The error behind a failed call; where gRPC itself made it, with what a user can do."""
    found = from_rpc_error(error)
    metadata: Any = error.trailing_metadata() or ()
    if any(key == STATUS_METADATA_KEY for key, _ in metadata):
        return found
    if isinstance(found, Unavailable):
        refused = "Connection refused"  # of all that gRPC says then, the one thing to know
        why = refused if refused in found.message else found.message
        return Unavailable(
            f"no mesh answers at {address} ({why}): start one with `tickmesh dev`, or "
            "name another address"
        )
    if isinstance(found, DeadlineExceeded):
        return DeadlineExceeded(f"no answer from {address} within {deadline_s:g} s")
    return found


class Patience:
    """How long a broken stream is opened again, and after which waits. One stream each."""

    def __init__(self) -> None:
        self.heard()

    def heard(self) -> None:
        """The stream works: start afresh when it next breaks."""
        self._broken_at: float | None = None
        self._delay_s = limits.RECONNECT_DELAY_S

    def delay_s(self, error: TickmeshError) -> float:
        """How long to wait before the next try; raises the error when it has been too long."""
        now = time.monotonic()
        if self._broken_at is None:
            self._broken_at = now
        elif now - self._broken_at > limits.RECONNECT_S:
            raise error
        delay_s = self._delay_s
        self._delay_s = min(2 * delay_s, limits.RECONNECT_DELAY_MAX_S)
        return delay_s


class Deadline:
    """A moment by which something must be done, or none (None)."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._at = None if seconds is None else time.monotonic() + seconds

    def left_s(self, most_s: float) -> float:
        """Seconds from now, at most `most_s`, never negative."""
        return most_s if self._at is None else max(0.0, min(most_s, self._at - time.monotonic()))

    def rest_s(self) -> float | None:
        """Seconds from now, never negative; None if there is no such moment."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return self._at is not None and time.monotonic() >= self._at


class AsyncTransport:
    """Calls of one asyncio event loop: make it where that loop runs."""

    def __init__(self, target: Target, deadline_s: float) -> None:
        self.target = target
        self.deadline_s = deadline_s
        self._metadata = _metadata(target)
        if target.tls:
            self.channel = grpc.aio.secure_channel(
                target.address, _credentials(target), options=_options()
            )
        else:
            self.channel = grpc.aio.insecure_channel(target.address, options=_options())

    async def aclose(self) -> None:
        """Close the connection; calls under way fail."""
        await self.channel.close()

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Q, A],
        request: Q,
        deadline_s: float | None,
    ) -> A:
        """One question, one answer. Raises TickmeshError."""
        deadline_s = self.deadline_s if deadline_s is None else deadline_s
        try:
            return await method(request, timeout=deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise explain(error, self.target.address, deadline_s) from None

    async def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Q, A],
        request: Q,
        deadline_s: float,
    ) -> AsyncIterator[A]:
        """One question, many answers; leaving the loop ends the call. Raises TickmeshError."""
        call = method(request, timeout=deadline_s, metadata=self._metadata)
        try:
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            raise explain(error, self.target.address, deadline_s) from None
        finally:
            call.cancel()

    async def upload(
        self,
        method: grpc.aio.StreamUnaryMultiCallable[Q, A],
        requests: Iterator[Q],
        deadline_s: float,
    ) -> A:
        """Many messages, one answer. They are made in a thread, as that reads a file."""

        async def each() -> AsyncIterator[Q]:
            while (request := await asyncio.to_thread(next, requests, None)) is not None:
                yield request

        try:
            return await method(each(), timeout=deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise explain(error, self.target.address, deadline_s) from None

    async def blocking(self, work: Callable[[], A]) -> A:
        """Do something that blocks."""
        return await asyncio.to_thread(work)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class Transport:
    """Blocking calls, from any thread."""

    def __init__(self, target: Target, deadline_s: float) -> None:
        self.target = target
        self.deadline_s = deadline_s
        self._metadata = _metadata(target)
        if target.tls:
            self.channel = grpc.secure_channel(
                target.address, _credentials(target), options=_options()
            )
        else:
            self.channel = grpc.insecure_channel(target.address, options=_options())

    def close(self) -> None:
        """Close the connection; calls under way fail."""
        self.channel.close()

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Q, A],
        request: Q,
        deadline_s: float | None,
    ) -> A:
        """One question, one answer. Raises TickmeshError."""
        deadline_s = self.deadline_s if deadline_s is None else deadline_s
        try:
            return method(request, timeout=deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise explain(error, self.target.address, deadline_s) from None

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Q, A],
        request: Q,
        deadline_s: float,
    ) -> Iterator[A]:
        """One question, many answers; leaving the loop ends the call. Raises TickmeshError."""
        call = method(request, timeout=deadline_s, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise explain(error, self.target.address, deadline_s) from None
        finally:
            call.cancel()

    def upload(
        self,
        method: grpc.StreamUnaryMultiCallable[Q, A],
        requests: Iterator[Q],
        deadline_s: float,
    ) -> A:
        """Many messages, one answer."""
        try:
            return method(requests, timeout=deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise explain(error, self.target.address, deadline_s) from None

    def blocking(self, work: Callable[[], A]) -> A:
        """Do something that blocks."""
        return work()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
