"""The clients against a gateway in memory, over real gRPC."""

import dataclasses
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import trustme

from tests.unit.sdk.fake_gateway import FakeGateway
from tickmesh import sdk
from tickmesh.mesh import api_keys, errors
from tickmesh.proto.tickmesh.v1 import execution_pb2
from tickmesh.sdk import AsyncClient, Client, types
from tickmesh.sdk.convert import from_execution
from tickmesh.sdk.transport import REPEATABLE


def test_a_job_comes_back_as_it_was_given(client: Client) -> None:
    given = sdk.Job(
        container=sdk.Container(
            image="report:1",
            command=("a", "b"),
            args=("c",),
            env={"K": "V"},
            working_dir="/w",
            network=sdk.Network.EGRESS,
        ),
        resources=sdk.Resources(memory_bytes=2**26, cpu_millis=500, scratch_bytes=2**20, pids=9),
        timeout=timedelta(seconds=1.5),
        grace_period=timedelta(seconds=2),
        retry_policy=sdk.RetryPolicy(max_attempts=1, backoff=timedelta(seconds=1)),
        at_most_once=True,
        display_name="Report",
        labels={"team": "x"},
    )
    made = client.jobs.add(given, "report")
    assert made.name == "customers/acme/jobs/report" and made.id == "report"
    assert made.revision == 1 and made.create_time == datetime(2027, 1, 15, 8, tzinfo=UTC)
    server_set = ("name", "uid", "revision", "create_time", "update_time", "etag")
    assert given == dataclasses.replace(made, **{name: getattr(given, name) for name in server_set})
    assert client.jobs.get("report") == client.jobs.get(made.name) == made


def test_a_key_is_created_listed_and_revoked(client: Client, gateway: FakeGateway) -> None:
    gateway.page_size_max = 1
    ends = datetime(2030, 1, 1, tzinfo=UTC)
    scopes = (sdk.ApiScope.READ, sdk.ApiScope.EXECUTE)
    made = client.keys.create(scopes, display_name="ci", expire_time=ends)
    other = client.keys.create([sdk.ApiScope.ADMIN])
    assert made.key.scopes == scopes and made.key.expire_time == ends
    assert list(client.keys.list()) == [made.key, other.key]
    assert made.text not in repr(made)
    client.keys.revoke(made.key.id)
    client.keys.revoke(other.key.name)
    with pytest.raises(sdk.NotFound):
        client.keys.revoke(other.key.name)
    assert set(gateway.shown) == {""}


def test_what_is_kept_is_changed_as_it_was_read(client: Client) -> None:
    before = client.get_customer()
    assert (before.id, before.retention) == ("acme", sdk.Retention())
    assert before.history_max_age == timedelta(days=7)
    wanted = sdk.Retention(max_age=timedelta(hours=36), executions_per_job_max=20)
    assert client.set_retention(wanted, etag=before.etag).retention == wanted
    with pytest.raises(sdk.EtagMismatch):
        client.set_retention(sdk.Retention(), etag=before.etag)
    assert client.get_customer().retention == wanted
    client.set_retention(sdk.Retention())
    assert client.get_customer().retention == sdk.Retention()


def test_a_plan_is_changed_by_its_name_and_seen_with_what_is_in_it(client: Client) -> None:
    before = client.get_customer()
    assert (before.plan, before.effective_plan.name) == ("standard", "standard")
    assert before.effective_plan.memory_bytes_max == 1 << 30
    assert before.effective_plan.timeout_max == timedelta(hours=24)
    assert client.set_plan("gold", etag=before.etag).plan == "gold"
    with pytest.raises(sdk.EtagMismatch):
        client.set_plan("standard", etag=before.etag)
    with pytest.raises(sdk.InvalidRequest, match="there are: gold, standard"):
        client.set_plan("golden")
    assert client.get_customer().plan == "gold"


