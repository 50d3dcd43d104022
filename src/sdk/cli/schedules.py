"""`tickmesh schedule`: when jobs fire."""

from __future__ import annotations

import itertools
import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from .groups import NounGroup
from .output import output_option, print_list, print_one, print_table, rows_option
from .parameters import DURATION, INSTANT, PAIR, WINDOW
from .settings import Settings, pass_settings


@click.group(cls=NounGroup)
def group() -> None:
    """When jobs fire. A schedule is named JOB/SCHEDULE."""


def _recurrence_options(function: Any) -> Any:
    """The options that say when."""
    for option in reversed(
        (
            click.option(
                "--cron", multiple=True, help='As "*/5 * * * *"; six fields: seconds first.'
            ),
            click.option("--every", type=DURATION, help="A fixed interval, as 90s."),
            click.option(
                "--at", type=INSTANT, multiple=True, help="As 2030-01-01T12:00Z, or +90s."
            ),
            click.option("--time-zone", default="", help="IANA, for --cron. [server: UTC]"),
            click.option(
                "--gap-policy",
                type=click.Choice(["AFTER", "SKIP"], case_sensitive=False),
                help="A local time that is skipped fires after the gap, or not. [server: AFTER]",
            ),
            click.option(
                "--fold-policy",
                type=click.Choice(["FIRST", "BOTH"], case_sensitive=False),
                help="A local time that happens twice fires once, or twice. [server: FIRST]",
            ),
            click.option(
                "--exclude-date", multiple=True, help="As 2030-12-25, or 12-25 of every year."
            ),
            click.option(
                "--exclude-window",
                type=WINDOW,
                multiple=True,
                help="As 2030-01-01T00:00Z/2030-01-02T00:00Z: no fire in it.",
            ),
            click.option(
                "--exclude-calendar", multiple=True, help="A calendar: no fire on its dates."
            ),
            click.option("--max-fires", type=int, default=0, help="Finished after so many."),
        )
    ):
        function = option(function)
    return function


def _policy_options(function: Any) -> Any:
    """The options that say what happens when things are not as planned."""
    for option in reversed(
        (
            click.option(
                "--overlap-policy",
                type=click.Choice(["ALLOW", "SKIP", "QUEUE", "REPLACE"], case_sensitive=False),
                help="When an earlier execution has not ended. [server: ALLOW]",
            ),
            click.option(
                "--overlap-queue-max",
                type=int,
                default=0,
                help="How many wait with QUEUE; at most 100. [server: 1]",
            ),
            click.option(
                "--misfire-policy",
                type=click.Choice(["LATEST", "SKIP", "ALL"], case_sensitive=False),
                help="Instants that nobody fired in time. [server: LATEST]",
            ),
            click.option("--misfire-window", type=DURATION, help="Older ones are not caught up."),
            click.option(
                "--misfire-max",
                type=int,
                default=0,
                help="Caught up at most with ALL; at most 1000. [server: 100]",
            ),
            click.option("--start-deadline", type=DURATION, help="A fire so late is skipped."),
            click.option(
                "--pause-after-failures",
                type=int,
                default=0,
                help="Pause when so many in a row have failed; at most 100.",
            ),
        )
    ):
        function = option(function)
    return function


def _other_options(function: Any) -> Any:
    """The options that a schedule has besides."""
    for option in reversed(
        (
            click.option("--start", type=INSTANT, help="No fire before it."),
            click.option("--end", type=INSTANT, help="No fire at or after it."),
            click.option("--jitter", type=DURATION, help="Move each fire later by up to this."),
            click.option("-p", "--payload", help="For each execution."),
            click.option(
                "--payload-file",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="The same from a file.",
            ),
            click.option(
                "-l",
                "--label",
                type=PAIR,
                multiple=True,
                metavar="KEY=VALUE",
                help="For filters.",
            ),
        )
    ):
        function = option(function)
    return function


