"""`tickmesh customer`: what is kept of a customer's history, and its plan."""

from __future__ import annotations

from datetime import timedelta

import click

from .groups import NounGroup
from .output import output_option, print_one
from .parameters import COUNT_OR_NONE, DURATION_OR_NONE
from .settings import Settings, pass_settings


@click.group(cls=NounGroup)
def group() -> None:
    """The customer: its plan, and how long its ended executions are kept."""


@group.command("get")
@output_option
@pass_settings
def get(settings: Settings, /, output: str) -> None:
    """Show the plan and what is kept; -o yaml shows all that the plan allows."""
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
@click.option("--plan", help="Put the customer on this plan: with an operator's key.")
@output_option
@pass_settings
def update(
    settings: Settings,
    /,
    max_age: timedelta | str | None,
    executions_per_job: int | str | None,
    plan: str | None,
    output: str,
) -> None:
    """Change the plan, or what is kept: what is over a limit of that is forgotten soon, and does
    not come back."""
    from .. import types
    from . import tables

    keeps = max_age is not None or executions_per_job is not None
    if not keeps and not plan:
        raise click.UsageError("give --max-age, --executions-per-job or --plan")
    client = settings.client
    before = client.set_plan(plan) if plan else client.get_customer()
    if not keeps:
        print_one(output, tables.CUSTOMERS, before)
        return
    age, count = before.retention.max_age, before.retention.executions_per_job_max
    if max_age is not None:
        age = max_age if isinstance(max_age, timedelta) else None
    if executions_per_job is not None:
        count = executions_per_job if isinstance(executions_per_job, int) else 0
    retention = types.Retention(max_age=age, executions_per_job_max=count)
    made = client.set_retention(retention, etag=before.etag)
    print_one(output, tables.CUSTOMERS, made)
