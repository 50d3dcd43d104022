"""The table of public methods: what the gateway does with each, and how it reads a request.

A row names the method, its kind, the field that routes it and how it may be repeated. The request
types and the request_id fields come from the descriptors (descriptors.py). Nothing here does I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from . import descriptors

ANSWER_BYTES_SMALL = 16 * 1024
"""A usual answer of one resource, for sharing out a batch's answer (see shards.py)."""

ANSWER_BYTES_LARGE = 2 * 1024 * 1024
"""A usual large page, or the answer to a batch."""


class Kind(enum.Enum):
    """Who answers a method."""

    SHARD = "shard"
    """The leader of the customer's shard, as one of many calls in a message."""
    SHARD_SLOW = "shard slow"
    """The same, in a message of its own: others need not wait for an answer that takes long."""
    WATCH = "watch"
    """The leader, as a stream."""
    LOGS = "logs"
    """The executor that holds the output."""
    IMAGE_IMPORT = "image import"
    """Every executor."""
    IMAGE = "image"
    """The executors, from what they hold."""
    CLUSTER = "cluster"
    """The gateway, from what the replicas tell."""
    EXECUTOR = "executor"
    """The executor that the request names."""
    OPERATION = "operation"
    """The leader of the shard that the request names."""
    """Nobody yet."""


class Repeat(enum.Enum):
    """Whether a call may be sent again after its leader was lost before it answered."""

    SAFE = "safe"
    """It changes nothing, or the same thing whatever the number of times."""
    BY_REQUEST_ID = "by request_id"
    """The shard answers a second one as the first, by its request_id; one is made if there is
    none."""
    NEVER = "never"
    """The caller is told that the outcome is unknown."""


class Method(NamedTuple):
    """One public method."""

    name: str
    """As "tickmesh.v1.JobService/CreateJob"."""
    kind: Kind
    routing_field: str
    """Path of the field with a resource name whose customer owns the call. Empty: none."""
    repeat: Repeat
    request_type: type[Message]
    """The annotated message class (see descriptors.py)."""
    read_name: Callable[[Any], str]
    """Reads the routing field of a request of that type."""
    request_id_tag: bytes
    """The tag and length bytes of a request_id of REQUEST_ID_CHARACTERS. Empty: no such field."""
    answer_bytes: int
    """Usual size of an answer."""

    @property
    def path(self) -> str:
        """As gRPC names it on the wire."""
        return f"/{self.name}"


REQUEST_ID_CHARACTERS = 32
"""A request_id made by the gateway: 128 random bits in hexadecimal."""

_S, _R, _N = Repeat.SAFE, Repeat.BY_REQUEST_ID, Repeat.NEVER
_SMALL, _LARGE = ANSWER_BYTES_SMALL, ANSWER_BYTES_LARGE

