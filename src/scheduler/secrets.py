"""Secrets that customers leave here, sealed with a key from the configuration (AES-256-GCM).

What is stored, replicated and backed up is sealed; what it belongs to is sealed with it, so that
nobody can move one to another place. A leader opens them when it sends them to executors.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..mesh.config import ConfigError, SecretKey

KEY_BYTES = 32
NONCE_BYTES = 12
"""Random: of 2^32 secrets sealed with one key, two have the same with a chance of one in 2^33."""


class Secrets:
    """Seals with the first key, opens with any."""

    def __init__(
        self, settings: Sequence[SecretKey], draw: Callable[[int], bytes] = os.urandom
    ) -> None:
        """Raises ConfigError."""
        self._draw = draw
        self._keys: dict[str, AESGCM] = {}
        for index, key in enumerate(settings):
            field = f"scheduler.secret_keys[{index}]"
            try:
                raw = base64.b64decode(Path(key.file).read_text().strip(), validate=True)
            except OSError as error:
                raise ConfigError(f"{field}.file: {error.filename}: {error.strerror}") from error
            except (binascii.Error, ValueError):
                raw = b""
            if len(raw) != KEY_BYTES or not key.key_id or key.key_id in self._keys:
                raise ConfigError(
                    f"{field}: needs an id of its own, and a file with {KEY_BYTES} random bytes in "
                    "base64, as `openssl rand -base64 32` prints"
                )
            self._keys[key.key_id] = AESGCM(raw)

    @property
    def there(self) -> bool:
        """Whether there is a key to seal with."""
        return bool(self._keys)

    def seal(self, place: str, text: str) -> tuple[str, bytes]:
        """The key's id, and what may be stored at that place."""
        key_id, key = next(iter(self._keys.items()))
        nonce = self._draw(NONCE_BYTES)
        return key_id, nonce + key.encrypt(nonce, text.encode(), place.encode())

    def open(self, place: str, key_id: str, sealed: bytes) -> str | None:
        """What was sealed for that place; None where it cannot be told: the key is not here any
        more, or it was sealed for another place."""
        key = self._keys.get(key_id)
        if key is None:
            return None
        try:
            text = key.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place.encode())
        except (InvalidTag, ValueError):
            return None
        return text.decode()


def place(customer: str, host: str) -> str:
    """Of a login: its resource name."""
    return f"customers/{customer}/registryCredentials/{host}"
