"""`tickmesh image`: a customer's own images."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import click

from .groups import NounGroup
from .output import output_option, print_list, print_one, transfer
from .parameters import DURATION
from .settings import Settings, pass_settings


@click.group(cls=NounGroup)
def group() -> None:
    """Your own images: pushed into the mesh's registry, or imported as OCI archives."""


@group.command("push")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("image")
@click.option("--within", type=DURATION, default="10m", show_default=True, help="Time it may take.")
@click.option(
    "--architecture",
    type=click.Choice(["amd64", "arm64"]),
    help="Of a root file system.  [default: this machine's]",
)
@output_option
@pass_settings
def push(
    settings: Settings,
    /,
    source: Path,
    image: str,
    within: timedelta,
    architecture: str | None,
    output: str,
) -> None:
    """Push SOURCE as IMAGE, as "report:1", into the mesh's own registry.

    SOURCE is an OCI image layout, a directory or a tar, as written by `docker buildx build --output
    type=oci`, `podman save --format oci-archive` and `skopeo copy ... oci:DIR`; or what `docker
    save` writes. Any other directory or tar (plain or with gzip) is taken as a root file system:
    its files, all of them root's, are the image. Every executor has the image then, those that join
    later too.
    """
    from . import tables
    from .parameters import show_size

    def tell() -> None:
        print(f"{source} is no image: its files become the root of one", file=sys.stderr)

    with transfer(f"pushing {image}") as progress:
        made = settings.client.images.push(
            image,
            source,
            architecture=architecture or "",
            on_root_file_system=tell,
            progress=progress,
            deadline_s=within.total_seconds(),
        )
    for executor, message in made.failures:
        print(f"warning: {executor} has not pulled it: {message}", file=sys.stderr)
    if output != "table":
        print_one(output, tables.IMAGES, made.image)
    else:
        count = len(made.executors)
        print(
            f"image {made.image.id} pushed: {made.image.digest}, "
            f"{show_size(made.image.size_bytes)}; on {count} executor{'' if count == 1 else 's'}"
        )


@group.command("import")
@click.argument("image")
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--within", type=DURATION, default="10m", show_default=True, help="Time it may take.")
@output_option
@pass_settings
def import_(
    settings: Settings, /, image: str, archive: Path, within: timedelta, output: str
) -> None:
    """Import an OCI archive (a tar with index.json) as IMAGE, as "report:1".

    It goes to the executors that are attached now; see `push` for all of them.

    Such a tar is written by `docker save` (25 or newer), `docker buildx build --output type=oci`,
    `podman save --format oci-archive` and `skopeo copy ... oci-archive:FILE`.
    """
    from . import tables
    from .parameters import show_size

    with transfer(f"importing {image}") as progress:
        made = settings.client.images.import_archive(
            image, archive, progress=progress, deadline_s=within.total_seconds()
        )
    if output != "table":
        print_one(output, tables.IMAGES, made)
    else:
        print(f"image {made.id} imported: {made.digest}, {show_size(made.size_bytes)}")


@group.command("list")
@output_option
@pass_settings
def list_(settings: Settings, /, output: str) -> None:
    """List the images."""
    from . import tables

    client = settings.client
    nothing = f"customer {client.customer} has no images"
    print_list(output, tables.IMAGES, client.images.list(), nothing)


@group.command("get")
@click.argument("image")
@output_option
@pass_settings
def get(settings: Settings, /, image: str, output: str) -> None:
    """Show an image."""
    from . import tables

    print_one(output, tables.IMAGES, settings.client.images.get(image))


@group.command("delete")
@click.argument("images", nargs=-1, required=True)
@pass_settings
def delete(settings: Settings, /, images: tuple[str, ...]) -> None:
    """Delete images. What runs keeps its own."""
    for image in images:
        settings.client.images.delete(image)
        print(f"image {image} deleted", flush=True)


@group.group("login", cls=NounGroup)
def login() -> None:
    """Logins to other registries, for pulling your images there."""


@login.command("create")
@click.argument("host")
@click.option("--user", required=True, help="As the registry knows it.")
@pass_settings
def login_create(settings: Settings, /, host: str, user: str) -> None:
    """Keep a login to HOST, as registry.example:5000. The secret is read from standard input.

    It takes the place of an earlier one; it is stored encrypted, and cannot be read again.
    """
    if sys.stdin.isatty():
        secret = click.prompt("Password or token", hide_input=True)
    else:
        secret = sys.stdin.readline().rstrip("\n")
    made = settings.client.images.create_credential(host, user, secret)
    print(f"login to {made.host} kept")


@login.command("list")
@output_option
@pass_settings
def login_list(settings: Settings, /, output: str) -> None:
    """List the logins, without their secrets."""
    from . import tables

    client = settings.client
    nothing = f"customer {client.customer} has no logins to registries"
    print_list(output, tables.CREDENTIALS, client.images.credentials(), nothing)


@login.command("delete")
@click.argument("hosts", nargs=-1, required=True)
@pass_settings
def login_delete(settings: Settings, /, hosts: tuple[str, ...]) -> None:
    """Forget logins."""
    for host in hosts:
        settings.client.images.delete_credential(host)
        print(f"login to {host} deleted", flush=True)
