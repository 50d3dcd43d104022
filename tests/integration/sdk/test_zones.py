"""Another release of tzdata, through the real mesh: shown before it is taken over."""

from __future__ import annotations

import importlib.resources
from datetime import timedelta
from pathlib import Path

import pytest

from tickmesh import sdk
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.sdk import AsyncClient

pytestmark = pytest.mark.integration

ZONES = importlib.resources.files("tzdata") / "zoneinfo" / "Europe"
LONDON = {"Europe/Berlin": (ZONES / "London").read_bytes()}


async def test_what_a_preview_shows_is_what_an_upgrade_does(tmp_path: Path) -> None:
    options = LocalOptions(replicas=1, executors=1, runtime="inprocess")
    async with (
        LocalMesh(tmp_path / "mesh", options) as mesh,
        AsyncClient(mesh.address, "acme", deadline_s=30) as client,
    ):
        shard = (await client.cluster()).shards[0].shard_id
        await client.jobs.create("hello", image="x")
        noon = await client.schedules.create(
            "hello", "noon", cron="0 12 * * *", time_zone="Europe/Berlin"
        )
        utc = await client.schedules.create("hello", "utc", cron="0 12 * * *")
        assert [each async for each in client.zones.preview(shard)] == []

        (moved,) = [each async for each in client.zones.preview(shard, LONDON, days=3)]
        assert moved.name == noon.name and moved.time_zone == "Europe/Berlin"
        assert moved.old_times[0] == noon.next_fire_time
        assert moved.new_times[0] == moved.old_times[0] + timedelta(hours=1)
        with pytest.raises(sdk.NotFound):
            await client.zones.upgrade("shard-9", LONDON)
        with pytest.raises(sdk.InvalidRequest):
            await client.zones.upgrade(shard, {"Europe/Berlin": b"no zone file"})
        assert await client.schedules.get("hello/noon") == noon

        made = await client.zones.upgrade(shard, LONDON, release="2099z")
        assert made == sdk.ZonesUpgrade(changed_zones=("Europe/Berlin",), changed_schedule_count=1)
        after = await client.schedules.get("hello/noon")
        assert after.next_fire_time == moved.new_times[0] and after.etag != noon.etag
        assert await client.schedules.get("hello/utc") == utc
        # Who comes later is in the same zone, whatever the package beside the leader says.
        later = await client.schedules.create(
            "hello", "later", cron="0 12 * * *", time_zone="Europe/Berlin"
        )
        assert later.next_fire_time == after.next_fire_time
        assert (await client.schedules.verify("hello/noon")).problems == ()
