"""Images on this disk, whole and broken, as they would be pushed."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tickmesh.mesh.errors import ImageCorrupt, ImageTooLarge
from tickmesh.sdk.layouts import OCI_INDEX, OCI_MANIFEST, Blob, Document, Layout


def made(path: Path, content: bytes = b"x") -> str:
    """Writes an OCI archive with one layer. Answers its manifest's digest."""
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": []}, "of": content.hex()})
    parts = [Document("", config.encode()), Document("", b"a layer of " + content)]
    described = [{"digest": part.digest, "size": len(part.data)} for part in parts]
    told = {"schemaVersion": 2, "config": described[0], "layers": described[1:]}
    manifest = Document(OCI_MANIFEST, json.dumps(told).encode())
    entry = {"mediaType": OCI_MANIFEST, "digest": manifest.digest, "size": len(manifest.data)}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    files = {"index.json": index}
    for document in (manifest, *parts):
        files[f"blobs/sha256/{document.digest.removeprefix('sha256:')}"] = document.data
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return manifest.digest


def unpacked(tar: Path, directory: Path) -> Path:
    with tarfile.open(tar) as opened:
        opened.extractall(directory)  # our own; Python 3.11.2 has no filters yet
    return directory


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A directory with an image layout."""
    made(tmp_path / "image.tar")
    return unpacked(tmp_path / "image.tar", tmp_path / "layout")


def test_a_directory_and_a_tar_are_the_same_image(tmp_path: Path, layout: Path) -> None:
    of_tar, of_directory = Layout(tmp_path / "image.tar").plan(), Layout(layout).plan()
    assert of_tar == of_directory
    assert of_tar.top is not None and of_tar.top.media_type == OCI_MANIFEST
    assert of_tar.top.digest == made(tmp_path / "again.tar")
    assert len(of_tar.blobs) == 2 and not of_tar.manifests


def test_a_tar_is_an_image_or_files_after_one_look_at_its_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    told: list[str] = []
    look = tarfile.TarInfo.frombuf.__func__  # type: ignore[attr-defined]

    def counted(kind: Any, buffer: bytes, *more: Any) -> Any:
        member = look(kind, buffer, *more)
        looks.append(member.name)
        return member

    monkeypatch.setattr(tarfile.TarInfo, "frombuf", classmethod(counted))
    image = tmp_path / "image.tar"
    made(image)
    Layout(image, on_root_file_system=lambda: told.append("image"))
    assert sorted(looks) == sorted(set(looks)) and "index.json" in looks and not told
    files = tmp_path / "files.tar"
    with tarfile.open(files, "w") as archive:
        for number in range(5):
            archive.addfile(tarfile.TarInfo(f"srv/{number}"))
    looks.clear()
    Layout(files, on_root_file_system=lambda: told.append(f"after {len(looks)}"))
    assert told == [f"after {len(set(looks))}"], "before what takes its time"


def test_a_directory_is_an_image_or_files(layout: Path) -> None:
    told: list[str] = []
    Layout(layout, on_root_file_system=lambda: told.append("image"))
    assert not told
    Layout(layout / "blobs", on_root_file_system=lambda: told.append("files"))
    assert told == ["files"]


def test_an_archive_that_is_cut_says_where(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    made(path)
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    with path.open("r+b") as file:
        file.truncate(last.offset_data + 1)
    with pytest.raises(ImageCorrupt, match=f"{last.name} is cut short"):
        Layout(path)


@pytest.mark.parametrize("members", [4_095, 4_096])
def test_of_so_many_members_no_image_is_made(tmp_path: Path, members: int) -> None:
    path = tmp_path / "many.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(members):
            archive.addfile(tarfile.TarInfo(f"srv/{number}"))
        archive.addfile(tarfile.TarInfo("index.json"))
    with pytest.raises(ImageCorrupt, match="cannot be read" if members < 4_096 else "over 4096"):
        Layout(path).plan()


def test_a_blob_is_read_from_any_byte_on(layout: Path) -> None:
    image = Layout(layout)
    for blob in image.plan().blobs.values():
        whole = b"".join(image.pieces(blob, 0))
        assert len(whole) == blob.size
        assert b"".join(image.pieces(blob, 7)) == whole[7:]


def index_of(layout: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    path = layout / "index.json"
    index = json.loads(path.read_bytes())
    change(index["manifests"])
    path.write_text(json.dumps(index))


def test_platforms_that_are_not_there_are_left_out(tmp_path: Path, layout: Path) -> None:
    other = unpacked_second(tmp_path, layout)
    absent = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "0" * 64, "size": 5}
    index_of(layout, lambda entries: entries.append(absent))
    plan = Layout(layout).plan()
    assert plan.top is not None and plan.top.media_type == OCI_MANIFEST, "one is left: that is it"
    index_of(layout, lambda entries: entries.append(other))
    plan = Layout(layout).plan()
    assert plan.top is not None and plan.top.media_type == OCI_INDEX
    assert [each.digest for each in plan.manifests] == [
        entry["digest"] for entry in json.loads(plan.top.data)["manifests"]
    ]
    assert len(plan.manifests) == 2 and len(plan.blobs) == 4


def unpacked_second(tmp_path: Path, layout: Path) -> dict[str, Any]:
    """Another image's blobs in the layout; answers its entry for an index."""
    made(tmp_path / "second.tar", b"y")
    with tarfile.open(tmp_path / "second.tar") as opened:
        blobs = [member for member in opened if member.name.startswith("blobs/")]
        opened.extractall(layout, blobs)
        index = opened.extractfile("index.json")
        assert index is not None
        entry: dict[str, Any] = json.load(index)["manifests"][0]
    return entry


