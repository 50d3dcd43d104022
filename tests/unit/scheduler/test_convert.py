"""Between the public messages and the records: what is given comes back, and what is wrong is told
by its field."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tickmesh.mesh.errors import InvalidRequest
from tickmesh.mesh.plans import Plan
from tickmesh.proto.tickmesh.v1 import execution_pb2, job_pb2, schedule_pb2
from tickmesh.scheduler import convert
from tickmesh.scheduler.calls.jobs import JOB_FIELDS
from tickmesh.scheduler.calls.schedules import SCHEDULE_FIELDS
from tickmesh.scheduler.calls.updates import merge
from tickmesh.scheduler.core import commands
from tickmesh.scheduler.core.model import Attempt, Misfire, Overlap, Policy, Reason, Retry
from tickmesh.scheduler.core.recurrence import Calendar, Spec, with_calendars

from .worlds import START_MS, World

HOUR_MS = 3_600_000
SET_BY_THE_SERVER = {"name", "uid", "state", "pause_reason", "etag", "revision"}


def recurrence(**fields: Any) -> schedule_pb2.Recurrence:
    return schedule_pb2.Recurrence(**{"time_zone": "UTC", **fields})


def minutely(**fields: Any) -> schedule_pb2.Recurrence:
    return recurrence(crons=["* * * * *"], **fields)


def window(start_ms: int, end_ms: int) -> schedule_pb2.TimeWindow:
    return schedule_pb2.TimeWindow(
        start_time=convert.from_ms(start_ms), end_time=convert.from_ms(end_ms)
    )


def told(call: Any, *arguments: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refused:
        call(*arguments)
    return dict(refused.value.fields)


def recurrence_every(every_s: float, phase_s: float = 0) -> schedule_pb2.Interval:
    interval = schedule_pb2.Interval()
    interval.every.FromMilliseconds(round(every_s * 1_000))
    interval.phase.FromMilliseconds(round(phase_s * 1_000))
    return interval


def with_empty_calendars(spec: Spec) -> Spec:
    return with_calendars(spec, lambda _: Calendar())


def test_a_recurrence_comes_back_as_it_was_given() -> None:
    given = minutely(
        max_fires=5,
        excluded_dates=["12-25", "2027-01-16"],
        excluded_windows=[window(START_MS, START_MS + HOUR_MS)],
        excluded_calendars=["customers/acme/calendars/holidays"],
    )
    spec = convert.spec_of(given, START_MS, "recurrence", with_empty_calendars)
    assert (spec.max_fires, spec.excluded_dates) == (5, ("12-25", "2027-01-16"))
    assert spec.excluded_windows == ((START_MS, START_MS + HOUR_MS),)
    assert [pin.name for pin in spec.calendars] == ["holidays"]
    assert convert.recurrence_message(spec, "acme") == given


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (minutely(excluded_dates=["02-30"]), "recurrence.excluded_dates[0]"),
        (
            minutely(excluded_windows=[window(0, 1), window(START_MS, START_MS)]),
            "recurrence.excluded_windows[1]",
        ),
        (recurrence(crons=["0 0 1 1 *"], excluded_dates=["01-01"]), "recurrence"),
        # It fired in the past; from now on it does not.
        (minutely(excluded_windows=[window(START_MS, 10_413_792_000_000)]), "recurrence"),
        (recurrence(), "recurrence"),
    ],
)
def test_a_recurrence_without_an_instant_is_refused(
    given: schedule_pb2.Recurrence, field: str
) -> None:
    assert list(told(convert.spec_of, given, START_MS, "recurrence")) == [field]


def test_what_fires_more_than_once_a_second_is_refused() -> None:
    every_second = convert.spec_of(recurrence(crons=["* * * * * *"]), START_MS, "recurrence")
    convert.check_rate(every_second, START_MS, "recurrence")
    given = recurrence(crons=["* * * * * *"])
    given.times.extend(convert.from_ms(START_MS + 500 + each) for each in range(3))
    bursting = convert.spec_of(given, START_MS, "recurrence")
    assert told(convert.check_rate, bursting, START_MS, "recurrence") == {
        "recurrence": "fires 63 times a minute; at most 60"
    }


def test_policies_that_are_not_given_are_the_defaults() -> None:
    assert convert.policy_of(schedule_pb2.Schedule()) == Policy()


def test_policies_come_back_as_they_were_given() -> None:
    given = schedule_pb2.Schedule(
        overlap_policy="OVERLAP_POLICY_QUEUE",
        overlap_queue_max=5,
        misfire_policy="MISFIRE_POLICY_ALL",
        misfire_max=10,
        pause_after_failures=3,
    )
    given.misfire_window.FromSeconds(3_600)
    given.start_deadline.FromSeconds(30)
    policy = convert.policy_of(given)
    assert policy == Policy(Overlap.QUEUE, 5, Misfire.ALL, HOUR_MS, 10, 30_000, 3)
    world = World()
    world.job()
    message = convert.schedule_message(world.schedule(policy=policy))
    assert convert.policy_of(message) == policy


def job(**fields: Any) -> job_pb2.Job:
    return job_pb2.Job(container=job_pb2.Container(image="hello:1"), **fields)


def test_retries_come_back_as_they_were_given() -> None:
    given = job(retry_policy=job_pb2.RetryPolicy(max_attempts=5, exit_codes=[75, 69, 75]))
    given.retry_policy.backoff.FromSeconds(1_200)
    given.total_timeout.FromSeconds(1_800)
    spec = convert.job_spec(given, "acme", "job", Plan())
    # What is shorter than another's default makes that the default.
    assert spec.retry == Retry(5, 1_200_000, 1_200_000, (69, 75))
    assert (spec.timeout_ms, spec.total_timeout_ms) == (1_800_000, 1_800_000)
    world = World()
    message = convert.job_message(world.job(spec=spec))
    assert convert.job_spec(message, "acme", "job", Plan()) == spec


def test_retries_that_are_not_given_are_none() -> None:
    spec = convert.job_spec(job(), "acme", "job", Plan())
    assert (spec.retry, spec.total_timeout_ms) == (Retry(), 0)
    world = World()
    assert not convert.job_message(world.job(spec=spec)).HasField("retry_policy")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (job_pb2.NETWORK_UNSPECIFIED, job_pb2.NETWORK_NONE),
        (job_pb2.NETWORK_NONE, job_pb2.NETWORK_NONE),
        (job_pb2.NETWORK_EGRESS, job_pb2.NETWORK_EGRESS),
    ],
)
def test_a_job_has_no_network_unless_it_asks(
    given: job_pb2.Network.ValueType, kept: job_pb2.Network.ValueType
) -> None:
    container = job_pb2.Container(image="report:1", network=given)
    assert convert.job_spec(job_pb2.Job(container=container), "acme", "job", Plan()).network == kept


def test_lengths_of_time_that_contradict_one_another_are_refused() -> None:
    short = job()
    short.timeout.FromSeconds(60)
    short.total_timeout.FromSeconds(30)
    assert list(told(convert.job_spec, short, "acme", "job", Plan())) == ["job.total_timeout"]
    hasty = job()
    hasty.retry_policy.backoff.FromSeconds(2)
    hasty.retry_policy.backoff_max.FromSeconds(1)
    assert list(told(convert.job_spec, hasty, "acme", "job", Plan())) == [
        "job.retry_policy.backoff_max"
    ]


def test_an_execution_that_waits_for_a_retry_says_until_when() -> None:
    world = World()
    spec = convert.job_spec(
        job(retry_policy=job_pb2.RetryPolicy(max_attempts=2)), "acme", "job", Plan()
    )
    world.job(spec=spec)
    (execution,) = world.execute()
    world.now_ms += 5_000
    end = Attempt(1, "", "", 0, ended_ns=world.now_ms * 1_000_000, reason=Reason.EXIT_CODE)
    world.do(commands.EndAttempts([(execution.job_uid, execution.id, end)]))
    waiting = convert.execution_message(world.execution(execution), None)
    assert waiting.state == execution_pb2.EXECUTION_STATE_PENDING
    wait_ms = convert.to_ms(waiting.next_attempt_time) - world.now_ms
    assert 750 <= wait_ms <= 1_000
    assert not waiting.HasField("end_time")
    # Cancelled meanwhile, it has ended then, and not when its last attempt did.
    world.now_ms += 500
    world.do(commands.Cancel([(execution.job_uid, execution.id)]))
    cancelled = convert.execution_message(world.execution(execution), None)
    assert cancelled.state == execution_pb2.EXECUTION_STATE_CANCELLED
    assert not cancelled.HasField("next_attempt_time")
    assert convert.to_ms(cancelled.end_time) == world.now_ms


@pytest.mark.parametrize(
    ("message", "changeable"),
    [(job_pb2.Job, JOB_FIELDS), (schedule_pb2.Schedule, SCHEDULE_FIELDS)],
)
def test_an_update_changes_all_that_the_server_does_not_set(
    message: Any, changeable: frozenset[str]
) -> None:
    counts = ("_time", "_count")
    fields = {
        field.name
        for field in message.DESCRIPTOR.fields
        if field.name not in SET_BY_THE_SERVER and not field.name.endswith(counts)
    }
    assert fields == changeable


HALF = recurrence_every(1.0, 0.5)
SIXTY = "* 0 3 * * *"


@pytest.mark.parametrize(
    "given",
    [
        # Each second of one minute a day, between the seconds all the time.
        schedule_pb2.Recurrence(crons=[SIXTY], intervals=[HALF]),
        schedule_pb2.Recurrence(crons=["* 0 3 1 1 *", "0 * * * *"], intervals=[HALF]),
        schedule_pb2.Recurrence(crons=["0 * * * *"], intervals=[recurrence_every(1.0), HALF]),
    ],
)
def test_what_is_crowded_only_at_times_is_refused(given: schedule_pb2.Recurrence) -> None:
    spec = convert.spec_of(given, START_MS, "recurrence")
    assert told(convert.check_rate, spec, START_MS, "recurrence")


@pytest.mark.parametrize(
    "given",
    [
        schedule_pb2.Recurrence(crons=[SIXTY, "0 * * * * *"], intervals=[recurrence_every(1.0)]),
        schedule_pb2.Recurrence(crons=["*/2 0 3 * * *"], intervals=[recurrence_every(2.0, 0.5)]),
    ],
)
def test_sixty_in_a_minute_are_allowed(given: schedule_pb2.Recurrence) -> None:
    convert.check_rate(convert.spec_of(given, START_MS, "recurrence"), START_MS, "recurrence")


@pytest.mark.parametrize(
    "path",
    [
        *("timeout.seconds", "retry_policy.backoff.nanos", "labels.key", "container.env.value"),
        *("container.image.name", "timeout.", "container..image", "nothing", "container.nothing"),
    ],
)
def test_a_mask_names_what_can_be_given_by_itself(path: str) -> None:
    """By its seconds alone a timeout could be set to 0, which is none at all."""
    stored = job_pb2.Job(timeout=Duration(seconds=5), labels={"key": "value"})
    before = job_pb2.Job.FromString(stored.SerializeToString())
    refused = told(merge, job_pb2.Job(), stored, FieldMask(paths=[path]), JOB_FIELDS)
    assert list(refused) == ["update_mask"]
    assert stored == before


def test_a_mask_sets_what_it_names_once_or_twice_and_nothing_else() -> None:
    stored = job_pb2.Job(display_name="old", timeout=Duration(seconds=5), labels={"a": "1"})
    stored.container.image, stored.container.working_dir = "old:1", "/old"
    given = job_pb2.Job(display_name="new", labels={"b": "2"})
    given.container.image = "new:1"
    mask = FieldMask(paths=["container.image", "labels", "timeout", "container.image"])
    merge(given, stored, mask, JOB_FIELDS)
    asked = job_pb2.Job(display_name="old", labels={"b": "2"})
    asked.container.image, asked.container.working_dir = "new:1", "/old"
    assert stored == asked
