"""What customers may write into a manifest, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

import httpx2
import pytest

from tickmesh.gateway.http import Request
from tickmesh.gateway.images import _of_pushed
from tickmesh.gateway.registry_door import EventDoor
from tickmesh.gateway.repositories import Repositories
from tickmesh.mesh.config import OwnRegistry
from tickmesh.mesh.errors import Unavailable

DIGEST = "sha256:" + "0" * 64
PUSHES = 4
"""More than executors are told of at one time."""
LARGEST = (1 << 63) - 1
"""What the registry takes as a layer's size, be the layer as small as it may."""


async def pushed(monkeypatch: pytest.MonkeyPatch, manifest: Any) -> Any:
    """An image as the gateway tells of it, whose manifest somebody wrote by hand."""

    async def request(*_: Any, **__: Any) -> httpx2.Response:
        return httpx2.Response(200, content=json.dumps(manifest).encode())

    repositories = Repositories(OwnRegistry(address="127.0.0.1:1", plain=True), None)
    monkeypatch.setattr(repositories._client, "request", request)
    try:
        return _of_pushed(await repositories.get("acme/report:1", 1.0))
    finally:
        await repositories.close()


@pytest.mark.parametrize("sizes", [[LARGEST, LARGEST], [1 << 70]])
async def test_sizes_that_add_up_to_too_much_are_told_as_the_largest(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    """Two layers that claimed so much each ended every gateway that heard of the push."""
    layers = [{"digest": DIGEST, "size": size} for size in sizes]
    image = await pushed(monkeypatch, {"config": {"digest": DIGEST}, "layers": layers})
    assert image.size_bytes == LARGEST


@pytest.mark.parametrize("size", [-1, 0.5, "1"])
async def test_what_is_no_size_is_no_manifest(monkeypatch: pytest.MonkeyPatch, size: Any) -> None:
    manifest = {"config": {"digest": DIGEST}, "layers": [{"digest": DIGEST, "size": size}]}
    with pytest.raises(Unavailable, match="something else"):
        await pushed(monkeypatch, manifest)


@pytest.mark.parametrize("digest", ["", "sha256", "sha256:../x", "sha256:0?n=1", "sha256:0\n"])
async def test_what_is_no_digest_is_asked_for_nowhere(
    monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    with pytest.raises(Unavailable, match="something else"):
        await pushed(monkeypatch, {"manifests": [{"digest": digest}]})


@pytest.mark.parametrize("error", [Unavailable("later"), ValueError("a bug")])
async def test_no_push_ends_what_tells_of_pushes(error: Exception) -> None:
    told: list[str] = []
    all_told = asyncio.Event()

    async def pull(reference: str, _digest: str) -> None:
        told.append(reference)
        if len(told) == PUSHES:
            all_told.set()
        raise error

    door = EventDoor("secret", pull)
    running = asyncio.create_task(door.run())
    events = [
        {"action": "push", "target": {"repository": "acme/r", "tag": str(tag), "digest": DIGEST}}
        for tag in range(PUSHES)
    ]
    body = json.dumps({"events": events}).encode()
    headers = {"authorization": "Bearer secret"}
    answer = await door.answer(Request("POST", "/", (), headers, body, "127.0.0.1"))
    assert answer.status is HTTPStatus.OK
    done, _ = await asyncio.wait(
        {running, waited := asyncio.create_task(all_told.wait())},
        timeout=5,
        return_when=asyncio.FIRST_COMPLETED,
    )
    assert done == {waited} and not running.done()
    running.cancel()
