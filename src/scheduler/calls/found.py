"""What a name in a request means: the stored record, or NotFound."""

from __future__ import annotations

from ...mesh import names
from ...mesh.errors import NotFound
from ..core.model import Calendar, Job, Schedule
from ..store.queries import Queries


def job(queries: Queries, customer: str, job_id: str) -> Job:
    """Raises NotFound."""
    found = queries.job(customer, job_id)
    if found is None:
        raise NotFound(f"there is no {names.job_name(customer, job_id)}")
    return found


def schedule(queries: Queries, name: str, field: str = "name") -> Schedule:
    """Raises NotFound, or InvalidRequest for what is no name: `field` holds it."""
    parts = names.parse_schedule(name, field)
    parent = job(queries, parts.customer, parts.job)
    found = queries.schedule(parent.uid, parts.schedule)
    if found is None:
        raise NotFound(f"there is no {name}")
    return found


def calendar(queries: Queries, name: str, field: str = "name") -> Calendar:
    """The same of a calendar."""
    found = queries.calendar(*names.parse_calendar(name, field))
    if found is None:
        raise NotFound(f"there is no {name}")
    return found