async def test_every_call_shows_the_key(address: str, gateway: FakeGateway) -> None:
    key = api_keys.make("acme", "0" * 16, bytes(32))
    with Client(address, api_key=key) as blocking:
        assert blocking.customer == "acme", "the key says whose it is"
        list(blocking.keys.list())
    async with AsyncClient(address, api_key=key) as client:
        assert [each async for each in client.keys.list()] == []
    assert gateway.shown == [key, key]


KEY = api_keys.make("acme", "0" * 16, bytes(32))


@pytest.mark.parametrize(
    "address",
    ["gateway.example:443", "192.0.2.1:7300", "127.example:7300", "localhost.example:1", "[::]:1"],
)
def test_a_key_never_leaves_this_machine_in_plain_text(address: str) -> None:
    with pytest.raises(sdk.InvalidRequest, match="plain text") as refused:
        Client(address, api_key=KEY)
    assert KEY not in str(refused.value)
    Client(address, api_key=KEY, tls=True).close()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1"])
def test_a_key_is_shown_to_this_machine(address: str) -> None:
    Client(address, api_key=KEY).close()


def test_a_key_is_of_its_customer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sdk.InvalidRequest, match="of customer 'acme', not 'other'"):
        Client("127.0.0.1:1", "other", api_key=KEY)
    with pytest.raises(sdk.InvalidRequest, match="is not an API key") as refused:
        Client("127.0.0.1:1", api_key="tmk_nonsense")
    assert "nonsense" not in str(refused.value)
    operator = api_keys.make_operator(bytes(32))
    with Client("127.0.0.1:1", "other", api_key=operator) as client:
        assert client.customer == "other"
    monkeypatch.setenv("TICKMESH_API_KEY", KEY)
    with Client("127.0.0.1:1") as client:
        assert client.customer == "acme"
        assert KEY not in repr(client._transport.target)


def test_a_job_is_made_from_its_parts(client: Client) -> None:
    made = client.jobs.create("hello", image="hello:1", memory_bytes=2**26, timeout=90)
    assert made.container.image == "hello:1"
    assert made.timeout == timedelta(seconds=90) and made.resources.memory_bytes == 2**26


def test_a_schedule_comes_back_as_it_was_given(client: Client) -> None:
    client.jobs.create("hello", image="hello:1")
    at = datetime(2030, 1, 1, 12, 30, 0, 250_000, tzinfo=UTC)
    made = client.schedules.create(
        "hello",
        "mixed",
        cron=["0 2 * * *", "@daily"],
        every=90,
        at=at,
        time_zone="Europe/Berlin",
        gap_policy=sdk.GapPolicy.SKIP,
        fold_policy=sdk.FoldPolicy.BOTH,
        jitter=5,
        payload="päyload",
        overlap_policy=sdk.OverlapPolicy.ALLOW,
    )
    assert made.name == "customers/acme/jobs/hello/schedules/mixed"
    assert (made.job_id, made.id, made.state) == ("hello", "mixed", sdk.ScheduleState.ACTIVE)
    assert made.recurrence == sdk.Recurrence(
        crons=("0 2 * * *", "@daily"),
        intervals=(sdk.Interval(every=timedelta(seconds=90)),),
        times=(at,),
        time_zone="Europe/Berlin",
        gap_policy=sdk.GapPolicy.SKIP,
        fold_policy=sdk.FoldPolicy.BOTH,
        jitter=timedelta(seconds=5),
    )
    assert made.payload == "päyload".encode() and made.misfire_policy is None
    paused = client.schedules.pause("hello/mixed", "for now")
    assert (paused.state, paused.pause_reason) == (sdk.ScheduleState.PAUSED, "for now")
    assert client.schedules.resume("hello/mixed").state is sdk.ScheduleState.ACTIVE
    with pytest.raises(sdk.NotPaused):
        client.schedules.resume("hello/mixed")
    moved = dataclasses.replace(made, recurrence=sdk.Recurrence(crons=("@hourly",)))
    assert client.schedules.update(moved, ["recurrence"]).recurrence.crons == ("@hourly",)
    client.schedules.delete("hello/mixed")
    assert list(client.schedules.list("hello")) == []


