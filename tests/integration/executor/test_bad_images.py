"""Images that must be refused: each by its part, and nothing of them stays."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tickmesh.executor import archive
from tickmesh.executor.containerd.images import ImageStore
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.errors import ImageError, ImageReason, StartError, StartReason
from tickmesh.executor.manifest import OCI_INDEX, OCI_MANIFEST, architecture, sha256
from tickmesh.executor.sandbox import Work

from .conftest import STAMP

pytestmark = pytest.mark.integration

LAYER = "application/vnd.oci.image.layer.v1.tar"
GZIP = f"{LAYER}+gzip"


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def layer(*entries: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """A layer of these entries; files hold `data`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        for entry in entries:
            entry.size = len(data) if entry.isreg() else 0
            opened.addfile(entry, io.BytesIO(data) if entry.isreg() else None)
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o755
    return info


class Parts:
    """An OCI archive in its parts, to spoil one of them."""

    def __init__(self, *layers: bytes, compress: bool = False, **process: object) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        self.config: dict[str, Any] = {
            "architecture": architecture(),
            "os": "linux",
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in layers]},
        }
        stored = [gzip.compress(data) if compress else data for data in layers]
        self.layers = [
            {
                "mediaType": GZIP if compress else LAYER,
                "digest": self.blob(data),
                "size": len(data),
            }
            for data in stored
        ]
        self.index: dict[str, Any] = {}

    def blob(self, data: bytes) -> str:
        digest = sha256(data)
        self.files[f"blobs/sha256/{digest.removeprefix('sha256:')}"] = data
        return digest

    def close(self) -> "Parts":
        """Writes configuration, manifest and index as they are now."""
        config = as_json(self.config)
        manifest = as_json(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {
                    "mediaType": archive.OCI_CONFIG,
                    "digest": self.blob(config),
                    "size": len(config),
                },
                "layers": self.layers,
            }
        )
        self.manifest_digest, self.config_digest = self.blob(manifest), sha256(config)
        self.index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": self.manifest_digest,
                    "size": len(manifest),
                }
            ],
        }
        self.files["index.json"] = as_json(self.index)
        return self

    def name(self, digest: str) -> str:
        return f"blobs/sha256/{digest.removeprefix('sha256:')}"

    def write(self, path: Path) -> Path:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as opened:
            for name, data in self.files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                opened.addfile(info, io.BytesIO(data))
        return path


SMALL_IMAGE = "tests/small:1"


@pytest.fixture
async def small(runtime: ContainerdRuntime, tmp_path: Path) -> ContainerdRuntime:
    """The runtime, with an image of a few files."""
    files = {
        "/stamp": archive.File(STAMP, archive.EXECUTABLE),
        "/etc/passwd": archive.File(b"root:x:0:0::/:\n"),
        "/usr/x": archive.File(b"x"),
    }
    process = archive.Process(entrypoint=("/stamp",))
    archive.files_image(tmp_path / "small.tar", files, process)
    await runtime.import_image(SMALL_IMAGE, tmp_path / "small.tar")
    return runtime


PLAIN = layer(entry("app"), data=b"x" * 2000)


def not_a_tar(path: Path) -> None:
    path.write_bytes(b"this is no archive at all" * 100)


def an_empty_file(path: Path) -> None:
    path.write_bytes(b"")


def cut_in_the_middle(path: Path) -> None:
    Parts(PLAIN).close().write(path)
    path.write_bytes(path.read_bytes()[:5000])


def a_huge_header(path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT))


def too_many_files(path: Path) -> None:
    parts = Parts(PLAIN).close()
    parts.files.update({f"x/{number}": b"" for number in range(1024)})
    parts.write(path)


def no_index(path: Path) -> None:
    parts = Parts(PLAIN).close()
    del parts.files["index.json"]
    parts.write(path)


def an_index_that_is_no_json(path: Path) -> None:
    parts = Parts(PLAIN).close()
    parts.files["index.json"] = b'{"manifests": ['
    parts.write(path)


def a_manifest_of_another_shape(path: Path) -> None:
    parts = Parts(PLAIN).close()
    digest = parts.blob(b'{"layers": "none"}')
    parts.index["manifests"][0]["digest"] = digest
    parts.files["index.json"] = as_json(parts.index)
    parts.write(path)


def no_manifest(path: Path) -> None:
    parts = Parts(PLAIN).close()
    del parts.files[parts.name(parts.manifest_digest)]
    parts.write(path)


