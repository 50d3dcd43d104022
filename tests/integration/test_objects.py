"""Objects: the same of a directory and of an S3-compatible store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tickmesh.mesh.config import ConfigError, ObjectStore
from tickmesh.mesh.objects import Objects, ObjectsUnavailable

from .stores import SECRET, S3Server

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["directory", "s3"])
async def objects(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Objects]:
    directory: Path = tmp_path_factory.mktemp("store")
    if request.param == "directory":
        yield Objects(ObjectStore(str(directory / "new" / "objects")), "tests.store")
        return
    server = S3Server(directory)
    await server.start()
    try:
        yield Objects(server.archive(), "tests.store")
    finally:
        server.stop()


async def test_what_was_put_is_read_listed_and_deleted(objects: Objects) -> None:
    assert await objects.get("2026-01-31/acme/a/1", 100) is None
    assert await objects.children("") == []
    await objects.put("2026-01-31/acme/a/1", b"one")
    await objects.put("2026-01-31/acme/a/1", b"another")
    await objects.put("2026-01-31/acme/b/1", b"two")
    await objects.put("2026-02-01/acme/a/1", b"")
    assert await objects.get("2026-01-31/acme/a/1", 100) == b"another"
    assert await objects.get("2026-02-01/acme/a/1", 100) == b""
    with pytest.raises(ValueError, match="7 bytes, at most 6"):
        await objects.get("2026-01-31/acme/a/1", 6)
    assert await objects.children("") == ["2026-01-31", "2026-02-01"]
    assert await objects.children("2026-01-31/acme") == ["a", "b"]
    found = [key async for keys in objects.keys("2026-01-31") for key in keys]
    assert sorted(found) == ["2026-01-31/acme/a/1", "2026-01-31/acme/b/1"]
    await objects.delete(found)
    await objects.delete(found)
    assert await objects.children("") == ["2026-02-01"]
    await objects.delete(["2026-02-01/acme/a/1"])


async def test_files_go_in_and_out_in_pieces_and_a_new_object_is_one(
    objects: Objects, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 80_000)  # in several parts
    assert not objects.exists("backup")
    objects.put_file("backup/file", path)
    assert objects.exists("backup")
    pieces = objects.read("backup/file")
    assert pieces is not None and b"".join(pieces) == path.read_bytes()
    assert objects.put_new("backup/manifest.json", b"first")
    assert not objects.put_new("backup/manifest.json", b"second")
    pieces = objects.read("backup/manifest.json")
    assert pieces is not None and b"".join(pieces) == b"first"
    objects.remove("backup")
    assert not objects.exists("backup")
    assert objects.read("backup/file") is None


async def test_a_store_that_is_away_or_refuses_is_named_without_secrets(tmp_path: Path) -> None:
    server = S3Server(tmp_path)
    objects = Objects(server.archive(), "tests.store")
    with pytest.raises(ObjectsUnavailable, match=r"s3://bucket/some/prefix cannot be written to"):
        await objects.put("a", b"x")
    await server.start()
    try:
        nowhere = ObjectStore("s3://nowhere", server.address, "eu-central-1", "tests", SECRET)
        with pytest.raises(ObjectsUnavailable, match="NoSuchBucket") as error:
            await Objects(nowhere, "tests.store").put("a", b"x")
        assert SECRET not in str(error.value) + repr(nowhere) and "\n" not in str(error.value)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (ObjectStore("relative/path"), "neither an absolute path"),
        (ObjectStore("https://bucket"), "neither an absolute path"),
        (ObjectStore("/dev/null/below"), "Not a directory"),
        (ObjectStore("s3://"), "tests.store"),
    ],
)
async def test_a_wrong_configuration_is_named(settings: ObjectStore, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        Objects(settings, "tests.store")
    assert str(error.value).startswith("tests.store")
