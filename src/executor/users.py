"""Who a sandbox runs as: names of an image's own passwd and group files, made numbers.

The files are the customer's: read below the image's layers only, no link followed.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from . import limits
from .errors import ImageError, ImageReason

NOBODY = 65534
_ID_MAX = limits.IDS - 1  # a sandbox has no more, with a user namespace or without
_ID_DIGITS_MAX = 10


def resolve(user: str, layers: Sequence[Path]) -> tuple[int, int]:
    """uid and gid of "name", "name:group", "uid" or "uid:gid"; "" is nobody.

    `layers`: the image's directories on this host, topmost first. Blocks: call it in a thread.
    Raises ImageError(USER_UNKNOWN).
    """
    if not user:
        return NOBODY, NOBODY
    name, _, group = user.partition(":")
    uid, gid = _number(name), _number(group)
    if uid is None or gid is None:
        for fields in _records(layers, "passwd", 4):
            if name == fields[0] or (uid is not None and fields[2] == name):
                uid = _number(fields[2])
                gid = _number(fields[3]) if gid is None else gid
                break
    if uid is None:
        raise ImageError(ImageReason.USER_UNKNOWN, f"the image has no user {name!r}")
    if group and _number(group) is None:
        rows = [fields for fields in _records(layers, "group", 3) if fields[0] == group]
        if not rows:
            raise ImageError(ImageReason.USER_UNKNOWN, f"the image has no group {group!r}")
        gid = _number(rows[0][2])
    gid = gid or 0
    if uid > _ID_MAX or gid > _ID_MAX:
        raise ImageError(
            ImageReason.USER_UNKNOWN, f"user {user!r} is out of range: ids go up to {_ID_MAX}"
        )
    return uid, gid


def _number(text: str) -> int | None:
    """An id written in digits; None when it is a name."""
    if not (text.isascii() and text.isdigit()):
        return None
    return int(text) if len(text) <= _ID_DIGITS_MAX else _ID_MAX + 1


def _records(layers: Sequence[Path], file: str, numbers: int) -> list[list[str]]:
    """The well-formed lines of /etc/passwd or /etc/group, cut at the colons."""
    for layer in layers:
        text = _read(layer, file)
        if text is not None:
            rows = (line.split(":") for line in text.splitlines())
            return [
                row
                for row in rows
                if len(row) >= numbers
                and all(_number(value) is not None for value in row[2:numbers])
            ]
    return []


def _read(layer: Path, file: str) -> str | None:
    """A file of the layer's /etc; None when this layer does not say."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        directory = os.open(layer / "etc", flags | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        descriptor = os.open(file, flags | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return None
    finally:
        os.close(directory)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISCHR(mode):
            return ""  # overlayfs says so: deleted by this layer
        if not stat.S_ISREG(mode):
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as opened:
            return opened.read(limits.PASSWD_BYTES_MAX).decode(errors="replace")
    finally:
        os.close(descriptor)
