"""`tickmesh key`: the API keys of a customer, and an operator's key."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from .groups import NounGroup
from .output import output_option, print_list, print_one
from .parameters import DURATION
from .settings import Settings, pass_settings

FILE = click.Path(dir_okay=False, path_type=Path)
FILE_HELP = "Write the key to this new file, readable by you alone, and not to stdout."


@click.group(cls=NounGroup)
def group() -> None:
    """API keys: they act for a customer where the mesh authenticates its callers."""


@group.command("create")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(["read", "execute", "admin"]),
    help="What it may do; admin has the others too.",
)
@click.option("--display-name", default="", help="For people.")
@click.option("--expires", type=DURATION, help="How long it is good, as 90d. Default: for ever.")
@click.option("--file", "to_file", type=FILE, help=FILE_HELP)
@output_option
@pass_settings
def create(
    settings: Settings,
    /,
    scopes: tuple[str, ...],
    display_name: str,
    expires: timedelta | None,
    to_file: Path | None,
    output: str,
) -> None:
    """Create a key, and print it: nobody can show it again.

    \b
    tickmesh key create --scope execute --scope read --expires 90d --file ci.key
    tickmesh --api-key-file ci.key run hello
    """
    from .. import types

    if output == "name" and to_file is None:
        raise click.UsageError("-o name goes with --file only: nobody would ever see the key")
    with _kept(to_file) as keep:
        made = settings.client.keys.create(
            [types.ApiScope(each.upper()) for each in scopes],
            display_name=display_name,
            expire_time=None if expires is None else datetime.now(UTC) + expires,
        )
        keep(made.text)
    if output == "table":
        where = f": it is in {to_file}" if to_file else ""
        print(f"key {made.key.id} created{where}", file=sys.stderr, flush=True)
        if to_file is None:
            print(made.text)
        return
    thing: Any = made.key if to_file else made
    print_one(output, (), thing)


@group.command("list")
@output_option
@pass_settings
def list_(settings: Settings, /, output: str) -> None:
    """List the keys, without their secrets."""
    from . import tables

    client = settings.client
    print_list(output, tables.KEYS, client.keys.list(), f"customer {client.customer} has no keys")


@group.command("revoke")
@click.argument("keys", nargs=-1, required=True)
@pass_settings
def revoke(settings: Settings, /, keys: tuple[str, ...]) -> None:
    """End keys for good. They are refused everywhere within 10 seconds."""
    for key in keys:
        settings.client.keys.revoke(key)
        print(f"key {key} revoked", flush=True)


@group.command("generate-operator")
@click.option("--file", "to_file", type=FILE, help=FILE_HELP)
def generate_operator(to_file: Path | None) -> None:
    """Make an operator's key, which no mesh knows yet, and print its hash for the gateways.

    It manages the keys of every customer, and the mesh. Asks nobody: the gateways take it once
    their configuration has the hash.
    """
    from ...mesh import api_keys

    text = api_keys.make_operator(os.urandom(api_keys.SECRET_BYTES))
    with _kept(to_file) as keep:
        keep(text)
    if to_file is None:
        print(text, flush=True)
    configured = f'operator_key_hashes = ["{api_keys.digest(text).hex()}"]'
    print(f"for the [gateway] table of each gateway: {configured}", file=sys.stderr)


@contextmanager
def _kept(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Makes a file that we alone may read, before there is a key to lose; it is gone again if none
    is made. The function given writes the key into it. Without a path nothing is written."""
    if path is None:
        yield lambda _: None
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.UsageError(f"--file {path} exists already") from None
    written = False

    def write(text: str) -> None:
        nonlocal written
        file.write(f"{text}\n")
        file.flush()
        written = True

    with os.fdopen(descriptor, "w") as file:
        try:
            yield write
        finally:
            if not written:
                path.unlink(missing_ok=True)
