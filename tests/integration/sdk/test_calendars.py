"""Calendars through the real mesh: what they do to schedules, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from tickmesh import sdk
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.scheduler.core.calendars import PINNED_MAX
from tickmesh.sdk import AsyncClient

pytestmark = pytest.mark.integration


def now() -> datetime:
    """When it is, not when the tests were collected: that may be many minutes before."""
    return datetime.now(UTC)


WHOLE_TIME = (
    sdk.TimeWindow(
        start_time=datetime(1970, 1, 1, tzinfo=UTC), end_time=datetime(2300, 1, 1, tzinfo=UTC)
    ),
)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    options = LocalOptions(replicas=1, executors=1, runtime="inprocess")
    async with (
        LocalMesh(tmp_path / "mesh", options) as mesh,
        AsyncClient(mesh.address, "acme", deadline_s=30) as client,
    ):
        yield client


def around(today: date, days: int = 3) -> list[str]:
    """So many days from yesterday on: it may become tomorrow while a test runs."""
    return [str(today + timedelta(days=number)) for number in range(-1, days)]


async def test_schedules_follow_their_calendars(client: AsyncClient) -> None:
    calendar = await client.calendars.create(
        "holidays", dates=around(now().date()), display_name="Holidays", request_id="once"
    )
    assert await client.calendars.create("holidays", dates=["12-25"], request_id="once") == calendar
    assert await client.calendars.get("holidays") == calendar
    await client.calendars.create("none", dates=["1999-01-01"])
    found = [each.id async for each in client.calendars.list(page_size=1)]
    assert found == ["holidays", "none"]

    await client.jobs.create("hello", image="x", command=("exit", "0"))
    schedule = await client.schedules.create(
        "hello",
        "often",
        every=1,
        excluded_calendars=["holidays", calendar.name.replace("holidays", "none")],
    )
    assert schedule.recurrence.excluded_calendars == (
        "customers/acme/calendars/holidays",
        "customers/acme/calendars/none",
    )
    assert schedule.next_fire_time is not None
    assert schedule.next_fire_time > now() + timedelta(days=1)
    told = await client.schedules.preview(schedule.recurrence, count=1, with_skipped=True)
    assert {(fire.skipped, fire.note) for fire in told} == {
        (True, "excluded by calendar holidays"),
        (False, ""),
    }

    await asyncio.sleep(1)  # an instant is left out
    changed = await client.calendars.update(
        dataclasses.replace(calendar, dates=("12-25",)), ["dates"]
    )
    assert changed.etag != calendar.etag and changed.display_name == "Holidays"
    soon = await client.schedules.get("hello/often")
    assert soon.next_fire_time is not None
    assert soon.next_fire_time < now() + timedelta(minutes=5)
    assert soon.etag != schedule.etag
    async with asyncio.timeout(20):
        async for execution in client.executions.watch("hello"):
            if execution.state is sdk.ExecutionState.SUCCEEDED:
                break
    with pytest.raises(sdk.EtagMismatch):
        await client.calendars.update(dataclasses.replace(calendar, dates=()), ["dates"])
    await client.calendars.update(
        dataclasses.replace(changed, dates=tuple(around(now().date()))), ["dates"]
    )
    rows = [row async for row in client.schedules.fires("hello/often")]
    excluded = [row for row in rows if row.outcome is sdk.FireOutcome.EXCLUDED]
    assert {row.calendar for row in excluded} == {calendar.name}
    verification = await client.schedules.verify("hello/often")
    assert verification.problems == () and verification.instant_count > 0

    with pytest.raises(sdk.CalendarInUse, match="hello/often"):
        await client.calendars.delete("holidays")
    unbound = dataclasses.replace(
        schedule,
        recurrence=dataclasses.replace(schedule.recurrence, excluded_calendars=()),
        etag="",
    )
    await client.schedules.update(unbound, ["recurrence.excluded_calendars"])
    await client.calendars.delete("holidays")
    with pytest.raises(sdk.NotFound):
        await client.calendars.get("holidays")


async def test_what_is_wrong_is_refused_and_changes_nothing(client: AsyncClient) -> None:
    calendars, schedules = client.calendars, client.schedules
    await client.jobs.create("hello", image="x")
    for wrong, field in (
        ({"dates": ["02-30"]}, "calendar.dates[0]"),
        ({"dates": ["Christmas"]}, "calendar.dates[0]"),
        ({"dates": ["12-25"], "time_zone": "Mars/Olympus"}, "calendar.time_zone"),
        ({"windows": WHOLE_TIME}, "calendar"),
        ({"dates": ["12-25"] * 1_001}, "calendar.dates"),
    ):
        with pytest.raises(sdk.InvalidRequest) as caught:
            await calendars.create("wrong", **wrong)  # type: ignore[arg-type]
        assert caught.value.fields[0][0] == field
    assert [each async for each in calendars.list()] == []
    await calendars.create("perhaps", dates=["12-25"], validate_only=True)
    with pytest.raises(sdk.NotFound):
        await schedules.create("hello", "xmas", cron="@daily", excluded_calendars=["perhaps"])

    calendar = await calendars.create("holidays", dates=["12-26"])
    with pytest.raises(sdk.AlreadyExists):
        await calendars.create("holidays", dates=["12-26"])
    with pytest.raises(sdk.InvalidRequest, match="twice"):
        await schedules.create("hello", cron="@daily", excluded_calendars=["holidays"] * 2)
    with pytest.raises(sdk.InvalidRequest, match="calendar holidays leaves out every instant"):
        await schedules.create("hello", cron="0 0 26 12 *", excluded_calendars=["holidays"])
    schedule = await schedules.create(
        "hello", "xmas", cron="0 0 25 12 *", excluded_calendars=["holidays"]
    )
    for validate_only in (True, False):
        with pytest.raises(sdk.CalendarInUse, match="hello/xmas"):
            await calendars.update(
                dataclasses.replace(calendar, dates=("12-25",)),
                ["dates"],
                validate_only=validate_only,
            )
    assert await calendars.get("holidays") == calendar
    assert await schedules.get("hello/xmas") == schedule


async def test_nobody_elses_calendar_can_be_used(client: AsyncClient) -> None:
    calendar = await client.calendars.create("holidays", dates=["12-26"])
    async with AsyncClient(client.address, "other") as other:
        await other.jobs.create("hello", image="x")
        with pytest.raises(sdk.NotFound):
            await other.calendars.get("holidays")
        with pytest.raises(sdk.NotFound):
            await other.schedules.create("hello", cron="@daily", excluded_calendars=[calendar.name])
        with pytest.raises(sdk.NotFound):
            await other.schedules.preview(
                sdk.Recurrence(crons=("@daily",), excluded_calendars=(calendar.name,))
            )


async def test_many_schedules_follow_before_the_change_returns(client: AsyncClient) -> None:
    calendar = await client.calendars.create("holidays", dates=around(now().date()))
    await client.jobs.create("hello", image="x", command=("exit", "0"))
    recurrence = sdk.Recurrence(crons=("0 * * * *",), excluded_calendars=("holidays",))
    new = [
        sdk.NewSchedule(schedule=sdk.Schedule(recurrence=recurrence), schedule_id=f"s-{number}")
        for number in range(2 * PINNED_MAX + 1)
    ]
    made = await client.schedules.add_batch("hello", new)
    await client.calendars.update(dataclasses.replace(calendar, dates=("12-25",)), ["dates"])
    following = [each.next_fire_time async for each in client.schedules.list("hello")]
    assert len(following) == len(made)
    assert all(time is not None and time < now() + timedelta(hours=2) for time in following)
