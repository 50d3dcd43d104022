"""Where the command line finds the zone files of another release."""

from __future__ import annotations

import importlib.resources
import zipfile
from pathlib import Path

import click
import pytest

from tickmesh.sdk.cli.tzdata import read_files

BERLIN = (importlib.resources.files("tzdata") / "zoneinfo" / "Europe" / "Berlin").read_bytes()
FILES = {"Europe/Berlin": BERLIN, "UTC": BERLIN, "posix/UTC": BERLIN, "tzdata.zi": b"# version"}
FOUND = {"Europe/Berlin": BERLIN, "UTC": BERLIN}


def write(root: Path) -> None:
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("inner", ["", "tzdata/zoneinfo"])
def test_a_directory(tmp_path: Path, inner: str) -> None:
    write(tmp_path / inner)
    assert read_files(tmp_path) == FOUND


def test_a_wheel(tmp_path: Path) -> None:
    path = tmp_path / "tzdata-2099.1-py2.py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in FILES.items():
            wheel.writestr(f"tzdata/zoneinfo/{name}", content)
        wheel.writestr("tzdata-2099.1.dist-info/METADATA", "")
    assert read_files(path) == FOUND


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("no wheel")
    for wrong in (path, tmp_path):
        with pytest.raises(click.UsageError):
            read_files(wrong)


def test_nothing_is_the_package_beside_the_leader() -> None:
    assert read_files(None) == {}
