"""Executors are asked to pull what fires will need, in time, once, and not all of them."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.scheduler.ahead import HOLDERS, LOOK_AGAIN_MS, NOTED_MAX, Ahead
from tickmesh.scheduler.core.model import Network, Timer, TimerKind
from tickmesh.scheduler.dispatch import Link
from tickmesh.scheduler.placing import Hosts, hashed

from .worlds import SPEC, START_MS, World

IMAGE = "acme/hello:latest"


class Mesh:
    """A world with executors that only listen."""

    def __init__(self) -> None:
        self.world = World()
        self.hosts = Hosts()
        self.links: dict[str, Link] = {}
        self.now_ms = START_MS
        self.near: list[Timer] = []
        self.ahead = Ahead(
            self.world.queries,
            self.hosts,
            self.links,
            7,
            lambda: self.now_ms,
            lambda count: self.near[:count],
        )

    def join(self, *names: str, images: tuple[str, ...] = (), egress: bool = False) -> None:
        for name in names:
            self.links[name] = Link(shard_pb2.Hello(executor_id=name, slot_count=4))
            host = self.hosts[name]
            host.slot_count, host.egress = 4, egress
            self.hosts.offers(host, False, [hashed(image) for image in images], ())
            self.hosts.attach(host)

    async def asked(self) -> dict[str, list[str]]:
        """What each executor has been asked for since the last time."""
        self.ahead._wake.set()  # as time does
        running = asyncio.create_task(self.ahead.run())
        for _ in range(10):
            await asyncio.sleep(0)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        found = {}
        for name, link in self.links.items():
            if link.outbox:
                assert all(message.pull.term == 7 for message in link.outbox)
                assert all(message.pull.customer == "acme" for message in link.outbox)
                found[name] = [message.pull.image for message in link.outbox]
                link.outbox.clear()
        return found


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


def created(mesh: Mesh, schedule_id: str = "often") -> list[Timer]:
    mesh.world.schedule(schedule_id)
    assert mesh.world.last is not None
    return [timer for timer in mesh.world.last.timers if timer.kind is TimerKind.FIRE]


async def test_a_new_schedule_has_its_image_pulled(mesh: Mesh) -> None:
    mesh.join("a")
    mesh.world.job()
    mesh.ahead.note(created(mesh))
    assert await mesh.asked() == {"a": [IMAGE]}


async def test_some_executors_are_asked_and_not_all(mesh: Mesh) -> None:
    mesh.join("a", "b", "c", "d", "e")
    mesh.world.job()
    mesh.ahead.note(created(mesh))
    assert len(await mesh.asked()) == HOLDERS


async def test_who_holds_it_is_not_asked_and_counts(mesh: Mesh) -> None:
    mesh.join("a", "b", images=(IMAGE,))
    mesh.join("c", "d")
    mesh.world.job()
    mesh.ahead.note(created(mesh))
    assert await mesh.asked() == {"c": [IMAGE]}


async def test_nobody_is_asked_for_what_enough_hold(mesh: Mesh) -> None:
    mesh.join("a", "b", "c", images=(IMAGE,))
    mesh.join("d")
    mesh.world.job()
    mesh.ahead.note(created(mesh))
    assert await mesh.asked() == {}


async def test_who_cannot_run_it_is_not_asked(mesh: Mesh) -> None:
    mesh.join("a")
    mesh.join("b", egress=True)
    mesh.world.job(spec=msgspec.structs.replace(SPEC, network=Network.EGRESS))
    mesh.ahead.note(created(mesh))
    assert await mesh.asked() == {"b": [IMAGE]}


async def test_the_same_is_asked_again_after_a_while_only(mesh: Mesh) -> None:
    mesh.join("a")
    mesh.world.job()
    timers = created(mesh)
    mesh.ahead.note(timers)
    assert await mesh.asked() == {"a": [IMAGE]}
    mesh.ahead.note(timers)
    mesh.ahead.note(created(mesh, "another"))
    assert await mesh.asked() == {}
    mesh.now_ms += LOOK_AGAIN_MS
    mesh.ahead.note(timers)
    assert await mesh.asked() == {"a": [IMAGE]}


async def test_who_joins_later_is_asked_for_what_is_near(mesh: Mesh) -> None:
    mesh.world.job()
    mesh.near = created(mesh)
    mesh.ahead.note(mesh.near)
    assert await mesh.asked() == {}
    mesh.join("late")
    assert await mesh.asked() == {"late": [IMAGE]}


async def test_what_is_gone_is_not_asked_for(mesh: Mesh) -> None:
    mesh.join("a")
    mesh.world.job()
    timers = created(mesh)
    mesh.ahead.note([msgspec.structs.replace(timers[0], job_uid=b"another job's..")])
    assert await mesh.asked() == {}


async def test_other_timers_and_too_many_are_left_alone(mesh: Mesh) -> None:
    timer = Timer(START_MS, TimerKind.DECIDE, b"u", b"s")
    mesh.ahead.note([timer])
    mesh.ahead.note(
        Timer(START_MS, TimerKind.FIRE, index.to_bytes(16, "big"), b"s")
        for index in range(NOTED_MAX + 5)
    )
    assert len(mesh.ahead._noted) == NOTED_MAX
