"""What becomes of instants, and how customers learn of it, in a mesh of processes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from tickmesh import sdk
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.sdk import (
    AsyncClient,
    ExecutionReason,
    ExecutionState,
    FireOutcome,
    OverlapPolicy,
    ScheduleState,
)

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

WAIT_S = 30.0
"""For what takes two seconds on a machine that has nothing else to do."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncClient]:
    options = LocalOptions(replicas=1, executors=1, runtime="inprocess")
    async with (
        LocalMesh(tmp_path_factory.mktemp("mesh"), options) as mesh,
        AsyncClient(mesh.address, "acme") as client,
    ):
        await client.jobs.create("quick", image="words:1", command=("true",))
        await client.jobs.create("slow", image="words:1", command=("sleep", "600"))
        await client.jobs.create("broken", image="words:1", command=("exit", "3"))
        yield client


LOOK_EVERY_S = 0.05

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    """What a look shows once it is as wanted: for what there is no event of."""
    async with asyncio.timeout(WAIT_S):
        while not wanted(seen := await look()):  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(LOOK_EVERY_S)
        return seen


async def rows(client: AsyncClient, schedule: str) -> list[sdk.LedgerRow]:
    return [row async for row in client.schedules.fires(schedule)]


def of(outcome: FireOutcome, found: list[sdk.LedgerRow]) -> list[sdk.LedgerRow]:
    return [row for row in found if row.outcome is outcome]


async def refused(call: Awaitable[Any]) -> dict[str, str]:
    with pytest.raises(sdk.InvalidRequest) as error:
        await call
    return dict(error.value.fields)


# Overlap ------------------------------------------------------------------------------------------


async def test_instants_are_skipped_while_an_execution_goes_on(client: AsyncClient) -> None:
    made = await client.schedules.create(
        "slow", "skipping", every=1, overlap_policy=OverlapPolicy.SKIP
    )
    assert (made.overlap_policy, made.overlap_queue_max) == (OverlapPolicy.SKIP, 1)
    found = await eventually(
        lambda: rows(client, "slow/skipping"), lambda found: len(of(FireOutcome.OVERLAP, found)) > 1
    )
    (fired,) = of(FireOutcome.FIRED, found)
    await client.executions.cancel(fired.execution)
    found = await eventually(
        lambda: rows(client, "slow/skipping"), lambda found: len(of(FireOutcome.FIRED, found)) == 2
    )
    statistics = await client.schedules.statistics("slow/skipping")
    assert statistics.fired_count == 2 and statistics.skipped["OVERLAP"] >= 2
    await client.schedules.delete("slow/skipping")
    await client.executions.cancel(of(FireOutcome.FIRED, found)[1].execution)


async def test_a_later_fire_replaces_an_earlier_one(client: AsyncClient) -> None:
    await client.schedules.create(
        "slow", "replacing", every=1, overlap_policy=OverlapPolicy.REPLACE
    )
    found = await eventually(
        lambda: rows(client, "slow/replacing"), lambda found: len(of(FireOutcome.FIRED, found)) > 1
    )
    first = of(FireOutcome.FIRED, found)[0]
    replaced = await (await client.executions.handle(first.execution)).wait(deadline_s=WAIT_S)
    assert (replaced.state, replaced.reason) == (
        ExecutionState.CANCELLED,
        ExecutionReason.REPLACED,
    )
    assert replaced.schedule_time == first.first_time
    await client.schedules.delete("slow/replacing")


# Failures -----------------------------------------------------------------------------------------


async def test_what_failed_is_tried_again_until_it_succeeds(client: AsyncClient) -> None:
    retry = sdk.RetryPolicy(max_attempts=5, backoff=timedelta(milliseconds=500))
    job = await client.jobs.create(
        "stubborn", image="words:1", command=("fail", "2"), retry_policy=retry, total_timeout=3_600
    )
    assert job.retry_policy == dataclasses.replace(retry, backoff_max=timedelta(minutes=10))
    assert job.timeout == job.total_timeout == timedelta(hours=1)
    handle = await client.execute("stubborn")
    waiting = [each async for each in handle.changes() if each.next_attempt_time is not None]
    assert {each.state for each in waiting} == {ExecutionState.PENDING}
    execution = await handle.result(deadline_s=WAIT_S)
    assert [attempt.exit_code for attempt in execution.attempts] == [1, 1, 0]
    assert execution.next_attempt_time is None


