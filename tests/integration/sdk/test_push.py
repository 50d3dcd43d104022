"""Pushes into a real registry, through a door that breaks them, and from there to executors."""

import asyncio
import json
import platform
import random
import shutil
import tarfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tickmesh.executor import archive
from tickmesh.mesh.errors import ImageCorrupt, NotFound, Unavailable
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.sdk import AsyncClient, ExecutionState, pushing
from tickmesh.sdk.layouts import Layout

from ..executor.registries import Broken, Door, registry

pytestmark = pytest.mark.integration

STAMP = Path(__file__).parents[3] / "scripts" / "benchmarks" / f"stamp-{platform.machine()}"
"""A static program that prints the time."""

LAYER_BYTES = 20 * 1024 * 1024
CHUNK_BYTES = 8 * 1024 * 1024
WAIT_S = 60.0
LOOK_EVERY_S = 0.05


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[str]:
    async with registry(tmp_path / "registry") as address:
        yield address


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose one layer does not compress: three chunks."""
    path = tmp_path_factory.mktemp("images") / "big.tar"
    data = random.Random(7).randbytes(LAYER_BYTES)
    archive.files_image(path, {"/data": archive.File(data)}, archive.Process(command=("/data",)))
    return path


async def pushed(host: str, path: Path, repository: str = "acme/big", **more: object) -> str:
    target = pushing.Registry(host, plain=True)
    push = partial(pushing.push, Layout(path), target, repository, "1", deadline_s=WAIT_S, **more)  # type: ignore[arg-type]
    return await asyncio.to_thread(push)


async def test_what_is_there_is_not_sent_again(host: str, big: Path) -> None:
    told: list[tuple[int, int]] = []
    async with Door(host) as door:
        digest = await pushed(door.host, big, progress=lambda *done: told.append(done))
        sent = [request for request in door.requests if request.startswith("PATCH")]
        assert len(sent) == 4, "three of the layer, one of the configuration"
        assert told[-1][0] == told[-1][1] > LAYER_BYTES
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        door.requests.clear()
        assert await pushed(door.host, big) == digest
        asked = [request.split()[0] for request in door.requests if " HTTP/" in request]
        assert sorted(asked) == ["HEAD", "HEAD", "PUT"]


async def test_another_repository_gives_what_it_has(host: str, big: Path) -> None:
    await pushed(host, big)
    async with Door(host) as door:
        await pushed(door.host, big, "acme/other", others=["acme/none", "acme/big"])
        sent = [request for request in door.requests if request.startswith("PATCH")]
        assert len(sent) == 1, "the configuration alone, which is small"
        assert any("mount=sha256" in request for request in door.requests)


class Cut(Door):
    """A door that breaks connections on the way in, so many bytes after they were opened."""

    cuts_bytes: list[int]

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self.cuts_bytes.pop(0) if self.cuts_bytes else None
        while data := await reader.read(65536):
            data = data[:left]
            writer.write(data)
            await writer.drain()
            if left is not None and (left := left - len(data)) <= 0:
                raise Broken
        raise Broken


@pytest.mark.parametrize(
    "cuts", [[CHUNK_BYTES + 300_000], [200, 150, CHUNK_BYTES // 2, 2 * CHUNK_BYTES + 100_000]]
)
async def test_a_broken_push_goes_on(host: str, big: Path, cuts: list[int]) -> None:
    async with Cut(host) as door:
        door.cuts_bytes = list(cuts)
        digest = await pushed(door.host, big)
        assert not door.cuts_bytes
    assert digest == await pushed(host, big)


async def test_a_push_that_always_breaks_is_given_up(host: str, big: Path) -> None:
    async with Cut(host) as door:
        door.cuts_bytes = [100_000] * 100
        with pytest.raises(Unavailable, match=r"blob sha256:"):
            await pushed(door.host, big)


async def test_a_changed_blob_does_not_become_one(host: str, big: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    with tarfile.open(big) as opened:
        opened.extractall(layout)  # our own; Python 3.11.2 has no filters yet
    largest = max((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(1_000_000)
        file.write(bytes(64))
    with pytest.raises(ImageCorrupt, match="does not match its digest"):
        await pushed(host, layout)
    data = tmp_path / "registry" / "data" / "docker/registry/v2/repositories/acme/big"
    assert not list(data.glob("_manifests/**/link")), "nothing of the image is named there"
    assert not list(data.glob("_uploads/*/data"))


async def attached(client: AsyncClient, executor: str) -> bool:
    """Whether an executor is, and alone."""
    return [each.executor_id for each in (await client.cluster()).executors] == [executor]


@pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry")
async def test_an_image_is_on_executors_that_join_later_too(tmp_path: Path) -> None:
    image = tmp_path / "hello.tar"
    words = archive.File(b'print("hello")\n')
    archive.python_image(image, {"/h.py": words}, command=("python3", "/h.py"))
    options = LocalOptions(executors=2, registry=True)
    async with (
        LocalMesh(tmp_path / "mesh", options) as mesh,
        AsyncClient(mesh.address, "acme") as client,
    ):
        late = mesh.executors[1]
        await late.kill()
        made = await client.images.push("hello:1", image)
        assert "executor-0" in made.executors and made.image.size_bytes > 1_000_000
        assert [each.id for each in await client.images.list()] == ["hello:1"]
        assert await client.images.get("hello:1") == made.image
        await client.jobs.create("hello", image="hello:1")
        await mesh.executors[0].kill()
        await late.spawn()
        await late.serving()
        async with asyncio.timeout(WAIT_S):
            while not await attached(client, late.name):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(LOOK_EVERY_S)
        handle = await client.execute("hello")
        async with asyncio.timeout(WAIT_S):
            ended = await handle.wait()
        assert ended.state is ExecutionState.SUCCEEDED, ended.message
        assert ended.attempts[-1].executor == "executor-1"

        # The same name moves to another image: who has the earlier one is told.
        words = archive.File(b'print("hello again")\n')
        archive.python_image(image, {"/h.py": words}, command=("python3", "/h.py"))
        again = await client.images.push("hello:1", image)
        assert again.executors == ("executor-1",) and again.image.digest != made.image.digest
        handle = await client.execute("hello")
        async with asyncio.timeout(WAIT_S):
            assert (await handle.wait()).state is ExecutionState.SUCCEEDED
        chunks = [chunk.data async for chunk in handle.logs()]
        assert b"".join(chunks) == b"hello again\n"

        # A directory of files is enough.
        root = tmp_path / "root"
        root.mkdir()
        shutil.copy(STAMP, root / "stamp")
        told: list[str] = []
        await client.images.push("plain:1", root, on_root_file_system=lambda: told.append("files"))
        assert told == ["files"]
        await client.jobs.create("plain", image="plain:1", command=["/stamp"])
        handle = await client.execute("plain")
        async with asyncio.timeout(WAIT_S):
            ended = await handle.wait()
        assert ended.state is ExecutionState.SUCCEEDED, ended.message
        assert b"".join([chunk.data async for chunk in handle.logs()]).strip().isdigit()
        await client.images.delete("plain:1")

        # One of two names is deleted: the other one stays.
        await client.images.push("hello:2", image)
        await client.images.delete("hello:1")
        assert [each.id for each in await client.images.list()] == ["hello:2"]
        with pytest.raises(NotFound):
            await client.images.get("hello:1")
        with pytest.raises(NotFound):
            await client.images.delete("hello:1")
        manifest = json.dumps((await client.images.get("hello:2")).digest)
        assert again.image.digest in manifest

        # What an executor leaves that is killed (its containerd) is its successor's to end.
        await mesh.executors[0].spawn()
        await mesh.executors[0].serving()
