"""What can wait does so, and not for ever."""

from __future__ import annotations

import asyncio

from tickmesh.executor.quiet import Quiet


async def test_who_waits_goes_on_when_the_last_is_over() -> None:
    quiet = Quiet()
    quiet.begin()
    quiet.begin()
    waiting = [asyncio.create_task(quiet.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    quiet.end()
    await asyncio.sleep(0)
    assert not waiting[1].done()
    quiet.end()
    await asyncio.gather(*waiting[1:])
    await quiet.wait()


async def test_nobody_waits_for_ever() -> None:
    quiet = Quiet(wait_s=0.01)
    quiet.begin()
    await asyncio.gather(*(quiet.wait() for _ in range(3)))
    late = asyncio.create_task(quiet.wait())  # its own time begins now
    await asyncio.sleep(0)
    assert not late.done()
    await late
