"""Images on this disk: OCI image layouts (directories or tars), what `docker save` writes, and
plain root file systems (trees.py).

What is read here is not trusted to be whole: digests and sizes are checked when it is pushed.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..mesh.errors import ImageCorrupt, ImageTooLarge, invalid
from ..mesh.limits import IMAGE_BYTES_MAX
from . import limits
from .trees import (
    LAYOUT_MARKS,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Tree,
    is_compressed,
    is_mark,
)

DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEXES = (OCI_INDEX, DOCKER_INDEX)


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob by what it is."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index, whole."""

    media_type: str
    data: bytes

    @property
    def digest(self) -> str:
        """What it is known by."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"


@dataclass(slots=True)
class Plan:
    """What to push, in this order: blobs, an index's manifests, what the name stands for."""

    blobs: dict[str, Blob] = field(default_factory=dict)
    manifests: list[Document] = field(default_factory=list)
    top: Document | None = None

    @property
    def size(self) -> int:
        """Of all blobs, in bytes."""
        return sum(blob.size for blob in self.blobs.values())


class Files(Protocol):
    """Files by name: a directory's, or a tar file's."""

    name: str

    def size(self, name: str) -> int | None:
        """None: there is none."""
        ...

    def open(self, name: str) -> BinaryIO:
        """For reading, from its beginning."""
        ...