def _payload(given: dict[str, Any]) -> bytes:
    if given["payload"] is not None and given["payload_file"] is not None:
        raise click.UsageError("--payload and --payload-file exclude one another")
    if given["payload_file"] is not None:
        return bytes(given["payload_file"].read_bytes())
    return os.fsencode(given["payload"] or "")


def _policies(given: dict[str, Any]) -> dict[str, Any]:
    """Of a Schedule."""
    from .. import types

    overlap, misfire = given["overlap_policy"], given["misfire_policy"]
    return {
        "overlap_policy": types.OverlapPolicy(overlap.upper()) if overlap else None,
        "overlap_queue_max": given["overlap_queue_max"],
        "misfire_policy": types.MisfirePolicy(misfire.upper()) if misfire else None,
        "misfire_window": given["misfire_window"],
        "misfire_max": given["misfire_max"],
        "start_deadline": given["start_deadline"],
        "pause_after_failures": given["pause_after_failures"],
    }


def _recurrence(given: dict[str, Any]) -> Any:
    if not (given["cron"] or given["every"] or given["at"]):
        raise click.UsageError("say when: --cron, --every or --at")
    return _recurrence_of(given)


def _recurrence_of(given: dict[str, Any]) -> Any:
    from .. import convert, types

    gap, fold = given["gap_policy"], given["fold_policy"]
    return convert.recurrence_of(
        cron=given["cron"],
        every=given["every"],
        at=given["at"],
        time_zone=given["time_zone"],
        gap_policy=types.GapPolicy(gap.upper()) if gap else None,
        fold_policy=types.FoldPolicy(fold.upper()) if fold else None,
        start_time=given.get("start"),
        end_time=given.get("end"),
        jitter=given.get("jitter"),
        max_fires=given["max_fires"],
        excluded_dates=given["exclude_date"],
        excluded_windows=[
            types.TimeWindow(start_time=start, end_time=end)
            for start, end in given["exclude_window"]
        ],
        excluded_calendars=tuple(each for each in given["exclude_calendar"] if each),
    )


@group.command("create")
@click.argument("name", metavar="JOB[/SCHEDULE]")
@_recurrence_options
@_other_options
@_policy_options
@click.option("--validate-only", is_flag=True, help="Check everything, create nothing.")
@output_option
@pass_settings
def create(settings: Settings, /, name: str, output: str, **given: Any) -> None:
    """Create a schedule of a job.

    \b
    tickmesh schedule create report/nightly --cron "0 2 * * *" --time-zone Europe/Berlin
    tickmesh schedule create hello/tick --every 1s
    tickmesh schedule create hello --at +30s
    tickmesh schedule create report/workdays --cron "0 8 * * MON-FRI" --exclude-date 12-25 \\
        --overlap-policy SKIP --pause-after-failures 5
    """
    from .. import types
    from . import tables

    schedule = types.Schedule(
        recurrence=_recurrence(given),
        payload=_payload(given),
        labels=dict(given["label"]),
        **_policies(given),
    )
    job, schedule_id = _split(name)
    made = settings.client.schedules.add(
        job, schedule, schedule_id, validate_only=given["validate_only"]
    )
    if output != "table":
        print_one(output, tables.SCHEDULES, made)
    elif given["validate_only"]:
        print(f"schedule {job}/{schedule_id} is valid; nothing was created")
    else:
        _changed(made, "created")


# What an option of `update` changes. Those that say when are one: together they are a union.
FIELDS = {
    **dict.fromkeys(
        ("cron", "every", "at"), ("recurrence.crons", "recurrence.intervals", "recurrence.times")
    ),
    "exclude_date": ("recurrence.excluded_dates",),
    "exclude_window": ("recurrence.excluded_windows",),
    "exclude_calendar": ("recurrence.excluded_calendars",),
    "start": ("recurrence.start_time",),
    "end": ("recurrence.end_time",),
    **{
        name: (f"recurrence.{name}",)
        for name in ("time_zone", "gap_policy", "fold_policy", "jitter", "max_fires")
    },
    "payload_file": ("payload",),
    "label": ("labels",),
}


