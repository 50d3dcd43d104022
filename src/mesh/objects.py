"""Objects in a directory or in an S3-compatible store: one interface for both, by obstore.

A key is like "2026-01-31/acme/report": parts of letters, digits, points and dashes. An object is
whole or not there; what was put is durable. Secrets of the configuration are in no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore
import obstore.store
from obstore.exceptions import BaseError

from .config import ConfigError, ObjectStore

CALL_TIMEOUT_S = 30
"""One request to a store, its body included."""

CONNECT_TIMEOUT_S = 5

RETRIES_MAX = 2
"""Of a request, by the library, for what passes by itself; callers have longer patience."""

PARTS_AT_ONCE = 2
"""Of a file that is stored, 5 MiB each: what is in memory."""

READ_CHUNK_BYTES = 1024 * 1024

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")

_Result = TypeVar("_Result")


class ObjectsUnavailable(Exception):
    """A store cannot be reached, or refuses: the message says which, and why."""


class Objects:
    """A store, as the configuration names it. The methods that block say so."""

    def __init__(self, settings: ObjectStore, key: str) -> None:
        """key: of the configuration, for what is wrong with it. Raises ConfigError."""
        self.url = settings.url.rstrip("/")
        self._directory: Path | None = None
        if settings.url.startswith("/"):
            self._directory = Path(self.url)
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{key}.url: {self.url}: {error.strerror}") from error
            self._store: Any = obstore.store.LocalStore(self._directory, automatic_cleanup=True)
        elif settings.url.startswith("s3://"):
            self._store = _s3(settings, key)
        else:
            raise ConfigError(
                f"{key}.url: {settings.url!r} is neither an absolute path nor like "
                '"s3://bucket/prefix"'
            )

    # -- small objects ---------------------------------------------------------------------------

    async def put(self, key: str, data: bytes) -> None:
        """Store an object, in place of one that is there. Raises ObjectsUnavailable."""
        assert _KEY.fullmatch(key), key
        with self._explained("written to"):
            await obstore.put_async(self._store, key, data)
            if self._directory is not None:
                await asyncio.to_thread(_sync, self._directory, key)

    async def get(self, key: str, bytes_max: int) -> bytes | None:
        """An object; None if there is none. Raises ObjectsUnavailable, or ValueError for one over
        bytes_max."""
        assert _KEY.fullmatch(key), key
        with self._explained("read from"):
            try:
                found = await obstore.get_async(self._store, key)
            except FileNotFoundError:
                return None
            if found.meta["size"] > bytes_max:
                raise ValueError(f"{key} has {found.meta['size']} bytes, at most {bytes_max}")
            return bytes(await found.bytes_async())

    async def children(self, prefix: str) -> list[str]:
        """The next parts of the keys below a prefix ("" for all). Raises ObjectsUnavailable."""
        with self._explained("listed in"):
            listed = await obstore.list_with_delimiter_async(self._store, prefix or None)
        return sorted(path.rpartition("/")[2] for path in listed["common_prefixes"])

    async def keys(self, prefix: str) -> AsyncIterator[list[str]]:
        """The keys below a prefix, some at a time. Raises ObjectsUnavailable."""
        with self._explained("listed in"):
            async for objects in obstore.list(self._store, prefix):
                yield [each["path"] for each in objects]

    async def delete(self, keys: list[str]) -> None:
        """Delete objects; one that is not there is passed over. Raises ObjectsUnavailable."""
        with self._explained("deleted from"), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._store, keys)

    # -- files; blocking -------------------------------------------------------------------------

    def exists(self, key: str) -> bool:
        """Whether there is such an object, or something below that key. Blocking."""
        with self._explained("listed in"):
            return any(obstore.list(self._store, key, chunk_size=1))

    def put_file(self, key: str, path: Path) -> None:
        """Store a file's content, in parts. Blocking."""
        assert _KEY.fullmatch(key), key
        with self._explained("written to"):
            obstore.put(self._store, key, path, max_concurrency=PARTS_AT_ONCE)
            if self._directory is not None:
                _sync(self._directory, key)

    def put_new(self, key: str, data: bytes) -> bool:
        """Store an object where there is none; whether that was so. Blocking."""
        assert _KEY.fullmatch(key), key
        with self._explained("written to"):
            try:
                obstore.put(self._store, key, data, mode="create")
            except obstore.exceptions.AlreadyExistsError:
                return False
            if self._directory is not None:
                _sync(self._directory, key)
            return True

    def read(self, key: str) -> Iterator[bytes] | None:
        """An object in pieces; None if there is none. Blocking."""
        assert _KEY.fullmatch(key), key
        with self._explained("read from"):
            try:
                found = obstore.get(self._store, key)
            except FileNotFoundError:
                return None
        return self._pieces(found)

    def _pieces(self, found: Any) -> Iterator[bytes]:
        with self._explained("read from"):
            for piece in found.stream(min_chunk_size=READ_CHUNK_BYTES):
                yield bytes(piece)

    def remove(self, prefix: str) -> None:
        """Delete everything below a prefix. Blocking."""
        with self._explained("deleted from"):
            for objects in obstore.list(self._store, prefix):
                obstore.delete(self._store, [each["path"] for each in objects])

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise ObjectsUnavailable(f"{self.url} cannot be {what}: {_words(error)}") from None


def _s3(settings: ObjectStore, key: str) -> Any:
    """Empty settings are the environment's (AWS_...), or those of the machine's role."""
    options: dict[str, str] = {
        name: value
        for name, value in (
            ("endpoint", settings.endpoint),
            ("region", settings.region),
            ("access_key_id", settings.access_key_id),
            ("secret_access_key", settings.secret_access_key),
        )
        if value
    }
    plain = settings.endpoint.startswith("http://")
    try:
        return obstore.store.S3Store.from_url(
            settings.url,
            config=options,  # type: ignore[arg-type]
            client_options={
                "timeout": f"{CALL_TIMEOUT_S}s",
                "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
                "allow_http": plain,
            },
            retry_config={
                "max_retries": RETRIES_MAX,
                "retry_timeout": timedelta(seconds=CALL_TIMEOUT_S),
            },
        )
    except (BaseError, ValueError) as error:
        raise ConfigError(f"{key}: {_words(error)}") from None


def _words(error: Exception) -> str:
    """What a store or the library said, without what it may quote: a line, and the S3 code."""
    text = str(error)
    code = _CODE.search(text)
    line = text.partition("\n")[0].partition("<?xml")[0].partition("<Error>")[0].strip()[:400]
    return f"{line} {code[1]}" if code else line


def _sync(directory: Path, key: str) -> None:
    """Make a file in a directory store durable, with the directories that are new."""
    path = directory / key
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if path == directory:
            return
        path = path.parent
