"""What becomes of instants when things are not as planned: policies, retries, the ledger."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.unit.scheduler.worlds import HERE, SPEC, START_MS, World
from tickmesh.scheduler.core import audit, commands, recurrence
from tickmesh.scheduler.core.commands import INSTANTS_SINCE, Refused, Why
from tickmesh.scheduler.core.executions import total_timeout_over_ms
from tickmesh.scheduler.core.fires import BRAKE_FIRES_PER_MINUTE, MISFIRE_GRACE_MS
from tickmesh.scheduler.core.ids import execution_id
from tickmesh.scheduler.core.ledger import Outcome, Row, chained
from tickmesh.scheduler.core.model import (
    Attempt,
    Execution,
    ExecutionState,
    Misfire,
    Overlap,
    Policy,
    Reason,
    Retry,
    Schedule,
    ScheduleState,
    TimerKind,
)

PERIOD_MS = 10_000  # of World.schedule


@pytest.fixture
def world() -> World:
    made = World()
    made.job()
    return made


@pytest.fixture
def older() -> World:
    """In which instants are not all decided as they are now."""
    made = World()
    made.version = INSTANTS_SINCE - 1
    made.job()
    return made


def end(
    world: World,
    execution: Execution,
    reason: Reason = Reason.NONE,
    exit_code: int = 0,
    started: bool = True,
) -> Execution:
    """End its last attempt."""
    execution = world.execution(execution)
    if execution.state is ExecutionState.PENDING:
        world.do(commands.Assign([(execution.job_uid, execution.id, HERE)]))
        execution = world.execution(execution)
    ended = Attempt(
        number=len(execution.attempts),
        executor="whoever",
        incarnation="whatever",
        assign_ms=0,
        started_ns=world.now_ms * 1_000_000 if started else 0,
        ended_ns=world.now_ms * 1_000_000 + 5,
        exit_code=exit_code,
        reason=reason,
    )
    world.do(commands.EndAttempts([(execution.job_uid, execution.id, ended)]))
    return world.execution(execution)


def change(world: World, schedule: Schedule, spec: recurrence.Spec | None = None) -> None:
    """Update its payload, or what it says."""
    stored = world.stored(schedule)
    world.do(
        commands.UpdateSchedule(
            *(stored.customer, stored.job_id, stored.schedule_id, stored.version, stored.labels),
            *(spec or stored.spec, stored.policy, b"changed"),
        )
    )


def fire_when_due(world: World, schedule: Schedule) -> list[Execution]:
    """Let the next timer come up at its due time (not ahead)."""
    stored = world.stored(schedule)
    world.now_ms = max(world.now_ms, stored.due_ms)
    return world.fire(stored)


def rows(world: World, schedule: Schedule) -> list[Row]:
    """Its ledger, checked for the chain."""
    found = world.rows(schedule.uid, 0, 1_000)
    previous = b""
    for number, row in enumerate(found):
        assert row.hash == chained(previous, number, row)
        previous = row.hash
    stored = world.queries.schedule(schedule.job_uid, schedule.schedule_id)
    assert stored is not None
    assert (stored.ledger_count, stored.ledger_hash) == (len(found), previous)
    return found


def outcomes(world: World, schedule: Schedule) -> list[tuple[Outcome, int]]:
    """(outcome, how many) of the rows that are about instants."""
    found = rows(world, schedule)
    return [(row.outcome, row.count) for row in found if row.outcome is not Outcome.DEFINED]


class TestOverlap:
    def test_skip_leaves_out_what_comes_while_one_runs(self, world: World) -> None:
        schedule = world.schedule(policy=Policy(overlap=Overlap.SKIP))
        (first,) = fire_when_due(world, schedule)
        assert fire_when_due(world, schedule) == []
        end(world, first)
        assert len(fire_when_due(world, schedule)) == 1
        assert outcomes(world, schedule) == [
            (Outcome.FIRED, 1),
            (Outcome.OVERLAP, 1),
            (Outcome.FIRED, 1),
        ]

    def test_it_is_decided_when_due_and_not_ahead(self, world: World) -> None:
        schedule = world.schedule(policy=Policy(overlap=Overlap.SKIP))
        (first,) = fire_when_due(world, schedule)
        stored = world.stored(schedule)
        world.now_ms = stored.due_ms - 2_000
        assert world.fire(stored) == []
        (timer,) = world.timers()
        assert (timer.kind, timer.due_ms) == (TimerKind.DECIDE, stored.due_ms)
        end(world, first)
        assert len(fire_when_due(world, schedule)) == 1

    def test_queue_runs_them_one_after_the_other(self, world: World) -> None:
        schedule = world.schedule(policy=Policy(overlap=Overlap.QUEUE, queue_max=2))
        (first,) = fire_when_due(world, schedule)
        for _ in range(3):
            fire_when_due(world, schedule)
        assert len(world.stored(schedule).waiting) == 2
        end(world, first)
        (second,) = list(world.queries.active())
        assert second.due_ms == first.due_ms + PERIOD_MS
        end(world, second)
        (third,) = list(world.queries.active())
        end(world, third)
        assert list(world.queries.active()) == []
        assert outcomes(world, schedule) == [
            (Outcome.FIRED, 1),
            (Outcome.OVERLAP, 1),
            (Outcome.FIRED, 1),
            (Outcome.FIRED, 1),
        ]

    def test_replace_cancels_what_runs_and_starts_when_it_has_ended(self, world: World) -> None:
        schedule = world.schedule(policy=Policy(overlap=Overlap.REPLACE))
        (first,) = fire_when_due(world, schedule)
        fire_when_due(world, schedule)
        assert world.execution(first).stop is Reason.REPLACED
        assert [e.id for e in world.queries.active()] == [first.id]
        ended = end(world, first, Reason.CANCELLED)
        assert (ended.state, ended.reason) == (ExecutionState.CANCELLED, Reason.REPLACED)
        (second,) = world.queries.active()
        assert second.due_ms == first.due_ms + PERIOD_MS

    def test_an_instant_armed_before_the_policy_was_is_heard_of_too(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        spec, policy = schedule.spec, Policy(overlap=Overlap.SKIP)
        command = commands.UpdateSchedule("acme", "hello", "often", 0, (), spec, policy, b"")
        world.do(command)
        world.fire(world.stored(schedule))
        waiting = end(world, armed, Reason.REVOKED)
        assert waiting.state is ExecutionState.PENDING
        end(world, armed)
        assert world.stored(schedule).running == ()
        assert len(fire_when_due(world, schedule)) == 1

    @pytest.mark.parametrize("overlap", [Overlap.QUEUE, Overlap.REPLACE])
    def test_what_waits_counts_among_so_many_fires(self, world: World, overlap: Overlap) -> None:
        policy = Policy(overlap=overlap, queue_max=9)
        schedule = world.schedule(policy=policy, every=((PERIOD_MS, 0),), max_fires=2)
        (first,) = fire_when_due(world, schedule)
        fire_when_due(world, schedule)
        stored = world.stored(schedule)
        assert (stored.state, stored.waiting) == (
            ScheduleState.FINISHED,
            (first.due_ms + PERIOD_MS,),
        )
        end(world, first, first.stop or Reason.NONE)
        assert world.stored(schedule).fire_count == 2

    def test_a_pause_drops_what_waits(self, world: World) -> None:
        schedule = world.schedule(policy=Policy(overlap=Overlap.QUEUE))
        (first,) = fire_when_due(world, schedule)
        fire_when_due(world, schedule)
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        end(world, first)
        assert list(world.queries.active()) == []
        assert outcomes(world, schedule)[-1] == (Outcome.PAUSED, 1)

    @pytest.mark.parametrize("overlap", [Overlap.SKIP, Overlap.QUEUE, Overlap.REPLACE])
    def test_an_instants_own_revocation_does_not_stand_in_its_way(
        self, world: World, overlap: Overlap
    ) -> None:
        schedule = world.schedule(policy=Policy(overlap=overlap))
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        world.now_ms += 1_000
        change(world, schedule)
        assert world.execution(armed).stop is Reason.REVOKED
        fire_when_due(world, schedule)
        # The executor hears of the revocation only now.
        again = end(world, armed, Reason.REVOKED, started=False)
        assert again.state is ExecutionState.PENDING
        assert end(world, again).state is ExecutionState.SUCCEEDED
        assert not world.stored(schedule).running
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1)]

    @pytest.mark.parametrize("attempts", [1, 2])
    def test_what_comes_up_again_and_is_lost_meanwhile_is_tried_as_anything_is(
        self, world: World, attempts: int
    ) -> None:
        world.job("tried", spec=replace(SPEC, retry=Retry(max_attempts=attempts)))
        lost = self._lost_while_it_comes_up_again(world, "tried")
        if attempts == 1:
            assert (lost.state, lost.reason) == (ExecutionState.FAILED, Reason.EXECUTOR_LOST)
            return
        assert (lost.state, lost.stop, lost.again) == (ExecutionState.PENDING, Reason.NONE, False)
        assert lost.not_before_ms > world.now_ms
        assert lost.payload == b"changed"
        assert end(world, lost).state is ExecutionState.SUCCEEDED

    def test_at_most_once_it_is_not(self, world: World) -> None:
        spec = replace(SPEC, at_most_once=True, retry=Retry(max_attempts=2))
        world.job("once", spec=spec)
        assert self._lost_while_it_comes_up_again(world, "once").state is ExecutionState.FAILED

    @pytest.mark.parametrize("before", [True, False])
    def test_nor_where_its_job_was_or_has_become_so(self, world: World, before: bool) -> None:
        """It may have started as the job was; what would be tried is what it is now."""
        specs = {
            once: replace(SPEC, at_most_once=once, retry=Retry(max_attempts=2))
            for once in (False, True)
        }
        world.job("once", spec=specs[before])
        become = commands.UpdateJob("acme", "once", 0, "", (), specs[not before])
        lost = self._lost_while_it_comes_up_again(world, "once", become)
        assert (lost.state, lost.reason) == (ExecutionState.FAILED, Reason.EXECUTOR_LOST)

    def test_in_an_older_version_it_was_never_tried_again(self, older: World) -> None:
        older.job("tried", spec=replace(SPEC, retry=Retry(max_attempts=2)))
        assert self._lost_while_it_comes_up_again(older, "tried").state is ExecutionState.FAILED

    @staticmethod
    def _lost_while_it_comes_up_again(
        world: World, job_id: str, *meanwhile: commands.UpdateJob
    ) -> Execution:
        schedule = world.schedule(job_id=job_id)
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        world.now_ms += 1_000
        for each in meanwhile:
            world.do(each)
        change(world, schedule)
        (again,) = fire_when_due(world, schedule)
        assert (again.id, again.again) == (armed.id, True)
        return end(world, armed, Reason.EXECUTOR_LOST, started=False)

    def test_in_an_older_version_it_did(self, older: World) -> None:
        schedule = older.schedule(policy=Policy(overlap=Overlap.SKIP))
        older.now_ms = schedule.due_ms - 2_000
        (armed,) = older.fire(schedule)
        older.now_ms += 1_000
        change(older, schedule)
        fire_when_due(older, schedule)
        assert end(older, armed, Reason.REVOKED, started=False).state is ExecutionState.REVOKED

    @pytest.mark.parametrize("overlap", [Overlap.QUEUE, Overlap.REPLACE])
    def test_a_pause_by_failures_drops_what_waits_so_that_it_goes_on_when_resumed(
        self, world: World, overlap: Overlap
    ) -> None:
        schedule = world.schedule(policy=Policy(overlap=overlap, pause_after_failures=1))
        (first,) = fire_when_due(world, schedule)
        fire_when_due(world, schedule)
        assert world.stored(schedule).waiting
        end(world, first, Reason.EXIT_CODE, 1)
        stored = world.stored(schedule)
        assert stored.state is ScheduleState.PAUSED
        assert not stored.waiting
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        (after,) = fire_when_due(world, schedule)
        assert after.due_ms == stored.next_ms
        assert outcomes(world, schedule) == [
            (Outcome.FIRED, 1),
            (Outcome.PAUSED, 1),
            (Outcome.FIRED, 1),
        ]

    def test_what_an_older_version_left_waiting_is_dropped_when_it_is_resumed(
        self, older: World
    ) -> None:
        world = older
        schedule = world.schedule(policy=Policy(overlap=Overlap.QUEUE, pause_after_failures=1))
        (first,) = fire_when_due(world, schedule)
        fire_when_due(world, schedule)
        end(world, first, Reason.EXIT_CODE, 1)
        assert world.stored(schedule).waiting, "an older entry keeps its meaning"
        world.version = INSTANTS_SINCE
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        assert not world.stored(schedule).waiting
        assert fire_when_due(world, schedule)

    def test_what_ran_under_an_older_policy_keeps_nothing_from_coming_up_again(
        self, world: World
    ) -> None:
        schedule = world.schedule(policy=Policy(overlap=Overlap.QUEUE))
        fire_when_due(world, schedule)
        stored = world.stored(schedule)
        allow = commands.UpdateSchedule(
            *(stored.customer, stored.job_id, stored.schedule_id, 0, ()),
            *(stored.spec, Policy(), b""),
        )
        world.do(allow)
        world.now_ms = world.stored(schedule).due_ms - 1_000
        (armed,) = world.fire(world.stored(schedule))
        world.do(allow)
        assert world.execution(armed).stop is Reason.REVOKED
        (again,) = world.fire(world.stored(schedule))
        assert (again.id, again.again) == (armed.id, True)


class TestMisfires:
    def missed(self, world: World, policy: Policy) -> tuple[Schedule, list[Execution]]:
        """Seven instants pass; then the timer comes up, the last instant within the grace."""
        schedule = world.schedule(policy=policy)
        world.now_ms = schedule.due_ms + 6 * PERIOD_MS + 1_000
        return schedule, world.fire(schedule)

    def test_a_fire_within_the_grace_is_only_late(self, world: World) -> None:
        schedule = world.schedule(every=((1_000, 0),))
        world.now_ms = schedule.due_ms + MISFIRE_GRACE_MS
        for _ in range(6):
            (made,) = world.fire(world.stored(schedule))
            assert made.missed == 0
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1)] * 6

    def test_latest_fires_the_latest_for_all(self, world: World) -> None:
        schedule, made = self.missed(world, Policy())
        assert [(e.due_ms, e.missed) for e in made] == [(schedule.due_ms + 5 * PERIOD_MS, 5)]
        assert outcomes(world, schedule) == [(Outcome.MISSED, 5), (Outcome.CAUGHT_UP, 1)]
        assert world.stored(schedule).next_ms == schedule.due_ms + 6 * PERIOD_MS
        assert world.stored(schedule).missed_count == 5

    def test_skip_fires_none(self, world: World) -> None:
        schedule, made = self.missed(world, Policy(misfire=Misfire.SKIP))
        assert made == []
        assert outcomes(world, schedule) == [(Outcome.MISSED, 6)]

    def test_all_fires_each_up_to_the_cap(self, world: World) -> None:
        schedule, made = self.missed(world, Policy(misfire=Misfire.ALL, misfire_max=4))
        assert [e.due_ms - schedule.due_ms for e in made] == [n * PERIOD_MS for n in (2, 3, 4, 5)]
        assert outcomes(world, schedule) == [(Outcome.MISSED, 2)] + [(Outcome.CAUGHT_UP, 1)] * 4

    def test_jitter_lets_the_latest_be_but_one(self, world: World) -> None:
        hour_ms = 3_600_000
        schedule = world.schedule(every=((hour_ms, 0),), jitter_ms=hour_ms // 2)
        for late_ms in range(0, hour_ms, 10 * 60_000):
            world.now_ms = world.stored(schedule).next_ms + 24 * hour_ms + late_ms
            caught_up = world.fire(world.stored(schedule))
            stored = world.stored(schedule)
            assert len(caught_up) == 1
            assert caught_up[0].missed >= 23
            assert stored.due_ms > world.now_ms - MISFIRE_GRACE_MS, "none is late any more"

    def test_all_is_up_to_the_cap_with_jitter_too(self, world: World) -> None:
        minute_ms = 60_000
        policy = Policy(misfire=Misfire.ALL, misfire_max=3)
        schedule = world.schedule(policy=policy, every=((minute_ms, 0),), jitter_ms=60 * minute_ms)
        world.now_ms += 600 * minute_ms
        assert len(world.fire(world.stored(schedule))) == 3
        assert world.stored(schedule).due_ms > world.now_ms - MISFIRE_GRACE_MS

    def test_with_jitter_an_older_version_fired_several(self, older: World) -> None:
        minute_ms = 60_000
        schedule = older.schedule(every=((minute_ms, 0),), jitter_ms=60 * minute_ms)
        older.now_ms += 600 * minute_ms
        for _ in range(59):
            assert older.fire(older.stored(schedule))

    def test_all_fires_no_more_than_so_many_in_all(self, world: World) -> None:
        policy = Policy(misfire=Misfire.ALL)
        schedule = world.schedule(policy=policy, every=((PERIOD_MS, 0),), max_fires=3)
        fire_when_due(world, schedule)
        world.now_ms += 6 * PERIOD_MS
        second, third = world.fire(world.stored(schedule))
        assert third.due_ms - second.due_ms == PERIOD_MS
        stored = world.stored(schedule)
        assert (stored.state, stored.fire_count) == (ScheduleState.FINISHED, 3)
        assert outcomes(world, schedule) == [
            (Outcome.FIRED, 1),
            (Outcome.MISSED, 3),
            (Outcome.CAUGHT_UP, 1),
            (Outcome.CAUGHT_UP, 1),
        ]
        assert second.missed == 3

    def test_all_of_an_older_version_did_not_count_them(self, older: World) -> None:
        policy = Policy(misfire=Misfire.ALL)
        schedule = older.schedule(policy=policy, every=((PERIOD_MS, 0),), max_fires=3)
        older.now_ms += 6 * PERIOD_MS
        assert len(older.fire(older.stored(schedule))) == 5

    def test_all_of_a_very_long_absence_finds_the_last_ones(self, world: World) -> None:
        policy = Policy(misfire=Misfire.ALL, misfire_max=3)
        schedule = world.schedule(policy=policy, every=((1_000, 0),))
        world.now_ms = schedule.due_ms + 30 * 86_400_000
        made = world.fire(schedule)
        last_ms = world.now_ms - MISFIRE_GRACE_MS
        assert [e.due_ms for e in made] == [last_ms - 2_000, last_ms - 1_000, last_ms]
        assert outcomes(world, schedule)[0] == (Outcome.MISSED, 0)

    def test_the_window_leaves_out_what_is_too_old(self, world: World) -> None:
        policy = Policy(misfire=Misfire.ALL, misfire_window_ms=35_000)
        schedule, made = self.missed(world, policy)
        assert [e.due_ms - schedule.due_ms for e in made] == [n * PERIOD_MS for n in (3, 4, 5)]
        assert outcomes(world, schedule)[0] == (Outcome.MISSED, 3)

    def test_the_start_deadline_is_told(self, world: World) -> None:
        schedule = world.schedule(policy=Policy(start_deadline_ms=2_000))
        world.now_ms = schedule.due_ms + 2_001
        assert world.fire(schedule) == []
        assert outcomes(world, schedule) == [(Outcome.DEADLINE, 1)]


class TestPauses:
    def test_what_fell_due_meanwhile_is_one_row(self, world: World) -> None:
        schedule = world.schedule()
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        world.now_ms += 3_600_500
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        assert outcomes(world, schedule) == [(Outcome.PAUSED, 360)]

    def test_failures_in_a_row_pause_it(self, world: World) -> None:
        schedule = world.schedule(policy=Policy(pause_after_failures=2))
        for state in (ScheduleState.ACTIVE, ScheduleState.PAUSED):
            (made,) = fire_when_due(world, schedule)
            end(world, made, Reason.EXIT_CODE, 1)
            assert world.stored(schedule).state is state
        assert "2 executions in a row" in world.stored(schedule).pause_reason
        assert [t for t in world.timers() if t.kind is TimerKind.FIRE] == []

    def test_a_success_begins_the_count_anew(self, world: World) -> None:
        schedule = world.schedule(policy=Policy(pause_after_failures=2))
        for reason in (Reason.EXIT_CODE, Reason.NONE, Reason.EXIT_CODE):
            (made,) = fire_when_due(world, schedule)
            end(world, made, reason)
        assert world.stored(schedule).state is ScheduleState.ACTIVE

    def test_to_cancel_what_has_failed_is_no_further_failure(
        self, world: World, older: World
    ) -> None:
        for each, state in ((world, ScheduleState.ACTIVE), (older, ScheduleState.PAUSED)):
            schedule = each.schedule(policy=Policy(pause_after_failures=2))
            (made,) = fire_when_due(each, schedule)
            end(each, made, Reason.EXIT_CODE, 1)
            each.do(commands.Cancel([(made.job_uid, made.id)]))
            assert each.stored(schedule).state is state

    def test_a_runaway_is_braked_and_paused(self, world: World) -> None:
        # Such a schedule is refused at the door; here the arithmetic itself runs away.
        schedule = world.schedule(every=((100, 0),))
        for _ in range(BRAKE_FIRES_PER_MINUTE + 1):
            world.fire(world.stored(schedule))
        assert world.stored(schedule).state is ScheduleState.PAUSED
        assert outcomes(world, schedule)[-1] == (Outcome.BRAKE, 1)
        assert outcomes(world, schedule).count((Outcome.FIRED, 1)) == BRAKE_FIRES_PER_MINUTE

    def test_so_many_fires_and_no_more(self, world: World) -> None:
        schedule = world.schedule(every=((PERIOD_MS, 0),), max_fires=2)
        for _ in range(2):
            fire_when_due(world, schedule)
        assert world.stored(schedule).state is ScheduleState.FINISHED


class TestTheLastOfSoManyFires:
    @pytest.fixture
    def armed(self, world: World) -> Execution:
        """The second of two, a second before it is due."""
        schedule = world.schedule(every=((PERIOD_MS, 0),), max_fires=2)
        world.fire(schedule)
        schedule = world.stored(schedule)
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule, None)
        assert world.stored(schedule).state is ScheduleState.FINISHED
        world.now_ms += 1_000
        return armed

    @pytest.fixture
    def schedule(self, world: World, armed: Execution) -> Schedule:
        found = world.queries.schedule(armed.job_uid, armed.schedule_id)
        assert found is not None
        return found

    def test_a_change_after_it_was_armed_does_not_lose_it(
        self, world: World, schedule: Schedule, armed: Execution
    ) -> None:
        change(world, schedule)
        assert world.execution(armed).state is ExecutionState.REVOKED
        (again,) = fire_when_due(world, schedule)
        assert (again.id, again.payload) == (armed.id, b"changed")
        stored = world.stored(schedule)
        assert (stored.state, stored.fire_count) == (ScheduleState.FINISHED, 2)
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1), (Outcome.FIRED, 1)]

    def test_a_pause_takes_it_back_until_it_is_resumed(
        self, world: World, schedule: Schedule, armed: Execution
    ) -> None:
        world.do(commands.PauseSchedule("acme", "hello", "often", "wait"))
        assert world.execution(armed).state is ExecutionState.REVOKED
        assert world.stored(schedule).state is ScheduleState.PAUSED
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        (again,) = fire_when_due(world, schedule)
        assert again.id == armed.id
        stored = world.stored(schedule)
        assert (stored.state, stored.fire_count) == (ScheduleState.FINISHED, 2)

    def test_paused_until_it_is_over_another_takes_its_place(
        self, world: World, schedule: Schedule
    ) -> None:
        world.do(commands.PauseSchedule("acme", "hello", "often", "wait"))
        assert world.stored(schedule).fire_count == 1
        world.now_ms += 10 * PERIOD_MS
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        (made,) = fire_when_due(world, schedule)
        stored = world.stored(schedule)
        assert (stored.state, stored.fire_count) == (ScheduleState.FINISHED, 2)
        assert made.state is ExecutionState.ASSIGNED
        fired = (Outcome.FIRED, 1)
        assert outcomes(world, schedule) == [fired, fired, (Outcome.PAUSED, 9), fired]

    def test_once_it_is_due_there_is_nothing_to_pause(
        self, world: World, schedule: Schedule, armed: Execution
    ) -> None:
        world.now_ms = armed.due_ms
        before = world.stored(schedule)
        assert world.do(commands.PauseSchedule("acme", "hello", "often", "")) == [before]
        assert world.stored(schedule) == before
        assert world.execution(armed).state is ExecutionState.PENDING

    @pytest.fixture
    def moved(self, world: World, schedule: Schedule) -> Schedule:
        """Its instants are others."""
        spec = replace(schedule.spec, every=((PERIOD_MS, 1_500),))
        change(world, schedule, spec)
        return world.stored(schedule)

    def test_moved_another_instant_takes_its_place(
        self, world: World, armed: Execution, moved: Schedule
    ) -> None:
        assert world.execution(armed).state is ExecutionState.REVOKED
        (made,) = fire_when_due(world, moved)
        assert made.due_ms == armed.due_ms + 1_500
        stored = world.stored(moved)
        assert (stored.state, stored.fire_count) == (ScheduleState.FINISHED, 2)

    def test_in_an_older_version_none_did(self, older: World) -> None:
        schedule = older.schedule(every=((PERIOD_MS, 0),), max_fires=1)
        older.now_ms = schedule.due_ms - 1_000
        older.fire(schedule, None)
        change(older, schedule, replace(schedule.spec, every=((PERIOD_MS, 1_500),)))
        stored = older.stored(schedule)
        assert (stored.state, stored.fire_count) == (ScheduleState.FINISHED, 1)

    @pytest.mark.parametrize("overlap", [Overlap.ALLOW, Overlap.SKIP])
    def test_started_before_its_executor_heard_of_it_it_was_the_last(
        self, world: World, overlap: Overlap
    ) -> None:
        schedule = world.schedule(
            every=((PERIOD_MS, 0),), max_fires=1, policy=Policy(overlap=overlap)
        )
        world.now_ms = schedule.due_ms - 1_000
        (armed,) = world.fire(schedule)
        change(world, schedule, replace(schedule.spec, every=((PERIOD_MS, 1_500),)))
        stored = world.stored(schedule)
        assert (stored.state, stored.fire_count) == (ScheduleState.ACTIVE, 0)
        world.now_ms = armed.due_ms + 10
        assert end(world, armed).state is ExecutionState.SUCCEEDED
        stored = world.stored(schedule)
        assert (stored.state, stored.fire_count) == (ScheduleState.FINISHED, 1)
        assert not world.timers()

    def test_what_waits_for_one_that_started_all_the_same_does_not_fire_besides(
        self, world: World
    ) -> None:
        schedule = world.schedule(
            every=((PERIOD_MS, 0),), max_fires=1, policy=Policy(overlap=Overlap.QUEUE, queue_max=3)
        )
        world.now_ms = schedule.due_ms - 1_000
        (armed,) = world.fire(schedule)
        change(world, schedule, replace(schedule.spec, every=((PERIOD_MS, 1_500),)))
        assert not fire_when_due(world, schedule)
        assert world.stored(schedule).waiting
        end(world, armed)
        stored = world.stored(schedule)
        assert (stored.fire_count, stored.waiting) == (1, ())
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1), (Outcome.OVERLAP, 1)]

    def test_what_waits_does_not_fire_where_a_change_leaves_it_no_room(self, world: World) -> None:
        schedule = world.schedule(
            every=((PERIOD_MS, 0),), max_fires=2, policy=Policy(overlap=Overlap.QUEUE)
        )
        (first,) = fire_when_due(world, schedule)
        fire_when_due(world, schedule)
        assert world.stored(schedule).waiting
        change(world, schedule, replace(schedule.spec, max_fires=1))
        end(world, first)
        stored = world.stored(schedule)
        assert (stored.state, stored.fire_count) == (ScheduleState.FINISHED, 1)
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1), (Outcome.OVERLAP, 1)]

    def test_missed_anew_it_stays_taken_back_and_another_makes_up_for_it(
        self, world: World, schedule: Schedule, armed: Execution
    ) -> None:
        change(world, schedule)
        world.now_ms += 10 * PERIOD_MS
        (made,) = world.fire(world.stored(schedule))
        assert made.id != armed.id
        assert world.execution(armed).state is ExecutionState.REVOKED
        stored = world.stored(schedule)
        assert (stored.state, stored.fire_count) == (ScheduleState.FINISHED, 2)
        made_up = [(Outcome.MISSED, 8), (Outcome.CAUGHT_UP, 1)]
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1), (Outcome.FIRED, 1), *made_up]


class TestTakenBackAmongOthers:
    """An instant was armed and taken back; the schedule has come to name more, before and after."""

    @pytest.fixture
    def armed(self, world: World) -> Execution:
        schedule = world.schedule(every=((PERIOD_MS, 0),))
        world.now_ms = schedule.due_ms - 1_900
        (armed,) = world.fire(schedule)
        return armed

    @pytest.fixture
    def schedule(self, world: World, armed: Execution) -> Schedule:
        found = world.queries.schedule(armed.job_uid, armed.schedule_id)
        assert found is not None
        return found

    def often(self, world: World, schedule: Schedule, misfire: Misfire = Misfire.SKIP) -> None:
        """It fires every second from now on."""
        stored = world.stored(schedule)
        policy = replace(stored.policy, misfire=misfire, misfire_max=8)
        spec = replace(stored.spec, every=((1_000, 0),))
        world.do(
            commands.UpdateSchedule("acme", "hello", "often", stored.version, (), spec, policy, b"")
        )

    def audited(self, world: World, schedule: Schedule) -> list[tuple[Outcome, int]]:
        """Its outcomes, and the audit finds nothing."""
        report = audit.verify(
            world.stored(schedule),
            list(enumerate(rows(world, schedule))),
            lambda at_ms: world.queries.execution(
                schedule.job_uid, execution_id(at_ms, schedule.uid)
            ),
            from_ms=0,
            until_ms=world.now_ms + 1,
        )
        assert not report.problems
        return outcomes(world, schedule)

    def test_in_a_pause_it_has_one_row(
        self, world: World, schedule: Schedule, armed: Execution
    ) -> None:
        world.do(commands.PauseSchedule("acme", "hello", "often", "wait"))
        self.often(world, schedule)
        world.now_ms = armed.due_ms + 4_500
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        paused = [(Outcome.PAUSED, 1), (Outcome.PAUSED, 4)]
        assert self.audited(world, schedule) == [(Outcome.FIRED, 1), *paused]

    def test_it_was_the_last_until_a_change_took_it_back(self, world: World) -> None:
        """The schedule was to have finished with it; it never did."""
        schedule = world.schedule(every=((PERIOD_MS, 0),), max_fires=1)
        world.now_ms = schedule.due_ms - 1_900
        world.fire(schedule)
        soon_ms = world.now_ms + 1
        stored = world.stored(schedule)
        world.do(
            commands.UpdateSchedule(
                *("acme", "hello", "often", stored.version, ()),
                *(recurrence.Spec(at_ms=(soon_ms, soon_ms + 1)), Policy(overlap=Overlap.QUEUE)),
                b"",
            )
        )
        (first,) = fire_when_due(world, schedule)
        fire_when_due(world, schedule)
        change(world, schedule, recurrence.Spec(at_ms=(soon_ms + 9,)))
        end(world, first)
        assert self.audited(world, schedule) == [(Outcome.FIRED, 1)] * 3

    def test_a_pause_may_pass_over_it(self, world: World) -> None:
        schedule = world.schedule(at_ms=(START_MS + 1_000, START_MS + 3_000))
        world.fire(schedule)
        world.now_ms += 1_500
        (armed,) = world.fire(world.stored(schedule))
        world.do(commands.PauseSchedule("acme", "hello", "often", "wait"))
        change(world, schedule, recurrence.Spec(every=((1_000, 500),)))
        world.now_ms += 4_000
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        fired = (Outcome.FIRED, 1)
        assert self.audited(world, schedule) == [fired, fired, (Outcome.PAUSED, 4)]
        assert world.execution(armed).stop is Reason.REVOKED

    @pytest.mark.parametrize(
        ("misfire", "expected"),
        [
            (Misfire.SKIP, [(Outcome.MISSED, 1), (Outcome.MISSED, 5)]),
            (Misfire.LATEST, [(Outcome.MISSED, 1), (Outcome.MISSED, 4), (Outcome.CAUGHT_UP, 1)]),
            (Misfire.ALL, [(Outcome.CAUGHT_UP, 1)] * 6),
        ],
    )
    def test_missed_with_the_others_it_stays_taken_back(
        self,
        world: World,
        schedule: Schedule,
        armed: Execution,
        misfire: Misfire,
        expected: list[tuple[Outcome, int]],
    ) -> None:
        self.often(world, schedule, misfire)
        world.now_ms = armed.due_ms + 10_500
        made = world.fire(world.stored(schedule))
        assert armed.id not in [each.id for each in made]
        assert self.audited(world, schedule) == [(Outcome.FIRED, 1), *expected]

    def test_the_latest_of_those_that_have_no_row_is_made_up_for(
        self, world: World, schedule: Schedule, armed: Execution
    ) -> None:
        self.often(world, schedule, Misfire.LATEST)
        world.now_ms = armed.due_ms + 5_500
        (made,) = world.fire(world.stored(schedule))
        assert made.nominal_ms == armed.due_ms - 1_000
        assert self.audited(world, schedule) == [(Outcome.FIRED, 1), (Outcome.CAUGHT_UP, 1)]


class TestChangesUnderJitter:
    """An instant has passed, and is due only later."""

    HOUR_MS = 3_600_000

    @pytest.fixture
    def schedule(self, world: World) -> Schedule:
        world.calendar(dates=("2020-01-01",))
        made = world.schedule(
            every=((self.HOUR_MS, 0),),
            jitter_ms=self.HOUR_MS // 2,
            calendars=(recurrence.Pin("holidays"),),
        )
        world.now_ms = (made.next_ms + made.due_ms) // 2
        assert made.next_ms < world.now_ms < made.due_ms - 2_000
        return made

    def test_a_change_keeps_it(self, world: World, schedule: Schedule) -> None:
        change(world, schedule)
        world.change_calendar(dates=("2020-01-02",))
        assert world.stored(schedule).due_ms == schedule.due_ms
        (execution,) = fire_when_due(world, schedule)
        assert (execution.nominal_ms, execution.due_ms) == (schedule.next_ms, schedule.due_ms)
        assert execution.payload == b"changed"
        assert world.stored(schedule).next_ms == schedule.next_ms + self.HOUR_MS
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1)]

    def test_armed_already_it_is_taken_back_and_fires_as_changed(
        self, world: World, schedule: Schedule
    ) -> None:
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule, None)
        change(world, schedule)
        (again,) = fire_when_due(world, schedule)
        assert (again.id, again.payload) == (armed.id, b"changed")
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1)]

    def test_it_fires_after_a_pause_that_is_over_in_time(
        self, world: World, schedule: Schedule
    ) -> None:
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        change(world, schedule)
        assert world.stored(schedule).due_ms == 0
        world.now_ms = schedule.due_ms - 1
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        assert world.stored(schedule).due_ms == schedule.due_ms
        assert fire_when_due(world, schedule)
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1)]

    def test_it_is_told_when_it_was_due_in_the_pause(
        self, world: World, schedule: Schedule
    ) -> None:
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        change(world, schedule)
        world.now_ms = schedule.due_ms
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        assert world.stored(schedule).next_ms == schedule.next_ms + self.HOUR_MS
        assert outcomes(world, schedule) == [(Outcome.PAUSED, 1)]

    @pytest.mark.parametrize("jitter", [0, 1])
    def test_a_change_by_which_it_is_due_no_more_misses_it(
        self, world: World, schedule: Schedule, jitter: int
    ) -> None:
        change(world, schedule, replace(schedule.spec, jitter_ms=jitter))
        assert world.stored(schedule).next_ms == schedule.next_ms + self.HOUR_MS
        assert outcomes(world, schedule) == [(Outcome.MISSED, 1)]

    def test_one_before_the_schedule_was_there_is_none_of_it(self, world: World) -> None:
        world.now_ms += 1
        schedule = world.schedule(every=((self.HOUR_MS, 0),), jitter_ms=self.HOUR_MS - 1)
        change(world, schedule)
        assert world.stored(schedule).next_ms == schedule.next_ms

    def test_the_only_one_is_kept(self, world: World) -> None:
        schedule = world.schedule(at_ms=(world.now_ms + 1_000,), jitter_ms=self.HOUR_MS)
        world.now_ms = schedule.due_ms - 2_000
        change(world, schedule)
        assert fire_when_due(world, schedule)

    def test_an_older_version_missed_it(self, older: World) -> None:
        schedule = older.schedule(every=((self.HOUR_MS, 0),), jitter_ms=self.HOUR_MS // 2)
        older.now_ms = schedule.due_ms - 2_000
        change(older, schedule)
        assert outcomes(older, schedule) == [(Outcome.MISSED, 1)]


class TestChangesOfWhatIsDue:
    """An instant is due, and nobody has decided it yet."""

    LATE_MS = 1_000

    @pytest.fixture
    def schedule(self, world: World) -> Schedule:
        world.calendar(dates=("2020-01-01",))
        made = world.schedule(every=((PERIOD_MS, 0),), calendars=(recurrence.Pin("holidays"),))
        world.now_ms = made.due_ms + self.LATE_MS
        return made

    def test_it_fires_all_the_same(self, world: World, schedule: Schedule) -> None:
        change(world, schedule)
        world.change_calendar(dates=("2020-01-02",))
        (execution,) = fire_when_due(world, schedule)
        assert (execution.due_ms, execution.payload) == (schedule.due_ms, b"changed")
        assert world.stored(schedule).next_ms == schedule.due_ms + PERIOD_MS
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1)]

    def test_missed_it_is_not_made_up_for(self, world: World, schedule: Schedule) -> None:
        world.now_ms = schedule.due_ms + MISFIRE_GRACE_MS + 1
        change(world, schedule)
        assert outcomes(world, schedule) == [(Outcome.MISSED, 1)]

    def test_no_instant_that_the_change_brings_fires_late(
        self, world: World, schedule: Schedule
    ) -> None:
        change(world, schedule, replace(schedule.spec, every=((self.LATE_MS, 0),)))
        assert world.stored(schedule).next_ms > world.now_ms
        assert outcomes(world, schedule) == [(Outcome.MISSED, 1)]

    def test_due_in_a_pause_it_does_not_fire(self, world: World, schedule: Schedule) -> None:
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        change(world, schedule)
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        assert outcomes(world, schedule) == [(Outcome.PAUSED, 1)]
        assert world.stored(schedule).next_ms > world.now_ms

    def test_the_only_one_is_kept(self, world: World) -> None:
        schedule = world.schedule(at_ms=(world.now_ms + 1_000,))
        world.now_ms = schedule.due_ms + 1
        change(world, schedule)
        assert fire_when_due(world, schedule)

    def test_an_older_version_missed_it(self, older: World) -> None:
        schedule = older.schedule()
        older.now_ms = schedule.due_ms + 1
        change(older, schedule)
        assert outcomes(older, schedule) == [(Outcome.MISSED, 1)]


class TestRetries:
    @pytest.fixture
    def made(self, world: World) -> Execution:
        """An execution whose job is tried three times."""
        retry = Retry(max_attempts=3, backoff_ms=1_000, backoff_max_ms=1_500)
        world.job("stubborn", spec=replace(SPEC, retry=retry))
        (made,) = world.execute("stubborn")
        return made

    def test_a_failure_waits_and_is_tried_again(self, world: World, made: Execution) -> None:
        waits = []
        for _ in range(2):
            waiting = end(world, made, Reason.EXIT_CODE, 1)
            assert waiting.state is ExecutionState.PENDING
            waits.append(waiting.not_before_ms - world.now_ms)
            world.now_ms = waiting.not_before_ms
            world.do(commands.Assign([(made.job_uid, made.id, HERE)]))
        assert 750 <= waits[0] <= 1_000
        assert 1_125 <= waits[1] <= 1_500
        failed = end(world, made, Reason.EXIT_CODE, 1)
        assert (failed.state, len(failed.attempts)) == (ExecutionState.FAILED, 3)

    def test_a_cancelled_one_is_not_tried_again(self, world: World, made: Execution) -> None:
        world.do(commands.Cancel([(made.job_uid, made.id)]))
        assert end(world, made, Reason.EXIT_CODE, 143).state is ExecutionState.FAILED

    def test_an_image_that_is_not_there_is_not_tried_again(
        self, world: World, made: Execution
    ) -> None:
        assert end(world, made, Reason.IMAGE_NOT_FOUND).state is ExecutionState.FAILED

    def test_only_the_named_exit_codes_are_worth_it(self, world: World) -> None:
        retry = Retry(max_attempts=2, exit_codes=(75,))
        world.job("picky", spec=replace(SPEC, retry=retry))
        (first,) = world.execute("picky")
        assert end(world, first, Reason.EXIT_CODE, 1).state is ExecutionState.FAILED
        (second,) = world.execute("picky")
        assert end(world, second, Reason.EXIT_CODE, 75).state is ExecutionState.PENDING

    def test_at_most_once_is_tried_again_only_if_it_never_started(self, world: World) -> None:
        spec = replace(SPEC, retry=Retry(max_attempts=2), at_most_once=True)
        world.job("once", spec=spec)
        for reason, started, state in (
            (Reason.EXIT_CODE, True, ExecutionState.FAILED),
            (Reason.EXECUTOR_LOST, False, ExecutionState.FAILED),
            (Reason.INFRASTRUCTURE, False, ExecutionState.PENDING),
        ):
            (made,) = world.execute("once")
            assert end(world, made, reason, started=started).state is state

    def test_the_total_timeout_begins_with_the_due_time_or_later(self, world: World) -> None:
        spec = replace(SPEC, total_timeout_ms=5_000)
        schedule = world.schedule(policy=Policy(overlap=Overlap.QUEUE))
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        assert total_timeout_over_ms(armed, spec) == armed.due_ms + 5_000
        assert total_timeout_over_ms(armed, SPEC) == 0
        fire_when_due(world, schedule)
        world.now_ms += 6_000
        end(world, armed)
        (queued,) = world.queries.active()
        assert total_timeout_over_ms(queued, spec) == world.now_ms + 5_000
        end(world, queued)
        world.now_ms += 60_000
        (caught_up,) = world.fire(world.stored(schedule))
        assert caught_up.due_ms < world.now_ms - 5_000
        assert total_timeout_over_ms(caught_up, spec) == world.now_ms + 5_000

    def test_the_total_timeout_is_told_as_such(self, world: World, made: Execution) -> None:
        world.do(commands.Cancel([(made.job_uid, made.id)], Reason.TIMEOUT))
        ended = end(world, made, Reason.CANCELLED)
        assert (ended.state, ended.reason) == (ExecutionState.FAILED, Reason.TIMEOUT)
        assert "total timeout" in ended.message


class TestTriggersAndBackfills:
    def test_a_trigger_is_an_execution_besides_the_instants(self, world: World) -> None:
        schedule = world.schedule(policy=Policy(overlap=Overlap.SKIP))
        command = commands.TriggerSchedule(
            "acme", "hello", "often", world.next_uid(), HERE, b"request"
        )
        (made,) = world.do(command)  # type: ignore[misc]
        assert (made.schedule_id, made.payload) == ("often", b"payload")
        assert world.do(command) == [made]
        assert outcomes(world, schedule) == []

    def backfill(self, world: World, start_ms: int, end_ms: int) -> object:
        command = commands.BackfillSchedule(
            "acme", "hello", "often", start_ms, end_ms, world.next_uid(), b"again"
        )
        return world.do(command)

    def test_a_backfill_fires_each_instant_of_its_range(self, world: World) -> None:
        schedule = world.schedule()
        start_ms = schedule.next_ms - 10 * PERIOD_MS
        made = self.backfill(world, start_ms, start_ms + 3 * PERIOD_MS)
        assert isinstance(made, list)
        assert [e.nominal_ms for e in made] == [start_ms + n * PERIOD_MS for n in range(3)]
        assert {e.due_ms for e in made} == {world.now_ms}
        assert self.backfill(world, start_ms, start_ms + 3 * PERIOD_MS) == made

    def test_one_that_is_too_large_changes_nothing(self, world: World) -> None:
        schedule = world.schedule()
        before = world.rows(schedule.uid, 0, 10)
        outcome = self.backfill(world, 0, world.now_ms)
        assert isinstance(outcome, Refused) and outcome.why is Why.TOO_MANY
        assert list(world.queries.active()) == []
        assert world.rows(schedule.uid, 0, 10) == before


class TestActiveKeys:
    def execute(self, world: World, key: bytes) -> Execution:
        new = commands.NewExecution("hello", world.next_uid(), b"", HERE, key)
        (made,) = world.do(commands.ExecuteJobs("acme", [new], b""))  # type: ignore[misc]
        assert isinstance(made, Execution)
        return made

    def test_a_key_has_one_execution_while_that_is_active(self, world: World) -> None:
        first = self.execute(world, b"key")
        assert self.execute(world, b"key").id == first.id
        assert self.execute(world, b"other").id != first.id
        end(world, first)
        assert self.execute(world, b"key").id != first.id


class TestSkips:
    def test_a_time_that_does_not_exist_is_in_the_ledger(self, world: World) -> None:
        # 28 March 2027: clocks in Berlin go forward from 02:00 to 03:00.
        world.now_ms = 1_806_120_000_000  # 2027-03-26T...
        new = recurrence.Spec(crons=("30 2 * * *",), zone="Europe/Berlin", gap=recurrence.Gap.SKIP)
        command = commands.NewSchedule("often", world.next_uid(), (), new, Policy(), b"")
        (schedule,) = world.do(  # type: ignore[misc]
            commands.CreateSchedules("acme", "hello", [command], b"")
        )
        assert isinstance(schedule, Schedule)
        for _ in range(4):
            fire_when_due(world, schedule)
        assert [outcome for outcome, _ in outcomes(world, schedule)].count(Outcome.CLOCK) == 1

    def test_excluded_days_are_in_the_ledger_as_runs(self, world: World) -> None:
        schedule = world.schedule(every=((3_600_000, 0),), excluded_dates=("01-16",))
        for _ in range(20):
            fire_when_due(world, schedule)
        assert (Outcome.EXCLUDED, 24) in outcomes(world, schedule)

    HOUR_MS = 3_600_000

    def excluding(self, world: World, first: int, end: int) -> Schedule:
        """Hourly, but not in some of the hours to come."""
        window = (world.now_ms + first * self.HOUR_MS, world.now_ms + end * self.HOUR_MS)
        return world.schedule(every=((self.HOUR_MS, 0),), excluded_windows=(window,))

    def test_they_are_told_once_however_often_the_schedule_is_changed(self, world: World) -> None:
        schedule = self.excluding(world, 2, 6)
        fire_when_due(world, schedule)
        for _ in range(2):
            change(world, schedule)
        world.now_ms += 2 * self.HOUR_MS
        change(world, schedule)
        fire_when_due(world, schedule)
        assert outcomes(world, schedule) == [
            (Outcome.FIRED, 1),
            (Outcome.EXCLUDED, 2),
            (Outcome.EXCLUDED, 2),
            (Outcome.FIRED, 1),
        ]

    def test_what_is_left_out_no_more_before_it_comes_fires_only(self, world: World) -> None:
        schedule = self.excluding(world, 2, 6)
        fire_when_due(world, schedule)
        change(world, schedule, replace(schedule.spec, excluded_windows=()))
        fire_when_due(world, schedule)
        assert outcomes(world, schedule) == [(Outcome.FIRED, 1), (Outcome.FIRED, 1)]

    def test_what_was_armed_has_its_row_already(self, world: World) -> None:
        schedule = world.schedule(every=((PERIOD_MS, 0),))
        world.now_ms = schedule.due_ms - 2_000
        world.fire(schedule)
        window = (world.now_ms, schedule.due_ms + PERIOD_MS + 1)
        change(world, schedule, replace(schedule.spec, excluded_windows=(window,)))
        fire_when_due(world, schedule)
        assert outcomes(world, schedule) == [
            (Outcome.FIRED, 1),
            (Outcome.EXCLUDED, 1),
            (Outcome.FIRED, 1),
        ]

    def test_they_are_told_after_an_absence_and_after_a_pause(self, world: World) -> None:
        schedule = self.excluding(world, 2, 6)
        world.now_ms += 8 * self.HOUR_MS + 60_000
        world.fire(world.stored(schedule))
        assert outcomes(world, schedule) == [
            (Outcome.MISSED, 3),
            (Outcome.EXCLUDED, 4),
            (Outcome.CAUGHT_UP, 1),
        ]
        paused = world.stored(schedule)
        window = (paused.next_ms + self.HOUR_MS, paused.next_ms + 3 * self.HOUR_MS)
        change(world, schedule, replace(paused.spec, excluded_windows=(window,)))
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        world.now_ms = window[1]
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        assert outcomes(world, schedule)[3:] == [(Outcome.EXCLUDED, 2), (Outcome.PAUSED, 2)]

    def test_an_older_version_told_them_ahead(self, older: World) -> None:
        schedule = self.excluding(older, 2, 6)
        fire_when_due(older, schedule)
        assert outcomes(older, schedule) == [(Outcome.FIRED, 1), (Outcome.EXCLUDED, 4)]
        older.version = INSTANTS_SINCE
        change(older, schedule)
        fire_when_due(older, schedule)
        told = [(Outcome.FIRED, 1), (Outcome.EXCLUDED, 4), (Outcome.FIRED, 1)]
        assert outcomes(older, schedule) == told, "not again"
