"""A mesh that authenticates: two customers, two gateways, and everything that must not work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.unit.gateway.test_validation import rules
from tickmesh.gateway.access import ACCESS, Scope
from tickmesh.gateway.authentication import FAILURES_MAX, KEY_REMEMBERED_S
from tickmesh.gateway.methods import METHODS, Kind, Method
from tickmesh.mesh import api_keys
from tickmesh.mesh.errors import TickmeshError, from_rpc_error
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.proto.tickmesh.v1 import (
    calendar_pb2,
    customer_pb2,
    customer_pb2_grpc,
    execution_pb2,
    image_pb2,
    job_pb2,
    schedule_pb2,
)
from tickmesh.sdk.cli.main import EXIT_DENIED, run

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

TIMEOUT_S = 20.0
READ, EXECUTE, ADMIN = (
    customer_pb2.API_SCOPE_READ,
    customer_pb2.API_SCOPE_EXECUTE,
    customer_pb2.API_SCOPE_ADMIN,
)


class Caller:
    """Somebody with a key, or without one, at one gateway."""

    def __init__(self, channel: grpc.aio.Channel, key: str = "") -> None:
        self.channel = channel
        self.metadata = (("authorization", f"Bearer {key}"),) if key else ()

    async def call(self, method: str, request: Any) -> Any:
        """Any unary or streaming method, by its name; of a stream the first message."""
        row = METHODS[f"tickmesh.v1.{method}"]
        options = {"timeout": TIMEOUT_S, "metadata": self.metadata}
        if row.kind is Kind.IMAGE_IMPORT:
            upload = self.channel.stream_unary(row.path)

            async def once() -> AsyncIterator[bytes]:
                yield request.SerializeToString()

            return await upload(once(), **options)  # type: ignore[arg-type]
        if row.kind in (Kind.WATCH, Kind.LOGS):
            stream = self.channel.unary_stream(row.path)(request.SerializeToString(), **options)  # type: ignore[arg-type]
            answer = await stream.read()
            stream.cancel()
            return answer
        return await self.channel.unary_unary(row.path)(request.SerializeToString(), **options)  # type: ignore[arg-type]

    async def create_key(self, customer: str, *scopes: int, expires_s: float = 0) -> Any:
        """A new key: its message and its text."""
        request = customer_pb2.CreateApiKeyRequest(parent=f"customers/{customer}")
        request.api_key.scopes.extend(scopes)  # type: ignore[arg-type]
        if expires_s:
            request.api_key.expire_time.FromNanoseconds(int((time.time() + expires_s) * 1e9))
        stub: Any = customer_pb2_grpc.CustomerServiceStub(self.channel)
        return await stub.CreateApiKey(request, timeout=TIMEOUT_S, metadata=self.metadata)

    async def revoke(self, name: str) -> None:
        await self.call("CustomerService/RevokeApiKey", customer_pb2.RevokeApiKeyRequest(name=name))

    async def jobs(self, customer: str) -> list[str]:
        data = await self.call(
            "JobService/ListJobs", job_pb2.ListJobsRequest(parent=f"customers/{customer}")
        )
        return [job.name for job in job_pb2.ListJobsResponse.FromString(data).jobs]


class Bed:
    """The mesh, its operator, and every key that was ever made."""

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh
        self.channels = [grpc.aio.insecure_channel(address) for address in mesh.addresses]
        self.operator_key = mesh.operator_key_file.read_text()
        self.operator = self.caller(self.operator_key)
        self.secrets = [self.operator_key]

    def caller(self, key: str, gateway: int = 0) -> Caller:
        return Caller(self.channels[gateway], key)

    async def key(self, customer: str, *scopes: int, expires_s: float = 0) -> Any:
        made = await self.operator.create_key(customer, *scopes, expires_s=expires_s)
        self.secrets.append(made.text)
        return made

    async def holder(self, customer: str, *scopes: int) -> Caller:
        return self.caller((await self.key(customer, *scopes)).text)


async def refusal(call: Awaitable[Any]) -> TickmeshError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return from_rpc_error(refused.value)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    directory: Path = tmp_path_factory.mktemp("mesh")
    options = LocalOptions(
        replicas=1, executors=1, gateways=2, runtime="inprocess", authentication="api_keys"
    )
    async with LocalMesh(directory, options) as mesh:
        made = Bed(mesh)
        yield made
        for channel in made.channels:
            await channel.close()
    _no_secret_is_written_down(directory, made.secrets)


def _no_secret_is_written_down(directory: Path, secrets: list[str]) -> None:
    """Every file of the mesh, logs, journals, states and configurations, but the operator's own."""
    looked_at = 0
    parts = [text.rpartition("_")[2].encode() for text in secrets]
    for path in directory.rglob("*"):
        if path.is_file() and path.name != "operator.key":
            content = path.read_bytes()
            looked_at += 1
            assert not any(part in content for part in parts), path
    assert looked_at > 20 and len(parts) > 10


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(bed: Bed) -> Caller:
    return await bed.holder("alice", ADMIN)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bob(bed: Bed) -> Caller:
    return await bed.holder("bob", ADMIN)


