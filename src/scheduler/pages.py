"""Page tokens: where a listing goes on, bound to the listing that gave the token out."""

from __future__ import annotations

import base64
import binascii
import hashlib

import msgspec

from ..mesh.errors import PageTokenInvalid
from ..mesh.limits import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX


class _Token(msgspec.Struct, array_like=True):
    listing: bytes
    after: bytes


def _listing(*parts: str) -> bytes:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).digest()


def size(asked: int) -> int:
    """How many items a page has."""
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def token(after: bytes, *listing: str) -> str:
    """What the client gives back to go on; empty at the end."""
    if not after:
        return ""
    raw = msgspec.msgpack.encode(_Token(_listing(*listing), after))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def start(token_given: str, *listing: str) -> bytes:
    """Where the listing goes on. Raises PageTokenInvalid."""
    if not token_given:
        return b""
    try:
        raw = base64.urlsafe_b64decode(token_given + "=" * (-len(token_given) % 4))
        decoded = msgspec.msgpack.decode(raw, type=_Token)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise _invalid("is damaged") from error
    if decoded.listing != _listing(*listing):
        raise _invalid("belongs to another listing: its parent or filters differ")
    return decoded.after


def _invalid(what: str) -> PageTokenInvalid:
    return PageTokenInvalid(f"page_token: {what}", fields=(("page_token", what),))
