"""`tickmesh cluster`: the mesh at this moment, and what its operators do to it."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import click

from .groups import NounGroup
from .output import print_one, print_table, spinner
from .parameters import DURATION
from .settings import Settings, pass_settings

DRAINED_POLL_S = 0.5

DRAINED_S_MAX = 25 * 3600.0
"""What runs ends within a day; somebody who waits longer than that waits for something else."""


@click.group(cls=NounGroup, invoke_without_command=True)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
@click.pass_context
def cluster(context: click.Context, /, output: str) -> None:
    """Show the mesh: shards with their replicas, and executors. Or do something to it."""
    if context.invoked_subcommand is None:
        _show(context.obj, output)


def _show(settings: Settings, output: str) -> None:
    from . import tables

    client = settings.client
    seen = client.cluster()
    if output != "table":
        print_one(output, (), seen)
        return
    print(f"tickmesh {seen.version} at {client.address}\n")
    print_table(tables.REPLICAS, [replica for shard in seen.shards for replica in shard.replicas])
    print()
    if seen.executors:
        print_table(tables.EXECUTORS, seen.executors)
    else:
        sys.stdout.flush()
        print("no executor is attached: nothing can run", file=sys.stderr)


@cluster.command("drain")
@click.argument("executor")
@click.option("--undo", is_flag=True, help="Give it work again.")
@click.option("--end-after", type=DURATION, help="End what still runs then. Default: never.")
@click.option("--wait", is_flag=True, help="Until nothing is left there.")
@pass_settings
def drain(
    settings: Settings,
    /,
    executor: str,
    undo: bool,
    end_after: timedelta | None,
    wait: bool,
) -> None:
    """Give an executor nothing new; what runs there goes on. For maintenance of its host.

    What is armed there and not due within a second goes to others. Holds over restarts, until
    --undo.
    """
    if undo and (wait or end_after is not None):
        raise click.UsageError("--undo goes with neither --wait nor --end-after")
    client = settings.client
    told = client.drain_executor(executor, undo=undo, end_after=end_after)
    if undo:
        print(f"executor {executor} is given work again")
        return
    if not wait:
        print(f"executor {executor} is given nothing new; it has {told.used_slot_count} executions")
        return
    deadline_s = time.monotonic() + DRAINED_S_MAX
    with spinner(f"{executor}: waiting") as say:
        while True:
            found = [each for each in client.cluster().executors if each.executor_id == executor]
            if not found:
                raise click.ClickException(f"executor {executor} is not attached any more")
            if not found[0].draining:
                # It may not have told the leader yet; or somebody has undone it.
                left = "told"
            elif left_count := found[0].used_slot_count:
                left = f"{left_count} executions"
            else:
                break
            if time.monotonic() > deadline_s:
                raise click.ClickException(f"executor {executor} has not drained: {left}")
            say(f"{executor}: {left}")
            time.sleep(DRAINED_POLL_S)
    print(f"executor {executor} has drained")


@cluster.command("backup")
@click.argument("name")
@click.option("--shard", default="shard-0", show_default=True, help="Which.")
@pass_settings
def backup(settings: Settings, /, name: str, shard: str) -> None:
    """Copy a shard, as of now, to where its scheduler's configuration keeps backups.

    `python -m tickmesh.scheduler --config FILE --restore WHERE` makes another shard of it.
    """
    with spinner(f"{shard}: copying"):
        made = settings.client.backup_shard(shard, name)
    print(
        f"{shard} as of entry {made.applied_index} is in {made.path}: {made.file_count} files, "
        f"{made.size_bytes:,} bytes, by {made.replica_id}"
    )
