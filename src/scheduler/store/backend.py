"""The ordered key-value interface that the state stands on, and its in-memory implementation.

Both implementations pass tests/conformance/test_backend.py.
"""

from __future__ import annotations

from bisect import bisect_left, insort_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from .keys import HISTORY, history, period_of_key


class Backend(Protocol):
    """Ordered bytes to bytes."""

    def get(self, key: bytes) -> bytes | None:
        """The value under a key."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values under keys, in their order."""
        ...

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop, in order; in reverse from the last one down."""
        ...

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Put (bytes) and delete (None), all or nothing."""
        ...

    def periods(self) -> list[int]:
        """The periods that have history, oldest first."""
        ...

    def drop_period(self, period: int) -> None:
        """Remove all history of a period, at a cost that does not grow with it."""
        ...


class MemoryBackend:
    """A dictionary and a sorted list of its keys. For tests and simulation."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        """See Backend."""
        return self._values.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See Backend."""
        return [self._values.get(key) for key in keys]

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """See Backend."""
        keys = self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, stop)]
        for key in reversed(keys) if reverse else keys:
            yield key, self._values[key]

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """See Backend."""
        for key, value in changes.items():
            present = key in self._values
            if value is None:
                if present:
                    del self._values[key]
                    del self._keys[bisect_left(self._keys, key)]
            else:
                if not present:
                    insort_left(self._keys, key)
                self._values[key] = value

    def periods(self) -> list[int]:
        """See Backend."""
        found = []
        at = bisect_left(self._keys, HISTORY)
        while at < len(self._keys) and self._keys[at][:1] == HISTORY:
            period = period_of_key(self._keys[at])
            found.append(period)
            at = bisect_left(self._keys, history(period + 1))
        return found

    def drop_period(self, period: int) -> None:
        """See Backend."""
        for key, _ in list(self.scan(history(period), history(period + 1))):
            self.write({key: None})
