"""Plain root file systems, as the images that they become."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tickmesh.mesh.errors import ImageCorrupt, ImageTooLarge, InvalidRequest
from tickmesh.sdk import trees
from tickmesh.sdk.layouts import OCI_MANIFEST, Layout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small root file system."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/hello").write_bytes(b"#!/bin/sh\n")
    (root / "bin/hello").chmod(0o755)
    (root / "bin/again").symlink_to("hello")
    (root / "empty").mkdir()
    (root / "lib").symlink_to("bin")
    os.link(root / "bin/hello", root / "bin/same")
    return root


def parts(layout: Layout) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The manifest, the configuration, and the layer as it is sent."""
    plan = layout.plan()
    assert plan.top is not None and plan.top.media_type == OCI_MANIFEST
    manifest = json.loads(plan.top.data)
    read = {digest: b"".join(layout.pieces(blob, 0)) for digest, blob in plan.blobs.items()}
    assert all(f"sha256:{hashlib.sha256(data).hexdigest()}" == d for d, data in read.items())
    layer = manifest["layers"][0]
    assert len(read[layer["digest"]]) == layer["size"] and len(manifest["layers"]) == 1
    return manifest, json.loads(read[manifest["config"]["digest"]]), read[layer["digest"]]


def test_a_directory_becomes_one_layer_with_all_that_is_in_it(root: Path) -> None:
    manifest, config, layer = parts(Layout(root, "arm64"))
    assert manifest["layers"][0]["mediaType"].endswith(".tar+gzip")
    assert (config["os"], config["architecture"]) == ("linux", "arm64")
    tar = gzip.decompress(layer)
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(tar).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = {member.name: member for member in archive}
        assert list(members) == ["bin", "empty", "lib", "bin/again", "bin/hello", "bin/same"]
        assert {(m.uid, m.gid, m.uname, m.gname) for m in members.values()} == {(0, 0, "", "")}
        assert members["bin/hello"].mode & 0o777 == 0o755
        assert members["lib"].issym() and members["lib"].linkname == "bin"
        assert members["bin/same"].islnk() and members["bin/same"].linkname == "bin/hello"
        hello = archive.extractfile("bin/hello")
        assert hello is not None and hello.read() == b"#!/bin/sh\n"


def test_the_same_files_are_the_same_image(root: Path, tmp_path: Path) -> None:
    first = Layout(root).plan().top
    assert Layout(root).plan().top == first
    (root / "bin/hello").write_bytes(b"#!/bin/bash\n")
    assert Layout(root).plan().top != first


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_is_the_layer_as_it_stands(root: Path, tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "root.tar"
    with tarfile.open(path, mode) as archive:
        archive.add(root, ".")
    _, config, layer = parts(Layout(path, "amd64"))
    assert layer == path.read_bytes()
    tar = gzip.decompress(layer) if mode == "w:gz" else layer
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(tar).hexdigest()}"]


def test_an_image_says_its_architecture_itself(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text("{}")
    with pytest.raises(InvalidRequest, match="says it itself"):
        Layout(tmp_path, "amd64")
    with pytest.raises(ImageCorrupt, match=r"no index\.json"):  # and is not taken for files
        Layout(tmp_path).plan()


def test_another_architecture_than_there_are_is_refused(root: Path) -> None:
    with pytest.raises(InvalidRequest, match="'vax' is none of amd64, arm64"):
        Layout(root, "vax")


def _fifo(root: Path) -> Path:
    os.mkfifo(root / "pipe")
    return root


def _empty(root: Path) -> Path:
    return root / "empty"


def _compressed_image(root: Path) -> Path:
    path = root.parent / "image.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(root / "bin/hello", "manifest.json")
    return path


def _cut(root: Path) -> Path:
    path = root.parent / "cut.tar.gz"
    path.write_bytes(gzip.compress(b"x" * 10_000)[:40])
    return path


def _text(root: Path) -> Path:
    return root / "bin/hello"


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (_fifo, "pipe is neither file, directory nor link"),
        (_empty, "it is empty"),
        (_compressed_image, "it has manifest.json: an image's archive is not compressed"),
        (_cut, "it is no tar file"),
        (_text, "it is no tar file"),
    ],
)
def test_what_is_no_root_file_system_is_refused(
    root: Path, broken: Callable[[Path], Path], what: str
) -> None:
    with pytest.raises(ImageCorrupt, match=what):
        Layout(broken(root))


def test_too_many_files_and_too_many_bytes_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (root / "large").open("wb") as file:
        file.truncate(trees.IMAGE_BYTES_MAX + 1)
    with pytest.raises(ImageTooLarge, match=f"over {trees.IMAGE_BYTES_MAX:,} bytes"):
        Layout(root)
    (root / "large").unlink()
    monkeypatch.setattr(trees.limits, "TREE_ENTRIES_MAX", 3)
    with pytest.raises(ImageTooLarge, match="over 3 files"):
        Layout(root)


def test_a_small_file_that_unpacks_to_much_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(root / "bin/hello", "hello")
    with gzip.open(path, "ab") as more:  # after the end that a tar has
        more.write(bytes(3_000_000))
    monkeypatch.setattr(trees, "IMAGE_BYTES_MAX", 1_000_000)
    with pytest.raises(ImageTooLarge, match="over 1,000,000 bytes"):
        Layout(path)