def no_configuration(path: Path) -> None:
    parts = Parts(PLAIN).close()
    del parts.files[parts.name(parts.config_digest)]
    parts.write(path)


def no_layer(path: Path) -> None:
    parts = Parts(PLAIN).close()
    del parts.files[parts.name(sha256(PLAIN))]
    parts.write(path)


def a_changed_manifest(path: Path) -> None:
    parts = Parts(PLAIN).close()
    name = parts.name(parts.manifest_digest)
    parts.files[name] = parts.files[name].replace(b'"schemaVersion": 2', b'"schemaVersion": 3')
    parts.write(path)


def a_changed_configuration(path: Path) -> None:
    parts = Parts(PLAIN).close()
    name = parts.name(parts.config_digest)
    parts.files[name] = parts.files[name].replace(b"linux", b"Linux")
    parts.write(path)


def a_changed_layer(path: Path) -> None:
    parts = Parts(PLAIN).close()
    parts.files[parts.name(sha256(PLAIN))] = PLAIN.replace(b"xxxx", b"yyyy")
    parts.write(path)


def a_layer_of_another_size(path: Path) -> None:
    parts = Parts(PLAIN)
    parts.layers[0]["size"] = len(PLAIN) - 512
    parts.close().write(path)


def another_diff_id(path: Path) -> None:
    parts = Parts(PLAIN, compress=True)
    parts.config["rootfs"]["diff_ids"] = [sha256(b"another")]
    parts.close().write(path)


def fewer_diff_ids_than_layers(path: Path) -> None:
    parts = Parts(PLAIN)
    parts.config["rootfs"]["diff_ids"] = []
    parts.close().write(path)


def a_digest_that_is_none(path: Path) -> None:
    parts = Parts(PLAIN)
    parts.layers[0]["digest"] = "sha256:../../../../etc/passwd"
    parts.close().write(path)


def a_layer_that_is_no_tar(path: Path) -> None:
    Parts(b"no tar" * 1000).close().write(path)


def a_layer_that_is_no_gzip(path: Path) -> None:
    parts = Parts(PLAIN)
    parts.layers[0]["mediaType"] = GZIP
    parts.close().write(path)


def a_name_above_the_root(path: Path) -> None:
    Parts(layer(entry("../../etc/cron.d/x"), data=b"bad")).close().write(path)


def an_absolute_name(path: Path) -> None:
    Parts(layer(entry("/etc/cron.d/x"), data=b"bad")).close().write(path)


def a_hard_link_above_the_root(path: Path) -> None:
    Parts(layer(entry("x", tarfile.LNKTYPE, "../../etc/shadow"))).close().write(path)


def for_another_machine(path: Path) -> None:
    parts = Parts(PLAIN)
    parts.config["architecture"] = "s390x"
    parts.close().write(path)


def for_another_system(path: Path) -> None:
    parts = Parts(PLAIN)
    parts.config["os"] = "windows"
    parts.close().write(path)


def an_unknown_compression(path: Path) -> None:
    parts = Parts(PLAIN)
    parts.layers[0]["mediaType"] = f"{LAYER}+brotli"
    parts.close().write(path)


def no_layers_at_all(path: Path) -> None:
    Parts().close().write(path)


def too_many_layers(path: Path) -> None:
    Parts(*[PLAIN] * 127).close().write(path)


def a_manifest_of_too_large_layers(path: Path) -> None:
    parts = Parts(PLAIN)
    parts.layers[0]["size"] = 1 << 31
    parts.close().write(path)


Reason = ImageReason


