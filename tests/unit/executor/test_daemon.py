"""Where a private containerd's programs are looked for."""

import os
from pathlib import Path

import pytest

from tickmesh.executor.containerd import daemon


@pytest.mark.parametrize("ours", ["", "/nothing/here", "/nothing/here:/usr/bin"])
def test_programs_are_found_in_the_systems_directories_too(
    ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", ours)
    assert daemon.which("sh") is not None
    assert "" not in daemon.search_path().split(":"), "that would be the working directory"


def test_programs_of_our_path_go_before_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert daemon.which("sh") == str(tmp_path / "sh")
    assert daemon.search_path().split(":")[0] == str(tmp_path)
