"""An audit finds nothing in what a shard did, and everything that was done to that afterwards."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.scheduler.test_fires import end, fire_when_due
from tests.unit.scheduler.worlds import HERE, START_MS, World
from tickmesh.scheduler.core import audit, calendars, commands, pins, recurrence
from tickmesh.scheduler.core.audit import Kind, Report
from tickmesh.scheduler.core.commands import ENTRY_VERSION, FINISHED_SINCE, Refused
from tickmesh.scheduler.core.ids import execution_id
from tickmesh.scheduler.core.ledger import Outcome, Row, make
from tickmesh.scheduler.core.model import (
    Execution,
    Misfire,
    Overlap,
    Policy,
    Reason,
    Schedule,
    ScheduleState,
)

PERIOD_MS = 10_000


@pytest.fixture
def world() -> World:
    made = World()
    made.job()
    return made


@pytest.fixture
def fired(world: World) -> Schedule:
    """A schedule that has fired ten times."""
    schedule = world.schedule()
    for _ in range(10):
        fire_when_due(world, schedule)
    return world.stored(schedule)


def verify(world: World, schedule: Schedule, rows: list[Row] | None = None) -> Report:
    """Audit everything so far."""
    kept = world.rows(schedule.uid, 0, 100_000) if rows is None else rows
    return audit.verify(
        schedule,
        list(enumerate(kept)),
        lambda nominal_ms: world.queries.execution(
            schedule.job_uid, execution_id(nominal_ms, schedule.uid)
        ),
        from_ms=0,
        until_ms=world.now_ms + 1,
        ready=lambda spec: pins.ready(world.queries.view(), schedule.customer, spec),
    )


def test_all_rows_may_be_forgotten_while_an_execution_is_waited_for(world: World) -> None:
    """It was armed in the period before its own, which is dropped while it runs."""
    policy = Policy(overlap=Overlap.QUEUE, queue_max=3)
    schedule = world.schedule(policy=policy, every=((600_000, 0),))
    (made,) = fire_when_due(world, schedule)
    for _ in range(3):
        fire_when_due(world, schedule)
    stored = world.stored(schedule)
    assert len(stored.waiting) == 3

    def audited(kept_ms: int) -> Report:
        return audit.verify(
            stored, [], lambda _: made, from_ms=kept_ms, until_ms=world.now_ms, kept_ms=kept_ms
        )

    report = audited(made.due_ms)
    assert (report.problems, report.complete) == ([], False)
    # Nothing that was written later than what it waits for may be missing.
    assert kinds(audited(made.due_ms - audit.AHEAD_MS)) == {Kind.REMOVED}


def kinds(report: Report) -> set[Kind]:
    return {problem.kind for problem in report.problems}


def rechained(rows: list[Row]) -> list[Row]:
    """A forger's rows: their hashes follow each other, as anybody can compute them."""
    made: list[Row] = []
    for number, row in enumerate(rows):
        previous = made[-1].hash if made else b""
        fields = (row.outcome, row.at_ms, row.first_ms, row.last_ms, row.count)
        forged = make(previous, number, *fields)
        made.append(replace(forged, detail=row.detail) if row.detail else forged)
    return made


def test_an_honest_ledger_has_no_problem(world: World, fired: Schedule) -> None:
    report = verify(world, fired)
    assert (report.problems, report.instants, report.rows, report.complete) == ([], 10, 11, True)


def test_a_schedule_that_finished_ahead_of_its_last_instants_is_audited_whole(
    world: World,
) -> None:
    schedule = world.schedule(every=((1_000, 0),), max_fires=3)
    world.now_ms = schedule.due_ms - 900
    for _ in range(3):
        world.fire(world.stored(schedule))
    world.now_ms += 10_000
    report = verify(world, world.stored(schedule))
    assert (report.problems, report.instants) == ([], 3)


def test_a_change_after_the_last_instant_was_armed_may_take_all_of_them_back(
    world: World,
) -> None:
    """It is finished then, and stays so: its last definition begins with its last instant."""
    schedule = world.schedule(every=((1_000, 0),), max_fires=3)
    world.now_ms = schedule.due_ms - 900
    for _ in range(3):
        world.fire(world.stored(schedule), placement=None)
    stored = world.stored(schedule)
    assert stored.state is ScheduleState.FINISHED
    world.do(
        commands.UpdateSchedule(
            "acme",
            "hello",
            stored.schedule_id,
            stored.version,
            stored.labels,
            stored.spec,
            stored.policy,
            b"other",
        )
    )
    world.now_ms += 10_000
    assert verify(world, world.stored(schedule)).problems == []


def test_a_row_that_was_changed_is_found(world: World, fired: Schedule) -> None:
    rows = world.rows(fired.uid, 0, 100)
    rows[4] = replace(rows[4], outcome=Outcome.OVERLAP)
    assert Kind.TAMPERED in kinds(verify(world, fired, rows))


