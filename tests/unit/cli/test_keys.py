"""A key that is made is shown to somebody: it can never be read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.sdk.fake_gateway import FakeGateway
from tickmesh.mesh.errors import ResourceExhausted
from tickmesh.sdk.cli.main import EXIT_GENERIC, EXIT_USAGE, run

CREATE = ["key", "create", "--scope", "read"]


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    made = FakeGateway()
    with made.serving() as address:
        monkeypatch.setenv("TICKMESH_ADDRESS", address)
        monkeypatch.delenv("TICKMESH_CUSTOMER", raising=False)
        yield made


def test_none_is_made_for_a_file_that_cannot_be(gateway: FakeGateway, tmp_path: Path) -> None:
    """One was, and nobody had it."""
    there = tmp_path / "there"
    there.write_text("mine")
    assert run([*CREATE, "--file", str(tmp_path / "no" / "key")]) == EXIT_GENERIC
    assert run([*CREATE, "--file", str(there)]) == EXIT_USAGE
    assert run([*CREATE, "-o", "name"]) == EXIT_USAGE
    assert not gateway.keys and there.read_text() == "mine"


def test_a_file_stays_only_if_there_is_a_key_for_it(
    gateway: FakeGateway, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    gateway.failures["CreateApiKey"] = [ResourceExhausted("no more")]
    assert run([*CREATE, "--file", str(file)]) == EXIT_GENERIC
    assert not file.exists()
    assert run([*CREATE, "--file", str(file), "-o", "name"]) == 0
    assert file.read_text().startswith("tmk_") and file.stat().st_mode & 0o777 == 0o600
    assert capfd.readouterr().out.strip() in gateway.keys