class Directory:
    """Files of a directory."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.is_image = any((path / mark).exists() for mark in LAYOUT_MARKS)
        self._path = path

    def size(self, name: str) -> int | None:
        """See Files."""
        try:
            return (self._path / name).stat().st_size
        except OSError:
            return None

    def open(self, name: str) -> BinaryIO:
        """See Files."""
        return (self._path / name).open("rb")

    def close(self) -> None:
        """Nothing is open."""


class Tar:
    """Members of a tar file that is not compressed."""

    def __init__(self, path: Path) -> None:
        """Of one that is no image (`is_image`) there may be more. Raises ImageCorrupt."""
        self.name = str(path)
        self.is_image = False
        self._members: dict[str, tuple[int, int]] = {}
        self._path = path
        links: dict[str, str] = {}
        total = path.stat().st_size
        try:
            with tarfile.open(path, "r:") as archive:
                for count, member in enumerate(archive, 1):
                    self.is_image = self.is_image or is_mark(member.name)
                    if count > limits.ARCHIVE_MEMBERS_MAX:
                        break
                    self._take(member, links, total)
        except (tarfile.TarError, EOFError, ValueError) as error:
            kinds = "uncompressed tar file" if self.is_image else "tar file, plain or with gzip"
            raise self._corrupt(f"it is no {kinds} ({error})") from error
        if not self.is_image:
            return
        if count > limits.ARCHIVE_MEMBERS_MAX:
            raise self._corrupt(f"it has over {limits.ARCHIVE_MEMBERS_MAX} members")
        for name, target in links.items():
            resolved = _joined(name, target)
            if resolved in self._members:
                self._members[name] = self._members[resolved]

    def _take(self, member: tarfile.TarInfo, links: dict[str, str], total: int) -> None:
        name = member.name.removeprefix("./")
        if member.issym():  # `docker save` names a layer twice
            links[name] = member.linkname
        elif member.isfile() and not member.issparse():
            if self.is_image and member.offset_data + member.size > total:
                raise self._corrupt(f"{name} is cut short")
            self._members[name] = member.offset_data, member.size

    def size(self, name: str) -> int | None:
        """See Files."""
        found = self._members.get(name)
        return None if found is None else found[1]

    def open(self, name: str) -> BinaryIO:
        """See Files: the whole file, at the member; who reads knows its size."""
        file = self._path.open("rb")
        file.seek(self._members[name][0])
        return file

    def _corrupt(self, what: str) -> ImageCorrupt:
        return ImageCorrupt(f"{self.name}: {what}")


class Layout:
    """An image on this disk."""

    def __init__(
        self,
        path: Path,
        architecture: str = "",
        on_root_file_system: Callable[[], None] | None = None,
    ) -> None:
        """architecture: of a plain root file system; "" is this machine's. on_root_file_system:
        called when it is one, before all of it is read.

        Raises ImageCorrupt, ImageTooLarge, InvalidRequest, and OSError where there is nothing to
        read.
        """
        self._files: Files
        found: Directory | Tar | None = None
        if path.is_dir():
            found = Directory(path)
        elif not is_compressed(path):
            found = Tar(path)
        if found is None or not found.is_image:
            if on_root_file_system is not None:
                on_root_file_system()
            self._files = Tree(path, architecture)
        elif architecture:
            raise invalid("architecture", f"{path} is an image, which says it itself")
        else:
            self._files = found
        self._where: dict[str, str] = {}
        """The names of blobs that are not where a layout has them."""
        self._made: dict[str, bytes] = {}

    def plan(self) -> Plan:
        """What to push of it. Raises ImageCorrupt, ImageTooLarge."""
        plan = Plan()
        if self._files.size("index.json") is None:
            if self._files.size("manifest.json") is None:
                raise self._corrupt("it has no index.json")
            plan.top = self._of_docker(plan)
        else:
            top = Document(OCI_INDEX, self._small("index.json"))
            index = self._json("index.json", top.data)
            entries = _entries(index)
            if len(entries) == 1:
                plan.top = self._take(plan, entries[0])
            else:
                plan.top = self._index(plan, top)
            if plan.top is None:
                raise self._corrupt("none of the manifests in index.json is in it")
        return plan

    def pieces(self, blob: Blob, offset: int) -> Iterator[bytes]:
        """A blob's bytes from an offset on. Raises ImageCorrupt for one that is cut short."""
        made = self._made.get(blob.digest)
        if made is not None:
            yield made[offset:]
            return
        with self._files.open(self._name(blob.digest)) as file:
            file.seek(offset, 1)
            left = blob.size - offset
            while left > 0:
                piece = file.read(min(left, limits.PUSH_PIECE_BYTES))
                if not piece:
                    raise self._corrupt(f"{blob.digest} is cut short")
                left -= len(piece)
                yield piece

    def _name(self, digest: str) -> str:
        algorithm, _, value = digest.partition(":")
        return self._where.get(digest, f"blobs/{algorithm}/{value}")

    def _take(self, plan: Plan, entry: dict[str, Any]) -> Document | None:
        """One entry of an index, with all that it names; None if it is not in the layout."""
        digest = _text(entry.get("digest"))
        if not _is_digest(digest):
            raise self._corrupt(f"{digest[:80]!r} is no sha256 digest")
        if self._files.size(self._name(digest)) is None:
            return None
        document = Document(
            _text(entry.get("mediaType")) or OCI_MANIFEST, self._small(self._name(digest))
        )
        if document.digest != digest:
            raise self._corrupt(f"manifest {digest} does not match its digest: {document.digest}")
        if document.media_type in INDEXES:
            return self._index(plan, document)
        manifest = self._json(f"manifest {digest}", document.data)
        total = 0
        for part in (manifest.get("config"), *_list(manifest.get("layers"))):
            blob = self._blob(f"manifest {digest}", part)
            plan.blobs[blob.digest] = blob
            total += blob.size
        if total > IMAGE_BYTES_MAX:
            raise ImageTooLarge(
                f"{self._files.name}: the image has {total} bytes, at most {IMAGE_BYTES_MAX}"
            )
        return document

    def _index(self, plan: Plan, document: Document) -> Document | None:
        """An index, without the platforms that are not in the layout: registries want all."""
        index = self._json("index", document.data)
        entries = _entries(index)
        found = [(entry, self._take(plan, entry)) for entry in entries]
        present = [(entry, taken) for entry, taken in found if taken is not None]
        real = [pair for pair in present if not _is_attestation(pair[0])]
        if not real:
            return None
        if len(present) < len(entries):
            if len(real) == 1:
                return real[0][1]
            index["manifests"] = [entry for entry, _ in present]
            document = Document(document.media_type, json.dumps(index).encode())
        plan.manifests.extend(taken for _, taken in present)
        return document

    def _blob(self, what: str, part: Any) -> Blob:
        if not isinstance(part, dict):
            raise self._corrupt(f"{what} names a part that is none")
        digest, size = _text(part.get("digest")), part.get("size")
        if not _is_digest(digest) or not isinstance(size, int) or size < 0:
            raise self._corrupt(f"{what}: {digest[:80]!r} is no sha256 digest with a size")
        there = self._files.size(self._name(digest))
        if there is None:
            raise self._corrupt(f"{what} names {digest}, which is missing")
        if there != size:
            raise self._corrupt(f"{digest} has {there} bytes, {what} says {size}")
        return Blob(digest, size)

    def _of_docker(self, plan: Plan) -> Document:
        """An archive of an older `docker save`: its manifest is made here."""
        entries = self._json("manifest.json", self._small("manifest.json"), list)
        if len(entries) != 1 or not isinstance(entries[0], dict):
            raise self._corrupt(f"it holds {len(entries)} images, not one")
        config = self._small(_text(entries[0].get("Config")))
        digest = Document("", config).digest
        self._made[digest] = config
        plan.blobs[digest] = Blob(digest, len(config))
        layers = []
        total = len(config)
        for name in map(_text, _list(entries[0].get("Layers"))):
            size = self._files.size(name)
            if size is None:
                raise self._corrupt(f"{name} is missing")
            total += size
            if total > IMAGE_BYTES_MAX:
                raise ImageTooLarge(f"{self._files.name}: over {IMAGE_BYTES_MAX} bytes")
            layer = f"sha256:{self._hash(name, size)}"
            self._where[layer] = name
            plan.blobs[layer] = Blob(layer, size)
            layers.append({"mediaType": OCI_LAYER, "digest": layer, "size": size})
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest, "size": len(config)},
            "layers": layers,
        }
        return Document(OCI_MANIFEST, json.dumps(manifest, separators=(",", ":")).encode())

    def _hash(self, name: str, size: int) -> str:
        hashed = hashlib.sha256()
        with self._files.open(name) as file:
            while size > 0 and (piece := file.read(min(size, limits.PUSH_PIECE_BYTES))):
                hashed.update(piece)
                size -= len(piece)
        return hashed.hexdigest()

    def _small(self, name: str) -> bytes:
        size = self._files.size(name)
        if size is None:
            raise self._corrupt(f"{name or 'its configuration'} is missing")
        if size > limits.MANIFEST_BYTES_MAX:
            raise self._corrupt(f"{name} has {size} bytes, at most {limits.MANIFEST_BYTES_MAX}")
        with self._files.open(name) as file:
            return file.read(size)

    def _json(self, what: str, data: bytes, kind: type = dict) -> Any:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._corrupt(f"{what} cannot be read: {error}") from error
        if not isinstance(found, kind):
            raise self._corrupt(f"{what} cannot be read: it is no {kind.__name__}")
        return found

    def _corrupt(self, what: str) -> ImageCorrupt:
        return ImageCorrupt(f"{self._files.name}: {what}")


def _entries(index: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in _list(index.get("manifests")) if isinstance(entry, dict)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_digest(text: str) -> bool:
    head, _, value = text.partition(":")
    return head == "sha256" and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _is_attestation(entry: dict[str, Any]) -> bool:
    """What docker's builder says of an image, beside it."""
    annotations = entry.get("annotations")
    return isinstance(annotations, dict) and "vnd.docker.reference.type" in annotations


def _joined(name: str, target: str) -> str:
    """Where a relative link in a tar leads, by name; outside is nowhere."""
    parts = name.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