@group.command("update")
@click.argument("schedule")
@_recurrence_options
@_other_options
@_policy_options
@output_option
@click.pass_context
@pass_settings
def update(
    settings: Settings, context: click.Context, /, schedule: str, output: str, **given: Any
) -> None:
    """Change what is given of a schedule; 0 or "" takes back what was set.

    --cron, --every and --at replace all three. Fires that are armed and not due yet are taken back.

    \b
    tickmesh schedule update report/nightly --cron "0 3 * * *"
    tickmesh schedule update report/nightly --overlap-policy SKIP --start-deadline 0
    """
    from .. import names, types
    from . import tables

    default = click.core.ParameterSource.DEFAULT
    asked = [name for name in given if context.get_parameter_source(name) is not default]
    if not asked:
        raise click.UsageError("say what to change")
    mask = sorted({field for name in asked for field in FIELDS.get(name, (name,))})
    given = {name: value or None if _is_length(value) else value for name, value in given.items()}
    client = settings.client
    changed = types.Schedule(
        name=names.schedule(client.customer, schedule),
        recurrence=_recurrence_of(given),
        payload=_payload(given),
        labels=dict(given["label"]),
        **_policies(given),
    )
    made = client.schedules.update(changed, mask)
    if output != "table":
        print_one(output, tables.SCHEDULES, made)
    else:
        _changed(made, "changed")


def _is_length(value: Any) -> bool:
    return isinstance(value, timedelta)


def _split(name: str) -> tuple[str, str]:
    """The job and the schedule's id of JOB, JOB/SCHEDULE or a full name."""
    if name.startswith("customers/"):
        job, _, schedule_id = name.partition("/schedules/")
        return job, schedule_id
    job, _, schedule_id = name.partition("/")
    return job, schedule_id


def _changed(schedule: Any, done: str) -> None:
    from .parameters import show_instant

    following = schedule.next_fire_time
    then = f"; fires next at {show_instant(following)}" if following else ""
    print(f"schedule {schedule.job_id}/{schedule.id} {done}{then}")


@group.command("list")
@click.argument("job", required=False)
@output_option
@pass_settings
def list_(settings: Settings, /, job: str | None, output: str) -> None:
    """List the schedules of a job, or of all."""
    from . import tables

    client = settings.client
    jobs = [job] if job else [each.id for each in client.jobs.list(page_size=1_000)]
    found = (each for one in jobs for each in client.schedules.list(one, page_size=1_000))
    nothing = f"{f'job {job}' if job else f'customer {client.customer}'} has no schedules"
    print_list(output, tables.SCHEDULES, found, nothing)


@group.command("get")
@click.argument("schedule")
@output_option
@pass_settings
def get(settings: Settings, /, schedule: str, output: str) -> None:
    """Show a schedule."""
    from . import tables

    print_one(output, tables.SCHEDULES, settings.client.schedules.get(schedule))


@group.command("pause")
@click.argument("schedule")
@click.option("--reason", default="", help="Why, for people.")
@pass_settings
def pause(settings: Settings, /, schedule: str, reason: str) -> None:
    """Stop a schedule from firing."""
    _changed(settings.client.schedules.pause(schedule, reason), "paused")


@group.command("resume")
@click.argument("schedule")
@pass_settings
def resume(settings: Settings, /, schedule: str) -> None:
    """Let a paused schedule fire again, from its next instant."""
    _changed(settings.client.schedules.resume(schedule), "resumed")


@group.command("trigger")
@click.argument("schedule")
@output_option
@pass_settings
def trigger(settings: Settings, /, schedule: str, output: str) -> None:
    """Fire a schedule now, besides its instants; be it paused or not."""
    from . import tables

    execution = settings.client.schedules.trigger(schedule)
    if output == "table":
        print(tables.short_name(execution))
    else:
        print_one(output, tables.EXECUTIONS, execution)


