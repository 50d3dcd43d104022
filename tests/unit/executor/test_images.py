"""Whose an image's files are on the host."""

import os
import stat
from pathlib import Path

import pytest

from tickmesh.executor import limits
from tickmesh.executor.containerd.images import shift

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
BASE = limits.ID_BASE


def test_every_file_moves_once_and_links_are_not_followed(tmp_path: Path) -> None:
    outside, layer = tmp_path / "outside", tmp_path / "layer"
    outside.mkdir()
    (outside / "file").touch()
    (layer / "deep/er").mkdir(parents=True)
    file = layer / "deep/er/file"
    file.touch()
    os.chown(file, 1000, 50)
    file.chmod(0o4755)
    os.link(file, layer / "hard")
    (layer / "out").symlink_to(outside)
    (layer / "odd").touch()
    os.chown(layer / "odd", 4_000_000, 65_536)
    shift(layer, BASE)
    assert [(p.stat().st_uid, p.stat().st_gid) for p in (file, layer / "hard")] == [
        (BASE + 1000, BASE + 50)
    ] * 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o755
    assert layer.stat().st_uid == (layer / "deep/er").stat().st_uid == BASE
    assert (layer / "out").lstat().st_uid == BASE
    assert (layer / "odd").stat().st_uid == (layer / "odd").stat().st_gid == BASE + 65_534
    assert outside.stat().st_uid == (outside / "file").stat().st_uid == 0


@pytest.mark.parametrize("base", [0, BASE])
def test_devices_go_and_whiteouts_stay(tmp_path: Path, base: int) -> None:
    os.mknod(tmp_path / "disk", 0o666 | stat.S_IFBLK, os.makedev(254, 0))
    os.mknod(tmp_path / "memory", 0o666 | stat.S_IFCHR, os.makedev(1, 1))
    os.mknod(tmp_path / "whiteout", 0o000 | stat.S_IFCHR, os.makedev(0, 0))
    os.mkfifo(tmp_path / "fifo")
    shift(tmp_path, base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "whiteout"]
