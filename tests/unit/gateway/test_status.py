"""How errors leave: whole where they fit, and fitted where they do not."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from tickmesh.gateway.status import MESSAGE_UTF8_BYTES_MAX, STATUS_BYTES_MAX, fit, unexpected
from tickmesh.mesh.errors import InternalError, InvalidRequest, from_status, invalid, to_status


def test_what_fits_leaves_as_it_is() -> None:
    status = to_status(invalid("job.container.image", "is empty"))
    assert fit(status) == status


def test_a_status_that_is_too_large_loses_its_last_fields_and_names_the_first() -> None:
    fields = tuple((f"executions[{index}].name", "x" * 200) for index in range(200))
    fitted = fit(to_status(InvalidRequest("m" * 5_000, fields=fields)))
    assert fitted.ByteSize() <= STATUS_BYTES_MAX
    assert len(fitted.message) == MESSAGE_UTF8_BYTES_MAX
    error = from_status(fitted)
    assert isinstance(error, InvalidRequest)
    assert error.fields == fields[: len(error.fields)] and error.fields


def test_one_field_with_a_description_that_is_too_large_still_fits() -> None:
    fitted = fit(to_status(invalid("cursor", "x" * 10_000)))
    assert fitted.ByteSize() <= STATUS_BYTES_MAX


METADATA_BYTES_MAX = 8 * 1024
"""What a client of gRPC takes."""


@pytest.mark.parametrize("letter", ["x", "\N{EURO SIGN}", "\N{WOLF FACE}", "\x01"])
def test_a_status_that_is_not_ascii_fits_too(letter: str) -> None:
    """The client was told that the answer's metadata are too large, and nothing of the error."""
    fields = tuple((f"names[{index}]", letter * 500) for index in range(20))
    metadata = {f"{index}": letter * 300 for index in range(10)}
    fitted = fit(to_status(InvalidRequest(letter * 5_000, fields=fields, metadata=metadata)))
    assert fitted.ByteSize() <= STATUS_BYTES_MAX
    sent = len(quote(fitted.message)) + len(base64.b64encode(fitted.SerializeToString()))
    assert sent <= METADATA_BYTES_MAX
    error = from_status(fitted)
    assert isinstance(error, InvalidRequest)
    assert error.message == letter * (len(error.message) - 3) + "..."


def test_a_bug_is_told_by_an_id_and_by_nothing_of_what_happened() -> None:
    error = unexpected("tickmesh.v1.JobService/GetJob", ValueError("a secret"))
    assert isinstance(error, InternalError)
    assert "a secret" not in error.message
    assert error.metadata["error_id"] in error.message