@group.command("backfill")
@click.argument("schedule")
@click.option("--from", "start", type=INSTANT, required=True, help="From it on; as -2d, too.")
@click.option("--to", "end", type=INSTANT, required=True, help="Before it; not in the future.")
@pass_settings
def backfill(settings: Settings, /, schedule: str, start: datetime, end: datetime) -> None:
    """Fire every instant of a past range now: at most 999.

    \b
    tickmesh schedule backfill report/nightly --from 2030-01-01T00:00Z --to 2030-01-08T00:00Z
    """
    made = settings.client.schedules.backfill(schedule, start, end)
    executions = f"{made.fire_count} execution{'' if made.fire_count == 1 else 's'}"
    print(f"backfill {made.id} of schedule {schedule}: {executions}")


@group.command("cancel-backfill")
@click.argument("schedule")
@click.argument("backfill")
@pass_settings
def cancel_backfill(settings: Settings, /, schedule: str, backfill: str) -> None:
    """Ask those executions of a backfill to end that have not."""
    count = settings.client.schedules.cancel_backfill(schedule, backfill)
    executions = f"{count} execution{' is' if count == 1 else 's are'}"
    print(f"backfill {backfill} of schedule {schedule}: {executions} asked to end")


@group.command("fires")
@click.argument("schedule")
@click.option("--oldest-first", is_flag=True, help="Default: the latest come first.")
@click.option(
    "-n", "--limit", type=click.IntRange(0), default=20, show_default=True, help="0: all."
)
@click.option("--uid", default="", help="Of the schedule that is meant, if others had its name.")
@rows_option
@pass_settings
def fires(
    settings: Settings, /, schedule: str, oldest_first: bool, limit: int, uid: str, output: str
) -> None:
    """Show the ledger of a schedule, be it deleted or not: what became of each of its instants."""
    from . import tables

    found = settings.client.schedules.fires(
        schedule, newest_first=not oldest_first, uid=uid, page_size=min(limit, 1_000) or 1_000
    )
    shown = itertools.islice(found, limit) if limit else found
    print_list(output, tables.ROWS, shown, "no rows")


@group.command("stats")
@click.argument("schedule")
@rows_option
@pass_settings
def stats(settings: Settings, /, schedule: str, output: str) -> None:
    """Show how a schedule did in the last day: fired, missed, skipped, failed, late."""
    from . import tables

    statistics = settings.client.schedules.statistics(schedule)
    print_one(output, tables.STATISTICS, statistics)
    if not statistics.complete:
        print("more fires than are looked at: these are the latest", file=sys.stderr)


@group.command("delete")
@click.argument("schedules", nargs=-1, required=True)
@pass_settings
def delete(settings: Settings, /, schedules: tuple[str, ...]) -> None:
    """Delete schedules. What runs goes on."""
    for schedule in schedules:
        settings.client.schedules.delete(schedule)
        print(f"schedule {schedule} deleted", flush=True)


@group.command("preview")
@click.argument("schedule", required=False)
@_recurrence_options
@click.option("--after", type=INSTANT, help="Fires after it. Default: now.")
@click.option("-n", "--count", type=int, default=10, show_default=True, help="How many.")
@rows_option
@pass_settings
def preview(
    settings: Settings,
    /,
    schedule: str | None,
    after: datetime | None,
    count: int,
    output: str,
    **given: Any,
) -> None:
    """Show the next fires of a schedule, or of a recurrence that is not stored.

    The table shows what is skipped among them, too.

    \b
    tickmesh schedule preview report/nightly
    tickmesh schedule preview --cron "30 2 * * *" --time-zone Europe/Berlin
    """
    from . import tables

    client = settings.client
    if schedule:
        if given["cron"] or given["every"] or given["at"]:
            raise click.UsageError("give a SCHEDULE, or say when: not both")
        recurrence = client.schedules.get(schedule).recurrence
    else:
        recurrence = _recurrence(given)
    for_people = output == "table"
    fires = client.schedules.preview(
        recurrence, schedule=schedule or "", after=after, count=count, with_skipped=for_people
    )
    if for_people and fires:
        print_table(tables.FIRES, fires)
    else:
        print_list(output, tables.FIRES, fires, "it never fires again")