async def test_nothing_is_open_to_who_shows_no_key(bed: Bed) -> None:
    stranger = bed.caller("")
    for method in METHODS.values():
        error = await refusal(stranger.call(method.name.removeprefix("tickmesh.v1."), _any(method)))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_REQUIRED")


def _any(method: Method) -> Any:
    return method.request_type()


async def test_health_and_reflection_are_open(bed: Bed) -> None:
    health: Any = health_pb2_grpc.HealthStub(bed.channels[0])
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(bed.channels[0])
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    async for told in reflection.ServerReflectionInfo(iter(asked), timeout=TIMEOUT_S):
        names = {service.name for service in told.list_services_response.service}
        assert "tickmesh.v1.CustomerService" in names
        break


async def test_two_customers_try_everything_on_each_others_names(
    bed: Bed, alice: Caller, bob: Caller
) -> None:
    """Every method that names something, on things that are there and on things that are not: the
    answers are the same."""
    make = job_pb2.CreateJobRequest(parent="customers/bob", job_id="secret")
    make.job.container.image = "words:1"
    await bob.call("JobService/CreateJob", make)
    schedule = schedule_pb2.CreateScheduleRequest(
        parent="customers/bob/jobs/secret", schedule_id="nightly"
    )
    schedule.schedule.recurrence.crons.append("0 3 * * *")
    await bob.call("ScheduleService/CreateSchedule", schedule)
    ran = execution_pb2.Execution.FromString(
        await bob.call(
            "ExecutionService/ExecuteJob",
            execution_pb2.ExecuteJobRequest(name="customers/bob/jobs/secret"),
        )
    )
    days = calendar_pb2.CreateCalendarRequest(parent="customers/bob", calendar_id="holidays")
    days.calendar.dates.append("12-25")
    await bob.call("CalendarService/CreateCalendar", days)
    login = image_pb2.CreateRegistryCredentialRequest(
        parent="customers/bob", host="registry.example:5000", username="robot", secret="open"
    )
    await bob.call("ImageService/CreateRegistryCredential", login)
    key = await bob.create_key("bob", READ)
    bed.secrets.append(key.text)
    real = {
        "customers": "customers/bob",
        "jobs": "customers/bob/jobs/secret",
        "schedules": "customers/bob/jobs/secret/schedules/nightly",
        "executions": ran.name,
        "images": "customers/bob/images/words:1",
        "keys": key.api_key.name,
        "calendars": "customers/bob/calendars/holidays",
        "registry": "customers/bob/registry",
        "credentials": "customers/bob/registryCredentials/registry.example:5000",
    }
    tried = set()
    for method in METHODS.values():
        if not method.routing_field:
            continue
        for there in real.values():
            imaginary = there.replace("/bob", "/nobody").replace("secret", "none")
            answers = []
            for name in (there, imaginary):
                request = _filled(method, name)
                error = await refusal(alice.call(method.name.removeprefix("tickmesh.v1."), request))
                answers.append((error.code, error.reason, error.message.replace(name, "NAME")))
            if answers[0][1] == "FIELD_INVALID":  # not the form of a name for this method
                assert answers[1][1] == "FIELD_INVALID"
                continue
            tried.add(method.name)
            assert answers[0] == answers[1], method.name
            assert answers[0][:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), method.name
    wanted = {m.name for m in METHODS.values() if m.routing_field}
    assert tried == wanted, "give `real` and `_filled` what the others take"
    # Nothing of it happened.
    assert await bob.jobs("bob") == ["customers/bob/jobs/secret"]
    assert await alice.jobs("alice") == []


