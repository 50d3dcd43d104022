"""Cursors of logs, references of images, addresses of doors."""

from __future__ import annotations

import pytest

from tickmesh.gateway.images import to_name, to_reference
from tickmesh.gateway.logs import Cursor, attempt_number, parse_cursor
from tickmesh.mesh.addresses import is_loopback
from tickmesh.mesh.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "attempt", "cursor"),
    [("", 0, Cursor(0, "")), ("", 2, Cursor(2, "")), ("3.a.b", 0, Cursor(3, "a.b"))],
)
def test_a_cursor_says_the_attempt_and_where(text: str, attempt: int, cursor: Cursor) -> None:
    assert parse_cursor(text, attempt) == cursor


@pytest.mark.parametrize("text", ["3", "x.y", ".y", "-1.y", "1000.y", "².y"])
def test_a_cursor_of_somebody_elses_making_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        parse_cursor(text, 0)


def test_a_cursor_of_another_attempt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="belongs to attempt 3, not to attempt 2"):
        parse_cursor("3.a", 2)


def test_an_attempts_number_is_at_the_end_of_its_id() -> None:
    assert attempt_number("0123456789abcdef-12") == 12


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("customers/acme/images/report", "acme/report:latest"),
        ("customers/acme/images/report:1", "acme/report:1"),
    ],
)
def test_an_image_has_one_reference(name: str, reference: str) -> None:
    assert to_reference(name) == reference
    assert to_reference(to_name(reference)) == reference


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]", "::1"])
def test_a_door_without_tls_may_be_on_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "example.org", ""])
def test_a_door_without_tls_may_be_nowhere_else(host: str) -> None:
    assert not is_loopback(host)