def test_an_instant_without_a_zone_is_refused_by_name(client: Client) -> None:
    with pytest.raises(sdk.InvalidRequest, match="time zone") as caught:
        client.schedules.create("hello", at=datetime(2030, 1, 1))
    assert caught.value.fields[0][0] == "schedule.recurrence.times[0]"


def test_a_preview_says_what_daylight_saving_does(client: Client) -> None:
    fires = client.schedules.preview(cron="30 2 * * *", time_zone="Europe/Berlin", count=2)
    assert [fire.note for fire in fires] == ["", "the clocks go forward: 02:30 does not exist"]


def test_listings_fetch_page_after_page(client: Client, gateway: FakeGateway) -> None:
    gateway.page_size_max = 3
    for number in range(8):
        client.jobs.create(f"job-{number}", image="hello:1")
    assert [job.id for job in client.jobs.list()] == [f"job-{number}" for number in range(8)]
    assert gateway.calls.count("ListJobs") == 3
    next(iter(client.jobs.list()))
    assert gateway.calls.count("ListJobs") == 4  # what nobody asks for is not fetched


def test_batches(client: Client) -> None:
    job = sdk.Job(container=sdk.Container(image="hello:1"))
    jobs = client.jobs.add_batch([sdk.NewJob(job=job, job_id=f"j-{n}") for n in range(3)])
    assert [each.id for each in jobs] == ["j-0", "j-1", "j-2"]
    schedule = sdk.Schedule(recurrence=sdk.Recurrence(crons=("@daily",)))
    schedules = client.schedules.add_batch(
        "j-0", [sdk.NewSchedule(schedule=schedule, schedule_id=f"s-{n}") for n in range(3)]
    )
    assert [each.id for each in schedules] == ["s-0", "s-1", "s-2"]
    handles = client.execute_batch([sdk.NewExecution(job=f"j-{n}") for n in range(3)])
    assert [handle.result().job_id for handle in handles] == ["j-0", "j-1", "j-2"]


def test_errors_carry_their_reason_and_fields(client: Client) -> None:
    with pytest.raises(sdk.InvalidRequest) as caught:
        client.jobs.create("hello", image="BAD IMAGE")
    assert caught.value.reason == "FIELD_INVALID"
    assert caught.value.fields[0][0] == "job.container.image"
    with pytest.raises(sdk.NotFound, match="jobs/nobody"):
        client.jobs.get("nobody")
    client.jobs.create("hello", image="hello:1")
    with pytest.raises(sdk.AlreadyExists):
        client.jobs.create("hello", image="hello:1")
    stale = dataclasses.replace(client.jobs.get("hello"), etag="0", display_name="x")
    with pytest.raises(sdk.EtagMismatch):
        client.jobs.update(stale, ["display_name"])
    client.schedules.create("hello", cron="@daily")
    with pytest.raises(sdk.JobHasSchedules):
        client.jobs.delete("hello")
    client.jobs.delete("hello", force=True)


def test_every_call_has_a_deadline(address: str, gateway: FakeGateway) -> None:
    with Client(address, deadline_s=7) as client:
        list(client.jobs.list())
        assert 6 < gateway.last_deadline_s < 8
        client.cluster(deadline_s=3)
        assert 2 < gateway.last_deadline_s < 4


def test_a_call_that_is_safe_to_repeat_is_repeated(client: Client, gateway: FakeGateway) -> None:
    gateway.failures["CreateJob"] = [errors.NoLeader("none"), errors.NoLeader("none")]
    assert client.jobs.create("hello", image="hello:1").id == "hello"
    assert gateway.calls.count("CreateJob") == 3


