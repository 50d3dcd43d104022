"""What -o yaml prints, -f reads."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from tickmesh import sdk
from tickmesh.sdk.cli.documents import from_plain, to_plain

JOB = sdk.Job(
    name="customers/default/jobs/report",
    container=sdk.Container(image="report:1", command=("a", "b c"), env={"K": "V"}),
    resources=sdk.Resources(memory_bytes=2**26),
    timeout=timedelta(minutes=1.5),
    retry_policy=sdk.RetryPolicy(max_attempts=2, backoff=timedelta(seconds=0.25)),
    at_most_once=True,
    labels={"team": "data"},
    create_time=datetime(2027, 1, 15, 8, 0, 0, 250_000, tzinfo=UTC),
    revision=3,
)
SCHEDULE = sdk.Schedule(
    recurrence=sdk.Recurrence(
        crons=("@daily", "0 2 * * *"),
        intervals=(sdk.Interval(every=timedelta(days=1), phase=timedelta(hours=2)),),
        times=(datetime(2030, 1, 1, tzinfo=UTC),),
        time_zone="Europe/Berlin",
        gap_policy=sdk.GapPolicy.SKIP,
    ),
    payload=b"\xff\x00",
    state=sdk.ScheduleState.PAUSED,
)


@pytest.mark.parametrize(
    "thing", [JOB, SCHEDULE, dataclasses.replace(SCHEDULE, payload="ü".encode())]
)
def test_what_is_printed_is_read_again(thing: sdk.Job | sdk.Schedule) -> None:
    assert from_plain(type(thing), to_plain(thing), "it") == thing


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"container": {"image": "x"}, "contaner": 1}, "job.contaner"),
        ({"container": {"image": "x", "args": ["a", 1]}}, r"job.container.args\[1\]"),
        ({"container": {}}, "job.container.image: is missing"),
        ({}, "job.container: is missing"),
        ([], "job: is not a table"),
        ({"container": "x"}, "job.container: is not a table"),
        ({"container": {"image": "x", "env": ["a"]}}, "job.container.env: is not a table"),
        ({"container": {"image": "x"}, "at_most_once": "yes"}, "job.at_most_once"),
        ({"container": {"image": "x"}, "resources": {"pids": "9"}}, "job.resources.pids"),
        ({"container": {"image": "x"}, "resources": {"memory_bytes": "big"}}, "memory_bytes"),
        ({"container": {"image": "x"}, "timeout": f"{'9' * 400}d"}, "job.timeout: .* too large"),
        ({"container": {"image": "x"}, "resources": {"pids": 1 << 31}}, "pids: .* is too large"),
        ({"container": {"image": "x"}, "resources": {"memory_bytes": 1 << 63}}, "is too large"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(document: object, where: str) -> None:
    with pytest.raises(sdk.InvalidRequest, match=where):
        from_plain(sdk.Job, document, "job")


def test_sizes_are_read_as_people_write_them() -> None:
    document = {"container": {"image": "x"}, "resources": {"memory_bytes": "64Mi"}}
    assert from_plain(sdk.Job, document, "job").resources.memory_bytes == 2**26


def test_an_unknown_name_of_an_enum_is_refused_with_those_there_are() -> None:
    with pytest.raises(sdk.InvalidRequest, match="AFTER, SKIP"):
        from_plain(sdk.Recurrence, {"gap_policy": "JUMP"}, "recurrence")
