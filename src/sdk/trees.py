"""A plain root file system, a directory or a tar, as an image of one layer: for those who have no
docker.

It is shown as the OCI image layout (https://github.com/opencontainers/image-spec) that it would be,
so that nothing after this knows the difference. The same files make the same image: names are
sorted, owners are root, times are kept to the second.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from ..mesh.errors import ImageCorrupt, ImageTooLarge, invalid
from ..mesh.limits import IMAGE_BYTES_MAX
from . import limits

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYOUT_MARKS = ("oci-layout", "index.json", "manifest.json", "blobs/sha256")
"""Of these an image layout, or what `docker save` writes, has one at its top, a broken one too."""

ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_LEVEL = 4  # twice as fast as the default for a few per cent more bytes


def is_mark(name: str) -> bool:
    """Whether only an image has something of that name."""
    name = name.removeprefix("./")
    return any(name == mark or name.startswith(f"{mark}/") for mark in LAYOUT_MARKS)


def is_compressed(path: Path) -> bool:
    """Whether a file is, with gzip."""
    with path.open("rb") as file:
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


class Tree:
    """The files of the layout that a root file system would be. See layouts.Files."""

    def __init__(self, path: Path, architecture: str = "") -> None:
        """Reads all of it. architecture: "amd64" or "arm64"; "" is this machine's.

        Raises ImageCorrupt, ImageTooLarge, InvalidRequest, and OSError.
        """
        self.name = str(path)
        self._packed: IO[bytes] | None = None  # deleted when this is
        self._documents: dict[str, bytes] = {}
        architecture = _architecture(architecture)
        if path.is_dir():
            packed = self._packed = tempfile.NamedTemporaryFile(prefix="tickmesh-layer-")  # noqa: SIM115
            diff = self._pack(path, packed)
            self._layer, suffix = Path(packed.name), "+gzip"
        else:
            diff, compressed = self._scan(path)
            self._layer, suffix = path, "+gzip" if compressed else ""
        digest = diff
        if suffix:  # what is not compressed is its own content
            with self._layer.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._layer_size = self._layer.stat().st_size
        self._layer_name = f"blobs/sha256/{digest}"
        if self._layer_size > IMAGE_BYTES_MAX:
            raise self._too_large()
        config = self._add(
            OCI_CONFIG,
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Env": [f"PATH={PATH}"]},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff}"]},
            },
        )
        layer = {
            "mediaType": f"{OCI_LAYER}{suffix}",
            "digest": f"sha256:{digest}",
            "size": self._layer_size,
        }
        manifest = self._add(
            OCI_MANIFEST,
            {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]},
        )
        self._documents["index.json"] = _json({"schemaVersion": 2, "manifests": [manifest]})

    def size(self, name: str) -> int | None:
        """See Files."""
        if name == self._layer_name:
            return self._layer_size
        document = self._documents.get(name)
        return None if document is None else len(document)

    def open(self, name: str) -> BinaryIO:
        """See Files."""
        if name == self._layer_name:
            return self._layer.open("rb")
        return io.BytesIO(self._documents[name])

    def _add(self, media_type: str, content: dict[str, Any]) -> dict[str, Any]:
        data = _json(content)
        digest = hashlib.sha256(data).hexdigest()
        self._documents[f"blobs/sha256/{digest}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def _pack(self, root: Path, packed: IO[bytes]) -> str:
        """Writes the layer; the hash of what it is before compression."""
        with gzip.GzipFile(
            filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=packed, mtime=0
        ) as squeezed:
            hashed = _Hashed(cast(IO[bytes], squeezed))
            total = count = 0
            with tarfile.open(fileobj=cast(BinaryIO, hashed), mode="w|") as archive:
                for path in _below(root):
                    name = path.relative_to(root).as_posix()
                    member = archive.gettarinfo(path, name)
                    if member is None or member.isdev():
                        raise self._corrupt(f"{name} is neither file, directory nor link")
                    total, count = total + member.size, count + 1
                    self._check(total, count)
                    member.uid = member.gid = 0
                    member.uname = member.gname = ""
                    member.mtime = int(member.mtime)
                    if member.isreg():
                        with path.open("rb") as file:
                            archive.addfile(member, file)
                    else:
                        archive.addfile(member)
                    _forget(archive)
        packed.flush()
        if not count:
            raise self._corrupt("it is empty")
        return hashed.hexdigest()

    def _scan(self, path: Path) -> tuple[str, bool]:
        """The hash of a tar before compression, and whether it is compressed."""
        total = count = 0
        compressed = is_compressed(path)
        with path.open("rb") as file:
            opened = gzip.GzipFile(fileobj=file) if compressed else file
            hashed = _Hashed(cast(IO[bytes], opened))
            try:
                with (
                    closing(opened),
                    tarfile.open(fileobj=cast(BinaryIO, hashed), mode="r|") as archive,
                ):
                    for member in archive:
                        if is_mark(member.name):
                            raise self._corrupt(
                                f"it has {member.name}: an image's archive is not compressed"
                            )
                        total, count = total + member.size, count + 1
                        self._check(total, count)
                        _forget(archive)
                    while hashed.read(limits.PUSH_PIECE_BYTES):
                        self._check(hashed.count, count)
            except (tarfile.TarError, EOFError, ValueError, gzip.BadGzipFile) as error:
                raise self._corrupt(f"it is no tar file, plain or with gzip ({error})") from error
        if not count:
            raise self._corrupt("it is empty")
        return hashed.hexdigest(), compressed

    def _check(self, total: int, count: int) -> None:
        if total > IMAGE_BYTES_MAX:
            raise self._too_large()
        if count > limits.TREE_ENTRIES_MAX:
            raise ImageTooLarge(f"{self.name}: over {limits.TREE_ENTRIES_MAX:,} files")

    def _too_large(self) -> ImageTooLarge:
        return ImageTooLarge(f"{self.name}: over {IMAGE_BYTES_MAX:,} bytes")

    def _corrupt(self, what: str) -> ImageCorrupt:
        return ImageCorrupt(f"{self.name}: {what}")


class _Hashed:
    """A stream that is hashed on its way."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.count = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._stream.write(data)

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        self.count += len(data)
        return data

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _forget(archive: tarfile.TarFile) -> None:
    """It remembers each member, which nobody asks it for: hundreds of thousands are much memory."""
    cast(Any, archive).members.clear()


def _below(root: Path) -> Iterator[Path]:
    """What is in a directory, directories before what is in them, in one order."""
    for directory, directories, files in os.walk(root, onerror=_raise):
        directories.sort()
        here = Path(directory)
        # Links to directories are among the directories, and are not gone into.
        for name in sorted([*directories, *files]):
            yield here / name


def _raise(error: OSError) -> None:
    raise error


def _architecture(asked: str) -> str:
    machine = asked or platform.machine().lower()
    if machine not in ARCHITECTURES:
        raise invalid(
            "architecture",
            f"{machine!r} is none of {', '.join(sorted(set(ARCHITECTURES.values())))}",
        )
    return ARCHITECTURES[machine]


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
