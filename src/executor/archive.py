"""OCI archives: built here from files, without any registry or daemon, and read back.

What is built is the same, byte for byte, whenever its inputs are: names sorted, owners and times
zeroed (a Python's own files keep their times, because its compiled modules record them).
"""

import asyncio
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import limits
from .errors import ImageError, ImageReason
from .layers import check_digest, check_headers
from .manifest import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    architecture,
    parse_index,
    sha256,
)

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
GZIP_LEVEL = 4  # twice as fast as the default for a few per cent more bytes
EXECUTABLE = 0o755

# Of a Python's standard library: what no job needs, and all that only a terminal or a build uses.
_LEFT_OUT = frozenset(
    [
        "__pycache__",
        "site-packages",
        "test",
        "tests",
        "idlelib",
        "idle_test",
        "ensurepip",
        "lib2to3",
        "tkinter",
        "turtledemo",
        "pydoc_data",
        "distutils",
        "unittest",
        "msilib",
    ]
)
# Modules that nearly every program imports: theirs are taken compiled too.
_COMPILED = frozenset(["", "encodings", "collections", "re", "json", "importlib", "asyncio"])
LDD_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Process:
    """What the built image says of its process."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    user: str = ""
    working_directory: str = ""


@dataclass(frozen=True, slots=True)
class File:
    """One file of an image: its content, where to take it from, or what it links to."""

    source: Path | bytes = b""
    mode: int = 0o644
    modified_s: int = 0
    link: str = ""
    """A symbolic link's target; `source` is not looked at then."""


def files_image(target: Path, files: Mapping[str, File], process: Process) -> str:
    """Writes an archive whose one layer holds `files` (absolute names). Answers its digest."""
    with tempfile.TemporaryFile() as layer:
        diff_id, digest = _write_layer(layer, files)
        return _write_archive(target, layer, diff_id, digest, process)


def directory_image(target: Path, directory: Path, process: Process) -> str:
    """Writes an archive with everything under `directory` as its root. Answers its digest.

    Symbolic links are followed, and must stay within it; devices and sockets are left out.
    """
    root = directory.resolve()
    files: dict[str, File] = {}
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        real = path.resolve()
        if not real.is_relative_to(root):
            raise ImageError(
                ImageReason.CORRUPT, f"{path} links to {real}, which is outside of {root}"
            )
        mode = EXECUTABLE if os.access(real, os.X_OK) else 0o644
        files["/" + str(path.relative_to(root))] = File(real, mode)
    return files_image(target, files, process)


