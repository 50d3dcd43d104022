"""A create that is repeated: it answers what the first one made, whatever the repetition says."""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tickmesh.mesh.errors import (
    AlreadyExists,
    InvalidRequest,
    MessageTooLarge,
    OutcomeUnknown,
    Overloaded,
)
from tickmesh.mesh.limits import MESSAGE_BYTES_MAX
from tickmesh.proto.tickmesh.v1 import (
    calendar_pb2,
    customer_pb2,
    execution_pb2,
    job_pb2,
    schedule_pb2,
)
from tickmesh.scheduler.calls import Calls
from tickmesh.scheduler.calls import schedules as calls
from tickmesh.scheduler.core import calendars
from tickmesh.scheduler.core.commands import (
    ENTRY_VERSION,
    AnyCommand,
    DeleteSchedules,
    PinSchedules,
    PurgeExecutions,
    UpdateCustomer,
)
from tickmesh.scheduler.core.history import KEPT_MS_MIN
from tickmesh.scheduler.core.ids import spell
from tickmesh.scheduler.core.recurrence.limits import HORIZON_MS
from tickmesh.scheduler.plans import Plans
from tickmesh.scheduler.raft.errors import NotLeader
from tickmesh.scheduler.store import keys

from .worlds import World, uid

ACME = "customers/acme"
HELLO = f"{ACME}/jobs/hello"
OTHERWISE = "otherwise"


class Proposals:
    """Every command is committed at once."""

    version = ENTRY_VERSION

    def __init__(self, world: World) -> None:
        self._world = world
        self.before: AnyCommand | None = None
        """What is committed between a check and the commit."""
        self.full = False
        """So many wait that nothing is taken."""

    def submit(self, command: AnyCommand, weight: int = 1) -> asyncio.Future[Any]:
        if self.full:
            raise Overloaded("the queue is full", retry_after_ms=1)
        if self.before is not None:
            self._world.do(self.before)
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        outcome.set_result(self._world.do(command))
        return outcome


class Leader:
    """The methods of a leader."""

    early_ms = 0
    """How long it takes from a check to the commit."""

    def __init__(self) -> None:
        world = World()
        world.job()
        self.proposals = Proposals(world)
        shard: Any = SimpleNamespace(
            queries=world.queries,
            plans=Plans(world.queries, {}),
            proposals=self.proposals,
            now_ms=lambda: world.now_ms - self.early_ms,
            place=lambda _: None,
            pending_reason=lambda _: "",
            soft=lambda _: None,
            replica=SimpleNamespace(read_barrier=functools.partial(asyncio.sleep, 0)),
        )
        numbers = itertools.count(1_000)
        self.world = world
        self._calls = Calls(shard, lambda size: uid(next(numbers))[:size].rjust(size, b"."))

    def stored(self) -> dict[bytes, bytes]:
        """All that is, but for how far it has come."""
        return {key: value for key, value in self.world.everything().items() if key != keys.META}

    async def call(self, method: str, request: Any) -> Any:
        methods = self._calls.methods
        if step := methods.steps.get(f"tickmesh.v1.{method}"):
            return await step[1](request)
        if read := methods.reads.get(f"tickmesh.v1.{method}"):
            return read[1](request)
        write = methods.writes[f"tickmesh.v1.{method}"][1](request)
        return write.respond(await write.outcome)


def schedule(said: str) -> schedule_pb2.Schedule:
    """Both that may be said recur alike, and differ in all else."""
    made = schedule_pb2.Schedule(payload=said.encode(), labels={"said": said})
    made.recurrence.crons.append("0 3 * * *")
    if said == OTHERWISE:
        made.misfire_policy = schedule_pb2.MISFIRE_POLICY_SKIP
        made.overlap_policy = schedule_pb2.OVERLAP_POLICY_SKIP
        made.pause_after_failures = 3
    return made