def _filled(method: Method, name: str) -> Any:
    """A request that is valid but for whose the name is, as far as its rules let it be."""
    request: Any = method.request_type()
    *outer, last = method.routing_field.split(".")
    target = request
    for part in outer:
        target = getattr(target, part)
    setattr(target, last, name)
    fields = request.DESCRIPTOR.fields_by_name
    for field in fields.values():
        if field.message_type is not None and (found := rules(field)) and found.required:
            getattr(request, field.name).SetInParent()
    if "job" in fields:
        request.job.container.image = "words:1"
    if "jobs" in fields:
        request.jobs.add().job.container.image = "words:1"
    if "schedule" in fields and fields["schedule"].message_type is not None:
        request.schedule.recurrence.crons.append("* * * * *")
    if "schedules" in fields:
        request.schedules.add().schedule.recurrence.crons.append("* * * * *")
    if "calendar" in fields:
        request.calendar.dates.append("12-25")
    if "recurrence" in fields:
        request.recurrence.crons.append("* * * * *")
    if "executions" in fields:
        request.executions.add().name = name if "/jobs/" in name else f"{name}/jobs/secret"
    if "update_mask" in fields:
        request.update_mask.paths.append("*")
    if "api_key" in fields:
        request.api_key.scopes.append(READ)
    if "secret" in fields:
        request.host, request.username, request.secret = "registry.example:5000", "robot", "open"
    if "backfill" in fields:
        request.backfill = "0" * 20
    for moment in ("start_time", "end_time"):
        if moment in fields:
            getattr(request, moment).FromSeconds(1_700_000_000)
    return request


async def test_names_of_others_hide_nowhere_else_in_a_request(alice: Caller, bob: Caller) -> None:
    """Fields beside the one by which a call is routed."""
    make = job_pb2.CreateJobRequest(parent="customers/alice", job_id="mine")
    make.job.container.image = "words:1"
    await alice.call("JobService/CreateJob", make)
    batch = execution_pb2.BatchExecuteJobsRequest(parent="customers/alice")
    batch.executions.add(name="customers/bob/jobs/secret")
    error = await refusal(alice.call("ExecutionService/BatchExecuteJobs", batch))
    assert error.fields[0][0] == "executions[0].name"
    listing = execution_pb2.ListExecutionsRequest(
        parent="customers/alice/jobs/-", schedule="customers/bob/jobs/secret/schedules/nightly"
    )
    error = await refusal(alice.call("ExecutionService/ListExecutions", listing))
    assert error.fields[0][0] == "schedule"
    update = job_pb2.UpdateJobRequest()
    update.job.name = "customers/bob/jobs/secret"
    update.job.container.image = "words:1"
    update.update_mask.paths.append("container.image")
    assert (await refusal(alice.call("JobService/UpdateJob", update))).reason == "NOT_FOUND"
    data = await alice.call(
        "ExecutionService/ListExecutions",
        execution_pb2.ListExecutionsRequest(parent="customers/alice/jobs/-"),
    )
    assert not execution_pb2.ListExecutionsResponse.FromString(data).executions


