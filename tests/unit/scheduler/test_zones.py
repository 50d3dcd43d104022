"""Time zones in the state: which release of tzdata a replica has does not matter to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.scheduler.test_audit import verify
from tests.unit.scheduler.test_ledgers import Replica
from tests.unit.scheduler.worlds import START_MS, World
from tickmesh.mesh.errors import InvalidRequest
from tickmesh.proto.tickmesh.v1 import zone_pb2
from tickmesh.scheduler import zones as methods
from tickmesh.scheduler.core import calendars, commands, recurrence, zones
from tickmesh.scheduler.core.model import Schedule, ScheduleState
from tickmesh.scheduler.core.recurrence import Pin
from tickmesh.scheduler.core.recurrence import zones as engine
from tickmesh.scheduler.store.state import State
from tickmesh.scheduler.zones import Zones

HOUR_MS = 3_600_000
NOON = "0 12 * * *"
BERLIN = "Europe/Berlin"


@pytest.fixture
def world() -> World:
    made = World()
    made.job()
    return made


def noon(world: World, schedule_id: str = "often", **spec: Any) -> Schedule:
    return world.schedule(schedule_id, crons=(NOON,), zone=BERLIN, **spec)


def test_a_schedule_is_pinned_to_the_zone_that_the_shard_knows(world: World) -> None:
    # In this shard Berlin's clocks are Tokyo's, whatever the package says.
    world.zones(Europe_Berlin="Asia/Tokyo")
    schedule = noon(world)
    assert schedule.next_ms == START_MS + 19 * HOUR_MS  # 03:00Z on the next day
    again = recurrence.Spec(crons=("0 13 * * *",), zone=BERLIN)
    world.do(commands.UpdateSchedule("acme", "hello", "often", 0, (), again, schedule.policy, b""))
    assert world.stored(schedule).next_ms == START_MS + 20 * HOUR_MS


def test_what_is_known_is_not_learned_again(world: World) -> None:
    world.zones(Europe_Berlin="Asia/Tokyo")
    assert world.zones(Europe_Berlin="Europe/Berlin", Europe_Paris="Europe/Paris")[0].name == (
        "Europe/Paris"
    )
    assert noon(world).next_ms == START_MS + 19 * HOUR_MS
    assert world.queries.view().zones_pending() is None


def test_a_restart_knows_the_zones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.zones(Europe_Berlin="Asia/Tokyo")
    schedule = noon(world)
    monkeypatch.setattr(engine, "_registered", {})
    engine.load.cache_clear()
    with pytest.raises(recurrence.UnknownZone):
        engine.load(BERLIN, schedule.spec.zone_digest)
    State(world.backend)
    assert engine.load(BERLIN, schedule.spec.zone_digest) == engine.load("Asia/Tokyo")


def test_an_upgrade_moves_schedules_and_their_ledgers_stand(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zones, "SCANNED_MAX", 3)
    monkeypatch.setattr(calendars, "PINNED_MAX", 2)
    monkeypatch.setattr(zones, "PINNED_MAX", 2)
    world.zones(Europe_Berlin="Asia/Tokyo", Europe_Paris="Europe/Paris")
    moved = [noon(world, f"s{number}") for number in range(5)]
    paused = noon(world, "t")
    world.do(commands.PauseSchedule("acme", "hello", "t", ""))
    others = [
        world.schedule("utc", crons=(NOON,)),
        world.schedule("paris", crons=(NOON,), zone="Europe/Paris"),
    ]
    world.calendar(dates=("2027-01-16",), zone=BERLIN)
    using = world.schedule("calendar", every=((HOUR_MS, 0),), calendars=(Pin("holidays"),))
    before = [world.stored(each) for each in others]
    world.now_ms = moved[0].due_ms
    for each in moved:
        world.fire(world.stored(each))
    assert [zone.name for zone in world.zones(True, Europe_Berlin="Europe/Berlin")] == [BERLIN]
    steps = 0
    while world.queries.view().zones_pending() is not None:
        world.do(commands.PinZones())
        steps += 1
    assert steps > 3
    for each in moved:
        stored = world.stored(each)
        assert stored.next_ms == START_MS + 27 * HOUR_MS  # 11:00Z on that same day
        world.now_ms = stored.due_ms
        world.fire(stored)
        assert verify(world, world.stored(each)).problems == []
    assert [world.stored(each) for each in others] == before
    assert world.stored(paused).state is ScheduleState.PAUSED
    (pin,) = world.stored(using).spec.calendars
    assert pin.zone_digest == world.queries.view().zone(BERLIN).digest  # type: ignore[union-attr]
    assert verify(world, world.stored(using)).problems == []
    assert world.zones(True, Europe_Berlin="Europe/Berlin") == []
    assert world.do(commands.PinZones()) == []


# -- what operators are told -------------------------------------------------------------------


@pytest.fixture
def told(world: World) -> Zones:
    class Now:
        """Applies what is submitted at once."""

        async def _done(self, command: Any) -> Any:
            return world.do(command)

        def submit(self, command: Any, weight: int = 1) -> Any:
            return self._done(command)

    shard: Any = SimpleNamespace(
        queries=world.queries,
        replica=Replica(),
        now_ms=lambda: world.now_ms,
        proposals=Now(),
    )
    return Zones(shard)


def files(**others: str) -> list[zone_pb2.ZoneFile]:
    return [
        zone_pb2.ZoneFile(name=name.replace("_", "/"), content=recurrence.read_zone_file(other))
        for name, other in others.items()
    ]


async def test_a_preview_tells_what_an_upgrade_then_does(
    world: World, told: Zones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "SLICE", 2)
    monkeypatch.setattr(methods, "SCANNED_MAX", 4)
    world.zones(Europe_Berlin="Europe/Berlin")
    made = [noon(world, f"s{number}") for number in range(5)]
    world.schedule("hourly", crons=("0 * * * *",), zone=BERLIN)
    world.schedule("utc", crons=(NOON,))
    asked: dict[str, Any] = {"shard_id": "shard-0", "files": files(Europe_Berlin="Europe/London")}
    found: list[Any] = []
    token = ""
    while True:
        request = zone_pb2.PreviewZonesRequest(days=2, page_size=2, page_token=token, **asked)
        answer: Any = await told.preview(request)
        assert list(answer.changed_zones) == [BERLIN]
        found += answer.schedules
        token = answer.next_page_token
        if not token:
            break
    assert [each.name.rpartition("/")[2] for each in found] == [f"s{n}" for n in range(5)]
    (first, *_), (instead, *_) = found[0].old_times, found[0].new_times
    assert first.seconds * 1_000 == made[0].next_ms
    assert instead.seconds - first.seconds == 3_600
    assert [world.stored(each) for each in made] == made, "a preview changes nothing"
    upgraded: Any = await told.upgrade(zone_pb2.UpgradeZonesRequest(release="x", **asked))
    assert list(upgraded.changed_zones) == [BERLIN] and upgraded.changed_schedule_count == 6
    assert world.stored(made[0]).next_ms == instead.seconds * 1_000
    assert world.queries.zones()[0].version == "x"
    again: Any = await told.upgrade(zone_pb2.UpgradeZonesRequest(**asked))
    assert (list(again.changed_zones), again.changed_schedule_count) == ([], 0)


async def test_without_files_it_is_the_package_beside_the_leader(world: World, told: Zones) -> None:
    world.zones(Europe_Berlin="Asia/Tokyo")
    noon(world)
    answer: Any = await told.preview(zone_pb2.PreviewZonesRequest(shard_id="shard-0", days=1))
    assert list(answer.changed_zones) == [BERLIN] and len(answer.schedules) == 1


async def test_what_is_no_zone_file_is_refused_and_changes_nothing(
    world: World, told: Zones
) -> None:
    world.zones(Europe_Berlin="Europe/Berlin")
    bad = [zone_pb2.ZoneFile(name=BERLIN, content=b"TZif, but not really")]
    before = world.everything()
    with pytest.raises(InvalidRequest, match=r"files\[0\].content"):
        await told.preview(zone_pb2.PreviewZonesRequest(shard_id="shard-0", files=bad))
    with pytest.raises(InvalidRequest):
        await told.upgrade(zone_pb2.UpgradeZonesRequest(shard_id="shard-0", files=bad))
    assert world.everything() == before