def job(said: str) -> job_pb2.Job:
    made = job_pb2.Job(display_name=said, labels={"said": said})
    made.container.image = f"{said}:1"
    made.container.command.append("true")
    return made


def create_schedule(said: str, item_id: str) -> Any:
    return schedule_pb2.CreateScheduleRequest(
        parent=HELLO, schedule=schedule(said), schedule_id=item_id, request_id="once"
    )


def create_schedules(said: str, item_id: str) -> Any:
    item = schedule_pb2.NewSchedule(schedule_id=item_id, schedule=schedule(said))
    further = schedule_pb2.NewSchedule(schedule=schedule(said))
    return schedule_pb2.BatchCreateSchedulesRequest(
        parent=HELLO, schedules=[item, further], request_id="once"
    )


def create_job(said: str, item_id: str) -> Any:
    return job_pb2.CreateJobRequest(parent=ACME, job=job(said), job_id=item_id, request_id="once")


def create_jobs(said: str, item_id: str) -> Any:
    items = [job_pb2.NewJob(job_id=item_id, job=job(said)), job_pb2.NewJob(job=job(said))]
    return job_pb2.BatchCreateJobsRequest(parent=ACME, jobs=items, request_id="once")


def create_calendar(said: str, item_id: str) -> Any:
    calendar = calendar_pb2.Calendar(display_name=said, labels={"said": said})
    calendar.dates.append("05-01" if said == OTHERWISE else "12-25")
    return calendar_pb2.CreateCalendarRequest(
        parent=ACME, calendar=calendar, calendar_id=item_id, request_id="once"
    )


def execute(said: str, _: str) -> Any:
    return execution_pb2.ExecuteJobRequest(name=HELLO, payload=said.encode(), request_id="once")


def execute_all(said: str, _: str) -> Any:
    items = [execution_pb2.NewExecution(name=HELLO, payload=said.encode()) for _ in range(2)]
    return execution_pb2.BatchExecuteJobsRequest(parent=ACME, executions=items, request_id="once")


CREATES: dict[str, tuple[Callable[[str, str], Any], str, type[Any]]] = {
    "ScheduleService/CreateSchedule": (
        create_schedule,
        "ScheduleService/GetSchedule",
        schedule_pb2.GetScheduleRequest,
    ),
    "ScheduleService/BatchCreateSchedules": (
        create_schedules,
        "ScheduleService/GetSchedule",
        schedule_pb2.GetScheduleRequest,
    ),
    "JobService/CreateJob": (create_job, "JobService/GetJob", job_pb2.GetJobRequest),
    "JobService/BatchCreateJobs": (create_jobs, "JobService/GetJob", job_pb2.GetJobRequest),
    "CalendarService/CreateCalendar": (
        create_calendar,
        "CalendarService/GetCalendar",
        calendar_pb2.GetCalendarRequest,
    ),
    "ExecutionService/ExecuteJob": (
        execute,
        "ExecutionService/GetExecution",
        execution_pb2.GetExecutionRequest,
    ),
    "ExecutionService/BatchExecuteJobs": (
        execute_all,
        "ExecutionService/GetExecution",
        execution_pb2.GetExecutionRequest,
    ),
}
"""By its method: the request, and how what it makes is read."""


def items(response: Any) -> list[Any]:
    """What a response answers: one thing, or those of a batch."""
    fields = response.ListFields()
    return [response] if hasattr(response, "name") else list(fields[0][1])


@pytest.mark.parametrize("item_id", ["mine", ""])
@pytest.mark.parametrize("method", list(CREATES))
async def test_a_repetition_that_says_something_else_answers_what_is_stored(
    method: str, item_id: str
) -> None:
    leader = Leader()
    create, get, get_request = CREATES[method]
    first = items(await leader.call(method, create("first", item_id)))
    stored = leader.stored()
    leader.world.now_ms += 60_000
    again = items(await leader.call(method, create(OTHERWISE, item_id)))
    assert again == first
    assert again == [await leader.call(get, get_request(name=item.name)) for item in first]
    assert leader.stored() == stored


