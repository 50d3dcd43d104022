"""Calendars, and the schedules that follow them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.scheduler.test_audit import verify
from tests.unit.scheduler.test_fires import rows
from tests.unit.scheduler.worlds import HERE, START_MS, World
from tickmesh.scheduler.core import calendars, commands, recurrence
from tickmesh.scheduler.core.audit import Kind
from tickmesh.scheduler.core.commands import Refused, Why
from tickmesh.scheduler.core.history import PERIOD_MS
from tickmesh.scheduler.core.ledger import Outcome
from tickmesh.scheduler.core.model import ExecutionState, Schedule, ScheduleState
from tickmesh.scheduler.core.recurrence import Pin
from tickmesh.scheduler.store import keys

HOUR_MS = 3_600_000
TODAY = "2027-01-15"
"""At START_MS it is 08:00."""
TOMORROW = "2027-01-16"
MIDNIGHT_MS = START_MS + 16 * HOUR_MS
USING = (Pin("holidays"),)


@pytest.fixture
def world() -> World:
    made = World()
    made.job()
    return made


def refused(outcome: Any) -> tuple[Why, str]:
    assert isinstance(outcome, Refused), outcome
    return outcome.why, outcome.what


def hourly(world: World, schedule_id: str = "often", **spec: Any) -> Schedule:
    """On the hour, but not on holidays."""
    return world.schedule(schedule_id, crons=("0 * * * *",), calendars=USING, **spec)


def test_a_schedule_passes_over_what_its_calendar_excludes(world: World) -> None:
    world.calendar(dates=(TODAY,))
    schedule = hourly(world)
    assert schedule.next_ms == MIDNIGHT_MS
    # From 09:00 on: it is 08:00 now, and an instant is after its schedule was made.
    world.now_ms = MIDNIGHT_MS
    world.fire(schedule)
    skipped = rows(world, schedule)[1]
    assert (skipped.outcome, skipped.count, skipped.detail) == (Outcome.EXCLUDED, 15, b"holidays")
    assert verify(world, world.stored(schedule)).problems == []


def test_a_schedule_can_use_only_what_there_is(world: World) -> None:
    outcome = world.do(
        commands.CreateSchedules(
            "acme",
            "hello",
            [world.new_schedule("often", crons=("0 * * * *",), calendars=USING)],
            b"",
        )
    )
    assert refused(outcome) == (Why.NOT_FOUND, "customers/acme/calendars/holidays")
    assert world.queries.schedule_ids(world.job("other").uid, 10) == []


def test_a_schedule_that_its_calendar_leaves_nothing_is_refused(world: World) -> None:
    world.calendar(dates=("12-25",))
    outcome = world.do(
        commands.CreateSchedules(
            "acme",
            "hello",
            [world.new_schedule("xmas", crons=("0 0 25 12 *",), calendars=USING)],
            b"",
        )
    )
    assert refused(outcome)[0] is Why.NEVER_FIRES


def test_a_change_changes_the_schedules_at_once(world: World) -> None:
    world.calendar(dates=(TODAY,))
    schedule = hourly(world)
    other = world.schedule("other", crons=("0 * * * *",))
    world.change_calendar(dates=(TOMORROW,))
    changed = world.stored(schedule)
    assert changed.next_ms == START_MS + HOUR_MS
    assert changed.version == schedule.version + 1
    assert world.stored(other) == other
    assert world.queries.view().calendars_pending(10) == []
    world.change_calendar(dates=(TODAY, TOMORROW))
    assert world.stored(schedule).next_ms == MIDNIGHT_MS + 24 * HOUR_MS
    assert [timer.due_ms for timer in world.timers()] == [
        other.due_ms,
        MIDNIGHT_MS + 24 * HOUR_MS,
    ]
    assert verify(world, world.stored(schedule)).problems == []


def test_an_armed_fire_is_taken_back_and_comes_up_again(world: World) -> None:
    world.calendar(dates=(TOMORROW,))
    schedule = hourly(world)
    world.now_ms = schedule.due_ms - 2_000
    (armed,) = world.fire(schedule)
    world.change_calendar(dates=(TODAY,))
    assert world.execution(armed).stop or world.execution(armed).state is ExecutionState.REVOKED
    assert world.stored(schedule).next_ms == MIDNIGHT_MS
    # And back: the same instant, the same execution.
    world.change_calendar(dates=(TOMORROW,))
    again = world.stored(schedule)
    assert again.next_ms == armed.nominal_ms
    world.fire(again)
    world.now_ms = armed.due_ms + 1_000
    report = verify(world, world.stored(schedule))
    assert report.problems == [] and report.instants == 1


def test_what_is_paused_stays_paused_and_what_is_finished_finished(world: World) -> None:
    world.calendar(dates=(TOMORROW,))
    paused = hourly(world, "paused")
    world.do(commands.PauseSchedule("acme", "hello", "paused", "why"))
    finished = hourly(world, "finished", max_fires=1)
    world.now_ms = finished.due_ms
    world.fire(finished)
    world.change_calendar(dates=(TODAY,))
    assert world.stored(paused).state is ScheduleState.PAUSED
    assert world.stored(finished).state is ScheduleState.FINISHED
    assert [timer.id for timer in world.timers()] == []
    world.do(commands.ResumeSchedule("acme", "hello", "paused"))
    assert world.stored(paused).next_ms == MIDNIGHT_MS
    for each in (paused, finished):
        assert verify(world, world.stored(each)).problems == []


def test_a_change_that_leaves_a_schedule_nothing_is_refused_with_its_name(world: World) -> None:
    world.calendar(dates=(TOMORROW,))
    schedule = world.schedule("xmas", crons=("0 0 25 12 *",), calendars=USING)
    outcome = world.change_calendar(dates=("12-25",))
    assert refused(outcome) == (Why.LEAVES_NOTHING, "hello/xmas")
    assert world.stored(schedule) == schedule
    stored = world.queries.calendar("acme", "holidays")
    assert stored is not None and stored.content.dates == (TOMORROW,) and stored.version == 1


def test_a_calendar_in_use_is_not_deleted(world: World) -> None:
    world.calendar(dates=(TOMORROW,))
    for number in range(calendars.USERS_NAMED_MAX + 1):
        hourly(world, f"s{number:02}")
    why, what = refused(world.do(commands.DeleteCalendar("acme", "holidays", 0)))
    assert why is Why.IN_USE
    assert what.startswith("hello/s00, hello/s01, ") and what.endswith(", hello/s09, ...")
    doomed = [f"s{number:02}" for number in range(calendars.USERS_NAMED_MAX + 1)]
    world.do(commands.DeleteSchedules("acme", "hello", doomed, 0, False))
    world.do(commands.DeleteCalendar("acme", "holidays", 0))
    assert world.queries.calendar("acme", "holidays") is None


def test_a_schedule_that_lets_go_of_a_calendar_does_not_hold_it(world: World) -> None:
    world.calendar(dates=(TOMORROW,))
    schedule = hourly(world)
    spec = recurrence.Spec(crons=("0 * * * *",))
    world.do(commands.UpdateSchedule("acme", "hello", "often", 0, (), spec, schedule.policy, b""))
    before = world.stored(schedule)
    world.change_calendar(dates=(TODAY,))
    assert world.stored(schedule) == before
    assert not isinstance(world.do(commands.DeleteCalendar("acme", "holidays", 0)), Refused)
    # Its first definition names what the calendar said, and is audited still.
    world.now_ms += HOUR_MS
    world.fire(world.stored(schedule))
    assert verify(world, world.stored(schedule)).problems == []


def test_within_one_entry_it_counts_who_uses_it(world: World) -> None:
    new = world.new_schedule("often", crons=("0 * * * *",), calendars=USING)
    world.calendar(dates=(TODAY,))
    create = commands.CreateSchedules("acme", "hello", [new], b"")
    delete = commands.DeleteCalendar("acme", "holidays", 0)
    gone = commands.DeleteSchedules("acme", "hello", ["often"], 0, False)
    assert refused(world.do(create, delete))[0] is Why.IN_USE
    assert not isinstance(world.do(gone, delete), Refused)


def test_many_schedules_follow_in_several_commands(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calendars, "PINNED_MAX", 2)
    world.calendar(dates=(TODAY,))
    made = [hourly(world, f"s{number}") for number in range(5)]

    def following() -> list[bool]:
        return [world.stored(each).next_ms == START_MS + HOUR_MS for each in made]

    world.change_calendar(dates=(TOMORROW,))
    assert following() == [True, True, False, False, False]
    assert world.queries.view().calendars_pending(10) == [("acme", "holidays")]
    # What is not forgotten while somebody is pinned to it:
    assert world.do(commands.DropHistory(START_MS // PERIOD_MS + 1)) == []
    # A schedule that changes meanwhile follows by itself; one that is deleted does not matter.
    world.do(commands.PauseSchedule("acme", "hello", "s2", ""))
    world.do(commands.DeleteSchedules("acme", "hello", ["s3"], 0, False))
    del made[3]
    pin = commands.PinSchedules("acme", "holidays")
    world.do(pin)
    world.do(pin)
    assert following() == [True] * 4
    assert world.queries.view().calendars_pending(10) == []
    assert world.do(pin) == []
    for each in made:
        assert verify(world, world.stored(each)).problems == []


def test_a_second_change_begins_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendars, "PINNED_MAX", 2)
    world.calendar(dates=(TODAY,))
    made = [hourly(world, f"s{number}") for number in range(4)]
    world.change_calendar(dates=(TOMORROW,))
    world.change_calendar(dates=(TODAY, TOMORROW))
    while world.queries.view().calendars_pending(10):
        world.do(commands.PinSchedules("acme", "holidays"))
    assert {world.stored(each).next_ms for each in made} == {MIDNIGHT_MS + 24 * HOUR_MS}


def test_creating_is_idempotent_on_the_request_alone(world: World) -> None:
    (first,) = world.calendar(request=b"r", dates=(TODAY,))
    assert world.calendar(request=b"r", dates=(TODAY,)) == [first]
    assert refused(world.calendar(request=b"s", dates=(TODAY,)))[0] is Why.ALREADY_EXISTS
    assert refused(world.calendar(dates=(TODAY,)))[0] is Why.ALREADY_EXISTS


def test_a_customer_has_so_many_calendars(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendars, "CALENDARS_MAX", 2)
    for name in ("a", "b"):
        world.calendar(name, dates=(TODAY,))
    assert refused(world.calendar("c", dates=(TODAY,))) == (Why.TOO_MANY_CALENDARS, "acme")
    world.do(commands.DeleteCalendar("acme", "a", 0))
    assert not isinstance(world.calendar("c", dates=(TODAY,)), Refused)


def test_a_stale_version_is_refused(world: World) -> None:
    world.calendar(dates=(TODAY,))
    world.change_calendar(version=1, dates=(TOMORROW,))
    assert refused(world.change_calendar(version=1, dates=()))[0] is Why.VERSION_MISMATCH
    outcome = world.do(commands.DeleteCalendar("acme", "holidays", 1))
    assert refused(outcome)[0] is Why.VERSION_MISMATCH


def test_a_calendar_that_was_changed_behind_the_ledgers_back_is_found(world: World) -> None:
    world.calendar(dates=(TODAY,))
    schedule = hourly(world)
    world.change_calendar(dates=(TOMORROW,))
    assert verify(world, world.stored(schedule)).problems == []
    (when,) = world.backend.periods()
    digest = recurrence.calendar_digest(recurrence.Calendar(dates=(TODAY,)))
    key = keys.calendar_content(when, digest)
    assert world.backend.get(key) is not None
    other = world.backend.get(key).replace(TODAY.encode(), b"2027-01-14")
    world.backend.write({key: other})
    assert {problem.kind for problem in verify(world, world.stored(schedule)).problems} >= {
        Kind.TAMPERED
    }
    world.backend.write({key: None})
    assert {problem.kind for problem in verify(world, world.stored(schedule)).problems} >= {
        Kind.TAMPERED
    }


def test_a_trigger_and_a_backfill_are_besides_the_calendar(world: World) -> None:
    world.calendar(dates=(TODAY,))
    hourly(world)
    trigger = commands.TriggerSchedule("acme", "hello", "often", world.next_uid(), HERE, b"t")
    assert len(world.do(trigger)) == 1  # type: ignore[arg-type]
    backfill = commands.BackfillSchedule(
        "acme", "hello", "often", START_MS - 12 * HOUR_MS, START_MS, world.next_uid(), b"b"
    )
    # From 20:00 to midnight: today is excluded.
    assert len(world.do(backfill)) == 4  # type: ignore[arg-type]
