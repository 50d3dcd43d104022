"""Pure: reads a layer as it streams by, and refuses what must not be unpacked.

containerd unpacks without asking how much comes out. So each layer passes here first: digests of
both its forms, its unpacked size, its number of entries and their names. Bytes go in by `feed`, in
any pieces; nothing is kept of them.
"""

import hashlib
import os
import threading
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

import zstandard

from . import limits
from .errors import ImageError, ImageReason

BLOCK_BYTES = 512
GZIP, ZSTD, PLAIN = "gzip", "zstd", "plain"
COMPRESSIONS = {
    "application/vnd.oci.image.layer.v1.tar": PLAIN,
    "application/vnd.oci.image.layer.v1.tar+gzip": GZIP,
    "application/vnd.oci.image.layer.v1.tar+zstd": ZSTD,
    "application/vnd.docker.image.rootfs.diff.tar": PLAIN,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": ZSTD,
}

_NUMBER_DIGITS_MAX = 19  # 64 bits

# A little compressed data can unpack to very much: these are the pieces between two looks.
_UNPACKED_PIECE_BYTES = 1 * limits.MIB
_ZSTD_INPUT_BYTES = 4 * limits.KIB

_LONG_NAME, _LONG_LINK, _EXTENDED, _EXTENDED_GLOBAL, _SPARSE = b"L", b"K", b"x", b"g", b"S"
_META = (_LONG_NAME, _LONG_LINK, _EXTENDED, _EXTENDED_GLOBAL)
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")


class Budget:
    """What one image may still unpack, shared by its layers, which come in several threads."""

    def __init__(self, bytes_max: int, entries_max: int = limits.IMAGE_ENTRIES_MAX) -> None:
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._bytes = 0
        self._entries = 0
        self._lock = threading.Lock()

    @property
    def bytes_spent(self) -> int:
        """What it has unpacked so far."""
        return self._bytes

    def spend(self, size: int, entries: int = 0) -> None:
        """Raises ImageError(TOO_LARGE) when the image has used it up."""
        with self._lock:
            self._bytes += size
            self._entries += entries
        if self._bytes > self._bytes_max:
            raise ImageError(
                ImageReason.TOO_LARGE,
                f"the image unpacks to more than {self._bytes_max} bytes",
            )
        if self._entries > self._entries_max:
            raise ImageError(
                ImageReason.TOO_LARGE,
                f"the image has more than {self._entries_max} files and directories",
            )


class _Decompressor(Protocol):
    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What `data` unpacks to, in bounded pieces."""
        ...

    def complete(self) -> bool:
        """Whether the stream's end was seen."""
        ...


class _Plain:
    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield data

    def complete(self) -> bool:
        return True


class _Gzip:
    """One or more gzip members after each other, as parallel compressors write them."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._begun = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                data = data.lstrip(b"\0")  # padding between or after members
                if not data:
                    return
                self._member = zlib.decompressobj(wbits=31)
            self._begun = True
            yield self._member.decompress(data, _UNPACKED_PIECE_BYTES)
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail

    def complete(self) -> bool:
        return self._begun and self._member.eof


class _Zstd:
    """One or more zstd frames after each other."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=limits.ZSTD_WINDOW_BYTES_MAX)
        self._frame = self._context.decompressobj()
        self._begun = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_INPUT_BYTES):
            part = data[start : start + _ZSTD_INPUT_BYTES]
            while part:
                if self._frame.eof:
                    self._frame = self._context.decompressobj()
                self._begun = True
                yield self._frame.decompress(part)
                part = self._frame.unused_data if self._frame.eof else b""

    def complete(self) -> bool:
        return self._begun and self._frame.eof


def _decompressor(kind: str) -> _Decompressor:
    if kind == GZIP:
        return _Gzip()
    return _Zstd() if kind == ZSTD else _Plain()


def check_diff_id(layer: str, found: str, promised: str) -> None:
    """Raises ImageError(CORRUPT) if a layer unpacks to something else than its image says."""
    if found != promised:
        raise ImageError(
            ImageReason.CORRUPT,
            f"layer {layer} unpacks to {found}, the image's configuration says {promised}",
        )


class LayerInspector:
    """Follows one layer. `feed` its bytes, then `finish`."""

    def __init__(self, digest: str, media_type: str, diff_id: str, budget: Budget) -> None:
        kind = COMPRESSIONS.get(media_type)
        if kind is None:
            raise ImageError(
                ImageReason.UNSUPPORTED, f"layer {digest}: media type {media_type!r} is not known"
            )
        self._digest = digest
        self._diff_id = diff_id
        self._budget = budget
        self._compressed = hashlib.sha256()
        self._unpacked = hashlib.sha256()
        self._decompressor = _decompressor(kind)
        self._tar = _TarWalker(f"layer {digest}", budget)
        self.unpacked_bytes = 0
        self.finished = False
        """All of it was seen, and was right."""

    def feed(self, data: bytes) -> None:
        """The layer's next bytes. Raises ImageError as soon as it is clear that it is no good."""
        self._compressed.update(data)
        try:
            for piece in self._decompressor.pieces(data):
                self.unpacked_bytes += len(piece)
                self._budget.spend(len(piece))
                self._unpacked.update(piece)
                self._tar.feed(piece)
        except (zlib.error, zstandard.ZstdError) as error:
            raise ImageError(
                ImageReason.CORRUPT, f"layer {self._digest} cannot be decompressed: {error}"
            ) from error

    def finish(self) -> None:
        """After the last byte: are both digests what manifest and configuration promised?"""
        check_digest("layer", self._digest, self._compressed.hexdigest())
        if not self._decompressor.complete():
            raise ImageError(ImageReason.CORRUPT, f"layer {self._digest} ends too early")
        self._tar.finish()
        check_diff_id(self._digest, f"sha256:{self._unpacked.hexdigest()}", self._diff_id)
        self.finished = True


