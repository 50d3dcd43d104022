"""Checks a request's bytes against the rules in the protos, and says what is wrong in words.

What needs no state is checked here (form, range, size); what a shard knows (whether a job exists,
whether a cron can fire) is checked there.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from protovalidate import CompilationError, EvaluationError, Validator, Violation

from ..mesh.errors import InvalidRequest, MessageTooLarge, invalid
from ..mesh.limits import MESSAGE_BYTES_MAX
from ..mesh.names import is_id
from .methods import Method

VIOLATIONS_REPORTED_MAX = 20
"""Violations named in one answer: they travel in trailing metadata, where gRPC allows 8 KiB."""

VALUE_CHARACTERS_SHOWN = 60
"""How much of a wrong value is repeated in the answer."""

_ID = "[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
_ID_WORDS = 'a letter, then up to 62 of [a-z0-9-], not ending in "-"'
_IMAGE_NAME = "[a-z0-9]+([._-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,63})?"

_HOST = r"([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:[0-9]{1,5})?|[A-Za-z0-9-]+:[0-9]{1,5})"
PATTERN_FORMS: dict[str, str] = {
    "^[A-Za-z0-9][A-Za-z0-9._-]*$": (
        "a name without slashes: letters, digits, dots, hyphens and underscores, beginning with a "
        "letter or digit"
    ),
    f"^customers/{_ID}$": f"customers/{{customer}} (each id is {_ID_WORDS})",
    f"^customers/{_ID}/jobs/{_ID}$": (
        f"customers/{{customer}}/jobs/{{job}} (each id is {_ID_WORDS})"
    ),
    f"^customers/{_ID}/jobs/({_ID}|-)$": (
        "customers/{customer}/jobs/{job}, or customers/{customer}/jobs/- for every job "
        f"(each id is {_ID_WORDS})"
    ),
    f"^customers/{_ID}/jobs/{_ID}/schedules/{_ID}$": (
        f"customers/{{customer}}/jobs/{{job}}/schedules/{{schedule}} (each id is {_ID_WORDS})"
    ),
    f"^customers/{_ID}/jobs/{_ID}/executions/[a-z0-9]{{1,64}}$": (
        "customers/{customer}/jobs/{job}/executions/{execution}, as the server gave it"
    ),
    f"^customers/{_ID}/jobs/({_ID}(/executions/[a-z0-9]{{1,64}})?|-)$": (
        "customers/{customer}/jobs/{job}/executions/{execution}, customers/{customer}/jobs/{job}, "
        "or customers/{customer}/jobs/- for every job"
    ),
    f"^customers/{_ID}/calendars/{_ID}$": (
        f"customers/{{customer}}/calendars/{{calendar}} (each id is {_ID_WORDS})"
    ),
    f"^customers/{_ID}/images/{_IMAGE_NAME}$": (
        "customers/{customer}/images/{image}, with image as report:1: [a-z0-9] with single or "
        'repeated ".", "_" or "-" between, then optionally ":" and a tag of up to 64 of '
        "[A-Za-z0-9._-]"
    ),
    f"^customers/{_ID}/keys/[0-9a-v]{{16}}$": (
        "customers/{customer}/keys/{key}, as the server gave it"
    ),
    f"^{_HOST}$": "a registry's host, as registry.example or registry.example:5000",
    f"^customers/{_ID}/registryCredentials/{_HOST}$": (
        "customers/{customer}/registryCredentials/{host}"
    ),
    f"^customers/{_ID}/registry$": "customers/{customer}/registry",
    f"^{_ID}$": _ID_WORDS,
    "^[A-Za-z0-9][A-Za-z0-9._:/@-]*$": (
        "an image reference, as report:1 or registry.example/team/report@sha256:..."
    ),
    "^([0-9]{4}-)?[0-9]{2}-[0-9]{2}$": "a date, as 2026-12-25, or 12-25 for that day of every year",
    "^[A-Za-z_][A-Za-z0-9_]*$": "a letter or _, then letters, digits and _",
    "^(/[^\\x00]*)?$": "an absolute path, as /data",
}
"""What each pattern of the protos asks for, in words. A test holds this complete."""

# How a row of METHODS names its resource, for the methods whose routing field has no pattern: Job,
# Schedule and Calendar are shared with creates, where the name is the server's to set.
_UPDATE_COLLECTIONS = {
    "job.name": ("customers", "jobs"),
    "schedule.name": ("customers", "jobs", "schedules"),
    "calendar.name": ("customers", "calendars"),
}

_validator = Validator()


def check(method: Method, data: bytes) -> Any:
    """The parsed request. Raises InvalidRequest with every violation, or MessageTooLarge."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise MessageTooLarge(
            f"the request has {len(data):,} bytes, more than the limit of {MESSAGE_BYTES_MAX:,}: "
            "split it",
            metadata={"limit_bytes": str(MESSAGE_BYTES_MAX), "bytes": str(len(data))},
        )
    try:
        request = method.request_type.FromString(data)
    except DecodeError:
        raise InvalidRequest(
            f"the request is not a serialised {method.request_type.DESCRIPTOR.full_name}: damaged "
            "bytes, another message, or text that is not UTF-8"
        ) from None
    check_message(request)
    if method.routing_field in _UPDATE_COLLECTIONS:
        _check_updated_name(method, request)
    return request