def test_an_answer_that_was_lost_does_not_do_it_twice(client: Client, gateway: FakeGateway) -> None:
    client.jobs.create("hello", image="hello:1")
    gateway.lose_answers["ExecuteJob"] = 1
    client.execute("hello").result()
    assert gateway.calls.count("ExecuteJob") == 2 and len(gateway.executions) == 1


def test_a_call_that_is_not_safe_to_repeat_is_not(client: Client, gateway: FakeGateway) -> None:
    client.jobs.create("hello", image="hello:1")
    gateway.failures["DeleteJob"] = [errors.OutcomeUnknown("lost")]
    with pytest.raises(sdk.OutcomeUnknown):
        client.jobs.delete("hello")
    assert gateway.calls.count("DeleteJob") == 1


def test_retries_name_methods_that_exist() -> None:
    protos = (Path(__file__).parents[3] / "protos/tickmesh/v1").glob("*.proto")
    text = "\n".join(path.read_text() for path in protos)
    known = {
        (service, method)
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", text, re.S | re.M)
        for method in re.findall(r"rpc (\w+)", body)
    }
    named = {(service, method) for service, methods in REPEATABLE.items() for method in methods}
    assert named <= known
    safe = ("Get", "List", "Preview", "Create", "Batch")  # reads, or what carries a request_id
    assert {each for each in known if each[1].startswith(safe)} <= named


def test_nobody_at_the_address_is_said_with_what_to_do() -> None:
    with Client("127.0.0.1:9") as client, pytest.raises(sdk.Unavailable) as caught:
        client.cluster()
    assert "127.0.0.1:9" in str(caught.value) and "tickmesh dev" in str(caught.value)


def test_an_execution_is_waited_for(client: Client, gateway: FakeGateway) -> None:
    client.jobs.create("hello", image="hello:1")
    handle = client.execute("hello", "payload")
    assert handle.execution.state is sdk.ExecutionState.PENDING
    execution = handle.result()
    assert execution.state is sdk.ExecutionState.SUCCEEDED and execution.exit_code == 0
    assert execution.lateness_ms == 1.5 and execution.duration == timedelta(seconds=0.25)
    assert [chunk.data for chunk in handle.logs()] == [b"hello world\n"]
    assert gateway.payloads[handle.name] == b"payload"


def test_a_failed_execution_is_an_error_of_its_result(client: Client, gateway: FakeGateway) -> None:
    gateway.run = gateway.fail
    client.jobs.create("hello", image="hello:1")
    with pytest.raises(sdk.ExecutionFailed, match="exit code 3") as caught:
        client.execute("hello").result()
    assert caught.value.execution.reason is sdk.ExecutionReason.EXIT_CODE


def test_waiting_ends_with_its_deadline(client: Client, gateway: FakeGateway) -> None:
    gateway.run = gateway.started
    client.jobs.create("hello", image="hello:1")
    handle = client.execute("hello")
    with pytest.raises(sdk.DeadlineExceeded):
        handle.wait(deadline_s=0.05)
    assert handle.cancel().state is sdk.ExecutionState.CANCELLED


def test_a_watch_goes_on_where_it_broke(client: Client, gateway: FakeGateway) -> None:
    client.jobs.create("hello", image="hello:1")
    gateway.break_streams_after = [1, 2, 1]
    watch = iter(client.executions.watch("hello", cursor="0"))
    client.execute("hello")
    seen = [next(watch).state for _ in range(3)]
    assert seen == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert gateway.calls.count("WatchExecutions") == 4


def test_a_log_goes_on_where_it_broke(client: Client, gateway: FakeGateway) -> None:
    client.jobs.create("hello", image="hello:1")
    handle = client.execute("hello")
    lines = [(f"{n}\n".encode(), execution_pb2.LOG_STREAM_STDOUT) for n in range(5)]
    gateway.logs[handle.name] = lines
    gateway.break_streams_after = [2, 1, 0]
    assert b"".join(c.data for c in handle.logs(follow=True)) == b"0\n1\n2\n3\n4\n"


