"""Waits for files to change, by inotify: no polling."""

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_IGNORED = 0x2, 0x80, 0x100, 0x8000
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Watcher:
    """One inotify descriptor, read by the running loop, for any number of directories."""

    def __init__(self) -> None:
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._events: dict[int, set[asyncio.Event]] = {}
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Ends it; what still waits would wait for ever."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    @contextlib.contextmanager
    def changes(self, directory: Path) -> Iterator[asyncio.Event]:
        """An event that is set whenever something in `directory` is written, made or moved in.

        Look at the directory after entering: what happened before sets nothing. Clear the event
        before each look.
        """
        mask = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE
        watch = _libc.inotify_add_watch(self._descriptor, os.fsencode(directory), mask)
        if watch < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {directory}")
        event = asyncio.Event()
        self._events.setdefault(watch, set()).add(event)
        try:
            yield event
        finally:
            waiters = self._events.get(watch, set())
            waiters.discard(event)
            if not waiters and self._events.pop(watch, None) is not None:
                _libc.inotify_rm_watch(self._descriptor, watch)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._descriptor, _READ_BYTES)
            offset = 0
            while offset < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, offset)
                offset += _EVENT.size + length
                for event in self._events.get(watch, ()):
                    event.set()
                if mask & _IN_IGNORED:
                    self._events.pop(watch, None)
