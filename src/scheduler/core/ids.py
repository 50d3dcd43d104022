"""How ids are made and spelled: bytes inside, base32hex (RFC 4648, lower case) outside.

A uid is 10 random bytes, 16 characters. An execution's id is its due time in milliseconds (6 bytes,
big-endian) and 10 bytes of origin, 26 characters, so that ids sort by time: the origin is the
schedule's uid for a fire (which makes a second fire of the same instant the same id, and so
impossible) and random for a call.
"""

from __future__ import annotations

import base64
import binascii

UID_BYTES = 10
EXECUTION_ID_BYTES = 16


_ALPHABET = "0123456789abcdefghijklmnopqrstuv"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def spell(raw: bytes) -> str:
    """Bytes as lower-case base32hex without padding."""
    # Ten bits at a time: a shard spells several ids for each execution, and the standard library's
    # encoder takes five times as long. Uids, the most of them, have no loop either.
    if len(raw) == UID_BYTES:
        number, pair = int.from_bytes(raw, "big"), _PAIRS
        return (
            f"{pair[number >> 70]}{pair[number >> 60 & 1023]}"
            f"{pair[number >> 50 & 1023]}{pair[number >> 40 & 1023]}"
            f"{pair[number >> 30 & 1023]}{pair[number >> 20 & 1023]}"
            f"{pair[number >> 10 & 1023]}{pair[number & 1023]}"
        )
    bits = len(raw) * 8
    pairs = -(-bits // 10)
    number = int.from_bytes(raw, "big") << (pairs * 10 - bits)
    shifts = range((pairs - 1) * 10, -1, -10)
    return "".join([_PAIRS[number >> shift & 1023] for shift in shifts])[: -(-bits // 5)]


def unspell(text: str, length: int) -> bytes | None:
    """The `length` bytes that `spell` wrote as text, or None if it never wrote that."""
    padded = text.upper() + "=" * (-len(text) % 8)
    try:
        raw = base64.b32hexdecode(padded)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == length and spell(raw) == text else None


def execution_id(due_ms: int, origin: bytes) -> bytes:
    """The id of the execution that is due at an instant and comes from an origin (10 bytes)."""
    assert len(origin) == UID_BYTES
    return due_ms.to_bytes(6, "big") + origin


def due_ms_of(execution: bytes) -> int:
    """The instant that an execution's id begins with."""
    return int.from_bytes(execution[:6], "big")


def attempt_id(execution: bytes, number: int) -> str:
    """The id of an attempt, unique for ever: "{execution id}-{number}"."""
    return f"{spell(execution)}-{number}"


def split_attempt_id(attempt: str) -> tuple[bytes, int] | None:
    """(execution id, attempt number), or None if it is not an attempt's id."""
    spelled, dash, number = attempt.rpartition("-")
    raw = unspell(spelled, EXECUTION_ID_BYTES)
    if not dash or raw is None or not number.isascii() or not number.isdigit():
        return None
    return raw, int(number)
