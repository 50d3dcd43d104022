"""What a shard decides: jobs, schedules, fires, executions."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.scheduler.worlds import HERE, SPEC, START_MS, World
from tickmesh.scheduler.core import commands, executions, recurrence
from tickmesh.scheduler.core.commands import Placement, Refused, Why
from tickmesh.scheduler.core.history import PERIOD_MS, period
from tickmesh.scheduler.core.model import (
    Attempt,
    Execution,
    ExecutionState,
    Policy,
    Reason,
    ScheduleState,
)
from tickmesh.scheduler.store import keys


@pytest.fixture
def world() -> World:
    made = World()
    made.job()
    return made


def refused(outcome: object) -> Why:
    assert isinstance(outcome, Refused), outcome
    return outcome.why


def end(
    world: World, execution: Execution, reason: Reason = Reason.NONE, exit_code: int = 0
) -> Execution:
    ended = Attempt(
        number=len(world.execution(execution).attempts),
        executor="whoever",
        incarnation="whatever",
        assign_ms=0,
        started_ns=world.now_ms * 1_000_000,
        ended_ns=world.now_ms * 1_000_000 + 5,
        exit_code=exit_code,
        reason=reason,
    )
    world.do(commands.EndAttempts([(execution.job_uid, execution.id, ended)]))
    return world.execution(execution)


def update(world: World, payload: bytes) -> None:
    """Change the payload of the schedule that World.schedule makes, and nothing else."""
    spec = world.new_schedule("unused").spec
    command = commands.UpdateSchedule("acme", "hello", "often", 0, (), spec, Policy(), payload)
    world.do(command)


class TestJobs:
    def test_a_taken_id_is_refused_and_nothing_changes(self, world: World) -> None:
        before = world.everything()
        new = commands.NewJob("hello", world.next_uid(), "other", (), SPEC)
        assert refused(world.do(commands.CreateJobs("acme", [new], b""))) is Why.ALREADY_EXISTS
        after = world.everything()
        assert {k: v for k, v in after.items() if k != b"m"} == {
            k: v for k, v in before.items() if k != b"m"
        }

    def test_the_same_request_answers_the_same_job(self, world: World) -> None:
        first = world.job("again", request=b"r")
        second = world.job("again", request=b"r")
        assert first == second

    def test_one_bad_item_refuses_the_whole_batch(self, world: World) -> None:
        new = [commands.NewJob(i, world.next_uid(), "", (), SPEC) for i in ("fresh", "hello")]
        outcome = world.do(commands.CreateJobs("acme", new, b""))
        assert refused(outcome) is Why.ALREADY_EXISTS
        assert isinstance(outcome, Refused) and outcome.index == 1
        assert world.queries.job("acme", "fresh") is None

    def test_a_new_spec_makes_a_revision_and_keeps_the_old_one(self, world: World) -> None:
        job = world.queries.job("acme", "hello")
        assert job is not None
        new = replace(SPEC, image="other")
        world.do(commands.UpdateJob("acme", "hello", 1, "", (), new))
        changed = world.queries.job("acme", "hello")
        assert changed is not None
        assert (changed.revision, changed.version) == (2, 2)
        assert world.queries.spec(changed, job.uid, 1) == SPEC
        assert world.queries.spec(changed, job.uid, 2) == new

    def test_labels_alone_make_no_revision(self, world: World) -> None:
        world.do(commands.UpdateJob("acme", "hello", 0, "", (("a", "b"),), SPEC))
        job = world.queries.job("acme", "hello")
        assert job is not None and (job.revision, job.version) == (1, 2)

    def test_a_stale_version_is_refused(self, world: World) -> None:
        command = commands.UpdateJob("acme", "hello", 7, "", (), SPEC)
        assert refused(world.do(command)) is Why.VERSION_MISMATCH

    def test_a_job_with_schedules_is_not_deleted(self, world: World) -> None:
        world.schedule()
        assert refused(world.do(commands.DeleteJob("acme", "hello", 0))) is Why.HAS_SCHEDULES
        world.do(commands.DeleteSchedules("acme", "hello", ["often"], 0, False))
        world.do(commands.DeleteJob("acme", "hello", 0))
        assert world.queries.job("acme", "hello") is None

    def test_another_customer_does_not_see_it(self, world: World) -> None:
        assert refused(world.do(commands.DeleteJob("rival", "hello", 0))) is Why.NOT_FOUND


class TestSchedules:
    def test_it_has_one_timer_at_its_next_instant(self, world: World) -> None:
        schedule = world.schedule(every=((10_000, 3_000),))
        assert schedule.next_ms == START_MS + 3_000
        assert [t.due_ms for t in world.timers()] == [START_MS + 3_000]

    def test_one_that_never_fires_is_refused(self, world: World) -> None:
        new = world.new_schedule("late", at_ms=(START_MS - 1,))
        command = commands.CreateSchedules("acme", "hello", [new], b"")
        assert refused(world.do(command)) is Why.NEVER_FIRES
        assert world.timers() == []

    def test_a_batch_stores_what_its_schedules_store_one_by_one(self) -> None:
        specs: list[dict[str, Any]] = [
            {"crons": ("0 3 * * *",)},
            {"crons": ("H H * * *",)},
            {"every": ((60_000, 0),), "jitter_ms": 30_000},
            {"crons": ("30 2 * * *",), "zone": "Europe/Berlin", "gap": recurrence.Gap.SKIP},
            {"crons": ("0 3 * * *",), "excluded_windows": ((START_MS, START_MS + 86_400_000),)},
            {"crons": ("0 3 * * *",), "calendars": (recurrence.Pin("holidays"),)},
        ]
        stored = []
        for together in (True, False):
            world = World()
            world.job()
            world.calendar(dates=("2027-01-16",))
            new = [
                world.new_schedule(f"s{number}", **spec) for number, spec in enumerate(specs * 2)
            ]
            for batch in [new] if together else [[each] for each in new]:
                made = world.do(commands.CreateSchedules("acme", "hello", batch, b""))
                assert isinstance(made, list)
            pairs = world.backend.scan(b"", b"\xff")
            stored.append({key: value for key, value in pairs if key != keys.META})
        at_once, one_by_one = stored
        differing = [key for key in at_once if at_once[key] != one_by_one.get(key)]
        assert at_once.keys() == one_by_one.keys()
        assert differing == []

    def test_of_a_batch_the_one_that_never_fires_is_named(self, world: World) -> None:
        batch = [world.new_schedule(name) for name in ("a", "b")]
        batch.append(world.new_schedule("c", at_ms=(START_MS - 1,)))
        outcome = world.do(commands.CreateSchedules("acme", "hello", batch, b""))
        assert isinstance(outcome, Refused)
        assert (outcome.why, outcome.what, outcome.index) == (Why.NEVER_FIRES, "c", 2)

    def test_a_schedule_of_no_job_is_refused(self, world: World) -> None:
        command = commands.CreateSchedules("acme", "nobody", [world.new_schedule("s")], b"")
        assert refused(world.do(command)) is Why.NOT_FOUND

    def test_pausing_takes_back_what_is_armed_and_not_due(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        assert armed.state is ExecutionState.ASSIGNED
        world.do(commands.PauseSchedule("acme", "hello", "often", "maintenance"))
        assert world.execution(armed).stop is Reason.REVOKED
        assert world.timers() == []
        assert end(world, armed, Reason.REVOKED).state is ExecutionState.REVOKED

    def test_a_start_that_won_against_the_revocation_is_recorded_as_a_run(
        self, world: World
    ) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        assert end(world, armed).state is ExecutionState.SUCCEEDED

    def test_an_armed_fire_that_waits_for_an_executor_is_revoked_at_once(
        self, world: World
    ) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule, placement=None)
        world.do(commands.DeleteSchedules("acme", "hello", ["often"], 0, False))
        assert world.execution(armed).state is ExecutionState.REVOKED

    def test_an_instant_armed_before_a_change_and_after_it_has_one_execution_with_two_attempts(
        self, world: World
    ) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        update(world, payload=b"new")
        changed = world.stored(schedule)
        assert changed.due_ms == schedule.due_ms
        (again,) = world.fire(changed)
        assert again.id == armed.id
        # The first attempt may have started in spite of the revocation: nothing is given out yet.
        assert (again.state, again.stop) == (ExecutionState.ASSIGNED, Reason.REVOKED)
        assert len(again.attempts) == 1
        waiting = end(world, armed, Reason.REVOKED)
        assert (waiting.state, waiting.payload) == (ExecutionState.PENDING, b"new")
        world.do(commands.Assign([(waiting.job_uid, waiting.id, HERE)]))
        assert [a.number for a in world.execution(armed).attempts] == [1, 2]
        assert world.stored(schedule).fire_count == 1

    def test_a_start_that_won_is_not_followed_by_another(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        update(world, payload=b"new")
        world.fire(world.stored(schedule))
        assert end(world, armed).state is ExecutionState.SUCCEEDED

    def test_a_pause_after_a_change_leaves_the_instant_revoked(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        update(world, payload=b"new")
        world.fire(world.stored(schedule))
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        assert end(world, armed, Reason.REVOKED).state is ExecutionState.REVOKED

    def test_a_fire_revoked_for_good_runs_after_all_when_its_schedule_is_resumed_in_time(
        self, world: World
    ) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        end(world, armed, Reason.REVOKED)
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        (again,) = world.fire(world.stored(schedule))
        assert again.id == armed.id
        assert [a.number for a in again.attempts] == [1, 2]
        assert again.end_ms == 0

    def test_an_instant_that_was_cancelled_stays_so(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        world.do(commands.Cancel([(armed.job_uid, armed.id)]))
        end(world, armed, Reason.CANCELLED)
        update(world, payload=b"new")
        assert world.fire(world.stored(schedule)) == []
        assert world.execution(armed).state is ExecutionState.CANCELLED

    def test_what_is_cancelled_while_it_is_taken_back_does_not_come_up_again(
        self, world: World
    ) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        world.do(commands.Cancel([(armed.job_uid, armed.id)]))
        # Its executor had heard of the pause already.
        ended = end(world, armed, Reason.REVOKED)
        assert (ended.state, ended.reason) == (ExecutionState.CANCELLED, Reason.CANCELLED)
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        assert world.fire(world.stored(schedule)) == []

    def test_an_older_entry_still_takes_back_what_was_cancelled_meanwhile(self) -> None:
        world = World()
        world.version = commands.OUTWEIGHED_SINCE - 1
        world.job()
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        world.do(commands.Cancel([(armed.job_uid, armed.id)]))
        assert end(world, armed, Reason.REVOKED).state is ExecutionState.REVOKED

    def test_a_fire_that_is_due_is_not_taken_back(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms
        (due,) = world.fire(schedule)
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        assert world.execution(due).stop is Reason.NONE

    def test_resuming_goes_on_from_now(self, world: World) -> None:
        schedule = world.schedule()
        world.do(commands.PauseSchedule("acme", "hello", "often", ""))
        world.now_ms += 3_600_500
        world.do(commands.ResumeSchedule("acme", "hello", "often"))
        resumed = world.stored(schedule)
        assert resumed.state is ScheduleState.ACTIVE
        assert resumed.next_ms == START_MS + 3_610_000
        assert resumed.missed_count == 0

    def test_resuming_what_is_not_paused_is_refused(self, world: World) -> None:
        world.schedule()
        assert refused(world.do(commands.ResumeSchedule("acme", "hello", "often"))) is (
            Why.NOT_PAUSED
        )

    def test_a_once_only_schedule_is_finished_after_its_fire(self, world: World) -> None:
        schedule = world.schedule(at_ms=(START_MS + 5_000,))
        world.now_ms = schedule.due_ms - 1_000
        world.fire(schedule)
        done = world.stored(schedule)
        assert done.state is ScheduleState.FINISHED
        assert (done.due_ms, done.fire_count) == (0, 1)
        assert world.timers() == []

    def test_creating_counts_and_deleting_uncounts(self, world: World) -> None:
        world.schedule("a")
        world.schedule("b")
        assert world.state.meta.schedule_count == 2
        world.do(commands.DeleteSchedules("acme", "hello", ["a"], 0, False))
        assert world.state.meta.schedule_count == 1


class TestFires:
    def test_an_instant_fires_once_however_often_its_timer_comes_up(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        assert len(world.fire(schedule)) == 1
        assert world.fire(schedule) == []

    def test_the_next_timer_is_the_next_instant(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (fired,) = world.fire(schedule)
        assert fired.due_ms == START_MS + 10_000
        assert [t.due_ms for t in world.timers()] == [START_MS + 20_000]

    def test_of_missed_instants_the_latest_fires_and_says_for_how_many(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = START_MS + 65_000
        (fired,) = world.fire(schedule)
        assert fired.due_ms == START_MS + 60_000
        assert fired.missed == 5
        after = world.stored(schedule)
        assert (after.fire_count, after.missed_count) == (1, 5)
        assert after.next_ms == START_MS + 70_000

    def test_a_fire_that_is_only_late_keeps_its_instant(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms + 9_999
        (fired,) = world.fire(schedule)
        assert (fired.due_ms, fired.missed) == (START_MS + 10_000, 0)

    def test_the_timer_of_a_deleted_schedule_is_stale(self, world: World) -> None:
        schedule = world.schedule()
        world.do(commands.DeleteSchedules("acme", "hello", ["often"], 0, False))
        assert world.fire(schedule) == []

    def test_a_new_timer_below_the_floor_lowers_it(self, world: World) -> None:
        world.do(commands.Fire([], START_MS + 50_000))
        assert world.state.meta.floor_ms == START_MS + 50_000
        world.schedule()
        assert world.state.meta.floor_ms == START_MS + 10_000


class TestExecutions:
    def test_the_same_request_executes_once(self, world: World) -> None:
        first = world.execute(request=b"r", count=2)
        second = world.execute(request=b"r", count=2)
        assert first == second
        assert world.state.meta.active_count == 2

    def test_the_first_end_stands(self, world: World) -> None:
        (execution,) = world.execute()
        assert end(world, execution, exit_code=0).state is ExecutionState.SUCCEEDED
        again = end(world, execution, Reason.EXECUTOR_LOST)
        assert again.state is ExecutionState.SUCCEEDED

    def test_an_end_keeps_who_ran_it(self, world: World) -> None:
        (execution,) = world.execute()
        assert end(world, execution).attempts[0].executor == HERE.executor

    def test_cancelling_what_waits_ends_it(self, world: World) -> None:
        new = commands.NewExecution("hello", world.next_uid(), b"", None)
        (execution,) = world.do(commands.ExecuteJobs("acme", [new], b""))  # type: ignore[misc]
        world.do(commands.Cancel([(execution.job_uid, execution.id)]))
        assert world.execution(execution).state is ExecutionState.CANCELLED

    def test_cancelling_what_is_assigned_asks_for_it(self, world: World) -> None:
        (execution,) = world.execute()
        world.do(commands.Cancel([(execution.job_uid, execution.id)]))
        asked = world.execution(execution)
        assert (asked.state, asked.stop) == (ExecutionState.ASSIGNED, Reason.CANCELLED)
        assert end(world, execution, Reason.CANCELLED).state is ExecutionState.CANCELLED

    def test_cancelling_what_has_ended_changes_nothing(self, world: World) -> None:
        (execution,) = world.execute()
        before = end(world, execution)
        world.do(commands.Cancel([(execution.job_uid, execution.id)]))
        assert world.execution(execution) == before

    def test_what_waits_is_assigned_once(self, world: World) -> None:
        new = commands.NewExecution("hello", world.next_uid(), b"", None)
        (execution,) = world.do(commands.ExecuteJobs("acme", [new], b""))  # type: ignore[misc]
        command = commands.Assign([(execution.job_uid, execution.id, HERE)])
        world.do(command)
        world.do(command)
        assert len(world.execution(execution).attempts) == 1

    def test_when_its_period_is_dropped_nothing_is_left_of_it(self, world: World) -> None:
        world.do(commands.DropHistory(1))
        before = set(world.everything())
        (execution,) = world.execute(request=b"r")
        end(world, execution)
        world.do(commands.DropHistory(period(world.now_ms) + 1))
        assert set(world.everything()) == before

    def test_a_period_is_kept_while_something_that_was_due_in_it_is_active(
        self, world: World
    ) -> None:
        (execution,) = world.execute()
        world.now_ms += 5 * PERIOD_MS
        assert world.do(commands.DropHistory(period(world.now_ms))) == []
        assert world.execution(execution).state is ExecutionState.ASSIGNED
        end(world, execution)
        assert world.do(commands.DropHistory(period(world.now_ms))) == [period(world.now_ms)]
        assert world.queries.execution(execution.job_uid, execution.id) is None

    def test_listings_go_on_from_one_period_to_the_next(self, world: World) -> None:
        made = []
        for _ in range(4):
            made += world.execute()
            world.now_ms += PERIOD_MS // 2
        job = world.queries.job("acme", "hello")
        assert job is not None
        for owner in (job.uid, None):
            seen: list[bytes] = []
            after = b""
            while True:
                page, after = world.queries.executions("acme", owner, after, 1, lambda _: True, 9)
                seen += [each.id for each in page]
                if not after:
                    break
            assert seen == [each.id for each in reversed(made)]

    def test_active_executions_are_those_that_have_not_ended(self, world: World) -> None:
        first, second = world.execute(count=2)
        end(world, first)
        assert [e.id for e in world.queries.active()] == [second.id]

    def test_listing_is_newest_first(self, world: World) -> None:
        made = []
        for _ in range(3):
            made += world.execute()
            world.now_ms += 1_000
        job = world.queries.job("acme", "hello")
        assert job is not None
        for owner in (job.uid, None):
            found, following = world.queries.executions("acme", owner, b"", 2, lambda _: True, 100)
            assert [e.id for e in found] == [made[2].id, made[1].id]
            rest, end_ = world.queries.executions("acme", owner, following, 2, lambda _: True, 9)
            assert [e.id for e in rest] == [made[0].id]
            assert end_ == b""


def test_time_never_runs_backwards_in_the_log(world: World) -> None:
    schedule = world.schedule()
    world.now_ms = START_MS + 30_000
    world.do(commands.Fire([], 0))
    world.now_ms = START_MS
    (fired,) = world.fire(schedule)
    assert fired.create_ms == START_MS + 30_000


class TestReturned:
    """What an executor gave back before it started."""

    def test_it_waits_for_another_executor_and_counts_as_no_try(self, world: World) -> None:
        (execution,) = world.execute()
        waiting = end(world, execution, Reason.RETURNED)
        assert waiting.state is ExecutionState.PENDING
        assert waiting.not_before_ms == world.now_ms + executions.RETURN_WAIT_MS
        world.do(commands.Assign([(waiting.job_uid, waiting.id, HERE)]))
        assert [a.number for a in world.execution(waiting).attempts] == [1, 2]
        # SPEC allows one attempt: that was no try, this one is.
        assert end(world, waiting, Reason.INFRASTRUCTURE).state is ExecutionState.FAILED

    def test_at_most_once_waits_too_as_nothing_has_started(self, world: World) -> None:
        world.job("once", spec=replace(SPEC, at_most_once=True))
        (execution,) = world.execute("once")
        assert end(world, execution, Reason.RETURNED).state is ExecutionState.PENDING

    def test_it_is_not_passed_round_for_ever(self, world: World) -> None:
        (execution,) = world.execute()
        waited_ms = []
        while True:
            execution = end(world, execution, Reason.RETURNED)
            if execution.state is not ExecutionState.PENDING:
                break
            waited_ms.append(execution.not_before_ms - world.now_ms)
            world.do(commands.Assign([(execution.job_uid, execution.id, HERE)]))
        assert (execution.state, execution.reason) == (
            ExecutionState.FAILED,
            Reason.INFRASTRUCTURE,
        )
        assert "gave it back 40 times" in execution.message
        assert len(waited_ms) == executions.RETURNS_MAX - 1
        assert waited_ms == sorted(waited_ms) and waited_ms[-1] == executions.RETURN_WAIT_MS_MAX

    def test_what_was_cancelled_meanwhile_does_not_wait(self, world: World) -> None:
        (execution,) = world.execute()
        world.do(commands.Cancel([(execution.job_uid, execution.id)]))
        ended = end(world, execution, Reason.RETURNED)
        assert (ended.state, ended.reason) == (ExecutionState.CANCELLED, Reason.CANCELLED)

    def test_what_was_revoked_and_comes_up_anew_waits_as_new(self, world: World) -> None:
        schedule = world.schedule()
        world.now_ms = schedule.due_ms - 2_000
        (armed,) = world.fire(schedule)
        update(world, payload=b"new")
        world.fire(world.stored(schedule))
        waiting = end(world, armed, Reason.RETURNED)
        assert (waiting.state, waiting.payload) == (ExecutionState.PENDING, b"new")

    def test_a_place_that_was_chosen_for_an_older_revision_is_not_taken(self, world: World) -> None:
        world.job("moves")
        old = Placement("executor-0", "first", revision=1)
        spec = replace(SPEC, executor_labels=(("region", "eu"),))
        world.do(commands.UpdateJob("acme", "moves", 0, "", (), spec))
        new = [commands.NewExecution("moves", world.next_uid(), b"", old)]
        made: Any = world.do(commands.ExecuteJobs("acme", new, b""))
        assert made[0].state is ExecutionState.PENDING
        fits = replace(old, revision=2)
        new = [commands.NewExecution("moves", world.next_uid(), b"", fits)]
        made = world.do(commands.ExecuteJobs("acme", new, b""))
        assert made[0].state is ExecutionState.ASSIGNED
