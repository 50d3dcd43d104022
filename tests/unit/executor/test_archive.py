"""Archives that are built here are the same whenever their inputs are."""

import os
import tarfile
from pathlib import Path

import pytest

from tickmesh.executor import archive
from tickmesh.executor.errors import ImageError
from tickmesh.executor.manifest import parse_config, parse_manifest

PROCESS = archive.Process(
    entrypoint=("/b",),
    command=("c",),
    environment={"B": "2", "A": "1"},
    user="5",
    working_directory="/w",
)


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    source = tmp_path / "source"
    source.write_bytes(b"data")
    files = {"/b": archive.File(source, 0o755), "/a/x": archive.File(b"x")}
    digest = archive.files_image(one, files, PROCESS)
    os.utime(source, (1, 1))
    source.chmod(0o600)
    assert archive.files_image(two, dict(reversed(files.items())), PROCESS) == digest
    assert one.read_bytes() == two.read_bytes()


async def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    files = {"/a/x": archive.File(b"x"), "/l": archive.File(link="a/x")}
    digest = archive.files_image(path, files, PROCESS)
    source = archive.ArchiveSource(path)
    _, found, data = await source.root()
    assert found == digest
    manifest = parse_manifest(found, data)
    config = parse_config("c", await source.blob(manifest.config, 1 << 20), 1)
    assert (config.entrypoint, config.command) == (("/b",), ("c",))
    assert config.environment == (("A", "1"), ("B", "2"))
    assert (config.user, config.working_directory) == ("5", "/w")
    layer = tmp_path / "layer.tar.gz"
    layer.write_bytes(b"".join([piece async for piece in source.chunks(manifest.layers[0])]))
    with tarfile.open(layer) as opened:
        assert [(m.name, m.mtime, m.uid, m.mode) for m in opened] == [
            ("a", 0, 0, 0o755),
            ("a/x", 0, 0, 0o644),
            ("l", 0, 0, 0o644),
        ]


def test_a_directory_is_taken_with_its_modes_and_within_itself(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_bytes(b"#!")
    (root / "bin/tool").chmod(0o700)
    (root / "link").symlink_to("bin/tool")
    archive.directory_image(tmp_path / "image.tar", root, PROCESS)
    (root / "evil").symlink_to("/etc/passwd")
    with pytest.raises(ImageError, match="which is outside of"):
        archive.directory_image(tmp_path / "image.tar", root, PROCESS)
