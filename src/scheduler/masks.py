"""Update masks: which fields of a resource a call changes."""

from __future__ import annotations

from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from ..mesh.errors import InvalidRequest, invalid

UPDATE_TRIES_MAX = 5
"""Of a read-modify-write that others get in between of; then it is theirs."""


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
    if descriptor is None or (rest and (descriptor.message_type is None or descriptor.is_repeated)):
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
