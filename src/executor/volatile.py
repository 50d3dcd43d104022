"""Where files are that mean nothing after a reboot: sockets, FIFOs, what a sandbox is given.

In memory, so that none of it outlives its boot, and because a container needs a dozen such files
for a moment: on a disk's file system each costs 0.02 to 1 ms of a processor (ext4 without a journal
passes over every inode that was freed within the last minute; thousands are, at ten containers a
second).
"""

import hashlib
import os
from pathlib import Path

from .errors import HostUnfit

CANDIDATES = (Path("/run"), Path("/dev/shm"))
"""The first that is in memory is taken; where none is, the first."""

NAME = "tickmesh"
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def directory_of(lasting: Path) -> Path:
    """The volatile directory that belongs to a lasting one. Not made yet; see `make`.

    Its path is short, as a unix socket's must be.
    """
    name = hashlib.sha256(os.fsencode(lasting.absolute())).hexdigest()[:12]
    return _root() / NAME / name


def make(directory: Path) -> None:
    """Make such a directory, if it is not there. Raises HostUnfit where others could change it."""
    for path in (directory.parent, directory):
        path.mkdir(mode=0o711, exist_ok=True)
        found = path.lstat()
        # /dev/shm is open to everybody: whoever came first might own it, or lead it elsewhere.
        if path.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise HostUnfit([f"{path} belongs to somebody else: remove it"])


def remove(directory: Path) -> None:
    """Remove such a directory, and what holds it, unless there is something in them."""
    for path in (directory, directory.parent):
        try:
            path.rmdir()
        except OSError:
            return


def _root() -> Path:
    types = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind = line.split(" ")[:3]
        types[path] = kind
    for candidate in CANDIDATES:
        if types.get(str(candidate)) in _IN_MEMORY:
            return candidate
    return CANDIDATES[0]
