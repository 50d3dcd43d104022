"""Resource names (AIP-122), built and taken apart in one place.

customers/{customer}
customers/{customer}/jobs/{job}
customers/{customer}/jobs/{job}/schedules/{schedule}
customers/{customer}/jobs/{job}/executions/{execution}
customers/{customer}/calendars/{calendar}
customers/{customer}/images/{image}
customers/{customer}/keys/{key}
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import invalid

ID_PATTERN = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ID = re.compile(ID_PATTERN)
ANY_JOB = "-"


class ExecutionName(NamedTuple):
    """The parts of an execution's name."""

    customer: str
    job: str
    execution: str


class ScheduleName(NamedTuple):
    """The parts of a schedule's name."""

    customer: str
    job: str
    schedule: str


class KeyName(NamedTuple):
    """The parts of an API key's name."""

    customer: str
    key: str


class CalendarName(NamedTuple):
    """The parts of a calendar's name."""

    customer: str
    calendar: str


class JobName(NamedTuple):
    """The parts of a job's name."""

    customer: str
    job: str


def customer_name(customer: str) -> str:
    """customers/{customer}"""
    return f"customers/{customer}"


def job_name(customer: str, job: str) -> str:
    """customers/{customer}/jobs/{job}"""
    return f"customers/{customer}/jobs/{job}"


def schedule_name(customer: str, job: str, schedule: str) -> str:
    """customers/{customer}/jobs/{job}/schedules/{schedule}"""
    return f"customers/{customer}/jobs/{job}/schedules/{schedule}"


def calendar_name(customer: str, calendar: str) -> str:
    """customers/{customer}/calendars/{calendar}"""
    return f"customers/{customer}/calendars/{calendar}"


def execution_name(customer: str, job: str, execution: str) -> str:
    """customers/{customer}/jobs/{job}/executions/{execution}"""
    return f"customers/{customer}/jobs/{job}/executions/{execution}"


def key_name(customer: str, key: str) -> str:
    """customers/{customer}/keys/{key}"""
    return f"customers/{customer}/keys/{key}"


def _parts(name: str, shape: tuple[str, ...], field: str) -> list[str]:
    parts = name.split("/")
    if len(parts) != 2 * len(shape) or tuple(parts[0::2]) != shape:
        form = "/".join(f"{collection}/{{{collection[:-1]}}}" for collection in shape)
        raise invalid(field, f"{name[:80]!r} is not a name of the form {form}")
    return parts[1::2]


def parse_customer(name: str, field: str = "parent") -> str:
    """The customer id of customers/{customer}; InvalidRequest naming `field` otherwise."""
    return _parts(name, ("customers",), field)[0]


def parse_job(name: str, field: str = "name") -> JobName:
    """The ids in a job's name; InvalidRequest naming `field` otherwise."""
    return JobName(*_parts(name, ("customers", "jobs"), field))


def parse_schedule(name: str, field: str = "name") -> ScheduleName:
    """The ids in a schedule's name; InvalidRequest naming `field` otherwise."""
    return ScheduleName(*_parts(name, ("customers", "jobs", "schedules"), field))


def parse_calendar(name: str, field: str = "name") -> CalendarName:
    """The ids in a calendar's name; InvalidRequest naming `field` otherwise."""
    return CalendarName(*_parts(name, ("customers", "calendars"), field))


def parse_execution(name: str, field: str = "name") -> ExecutionName:
    """The ids in an execution's name; InvalidRequest naming `field` otherwise."""
    return ExecutionName(*_parts(name, ("customers", "jobs", "executions"), field))


def parse_key(name: str, field: str = "name") -> KeyName:
    """The ids in an API key's name; InvalidRequest naming `field` otherwise."""
    return KeyName(*_parts(name, ("customers", "keys"), field))


def is_id(text: str) -> bool:
    """Whether text can be the id of a customer, job or schedule."""
    return _ID.fullmatch(text) is not None
