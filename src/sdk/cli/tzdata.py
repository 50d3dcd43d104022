"""`tickmesh tzdata`: releases of the time zones, for operators."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import click

from .groups import NounGroup
from .output import print_list, rows_option
from .settings import Settings, pass_settings

PREFIX = "tzdata/zoneinfo/"
"""Where the tzdata package has its zone files."""

MAGIC = b"TZif"


@click.group(cls=NounGroup)
def group() -> None:
    """Releases of the time zones.

    A shard keeps the zones that its schedules use as they were: another release of tzdata changes
    nothing before `upgrade`.
    """


def _source_options(function: Any) -> Any:
    """Which shard, and where the new release is."""
    for option in reversed(
        (
            click.option("--shard", help="Default: the only one."),
            click.option(
                "--tzdata",
                metavar="WHEEL_OR_DIR",
                type=click.Path(exists=True, path_type=Path),
                help="The new release: a wheel of the tzdata package, or a directory of zone files "
                "as /usr/share/zoneinfo. Default: the package beside the leader.",
            ),
        )
    ):
        function = option(function)
    return function


def read_files(source: Path | None) -> dict[str, bytes]:
    """The zone files of a wheel or a directory, by name. Raises UsageError if there are none."""
    if source is None:
        return {}
    found: dict[str, bytes] = {}
    if source.is_dir():
        inner = source / PREFIX
        root = inner if inner.is_dir() else source
        for path in root.rglob("*"):
            if path.is_file():
                found[path.relative_to(root).as_posix()] = path.read_bytes()
    else:
        try:
            with zipfile.ZipFile(source) as wheel:
                for name in wheel.namelist():
                    if name.startswith(PREFIX) and not name.endswith("/"):
                        found[name.removeprefix(PREFIX)] = wheel.read(name)
        except zipfile.BadZipFile as error:
            raise click.UsageError(f"{source} is neither a directory nor a wheel") from error
    files = {name: content for name, content in found.items() if content.startswith(MAGIC)}
    if not files:
        raise click.UsageError(f"{source} has no zone files")
    # Copies of others under other roots, as Debian has them.
    return {name: files[name] for name in files if not name.startswith(("posix/", "right/"))}


def _shard(settings: Settings, given: str | None) -> str:
    if given:
        return given
    shards = [shard.shard_id for shard in settings.client.cluster().shards]
    if len(shards) != 1:
        raise click.UsageError(f"say which --shard: {', '.join(shards)}")
    return shards[0]


@group.command("preview")
@_source_options
@click.option("--days", type=int, default=366, show_default=True, help="How far to look ahead.")
@rows_option
@pass_settings
def preview(
    settings: Settings, /, shard: str | None, tzdata: Path | None, days: int, output: str
) -> None:
    """Show which schedules' fires another release would move, before it is taken over.

    \b
    pip download --no-deps tzdata && tickmesh tzdata preview --tzdata tzdata-*.whl
    """
    from . import tables

    files = read_files(tzdata)
    found = settings.client.zones.preview(_shard(settings, shard), files, days=days)
    print_list(output, tables.MOVED, found, "no fire moves")


@group.command("upgrade")
@_source_options
@click.option("--release", default="", help="Its name, as 2026a, for people.")
@pass_settings
def upgrade(settings: Settings, /, shard: str | None, tzdata: Path | None, release: str) -> None:
    """Take another release over: schedules in zones that changed follow."""
    files = read_files(tzdata)
    made = settings.client.zones.upgrade(_shard(settings, shard), files, release=release)
    zones = ", ".join(made.changed_zones) or "no zone in use changed"
    print(f"{zones}: {made.changed_schedule_count} schedules changed")
