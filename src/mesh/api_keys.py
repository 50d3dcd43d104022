"""API keys as text: how they are made, taken apart and hashed. Nothing here does I/O.

    tmk_{customer}_{key id}_{secret}    of a customer: names it, so that its shard is known
    tmo_{secret}                        of an operator of the mesh

No part has a "_" in it. The secret is 256 random bits, so nobody finds a key by trying, and whoever
reads its hash learns nothing: a fast hash (SHA-256) is as good as the slow ones that passwords
need, and a gateway that checks thousands of keys a second can afford it.
"""

from __future__ import annotations

import base64
import hashlib
import re

from .names import ID_PATTERN, KeyName

SECRET_BYTES = 32
"""256 random bits."""

CHARACTERS_MAX = 160
"""Of the longest key: what is longer is none."""

_SECRET = "[0-9a-v]{52}"
_KEY = re.compile(rf"tmk_({ID_PATTERN})_([0-9a-v]{{16}})_{_SECRET}")
_OPERATOR = re.compile(rf"tmo_{_SECRET}")
_HASH = re.compile(r"[0-9a-f]{64}")


def make(customer: str, key_id: str, secret: bytes) -> str:
    """The text of a customer's key."""
    return f"tmk_{customer}_{key_id}_{_spell(secret)}"


def make_operator(secret: bytes) -> str:
    """The text of an operator's key."""
    return f"tmo_{_spell(secret)}"


def _spell(secret: bytes) -> str:
    assert len(secret) == SECRET_BYTES
    return base64.b32hexencode(secret).decode().rstrip("=").lower()


def name_of(text: str) -> KeyName | None:
    """The customer and the id in a customer's key; None if the text is not of that form."""
    match = _KEY.fullmatch(text) if len(text) <= CHARACTERS_MAX else None
    return None if match is None else KeyName(match[1], match[2])


def is_operators(text: str) -> bool:
    """Whether the text is of the form of an operator's key."""
    return len(text) <= CHARACTERS_MAX and _OPERATOR.fullmatch(text) is not None


def digest(text: str) -> bytes:
    """What is stored of a key: SHA-256 of its text, 32 bytes."""
    return hashlib.sha256(text.encode()).digest()


def digest_from_hex(text: str) -> bytes | None:
    """A digest as configurations have it; None if it is none."""
    return bytes.fromhex(text) if _HASH.fullmatch(text) else None
