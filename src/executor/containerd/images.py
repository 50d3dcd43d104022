"""Images in containerd: put there whole or not at all, found again, kept while in use.

An image's root file system is one read-only view, shared by all of its sandboxes: the image's
layers and, on top, ours (mount points and the gate). What keeps it alive are containerd's own
references: image -> manifest -> configuration -> view -> layers, and each container -> view.
"""

import asyncio
import contextlib
import functools
import io
import itertools
import os
import stat
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...proto.containerd import images_pb2, types_pb2
from .. import gate, limits, users
from ..errors import (
    ContainerdError,
    ContainerdExists,
    ContainerdNotFound,
    ImageError,
    ImageReason,
)
from ..layers import Budget, LayerInspector, check_diff_id
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
LABEL_DIFF_ID = "tickmesh.io/diff-id"
"""Of a layer: the digest of what it unpacks to, as it was found when it came."""
LABEL_PULLED = "tickmesh.io/pulled"
"""Of an image that its registry can give again."""
LABEL_ROOT = "tickmesh.io/root"
"""The digest of what its name stood for: of its index, if it has one."""
LABEL_LEASE_OWNER = "tickmesh.io/owner"


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
    pulled: bool = False
    """Its registry can give it again."""
    root_digest: str = ""
    """What its name stood for when it came: the digest of its index, or of its manifest."""


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

    def __init__(
        self,
        client: ContainerdClient,
        bytes_max: int = limits.IMAGE_BYTES_MAX,
        owner: str = "",
        cache_bytes: int = 0,
        layers_at_once: int = limits.LAYERS_AT_ONCE,
    ) -> None:
        """`owner`: who its leases belong to. `cache_bytes`: see `trim`; 0: no limit.
        `layers_at_once`: fetched of one image."""
        self._client = client
        self._bytes_max = bytes_max
        self._owner = owner
        self._cache_bytes = cache_bytes
        self._layers_at_once = layers_at_once
        self._known: dict[str, Image] = {}
        self._used: dict[str, int] = {}
        self._uses = itertools.count(1)
        self._trimming = asyncio.Lock()
        self.id_base = 0
        """The host's id that stands for root in the files of every image, see `shift`."""

    async def get(self, reference: str) -> Image:
        """An image that is there. Raises ImageError(NOT_FOUND)."""
        self._used[reference] = next(self._uses)
        known = self._known.get(reference)
        if known is not None:
            return known
        try:
            record = await self._client.get_image(reference)
            if LABEL_VIEW in record.labels and not self._is_ours(record.labels[LABEL_VIEW]):
                # Unpacked for other ids than this process's: its layers are here, so again.
                return await self.install(reference, _Stored(self._client, record), record.labels)
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
        self._used.pop(reference, None)
        try:
            await self._client.delete_image(reference)
        except ContainerdNotFound as error:
            raise ImageError(
                ImageReason.NOT_FOUND, f"image {reference} is not on this executor"
            ) from error

    def forget(self) -> None:
        """Drops what is remembered: somebody else changed the store."""
        self._known.clear()

    async def trim(self, in_use: Callable[[], Awaitable[set[str]]]) -> tuple[str, ...]:
        """Deletes the images that were not asked for longest, until all fit the cache's bytes.

        An image of which a sandbox runs is kept, and one that no registry can give again. A layer
        that two images share counts twice, so that the disk holds less than the limit, not more.
        `in_use`: the views that sandboxes have, or will have in a moment. Answers the references.
        """
        if not self._cache_bytes:
            return ()
        deleted = []
        async with self._trimming:
            records = await self._client.list_images()
            total = sum(_disk_bytes(record) for record in records)
            # What nobody has asked for since the start comes first, the oldest of it before all.
            records.sort(key=lambda r: (self._used.get(r.name, 0), r.updated_at.ToNanoseconds()))
            for record in records:
                if total <= self._cache_bytes:
                    break
                if LABEL_PULLED not in record.labels:
                    continue
                # Asked anew for each: nothing of ours runs between the answer and the deletion.
                if record.labels.get(LABEL_VIEW, "") in await in_use():
                    continue
                with contextlib.suppress(ImageError):
                    await self.delete(record.name)
                    deleted.append(record.name)
                total -= _disk_bytes(record)
        return tuple(deleted)

    async def sweep(self) -> int:
        """Ends the leases and unfinished writes of installations that a crash cut off: those of
        this owner, which installs nothing yet. Answers how many."""
        ours = [
            lease.id
            for lease in await self._client.list_leases()
            if self._owner and lease.labels.get(LABEL_LEASE_OWNER) == self._owner
        ]
        for ref in await self._client.list_ingests():
            if any(ref.startswith(f"{lease}-") for lease in ours):
                with contextlib.suppress(ContainerdNotFound):
                    await self._client.abort_ingest(ref)
        for lease in ours:
            with contextlib.suppress(ContainerdNotFound):
                await self._client.delete_lease(lease)
        return len(ours)

    def _is_ours(self, view: str) -> bool:
        return view.endswith(f"-{self.id_base}")

    async def install(
        self, reference: str, source: ImageSource, labels: Mapping[str, str] | None = None
    ) -> Image:
        """Takes an image in, whole or not at all. `labels`: its record's. Raises ImageError."""
        media_type, digest, data = await source.root()
        root_digest = digest
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
        await self._client.create_lease(
            lease, {"containerd.io/gc.expire": expiry, LABEL_LEASE_OWNER: self._owner}
        )
        work = _Installation(
            self._client.leased(lease), lease, self._bytes_max, self.id_base, self._layers_at_once
        )
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
                labels={
                    **(labels or {}),
                    LABEL_VIEW: view,
                    LABEL_SIZE: str(size),
                    LABEL_UNPACKED: str(work.unpacked_bytes),
                    LABEL_ROOT: root_digest,
                },
                target=types_pb2.Descriptor(media_type=media_type, digest=digest, size=len(data)),
            )
            await self._client.put_image(record)
            image = await self._load(record, config)
        except BaseException:
            await asyncio.shield(work.abandon())
            raise
        finally:
            await asyncio.shield(self._client.delete_lease(lease))
        self._used[reference] = next(self._uses)
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
            pulled=LABEL_PULLED in record.labels,
            root_digest=record.labels.get(LABEL_ROOT, ""),
        )

    def _remember(self, image: Image) -> None:
        while len(self._known) >= limits.IMAGE_CACHE_ENTRIES_MAX:
            self._known.pop(next(iter(self._known)))
        self._known[image.reference] = image