def test_an_execution_is_found_by_its_id_alone(client: Client, gateway: FakeGateway) -> None:
    client.jobs.create("hello", image="hello:1")
    handle = client.execute("hello")
    assert client.executions.get(handle.id).name == handle.name
    assert client.executions.get(f"hello/{handle.id}").name == handle.name
    with pytest.raises(sdk.NotFound, match="latest 1 of customer acme"):
        client.executions.get("9999")
    with pytest.raises(sdk.InvalidRequest):
        client.executions.get("a/b/c")


def test_an_image_is_imported_with_progress(
    client: Client, gateway: FakeGateway, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"x" * 600_000)
    seen: list[tuple[int, int]] = []
    image = client.images.import_archive(
        "report:1", archive, progress=lambda sent, total: seen.append((sent, total))
    )
    assert (image.id, image.size_bytes) == ("report:1", 600_000)
    assert seen == [(262_144, 600_000), (524_288, 600_000), (600_000, 600_000)]
    assert [each.id for each in client.images.list()] == ["report:1"]
    client.images.delete("report:1")
    with pytest.raises(sdk.NotFound):
        client.images.get("report:1")


def test_a_corrupt_image_and_a_missing_file_are_told_apart(client: Client, tmp_path: Path) -> None:
    (tmp_path / "empty.tar").touch()
    with pytest.raises(sdk.ImageCorrupt):
        client.images.import_archive("report:1", tmp_path / "empty.tar")
    with pytest.raises(FileNotFoundError):
        client.images.import_archive("report:1", tmp_path / "none.tar")


def test_states_that_are_newer_than_the_client_are_unknown() -> None:
    message = execution_pb2.Execution(name="customers/a/jobs/b/executions/c")
    message.state = 99  # type: ignore[assignment]
    message.reason = 99  # type: ignore[assignment]
    known = from_execution(message)
    assert known.state is types.ExecutionState.UNKNOWN
    assert known.reason is types.ExecutionReason.UNKNOWN


async def test_the_asyncio_client_does_the_same(gateway: FakeGateway, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"x" * 600_000)
    with gateway.serving() as address:
        async with AsyncClient(address, "acme") as client:
            assert (await client.images.import_archive("hello:1", archive)).size_bytes == 600_000
            await client.jobs.create("hello", image="hello:1")
            assert [job.id async for job in client.jobs.list()] == ["hello"]
            gateway.failures["ExecuteJob"] = [errors.NoLeader("none")]
            handle = await client.execute("hello")
            assert (await handle.result()).exit_code == 0
            gateway.break_streams_after = [0]
            assert [c.data async for c in handle.logs(follow=True)] == [b"hello world\n"]
            watch = client.executions.watch("hello", cursor="0")
            states = []
            async for execution in watch:
                states.append(execution.state)
                if execution.state.final:
                    break
            assert states == ["PENDING", "RUNNING", "SUCCEEDED"]
            with pytest.raises(sdk.NotFound):
                await client.jobs.get("nobody")


