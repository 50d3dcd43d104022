"""Text that is none, and text that would speak to the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.sdk.fake_gateway import FakeGateway
from tickmesh.sdk.cli import output
from tickmesh.sdk.cli.main import EXIT_USAGE, run

NO_TEXT = os.fsdecode(b"\xff")


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    made = FakeGateway()
    with made.serving() as address:
        monkeypatch.setenv("TICKMESH_ADDRESS", address)
        monkeypatch.delenv("TICKMESH_CUSTOMER", raising=False)
        yield made


def test_a_payload_is_the_bytes_that_were_typed(
    gateway: FakeGateway, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["job", "create", "hello", "--image", "busybox:1"]) == 0
    assert run(["run", "hello", "--payload", NO_TEXT]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments",
    [["--", "print", NO_TEXT], ["--label", f"a={NO_TEXT}"], ["--display-name", NO_TEXT]],
)
def test_what_must_be_text_and_is_not_is_a_mistake_of_usage(
    gateway: FakeGateway, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(["job", "create", "hello", "--image", "busybox:1", *arguments]) == EXIT_USAGE
    assert capfd.readouterr().err == "error: '\\udcff' is not UTF-8\n"


def test_a_document_that_is_no_text_is_a_mistake_of_usage(
    gateway: FakeGateway, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_bytes(b"name: \xff")
    assert run(["job", "create", "-f", str(tmp_path / "job.yaml")]) == EXIT_USAGE
    assert "is not YAML" in capfd.readouterr().err


def test_a_table_says_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    columns: list[output.Column[str]] = [output.Column("WHAT", str)]
    output.print_table(columns, ["ü \x1b]0;evil\x07", "two\nlines"])
    assert capsys.readouterr().out == "WHAT\nü \\x1b]0;evil\\x07\ntwo\\nlines\n"
