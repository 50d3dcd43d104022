"""Whom a certificate names."""

from __future__ import annotations

from tickmesh.mesh.tls import certificate_role


def test_an_address_that_is_none_names_nobody_and_is_no_error() -> None:
    names = (("URI", "tickmesh://[scheduler/a"), ("DNS", "a"), ("URI", "tickmesh://scheduler/b"))
    assert certificate_role({"subjectAltName": names}) == ("scheduler", "b")
    assert certificate_role({"subjectAltName": names[:2]}) == ("", "")
    assert certificate_role(None) == ("", "")
