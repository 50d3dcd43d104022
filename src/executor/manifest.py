"""Pure: what an image says of itself. Its index, manifest and configuration, checked and parsed.

Shapes are those of the OCI image specification; Docker's of the same fields are taken too.
"""

import hashlib
import platform as host_platform
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from . import limits
from .errors import ImageError, ImageReason

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_INDEX)

UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What decoding somebody else's JSON raises."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Platform(msgspec.Struct, frozen=True):
    """Which machines an image is for."""

    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A blob by what it is; `size` in bytes."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """Manifests of one image for several platforms."""

    manifests: list[Descriptor]
    media_type: str = ""


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """What one image consists of."""

    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""


class _Process(msgspec.Struct, frozen=True, rename="pascal"):
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    user: str = ""
    working_dir: str = ""


class _Root(msgspec.Struct, frozen=True):
    diff_ids: list[str]


class _Configuration(msgspec.Struct, frozen=True):
    rootfs: _Root
    architecture: str = ""
    os: str = ""
    config: _Process | None = None


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says of the process that it is made for."""

    diff_ids: tuple[str, ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    user: str
    """As "name", "name:group", "uid" or "uid:gid"; empty when the image does not say."""
    working_directory: str


def architecture() -> str:
    """This machine's, in the words of image manifests."""
    machine = host_platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def sha256(data: bytes) -> str:
    """The digest of a blob."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _decode(what: str, data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise ImageError(ImageReason.CORRUPT, f"{what} cannot be read: {error}") from error


def parse_index(name: str, data: bytes) -> Index:
    """An index. Raises ImageError(CORRUPT)."""
    index: Index = _decode(f"index {name}", data, Index)
    for entry in index.manifests:
        _check(f"index {name}", entry)
    return index


def parse_manifest(name: str, data: bytes) -> Manifest:
    """A manifest, whose sizes are within the limits. Raises ImageError."""
    manifest: Manifest = _decode(f"manifest {name}", data, Manifest)
    for part in (manifest.config, *manifest.layers):
        _check(f"manifest {name}", part)
    if manifest.config.size > limits.CONFIG_BYTES_MAX:
        raise ImageError(
            ImageReason.TOO_LARGE,
            f"configuration {manifest.config.digest} has {manifest.config.size} bytes, at most "
            f"{limits.CONFIG_BYTES_MAX}",
        )
    if not 1 <= len(manifest.layers) <= limits.IMAGE_LAYERS_MAX - 1:
        raise ImageError(
            ImageReason.UNSUPPORTED,
            f"manifest {name} has {len(manifest.layers)} layers, not 1 to "
            f"{limits.IMAGE_LAYERS_MAX - 1}",
        )
    return manifest


def check_size(name: str, manifest: Manifest, bytes_max: int) -> None:
    """Refuses an image by what its manifest says, before a byte of it moves."""
    total = manifest.config.size + sum(layer.size for layer in manifest.layers)
    if total > bytes_max:
        raise ImageError(
            ImageReason.TOO_LARGE,
            f"image {name} has {total} bytes (compressed), at most {bytes_max}",
        )


def parse_config(digest: str, data: bytes, layers: int) -> ImageConfig:
    """An image's configuration, which must describe as many layers. Raises ImageError."""
    configuration: _Configuration = _decode(f"configuration {digest}", data, _Configuration)
    diff_ids = configuration.rootfs.diff_ids
    if len(diff_ids) != layers:
        raise ImageError(
            ImageReason.CORRUPT,
            f"configuration {digest} names {len(diff_ids)} layers, the manifest {layers}",
        )
    wanted = architecture()
    if configuration.os not in ("", "linux") or configuration.architecture not in ("", wanted):
        raise ImageError(
            ImageReason.UNSUPPORTED,
            f"the image is for {configuration.os}/{configuration.architecture}, this executor "
            f"is linux/{wanted}",
        )
    process = configuration.config or _Process()
    pairs = (variable.partition("=") for variable in process.env or ())
    return ImageConfig(
        diff_ids=tuple(diff_ids),
        entrypoint=tuple(process.entrypoint or ()),
        command=tuple(process.cmd or ()),
        environment=tuple((key, value) for key, separator, value in pairs if separator),
        user=process.user,
        working_directory=process.working_dir,
    )


def choose(name: str, index: Index) -> Descriptor:
    """The manifest for this machine. Raises ImageError(UNSUPPORTED) naming those there are."""
    wanted = architecture()
    unnamed = [entry for entry in index.manifests if entry.platform is None]
    for entry in index.manifests:
        platform = entry.platform
        if platform is not None and (platform.os, platform.architecture) == ("linux", wanted):
            return entry
    if len(unnamed) == 1 and len(index.manifests) == 1:
        return unnamed[0]
    found = sorted(
        f"{entry.platform.os}/{entry.platform.architecture}"
        for entry in index.manifests
        if entry.platform is not None
    )
    raise ImageError(
        ImageReason.UNSUPPORTED,
        f"image {name} is not for linux/{wanted}, only for {', '.join(found) or 'nothing'}",
    )


def chain_ids(diff_ids: tuple[str, ...]) -> list[str]:
    """What each layer's snapshot is called: by everything below it and itself."""
    chain = [diff_ids[0]]
    for diff_id in diff_ids[1:]:
        chain.append(sha256(f"{chain[-1]} {diff_id}".encode()))
    return chain


def _check(what: str, descriptor: Descriptor) -> None:
    if not _DIGEST.fullmatch(descriptor.digest):
        raise ImageError(
            ImageReason.CORRUPT, f"{what}: {descriptor.digest[:80]!r} is not a sha256 digest"
        )
    if descriptor.size < 0:
        raise ImageError(ImageReason.CORRUPT, f"{what}: {descriptor.digest} has a negative size")
