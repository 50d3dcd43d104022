"""Images in containerd: put there whole or not at all, found again, kept while in use.

An image's root file system is one read-only view, shared by all of its sandboxes: the image's
layers and, on top, ours (mount points and the gate). What keeps it alive are containerd's own
references: image -> manifest -> configuration -> view -> layers, and each container -> view.
"""

import asyncio
import functools
import io
import os
import tarfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from ...proto.containerd import images_pb2, types_pb2
from .. import gate, limits
from ..errors import (
    ContainerdError,
    ContainerdExists,
    ContainerdNotFound,
    ImageError,
    ImageReason,
)
from ..layers import Budget, LayerInspector
from ..manifest import (
    INDEXES,
    MANIFESTS,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Manifest,
    chain_ids,
    check_size,
    choose,
    parse_config,
    parse_index,
    parse_manifest,
    sha256,
)
from .client import ContainerdClient, Mounts

PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
LABEL_VIEW = "tickmesh.io/view"
LABEL_SIZE = "tickmesh.io/bytes"
LABEL_UNPACKED = "tickmesh.io/unpacked-bytes"


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is ready to make sandboxes from."""

    reference: str
    digest: str
    """Of its manifest for this machine."""
    size_bytes: int
    """Compressed."""
    config: ImageConfig
    view: str
    """The key of its root file system."""
    mounts: Mounts
    """How that is mounted."""


class ImageSource(Protocol):
    """Where an image comes from: an archive, a registry."""

    async def root(self) -> tuple[str, str, bytes]:
        """Media type, digest and bytes of its index or manifest."""
        ...

    async def blob(self, descriptor: Descriptor, bytes_max: int) -> bytes:
        """A small blob, whole and verified."""
        ...

    def chunks(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """A layer, in pieces; not verified."""
        ...


class ImageStore:
    """The images of one containerd namespace."""

    def __init__(self, client: ContainerdClient, bytes_max: int = limits.IMAGE_BYTES_MAX) -> None:
        self._client = client
        self._bytes_max = bytes_max
        self._known: dict[str, Image] = {}

    async def get(self, reference: str) -> Image:
        """An image that is there. Raises ImageError(NOT_FOUND)."""
        known = self._known.get(reference)
        if known is not None:
            return known
        try:
            record = await self._client.get_image(reference)
            image = await self._load(record)
        except ContainerdNotFound as error:
            raise ImageError(
                ImageReason.NOT_FOUND, f"image {reference} is not on this executor"
            ) from error
        self._remember(image)
        return image

    async def list(self) -> list[str]:
        """The references of all images."""
        return sorted(image.name for image in await self._client.list_images())

    async def delete(self, reference: str) -> None:
        """Forgets an image. Sandboxes that run from it go on. Raises ImageError(NOT_FOUND)."""
        self._known.pop(reference, None)
        try:
            await self._client.delete_image(reference)
        except ContainerdNotFound as error:
            raise ImageError(
                ImageReason.NOT_FOUND, f"image {reference} is not on this executor"
            ) from error

    def forget(self) -> None:
        """Drops what is remembered: somebody else changed the store."""
        self._known.clear()

    async def install(self, reference: str, source: ImageSource) -> Image:
        """Takes an image in, whole or not at all. Raises ImageError."""
        media_type, digest, data = await source.root()
        if media_type in INDEXES:
            chosen = choose(reference, parse_index(digest, data))
            data = await source.blob(chosen, limits.MANIFEST_BYTES_MAX)
            media_type, digest = chosen.media_type or OCI_MANIFEST, chosen.digest
        if media_type not in MANIFESTS:
            raise ImageError(
                ImageReason.UNSUPPORTED, f"image {reference}: media type {media_type!r}"
            )
        manifest = parse_manifest(digest, data)
        check_size(reference, manifest, self._bytes_max)
        config_data = await source.blob(manifest.config, limits.CONFIG_BYTES_MAX)
        config = parse_config(manifest.config.digest, config_data, len(manifest.layers))

        lease = f"tickmesh-install-{time.time_ns()}-{os.urandom(4).hex()}"
        expiry = time.strftime(
            "%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + limits.LEASE_SECONDS)
        )
        await self._client.create_lease(lease, {"containerd.io/gc.expire": expiry})
        work = _Installation(self._client.leased(lease), lease, self._bytes_max)
        try:
            view = await work.root_file_system(source, manifest, config)
            await work.small_blob(
                manifest.config.digest,
                config_data,
                {f"containerd.io/gc.ref.snapshot.{self._client.snapshotter}": view},
            )
            references = {"containerd.io/gc.ref.content.config": manifest.config.digest}
            for number, layer in enumerate(manifest.layers):
                references[f"containerd.io/gc.ref.content.l.{number}"] = layer.digest
            await work.small_blob(digest, data, references)
            size = manifest.config.size + sum(layer.size for layer in manifest.layers)
            record = images_pb2.Image(
                name=reference,
                labels={LABEL_VIEW: view, LABEL_SIZE: str(size)},
                target=types_pb2.Descriptor(media_type=media_type, digest=digest, size=len(data)),
            )
            await self._client.put_image(record)
            image = await self._load(record, config)
        except BaseException:
            await asyncio.shield(work.abandon())
            raise
        finally:
            await asyncio.shield(self._client.delete_lease(lease))
        self._remember(image)
        return image

    async def _load(self, record: images_pb2.Image, config: ImageConfig | None = None) -> Image:
        view = record.labels.get(LABEL_VIEW, "")
        if not view:
            raise ContainerdNotFound(f"image {record.name} was not put there by an executor")
        mounts = await self._client.snapshot_mounts(view)
        if config is None:
            data = await self._client.read_content(record.target.digest, limits.MANIFEST_BYTES_MAX)
            manifest = parse_manifest(record.target.digest, data)
            data = await self._client.read_content(manifest.config.digest, limits.CONFIG_BYTES_MAX)
            config = parse_config(manifest.config.digest, data, len(manifest.layers))
        return Image(
            reference=record.name,
            digest=record.target.digest,
            size_bytes=int(record.labels.get(LABEL_SIZE, "0")),
            config=config,
            view=view,
            mounts=mounts,
        )

    def _remember(self, image: Image) -> None:
        while len(self._known) >= limits.IMAGE_CACHE_ENTRIES_MAX:
            self._known.pop(next(iter(self._known)))
        self._known[image.reference] = image


class _Installation:
    """One image on its way in; everything it makes is under its lease."""

    def __init__(self, client: ContainerdClient, lease: str, bytes_max: int) -> None:
        self._client = client
        self._lease = lease
        self._bytes_max = bytes_max
        self._ingests: set[str] = set()

    async def abandon(self) -> None:
        """Drops unfinished writes: a lease does not hold them, they would stay."""
        for ref in self._ingests:
            try:
                await self._client.abort_ingest(ref)
            except ContainerdError:
                continue  # it was committed, or the daemon is gone; a lease that ends collects it

    async def small_blob(self, digest: str, data: bytes, labels: dict[str, str]) -> None:
        """Writes bytes that are at hand, and labels them."""

        async def whole() -> AsyncIterator[bytes]:
            yield data

        await self._blob(digest, len(data), whole())
        if labels:
            await self._client.label_content(digest, labels)

    async def root_file_system(
        self, source: ImageSource, manifest: Manifest, config: ImageConfig
    ) -> str:
        """Fetches, verifies and unpacks all layers. Answers the view's key."""
        budget = Budget(self._bytes_max)
        parent = ""
        for layer, diff_id, chain_id in zip(
            manifest.layers, config.diff_ids, chain_ids(config.diff_ids), strict=True
        ):
            await self._layer(source, layer, diff_id, budget)
            await self._unpack(
                layer.digest, layer.media_type, layer.size, diff_id, parent, chain_id
            )
            parent = chain_id
        ours, data = our_layer()
        top = chain_ids((*config.diff_ids, ours))[-1]
        await self.small_blob(ours, data, {})
        await self._unpack(ours, PLAIN_LAYER, len(data), ours, parent, top)
        view = f"view-{top}"
        try:
            await self._client.view_snapshot(view, top, {})
        except ContainerdExists:
            await self._client.add_to_lease(
                self._lease, view, f"snapshots/{self._client.snapshotter}"
            )
        return view

    async def _layer(
        self, source: ImageSource, layer: Descriptor, diff_id: str, budget: Budget
    ) -> None:
        try:
            labels = await self._client.content_labels(layer.digest)
            await self._client.add_to_lease(self._lease, layer.digest)
            if LABEL_UNPACKED in labels:  # it came in whole, through here
                budget.spend(int(labels[LABEL_UNPACKED]))
                return
        except ContainerdNotFound:
            pass
        inspector = LayerInspector(layer.digest, layer.media_type, diff_id, budget)

        async def inspected() -> AsyncIterator[bytes]:
            seen = 0
            async for chunk in source.chunks(layer):
                seen += len(chunk)
                if seen > layer.size:
                    break
                await asyncio.to_thread(inspector.feed, chunk)
                yield chunk
            if seen != layer.size:
                raise ImageError(
                    ImageReason.CORRUPT,
                    f"layer {layer.digest} has {'more' if seen > layer.size else seen} bytes, "
                    f"its manifest says {layer.size}",
                )
            # Before containerd has it under this name: what is wrong must be found here.
            inspector.finish()

        await self._blob(layer.digest, layer.size, inspected())
        await self._client.label_content(
            layer.digest, {LABEL_UNPACKED: str(inspector.unpacked_bytes)}
        )

    async def _blob(self, digest: str, size: int, chunks: AsyncIterator[bytes]) -> None:
        ref = f"{self._lease}-{digest}"
        self._ingests.add(ref)
        try:
            await self._client.write_content(ref, digest, size, chunks, limits.PULL_DEADLINE_S)
        except ContainerdExists:
            await self._client.add_to_lease(self._lease, digest)
        self._ingests.discard(ref)

    async def _unpack(
        self, digest: str, media_type: str, size: int, diff_id: str, parent: str, chain_id: str
    ) -> None:
        kind = f"snapshots/{self._client.snapshotter}"
        try:
            await self._client.stat_snapshot(chain_id)
            await self._client.add_to_lease(self._lease, chain_id, kind)
            return
        except ContainerdNotFound:
            pass
        key = f"{self._lease}-{chain_id}"
        mounts = await self._client.prepare_snapshot(key, parent, {})
        layer = types_pb2.Descriptor(media_type=media_type, digest=digest, size=size)
        try:
            applied = await self._client.apply_diff(layer, mounts)
        except ContainerdError as error:
            raise ImageError(
                ImageReason.CORRUPT, f"layer {digest} cannot be unpacked: {error}"
            ) from error
        if applied != diff_id:
            raise ImageError(ImageReason.CORRUPT, f"layer {digest} unpacked to {applied}")
        try:
            await self._client.commit_snapshot(chain_id, key, {})
        except ContainerdExists:  # another image with that layer was faster
            await self._client.remove_snapshot(key)
            await self._client.add_to_lease(self._lease, chain_id, kind)


@functools.cache
def our_layer() -> tuple[str, bytes]:
    """The layer over every image: mount points, so that a read-only root needs none made, the
    names that a sandbox without network knows, and the gate. Digest and bytes."""
    hosts = b"127.0.0.1 localhost\n::1 localhost\n"
    program = gate.program("gate").read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("dev", "proc", "sys", "tmp", ".tickmesh", ".tickmesh/io"):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        for name, data, mode in (
            (gate.PROGRAM.removeprefix("/"), program, 0o555),
            ("etc/hosts", hosts, 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
    data = buffer.getvalue()
    return sha256(data), data
