"""What a customer keeps: the walk finds what is over, the core forgets it, and ledgers say so."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.unit.scheduler.test_audit import POLICIES, SPECS, kinds, quiet, rechained, verify
from tests.unit.scheduler.test_fires import end, fire_when_due
from tickmesh.scheduler import retention
from tickmesh.scheduler.core import commands, recurrence
from tickmesh.scheduler.core.audit import Kind
from tickmesh.scheduler.core.commands import PurgeExecutions, Refused, Why
from tickmesh.scheduler.core.history import KEPT_MS_MIN, PERIOD_MS
from tickmesh.scheduler.core.ids import due_ms_of
from tickmesh.scheduler.core.ledger import Outcome, make_purged, purged_of
from tickmesh.scheduler.core.model import (
    Customer,
    Execution,
    Overlap,
    Policy,
    Reason,
    Schedule,
    ScheduleState,
)
from tickmesh.scheduler.retention import Retention
from tickmesh.scheduler.store import keys

from .worlds import HERE, SPEC, START_MS, World

HOUR_MS = 3_600_000


@pytest.fixture
def world() -> World:
    made = World()
    made.job()
    return made


def keep(world: World, *, max_age_ms: int = 0, count: int = 0, customer: str = "acme") -> None:
    made = world.do(commands.UpdateCustomer(customer, 0, max_age_ms, count))
    assert isinstance(made, list) and isinstance(made[0], Customer)


async def walk(world: World) -> list[PurgeExecutions]:
    """What the leader does; what it proposed."""
    proposed = []

    async def propose(command: PurgeExecutions, weight: int) -> None:
        assert weight == len(command.executions)
        proposed.append(command)
        world.do(command)

    await Retention(world.queries, lambda: world.now_ms, propose).walk()
    return proposed


def listed(world: World, customer: str = "acme", job_uid: bytes | None = None) -> list[Execution]:
    """All that is listed, by pages of three; both listings agree."""
    found: list[Execution] = []
    after = b""
    while True:
        some, after = world.queries.executions(
            customer, job_uid, after, 3, lambda execution: True, 1_000
        )
        found += some
        if not after:
            return found


def run_once(world: World, job_id: str = "hello") -> Execution:
    (made,) = world.execute(job_id)
    world.end(made)
    return world.execution(made)


def assert_whole(world: World) -> None:
    """No index names what is not there."""
    for execution in world.queries.active():
        assert execution is not None
    by_job = [e for job in jobs(world) for e in listed(world, job_uid=job)]
    assert sorted(e.id for e in by_job) == sorted(e.id for e in listed(world))


def jobs(world: World) -> list[bytes]:
    found, _ = world.queries.jobs("acme", b"", 100)
    return [job.uid for job in found]


async def test_nothing_is_looked_at_where_nobody_asks_for_it(world: World) -> None:
    run_once(world)
    world.now_ms += 100 * HOUR_MS
    assert await walk(world) == []
    assert len(listed(world)) == 1


async def test_what_ended_too_long_ago_is_forgotten(world: World) -> None:
    keep(world, max_age_ms=HOUR_MS)
    early = run_once(world)
    (long_one,) = world.execute()
    world.now_ms += HOUR_MS - 1
    late = run_once(world)
    assert await walk(world) == []
    world.now_ms += 1
    await walk(world)
    assert {e.id for e in listed(world)} == {long_one.id, late.id}, "what runs is never forgotten"
    assert world.queries.execution(early.job_uid, early.id) is None
    world.end(long_one)
    world.now_ms += HOUR_MS
    await walk(world)
    assert listed(world) == []
    assert_whole(world)


async def test_only_the_latest_of_each_job_are_kept(world: World) -> None:
    world.job("other")
    keep(world, count=2)
    ran = []
    for _ in range(5):
        world.now_ms += 1_000
        ran.append(run_once(world))
    other = run_once(world, "other")
    (active,) = world.execute()
    world.now_ms += KEPT_MS_MIN
    await walk(world)
    assert {e.id for e in listed(world)} == {ran[3].id, ran[4].id, other.id, active.id}
    assert_whole(world)


async def test_what_has_just_ended_is_kept_whatever_the_retention(world: World) -> None:
    keep(world, count=1, max_age_ms=1)
    for _ in range(3):
        run_once(world)
    world.now_ms += KEPT_MS_MIN - 1
    assert await walk(world) == []
    assert len(listed(world)) == 3
    world.now_ms += 1
    await walk(world)
    assert listed(world) == []


async def test_every_customer_has_its_own(world: World) -> None:
    world.do(
        commands.CreateJobs("other", [commands.NewJob("j", world.next_uid(), "", (), SPEC)], b"")
    )
    for customer, job in (("acme", "hello"), ("other", "j")):
        new = commands.NewExecution(job, world.next_uid(), b"", HERE)
        made: Any = world.do(commands.ExecuteJobs(customer, [new], b""))
        world.end(made[0])
    keep(world, max_age_ms=HOUR_MS, customer="other")
    world.now_ms += 2 * HOUR_MS
    await walk(world)
    assert listed(world, "other") == [] and len(listed(world)) == 1


async def test_executions_of_a_deleted_job_and_backfilled_ones_are_forgotten_too(
    world: World,
) -> None:
    keep(world, max_age_ms=HOUR_MS)
    world.now_ms += 3 * PERIOD_MS
    world.schedule(every=((60_000, 0),))
    start_ms = world.now_ms - 2 * PERIOD_MS
    made: Any = world.do(
        commands.BackfillSchedule(
            "acme", "hello", "often", start_ms, start_ms + 600_000, b"b" * 10, b"r"
        )
    )
    assert len(made) == 10
    for execution in made:
        end(world, execution)
    assert await walk(world) == [], "their instants are old; their ends are not"
    world.do(commands.DeleteSchedules("acme", "hello", ["often"], 0, False))
    world.do(commands.DeleteJob("acme", "hello", 0))
    world.now_ms += HOUR_MS
    await walk(world)
    assert listed(world) == []


async def test_a_change_of_mind_meanwhile_keeps_what_was_about_to_go(world: World) -> None:
    keep(world, count=1)
    for _ in range(3):
        run_once(world)
    world.now_ms += KEPT_MS_MIN
    ids = [(e.job_uid, e.id) for e in listed(world)]
    stale = commands.PurgeExecutions("acme", 2, ids[1:], True)
    keep(world, count=1_000)
    assert world.do(stale) == [0] and len(listed(world)) == 3
    for command in (
        commands.PurgeExecutions("acme", 3, ids, False),  # no age is set
        commands.PurgeExecutions("other", 1, ids, True),
        commands.PurgeExecutions("acme", 3, [(b"x" * 10, b"y" * 16)], True),
    ):
        assert world.do(command) == [0] and len(listed(world)) == 3


async def test_a_long_backlog_goes_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PURGE_MAX", 4)
    monkeypatch.setattr(retention, "LOOK_CHUNK", 7)
    monkeypatch.setattr(retention, "LOOK_PAUSE_S", 0.0)
    for _ in range(30):
        world.now_ms += 1_000
        run_once(world)
    keep(world, count=3)
    world.now_ms += KEPT_MS_MIN
    proposed = await walk(world)
    assert max(len(each.executions) for each in proposed) <= 4
    assert len(listed(world)) == 3
    keep(world, max_age_ms=HOUR_MS)
    world.now_ms += HOUR_MS
    await walk(world)
    assert listed(world) == []


def test_pages_stay_right_while_executions_go(world: World) -> None:
    """A page token that stands on one that was forgotten goes on after it."""
    for _ in range(6):
        world.now_ms += 1_000
        run_once(world)
    everything = listed(world)
    first, after = world.queries.executions("acme", None, b"", 2, lambda _: True, 100)
    keep(world, count=1)
    world.now_ms += KEPT_MS_MIN
    gone = [(e.job_uid, e.id) for e in everything[1:4]]
    world.do(commands.PurgeExecutions("acme", 2, gone, True))
    rest, end_ = world.queries.executions("acme", None, after, 10, lambda _: True, 100)
    assert [e.id for e in first + rest] == [e.id for e in everything[:2] + everything[4:]]
    assert not end_


def test_a_repeated_request_is_not_executed_again(world: World) -> None:
    (made,) = world.execute(request=b"once")
    world.end(made)
    keep(world, count=1)
    world.now_ms += KEPT_MS_MIN
    world.do(commands.PurgeExecutions("acme", 2, [(made.job_uid, made.id)], True))
    again = world.execute(request=b"once")
    assert isinstance(again, Refused) and again.why is Why.FORGOTTEN
    assert listed(world) == []


def test_a_stale_change_is_refused(world: World) -> None:
    keep(world, count=5)
    refused = world.do(commands.UpdateCustomer("acme", 1, 0, 0))
    assert isinstance(refused, Refused) and refused.why is Why.VERSION_MISMATCH
    stored = world.queries.customer("acme")
    assert stored is not None and stored.executions_per_job_max == 5


# -- ledgers ---------------------------------------------------------------------------------------


@pytest.fixture
def purged(world: World) -> Schedule:
    """A schedule of which the executions of six instants of ten are forgotten."""
    schedule = world.schedule()
    for _ in range(10):
        for made in fire_when_due(world, schedule):
            end(world, made)
    keep(world, count=4)
    world.now_ms += KEPT_MS_MIN
    over = listed(world)[4:]
    assert world.do(
        commands.PurgeExecutions("acme", 2, [(e.job_uid, e.id) for e in over], True)
    ) == [6]
    return world.stored(schedule)


def test_an_audit_knows_what_was_forgotten(world: World, purged: Schedule) -> None:
    report = verify(world, purged)
    assert (report.problems, report.complete, report.instants) == ([], True, 10)
    (row,) = [row for row in world.rows(purged.uid, 0, 100) if row.outcome is Outcome.PURGED]
    assert row.count == 6 == len(purged_of(row)) and purged.purged_ms == row.at_ms


def test_another_execution_that_is_gone_is_found(world: World, purged: Schedule) -> None:
    victim = listed(world)[1]
    world.backend.write({keys.execution(victim.job_uid, victim.id): None})
    assert Kind.NO_EXECUTION in kinds(verify(world, purged))


def test_what_was_forgotten_and_is_there_is_found(world: World, purged: Schedule) -> None:
    forged = replace(listed(world)[0], id=first_purged(world, purged))
    key = keys.execution(forged.job_uid, forged.id)
    world.backend.write({key: msgspec.msgpack.encode(forged)})
    assert kinds(verify(world, purged)) == {Kind.UNEXPECTED}


def first_purged(world: World, schedule: Schedule) -> bytes:
    (row,) = [row for row in world.rows(schedule.uid, 0, 100) if row.outcome is Outcome.PURGED]
    return row.first_ms.to_bytes(6, "big") + schedule.uid


def test_a_row_that_forgets_more_than_was_forgotten_is_found(
    world: World, purged: Schedule
) -> None:
    rows = world.rows(purged.uid, 0, 100)
    at = next(n for n, row in enumerate(rows) if row.outcome is Outcome.PURGED)
    fired = [row.first_ms for row in rows if row.outcome is Outcome.FIRED]
    rows[at] = make_purged(rows[at - 1].hash, at, rows[at].at_ms, fired)
    found = kinds(verify(world, purged, rows))
    assert {Kind.REMOVED, Kind.UNEXPECTED} <= found, "by the schedule's hash, and by what is there"
    assert Kind.TAMPERED in kinds(
        verify(world, purged, [*rows[:at], replace(rows[at], count=3), *rows[at + 1 :]])
    )


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x90", b"\x91\xa1x"])
def test_a_row_whose_instants_cannot_be_read_is_found(
    world: World, purged: Schedule, content: bytes
) -> None:
    rows = world.rows(purged.uid, 0, 100)
    at = next(n for n, row in enumerate(rows) if row.outcome is Outcome.PURGED)
    rows[at] = replace(rows[at], detail=content)
    assert Kind.TAMPERED in kinds(verify(world, purged, rechained(rows)))


def test_an_armed_fire_that_was_taken_back_stays_for_when_its_instant_comes_up_again(
    world: World,
) -> None:
    schedule = world.schedule(every=((60_000, 0),))
    for _ in range(2):
        for made in fire_when_due(world, schedule):
            end(world, made)
    stored = world.stored(schedule)
    world.now_ms = stored.due_ms - 2_000
    (armed,) = world.fire(stored)
    world.do(commands.PauseSchedule("acme", "hello", "often", ""))
    end(world, armed, Reason.REVOKED)
    world.do(commands.ResumeSchedule("acme", "hello", "often"))
    assert world.stored(schedule).next_ms == armed.nominal_ms
    keep(world, count=1, max_age_ms=KEPT_MS_MIN)
    world.now_ms += 3 * HOUR_MS  # and nobody fires it meanwhile
    ids = [(armed.job_uid, armed.id)]
    for surplus in (True, False):
        assert world.do(commands.PurgeExecutions("acme", 2, ids, surplus)) == [0]
    fire_when_due(world, schedule)
    assert verify(world, world.stored(schedule)).problems == []


async def live(world: World, seed: int) -> tuple[Schedule, int]:
    """As test_audit's random lives, with a customer who keeps little and changes its mind. What was
    forgotten is counted."""
    chance = random.Random(f"{seed}/retention")
    for name in ("quiet", "holidays"):
        world.calendar(name, **quiet(chance, world.now_ms))
    schedule = world.schedule(
        policy=chance.choice(POLICIES),
        **chance.choice(SPECS),  # type: ignore[arg-type]
    )
    gone = 0
    for _ in range(120):
        world.now_ms += chance.choice((0, 500, 1_000, 5_000, 20_000, 90_000))
        stored = world.stored(schedule)
        match chance.randrange(13):
            case 12 if chance.random() < 0.5:
                world.change_calendar(
                    chance.choice(("quiet", "holidays")), **quiet(chance, world.now_ms)
                )
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
            case 3 | 4:
                for active in list(world.queries.active())[:2]:
                    if active.stop:
                        reason = active.stop if chance.random() < 0.7 else Reason.NONE
                        end(
                            world, active, Reason.CANCELLED if reason is Reason.REPLACED else reason
                        )
                    elif active.due_ms <= world.now_ms:
                        failed = chance.random() < 0.3
                        end(world, active, Reason.EXIT_CODE if failed else Reason.NONE, int(failed))
            case 5:
                keep(
                    world,
                    max_age_ms=chance.choice((0, 0, 20_000, 100_000)),
                    count=chance.choice((0, 1, 3)),
                )
            case 6:
                gone += sum(len(each.executions) for each in await walk(world))
                assert_whole(world)
            case _ if stored.due_ms and stored.due_ms - (0 if stored.deferred else 2_000) <= (
                world.now_ms
            ):
                world.fire(stored, HERE if chance.random() < 0.7 else None)
            case _:
                pass
    return world.stored(schedule), gone


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_is_forgotten_meanwhile_the_ledger_stands(world: World, seed: int) -> None:
    schedule, _ = await live(world, seed)
    assert verify(world, schedule).problems == []


async def test_random_lives_do_forget() -> None:
    """The test above looks at something."""
    total = 0
    for seed in range(5):
        world = World()
        world.job()
        total += (await live(world, seed))[1]
    assert total > 20


def test_where_a_schedule_queues_what_waits_is_never_taken_for_gone(world: World) -> None:
    schedule = world.schedule(policy=Policy(overlap=Overlap.QUEUE, queue_max=3))
    (first,) = fire_when_due(world, schedule)
    for _ in range(3):
        fire_when_due(world, schedule)
    keep(world, count=1, max_age_ms=KEPT_MS_MIN)
    end(world, first)
    world.now_ms += HOUR_MS
    ids = [(first.job_uid, first.id)]
    assert world.do(commands.PurgeExecutions("acme", 2, ids, False)) == [1]
    assert due_ms_of(first.id) == first.nominal_ms
    assert verify(world, world.stored(schedule)).problems == []


def test_rows_say_instants_as_they_were() -> None:
    instants = [START_MS, START_MS + 1, START_MS + 60_000]
    row = make_purged(b"", 0, START_MS, instants)
    assert purged_of(row) == instants
    assert (row.first_ms, row.last_ms, row.count) == (instants[0], instants[-1], 3)


def test_queries_of_the_walk_find_everything_once(world: World) -> None:
    """Across periods, page by page, oldest and newest first."""
    ran = []
    for _ in range(9):
        world.now_ms += PERIOD_MS // 4
        ran.append(run_once(world).id)
    queries = world.queries
    for size in (1, 2, 4, 9, 20):
        oldest: list[bytes] = []
        before = b""
        while True:
            some, before = queries.oldest_executions("acme", before, size)
            oldest += [each.id for each in some]
            if not before:
                break
        newest: list[bytes] = []
        after = b""
        while True:
            ids, after = queries.execution_ids(jobs(world)[0], after, size)
            newest += ids
            if not after:
                break
        assert oldest == ran and newest == ran[::-1], size
