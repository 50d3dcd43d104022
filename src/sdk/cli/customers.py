"""`tickmesh customer`: what is kept of a customer's history."""

from __future__ import annotations

from datetime import timedelta

import click

from .groups import NounGroup
from .output import output_option, print_one
from .parameters import COUNT_OR_NONE, DURATION_OR_NONE
from .settings import Settings, pass_settings


@click.group(cls=NounGroup)
def group() -> None:
    """The customer: how long its ended executions are kept."""


@group.command("get")
@output_option
@pass_settings
def get(settings: Settings, /, output: str) -> None:
    """Show what is kept."""
    from . import tables

    print_one(output, tables.CUSTOMERS, settings.client.get_customer())


@group.command("update")
@click.option(
    "--max-age",
    type=DURATION_OR_NONE,
    help="Keep executions for so long after their end, as 48h; none: as long as the mesh does.",
)
@click.option(
    "--executions-per-job",
    type=COUNT_OR_NONE,
    help="Keep so many ended executions of each job, the latest; none: all.",
)
@output_option
@pass_settings
def update(
    settings: Settings,
    /,
    max_age: timedelta | str | None,
    executions_per_job: int | str | None,
    output: str,
) -> None:
    """Change what is kept. What is over a limit is forgotten soon, and does not come back."""
    from .. import types
    from . import tables

    if max_age is None and executions_per_job is None:
        raise click.UsageError("give --max-age, --executions-per-job, or both")
    client = settings.client
    before = client.get_customer()
    age, count = before.retention.max_age, before.retention.executions_per_job_max
    if max_age is not None:
        age = max_age if isinstance(max_age, timedelta) else None
    if executions_per_job is not None:
        count = executions_per_job if isinstance(executions_per_job, int) else 0
    retention = types.Retention(max_age=age, executions_per_job_max=count)
    made = client.set_retention(retention, etag=before.etag)
    print_one(output, tables.CUSTOMERS, made)
