"""What callers are told of things that have versions: a version is one content for ever, and nobody
who asks later is told an older one."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message


class Versions:
    """What one caller was told, by what each thing is for ever: a uid, or a name."""

    def __init__(self, violate: Callable[[str], None]) -> None:
        self._violate = violate
        self._contents: dict[tuple[str, int], bytes] = {}
        self._newest: dict[str, int] = {}

    def begin(self) -> dict[str, int]:
        """What is known when an operation begins; for `told`."""
        return dict(self._newest)

    def told(self, seen: dict[str, int], identity: str, etag: str, message: Message) -> None:
        """An operation that began with `seen` was answered."""
        version, content = int(etag[1:]), message.SerializeToString(deterministic=True)
        if version < seen.get(identity, 0):
            self._violate(f"version {version} after version {seen[identity]}: {message}")
        if self._contents.setdefault((identity, version), content) != content:
            self._violate(f"this is version {version}, and was something else: {message}")
        self._newest[identity] = max(self._newest.get(identity, 0), version)
