"""The short names that people write, made resource names (mesh/names.py).

    hello               customers/{customer}/jobs/hello
    hello/every-second  customers/{customer}/jobs/hello/schedules/every-second
    hello/0abc          customers/{customer}/jobs/hello/executions/0abc
    report:1            customers/{customer}/images/report:1
    0123456789abcdef    customers/{customer}/keys/0123456789abcdef, of an API key
    holidays            customers/{customer}/calendars/holidays

A full name is taken as it is.
"""

from __future__ import annotations

import re

from ..mesh import names
from ..mesh.errors import invalid

DEFAULT_TAG = "latest"
_IMAGE = re.compile(r"([a-z0-9]+(?:[._-]+[a-z0-9]+)*)(?::([A-Za-z0-9_][A-Za-z0-9._-]{0,63}))?")


def job(customer: str, given: str) -> str:
    """A job by its id or name. Raises InvalidRequest."""
    if given.startswith("customers/"):
        return names.job_name(*names.parse_job(given, "job"))
    if "/" in given or not given:
        raise invalid("job", f"{given!r} is not a job's id, nor its name customers/C/jobs/J")
    return names.job_name(customer, given)


def schedule(customer: str, given: str) -> str:
    """A schedule by job/schedule or name. Raises InvalidRequest."""
    if given.startswith("customers/"):
        return names.schedule_name(*names.parse_schedule(given, "schedule"))
    job_id, _, schedule_id = given.partition("/")
    if not job_id or not schedule_id or "/" in schedule_id:
        raise invalid("schedule", f"{given!r} is not of the form JOB/SCHEDULE")
    return names.schedule_name(customer, job_id, schedule_id)


def calendar(customer: str, given: str) -> str:
    """A calendar by its id or name. Raises InvalidRequest."""
    if given.startswith("customers/"):
        return names.calendar_name(*names.parse_calendar(given, "calendar"))
    if "/" in given or not given:
        raise invalid(
            "calendar", f"{given!r} is not a calendar's id, nor its name customers/C/calendars/N"
        )
    return names.calendar_name(customer, given)


def execution(customer: str, given: str) -> str | None:
    """An execution by job/execution or name; None for an id alone, which has to be looked for.
    Raises InvalidRequest."""
    if given.startswith("customers/"):
        return names.execution_name(*names.parse_execution(given, "execution"))
    if given and "/" not in given:
        return None
    job_id, _, execution_id = given.partition("/")
    if not job_id or not execution_id or "/" in execution_id:
        raise invalid("execution", f"{given!r} is not of the form JOB/EXECUTION or EXECUTION")
    return names.execution_name(customer, job_id, execution_id)


def image(customer: str, given: str) -> str:
    """A pushed or imported image by its id or name."""
    return given if given.startswith("customers/") else f"customers/{customer}/images/{given}"


def key(customer: str, given: str) -> str:
    """An API key by its id or name."""
    return given if given.startswith("customers/") else names.key_name(customer, given)


def image_repository(customer: str, given: str) -> tuple[str, str]:
    """Where a registry has an image that is given by its id or name: repository and tag. Raises
    InvalidRequest."""
    parts = image(customer, given).split("/")
    match = _IMAGE.fullmatch(parts[-1])
    if len(parts) != 4 or match is None:
        raise invalid("image", f"{given!r} is not of the form NAME:TAG, as report:1")
    return f"{parts[1]}/{match[1]}", match[2] or DEFAULT_TAG


def customer(given: str) -> str:
    """A customer's name."""
    return names.customer_name(given)


def jobs_of(customer: str, job_or_any: str) -> str:
    """What to list or watch executions of: a job, or every job ("" or "-")."""
    if job_or_any in ("", names.ANY_JOB):
        return names.job_name(customer, names.ANY_JOB)
    return job(customer, job_or_any)
