"""What updates share: which fields of a resource a call changes, and that others change it too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from ...mesh.errors import EtagMismatch, InvalidRequest, invalid
from .. import convert
from ..core.commands import Refused, Why
from ..raft.replica import Replica
from .writes import refusal

PUBLIC_PACKAGE = "tickmesh.v1"

UPDATE_TRIES_MAX = 5
"""Of a read-modify-write that others get in between of; then it is theirs."""


async def update(
    replica: Replica, name: str, etag: str, once: Callable[[int], Awaitable[Message]]
) -> Message:
    """Read, decide, write; anew if somebody else wrote in between, unless the client gave an etag.

    once: does so with what is stored now. It gets the version that the client gave, 0 for none.
    """
    given = convert.version_of(etag)
    for _ in range(UPDATE_TRIES_MAX):
        await replica.read_barrier()
        try:
            return await once(given)
        except EtagMismatch:
            if given:
                raise
    raise EtagMismatch(f"{name} is being changed by others all the time")


def check_given(given: int, version: int, what: str) -> None:
    """Raises EtagMismatch if the client knows another version than there is."""
    if given not in (0, version):
        raise refusal(Refused(Why.VERSION_MISMATCH, what))


def merge(given: Message, stored: Message, mask: FieldMask, fields: frozenset[str]) -> None:
    """Set in `stored` what the mask names, as `given` has it. Raises InvalidRequest."""
    paths = sorted(fields) if list(mask.paths) == ["*"] else list(mask.paths)
    if not paths:
        raise invalid("update_mask", "names no field")
    for path in paths:
        head = path.split(".", 1)[0]
        if head not in fields:
            raise InvalidRequest(
                f"update_mask: {path[:80]!r} cannot be changed",
                fields=(("update_mask", f"may name {', '.join(sorted(fields))}"),),
            )
        _merge_path(given, stored, path.split("."), path)


def _merge_path(given: Any, stored: Any, parts: list[str], path: str) -> None:
    head, rest = parts[0], parts[1:]
    descriptor = given.DESCRIPTOR.fields_by_name.get(head)
    if descriptor is None or (rest and not _has_parts(descriptor)):
        raise invalid("update_mask", f"{path[:80]!r} is not a field")
    if rest:
        _merge_path(getattr(given, head), getattr(stored, head), rest, path)
        return
    stored.ClearField(head)
    present = not descriptor.has_presence or given.HasField(head)
    if not present:
        return
    if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
        getattr(stored, head).update(getattr(given, head))
    elif descriptor.is_repeated:
        getattr(stored, head).extend(getattr(given, head))
    elif descriptor.message_type is not None:
        getattr(stored, head).CopyFrom(getattr(given, head))
    else:
        setattr(stored, head, getattr(given, head))


def _has_parts(field: FieldDescriptor) -> bool:
    """Whether a path goes on within it: not where its parts mean something together only, as those
    of a duration, which are checked as a whole where they are given."""
    ours = field.message_type is not None and field.message_type.file.package == PUBLIC_PACKAGE
    return ours and not field.is_repeated