def check_headers(what: str, file: BinaryIO) -> None:
    """Looks at every header of a plain tar file, before a less careful reader does.

    Raises ImageError(CORRUPT).
    """
    walker = _TarWalker(what, Budget(0, limits.ARCHIVE_ENTRIES_MAX))
    while (skipped := walker.seek()) >= 0:
        file.seek(skipped, os.SEEK_CUR)
        block = file.read(BLOCK_BYTES)
        if not block:
            break
        walker.feed(block)
    walker.finish()


class _TarWalker:
    """Looks at every header of a tar stream, skips every body."""

    def __init__(self, what: str, budget: Budget) -> None:
        self._what = what
        self._budget = budget
        self._buffer = bytearray()
        self._skip_bytes = 0
        self._meta_kind = b""
        self._meta_bytes = 0
        self._name: bytes | None = None
        self._size: int | None = None
        self._ended = False

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view) and not self._ended:
            if self._skip_bytes:
                step = min(self._skip_bytes, len(view))
                self._skip_bytes -= step
                view = view[step:]
                continue
            wanted = self._meta_bytes or BLOCK_BYTES
            step = min(wanted - len(self._buffer), len(view))
            self._buffer += view[:step]
            view = view[step:]
            if len(self._buffer) == wanted:
                whole = bytes(self._buffer)
                self._buffer.clear()
                if self._meta_bytes:
                    self._meta(whole)
                else:
                    self._header(whole)

    def seek(self) -> int:
        """How many bytes may be passed over instead of being fed; -1 at the end mark."""
        if self._ended:
            return -1
        skipped, self._skip_bytes = self._skip_bytes, 0
        return skipped

    def finish(self) -> None:
        # A missing end mark is common and harmless; a body or header cut short is neither.
        if self._skip_bytes or self._buffer or self._meta_bytes:
            raise self._corrupt("ends in the middle of an entry")

    def _corrupt(self, what: str) -> ImageError:
        return ImageError(ImageReason.CORRUPT, f"{self._what} {what}")

    def _header(self, block: bytes) -> None:
        if not block.strip(b"\0"):
            self._ended = True
            return
        checksum = _number(block[148:156])
        if checksum != sum(block[:148]) + 8 * 32 + sum(block[156:]):
            raise self._corrupt("is not a tar archive, or a header in it is damaged")
        kind = block[156:157]
        size = _number(block[124:136])
        if size is None or size < 0:
            raise self._corrupt("has an entry with an impossible size")
        if kind in _META:
            if size > limits.TAR_HEADER_BYTES_MAX:
                raise self._corrupt(f"has an extended header of {size} bytes")
            self._meta_kind, self._meta_bytes = kind, size
            return
        name = self._name
        if name is None:
            prefix = block[345:500].split(b"\0")[0] if block[257:262] == b"ustar" else b""
            name = block[:100].split(b"\0")[0]
            name = prefix + b"/" + name if prefix and block[263:265] == b"00" else name
        if kind == _SPARSE:
            raise self._corrupt(f"has a sparse file, {_shown(name)}: its real size is hidden")
        self._entry(name, kind, block[157:257].split(b"\0")[0])
        if kind not in _WITHOUT_DATA:
            size = self._size if self._size is not None else size
            self._skip_bytes = size + -size % BLOCK_BYTES
        self._name = self._size = None

    def _entry(self, name: bytes, kind: bytes, link: bytes) -> None:
        self._budget.spend(0, entries=1)
        if name.startswith(b"/") or b".." in name.split(b"/"):
            raise self._corrupt(f"has an entry outside of its root: {_shown(name)}")
        if kind == b"1" and (b".." in link.split(b"/")):
            raise self._corrupt(f"has a hard link that leaves its root: {_shown(name)}")

    def _meta(self, body: bytes) -> None:
        kind, size = self._meta_kind, self._meta_bytes
        self._meta_bytes = 0
        self._skip_bytes = -size % BLOCK_BYTES
        if kind == _LONG_NAME:
            self._name = body.rstrip(b"\0")
        elif kind == _EXTENDED:
            for key, value in _extended(body):
                if key == b"path":
                    self._name = value
                elif key == b"size":
                    if not value.isdigit() or len(value) > _NUMBER_DIGITS_MAX:
                        raise self._corrupt("has an entry with an impossible size")
                    self._size = int(value)
                elif key.startswith(b"GNU.sparse"):
                    raise self._corrupt("has a sparse file: its real size is hidden")


def _number(field: bytes) -> int | None:
    """A tar header's number: octal text, or big-endian binary when the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _extended(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of a pax header: "length key=value\\n"."""
    while body:
        length, _, _ = body.partition(b" ")
        if not length.isdigit() or len(length) > _NUMBER_DIGITS_MAX:
            return
        if not 0 < int(length) <= len(body):
            return
        key, _, value = body[len(length) + 1 : int(length) - 1].partition(b"=")
        yield key, value
        body = body[int(length) :]


def _shown(name: bytes) -> str:
    return repr(name[:128].decode(errors="replace"))


def check_digest(what: str, promised: str, found_hex: str) -> None:
    """Raises ImageError(CORRUPT) naming both digests when they differ."""
    if promised != f"sha256:{found_hex}":
        raise ImageError(
            ImageReason.CORRUPT, f"{what} {promised} does not match its digest: sha256:{found_hex}"
        )
