"""How handlers end, whatever their callers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from tickmesh.gateway import door
from tickmesh.gateway.door import Door
from tickmesh.gateway.methods import METHODS
from tickmesh.mesh.errors import DeadlineExceeded, from_status

IMPORT = METHODS["tickmesh.v1.ImageService/ImportImage"]
A_YEAR_S = 366 * 86_400.0


class Refused(Exception):
    """What the caller is told."""


class Context:
    """A call whose caller has a year."""

    def time_remaining(self) -> float:
        return A_YEAR_S

    async def abort(self, code: grpc.StatusCode, _details: str, metadata: Any) -> None:
        raise Refused(code, from_status(status_pb2.Status.FromString(metadata[0][1])))


async def test_who_sends_nothing_of_an_image_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was for as long as its sender said, and held one of the calls that a gateway takes."""
    monkeypatch.setattr(door, "STREAM_SECONDS_MAX", 0.01)
    nothing: Any = None

    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    handle: Any = Door((), nothing)._import(IMPORT)
    async with asyncio.timeout(5):
        with pytest.raises(Refused) as refused:
            await handle(silent(), Context())
    code, error = refused.value.args
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED and isinstance(error, DeadlineExceeded)
    assert "at most" in error.message
