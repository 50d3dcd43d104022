"""`tickmesh image`: images that are in no registry."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from .groups import NounGroup
from .output import output_option, print_list, print_one, transfer
from .parameters import DURATION
from .settings import Settings, pass_settings


@click.group(cls=NounGroup)
def group() -> None:
    """Images that are in no registry, imported as OCI archives."""


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
    """List the imported images."""
    from . import tables

    client = settings.client
    nothing = f"customer {client.customer} has no imported images"
    print_list(output, tables.IMAGES, client.images.list(), nothing)


@group.command("get")
@click.argument("image")
@output_option
@pass_settings
def get(settings: Settings, /, image: str, output: str) -> None:
    """Show an imported image."""
    from . import tables

    print_one(output, tables.IMAGES, settings.client.images.get(image))


@group.command("delete")
@click.argument("images", nargs=-1, required=True)
@pass_settings
def delete(settings: Settings, /, images: tuple[str, ...]) -> None:
    """Delete imported images. What runs keeps its own."""
    for image in images:
        settings.client.images.delete(image)
        print(f"image {image} deleted", flush=True)