def test_a_row_that_was_removed_is_found(world: World, fired: Schedule) -> None:
    rows = world.rows(fired.uid, 0, 100)
    report = verify(world, fired, rows[:4] + rows[5:])
    assert {Kind.TAMPERED, Kind.MISSING} <= kinds(report)


def test_the_last_row_removed_is_found(world: World, fired: Schedule) -> None:
    rows = world.rows(fired.uid, 0, 100)
    assert kinds(verify(world, fired, rows[:-1])) == {Kind.REMOVED, Kind.MISSING}


def test_a_row_that_was_doubled_is_found(world: World, fired: Schedule) -> None:
    rows = world.rows(fired.uid, 0, 100)
    report = verify(world, fired, rows[:5] + rows[4:])
    assert {Kind.TAMPERED, Kind.DOUBLED} <= kinds(report)


def test_a_forged_chain_is_found_by_the_schedules_own_hash(world: World, fired: Schedule) -> None:
    rows = world.rows(fired.uid, 0, 100)
    rows[3] = replace(rows[3], outcome=Outcome.OVERLAP)
    assert Kind.REMOVED in kinds(verify(world, fired, rechained(rows)))


def test_an_execution_that_is_gone_is_found(world: World, fired: Schedule) -> None:
    report = audit.verify(
        fired,
        list(enumerate(world.rows(fired.uid, 0, 100))),
        lambda _: None,
        from_ms=0,
        until_ms=world.now_ms + 1,
    )
    assert kinds(report) == {Kind.NO_EXECUTION}


POLICIES = (
    Policy(),
    Policy(overlap=Overlap.SKIP, start_deadline_ms=3_000),
    Policy(overlap=Overlap.QUEUE, queue_max=2, misfire=Misfire.ALL, misfire_max=5),
    Policy(overlap=Overlap.REPLACE, misfire=Misfire.SKIP, pause_after_failures=3),
    Policy(misfire=Misfire.ALL, misfire_window_ms=60_000, misfire_max=3),
)
SPECS = (
    {"every": ((PERIOD_MS, 0),)},
    {"every": ((7_000, 0),), "jitter_ms": 3_000},
    {"crons": ("*/7 * * * * *", "30 * * * * *"), "max_fires": 40},
    {"crons": ("*/20 * * * * *",), "excluded_windows": ((START_MS + 70_000, START_MS + 200_000),)},
    {"every": ((15_000, 0),), "calendars": (recurrence.Pin("quiet"),)},
    {
        "crons": ("*/5 * * * * *",),
        "jitter_ms": 2_000,
        "calendars": (recurrence.Pin("quiet"), recurrence.Pin("holidays")),
    },
)


def quiet(chance: random.Random, now_ms: int) -> dict[str, Any]:
    """What a calendar says: some minutes around now, or days."""
    if chance.random() < 0.2:
        return {"dates": ("2027-01-15",) if chance.random() < 0.3 else ("2027-01-20",)}
    start_ms = now_ms + chance.randrange(-100_000, 100_000)
    return {"windows": ((start_ms, start_ms + chance.randrange(1_000, 200_000)),)}


