"""Who may call what: the scopes of every method, in one table, and the check by it. No I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from ..mesh.errors import NotFound, ScopeMissing
from . import descriptors
from .methods import METHODS, Method


class Scope(enum.IntFlag):
    """What a key may do. The first three are a customer's (tickmesh.v1.ApiScope)."""

    READ = enum.auto()
    EXECUTE = enum.auto()
    ADMIN = enum.auto()
    OPERATOR = enum.auto()
    """Of the mesh: keys of every customer, and the mesh itself; nothing that customers own."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls."""

    customer: str
    """Empty: an operator."""
    scopes: Scope
    key_id: str
    """For logs. Never the key."""


_READ, _EXECUTE, _ADMIN = Scope.READ, Scope.EXECUTE, Scope.ADMIN
_OPERATOR = Scope.OPERATOR
_ROWS: dict[str, Scope] = {
    "JobService/CreateJob": _ADMIN,
    "JobService/BatchCreateJobs": _ADMIN,
    "JobService/GetJob": _READ,
    "JobService/ListJobs": _READ,
    "JobService/UpdateJob": _ADMIN,
    "JobService/DeleteJob": _ADMIN,
    "ScheduleService/CreateSchedule": _ADMIN,
    "ScheduleService/BatchCreateSchedules": _ADMIN,
    "ScheduleService/GetSchedule": _READ,
    "ScheduleService/ListSchedules": _READ,
    "ScheduleService/UpdateSchedule": _ADMIN,
    "ScheduleService/DeleteSchedule": _ADMIN,
    "ScheduleService/PauseSchedule": _ADMIN,
    "ScheduleService/ResumeSchedule": _ADMIN,
    "ScheduleService/PreviewSchedule": _READ,
    "ScheduleService/TriggerSchedule": _EXECUTE,
    "ScheduleService/BackfillSchedule": _EXECUTE,
    "ScheduleService/CancelBackfill": _EXECUTE,
    "ScheduleService/ListFires": _READ,
    "ScheduleService/GetScheduleStatistics": _READ,
    "ScheduleService/VerifySchedule": _READ,
    "CalendarService/CreateCalendar": _ADMIN,
    "CalendarService/GetCalendar": _READ,
    "CalendarService/ListCalendars": _READ,
    "CalendarService/UpdateCalendar": _ADMIN,
    "CalendarService/DeleteCalendar": _ADMIN,
    "ExecutionService/ExecuteJob": _EXECUTE,
    "ExecutionService/BatchExecuteJobs": _EXECUTE,
    "ExecutionService/GetExecution": _READ,
    "ExecutionService/ListExecutions": _READ,
    "ExecutionService/CancelExecution": _EXECUTE,
    "ExecutionService/WatchExecutions": _READ,
    "ExecutionService/StreamLogs": _READ,
    "ImageService/ImportImage": _ADMIN,
    "ImageService/GetRegistry": _READ,
    "ImageService/PullImage": _ADMIN,
    "ImageService/CreateRegistryCredential": _ADMIN,
    "ImageService/ListRegistryCredentials": _READ,
    "ImageService/DeleteRegistryCredential": _ADMIN,
    "ImageService/GetImage": _READ,
    "ImageService/ListImages": _READ,
    "ImageService/DeleteImage": _ADMIN,
    "CustomerService/GetCustomer": _READ | _OPERATOR,
    "CustomerService/UpdateCustomer": _ADMIN | _OPERATOR,
    "CustomerService/CreateApiKey": _ADMIN | _OPERATOR,
    "CustomerService/ListApiKeys": _ADMIN | _OPERATOR,
    "CustomerService/RevokeApiKey": _ADMIN | _OPERATOR,
    "ClusterService/GetCluster": _OPERATOR,
    "ClusterService/DrainExecutor": _OPERATOR,
    "ClusterService/AddReplica": _OPERATOR,
    "ClusterService/RemoveReplica": _OPERATOR,
    "ClusterService/TransferLeadership": _OPERATOR,
    "ClusterService/BackupShard": _OPERATOR,
    "ZoneService/PreviewZones": _OPERATOR,
    "ZoneService/UpgradeZones": _OPERATOR,
}
"""Any one of a row's scopes is enough. A method without a row is open to nobody (a test holds the
table complete)."""

ACCESS: dict[str, Scope] = {
    f"{descriptors.PUBLIC_PACKAGE}.{name}": scopes for name, scopes in _ROWS.items()
}
"""By the methods' full names."""

_NOBODY = Scope(0)
_UPDATE_CUSTOMER = f"{descriptors.PUBLIC_PACKAGE}.CustomerService/UpdateCustomer"


def authorize(principal: Principal, method: Method, request: Any) -> None:
    """Raises NotFound for what is another customer's, whether it exists or not, and ScopeMissing.
    The request was validated."""
    name = method.read_name(request)
    wanted = ACCESS.get(method.name, _NOBODY)
    if principal.customer and name and name.split("/", 2)[1] != principal.customer:
        raise NotFound(f"there is no {name}", metadata={"resource": name})
    if not principal.scopes & wanted:
        needed = " or ".join(str(scope.name).lower() for scope in wanted) or "none that exists"
        has = ", ".join(str(scope.name).lower() for scope in principal.scopes)
        raise ScopeMissing(
            f"{method.name.rpartition('/')[2]} needs scope {needed}; the API key has: {has}",
            metadata={"method": method.name, "scope": needed},
        )
    if method.name == _UPDATE_CUSTOMER and principal.customer and _changes_plan(request):
        raise ScopeMissing(
            "a customer's plan is changed with an operator's key only: leave plan out of the "
            "update_mask and of the customer",
            metadata={"method": method.name, "scope": "operator"},
        )


def _changes_plan(request: Any) -> bool:
    paths = [path.split(".")[0] for path in request.update_mask.paths]
    return "plan" in paths or ("*" in paths and bool(request.customer.plan))


assert set(ACCESS) <= set(METHODS), "ACCESS names a method that is none"
