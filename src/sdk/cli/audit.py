"""`tickmesh audit`: whether what the mesh says of itself is true."""

from __future__ import annotations

import sys
from datetime import datetime

import click

from .groups import NounGroup
from .output import print_one, print_table, rows_option
from .parameters import INSTANT
from .settings import Settings, pass_settings


@click.group(cls=NounGroup)
def group() -> None:
    """Whether ledgers tell the truth."""


@group.command("verify")
@click.option("--schedule", metavar="JOB/SCHEDULE", required=True, help="Whose ledger.")
@click.option("--from", "start", type=INSTANT, help="Instants from it on. Default: all.")
@click.option("--to", "end", type=INSTANT, help="Instants before it. Default: now.")
@click.option("--uid", default="", help="Of the schedule that is meant, if others had its name.")
@rows_option
@pass_settings
def verify(
    settings: Settings,
    /,
    schedule: str,
    start: datetime | None,
    end: datetime | None,
    uid: str,
    output: str,
) -> int:
    """Compute a schedule's instants again, and compare them with its ledger and executions.

    Ends with 1 if something is wrong: a row that was changed, removed or doubled, an instant
    without a row, a fire without an execution.
    """
    from . import tables

    found = settings.client.schedules.verify(schedule, start_time=start, end_time=end, uid=uid)
    if output != "table":
        print_one(output, (), found)
    else:
        if found.problems:
            print_table(tables.PROBLEMS, found.problems)
        count = len(found.problems)
        said = f"{count or 'no'} problem{'s' if count > 1 else ''}"
        looked_at = f"{found.instant_count} instants, {found.row_count} rows"
        print(f"schedule {schedule}: {looked_at}: {said}")
    if not found.complete:
        print("not everything was looked at: rows are forgotten, or too many", file=sys.stderr)
    return 1 if found.problems else 0