def test_tls_is_spoken_where_an_authority_is_named(gateway: FakeGateway, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    credentials = grpc.ssl_server_credentials(
        [(certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())]
    )
    with gateway.serving(credentials) as address:
        with Client(address, ca_file=tmp_path / "ca.pem") as client:
            assert client.cluster().version == "0.1.0"
        for other in (Client(address, ca_file=tmp_path / "other.pem"), Client(address)):
            with other, pytest.raises(sdk.Unavailable):
                other.cluster(deadline_s=5)


def test_policies_exclusions_and_retries_come_back_as_they_were_given(client: Client) -> None:
    retry = sdk.RetryPolicy(
        max_attempts=5,
        backoff=timedelta(seconds=1),
        backoff_max=timedelta(seconds=10),
        exit_codes=(69, 75),
    )
    job = client.jobs.create(
        "hello", image="hello:1", timeout=5, total_timeout=60, retry_policy=retry
    )
    assert job.retry_policy == retry and job.total_timeout == timedelta(minutes=1)
    window = sdk.TimeWindow(
        start_time=datetime(2027, 2, 1, tzinfo=UTC), end_time=datetime(2027, 2, 2, tzinfo=UTC)
    )
    made = client.schedules.create(
        "hello",
        "careful",
        every=60,
        max_fires=100,
        excluded_dates=["12-25", date(2027, 1, 1)],
        excluded_windows=[window],
        overlap_policy=sdk.OverlapPolicy.QUEUE,
        overlap_queue_max=5,
        misfire_policy=sdk.MisfirePolicy.ALL,
        misfire_window=3_600,
        misfire_max=10,
        start_deadline=30,
        pause_after_failures=3,
    )
    assert made.recurrence.max_fires == 100 and made.recurrence.excluded_windows == (window,)
    assert made.recurrence.excluded_dates == ("12-25", "2027-01-01")
    assert (made.overlap_policy, made.overlap_queue_max) == (sdk.OverlapPolicy.QUEUE, 5)
    assert (made.misfire_policy, made.misfire_max) == (sdk.MisfirePolicy.ALL, 10)
    assert made.misfire_window == timedelta(hours=1)
    assert made.start_deadline == timedelta(seconds=30)
    assert made.pause_after_failures == 3
    naive = datetime(2027, 2, 1)
    with pytest.raises(sdk.InvalidRequest, match=r"excluded_windows\[0\].end_time"):
        client.schedules.create(
            "hello",
            every=60,
            excluded_windows=[dataclasses.replace(window, end_time=naive)],
        )


def test_what_became_of_a_schedules_instants(client: Client, gateway: FakeGateway) -> None:
    client.jobs.create("hello", image="hello:1")
    client.schedules.create("hello", "tick", every=60)
    gateway.page_size_max = 3
    rows = list(client.schedules.fires("hello/tick"))
    assert [row.number for row in rows] == list(range(11))
    assert list(client.schedules.fires("hello/tick", newest_first=True)) == rows[::-1]
    assert rows[0].definition is not None and rows[0].definition.id == "tick"
    assert rows[1].outcome is sdk.FireOutcome.FIRED
    assert rows[1].execution == "customers/acme/jobs/hello/executions/0001"
    statistics = client.schedules.statistics("hello/tick")
    assert statistics.skipped == {"OVERLAP": 12, "CLOCK": 1}
    assert statistics.lateness_p99 == timedelta(milliseconds=20.25)
    assert client.schedules.verify("hello/tick").problems == ()
    client.schedules.create("hello", "forged", every=60)
    (problem,) = client.schedules.verify("hello/forged").problems
    assert problem.kind is sdk.LedgerProblemKind.MISSING


def test_a_schedule_is_triggered_and_backfilled(client: Client) -> None:
    client.jobs.create("hello", image="hello:1")
    client.schedules.create("hello", "tick", every=60)
    assert client.schedules.trigger("hello/tick").schedule.endswith("/schedules/tick")
    start = datetime(2027, 1, 1, tzinfo=UTC)
    backfill = client.schedules.backfill("hello/tick", start, start + timedelta(minutes=7))
    assert backfill.fire_count == 7
    assert client.schedules.cancel_backfill("hello/tick", backfill.id) == 7
    assert client.schedules.cancel_backfill("hello/tick", backfill.id) == 0


def test_an_execution_with_an_active_key_is_answered_while_it_goes_on(
    client: Client, gateway: FakeGateway
) -> None:
    client.jobs.create("hello", image="hello:1")
    gateway.run = gateway.started
    first = client.execute("hello", active_key="one")
    assert client.execute("hello", active_key="one").name == first.name
    first.cancel()
    assert client.execute("hello", active_key="one").name != first.name