async def test_a_key_opens_what_its_scopes_say(bed: Bed) -> None:
    holders = {
        Scope.READ: await bed.holder("scopes", READ),
        Scope.EXECUTE: await bed.holder("scopes", EXECUTE),
        Scope.ADMIN: await bed.holder("scopes", ADMIN),
        Scope.OPERATOR: bed.operator,
    }
    names = (
        "customers/scopes",
        "customers/scopes/jobs/none",
        "customers/scopes/jobs/none/schedules/none",
        "customers/scopes/jobs/none/executions/0",
        "customers/scopes/images/none:1",
        f"customers/scopes/keys/{'0' * 16}",
        "customers/scopes/calendars/none",
        "customers/scopes/registry",
        "customers/scopes/registryCredentials/registry.example:5000",
    )
    denied = 0
    for method in METHODS.values():
        if method.routing_field:
            for scope, holder in holders.items():
                opens = ACCESS[method.name] & scope or (
                    scope is Scope.ADMIN and ACCESS[method.name] & (Scope.READ | Scope.EXECUTE)
                )
                if opens:
                    continue
                reasons = [
                    (await refusal(holder.call(method.name.split(".")[2], _filled(method, name))))
                    for name in names
                ]
                assert {each.reason for each in reasons} <= {"SCOPE_MISSING", "FIELD_INVALID"}
                found = [each for each in reasons if each.reason == "SCOPE_MISSING"]
                assert found, f"{method.name}: give `names` and `_filled` what it takes"
                assert {each.code for each in found} == {grpc.StatusCode.PERMISSION_DENIED}
                denied += 1
    assert denied > 30
    assert await holders[Scope.READ].jobs("scopes") == []
    assert await holders[Scope.ADMIN].jobs("scopes") == []


async def test_the_mesh_itself_is_the_operators(bed: Bed, alice: Caller) -> None:
    get = METHODS["tickmesh.v1.ClusterService/GetCluster"].request_type()
    await bed.operator.call("ClusterService/GetCluster", get)
    assert (await refusal(alice.call("ClusterService/GetCluster", get))).reason == "SCOPE_MISSING"


async def test_keys_are_listed_without_their_secrets(bed: Bed) -> None:
    made = [await bed.key("lists", READ, EXECUTE), await bed.key("lists", ADMIN, expires_s=3600)]
    admin = bed.caller(made[1].text)
    data = await admin.call(
        "CustomerService/ListApiKeys", customer_pb2.ListApiKeysRequest(parent="customers/lists")
    )
    listed = customer_pb2.ListApiKeysResponse.FromString(data).api_keys
    assert sorted(key.name for key in listed) == sorted(key.api_key.name for key in made)
    assert {tuple(key.scopes) for key in listed} == {(READ, EXECUTE), (ADMIN,)}
    assert not any(key.text.rpartition("_")[2].encode() in data for key in made)