@pytest.mark.parametrize(
    ("spoil", "reason", "words"),
    [
        (not_a_tar, Reason.CORRUPT, "archive bad.tar is not a tar archive"),
        (an_empty_file, Reason.CORRUPT, "bad.tar: it is no tar file"),
        (cut_in_the_middle, Reason.CORRUPT, "bad.tar"),
        (a_huge_header, Reason.CORRUPT, "archive bad.tar has an extended header of"),
        (too_many_files, Reason.TOO_LARGE, "more than 1024 files"),
        (no_index, Reason.CORRUPT, "index.json is missing"),
        (an_index_that_is_no_json, Reason.CORRUPT, "index index.json cannot be read"),
        (a_manifest_of_another_shape, Reason.CORRUPT, "manifest sha256:"),
        (no_manifest, Reason.CORRUPT, "is missing"),
        (no_configuration, Reason.CORRUPT, "is missing"),
        (no_layer, Reason.CORRUPT, "is missing"),
        (a_changed_manifest, Reason.CORRUPT, "does not match its digest"),
        (a_changed_configuration, Reason.CORRUPT, "does not match its digest"),
        (a_changed_layer, Reason.CORRUPT, "does not match its digest"),
        (a_layer_of_another_size, Reason.CORRUPT, "its manifest says"),
        (another_diff_id, Reason.CORRUPT, "the image's configuration says"),
        (fewer_diff_ids_than_layers, Reason.CORRUPT, "names 0 layers, the manifest 1"),
        (a_digest_that_is_none, Reason.CORRUPT, "is not a sha256 digest"),
        (a_layer_that_is_no_tar, Reason.CORRUPT, "is not a tar archive"),
        (a_layer_that_is_no_gzip, Reason.CORRUPT, "cannot be decompressed"),
        (a_name_above_the_root, Reason.CORRUPT, "outside of its root: '../../etc/cron.d/x'"),
        (an_absolute_name, Reason.CORRUPT, "outside of its root: '/etc/cron.d/x'"),
        (a_hard_link_above_the_root, Reason.CORRUPT, "hard link that leaves its root: 'x'"),
        (for_another_machine, Reason.UNSUPPORTED, "linux/s390x"),
        (for_another_system, Reason.UNSUPPORTED, "windows/"),
        (an_unknown_compression, Reason.UNSUPPORTED, "brotli"),
        (no_layers_at_all, Reason.UNSUPPORTED, "has 0 layers"),
        (too_many_layers, Reason.UNSUPPORTED, "has 127 layers"),
        (a_manifest_of_too_large_layers, Reason.TOO_LARGE, "at most 1073741824"),
    ],
)
async def test_it_is_refused_by_its_part_and_leaves_nothing(
    runtime: ContainerdRuntime,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    reason: ImageReason,
    words: str,
) -> None:
    path = tmp_path / "bad.tar"
    spoil(path)
    before = await state(runtime)
    with pytest.raises(ImageError) as caught:
        await runtime.import_image("tests/bad:1", path)
    assert caught.value.reason is reason
    assert words in str(caught.value)
    assert await state(runtime) == before


async def state(runtime: ContainerdRuntime) -> tuple[object, ...]:
    """Everything that an import may touch."""
    client = runtime._client
    return (
        [image.name for image in await client.list_images()],
        sorted(await client.list_content()),
        sorted(info.name for info in await client.list_snapshots()),
        await client.list_ingests(),
        [lease.id for lease in await client.list_leases()],
    )


@pytest.mark.parametrize("compress", [False, True])
async def test_an_image_that_unpacks_to_too_much_is_refused(
    runtime: ContainerdRuntime, tmp_path: Path, compress: bool
) -> None:
    store = ImageStore(runtime._client, bytes_max=1 << 20)
    data = layer(entry("zeros"), data=bytes(2 << 20))
    path = Parts(data, compress=compress).close().write(tmp_path / "bomb.tar")
    before = await state(runtime)
    with pytest.raises(ImageError) as caught:
        await store.install("tests/bomb:1", archive.ArchiveSource(path))
    assert caught.value.reason is ImageReason.TOO_LARGE
    assert ("unpacks to more" if compress else "(compressed)") in str(caught.value)
    assert await state(runtime) == before


async def test_a_link_out_of_the_image_leads_nowhere(
    runtime: ContainerdRuntime, tmp_path: Path
) -> None:
    """A layer's link to / must not let the next one write to the host."""
    victim = tmp_path / "victim"
    first = layer(entry("out", tarfile.SYMTYPE, str(tmp_path)), entry("app", tarfile.DIRTYPE))
    second = layer(entry("out/victim"), data=b"written")
    path = Parts(first, second, Cmd=["/x"]).close().write(tmp_path / "link.tar")
    await runtime.import_image("tests/link:1", path)
    assert not victim.exists()


