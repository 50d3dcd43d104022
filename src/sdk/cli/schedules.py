"""`tickmesh schedule`: when jobs fire."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from .groups import NounGroup
from .output import output_option, print_list, print_one, print_table
from .parameters import DURATION, INSTANT, PAIR
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
        )
    ):
        function = option(function)
    return function


def _recurrence(given: dict[str, Any]) -> Any:
    from .. import convert, types

    if not (given["cron"] or given["every"] or given["at"]):
        raise click.UsageError("say when: --cron, --every or --at")
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
    )


@group.command("create")
@click.argument("name", metavar="JOB[/SCHEDULE]")
@_recurrence_options
@click.option("--start", type=INSTANT, help="No fire before it.")
@click.option("--end", type=INSTANT, help="No fire at or after it.")
@click.option("--jitter", type=DURATION, help="Move each fire later by up to this.")
@click.option("-p", "--payload", help="For each execution.")
@click.option(
    "--payload-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The same from a file.",
)
@click.option("-l", "--label", type=PAIR, multiple=True, metavar="KEY=VALUE", help="For filters.")
@click.option("--validate-only", is_flag=True, help="Check everything, create nothing.")
@output_option
@pass_settings
def create(settings: Settings, /, name: str, output: str, **given: Any) -> None:
    """Create a schedule of a job.

    \b
    tickmesh schedule create report/nightly --cron "0 2 * * *" --time-zone Europe/Berlin
    tickmesh schedule create hello/tick --every 1s
    tickmesh schedule create hello --at +30s
    """
    from .. import types
    from . import tables

    if given["payload"] is not None and given["payload_file"] is not None:
        raise click.UsageError("--payload and --payload-file exclude one another")
    payload = (given["payload"] or "").encode()
    if given["payload_file"] is not None:
        payload = given["payload_file"].read_bytes()
    schedule = types.Schedule(
        recurrence=_recurrence(given), payload=payload, labels=dict(given["label"])
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
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
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
    fires = client.schedules.preview(recurrence, after=after, count=count)
    if output == "table" and fires:
        print_table(tables.FIRES, fires)
    else:
        print_list(output, tables.FIRES, fires, "it never fires again")