def python_image(
    target: Path,
    extra: Mapping[str, File] | None = None,
    command: tuple[str, ...] = ("python3",),
) -> str:
    """Writes an archive with this very Python, so that `python3` runs in it. Answers its digest.

    It holds the interpreter, its standard library without tests and user interfaces, and the shared
    libraries that they need: about 20 MB. `extra` files lie beside it; `command` is the image's.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    interpreter = (base / "bin" / version).resolve()
    library = base / "lib" / version
    files = {f"/usr/local/bin/{version}": File(interpreter, EXECUTABLE)}
    files["/usr/local/bin/python3"] = files["/usr/local/bin/python"] = File(link=version)
    extensions = []
    for path in _standard_library(library):
        files[f"/usr/local/lib/{version}/{path.relative_to(library)}"] = File(
            path, modified_s=int(path.stat().st_mtime)
        )
        if path.suffix == ".so":
            extensions.append(path)
    for path in _shared_libraries([interpreter, *extensions]):
        files[str(path)] = File(path.resolve(), EXECUTABLE)
    files["/etc/passwd"] = File(b"root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534::/tmp:\n")
    files["/etc/group"] = File(b"root:x:0:\nnogroup:x:65534:\n")
    files.update(extra or {})
    process = Process(
        command=command,
        environment={"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONUNBUFFERED": "1"},
    )
    return files_image(target, files, process)


def _standard_library(root: Path) -> Iterable[Path]:
    for directory, names, files in os.walk(root):
        relative = Path(directory).relative_to(root)
        compiled = relative.name == "__pycache__"
        names[:] = sorted(
            name
            for name in names
            if (name not in _LEFT_OUT and not name.startswith("config-"))
            or (name == "__pycache__" and str(relative).replace(".", "") in _COMPILED)
        )
        for name in sorted(files):
            if name.endswith((".opt-1.pyc", ".opt-2.pyc", ".a", ".o", ".exe")):
                continue
            if compiled == name.endswith(".pyc") and not name.startswith("_test"):
                yield Path(directory, name)


def _shared_libraries(programs: list[Path]) -> list[Path]:
    """Every shared library that these need, by the names that the loader looks for."""
    answer = subprocess.run(
        ["ldd", *map(str, programs)],
        capture_output=True,
        text=True,
        check=True,
        timeout=LDD_DEADLINE_S,
    )
    found = set()
    for line in answer.stdout.splitlines():
        for word in line.split():
            if word.startswith("/") and not word.endswith(":"):
                found.add(Path(word))
    return sorted(found)


class _Hashed(io.RawIOBase):
    """Passes bytes on and hashes them."""

    def __init__(self, target: io.BufferedIOBase | gzip.GzipFile) -> None:
        self._target = target
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # tarfile writes bytes only
        self.hash.update(data)
        return self._target.write(data)


def _write_layer(target: io.BufferedIOBase, files: Mapping[str, File]) -> tuple[str, str]:
    """Writes a gzip layer. Answers diff_id and digest."""
    with gzip.GzipFile("", "wb", GZIP_LEVEL, target, mtime=0) as compressed:
        unpacked = _Hashed(compressed)
        with tarfile.open(fileobj=unpacked, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            made: set[str] = set()
            for name in sorted(files):
                parts = name.strip("/").split("/")
                for depth in range(1, len(parts)):
                    parent = "/".join(parts[:depth])
                    if parent not in made:
                        made.add(parent)
                        entry = tarfile.TarInfo(parent)
                        entry.type, entry.mode = tarfile.DIRTYPE, EXECUTABLE
                        archive.addfile(entry)
                _add(archive, "/".join(parts), files[name])
    target.seek(0)
    compressed_hash = hashlib.file_digest(target, "sha256")
    return f"sha256:{unpacked.hash.hexdigest()}", f"sha256:{compressed_hash.hexdigest()}"


def _add(archive: tarfile.TarFile, name: str, file: File) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = file.mode, file.modified_s
    if file.link:
        entry.type, entry.linkname = tarfile.SYMTYPE, file.link
        archive.addfile(entry)
    elif isinstance(file.source, bytes):
        entry.size = len(file.source)
        archive.addfile(entry, io.BytesIO(file.source))
    else:
        entry.size = file.source.stat().st_size
        with file.source.open("rb") as source:
            archive.addfile(entry, source)


def _write_archive(
    target: Path, layer: io.BufferedIOBase, diff_id: str, digest: str, process: Process
) -> str:
    layer_bytes = layer.seek(0, os.SEEK_END)
    if layer_bytes > limits.IMAGE_BYTES_MAX:
        raise ImageError(
            ImageReason.TOO_LARGE,
            f"the image has {layer_bytes} bytes, at most {limits.IMAGE_BYTES_MAX}",
        )
    environment = process.environment or {}
    config = _json(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": list(process.entrypoint),
                "Cmd": list(process.command),
                "Env": [f"{key}={value}" for key, value in sorted(environment.items())],
                "User": process.user,
                "WorkingDir": process.working_directory,
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": sha256(config), "size": len(config)},
            "layers": [{"mediaType": OCI_LAYER_GZIP, "digest": digest, "size": layer_bytes}],
        }
    )
    entry = {"mediaType": OCI_MANIFEST, "digest": sha256(manifest), "size": len(manifest)}
    index = _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    scratch = target.with_name(f"{target.name}.new")
    with tarfile.open(scratch, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (
            ("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
            ("index.json", index),
            (_blob_name(sha256(manifest)), manifest),
            (_blob_name(sha256(config)), config),
        ):
            _add(archive, name, File(data))
        member = tarfile.TarInfo(_blob_name(digest))
        member.size = layer_bytes
        layer.seek(0)
        archive.addfile(member, layer)
    scratch.rename(target)
    return sha256(manifest)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _blob_name(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"


class ArchiveSource:
    """An ImageSource: one OCI archive (an image layout in an uncompressed tar file)."""

    def __init__(self, path: Path, bytes_max: int = limits.IMAGE_BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._members: dict[str, tuple[int, int]] = {}

    async def root(self) -> tuple[str, str, bytes]:
        """Media type, digest and bytes of the index, or of its only manifest."""
        await asyncio.to_thread(self._scan)
        data = self._small("index.json", limits.MANIFEST_BYTES_MAX)
        index = parse_index("index.json", data)
        if len(index.manifests) == 1:
            only = index.manifests[0]
            media_type = only.media_type or OCI_MANIFEST
            return media_type, only.digest, await self.blob(only, limits.MANIFEST_BYTES_MAX)
        return OCI_INDEX, sha256(data), data

    async def blob(self, descriptor: Descriptor, bytes_max: int) -> bytes:
        """A small blob, verified."""
        data = self._small(_blob_name(descriptor.digest), bytes_max)
        check_digest("blob", descriptor.digest, hashlib.sha256(data).hexdigest())
        return data

    async def chunks(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """A layer, in pieces."""
        offset, size = self._find(_blob_name(descriptor.digest))
        with await asyncio.to_thread(self._path.open, "rb") as file:
            file.seek(offset)
            while size > 0:
                chunk = await asyncio.to_thread(file.read, min(size, limits.COPY_CHUNK_BYTES))
                if not chunk:
                    raise self._corrupt(f"{descriptor.digest} is cut short")
                size -= len(chunk)
                yield chunk

    def _scan(self) -> None:
        """Notes where each member's bytes are."""
        try:
            total = self._path.stat().st_size
            if total > self._bytes_max + limits.COPY_CHUNK_BYTES:
                raise ImageError(
                    ImageReason.TOO_LARGE,
                    f"archive {self._path.name} has {total} bytes, at most {self._bytes_max}",
                )
            with self._path.open("rb") as file:
                check_headers(f"archive {self._path.name}", file)
            with tarfile.open(self._path, "r:") as archive:
                for member in archive:
                    if not member.isfile() or member.issparse():
                        continue
                    if member.offset_data + member.size > total:
                        raise self._corrupt(f"{member.name} is cut short")
                    self._members[member.name.removeprefix("./")] = (
                        member.offset_data,
                        member.size,
                    )
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise self._corrupt(f"it is no tar file ({error})") from error
        except OSError as error:
            raise ImageError(
                ImageReason.NOT_FOUND, f"archive {self._path.name}: {error.strerror}"
            ) from error

    def _find(self, name: str) -> tuple[int, int]:
        found = self._members.get(name)
        if found is None:
            raise self._corrupt(f"{name} is missing (is it an OCI image archive?)")
        return found

    def _small(self, name: str, bytes_max: int) -> bytes:
        offset, size = self._find(name)
        if size > bytes_max:
            raise self._corrupt(f"{name} has {size} bytes, at most {bytes_max}")
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def _corrupt(self, what: str) -> ImageError:
        return ImageError(ImageReason.CORRUPT, f"archive {self._path.name}: {what}")
