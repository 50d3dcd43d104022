"""The timer of a replica's rounds, on the event loop that replicas have."""

from __future__ import annotations

import asyncio
import math
import time

import uvloop

from tickmesh.scheduler.raft.alarm import Alarm


class Deadline:
    """One that can be moved, and what rang."""

    def __init__(self) -> None:
        self.at_s = math.inf
        self.rang = asyncio.Event()
        self.alarm = Alarm(time.monotonic, lambda: self.at_s, self.rang.set)


def test_a_deadline_that_has_come_can_be_set_again_before_it_rings() -> None:
    async def twice() -> None:
        deadline = Deadline()
        for at_s in (0.0, 0.0, time.monotonic() + 60):
            deadline.at_s = at_s
            deadline.alarm.set()
        assert not deadline.rang.is_set()
        deadline.at_s = 0.0
        deadline.alarm.set()
        await deadline.rang.wait()

    uvloop.run(twice())


def test_an_earlier_deadline_takes_the_place_of_a_later_one() -> None:
    async def earlier() -> None:
        deadline = Deadline()
        deadline.alarm.set()  # none
        deadline.at_s = time.monotonic() + 3_600
        deadline.alarm.set()
        deadline.at_s = time.monotonic() + 0.01
        deadline.alarm.set()
        await deadline.rang.wait()
        assert time.monotonic() > deadline.at_s

    uvloop.run(earlier())


def test_a_cancelled_alarm_rings_no_more() -> None:
    async def cancelled() -> None:
        deadline = Deadline()
        deadline.at_s = 0.0
        deadline.alarm.set()
        deadline.alarm.cancel()
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, later.set)
        await later.wait()
        assert not deadline.rang.is_set()

    uvloop.run(cancelled())