async def test_an_exit_code_that_is_not_listed_is_not_tried_again(client: AsyncClient) -> None:
    retry = sdk.RetryPolicy(max_attempts=5, exit_codes=(75,))
    await client.jobs.create("choosy", image="words:1", command=("exit", "3"), retry_policy=retry)
    execution = await (await client.execute("choosy")).wait(deadline_s=WAIT_S)
    assert (execution.state, len(execution.attempts)) == (ExecutionState.FAILED, 1)


async def test_the_total_timeout_ends_what_would_go_on(client: AsyncClient) -> None:
    await client.jobs.create(
        "endless", image="words:1", command=("sleep", "600"), total_timeout=0.5, grace_period=0
    )
    execution = await (await client.execute("endless")).wait(deadline_s=WAIT_S)
    assert (execution.state, execution.reason) == (ExecutionState.FAILED, ExecutionReason.TIMEOUT)


async def test_a_schedule_is_paused_after_failures_in_a_row(client: AsyncClient) -> None:
    await client.schedules.create("broken", "tick", every=1, pause_after_failures=2)
    paused = await eventually(
        lambda: client.schedules.get("broken/tick"),
        lambda schedule: schedule.state is ScheduleState.PAUSED,
    )
    assert paused.pause_reason == "2 executions in a row have failed"
    assert (await client.schedules.statistics("broken/tick")).failed_count >= 2
    # Changed to what lets it go on, and resumed, it does.
    lenient = dataclasses.replace(paused, pause_after_failures=0)
    changed = await client.schedules.update(lenient, ["pause_after_failures"])
    assert (changed.pause_after_failures, changed.recurrence) == (0, paused.recurrence)
    with pytest.raises(sdk.EtagMismatch):
        await client.schedules.update(lenient, ["pause_after_failures"])
    await client.schedules.resume("broken/tick")
    with pytest.raises(sdk.NotPaused):
        await client.schedules.resume("broken/tick")
    await client.schedules.delete("broken/tick")


# Besides the instants -----------------------------------------------------------------------------


async def test_a_paused_schedule_is_triggered(client: AsyncClient) -> None:
    await client.schedules.create("quick", "nightly", cron="0 2 * * *", payload="x")
    await client.schedules.pause("quick/nightly")
    first = await client.schedules.trigger("quick/nightly", request_id="once")
    again = await client.schedules.trigger("quick/nightly", request_id="once")
    assert again.name == first.name
    handle = await client.executions.handle(first.name)
    assert (await handle.result(deadline_s=WAIT_S)).schedule_time is None
    listed = [each.name async for each in client.executions.list("quick", schedule="quick/nightly")]
    assert listed == [first.name]
    with pytest.raises(sdk.NotFound):
        await client.schedules.trigger("quick/nobody")


async def test_a_past_range_is_backfilled(client: AsyncClient) -> None:
    await client.schedules.create("quick", "hourly", cron="0 * * * *", excluded_dates=["01-02"])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    end = start + timedelta(days=3)
    backfill = await client.schedules.backfill("quick/hourly", start, end, request_id="once")
    assert backfill.fire_count == 48
    assert backfill == await client.schedules.backfill(
        "quick/hourly", start, end, request_id="once"
    )

    async def ended() -> list[sdk.Execution]:
        found = client.executions.list("quick", schedule="quick/hourly")
        return [each async for each in found if each.state is ExecutionState.SUCCEEDED]

    found = await eventually(ended, lambda found: len(found) == 48)
    instants = sorted(each.schedule_time for each in found if each.schedule_time)
    assert instants[0] == start and instants[-1] == start + timedelta(days=2, hours=23)
    assert start + timedelta(days=1) not in instants
    assert await client.schedules.cancel_backfill("quick/hourly", backfill.id) == 0