async def test_a_repetition_answers_what_a_schedule_has_become() -> None:
    leader = Leader()
    method = "ScheduleService/BatchCreateSchedules"
    (made, _) = items(await leader.call(method, create_schedules("first", "mine")))
    pause = schedule_pb2.PauseScheduleRequest(name=made.name, reason="enough")
    paused = await leader.call("ScheduleService/PauseSchedule", pause)
    again = items(await leader.call(method, create_schedules("first", "mine")))
    assert again[0] == paused and paused.pause_reason == "enough"


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("CreateSchedule", "schedule.recurrence"),
        ("BatchCreateSchedules", "schedules[1].schedule.recurrence"),
    ],
)
async def test_a_time_that_passes_before_the_commit_is_named(method: str, field: str) -> None:
    leader = Leader()
    leader.early_ms = 1_000
    soon = schedule_pb2.Schedule()
    soon.recurrence.times.add().FromMilliseconds(leader.world.now_ms - 500)
    request: Any = schedule_pb2.CreateScheduleRequest(parent=HELLO, schedule=soon)
    if method == "BatchCreateSchedules":
        items = [schedule_pb2.NewSchedule(schedule=each) for each in (schedule("first"), soon)]
        request = schedule_pb2.BatchCreateSchedulesRequest(parent=HELLO, schedules=items)
    with pytest.raises(InvalidRequest) as refused:
        await leader.call(f"ScheduleService/{method}", request)
    assert refused.value.fields == ((field, "has no instant that is still to come"),)


def at(leader: Leader, method: str, request_id: str = "once", after_ms: int = 30_000) -> Any:
    """A create of a schedule that fires once, or of it and of another one."""
    message = schedule_pb2.Schedule(payload=b"at")
    message.recurrence.times.add().FromMilliseconds(leader.world.now_ms + after_ms)
    if method == "ScheduleService/CreateSchedule":
        return schedule_pb2.CreateScheduleRequest(
            parent=HELLO, schedule=message, schedule_id="at", request_id=request_id
        )
    request = create_schedules("first", "mine")
    request.schedules.add(schedule=message, schedule_id="at")
    request.request_id = request_id
    return request


SCHEDULE_CREATES = ["ScheduleService/CreateSchedule", "ScheduleService/BatchCreateSchedules"]


@pytest.mark.parametrize("method", SCHEDULE_CREATES)
async def test_a_repetition_after_its_times_have_passed_answers_what_is_stored(method: str) -> None:
    leader = Leader()
    request = at(leader, method)
    first = items(await leader.call(method, copy.deepcopy(request)))
    leader.world.now_ms += 60_000
    assert items(await leader.call(method, copy.deepcopy(request))) == first
    # It is another request; or it only asks whether it could be made; or it is deleted by now.
    request.request_id = "another"
    with pytest.raises(InvalidRequest, match="is in the past"):
        await leader.call(method, copy.deepcopy(request))
    request.request_id = "once"
    if method == "ScheduleService/CreateSchedule":
        request.validate_only = True
        with pytest.raises(InvalidRequest, match="is in the past"):
            await leader.call(method, copy.deepcopy(request))
        request.validate_only = False
    gone = DeleteSchedules("acme", "hello", ["at"], 0, False)
    leader.proposals.before = gone
    with pytest.raises(InvalidRequest, match="no instant that is still to come"):
        await leader.call(method, copy.deepcopy(request))
    leader.proposals.before = None
    with pytest.raises(InvalidRequest, match="is in the past"):
        await leader.call(method, copy.deepcopy(request))
    gets = schedule_pb2.ListSchedulesRequest(parent=HELLO)
    listed = (await leader.call("ScheduleService/ListSchedules", gets)).schedules
    assert [each.name for each in listed] == sorted(each.name for each in first[:-1])