_ROWS: dict[str, tuple[Kind, str, Repeat, int]] = {
    "JobService/CreateJob": (Kind.SHARD, "parent", _R, _SMALL),
    "JobService/BatchCreateJobs": (Kind.SHARD, "parent", _R, _LARGE),
    "JobService/GetJob": (Kind.SHARD, "name", _S, _SMALL),
    "JobService/ListJobs": (Kind.SHARD, "parent", _S, _LARGE),
    "JobService/UpdateJob": (Kind.SHARD, "job.name", _N, _SMALL),
    "JobService/DeleteJob": (Kind.SHARD, "name", _N, _SMALL),
    "ScheduleService/CreateSchedule": (Kind.SHARD, "parent", _R, _SMALL),
    "ScheduleService/BatchCreateSchedules": (Kind.SHARD, "parent", _R, _LARGE),
    "ScheduleService/GetSchedule": (Kind.SHARD, "name", _S, _SMALL),
    "ScheduleService/ListSchedules": (Kind.SHARD, "parent", _S, _LARGE),
    "ScheduleService/UpdateSchedule": (Kind.SHARD, "schedule.name", _N, _SMALL),
    "ScheduleService/DeleteSchedule": (Kind.SHARD, "name", _N, _SMALL),
    "ScheduleService/PauseSchedule": (Kind.SHARD, "name", _N, _SMALL),
    "ScheduleService/ResumeSchedule": (Kind.SHARD, "name", _N, _SMALL),
    "ScheduleService/PreviewSchedule": (Kind.SHARD, "parent", _S, _LARGE),
    "ScheduleService/TriggerSchedule": (Kind.SHARD, "name", _R, _SMALL),
    "ScheduleService/BackfillSchedule": (Kind.SHARD, "name", _R, _SMALL),
    # As with an execution's.
    "ScheduleService/CancelBackfill": (Kind.SHARD, "name", _S, _SMALL),
    "ScheduleService/ListFires": (Kind.SHARD, "parent", _S, _LARGE),
    "ScheduleService/GetScheduleStatistics": (Kind.SHARD_SLOW, "name", _S, _SMALL),
    "ScheduleService/VerifySchedule": (Kind.SHARD_SLOW, "name", _S, _SMALL),
    "CalendarService/CreateCalendar": (Kind.SHARD, "parent", _R, _SMALL),
    "CalendarService/GetCalendar": (Kind.SHARD, "name", _S, _SMALL),
    "CalendarService/ListCalendars": (Kind.SHARD, "parent", _S, _LARGE),
    # Slow: it ends once every schedule that uses the calendar follows.
    "CalendarService/UpdateCalendar": (Kind.SHARD_SLOW, "calendar.name", _N, _SMALL),
    "CalendarService/DeleteCalendar": (Kind.SHARD, "name", _N, _SMALL),
    "ExecutionService/ExecuteJob": (Kind.SHARD, "name", _R, _SMALL),
    "ExecutionService/BatchExecuteJobs": (Kind.SHARD, "parent", _R, _LARGE),
    "ExecutionService/GetExecution": (Kind.SHARD, "name", _S, _SMALL),
    "ExecutionService/ListExecutions": (Kind.SHARD, "parent", _S, _LARGE),
    # Cancelling twice is cancelling once (execution.proto).
    "ExecutionService/CancelExecution": (Kind.SHARD, "name", _S, _SMALL),
    "ExecutionService/WatchExecutions": (Kind.WATCH, "parent", _S, _SMALL),
    "ExecutionService/StreamLogs": (Kind.LOGS, "name", _S, _SMALL),
    "ImageService/ImportImage": (Kind.IMAGE_IMPORT, "name", _N, _SMALL),
    "ImageService/GetRegistry": (Kind.IMAGE, "name", _S, _SMALL),
    "ImageService/PullImage": (Kind.IMAGE, "name", _S, _SMALL),
    # The same login again takes the first one's place.
    "ImageService/CreateRegistryCredential": (Kind.SHARD, "parent", _S, _SMALL),
    "ImageService/ListRegistryCredentials": (Kind.SHARD, "parent", _S, _SMALL),
    "ImageService/DeleteRegistryCredential": (Kind.SHARD, "name", _N, _SMALL),
    "ImageService/GetImage": (Kind.IMAGE, "name", _S, _SMALL),
    "ImageService/ListImages": (Kind.IMAGE, "parent", _S, _LARGE),
    "ImageService/DeleteImage": (Kind.IMAGE, "name", _S, _SMALL),
    "CustomerService/GetCustomer": (Kind.SHARD, "name", _S, _SMALL),
    "CustomerService/UpdateCustomer": (Kind.SHARD, "customer.name", _N, _SMALL),
    "CustomerService/CreateApiKey": (Kind.SHARD, "parent", _R, _SMALL),
    "CustomerService/ListApiKeys": (Kind.SHARD, "parent", _S, _LARGE),
    "CustomerService/RevokeApiKey": (Kind.SHARD, "name", _N, _SMALL),
    "ClusterService/GetCluster": (Kind.CLUSTER, "", _S, _SMALL),
    "ClusterService/DrainExecutor": (Kind.EXECUTOR, "", _S, _SMALL),
    "ClusterService/AddReplica": (Kind.OPERATION, "", _N, _SMALL),
    "ClusterService/RemoveReplica": (Kind.OPERATION, "", _N, _SMALL),
    "ClusterService/TransferLeadership": (Kind.OPERATION, "", _N, _SMALL),
    "ZoneService/PreviewZones": (Kind.OPERATION, "", _S, _LARGE),
    "ZoneService/UpgradeZones": (Kind.OPERATION, "", _N, _SMALL),
    "ClusterService/BackupShard": (Kind.OPERATION, "", _N, _SMALL),
}


def _no_name(_request: Any) -> str:
    return ""


def _reader(path: str) -> Callable[[Any], str]:
    """A function that reads one field by its path of at most two parts."""
    if not path:
        return _no_name
    first, _, second = path.partition(".")
    if not second:
        return lambda request: str(getattr(request, first))
    return lambda request: str(getattr(getattr(request, first), second))


def _request_id_tag(request_type: type[Message]) -> bytes:
    """The bytes before the text of a request_id of REQUEST_ID_CHARACTERS, as protobuf writes it.

    A field that is appended to a serialised message replaces an earlier one of the same number, so
    an absent request_id can be added without serialising the request anew.
    """
    field = request_type.DESCRIPTOR.fields_by_name.get("request_id")
    if field is None:
        return b""
    assert field.type == FieldDescriptor.TYPE_STRING and field.number < 16
    return bytes((field.number << 3 | 2, REQUEST_ID_CHARACTERS))


def _method(short_name: str) -> Method:
    kind, routing_field, repeat, answer_bytes = _ROWS[short_name]
    name = f"{descriptors.PUBLIC_PACKAGE}.{short_name}"
    request_type = descriptors.request_type(name)
    tag = _request_id_tag(request_type)
    assert (repeat is Repeat.BY_REQUEST_ID) == bool(tag), name
    return Method(
        name, kind, routing_field, repeat, request_type, _reader(routing_field), tag, answer_bytes
    )


METHODS: dict[str, Method] = {method.name: method for method in map(_method, _ROWS)}
"""Every public method, by its full name."""

SERVICES: tuple[str, ...] = tuple(dict.fromkeys(name.partition("/")[0] for name in METHODS))
"""Full names of the public services."""
