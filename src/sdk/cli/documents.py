"""The SDK's dataclasses as plain JSON or YAML, and back: what `-o yaml` prints, `-f` reads.

Field names are the API's; instants are RFC 3339, lengths of time "1h30m" or "0.25s", enums their
names, a payload text (or "payload_base64"). What is empty is left out.
"""

from __future__ import annotations

import base64
import dataclasses
import types as python_types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from ...mesh.errors import invalid
from .parameters import parse_duration, parse_instant, parse_size

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """A dataclass, and what is in it, as dictionaries, lists, text and numbers."""
    if dataclasses.is_dataclass(value):
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            content = getattr(value, field.name)
            if isinstance(content, bytes) and content:
                try:
                    plain[field.name] = content.decode()
                except UnicodeDecodeError:
                    plain[f"{field.name}_base64"] = base64.b64encode(content).decode()
            elif not _is_empty(content):
                plain[field.name] = to_plain(content)
        return plain
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.10g}s"
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _is_empty(content: Any) -> bool:
    if dataclasses.is_dataclass(content):
        return not to_plain(content)
    return content is None or content in ("", b"", (), {})


def from_plain(kind: type[T], plain: Any, path: str) -> T:
    """The dataclass that a document describes. Raises InvalidRequest naming the place."""
    if not isinstance(plain, Mapping):
        raise invalid(path, f"is not a table of {kind.__name__}'s fields")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, content in plain.items():
        name = str(key)
        where = f"{path}.{name}"
        if name.endswith("_base64") and hints.get(name.removesuffix("_base64")) is bytes:
            values[name.removesuffix("_base64")] = _from_base64(content, where)
        elif name in hints:
            values[name] = _value(hints[name], content, where)
        else:
            raise invalid(where, f"is not known; {kind.__name__} has {', '.join(hints)}")
    missing = [
        field.name
        for field in dataclasses.fields(typing.cast(Any, kind))
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise invalid(f"{path}.{missing[0]}", "is missing")
    return kind(**values)


def _from_base64(content: Any, path: str) -> bytes:
    try:
        return base64.b64decode(str(content), validate=True)
    except ValueError:
        raise invalid(path, "is not base64") from None


def _value(kind: Any, content: Any, path: str) -> Any:
    """One field's value, by the type that the dataclass says."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, python_types.UnionType):  # X | None
        return None if content is None else _value(arguments[0], content, path)
    if origin is tuple:
        items = content if isinstance(content, list | tuple) else [content]
        return tuple(
            _value(arguments[0], item, f"{path}[{number}]") for number, item in enumerate(items)
        )
    if origin is not None:  # Mapping[str, str]
        if not isinstance(content, Mapping):
            raise invalid(path, "is not a table")
        return {str(key): _text(value, f"{path}.{key}") for key, value in content.items()}
    if dataclasses.is_dataclass(kind):
        return from_plain(typing.cast(Any, kind), content, path)
    try:
        return _scalar(kind, content, path)
    except OverflowError:
        raise invalid(path, f"{content!r} is too large") from None
    except ValueError as error:
        raise invalid(path, str(error)) from None


def _scalar(kind: Any, content: Any, path: str) -> Any:
    if kind is timedelta:
        return parse_duration(str(content))
    if kind is datetime:
        return content if isinstance(content, datetime) else parse_instant(str(content))
    if kind is bytes:
        return _text(content, path).encode()
    if issubclass(kind, StrEnum):
        known = [str(each) for each in kind]
        if content not in known:
            raise ValueError(f"{content!r} is not one of {', '.join(known)}")
        return kind(content)
    if kind is bool:
        if not isinstance(content, bool):
            raise ValueError(f"{content!r} is not true or false")
        return content
    if kind is int:
        if isinstance(content, str) and path.endswith("_bytes"):
            return parse_size(content)
        if isinstance(content, bool) or not isinstance(content, int):
            raise ValueError(f"{content!r} is not a whole number")
        if abs(content) >= 1 << (63 if path.endswith("_bytes") else 31):
            raise OverflowError
        return content
    return _text(content, path)


def _text(content: Any, path: str) -> str:
    """YAML reads yes, 1.10 and 08:30 as something else than text: say so, do not guess."""
    if not isinstance(content, str):
        raise invalid(path, f"{content!r} is not text: put it in quotes")
    return content