class _Installation:
    """One image on its way in; everything it makes is under its lease."""

    def __init__(
        self,
        client: ContainerdClient,
        lease: str,
        bytes_max: int,
        id_base: int,
        layers_at_once: int,
    ) -> None:
        self._client = client
        self._lease = lease
        self._bytes_max = bytes_max
        self._id_base = id_base
        self._at_once = asyncio.Semaphore(layers_at_once)
        self._ingests: set[str] = set()
        self.unpacked_bytes = 0

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
        """Fetches, verifies and unpacks all layers. Answers the view's key.

        Layers come some at a time, and are unpacked in their order as soon as they are there.
        """
        budget = Budget(self._bytes_max)
        parent = ""
        try:
            async with asyncio.TaskGroup() as group:
                coming: dict[str, asyncio.Task[int]] = {}
                for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
                    if layer.digest not in coming:
                        fetching = self._layer(source, layer, diff_id, budget)
                        coming[layer.digest] = group.create_task(fetching)
                unpacked: set[str] = set()
                for layer, diff_id, chain_id in zip(
                    manifest.layers, config.diff_ids, chain_ids(config.diff_ids), strict=True
                ):
                    size = await coming[layer.digest]
                    if layer.digest in unpacked:  # once more on disk
                        budget.spend(size)
                    unpacked.add(layer.digest)
                    key = self._key(chain_id)
                    await self._unpack(layer, diff_id, parent, key)
                    parent = key
        except BaseExceptionGroup as errors:  # the first is why the others were cut off
            raise errors.exceptions[0] from None
        ours, data = our_layer()
        top = self._key(chain_ids((*config.diff_ids, ours))[-1])
        await self.small_blob(ours, data, {})
        layer = Descriptor(digest=ours, size=len(data), media_type=PLAIN_LAYER)
        await self._unpack(layer, ours, parent, top)
        view = f"view-{top}"
        try:
            await self._client.view_snapshot(view, top, {})
        except ContainerdExists:
            await self._client.add_to_lease(
                self._lease, view, f"snapshots/{self._client.snapshotter}"
            )
        self.unpacked_bytes = budget.bytes_spent
        return view

    def _key(self, chain_id: str) -> str:
        """A snapshot's name: the same layers with other owners are another one."""
        return f"{chain_id}-{self._id_base}"

    async def _layer(
        self, source: ImageSource, layer: Descriptor, diff_id: str, budget: Budget
    ) -> int:
        """Has a layer in the content store. Answers how many bytes it unpacks to."""
        async with self._at_once:
            try:
                labels = await self._client.content_labels(layer.digest)
                await self._client.add_to_lease(self._lease, layer.digest)
                if LABEL_UNPACKED in labels and LABEL_DIFF_ID in labels:
                    # It came in whole, through here. A configuration that says something else of it
                    # would name the snapshots of another image's layers.
                    check_diff_id(layer.digest, labels[LABEL_DIFF_ID], diff_id)
                    size = int(labels[LABEL_UNPACKED])
                    budget.spend(size)
                    return size
            except ContainerdNotFound:
                pass
            return await self._fetch(source, layer, diff_id, budget)

    async def _fetch(
        self, source: ImageSource, layer: Descriptor, diff_id: str, budget: Budget
    ) -> int:
        inspector = LayerInspector(layer.digest, layer.media_type, diff_id, budget)

        async def inspected(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            seen = 0
            async for chunk in chunks:
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

        await self._blob(layer.digest, layer.size, inspected(source.chunks(layer)))
        if not inspector.finished:
            # It is there, written by a process that ended before it had labelled it.
            stored = self._client.content_chunks(layer.digest, limits.PULL_DEADLINE_S)
            async for _ in inspected(stored):
                pass
        await self._client.label_content(
            layer.digest,
            {LABEL_UNPACKED: str(inspector.unpacked_bytes), LABEL_DIFF_ID: diff_id},
        )
        return inspector.unpacked_bytes

    async def _blob(self, digest: str, size: int, chunks: AsyncIterator[bytes]) -> None:
        ref = f"{self._lease}-{digest}"
        self._ingests.add(ref)
        try:
            await self._client.write_content(ref, digest, size, chunks, limits.PULL_DEADLINE_S)
        except ContainerdExists:
            await self._client.add_to_lease(self._lease, digest)
        self._ingests.discard(ref)

    async def _unpack(self, layer: Descriptor, diff_id: str, parent: str, chain_id: str) -> None:
        kind = f"snapshots/{self._client.snapshotter}"
        try:
            await self._client.stat_snapshot(chain_id)
            await self._client.add_to_lease(self._lease, chain_id, kind)
            return
        except ContainerdNotFound:
            pass
        key = f"{self._lease}-{chain_id}"
        mounts = await self._client.prepare_snapshot(key, parent, {})
        described = types_pb2.Descriptor(
            media_type=layer.media_type, digest=layer.digest, size=layer.size
        )
        try:
            applied = await self._client.apply_diff(described, mounts)
        except ContainerdError as error:
            raise ImageError(
                ImageReason.CORRUPT, f"layer {layer.digest} cannot be unpacked: {error}"
            ) from error
        if applied != diff_id:
            raise ImageError(ImageReason.CORRUPT, f"layer {layer.digest} unpacked to {applied}")
        await asyncio.to_thread(shift, _unpacked(mounts), self._id_base)
        try:
            await self._client.commit_snapshot(chain_id, key, {})
        except ContainerdExists:  # another image with that layer was faster
            await self._client.remove_snapshot(key)
            await self._client.add_to_lease(self._lease, chain_id, kind)


class _Stored:
    """An ImageSource: an image that containerd has, layers and all."""

    def __init__(self, client: ContainerdClient, record: images_pb2.Image) -> None:
        self._client = client
        self._record = record

    async def root(self) -> tuple[str, str, bytes]:
        target = self._record.target
        data = await self._client.read_content(target.digest, limits.MANIFEST_BYTES_MAX)
        return target.media_type, target.digest, data

    async def blob(self, descriptor: Descriptor, bytes_max: int) -> bytes:
        return await self._client.read_content(descriptor.digest, bytes_max)

    def chunks(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        return self._client.content_chunks(descriptor.digest, limits.PULL_DEADLINE_S)


def _disk_bytes(record: images_pb2.Image) -> int:
    """What an image takes on disk: its layers as they came, and unpacked."""
    return sum(int(record.labels.get(name, "0")) for name in (LABEL_SIZE, LABEL_UNPACKED))


def _unpacked(mounts: Mounts) -> Path:
    """The host's directory that one layer was unpacked into."""
    for option in mounts[0].options:
        if option.startswith("upperdir="):
            return Path(option.removeprefix("upperdir="))
    return Path(mounts[0].source)


def shift(directory: Path, id_base: int) -> None:
    """Gives a layer's files to the host's ids from `id_base` on, and drops its devices.

    Changing an owner drops set-user-id bits and file capabilities: no sandbox could use them.
    Whiteouts (character device 0, 0) are the snapshotter's own. Blocks: call it in a thread.
    """

    def mapped(identity: int) -> int:
        if id_base <= identity < id_base + limits.IDS:
            return identity  # seen before, by another of its hard links
        return id_base + (identity if identity < limits.IDS else users.NOBODY)

    for _, directories, files, parent in os.fwalk(directory, follow_symlinks=False):
        for name in (".", *directories, *files):
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            device = stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)
            if device and status.st_rdev != 0:
                os.unlink(name, dir_fd=parent)
            elif id_base and (name == "." or not stat.S_ISDIR(status.st_mode)):
                uid, gid = mapped(status.st_uid), mapped(status.st_gid)
                os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)


@functools.cache
def our_layer() -> tuple[str, bytes]:
    """The layer over every image: mount points, so that a read-only root needs none made, the
    names that a sandbox without network knows, where it finds resolvers (nowhere without
    network), and the gate. Digest and bytes."""
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
        entry = tarfile.TarInfo("etc/resolv.conf")
        entry.type, entry.linkname = tarfile.SYMTYPE, f"{gate.EXCHANGE}/resolv.conf"
        archive.addfile(entry)
    data = buffer.getvalue()
    return sha256(data), data