async def test_links_of_an_image_cannot_redirect_what_we_mount(
    runtime: ContainerdRuntime, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    evil = layer(
        *(
            entry(name, tarfile.SYMTYPE, str(outside))
            for name in (".tickmesh", "proc", "sys", "dev", "etc")
        ),
    )
    path = Parts(evil, Entrypoint=["/.tickmesh/gate", "probe"]).close()
    await runtime.import_image("tests/evil:1", path.write(tmp_path / "evil.tar"))
    sandbox = await runtime.prepare(Work("evil", "tests", "tests/evil:1"))
    await sandbox.start()
    assert (await sandbox.wait()).exit_code == 0
    await sandbox.delete()
    assert list(outside.iterdir()) == []


async def test_links_in_passwd_are_not_followed(runtime: ContainerdRuntime, tmp_path: Path) -> None:
    evil = layer(entry("etc", tarfile.DIRTYPE), entry("etc/passwd", tarfile.SYMTYPE, "/etc/passwd"))
    path = Parts(evil, Cmd=["/x"], User="daemon").close().write(tmp_path / "passwd.tar")
    await runtime.import_image("tests/passwd:1", path)
    with pytest.raises(ImageError, match="the image has no user 'daemon'"):
        await runtime.prepare(Work("passwd", "tests", "tests/passwd:1"))


async def test_an_image_that_is_not_there(runtime: ContainerdRuntime) -> None:
    with pytest.raises(ImageError, match="image tests/none:1 is not on this executor") as caught:
        await runtime.prepare(Work("none", "tests", "tests/none:1"))
    assert caught.value.reason is ImageReason.NOT_FOUND
    with pytest.raises(ImageError) as caught:
        await runtime.delete_image("tests/none:1")
    assert caught.value.reason is ImageReason.NOT_FOUND
    with pytest.raises(ImageError) as caught:
        await runtime.import_image("tests/none:1", Path("/nonexistent.tar"))
    assert caught.value.reason is ImageReason.NOT_FOUND


async def test_an_image_and_a_job_without_a_command(
    runtime: ContainerdRuntime, tmp_path: Path
) -> None:
    await runtime.import_image("tests/mute:1", Parts(PLAIN).close().write(tmp_path / "mute.tar"))
    with pytest.raises(ImageError, match="names no command") as caught:
        await runtime.prepare(Work("mute", "tests", "tests/mute:1"))
    assert caught.value.reason is ImageReason.NO_COMMAND


@pytest.mark.parametrize(
    ("user", "words"),
    [("nosuch", "no user 'nosuch'"), ("0:nosuch", "no group 'nosuch'"), ("9999999999", "out of")],
)
async def test_an_unknown_user(small: ContainerdRuntime, user: str, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        await small.prepare(Work("user", "tests", SMALL_IMAGE, user=user))
    assert caught.value.reason is ImageReason.USER_UNKNOWN


@pytest.mark.parametrize(
    ("command", "directory", "reason", "words"),
    [
        (("nosuch",), "", StartReason.COMMAND_NOT_FOUND, "No such file"),
        (("/no/such",), "", StartReason.COMMAND_NOT_FOUND, "No such file"),
        (("/etc/passwd",), "", StartReason.COMMAND_NOT_EXECUTABLE, "Permission denied"),
        (("/usr",), "", StartReason.COMMAND_NOT_EXECUTABLE, "Permission denied"),
        (("/stamp",), "/no/such", StartReason.WORKING_DIRECTORY_INVALID, "No such file"),
        (("/stamp",), "/etc/passwd", StartReason.WORKING_DIRECTORY_INVALID, "Not a directory"),
    ],
)
async def test_a_command_that_cannot_be_started_says_why(
    small: ContainerdRuntime,
    command: tuple[str, ...],
    directory: str,
    reason: StartReason,
    words: str,
) -> None:
    sandbox = await small.prepare(
        Work("start", "tests", SMALL_IMAGE, command=command, working_dir=directory)
    )
    with pytest.raises(StartError, match=words) as caught:
        await sandbox.start()
    assert caught.value.reason is reason
    assert caught.value.errno != 0
    await sandbox.delete()


@pytest.mark.parametrize(
    "work",
    [
        {"command": ("a\0b",)},
        {"command": ("x",), "env": {"A": "\0"}},
        {"command": ("x" * (1 << 17),)},
        {"command": ("x",) * (1 << 14)},
        {"command": ("x",), "args": ("y" * 100_000,) * 11},
    ],
)
async def test_what_execve_cannot_take_is_refused_before_anything_is_made(
    small: ContainerdRuntime, work: dict[str, Any]
) -> None:
    with pytest.raises(StartError) as caught:
        await small.prepare(Work("message", "tests", SMALL_IMAGE, **work))
    assert caught.value.reason is StartReason.MESSAGE_INVALID
    assert not small.output_directory("message").exists()
