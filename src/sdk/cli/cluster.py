"""`tickmesh cluster`: the mesh at this moment."""

from __future__ import annotations

import sys

import click

from .output import print_one, print_table
from .settings import Settings, pass_settings


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
@pass_settings
def cluster(settings: Settings, /, output: str) -> None:
    """Show the mesh: shards with their replicas, and executors."""
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
