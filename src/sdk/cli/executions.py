"""`tickmesh execution` and `tickmesh logs`: runs of jobs."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

import click

from .groups import NounGroup
from .output import (
    Column,
    live_table,
    output_option,
    print_line,
    print_list,
    print_one,
    print_table,
)
from .run import write_logs
from .settings import Settings, pass_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..sync import Client
    from ..types import Execution

STATES = ("PENDING", "ASSIGNED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "REVOKED")

LIVE_ROWS_MAX = 200
"""Executions kept for the live table: more than any terminal has rows."""

WIDTHS = {
    "EXECUTION": 32,
    "DUE": 24,
    "LATE (MS)": 9,
    "STATE": 9,
    "EXIT": 4,
    "DURATION": 8,
    "OUTPUT": 24,
}
"""Of the columns of a watch that is no live table."""

OUTPUT_SHOWN_MAX = 60
"""Characters of an execution's output in its row."""


@click.group(cls=NounGroup)
def group() -> None:
    """Runs of jobs. An execution is named JOB/EXECUTION, or EXECUTION if it is recent."""


@group.command("list")
@click.argument("job", required=False)
@click.option("--schedule", metavar="JOB/SCHEDULE", default="", help="Only those it fired.")
@click.option(
    "--state",
    "states",
    type=click.Choice(STATES, case_sensitive=False),
    multiple=True,
    help="Only those in this state (or these).",
)
@click.option(
    "-n", "--limit", type=click.IntRange(0), default=20, show_default=True, help="0: all."
)
@output_option
@pass_settings
def list_(
    settings: Settings,
    /,
    job: str | None,
    schedule: str,
    states: tuple[str, ...],
    limit: int,
    output: str,
) -> None:
    """List executions of a job, or of all, newest first."""
    from .. import types
    from . import tables

    found = settings.client.executions.list(
        job or "",
        schedule=schedule,
        states=[types.ExecutionState(state.upper()) for state in states],
        page_size=min(limit, 1_000) or 1_000,
    )
    shown = itertools.islice(found, limit) if limit else found
    print_list(output, tables.EXECUTIONS, shown, "no executions")


@group.command("get")
@click.argument("execution")
@output_option
@pass_settings
def get(settings: Settings, /, execution: str, output: str) -> None:
    """Show an execution, with its attempts and what each used."""
    from . import tables

    seen = settings.client.executions.get(execution)
    print_one(output, tables.EXECUTIONS, seen)
    if output == "table" and seen.attempts:
        print()
        print_table(tables.ATTEMPTS, seen.attempts)


@group.command("cancel")
@click.argument("executions", nargs=-1, required=True)
@pass_settings
def cancel(settings: Settings, /, executions: tuple[str, ...]) -> None:
    """Ask executions to end: SIGTERM, the grace period, SIGKILL."""
    from . import tables

    for execution in executions:
        seen = settings.client.executions.cancel(execution)
        done = f"has ended: {seen.state}" if seen.state.final else "is asked to end"
        print(f"execution {tables.short_name(seen)} {done}", flush=True)


@group.command("watch")
@click.argument("job", required=False)
@click.option("--schedule", metavar="JOB/SCHEDULE", default="", help="Only those it fires.")
@click.option("-n", "--limit", type=click.IntRange(1), help="End after so many have ended.")
@click.option("--logs", is_flag=True, help="Also show what each wrote first, once it has ended.")
@output_option
@pass_settings
def watch(
    settings: Settings,
    /,
    job: str | None,
    schedule: str,
    limit: int | None,
    logs: bool,
    output: str,
) -> None:
    """Show executions of a job, or of all, as they change. Ctrl-C ends it.

    A live table on a terminal; elsewhere one line for each change (-o json: one object a line).
    """
    from . import tables

    columns = tables.EXECUTIONS
    client = settings.client
    if job and job.count("/") == 1:
        changes: Iterable[Execution] = client.executions.changes(job)
    else:
        changes = client.executions.watch(job or "", schedule=schedule)
    limited = _until_ended(changes, limit)
    if logs:
        outputs: dict[str, str] = {}
        limited = _with_output(client, limited, outputs)
        columns = (*columns[:-1], Column("OUTPUT", lambda e: outputs.get(e.name, "")), columns[-1])
    if output != "table":
        for each in limited:
            print_line(output, each)
    elif sys.stdout.isatty():
        _watch_live(limited, columns)
    else:
        _watch_lines(limited, columns)


def _with_output(
    client: Client, changes: Iterable[Execution], outputs: dict[str, str]
) -> Iterable[Execution]:
    """The changes; before an end is passed on, what it wrote first is in `outputs`."""
    for each in changes:
        if each.state.final and each.start_time is not None:
            text = "".join(
                chunk.data.decode("utf-8", "replace")
                for chunk in itertools.islice(client.executions.logs(each.name), 1)
            )
            outputs[each.name] = text.partition("\n")[0][:OUTPUT_SHOWN_MAX]
        yield each


def _until_ended(changes: Iterable[Execution], limit: int | None) -> Iterable[Execution]:
    """The changes, up to the end of the limit-th execution."""
    ended: set[str] = set()
    for each in changes:
        yield each
        if each.state.final:
            ended.add(each.name)
            if limit is not None and len(ended) >= limit:
                return


def _watch_live(changes: Iterable[Execution], columns: tuple[Column[Execution], ...]) -> None:
    rows: dict[str, Execution] = {}
    with live_table(columns) as show:
        show([])
        for each in changes:
            rows[each.name] = each
            if len(rows) > LIVE_ROWS_MAX:
                del rows[next(iter(rows))]
            show(list(rows.values()))


def _watch_lines(changes: Iterable[Execution], columns: tuple[Column[Execution], ...]) -> None:
    print(_line(columns, [column.heading for column in columns]), flush=True)
    for each in changes:
        print(_line(columns, [column.show(each) for column in columns]), flush=True)


def _line(columns: tuple[Column[Execution], ...], cells: list[str]) -> str:
    """Columns of fixed widths, as what is to come is not known yet; the last is as it is."""
    padded = [
        cell.rjust(WIDTHS[column.heading]) if column.right else cell.ljust(WIDTHS[column.heading])
        for column, cell in zip(columns[:-1], cells, strict=False)
    ]
    return "   ".join([*padded, cells[-1]]).rstrip()


@click.command()
@click.argument("execution")
@click.option("-f", "--follow", is_flag=True, help="Go on until it has ended.")
@click.option("--attempt", type=click.IntRange(1), help="Default: the last.")
@click.option("-t", "--timestamps", is_flag=True, help="Before each line, when it was read.")
@pass_settings
def logs(
    settings: Settings, /, execution: str, follow: bool, attempt: int | None, timestamps: bool
) -> None:
    """Print what an execution wrote: its stdout to stdout, its stderr to stderr."""
    chunks = settings.client.executions.logs(execution, follow=follow, attempt=attempt or 0)
    write_logs(chunks, timestamps)