def check_message(request: Message) -> None:
    """Check a message of an annotated class. Raises InvalidRequest with every violation."""
    try:
        violations = _validator.collect_violations(request)
    except (CompilationError, EvaluationError) as error:
        raise AssertionError(f"rules of {request.DESCRIPTOR.full_name}: {error}") from error
    if violations:
        raise _refusal(violations)


def _check_updated_name(method: Method, request: Any) -> None:
    """The name inside the resource that an update carries: as elsewhere, but required."""
    collections = _UPDATE_COLLECTIONS[method.routing_field]
    name = method.read_name(request)
    parts = name.split("/")
    if (
        len(parts) != 2 * len(collections)
        or tuple(parts[0::2]) != collections
        or not all(map(is_id, parts[1::2]))
    ):
        form = "/".join(f"{collection}/{{{collection[:-1]}}}" for collection in collections)
        raise invalid(
            method.routing_field,
            f"{_shown(name)} is not of the form {form} (each id is {_ID_WORDS})",
        )


def _refusal(violations: list[Violation]) -> InvalidRequest:
    fields: list[tuple[str, str]] = []
    for violation in violations:
        field = (_path(violation), _description(violation))
        # An empty name breaks min_len and pattern: the first says it.
        if all(field[0] != path for path, _ in fields):
            fields.append(field)
    path, description = fields[0]
    message = f"{path}: {description}"
    if len(fields) > 1:
        message += f" (and {len(fields) - 1} more)"
    return InvalidRequest(
        message,
        fields=tuple(fields[:VIOLATIONS_REPORTED_MAX]),
        metadata={"violation_count": str(len(fields))},
    )


def _path(violation: Violation) -> str:
    """The field's path as a caller would write it: job.container.env["A B"], executions[3].name."""
    path = ""
    field = violation.proto.field
    for element in field.elements if field is not None else ():
        path += f".{element.field_name}" if path else element.field_name
        subscript = element.subscript
        if subscript is not None:
            value = subscript.value
            path += f"[{_shown(value)}]" if isinstance(value, str) else f"[{value}]"
    return path


def _shown(value: str | bytes) -> str:
    """A value for people: quoted, and shortened."""
    cut = value[:VALUE_CHARACTERS_SHOWN]
    text = repr(cut) if isinstance(cut, bytes) else f'"{cut.encode("unicode_escape").decode()}"'
    return text if len(value) <= VALUE_CHARACTERS_SHOWN else f"{text}..."


def _size(violation: Violation) -> int:
    value = violation.field_value
    if violation.proto.rule_id.endswith("_bytes") and isinstance(value, str):
        return len(value.encode())
    try:
        return len(value)
    except TypeError:
        return 0


def _seconds(duration: Any) -> str:
    value = Duration(seconds=duration.seconds, nanos=duration.nanos)
    return f"{value.ToNanoseconds() / 1e9:g} s"


def _description(violation: Violation) -> str:
    """What is wrong with the field, and what would be right."""
    rule = violation.proto.rule_id
    value, limit = violation.field_value, violation.rule_value
    subject = "the key " if violation.proto.for_key else ""
    match rule:
        case "required":
            return "is required"
        case "string.pattern":
            if not value:
                return f"is required: {PATTERN_FORMS.get(limit, limit)}"
            return f"{subject}{_shown(value)} is not of the form {PATTERN_FORMS.get(limit, limit)}"
        case "string.min_len" if limit == 1:
            return f"{subject}is empty"
        case "string.max_len":
            return f"{subject}has {_size(violation):,} characters, at most {limit:,} are allowed"
        case "string.max_bytes" | "bytes.max_len":
            return f"{subject}has {_size(violation):,} bytes, at most {limit:,} are allowed"
        case "repeated.max_items" | "map.max_pairs":
            return f"has {_size(violation):,} items, at most {limit:,} are allowed"
        case "repeated.min_items":
            return f"has {_size(violation):,} items, at least {limit:,} are needed"
        case "enum.defined_only":
            return f"{value} is none of the values of its enum"
        case _ if rule.startswith("duration."):
            return f"{subject}{_seconds(value)}: {violation.proto.message}"
        case _:
            shown = _shown(value) if isinstance(value, str | bytes) else value
            return f"{subject}{shown}: {violation.proto.message}"