async def test_a_revoked_key_is_refused_everywhere_soon_and_its_streams_end(bed: Bed) -> None:
    made = await bed.key("revokes", READ)
    here, there = bed.caller(made.text, 0), bed.caller(made.text, 1)
    assert await here.jobs("revokes") == await there.jobs("revokes") == []
    watch = bed.channels[1].unary_stream("/tickmesh.v1.ExecutionService/WatchExecutions")(
        execution_pb2.WatchExecutionsRequest(parent="customers/revokes/jobs/-").SerializeToString(),
        timeout=60,
        metadata=there.metadata,
    )
    assert await watch.read()
    began_s = time.monotonic()
    await bed.operator.revoke(made.api_key.name)
    assert (await refusal(here.jobs("revokes"))).reason == "KEY_INVALID", "here at once"
    ended = await refusal(watch.read())
    assert (ended.code, ended.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID")
    assert time.monotonic() - began_s < 2 * KEY_REMEMBERED_S + 2
    assert (await refusal(there.jobs("revokes"))).reason == "KEY_INVALID"
    again = bed.operator.revoke(made.api_key.name)
    assert (await refusal(again)).reason == "NOT_FOUND"


async def test_a_key_expires(bed: Bed) -> None:
    made = await bed.key("expires", READ, expires_s=1.5)
    caller = bed.caller(made.text)
    assert await caller.jobs("expires") == []
    error = await refusal(_for_ever(lambda: caller.jobs("expires")))
    assert error.reason == "KEY_INVALID" and "expired" in error.message
    assert time.time() >= made.api_key.expire_time.ToNanoseconds() / 1e9


async def _for_ever(call: Callable[[], Awaitable[Any]]) -> None:
    """Until it fails."""
    while True:
        await call()


async def test_a_repeated_request_makes_one_key_and_its_last_secret_holds(bed: Bed) -> None:
    request = customer_pb2.CreateApiKeyRequest(parent="customers/repeats", request_id="once")
    request.api_key.scopes.append(READ)
    stub: Any = customer_pb2_grpc.CustomerServiceStub(bed.channels[0])
    options = {"timeout": TIMEOUT_S, "metadata": bed.operator.metadata}
    first, second = [await stub.CreateApiKey(request, **options) for _ in range(2)]
    bed.secrets += [first.text, second.text]
    assert first.api_key.name == second.api_key.name and first.text != second.text
    assert await bed.caller(second.text).jobs("repeats") == []
    assert (await refusal(bed.caller(first.text).jobs("repeats"))).reason == "KEY_INVALID"


@pytest.mark.parametrize(
    ("scopes", "expires_s", "field"),
    [
        ((), 0, "api_key.scopes"),
        ((0,), 0, "api_key.scopes[0]"),
        ((99,), 0, "api_key.scopes[0]"),
        ((READ,), -60, "api_key.expire_time"),
    ],
)
async def test_a_bad_key_is_not_made(
    bed: Bed, scopes: tuple[int, ...], expires_s: float, field: str
) -> None:
    error = await refusal(bed.operator.create_key("bad", *scopes, expires_s=expires_s))
    assert error.fields[0][0] == field
    data = await bed.operator.call(
        "CustomerService/ListApiKeys", customer_pb2.ListApiKeysRequest(parent="customers/bad")
    )
    assert not customer_pb2.ListApiKeysResponse.FromString(data).api_keys


async def test_the_command_line_makes_a_key_and_works_with_it(
    bed: Bed, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def tickmesh(*words: str) -> int:
        return await asyncio.to_thread(run, ["--address", bed.mesh.address, *words])

    operator, made = str(bed.mesh.operator_key_file), str(tmp_path / "cli.key")
    create = ("key", "create", "--scope", "execute", "--scope", "read", "--file", made)
    assert await tickmesh("--api-key-file", operator, "--customer", "cli", *create) == 0
    bed.secrets.append(_read_own(tmp_path / "cli.key"))
    assert await tickmesh("--api-key-file", made, "job", "list") == 0
    assert await tickmesh("job", "list") == EXIT_DENIED
    assert await tickmesh("--api-key-file", made, "job", "create", "j", "--image", "x") == 5
    assert await tickmesh("--api-key-file", made, "cluster") == EXIT_DENIED
    assert await tickmesh("--api-key-file", operator, "cluster") == 0
    told = capfd.readouterr().err
    assert "scope admin" in told and "carries no API key" in told
    assert not any(text in told for text in bed.secrets)


def _read_own(path: Path) -> str:
    """What a file holds that its owner alone may read."""
    assert path.stat().st_mode & 0o777 == 0o600
    return path.read_text().strip()


async def test_wrong_keys_are_refused_alike_and_then_slowly(bed: Bed) -> None:
    """Last: what it counts against this address is forgotten after a while only."""
    good = await bed.key("guessed", READ)
    caller = bed.caller(good.text, 1)
    await caller.jobs("guessed")
    name = api_keys.name_of(good.text)
    assert name is not None
    wrong = [
        api_keys.make("guessed", name.key, bytes(32)),
        api_keys.make("guessed", "0" * 16, bytes(32)),
        api_keys.make("alice", name.key, bytes(32)),
        good.text.replace("guessed", "alice"),
        good.text[:-1],
        api_keys.make_operator(bytes(32)),
        "nonsense",
    ]
    seen: set[str] = set()
    for text in wrong * FAILURES_MAX:
        error = await refusal(bed.caller(text, 1).jobs("guessed"))
        seen.add(error.reason)
        assert text not in error.message
        if error.reason == "TOO_MANY_ATTEMPTS":
            assert error.retry_after_ms
            break
    assert seen == {"KEY_INVALID", "TOO_MANY_ATTEMPTS"}
    assert await caller.jobs("guessed") == [], "a key that is known to be good passes"