def test_an_archive_of_an_older_docker_is_made_a_manifest_of(tmp_path: Path) -> None:
    path = tmp_path / "saved.tar"
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": []}}).encode()
    listed = [{"Config": "c.json", "Layers": ["1/layer.tar", "2/layer.tar"]}]
    with tarfile.open(path, "w") as saved:
        for name, data in (
            ("c.json", config),
            ("1/layer.tar", b"one"),
            ("manifest.json", json.dumps(listed).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            saved.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("2/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../1/layer.tar"
        saved.addfile(link)
    image = Layout(path)
    plan = image.plan()
    assert plan.top is not None
    layers = json.loads(plan.top.data)["layers"]
    assert [layer["size"] for layer in layers] == [3, 3]
    blob = Blob(layers[0]["digest"], 3)
    assert b"".join(image.pieces(blob, 1)) == b"ne"
    assert blob.digest == Document("", b"one").digest


def manifest_path(layout: Path) -> Path:
    entry = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    return layout / "blobs" / "sha256" / str(entry["digest"]).removeprefix("sha256:")


def changed(layout: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Another manifest in the place of the image's."""
    old = manifest_path(layout)
    manifest = json.loads(old.read_bytes())
    change(manifest)
    document = Document(OCI_MANIFEST, json.dumps(manifest).encode())
    (old.parent / document.digest.removeprefix("sha256:")).write_bytes(document.data)
    index_of(layout, lambda entries: entries[0].update(digest=document.digest))


def remove_layer(layout: Path) -> None:
    digest = json.loads(manifest_path(layout).read_bytes())["layers"][0]["digest"]
    (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).unlink()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda layout: (layout / "index.json").unlink(), "no index.json"),
        (lambda layout: (layout / "index.json").write_text("{"), "index.json cannot be read"),
        (lambda layout: (layout / "index.json").write_text("[]"), "it is no dict"),
        (lambda layout: (layout / "index.json").write_text("[" * 100_000), "cannot be read"),
        (lambda layout: index_of(layout, list.clear), "none of the manifests"),
        (lambda layout: index_of(layout, lambda all: all[0].update(digest=5)), "no sha256 digest"),
        (
            lambda layout: index_of(layout, lambda all: all[0].update(digest="sha256:../../etc")),
            "no sha256 digest",
        ),
        (lambda layout: manifest_path(layout).write_text("{}"), "does not match its digest"),
        (remove_layer, "which is missing"),
        (lambda layout: changed(layout, lambda m: m["layers"][0].update(size=5)), "says 5"),
        (lambda layout: changed(layout, lambda m: m["layers"][0].update(size=-1)), "with a size"),
        (lambda layout: changed(layout, lambda m: m.update(config=None)), "a part that is none"),
    ],
)
def test_a_broken_layout_says_what_is_broken(
    layout: Path, break_it: Callable[[Path], object], words: str
) -> None:
    break_it(layout)
    with pytest.raises(ImageCorrupt, match=words):
        Layout(layout).plan()


def test_an_image_over_the_limit_is_refused_before_anything_is_sent(layout: Path) -> None:
    huge = layout / "blobs" / "sha256" / ("1" * 64)
    with huge.open("wb") as file:
        file.truncate(1 << 31)  # a hole: nothing is written
    part = {"mediaType": "x", "digest": "sha256:" + "1" * 64, "size": 1 << 31}
    changed(layout, lambda manifest: manifest["layers"].append(part))
    with pytest.raises(ImageTooLarge, match="at most 1073741824"):
        Layout(layout).plan()


@pytest.mark.parametrize("data", [b"", b"no tar", b"\x1f\x8b\x08 gzip"])
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(data)
    with pytest.raises(ImageCorrupt):
        Layout(path).plan()