@pytest.mark.parametrize("seed", range(40))
def test_whatever_a_schedule_goes_through_its_ledger_stands(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(calendars, "PINNED_MAX", 1)
    for name in ("quiet", "holidays"):
        world.calendar(name, **quiet(chance, world.now_ms))
    world.schedule("another", every=((PERIOD_MS, 0),), calendars=(recurrence.Pin("quiet"),))
    schedule = world.schedule(
        policy=chance.choice(POLICIES),
        **chance.choice(SPECS),  # type: ignore[arg-type]
    )
    for _ in range(120):
        world.now_ms += chance.choice((0, 500, 1_000, 5_000, 20_000, 90_000))
        stored = world.stored(schedule)
        match chance.randrange(11):
            case 0 if stored.state is ScheduleState.PAUSED:
                world.do(commands.ResumeSchedule("acme", "hello", "often"))
            case 1 if chance.random() < 0.3:
                world.do(commands.PauseSchedule("acme", "hello", "often", "chance"))
            case 2 if chance.random() < 0.3:
                spec = recurrence.Spec(**chance.choice(SPECS))  # type: ignore[arg-type]
                policy = chance.choice(POLICIES)
                world.do(
                    commands.UpdateSchedule("acme", "hello", "often", 0, (), spec, policy, b"")
                )
            case 9 if chance.random() < 0.5:
                world.change_calendar(
                    chance.choice(("quiet", "holidays")), **quiet(chance, world.now_ms)
                )
            case 10:
                for pending in world.queries.view().calendars_pending(10):
                    world.do(commands.PinSchedules(*pending))
            case 3 | 4:
                for active in list(world.queries.active())[:2]:
                    stopped = active.stop and chance.random() < 0.7
                    reason = active.stop if stopped else Reason.NONE
                    if reason is Reason.REPLACED:
                        reason = Reason.CANCELLED
                    if not stopped and active.due_ms > world.now_ms:
                        continue
                    failed = not stopped and chance.random() < 0.3
                    end(world, active, Reason.EXIT_CODE if failed else reason, int(failed))
            case _ if stored.due_ms and stored.due_ms - (0 if stored.deferred else 2_000) <= (
                world.now_ms
            ):
                world.fire(stored, HERE if chance.random() < 0.7 else None)
            case _:
                pass
    stored = world.stored(schedule)
    assert verify(world, stored).problems == []
    told = sorted(
        (row.first_ms, row.last_ms, row.outcome.name)
        for row in world.rows(stored.uid, 0, 100_000)
        if row.outcome is Outcome.EXCLUDED or (row.outcome in audit.FIRED and row.count == 1)
    )
    for (_, last_ms, _), (first_ms, _, _) in pairwise(told):
        assert last_ms < first_ms, told
    world.do(commands.DeleteSchedules("acme", "hello", ["often"], 0, False))
    gone = world.queries.deleted_schedule("acme", "hello", "often", None)
    assert gone is not None and gone.uid == schedule.uid
    world.now_ms += 600_000
    assert verify(world, gone).problems == []
    rows = world.rows(gone.uid, 0, 100_000)
    assert verify(world, gone, rows[:-1]).problems


def test_a_range_is_verified_with_the_rows_of_that_range(world: World, fired: Schedule) -> None:
    kept = list(enumerate(world.rows(fired.uid, 0, 100)))

    def execution(nominal_ms: int) -> Execution | None:
        return world.queries.execution(fired.job_uid, execution_id(nominal_ms, fired.uid))

    def part(from_ms: int, until_ms: int, rows: list[tuple[int, Row]], most: int) -> Report:
        return audit.verify(
            fired, rows, execution, from_ms=from_ms, until_ms=until_ms, rows_max=most
        )

    middle = START_MS + 5 * PERIOD_MS + 1
    halves = [part(0, middle, kept, 6), part(middle, world.now_ms + 1, kept, 6)]
    assert [report.problems for report in halves] == [[], []]
    assert [report.instants for report in halves] == [5, 5]
    assert [report.rows for report in halves] == [11, 11], "every hash is checked"
    with pytest.raises(audit.TooManyRows) as refused:
        part(0, world.now_ms + 1, kept, 6)
    assert refused.value.at_ms == START_MS + 6 * PERIOD_MS
    forged = [*kept[:8], (8, replace(kept[8][1], outcome=Outcome.OVERLAP)), *kept[9:]]
    assert Kind.TAMPERED in kinds(part(0, middle, forged, 6))
    assert Kind.MISSING in kinds(part(0, middle, [*kept[:3], *kept[4:]], 6))


@pytest.mark.parametrize("version", [FINISHED_SINCE - 1, ENTRY_VERSION])
@pytest.mark.parametrize("paused", [False, True])
def test_what_has_no_instant_left_can_be_changed_in_all_else(paused: bool, version: int) -> None:
    """Its labels could not: it was refused, as if it were to get a recurrence that never fires."""
    world = World()
    world.version = version
    world.job()
    schedule = world.schedule(at_ms=(START_MS + 10_000,))
    if paused:
        world.do(commands.PauseSchedule("acme", "hello", "often", "for now"))
    else:
        world.now_ms = schedule.due_ms
        world.fire(schedule)
        assert world.stored(schedule).state is ScheduleState.FINISHED
    world.now_ms = START_MS + 20_000
    stored = world.stored(schedule)

    def change(spec: recurrence.Spec) -> Any:
        return world.do(
            commands.UpdateSchedule(
                *("acme", "hello", "often", stored.version, (("team", "a"),), spec),
                *(Policy(pause_after_failures=3), b"other"),
            )
        )

    assert isinstance(change(recurrence.Spec(at_ms=(START_MS + 5_000,))), Refused)
    if version < FINISHED_SINCE:  # a replica of before would refuse it, and be another state
        assert isinstance(change(stored.spec), Refused)
        return
    assert world.stored(schedule) == stored
    (changed,) = change(stored.spec)
    assert (changed.labels, changed.payload) == ((("team", "a"),), b"other")
    assert changed.state is ScheduleState.FINISHED and changed.fire_count == stored.fire_count
    assert world.timers() == []
    report = verify(world, world.stored(schedule))
    assert not report.problems and report.complete and report.instants == (not paused)
