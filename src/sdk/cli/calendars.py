"""`tickmesh calendar`: when schedules do not fire."""

from __future__ import annotations

from typing import Any

import click

from .groups import NounGroup
from .output import output_option, print_list, print_one
from .parameters import PAIR, WINDOW
from .settings import Settings, pass_settings


@click.group(cls=NounGroup)
def group() -> None:
    """Named dates and windows on which schedules do not fire.

    A schedule uses them by `tickmesh schedule create --exclude-calendar NAME`.
    """


def _content_options(function: Any) -> Any:
    """What a calendar says."""
    for option in reversed(
        (
            click.option("--date", multiple=True, help="As 2030-12-25, or 12-25 of every year."),
            click.option(
                "--window",
                type=WINDOW,
                multiple=True,
                help="As 2030-01-01T00:00Z/2030-01-02T00:00Z.",
            ),
            click.option(
                "--time-zone", default="", help="IANA, for --date. [server: that of each schedule]"
            ),
            click.option("--display-name", default="", help="For people."),
            click.option(
                "-l",
                "--label",
                type=PAIR,
                multiple=True,
                metavar="KEY=VALUE",
                help="For filters.",
            ),
            click.option("--validate-only", is_flag=True, help="Check everything, change nothing."),
        )
    ):
        function = option(function)
    return function


def _calendar(given: dict[str, Any], name: str = "") -> Any:
    from .. import types

    return types.Calendar(
        name=name,
        dates=given["date"],
        windows=tuple(
            types.TimeWindow(start_time=start, end_time=end) for start, end in given["window"]
        ),
        time_zone=given["time_zone"],
        display_name=given["display_name"],
        labels=dict(given["label"]),
    )


@group.command("create")
@click.argument("name", required=False, default="")
@_content_options
@output_option
@pass_settings
def create(settings: Settings, /, name: str, output: str, **given: Any) -> None:
    """Create a calendar.

    \b
    tickmesh calendar create holidays --date 12-25 --date 12-26 --date 2030-04-19 \\
        --time-zone Europe/Berlin
    tickmesh calendar create freeze --window 2030-06-01T00:00Z/2030-06-03T00:00Z
    """
    from . import tables

    validate_only = given["validate_only"]
    made = settings.client.calendars.add(_calendar(given), name, validate_only=validate_only)
    if output != "table":
        print_one(output, tables.CALENDARS, made)
    elif validate_only:
        print(f"calendar {name} is valid; nothing was created")
    else:
        print(f"calendar {made.id} created")


# What an option of `update` changes.
FIELDS = {"date": "dates", "window": "windows", "label": "labels"}


@group.command("update")
@click.argument("calendar")
@_content_options
@output_option
@click.pass_context
@pass_settings
def update(
    settings: Settings, context: click.Context, /, calendar: str, output: str, **given: Any
) -> None:
    """Change what is given of a calendar, and the schedules that use it.

    All of --date, and all of --window, replace what there was; "" takes back what was set.

    \b
    tickmesh calendar update holidays --date 12-25 --date 12-26 --date 01-01
    """
    from .. import names
    from . import tables

    default = click.core.ParameterSource.DEFAULT
    asked = [
        name
        for name in given
        if name != "validate_only" and context.get_parameter_source(name) is not default
    ]
    if not asked:
        raise click.UsageError("say what to change")
    mask = sorted(FIELDS.get(name, name) for name in asked)
    given = {**given, "date": tuple(date for date in given["date"] if date)}
    client = settings.client
    changed = _calendar(given, names.calendar(client.customer, calendar))
    validate_only = given["validate_only"]
    made = client.calendars.update(changed, mask, validate_only=validate_only)
    if output != "table":
        print_one(output, tables.CALENDARS, made)
    else:
        print(f"calendar {made.id} {'can be changed; nothing was' if validate_only else 'changed'}")


@group.command("list")
@output_option
@pass_settings
def list_(settings: Settings, /, output: str) -> None:
    """List the calendars."""
    from . import tables

    client = settings.client
    nothing = (
        f"customer {client.customer} has no calendars: make one with `tickmesh calendar create`"
    )
    print_list(output, tables.CALENDARS, client.calendars.list(page_size=1_000), nothing)


@group.command("get")
@click.argument("calendar")
@output_option
@pass_settings
def get(settings: Settings, /, calendar: str, output: str) -> None:
    """Show a calendar."""
    from . import tables

    print_one(output, tables.CALENDARS, settings.client.calendars.get(calendar))


@group.command("delete")
@click.argument("calendars", nargs=-1, required=True)
@pass_settings
def delete(settings: Settings, /, calendars: tuple[str, ...]) -> None:
    """Delete calendars that no schedule uses."""
    for calendar in calendars:
        settings.client.calendars.delete(calendar)
        print(f"calendar {calendar} deleted", flush=True)