@pytest.mark.parametrize("seconds", [1, HORIZON_MS // 1_000, (1 << 63) - 1])
async def test_a_key_expires_at_a_time_that_comes(seconds: int) -> None:
    """One of 300 million years fits no entry."""
    leader = Leader()
    request = customer_pb2.CreateApiKeyRequest(parent=ACME)
    request.api_key.expire_time.seconds = seconds
    with pytest.raises(InvalidRequest) as refused:
        await leader.call("CustomerService/CreateApiKey", request)
    assert refused.value.fields[0][0] == "api_key.expire_time"
    request.api_key.expire_time.seconds = HORIZON_MS // 1_000 - 1
    made = await leader.call("CustomerService/CreateApiKey", request)
    assert made.api_key.expire_time == request.api_key.expire_time


async def test_a_request_id_that_has_executed_another_job_is_refused() -> None:
    leader = Leader()
    leader.world.job("other")
    made = await leader.call("ExecutionService/ExecuteJob", execute("this", ""))
    before = leader.stored()
    other = execution_pb2.ExecuteJobRequest(name=f"{ACME}/jobs/other", request_id="once")
    with pytest.raises(AlreadyExists, match="other jobs") as caught:
        await leader.call("ExecutionService/ExecuteJob", other)
    assert caught.value.fields[0][0] == "request_id"
    with pytest.raises(AlreadyExists):
        await leader.call("ExecutionService/BatchExecuteJobs", execute_all("this", ""))
    assert leader.stored() == before
    again = await leader.call("ExecutionService/ExecuteJob", execute("this", ""))
    assert again.name == made.name


async def test_a_schedules_preview_is_of_what_is_drawn_for_it() -> None:
    leader = Leader()
    asked = create_schedule("this", "nightly")
    del asked.schedule.recurrence.crons[:]
    asked.schedule.recurrence.crons.append("H H * * *")
    asked.schedule.recurrence.jitter.FromSeconds(600)
    asked.schedule.recurrence.max_fires = 2
    created = await leader.call("ScheduleService/CreateSchedule", asked)
    assert created.recurrence.crons
    preview = schedule_pb2.PreviewScheduleRequest(
        parent=ACME, recurrence=created.recurrence, schedule=created.name
    )
    for left in (2, 1, 0):
        stored = leader.world.queries.schedule(
            leader.world.queries.job("acme", "hello").uid, "nightly"
        )
        told = await leader.call("ScheduleService/PreviewSchedule", preview)
        assert len(told.fires) == left
        if left:
            assert told.fires[0].due_time.ToMilliseconds() == stored.due_ms
            leader.world.now_ms = stored.due_ms
            leader.world.fire(stored)


async def test_times_of_a_schedule_that_have_passed_do_not_stop_its_preview() -> None:
    leader = Leader()
    asked = create_schedule("this", "twice")
    del asked.schedule.recurrence.crons[:]
    for after_ms in (1_000, 60_000):
        asked.schedule.recurrence.times.add().FromMilliseconds(leader.world.now_ms + after_ms)
    created = await leader.call("ScheduleService/CreateSchedule", asked)
    leader.world.now_ms += 2_000
    preview = schedule_pb2.PreviewScheduleRequest(
        parent=ACME, recurrence=created.recurrence, schedule=created.name
    )
    assert len((await leader.call("ScheduleService/PreviewSchedule", preview)).fires) == 1
    preview.schedule = preview.schedule.replace("acme", "somebody")
    with pytest.raises(InvalidRequest, match="not a schedule of"):
        await leader.call("ScheduleService/PreviewSchedule", preview)


@pytest.mark.parametrize("what", ["Jobs", "Schedules"])
async def test_a_batch_is_made_only_if_its_answer_can_be_sent(what: str) -> None:
    """One that was just within the limit was made, and its caller told of an error."""
    leader = Leader()
    count, text = 1_000, "x" * 3_100
    made: Any
    request: Any
    if what == "Jobs":
        made = job_pb2.Job(display_name="")
        made.container.image = "hello:1"
        made.container.args.append(text)
        items = [job_pb2.NewJob(job_id=f"j{n}", job=made) for n in range(count)]
        request = job_pb2.BatchCreateJobsRequest(parent=ACME, jobs=items)
        method, repeated = "JobService/BatchCreateJobs", request.jobs
    else:
        made = schedule_pb2.Schedule(payload=text.encode())
        made.recurrence.crons.append("0 3 * * *")
        new = [schedule_pb2.NewSchedule(schedule_id=f"s{n}", schedule=made) for n in range(count)]
        request = schedule_pb2.BatchCreateSchedulesRequest(parent=HELLO, schedules=new)
        method, repeated = "ScheduleService/BatchCreateSchedules", request.schedules
    too_large = type(request).FromString(request.SerializeToString())
    for item in getattr(too_large, what.lower()):
        if what == "Jobs":
            item.job.container.args[0] = "x" * 4_100
        else:
            item.schedule.payload = b"x" * 4_100
    assert too_large.ByteSize() <= MESSAGE_BYTES_MAX
    before = leader.stored()
    with pytest.raises(MessageTooLarge):
        await leader.call(method, too_large)
    assert leader.stored() == before
    answer = await leader.call(method, request)
    assert len(answer.ListFields()[0][1]) == len(repeated)
    assert answer.ByteSize() <= MESSAGE_BYTES_MAX


async def test_what_is_forgotten_while_it_is_cancelled_is_answered_as_it_was() -> None:
    leader = Leader()
    world = leader.world
    (made,) = world.execute()
    world.end(made)
    world.now_ms += KEPT_MS_MIN
    world.do(UpdateCustomer("acme", 0, KEPT_MS_MIN, 0))
    customer = world.queries.customer("acme")
    assert customer is not None
    leader.proposals.before = PurgeExecutions(
        "acme", customer.version, [(made.job_uid, made.id)], False
    )
    name = f"{HELLO}/executions/{spell(made.id)}"
    request = execution_pb2.CancelExecutionRequest(name=name)
    answer = await leader.call("ExecutionService/CancelExecution", request)
    assert (answer.name, answer.state) == (name, execution_pb2.EXECUTION_STATE_SUCCEEDED)
    assert world.queries.execution(made.job_uid, made.id) is None


async def test_a_zone_is_learned_by_the_next_create_if_the_first_found_no_room() -> None:
    """No schedule that this leader took afterwards was pinned to its zone."""
    leader = Leader()
    request = create_schedule("first", "mine")
    request.schedule.recurrence.time_zone = "Europe/Berlin"
    leader.proposals.full = True
    with pytest.raises(Overloaded):
        await leader.call("ScheduleService/CreateSchedule", copy.deepcopy(request))
    leader.proposals.full = False
    await leader.call("ScheduleService/CreateSchedule", copy.deepcopy(request))
    assert [zone.name for zone in leader.world.queries.zones()] == ["Europe/Berlin"]


async def test_labels_of_what_has_finished_can_be_changed() -> None:
    leader = Leader()
    made = await leader.call(
        "ScheduleService/CreateSchedule", at(leader, "ScheduleService/CreateSchedule")
    )
    leader.world.now_ms += 30_000
    leader.world.fire(leader.world.queries.schedules(uid(1), b"", 1)[0][0])
    leader.world.now_ms += 30_000
    update = schedule_pb2.UpdateScheduleRequest(
        schedule=schedule_pb2.Schedule(name=made.name, labels={"team": "a"})
    )
    update.update_mask.paths.append("labels")
    changed = await leader.call("ScheduleService/UpdateSchedule", update)
    assert dict(changed.labels) == {"team": "a"}
    assert changed.state == schedule_pb2.SCHEDULE_STATE_FINISHED and changed.fire_count == 1


@pytest.mark.parametrize("error", [NotLeader(None), Overloaded("full", retry_after_ms=1)])
async def test_a_changed_calendar_whose_schedules_do_not_follow_at_once_was_not_refused(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway sent it to the next leader, which called the client's own change another's."""
    monkeypatch.setattr(calendars, "PINNED_MAX", 1)
    leader = Leader()
    made = await leader.call("CalendarService/CreateCalendar", create_calendar("first", "mine"))
    for number in range(3):
        request = create_schedule("first", f"s-{number}")
        request.request_id = ""
        request.schedule.recurrence.excluded_calendars.append(made.name)
        await leader.call("ScheduleService/CreateSchedule", request)
    submit = leader.proposals.submit

    def fail(command: AnyCommand, weight: int = 1) -> asyncio.Future[Any]:
        if isinstance(command, PinSchedules):
            raise error
        return submit(command, weight)

    monkeypatch.setattr(leader.proposals, "submit", fail)
    update = calendar_pb2.UpdateCalendarRequest(calendar=made)
    update.calendar.dates.append("05-01")
    update.update_mask.paths.append("dates")
    with pytest.raises(OutcomeUnknown, match="is changed"):
        await leader.call("CalendarService/UpdateCalendar", update)
    get = calendar_pb2.GetCalendarRequest(name=made.name)
    assert list((await leader.call("CalendarService/GetCalendar", get)).dates) == ["12-25", "05-01"]


@pytest.mark.parametrize("in_calendar", [False, True])
async def test_a_batch_whose_exclusions_take_too_long_to_pass_is_refused(
    in_calendar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand schedules and four calendars of 1,000 days each kept a shard from all else for 20
    seconds."""
    monkeypatch.setattr(calls, "BATCH_EXCLUDED_MAX", 20)
    leader = Leader()
    dates = [f"2030-01-{day:02}" for day in range(1, 8)]
    request = schedule_pb2.BatchCreateSchedulesRequest(parent=HELLO)
    for number in range(3):
        recurrence = request.schedules.add(schedule=schedule("first")).schedule.recurrence
        recurrence.crons[0] = f"{number} 3 * * *"
        if in_calendar:
            recurrence.excluded_calendars.append(f"{ACME}/calendars/mine")
        else:
            recurrence.excluded_dates.extend(dates)
    if in_calendar:
        create = create_calendar("first", "mine")
        create.calendar.dates[:] = dates
        await leader.call("CalendarService/CreateCalendar", create)
    before = leader.stored()
    method = "ScheduleService/BatchCreateSchedules"
    with pytest.raises(MessageTooLarge, match=r"schedules\[2\].*split it"):
        await leader.call(method, copy.deepcopy(request))
    assert leader.stored() == before
    request.schedules[2].schedule.recurrence.crons[0] = "1 3 * * *"  # as another one of them
    assert len((await leader.call(method, request)).schedules) == 3


def other_ids(request: Any, item_id: str) -> Any:
    """The same request, with another id where one is given."""
    for field in ("job_id", "schedule_id"):
        for item in getattr(request, "jobs", getattr(request, "schedules", [request])):
            if hasattr(item, field) and getattr(item, field):
                setattr(item, field, item_id)
    return request


@pytest.mark.parametrize(
    ("method", "create"),
    [
        ("JobService/BatchCreateJobs", create_jobs),
        ("ScheduleService/BatchCreateSchedules", create_schedules),
    ],
)
async def test_a_request_id_is_bound_to_the_ids_that_are_given(method: str, create: Any) -> None:
    leader = Leader()
    first = items(await leader.call(method, create("first", "mine")))
    again = items(await leader.call(method, other_ids(create("first", "mine"), "another")))
    assert again[1] == first[1]
    assert again[0].name.endswith("/another") and again[0].uid != first[0].uid
