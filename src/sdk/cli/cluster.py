"""`tickmesh cluster`: the mesh at this moment, and what its operators do to it."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from .groups import NounGroup
from .output import print_one, print_table, spinner
from .parameters import DURATION
from .settings import Settings, pass_settings

if TYPE_CHECKING:
    from .. import types
    from ..sync import Client

DRAINED_POLL_S = 0.5

DRAINED_S_MAX = 25 * 3600.0
"""What runs ends within a day; somebody who waits longer than that waits for something else."""

CAUGHT_UP_POLL_S = 0.5
"""Between two looks at a replica that catches up."""

EXIT_NO_VOTER = 7
"""Where it has not become one in time: as for any deadline."""

_output = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
_shard = click.option("--shard", metavar="ID", help="Default: the only one that there is.")


@click.group(cls=NounGroup, invoke_without_command=True)
@_output
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


@cluster.command("add-replica")
@click.argument("address")
@_shard
@click.option("--wait/--no-wait", default=True, help="Until it is a voter. Default: wait.")
@click.option(
    "--within", type=DURATION, default="1h", show_default=True, help="Time to wait at most."
)
@_output
@pass_settings
def add_replica(
    settings: Settings,
    /,
    address: str,
    shard: str | None,
    wait: bool,
    within: timedelta,
    output: str,
) -> int:
    """Add the replica that listens at ADDRESS to a shard.

    It must have been started, with an empty data directory and without bootstrap, as a member of
    that shard. The leader sends it everything, while all goes on, and makes it a voter then.
    """
    client = settings.client
    shard_id = _chosen(client, shard)
    made = client.add_replica(shard_id, address)
    (added,) = [each for each in made.replicas if each.address == address]
    if wait:
        made = _watch(client, shard_id, added.replica_id, within) or made
    voter = any(e.replica_id == added.replica_id and not e.learner for e in made.replicas)
    if output != "table":
        print_one(output, (), made)
    elif voter:
        print(f"{added.replica_id} is a replica of {shard_id}, and votes")
    else:
        print(f"{added.replica_id} is a replica of {shard_id}, and catches up")
    if wait and not voter:
        print(
            f"{added.replica_id} is no voter after {within}: see `tickmesh cluster`; give it up by "
            f"`tickmesh cluster remove-replica {added.replica_id}`",
            file=sys.stderr,
        )
        return EXIT_NO_VOTER
    return 0


@cluster.command("remove-replica")
@click.argument("replica")
@_shard
@_output
@pass_settings
def remove_replica(settings: Settings, /, replica: str, shard: str | None, output: str) -> None:
    """Remove a replica from a shard, for good.

    It counts for nothing from then on, and its process ends. One that leads hands over first. Do
    not start it again with the data that it has.
    """
    client = settings.client
    shard_id = _chosen(client, shard)
    left = client.remove_replica(shard_id, replica)
    if output != "table":
        print_one(output, (), left)
    else:
        ids = ", ".join(each.replica_id for each in left.replicas)
        print(f"{replica} is no replica of {shard_id} any more; there are: {ids}")


def _chosen(client: Client, shard: str | None) -> str:
    if shard:
        return shard
    known = [each.shard_id for each in client.cluster().shards]
    if len(known) != 1:
        raise click.UsageError(f"name a --shard; there are: {', '.join(known)}")
    return known[0]


def _watch(client: Client, shard_id: str, replica_id: str, within: timedelta) -> types.Shard | None:
    """Show how far a replica has come, until it is a voter; the shard then."""
    until_s = time.monotonic() + within.total_seconds()
    with spinner(f"{replica_id}: waiting") as say:
        while time.monotonic() < until_s:
            replicas = {
                each.replica_id: each
                for shard in client.cluster().shards
                if shard.shard_id == shard_id
                for each in shard.replicas
            }
            added = replicas.get(replica_id)
            if added is not None and added.reachable and not added.learner:
                break
            last = max((each.commit_index for each in replicas.values()), default=0)
            have = 0 if added is None else added.applied_index
            say(f"{replica_id} catches up: {have:,} of {last:,} entries")
            time.sleep(CAUGHT_UP_POLL_S)
    return next((s for s in client.cluster().shards if s.shard_id == shard_id), None)
