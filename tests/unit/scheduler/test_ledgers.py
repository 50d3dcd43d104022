"""What a ledger tells: pages of rows, and how the last day went. What verifies it is core/audit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tickmesh.mesh.errors import InvalidRequest, NotFound, Overloaded, PageTokenInvalid
from tickmesh.proto.tickmesh.v1 import schedule_pb2
from tickmesh.scheduler.calls import ledgers
from tickmesh.scheduler.calls.ledgers import Ledgers
from tickmesh.scheduler.core import commands
from tickmesh.scheduler.core.ids import spell
from tickmesh.scheduler.core.model import Attempt, Reason, Schedule
from tickmesh.scheduler.store import keys

from .worlds import START_MS, World

NAME = "customers/acme/jobs/hello/schedules/often"


class Replica:
    """Everything is applied already."""

    async def read_barrier(self) -> None:
        return


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def schedule(world: World) -> Schedule:
    """Fired ten times: each a millisecond later than the one before, and the last one failed."""
    world.job()
    schedule = world.schedule()
    for number in range(10):
        schedule = world.stored(schedule)
        world.now_ms = schedule.due_ms
        (made,) = world.fire(schedule)
        started_ns = (made.due_ms + number) * 1_000_000
        reason = Reason.EXIT_CODE if number == 9 else Reason.NONE
        end = Attempt(1, "", "", 0, started_ns=started_ns, reason=reason)
        world.do(commands.EndAttempts([(made.job_uid, made.id, end)]))
    return world.stored(schedule)


@pytest.fixture
def told(world: World, schedule: Schedule) -> Ledgers:
    shard: Any = SimpleNamespace(
        queries=world.queries,
        replica=Replica(),
        state=world.state,
        now_ms=lambda: world.now_ms,
        soft=lambda _: None,
    )
    return Ledgers(shard)


def pages(told: Ledgers, **asked: Any) -> Iterator[list[int]]:
    token = ""
    while True:
        request = schedule_pb2.ListFiresRequest(parent=NAME, page_token=token, **asked)
        response: Any = told.list_fires(request)
        yield [row.number for row in response.rows]
        token = response.next_page_token
        if not token:
            return


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("size", [1, 4, 11, 12, 1_000])
def test_rows_come_in_pages(told: Ledgers, size: int, newest_first: bool) -> None:
    found = list(pages(told, page_size=size, newest_first=newest_first))
    numbers = [number for page in found for number in page]
    assert numbers == sorted(range(11), reverse=newest_first)
    assert [len(page) for page in found[:-1]] == [size] * (len(found) - 1)
    assert found[-1]


@pytest.mark.parametrize("newest_first", [False, True])
def test_rows_that_were_forgotten_are_passed_over(
    world: World, told: Ledgers, schedule: Schedule, newest_first: bool
) -> None:
    (when,) = world.backend.periods()
    world.backend.write({keys.row(when, schedule.uid, number): None for number in range(4)})
    found = list(pages(told, page_size=3, newest_first=newest_first))
    numbers = [number for page in found for number in page]
    assert numbers == sorted(range(4, 11), reverse=newest_first)


def test_a_row_says_what_it_is_about(told: Ledgers, schedule: Schedule) -> None:
    response: Any = told.list_fires(schedule_pb2.ListFiresRequest(parent=NAME))
    first, second = response.rows[:2]
    assert first.outcome == schedule_pb2.FIRE_OUTCOME_DEFINED
    assert first.definition.name == NAME and first.definition.etag == "v1"
    assert first.definition.recurrence.intervals[0].every.seconds == 10
    assert not first.execution
    assert second.outcome == schedule_pb2.FIRE_OUTCOME_FIRED
    assert second.first_time.seconds * 1_000 == START_MS + 10_000
    assert second.execution.startswith("customers/acme/jobs/hello/executions/")
    assert not second.HasField("definition")
    assert response.rows[-1].hash == schedule.ledger_hash.hex()


def test_a_page_token_is_bound_to_its_order(told: Ledgers) -> None:
    first: Any = told.list_fires(schedule_pb2.ListFiresRequest(parent=NAME, page_size=1))
    with pytest.raises(PageTokenInvalid):
        told.list_fires(
            schedule_pb2.ListFiresRequest(
                parent=NAME, page_token=first.next_page_token, newest_first=True
            )
        )


async def statistics(told: Ledgers) -> Any:
    return await told.statistics(schedule_pb2.GetScheduleStatisticsRequest(name=NAME))


async def test_a_days_fires_are_counted(told: Ledgers) -> None:
    found = await statistics(told)
    assert (found.fired_count, found.started_count, found.failed_count) == (10, 10, 1)
    assert found.lateness_p50.ToMilliseconds() == 4  # of 0 to 9
    assert found.lateness_p99.ToMilliseconds() == 9
    assert (found.late_count, found.missed_count, list(found.skipped)) == (0, 0, [])
    assert found.complete and found.start_time.seconds == found.end_time.seconds - 86_400


async def test_what_is_older_than_a_day_does_not_count(world: World, told: Ledgers) -> None:
    world.now_ms += 86_400_000 - 25_000  # the last three are within it
    assert (await statistics(told)).fired_count == 3


async def test_missed_skipped_and_late_fires_are_counted(
    world: World, told: Ledgers, schedule: Schedule
) -> None:
    world.do(commands.PauseSchedule("acme", "hello", "often", "why"))
    world.now_ms += 35_000
    world.do(commands.ResumeSchedule("acme", "hello", "often"))
    world.now_ms += 45_000
    (late,) = world.fire(world.stored(schedule))
    end = Attempt(1, "", "", 0, started_ns=(late.due_ms + 5_000) * 1_000_000)
    world.do(commands.EndAttempts([(late.job_uid, late.id, end)]))
    found = await statistics(told)
    assert (found.fired_count, found.caught_up_count) == (11, 1)
    assert found.missed_count == late.missed > 0
    assert found.late_count == 1
    assert {each.outcome: each.count for each in found.skipped} == {
        schedule_pb2.FIRE_OUTCOME_PAUSED: 3
    }


async def test_only_the_latest_rows_are_looked_at(
    told: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "STATISTICS_CHUNK", 2)
    monkeypatch.setattr(ledgers, "STATISTICS_ROWS_MAX", 4)
    found = await statistics(told)
    assert found.fired_count == 4 and not found.complete
    assert found.start_time.seconds * 1_000 == START_MS + 70_000


async def test_one_ledger_is_verified_at_a_time(told: Ledgers) -> None:
    request = schedule_pb2.VerifyScheduleRequest(name=NAME)
    found: Any = await told.verify(request)
    assert (list(found.problems), found.row_count, found.complete) == ([], 11, True)
    assert found.instant_count == 10
    first, second = await asyncio.gather(
        told.verify(request), told.verify(request), return_exceptions=True
    )
    assert first == found and isinstance(second, Overloaded)
    assert await told.verify(request) == found


async def test_the_ledger_of_a_deleted_schedule_is_read_and_verified(
    world: World, told: Ledgers, schedule: Schedule
) -> None:
    world.do(commands.DeleteSchedules("acme", "hello", ["often"], 0, False))
    response: Any = told.list_fires(schedule_pb2.ListFiresRequest(parent=NAME))
    assert len(response.rows) == 12
    assert response.rows[-1].outcome == schedule_pb2.FIRE_OUTCOME_DEFINED
    assert response.rows[-1].definition.state == schedule_pb2.SCHEDULE_STATE_FINISHED
    found: Any = await told.verify(schedule_pb2.VerifyScheduleRequest(name=NAME))
    assert (list(found.problems), found.row_count, found.complete) == ([], 12, True)
    # Another one takes its name: now the first one is known by its uid.
    second = world.schedule()
    for uid, rows in (("", 1), (spell(second.uid), 1), (spell(schedule.uid), 12)):
        asked = schedule_pb2.ListFiresRequest(parent=NAME, uid=uid)
        response = told.list_fires(asked)
        assert len(response.rows) == rows
        found = await told.verify(schedule_pb2.VerifyScheduleRequest(name=NAME, uid=uid))
        assert (list(found.problems), found.row_count) == ([], rows)
    world.now_ms += 1_000
    world.do(commands.DeleteSchedules("acme", "hello", ["often"], 0, False))
    response = told.list_fires(schedule_pb2.ListFiresRequest(parent=NAME))
    assert response.rows[0].definition.uid == spell(second.uid), "the one that was deleted last"


def test_what_never_was_has_no_ledger(told: Ledgers) -> None:
    never = NAME.replace("often", "never")
    with pytest.raises(NotFound, match="deleted"):
        told.list_fires(schedule_pb2.ListFiresRequest(parent=never))
    with pytest.raises(NotFound, match="with uid"):
        told.list_fires(schedule_pb2.ListFiresRequest(parent=NAME, uid="0" * 16))
    with pytest.raises(InvalidRequest, match="uid"):
        told.list_fires(schedule_pb2.ListFiresRequest(parent=NAME, uid="Z"))


async def test_a_range_with_too_many_rows_is_refused_with_where_to_divide_it(
    told: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "VERIFY_ROWS_MAX", 5)
    monkeypatch.setattr(ledgers, "VERIFY_CHUNK", 3)
    with pytest.raises(InvalidRequest, match=r"more than 5 rows.* until 2027") as refused:
        await told.verify(schedule_pb2.VerifyScheduleRequest(name=NAME))
    ((field, _),) = refused.value.fields
    assert field == "end_time"
    request = schedule_pb2.VerifyScheduleRequest(name=NAME)
    request.end_time.FromMilliseconds(START_MS + 50_000)
    found: Any = await told.verify(request)
    assert (found.instant_count, found.row_count, list(found.problems)) == (4, 11, [])
