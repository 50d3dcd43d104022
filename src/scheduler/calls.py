"""The public methods, as the shard's leader answers them: one function a method.

Three kinds. A write checks a request and submits one command, and makes the response of what came
of it. A read looks at the state after a read barrier. A step-by-step method does several of these.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from google.protobuf import empty_pb2
from google.protobuf.message import Message
from msgspec.structs import replace

from ..mesh import names
from ..mesh.errors import (
    AlreadyExists,
    CalendarInUse,
    EtagMismatch,
    FailedPrecondition,
    JobHasSchedules,
    NotFound,
    NotPaused,
    Overloaded,
    ResourceExhausted,
    TickmeshError,
    TooManyKeys,
    invalid,
)
from ..mesh.limits import BATCH_ITEMS_MAX
from ..proto.tickmesh.v1 import (
    calendar_pb2,
    customer_pb2,
    execution_pb2,
    image_pb2,
    job_pb2,
    schedule_pb2,
)
from . import convert, pages
from .core import commands, pins, recurrence
from .core.calendars import CALENDARS_MAX, PINNED_MAX, left_without, listed
from .core.commands import Outcome, Placement, Refused, Why
from .core.customers import CREDENTIALS_MAX, KEYS_MAX
from .core.fires import BACKFILL_MAX
from .core.ids import EXECUTION_ID_BYTES, UID_BYTES, spell, unspell
from .core.model import ACTIVE_STATES, Calendar, Execution, ExecutionState, Job, Schedule
from .credentials import CredentialCalls
from .customers import Customers
from .ledgers import Ledgers
from .masks import UPDATE_TRIES_MAX, merge
from .shard import Shard

FILTER_LOOKED_AT_MAX = 10_000
"""Executions that a filtered listing looks at a page: about 0.1 s."""

PREVIEW_DEFAULT = 10

REQUEST_BYTES = 12
"""What is stored of a request_id: nobody has so many that two are alike."""

Request = TypeVar("Request", bound=Message)


class Write(NamedTuple):
    """A submitted command: its outcome to come, and how that becomes a response."""

    outcome: asyncio.Future[Outcome]
    respond: Callable[[Any], Message]
    placements: list[Placement | None]


def request_hash(request_id: str) -> bytes:
    """What is stored of a request_id."""
    if not request_id:
        return b""
    return hashlib.blake2b(request_id.encode(), digest_size=REQUEST_BYTES).digest()


def request_uid(request: bytes, index: int) -> bytes:
    """A uid drawn from a request, so that its repetition draws the same."""
    return hashlib.blake2b(request + b"%d" % index, digest_size=UID_BYTES).digest()


def request_ids(request_id: str) -> tuple[bytes, bytes]:
    """What is stored of a request_id, and the uid of the one thing that it makes."""
    hashed = request_hash(request_id)
    return hashed, request_uid(hashed, 0) if hashed else b""


def made_id(prefix: str, raw: bytes) -> str:
    """An id for what the client left unnamed."""
    return f"{prefix}-{spell(raw)}"


def refusal(refused: Refused, field: str = "") -> TickmeshError:
    """The error that a refused command means."""
    what = refused.what
    match refused.why:
        case Why.NOT_FOUND:
            return NotFound(f"there is no {what}", metadata={"resource": what})
        case Why.ALREADY_EXISTS:
            return AlreadyExists(f"{field or 'the id'} {what!r} is taken", fields=())
        case Why.VERSION_MISMATCH:
            return EtagMismatch(f"{what} was changed by somebody else: read it again, then decide")
        case Why.HAS_SCHEDULES:
            return JobHasSchedules(f"job {what} still has schedules: delete them, or set force")
        case Why.NOT_PAUSED:
            return NotPaused(f"schedule {what} is not paused")
        case Why.TOO_MANY:
            return invalid(
                "end_time",
                f"the range has {BACKFILL_MAX:,} instants or more, and at most "
                f"{BACKFILL_MAX - 1:,} are allowed: make it smaller",
            )
        case Why.FORGOTTEN:
            return AlreadyExists(
                f"{what} made executions that have ended since and are not kept any more: nothing "
                "was executed; to execute again, use another"
            )
        case Why.TOO_MANY_CREDENTIALS:
            return ResourceExhausted(
                f"{what} has {CREDENTIALS_MAX} logins to registries, and no more are allowed"
            )
        case Why.TOO_MANY_KEYS:
            return TooManyKeys(
                f"{what} has {KEYS_MAX} API keys, and no more are allowed: revoke those that have "
                "expired or that nobody uses"
            )
        case Why.NEVER_FIRES:
            return invalid(field or "schedule.recurrence", "has no instant that is still to come")
        case Why.IN_USE:
            return CalendarInUse(
                f"schedules use the calendar: {what}. Take it out of their excluded_calendars first"
            )
        case Why.LEAVES_NOTHING:
            return CalendarInUse(
                f"the calendar would leave these schedules nothing to fire: {what}. Change or"
                " delete them first"
            )
        case Why.TOO_MANY_CALENDARS:
            return FailedPrecondition(
                f"customer {what} has {CALENDARS_MAX:,} calendars, and may have no more: delete one"
            )


def labels(message: Any) -> tuple[tuple[str, str], ...]:
    """Labels as they are stored."""
    return tuple(sorted(message.labels.items()))


class Calls:
    """The methods of one shard's leader."""

    def __init__(self, shard: Shard, draw: Callable[[int], bytes] = os.urandom) -> None:
        """draw: so many bytes that nobody can guess."""
        self._shard = shard
        self._draw = draw
        self._learning: set[str] = set()
        """Time zones that the shard is about to know."""
        self._ledgers = Ledgers(shard, self._schedule)
        self.credentials = CredentialCalls(shard, shard.secrets, self._submit)
        self.customers = Customers(shard, self._submit, self._do, draw, request_ids)
        self.writes: dict[str, tuple[type[Message], Callable[[Any], Write]]] = {
            "tickmesh.v1.JobService/CreateJob": (job_pb2.CreateJobRequest, self.create_job),
            "tickmesh.v1.JobService/BatchCreateJobs": (
                job_pb2.BatchCreateJobsRequest,
                self.batch_create_jobs,
            ),
            "tickmesh.v1.ScheduleService/CreateSchedule": (
                schedule_pb2.CreateScheduleRequest,
                self.create_schedule,
            ),
            "tickmesh.v1.ScheduleService/BatchCreateSchedules": (
                schedule_pb2.BatchCreateSchedulesRequest,
                self.batch_create_schedules,
            ),
            "tickmesh.v1.ScheduleService/DeleteSchedule": (
                schedule_pb2.DeleteScheduleRequest,
                self.delete_schedule,
            ),
            "tickmesh.v1.ScheduleService/PauseSchedule": (
                schedule_pb2.PauseScheduleRequest,
                self.pause_schedule,
            ),
            "tickmesh.v1.ScheduleService/ResumeSchedule": (
                schedule_pb2.ResumeScheduleRequest,
                self.resume_schedule,
            ),
            "tickmesh.v1.ScheduleService/TriggerSchedule": (
                schedule_pb2.TriggerScheduleRequest,
                self.trigger_schedule,
            ),
            "tickmesh.v1.ScheduleService/BackfillSchedule": (
                schedule_pb2.BackfillScheduleRequest,
                self.backfill_schedule,
            ),
            "tickmesh.v1.CalendarService/CreateCalendar": (
                calendar_pb2.CreateCalendarRequest,
                self.create_calendar,
            ),
            "tickmesh.v1.CalendarService/DeleteCalendar": (
                calendar_pb2.DeleteCalendarRequest,
                self.delete_calendar,
            ),
            "tickmesh.v1.ExecutionService/ExecuteJob": (
                execution_pb2.ExecuteJobRequest,
                self.execute_job,
            ),
            "tickmesh.v1.ExecutionService/BatchExecuteJobs": (
                execution_pb2.BatchExecuteJobsRequest,
                self.batch_execute_jobs,
            ),
            "tickmesh.v1.CustomerService/CreateApiKey": (
                customer_pb2.CreateApiKeyRequest,
                self.customers.create_api_key,
            ),
            "tickmesh.v1.ImageService/CreateRegistryCredential": (
                image_pb2.CreateRegistryCredentialRequest,
                self.credentials.create,
            ),
            "tickmesh.v1.ImageService/DeleteRegistryCredential": (
                image_pb2.DeleteRegistryCredentialRequest,
                self.credentials.delete,
            ),
            "tickmesh.v1.CustomerService/RevokeApiKey": (
                customer_pb2.RevokeApiKeyRequest,
                self.customers.revoke_api_key,
            ),
        }
        self.reads: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "tickmesh.v1.JobService/GetJob": (job_pb2.GetJobRequest, self.get_job),
            "tickmesh.v1.JobService/ListJobs": (job_pb2.ListJobsRequest, self.list_jobs),
            "tickmesh.v1.ScheduleService/GetSchedule": (
                schedule_pb2.GetScheduleRequest,
                self.get_schedule,
            ),
            "tickmesh.v1.ScheduleService/ListSchedules": (
                schedule_pb2.ListSchedulesRequest,
                self.list_schedules,
            ),
            "tickmesh.v1.ScheduleService/PreviewSchedule": (
                schedule_pb2.PreviewScheduleRequest,
                self.preview_schedule,
            ),
            "tickmesh.v1.ScheduleService/ListFires": (
                schedule_pb2.ListFiresRequest,
                self._ledgers.list_fires,
            ),
            "tickmesh.v1.CalendarService/GetCalendar": (
                calendar_pb2.GetCalendarRequest,
                self.get_calendar,
            ),
            "tickmesh.v1.CalendarService/ListCalendars": (
                calendar_pb2.ListCalendarsRequest,
                self.list_calendars,
            ),
            "tickmesh.v1.ExecutionService/GetExecution": (
                execution_pb2.GetExecutionRequest,
                self.get_execution,
            ),
            "tickmesh.v1.ExecutionService/ListExecutions": (
                execution_pb2.ListExecutionsRequest,
                self.list_executions,
            ),
            "tickmesh.v1.CustomerService/GetCustomer": (
                customer_pb2.GetCustomerRequest,
                self.customers.get_customer,
            ),
            "tickmesh.v1.ImageService/ListRegistryCredentials": (
                image_pb2.ListRegistryCredentialsRequest,
                self.credentials.list,
            ),
            "tickmesh.v1.CustomerService/ListApiKeys": (
                customer_pb2.ListApiKeysRequest,
                self.customers.list_api_keys,
            ),
        }
        self.steps: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]] = {
            "tickmesh.v1.JobService/UpdateJob": (job_pb2.UpdateJobRequest, self.update_job),
            "tickmesh.v1.JobService/DeleteJob": (job_pb2.DeleteJobRequest, self.delete_job),
            "tickmesh.v1.ScheduleService/UpdateSchedule": (
                schedule_pb2.UpdateScheduleRequest,
                self.update_schedule,
            ),
            "tickmesh.v1.ScheduleService/CancelBackfill": (
                schedule_pb2.CancelBackfillRequest,
                self.cancel_backfill,
            ),
            "tickmesh.v1.ScheduleService/GetScheduleStatistics": (
                schedule_pb2.GetScheduleStatisticsRequest,
                self._ledgers.statistics,
            ),
            "tickmesh.v1.ScheduleService/VerifySchedule": (
                schedule_pb2.VerifyScheduleRequest,
                self._ledgers.verify,
            ),
            "tickmesh.v1.CalendarService/UpdateCalendar": (
                calendar_pb2.UpdateCalendarRequest,
                self.update_calendar,
            ),
            "tickmesh.v1.CustomerService/UpdateCustomer": (
                customer_pb2.UpdateCustomerRequest,
                self.customers.update_customer,
            ),
            "tickmesh.v1.ExecutionService/CancelExecution": (
                execution_pb2.CancelExecutionRequest,
                self.cancel_execution,
            ),
        }

    # -- common --------------------------------------------------------------------------------

    def _submit(
        self,
        command: commands.AnyCommand,
        respond: Callable[[Any], Message],
        weight: int = 1,
        placements: list[Placement | None] | None = None,
        field: str = "",
    ) -> Write:
        def answered(outcome: Outcome) -> Message:
            if isinstance(outcome, Refused):
                raise refusal(outcome, field.replace("[]", f"[{outcome.index}]"))
            return respond(outcome)

        try:
            submitted = self._shard.proposals.submit(command, weight)
        except Overloaded:
            self._shard.release(placements or [])
            raise
        return Write(submitted, answered, placements or [])

    async def _do(self, command: commands.AnyCommand, weight: int = 1, field: str = "") -> Any:
        outcome = await self._shard.proposals.submit(command, weight)
        if isinstance(outcome, Refused):
            raise refusal(outcome, field)
        return outcome

    def _checked(self, checked: Message) -> Write:
        """The answer to validate_only: nothing is submitted."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        outcome.set_result([])
        return Write(outcome, lambda _: checked, [])

    def _job(self, customer: str, job_id: str) -> Job:
        job = self._shard.queries.job(customer, job_id)
        if job is None:
            raise NotFound(f"there is no {names.job_name(customer, job_id)}")
        return job

    def _schedule(self, name: str, field: str = "name") -> Schedule:
        parts = names.parse_schedule(name, field)
        job = self._job(parts.customer, parts.job)
        schedule = self._shard.queries.schedule(job.uid, parts.schedule)
        if schedule is None:
            raise NotFound(f"there is no {name}")
        return schedule

    # -- jobs ----------------------------------------------------------------------------------

    def create_job(self, request: job_pb2.CreateJobRequest) -> Write:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        hashed = request_hash(request.request_id)
        new = self._new_job(request.job, request.job_id, customer, hashed, 0, "job")
        if request.validate_only:
            return self._checked(request.job)
        command = commands.CreateJobs(customer, [new], hashed)
        return self._submit(command, lambda made: convert.job_message(made[0]), field="job_id")

    def batch_create_jobs(self, request: job_pb2.BatchCreateJobsRequest) -> Write:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        hashed = request_hash(request.request_id)
        new = [
            self._new_job(item.job, item.job_id, customer, hashed, index, f"jobs[{index}].job")
            for index, item in enumerate(request.jobs)
        ]
        return self._submit(
            commands.CreateJobs(customer, new, hashed),
            lambda made: job_pb2.BatchCreateJobsResponse(
                jobs=[convert.job_message(job) for job in made]
            ),
            weight=len(new),
            field="jobs[].job_id",
        )

    def _new_job(
        self,
        job: job_pb2.Job,
        job_id: str,
        customer: str,
        hashed: bytes,
        index: int,
        field: str,
    ) -> commands.NewJob:
        drawn = self._draw(UID_BYTES)
        self._check_labels(job, field)
        return commands.NewJob(
            job_id=job_id or made_id("job", request_uid(hashed, index) if hashed else drawn),
            uid=drawn,
            display_name=job.display_name,
            labels=labels(job),
            spec=convert.job_spec(job, customer, field),
        )

    def _check_labels(self, job: job_pb2.Job, field: str) -> None:
        """An older replica would forget them, and give the job to any executor."""
        if job.executor_labels and self._shard.proposals.version < commands.PLACEMENT_SINCE:
            raise FailedPrecondition(
                f"{field}.executor_labels needs a newer version of the scheduler on every replica "
                "of the shard: upgrade those that run an older one"
            )

    def get_job(self, request: job_pb2.GetJobRequest) -> Message:
        """See the proto."""
        return convert.job_message(self._job(*names.parse_job(request.name)))

    def list_jobs(self, request: job_pb2.ListJobsRequest) -> Message:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        after = pages.start(request.page_token, "jobs", request.parent)
        found, following = self._shard.queries.jobs(customer, after, pages.size(request.page_size))
        return job_pb2.ListJobsResponse(
            jobs=[convert.job_message(job) for job in found],
            next_page_token=pages.token(following, "jobs", request.parent),
        )

    async def update_job(self, request: job_pb2.UpdateJobRequest) -> Message:
        """See the proto."""
        customer, job_id = names.parse_job(request.job.name, "job.name")
        given = convert.version_of(request.job.etag)
        for _ in range(UPDATE_TRIES_MAX):
            await self._shard.replica.read_barrier()
            job = self._job(customer, job_id)
            if given not in (0, job.version):
                raise refusal(Refused(Why.VERSION_MISMATCH, job_id))
            message = convert.job_message(job)
            merge(request.job, message, request.update_mask, JOB_FIELDS)
            spec = convert.job_spec(message, customer, "job")
            self._check_labels(message, "job")
            if request.validate_only:
                return message
            command = commands.UpdateJob(
                customer, job_id, job.version, message.display_name, labels(message), spec
            )
            try:
                made = await self._do(command)
                return convert.job_message(made[0])
            except EtagMismatch:
                if given:
                    raise
        raise EtagMismatch(f"{request.job.name} is being changed by others all the time")

    async def delete_job(self, request: job_pb2.DeleteJobRequest) -> Message:
        """See the proto."""
        customer, job_id = names.parse_job(request.name)
        version = convert.version_of(request.etag)
        while request.force:
            await self._shard.replica.read_barrier()
            job = self._job(customer, job_id)
            some = self._shard.queries.schedule_ids(job.uid, BATCH_ITEMS_MAX)
            if not some:
                break
            command = commands.DeleteSchedules(customer, job_id, some, 0, True)
            await self._do(command, weight=len(some))
        await self._do(commands.DeleteJob(customer, job_id, version))
        return empty_pb2.Empty()

    # -- schedules -----------------------------------------------------------------------------

    def create_schedule(self, request: schedule_pb2.CreateScheduleRequest) -> Write:
        """See the proto."""
        customer, job_id = names.parse_job(request.parent, "parent")
        hashed = request_hash(request.request_id)
        new = self._new_schedule(
            request.schedule, request.schedule_id, customer, hashed, 0, "schedule"
        )
        if request.validate_only:
            return self._checked(request.schedule)
        message = request.schedule
        return self._submit(
            commands.CreateSchedules(customer, job_id, [new], hashed),
            lambda made: self._created(message, new, made[0]),
            field="schedule_id",
        )

    def batch_create_schedules(self, request: schedule_pb2.BatchCreateSchedulesRequest) -> Write:
        """See the proto."""
        customer, job_id = names.parse_job(request.parent, "parent")
        hashed = request_hash(request.request_id)
        new = [
            self._new_schedule(
                item.schedule,
                item.schedule_id,
                customer,
                hashed,
                index,
                f"schedules[{index}].schedule",
            )
            for index, item in enumerate(request.schedules)
        ]

        def respond(made: list[Schedule]) -> Message:
            response = schedule_pb2.BatchCreateSchedulesResponse()
            for item, asked, schedule in zip(request.schedules, new, made, strict=True):
                response.schedules.append(self._created(item.schedule, asked, schedule))
            return response

        return self._submit(
            commands.CreateSchedules(customer, job_id, new, hashed),
            respond,
            weight=len(new),
            field="schedules[].schedule_id",
        )

    @staticmethod
    def _created(
        message: schedule_pb2.Schedule, asked: commands.NewSchedule, made: Schedule
    ) -> schedule_pb2.Schedule:
        """The response: the request's own message filled in, unless an earlier request made it."""
        if made.spec is asked.spec or made.spec == asked.spec:
            if not message.recurrence.time_zone:
                message.recurrence.time_zone = made.spec.zone
            return convert.fill_schedule(message, made)
        return convert.schedule_message(made)

    def _new_schedule(
        self,
        schedule: schedule_pb2.Schedule,
        schedule_id: str,
        customer: str,
        hashed: bytes,
        index: int,
        field: str,
    ) -> commands.NewSchedule:
        spec = self._spec(schedule.recurrence, customer, f"{field}.recurrence")
        drawn = self._draw(UID_BYTES)
        return commands.NewSchedule(
            schedule_id or made_id("schedule", request_uid(hashed, index) if hashed else drawn),
            drawn,
            labels(schedule),
            spec,
            convert.policy_of(schedule),
            schedule.payload,
        )

    def _spec(self, message: schedule_pb2.Recurrence, customer: str, field: str) -> recurrence.Spec:
        """What a schedule may have as its recurrence."""
        now_ms = self._shard.now_ms()
        spec, ready = self._checked_spec(message, customer, now_ms, field)
        convert.check_rate(ready, now_ms, field)
        self._learn(spec.zone)
        return spec

    def _learn(self, zone: str) -> None:
        """Let the shard know a time zone, ahead of what is about to be submitted and uses it."""
        if zone in ("", "UTC", *self._learning) or self._shard.queries.view().zone(zone):
            return
        files = ((zone, recurrence.read_zone_file(zone)),)
        command = commands.LearnZones(files, recurrence.zones_version(), False)

        def learned(outcome: asyncio.Future[Outcome]) -> None:
            self._learning.discard(zone)
            # If it failed, what follows it fails too; or a replica is older, and knows no pins.
            if not outcome.cancelled():
                outcome.exception()

        self._learning.add(zone)
        self._shard.proposals.submit(command).add_done_callback(learned)

    def _checked_spec(
        self, message: schedule_pb2.Recurrence, customer: str, now_ms: int, field: str
    ) -> tuple[recurrence.Spec, recurrence.Spec]:
        """What a message says: as it is stored, and with its zone's and calendars' content."""
        given = list(message.excluded_calendars)
        for index, name in enumerate(given):
            path = f"{field}.excluded_calendars[{index}]"
            if name in given[:index]:
                raise invalid(path, f"{name} is named twice")
            parts = names.parse_calendar(name, path)
            if parts.customer != customer or self._shard.queries.calendar(*parts) is None:
                raise NotFound(f"{path}: there is no {name}", metadata={"resource": name})
        view = self._shard.queries.view()

        def ready(spec: recurrence.Spec) -> recurrence.Spec:
            return pins.ready(view, customer, pins.pinned(view, customer, spec))

        spec = convert.spec_of(message, now_ms, field, ready)
        return spec, ready(spec)

    def get_schedule(self, request: schedule_pb2.GetScheduleRequest) -> Message:
        """See the proto."""
        return convert.schedule_message(self._schedule(request.name))

    def list_schedules(self, request: schedule_pb2.ListSchedulesRequest) -> Message:
        """See the proto."""
        job = self._job(*names.parse_job(request.parent, "parent"))
        after = pages.start(request.page_token, "schedules", request.parent)
        found, following = self._shard.queries.schedules(
            job.uid, after, pages.size(request.page_size)
        )
        return schedule_pb2.ListSchedulesResponse(
            schedules=[convert.schedule_message(schedule) for schedule in found],
            next_page_token=pages.token(following, "schedules", request.parent),
        )

    async def update_schedule(self, request: schedule_pb2.UpdateScheduleRequest) -> Message:
        """See the proto."""
        parts = names.parse_schedule(request.schedule.name, "schedule.name")
        given = convert.version_of(request.schedule.etag)
        for _ in range(UPDATE_TRIES_MAX):
            await self._shard.replica.read_barrier()
            schedule = self._schedule(request.schedule.name, "schedule.name")
            if given not in (0, schedule.version):
                raise refusal(Refused(Why.VERSION_MISMATCH, parts.schedule))
            message = convert.schedule_message(schedule)
            merge(request.schedule, message, request.update_mask, SCHEDULE_FIELDS)
            spec = schedule.spec
            if message.recurrence != convert.recurrence_message(spec, parts.customer):
                spec = self._spec(message.recurrence, parts.customer, "schedule.recurrence")
            policy = convert.policy_of(message)
            if request.validate_only:
                return message
            command = commands.UpdateSchedule(
                *parts, schedule.version, labels(message), spec, policy, message.payload
            )
            try:
                made = await self._do(command)
                return convert.schedule_message(made[0])
            except EtagMismatch:
                if given:
                    raise
        raise EtagMismatch(f"{request.schedule.name} is being changed by others all the time")

    def delete_schedule(self, request: schedule_pb2.DeleteScheduleRequest) -> Write:
        """See the proto."""
        parts = names.parse_schedule(request.name)
        command = commands.DeleteSchedules(
            parts.customer,
            parts.job,
            [parts.schedule],
            convert.version_of(request.etag),
            False,
        )
        return self._submit(command, lambda _: empty_pb2.Empty())

    def pause_schedule(self, request: schedule_pb2.PauseScheduleRequest) -> Write:
        """See the proto."""
        command = commands.PauseSchedule(*names.parse_schedule(request.name), request.reason)
        return self._submit(command, lambda made: convert.schedule_message(made[0]))

    def resume_schedule(self, request: schedule_pb2.ResumeScheduleRequest) -> Write:
        """See the proto."""
        command = commands.ResumeSchedule(*names.parse_schedule(request.name))
        return self._submit(command, lambda made: convert.schedule_message(made[0]))

    def trigger_schedule(self, request: schedule_pb2.TriggerScheduleRequest) -> Write:
        """See the proto."""
        parts = names.parse_schedule(request.name)
        placement = self._shard.place(self._shard.queries.job(parts.customer, parts.job))
        command = commands.TriggerSchedule(
            *parts, self._draw(UID_BYTES), placement, self._request_of("trigger", request)
        )
        return self._submit(command, lambda made: self._one(made[0]), placements=[placement])

    def _request_of(self, kind: str, request: Any) -> bytes:
        """A request's hash that no other method's or schedule's is like."""
        if not request.request_id:
            return self._draw(REQUEST_BYTES)
        return request_hash(f"{kind} {request.name} {request.request_id}")

    def backfill_schedule(self, request: schedule_pb2.BackfillScheduleRequest) -> Write:
        """See the proto."""
        parts = names.parse_schedule(request.name)
        start_ms, end_ms = convert.to_ms(request.start_time), convert.to_ms(request.end_time)
        if start_ms < 1:
            raise invalid("start_time", "is before 1970")
        if end_ms <= start_ms:
            raise invalid("end_time", "is not after start_time")
        if end_ms > self._shard.now_ms():
            raise invalid("end_time", "is in the future")
        backfill = self._request_of("backfill", request)
        command = commands.BackfillSchedule(
            *parts, start_ms, end_ms, self._draw(UID_BYTES), backfill
        )
        return self._submit(
            command,
            lambda made: schedule_pb2.BackfillScheduleResponse(
                fire_count=len(made), backfill=spell(backfill)
            ),
            weight=BACKFILL_MAX,
        )

    async def cancel_backfill(self, request: schedule_pb2.CancelBackfillRequest) -> Message:
        """See the proto."""
        await self._shard.replica.read_barrier()
        schedule = self._schedule(request.name)
        backfill = unspell(request.backfill, REQUEST_BYTES)
        queries = self._shard.queries
        made = None if backfill is None else queries.request(schedule.customer, backfill)
        if made is None:
            raise NotFound(
                f"there is no backfill {request.backfill!r} of {request.name}; it is remembered "
                "for a day at least, and not longer than history is kept"
            )
        found = [queries.execution(*key) for key in made]
        active = [
            (execution.job_uid, execution.id)
            for execution in found
            if execution is not None
            and execution.state in ACTIVE_STATES
            and (execution.job_uid, execution.schedule_id)
            == (schedule.job_uid, schedule.schedule_id)
        ]
        if active:
            await self._do(commands.Cancel(active), weight=len(active))
        return schedule_pb2.CancelBackfillResponse(cancelled_count=len(active))

    def preview_schedule(self, request: schedule_pb2.PreviewScheduleRequest) -> Message:
        """See the proto."""
        now_ms = self._shard.now_ms()
        after_ms = convert.to_ms(request.after_time) if request.HasField("after_time") else now_ms
        customer = names.parse_customer(request.parent)
        asked_ms = min(after_ms, now_ms)
        _, spec = self._checked_spec(request.recurrence, customer, asked_ms, "recurrence")
        response = schedule_pb2.PreviewScheduleResponse()
        for fire in recurrence.preview(spec, after_ms, request.count or PREVIEW_DEFAULT):
            told = response.skipped if fire.skipped else response.fires
            told.add(due_time=convert.from_ms(fire.due_ms), local_time=fire.local, note=fire.note)
        return response

    # -- calendars -----------------------------------------------------------------------------

    def _calendar(self, name: str, field: str = "name") -> Calendar:
        calendar = self._shard.queries.calendar(*names.parse_calendar(name, field))
        if calendar is None:
            raise NotFound(f"there is no {name}")
        return calendar

    def create_calendar(self, request: calendar_pb2.CreateCalendarRequest) -> Write:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        hashed = request_hash(request.request_id)
        drawn = self._draw(UID_BYTES)
        content = convert.calendar_content(request.calendar, self._shard.now_ms(), "calendar")
        if request.validate_only:
            return self._checked(request.calendar)
        self._learn(content.zone)
        command = commands.CreateCalendar(
            customer,
            request.calendar_id or made_id("calendar", request_uid(hashed, 0) if hashed else drawn),
            drawn,
            request.calendar.display_name,
            labels(request.calendar),
            content,
            hashed,
        )
        return self._submit(
            command, lambda made: convert.calendar_message(made[0]), field="calendar_id"
        )

    def get_calendar(self, request: calendar_pb2.GetCalendarRequest) -> Message:
        """See the proto."""
        return convert.calendar_message(self._calendar(request.name))

    def list_calendars(self, request: calendar_pb2.ListCalendarsRequest) -> Message:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        after = pages.start(request.page_token, "calendars", request.parent)
        found, following = self._shard.queries.calendars(
            customer, after, pages.size(request.page_size)
        )
        return calendar_pb2.ListCalendarsResponse(
            calendars=[convert.calendar_message(calendar) for calendar in found],
            next_page_token=pages.token(following, "calendars", request.parent),
        )

    async def update_calendar(self, request: calendar_pb2.UpdateCalendarRequest) -> Message:
        """See the proto."""
        parts = names.parse_calendar(request.calendar.name, "calendar.name")
        given = convert.version_of(request.calendar.etag)
        for _ in range(UPDATE_TRIES_MAX):
            await self._shard.replica.read_barrier()
            calendar = self._calendar(request.calendar.name, "calendar.name")
            if given not in (0, calendar.version):
                raise refusal(Refused(Why.VERSION_MISMATCH, parts.calendar))
            message = convert.calendar_message(calendar)
            merge(request.calendar, message, request.update_mask, CALENDAR_FIELDS)
            content = convert.calendar_content(message, self._shard.now_ms(), "calendar")
            await self._check_users(calendar, content)
            if request.validate_only:
                return message
            self._learn(content.zone)
            command = commands.UpdateCalendar(
                *parts, calendar.version, message.display_name, labels(message), content
            )
            try:
                made = await self._do(command, weight=PINNED_MAX)
            except EtagMismatch:
                if given:
                    raise
                continue
            while self._shard.queries.view().calendar_pending(*parts) is not None:
                await self._do(commands.PinSchedules(*parts), weight=PINNED_MAX)
            return convert.calendar_message(made[0])
        raise EtagMismatch(f"{request.calendar.name} is being changed by others all the time")

    async def _check_users(self, calendar: Calendar, content: recurrence.Calendar) -> None:
        """Raises CalendarInUse if a calendar's new content left one that uses it nothing to fire;
        the command does so for the first, too."""
        changed = replace(calendar, content=content, digest=recurrence.calendar_digest(content))
        if changed.digest == calendar.digest:
            return
        after: bytes | None = b""
        while after is not None:
            stranded, after = left_without(
                self._shard.queries.view(), changed, after, self._shard.now_ms()
            )
            if stranded:
                raise refusal(Refused(Why.LEAVES_NOTHING, listed(stranded)))
            await asyncio.sleep(0)

    def delete_calendar(self, request: calendar_pb2.DeleteCalendarRequest) -> Write:
        """See the proto."""
        parts = names.parse_calendar(request.name)
        command = commands.DeleteCalendar(*parts, convert.version_of(request.etag))
        return self._submit(command, lambda _: empty_pb2.Empty())

    # -- executions ----------------------------------------------------------------------------

    def execute_job(self, request: execution_pb2.ExecuteJobRequest) -> Write:
        """See the proto."""
        customer, job_id = names.parse_job(request.name)
        if request.validate_only:
            self._job(customer, job_id)
            return self._checked(execution_pb2.Execution())
        placement = self._shard.place(self._shard.queries.job(customer, job_id))
        new = commands.NewExecution(
            job_id,
            self._draw(UID_BYTES),
            request.payload,
            placement,
            request.active_key.encode(),
        )
        return self._submit(
            commands.ExecuteJobs(customer, [new], request_hash(request.request_id)),
            lambda made: self._one(made[0]),
            placements=[placement],
        )

    def batch_execute_jobs(self, request: execution_pb2.BatchExecuteJobsRequest) -> Write:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        job_ids = []
        for index, item in enumerate(request.executions):
            field = f"executions[{index}].name"
            parts = names.parse_job(item.name, field)
            if parts.customer != customer:
                raise invalid(field, f"is not a job of {request.parent}")
            job_ids.append(parts.job)
        jobs = {job_id: self._shard.queries.job(customer, job_id) for job_id in set(job_ids)}
        new = [
            commands.NewExecution(
                job_id,
                self._draw(UID_BYTES),
                item.payload,
                self._shard.place(jobs[job_id]),
                item.active_key.encode(),
            )
            for job_id, item in zip(job_ids, request.executions, strict=True)
        ]
        return self._submit(
            commands.ExecuteJobs(customer, new, request_hash(request.request_id)),
            lambda made: execution_pb2.BatchExecuteJobsResponse(
                executions=[self._one(execution) for execution in made]
            ),
            weight=len(new),
            placements=[item.placement for item in new],
        )

    def _one(self, execution: Execution) -> execution_pb2.Execution:
        return convert.execution_message(
            execution, self._shard.soft(execution), self._shard.pending_reason(execution)
        )

    def execution(self, name: str) -> Execution:
        """The execution of a name. Raises NotFound."""
        parts = names.parse_execution(name)
        identity = unspell(parts.execution, EXECUTION_ID_BYTES)
        job = self._shard.queries.job(parts.customer, parts.job)
        found = None
        if identity is not None:
            job_uid = self._shard.queries.owner(parts.customer, identity)
            if job_uid is not None:
                found = self._shard.queries.execution(job_uid, identity)
            if found is not None and found.job_id != parts.job:
                found = None
        if found is None:
            there = "" if job else " (nor a job of that name)"
            raise NotFound(f"there is no {name}{there}; ended executions are kept for a time only")
        return found

    def get_execution(self, request: execution_pb2.GetExecutionRequest) -> Message:
        """See the proto."""
        return self._one(self.execution(request.name))

    def list_executions(self, request: execution_pb2.ListExecutionsRequest) -> Message:
        """See the proto."""
        customer, job_id = names.parse_job(request.parent, "parent")
        job_uid = None if job_id == names.ANY_JOB else self._job(customer, job_id).uid
        states = sorted(set(request.states))
        listing = ("executions", request.parent, request.schedule, str(states))
        schedule_id = ""
        if request.schedule:
            parts = names.parse_schedule(request.schedule, "schedule")
            if parts.customer != customer or job_id not in (parts.job, names.ANY_JOB):
                raise invalid("schedule", f"is not a schedule of {request.parent}")
            schedule_id, wanted_job = parts.schedule, parts.job

        def keep(execution: Execution) -> bool:
            if schedule_id and (execution.schedule_id, execution.job_id) != (
                schedule_id,
                wanted_job,
            ):
                return False
            if not states:
                return True
            state = execution.state
            if state is ExecutionState.ASSIGNED:
                soft = self._shard.soft(execution)
                if soft is not None and soft.started_ns:
                    state = ExecutionState.RUNNING
            return state.value in states

        found, following = self._shard.queries.executions(
            customer,
            job_uid,
            pages.start(request.page_token, *listing),
            pages.size(request.page_size),
            keep,
            FILTER_LOOKED_AT_MAX,
        )
        return execution_pb2.ListExecutionsResponse(
            executions=[self._one(execution) for execution in found],
            next_page_token=pages.token(following, *listing),
        )

    async def cancel_execution(self, request: execution_pb2.CancelExecutionRequest) -> Message:
        """See the proto."""
        await self._shard.replica.read_barrier()
        execution = self.execution(request.name)
        made = await self._do(commands.Cancel([(execution.job_uid, execution.id)]))
        return self._one(made[0])


# -- update masks ------------------------------------------------------------------------------

JOB_FIELDS = frozenset(
    {
        *("display_name", "labels", "container", "resources", "timeout", "grace_period"),
        *("retry_policy", "at_most_once", "total_timeout", "executor_labels"),
    }
)
SCHEDULE_FIELDS = frozenset(
    {
        *("labels", "recurrence", "payload", "overlap_policy", "overlap_queue_max"),
        *("misfire_policy", "misfire_window", "misfire_max", "start_deadline"),
        "pause_after_failures",
    }
)


CALENDAR_FIELDS = frozenset({"display_name", "labels", "dates", "windows", "time_zone"})