async def test_a_backfill_is_cancelled(client: AsyncClient) -> None:
    await client.schedules.create("slow", "hourly", cron="0 * * * *")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    backfill = await client.schedules.backfill("slow/hourly", start, start + timedelta(hours=20))
    assert await client.schedules.cancel_backfill("slow/hourly", backfill.id) == 20

    async def cancelled() -> int:
        found = client.executions.list("slow", schedule="slow/hourly")
        return sum([each.state is ExecutionState.CANCELLED async for each in found])

    assert await eventually(cancelled, lambda count: count == 20)
    assert await client.schedules.cancel_backfill("slow/hourly", backfill.id) == 0
    for other in ("0" * 20, "nonsense"):
        with pytest.raises(sdk.NotFound):
            await client.schedules.cancel_backfill("slow/hourly", other)
    # Another schedule's backfill is not this one's.
    await client.schedules.create("slow", "other", cron="0 * * * *")
    assert await client.schedules.cancel_backfill("slow/other", backfill.id) == 0


async def test_an_active_key_is_taken_until_its_execution_ends(client: AsyncClient) -> None:
    first = await client.execute("slow", active_key="one")
    second, other = await client.execute_batch(
        [
            sdk.NewExecution(job="slow", active_key="one"),
            sdk.NewExecution(job="slow", active_key="two"),
        ]
    )
    assert second.name == first.name != other.name
    assert (await first.get()).active_key == "one"
    await first.cancel()
    await first.wait(deadline_s=WAIT_S)
    third = await client.execute("slow", active_key="one")
    assert third.name != first.name
    for handle in (third, other):
        await handle.cancel()


# The ledger ---------------------------------------------------------------------------------------


async def test_every_instant_has_a_row_and_the_ledger_tells_the_truth(client: AsyncClient) -> None:
    created = await client.schedules.create("quick", "tick", every=1, max_fires=3)
    schedule = await eventually(
        lambda: client.schedules.get("quick/tick"),
        lambda schedule: schedule.state is ScheduleState.FINISHED,
    )
    assert created.recurrence.max_fires == 3
    found = await rows(client, "quick/tick")
    assert [row.number for row in found] == list(range(len(found)))
    assert found[0].outcome is FireOutcome.DEFINED and found[0].definition is not None
    assert found[0].definition.recurrence == created.recurrence
    fired = of(FireOutcome.FIRED, found)
    assert len(fired) == schedule.fire_count == 3
    for row in fired:
        execution = await (await client.executions.handle(row.execution)).result(deadline_s=WAIT_S)
        assert execution.schedule_time == row.first_time
    assert len({row.hash for row in found}) == len(found)
    newest = client.schedules.fires("quick/tick", newest_first=True, page_size=1)
    assert [row async for row in newest] == found[::-1]

    verification = await client.schedules.verify("quick/tick")
    assert (verification.problems, verification.complete) == ((), True)
    assert verification.instant_count > 0 and verification.row_count == len(found)
    before = await client.schedules.verify("quick/tick", end_time=fired[0].first_time)
    assert before.instant_count == 0
    statistics = await client.schedules.statistics("quick/tick")
    assert (statistics.fired_count, statistics.started_count, statistics.failed_count) == (3, 3, 0)
    assert statistics.lateness_p50 is not None and statistics.lateness_p99 is not None
    assert statistics.lateness_p50 <= statistics.lateness_p99
    assert (statistics.complete, statistics.missed_count, statistics.skipped) == (True, 0, {})
    for call in (client.schedules.statistics, client.schedules.verify):
        with pytest.raises(sdk.NotFound):
            await call("quick/nobody")


async def test_a_page_token_of_another_listing_is_refused(client: AsyncClient) -> None:
    from tickmesh.proto.tickmesh.v1 import schedule_pb2

    name = "customers/acme/jobs/quick/schedules/tokens"
    await client.schedules.create("quick", "tokens", cron="0 2 * * *")
    await client.schedules.pause("quick/tokens")
    call = client.schedules._stub.ListFires
    first = await call(schedule_pb2.ListFiresRequest(parent=name, page_size=1), timeout=WAIT_S)
    assert len(first.rows) == 1 and first.next_page_token
    with pytest.raises(Exception, match="another listing"):
        await call(
            schedule_pb2.ListFiresRequest(
                parent=name, page_token=first.next_page_token, newest_first=True
            ),
            timeout=WAIT_S,
        )


