"""Images that will be needed are pulled some at a time, and nobody hears when one cannot be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tickmesh.executor.ahead import AT_ONCE, WAITING_MAX, PullAhead
from tickmesh.executor.errors import ImageError, ImageReason
from tickmesh.executor.inprocess import Image


class Registry:
    """Images that come when they are let, or not at all."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.let = asyncio.Event()
        self.trouble: Exception | None = None

    async def ensure_image(self, reference: str, customer: str = "") -> Image:
        self.asked.append((customer, reference))
        await self.let.wait()
        if self.trouble is not None:
            raise self.trouble
        return Image(reference, "sha256:0", 1)


@asynccontextmanager
async def running(ahead: PullAhead) -> AsyncIterator[None]:
    task = asyncio.create_task(ahead.run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def turns() -> None:
    for _ in range(5 * WAITING_MAX):
        await asyncio.sleep(0)


async def test_some_come_at_one_time_and_the_same_once() -> None:
    registry = Registry()
    ahead = PullAhead(registry)
    for name in ("a", "b", "c", "a"):
        ahead.want("acme", name)
    async with running(ahead):
        await turns()
        assert registry.asked == [("acme", "a"), ("acme", "b")][:AT_ONCE]
        registry.let.set()
        await turns()
        assert registry.asked == [("acme", "a"), ("acme", "b"), ("acme", "c")]


@pytest.mark.parametrize(
    "trouble", [ImageError(ImageReason.NOT_FOUND, "it is not there"), UnicodeError("of a registry")]
)
async def test_what_cannot_be_had_holds_up_nothing(trouble: Exception) -> None:
    registry = Registry()
    registry.trouble = trouble
    registry.let.set()
    ahead = PullAhead(registry)
    async with running(ahead):
        ahead.want("acme", "a")
        await turns()
        ahead.want("acme", "b")
        await turns()
    assert registry.asked == [("acme", "a"), ("acme", "b")]


async def test_of_too_many_the_last_are_left() -> None:
    registry = Registry()
    registry.let.set()
    ahead = PullAhead(registry)
    for number in range(WAITING_MAX + 5):
        ahead.want("acme", str(number))
    async with running(ahead):
        await turns()
    assert len(registry.asked) == WAITING_MAX