# What is refused ----------------------------------------------------------------------------------


async def test_a_schedule_that_fires_too_often_is_refused(client: AsyncClient) -> None:
    between = sdk.Interval(every=timedelta(seconds=1), phase=timedelta(milliseconds=500))
    told = await refused(client.schedules.create("quick", cron="* * * * * *", every=between))
    assert told == {"schedule.recurrence": "fires 120 times a minute; at most 60"}
    made = await client.schedules.create("quick", "daily", cron="@daily")
    often = dataclasses.replace(made.recurrence, crons=("* * * * * *",), intervals=(between,))
    changed = dataclasses.replace(made, recurrence=often)
    told = await refused(client.schedules.update(changed, ["recurrence"]))
    assert told == {"schedule.recurrence": "fires 120 times a minute; at most 60"}
    assert await client.schedules.get("quick/daily") == made


@pytest.mark.parametrize(
    ("given", "field", "text"),
    [
        ({"excluded_dates": ["01-01"]}, "recurrence", "exclusions leave out every instant"),
        ({"excluded_dates": ["13-01"]}, "recurrence.excluded_dates[0]", "not a date"),
        ({"excluded_dates": ["soon"]}, "recurrence.excluded_dates[0]", "a date, as 2026-12-25"),
        (
            {
                "excluded_windows": [
                    sdk.TimeWindow(
                        start_time=datetime(2030, 1, 1, tzinfo=UTC),
                        end_time=datetime(2029, 1, 1, tzinfo=UTC),
                    )
                ]
            },
            "recurrence.excluded_windows[0]",
            "reversed",
        ),
        ({"max_fires": -1}, "recurrence.max_fires", "-1"),
        ({"overlap_queue_max": 101}, "overlap_queue_max", "101"),
        ({"misfire_max": 1_001}, "misfire_max", "1001"),
        ({"misfire_window": 0.5}, "misfire_window", "0.5 s"),
        ({"start_deadline": 0.5}, "start_deadline", "0.5 s"),
        ({"pause_after_failures": 101}, "pause_after_failures", "101"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_policy_is_refused_by_its_field(
    client: AsyncClient, given: dict[str, Any], field: str, text: str
) -> None:
    told = await refused(client.schedules.create("quick", cron="0 0 1 1 *", **given))
    assert list(told) == [f"schedule.{field}"] and text in told[f"schedule.{field}"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"timeout": 60, "total_timeout": 30}, "total_timeout"),
        ({"total_timeout": 90_000}, "total_timeout"),
        ({"retry_policy": sdk.RetryPolicy(max_attempts=21)}, "retry_policy.max_attempts"),
        ({"retry_policy": sdk.RetryPolicy(exit_codes=(0,))}, "retry_policy.exit_codes[0]"),
        (
            {
                "retry_policy": sdk.RetryPolicy(
                    backoff=timedelta(seconds=2), backoff_max=timedelta(seconds=1)
                )
            },
            "retry_policy.backoff_max",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_retry_policy_is_refused_by_its_field(
    client: AsyncClient, given: dict[str, Any], field: str
) -> None:
    told = await refused(client.jobs.create(image="words:1", **given))
    assert list(told) == [f"job.{field}"]


async def test_a_range_that_cannot_be_backfilled_is_refused(client: AsyncClient) -> None:
    await client.schedules.create("quick", "minutely", cron="* * * * *")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for end, words in (
        (start + timedelta(minutes=1_000), "at most 999"),
        (datetime.now(UTC) + timedelta(hours=1), "in the future"),
        (start, "not after start_time"),
    ):
        told = await refused(client.schedules.backfill("quick/minutely", start, end))
        assert words in told["end_time"]
    found = [each async for each in client.executions.list("quick", schedule="quick/minutely")]
    assert all(each.due_time and each.due_time > start for each in found) and len(found) < 3
    made = await client.schedules.backfill("quick/minutely", start, start + timedelta(minutes=999))
    assert made.fire_count == 999
    await client.schedules.cancel_backfill("quick/minutely", made.id)
