"""The methods of ScheduleService, as the shard's leader answers them; those that read ledgers are
in ledgers.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import empty_pb2
from google.protobuf.message import Message

from ...mesh import names
from ...mesh.errors import MessageTooLarge, NotFound, TickmeshError, invalid
from ...proto.tickmesh.v1 import schedule_pb2
from .. import convert, pages
from ..core import commands, pins, recurrence
from ..core.fires import BACKFILL_MAX
from ..core.ids import UID_BYTES, spell, unspell
from ..core.model import ACTIVE_STATES, Schedule
from ..shard import Shard
from . import found
from .executions import Executions
from .updates import check_given, merge, update
from .writes import (
    REQUEST_BYTES,
    Making,
    Methods,
    Write,
    Writes,
    check_answer_size,
    labels,
    request_hash,
)

SCHEDULE_FIELDS = frozenset(
    {
        *("labels", "recurrence", "payload", "overlap_policy", "overlap_queue_max"),
        *("misfire_policy", "misfire_window", "misfire_max", "start_deadline"),
        "pause_after_failures",
    }
)
"""What an update may name."""

PREVIEW_DEFAULT = 10

BATCH_EXCLUDED_MAX = 100_000
"""Dates and windows that the different recurrences of a batch exclude, with those of calendars
counted in each: a search may pass all of them, 5 microseconds each, once here and once on each
replica, and nobody else is served meanwhile."""

NEVER = recurrence.Spec(at_ms=(1,))
"""Stands for the recurrence of what is made already: if it is deleted before the command is
committed, nothing is made."""


class Schedules:
    """See the module."""

    def __init__(self, shard: Shard, writes: Writes, executions: Executions) -> None:
        self._shard = shard
        self._writes = writes
        self._executions = executions
        service = "tickmesh.v1.ScheduleService"
        self.methods = Methods(
            writes={
                f"{service}/CreateSchedule": (schedule_pb2.CreateScheduleRequest, self.create),
                f"{service}/BatchCreateSchedules": (
                    schedule_pb2.BatchCreateSchedulesRequest,
                    self.batch_create,
                ),
                f"{service}/DeleteSchedule": (schedule_pb2.DeleteScheduleRequest, self.delete),
                f"{service}/PauseSchedule": (schedule_pb2.PauseScheduleRequest, self.pause),
                f"{service}/ResumeSchedule": (schedule_pb2.ResumeScheduleRequest, self.resume),
                f"{service}/TriggerSchedule": (schedule_pb2.TriggerScheduleRequest, self.trigger),
                f"{service}/BackfillSchedule": (
                    schedule_pb2.BackfillScheduleRequest,
                    self.backfill,
                ),
            },
            reads={
                f"{service}/GetSchedule": (schedule_pb2.GetScheduleRequest, self.get),
                f"{service}/ListSchedules": (schedule_pb2.ListSchedulesRequest, self.list),
                f"{service}/PreviewSchedule": (schedule_pb2.PreviewScheduleRequest, self.preview),
            },
            steps={
                f"{service}/UpdateSchedule": (schedule_pb2.UpdateScheduleRequest, self.update),
                f"{service}/CancelBackfill": (
                    schedule_pb2.CancelBackfillRequest,
                    self.cancel_backfill,
                ),
            },
        )

    def create(self, request: schedule_pb2.CreateScheduleRequest) -> Write:
        """See the proto."""
        customer, job_id = names.parse_job(request.parent, "parent")
        making = self._writes.making(request.request_id)
        message = request.schedule
        try:
            spec = self._spec(message.recurrence, customer, "schedule.recurrence")
        except TickmeshError:
            given = request.schedule_id
            if request.validate_only or not self._is_made(customer, job_id, given, making, 0):
                raise
            spec = NEVER
        new = self._new(message, request.schedule_id, spec, making, 0)
        return self._writes.create(
            request,
            message,
            commands.CreateSchedules(customer, job_id, [new], making.request),
            lambda made: self._created(message, new, made),
            "schedule_id",
            new.spec.zone,
        )

    def batch_create(self, request: schedule_pb2.BatchCreateSchedulesRequest) -> Write:
        """See the proto."""
        customer, job_id = names.parse_job(request.parent, "parent")
        check_answer_size(request, len(request.schedules))
        making = self._writes.making(request.request_id)
        known: dict[bytes, recurrence.Spec] = {}
        """By their messages: many schedules of a batch fire at the same times."""
        new = []
        excluded = 0
        for index, item in enumerate(request.schedules):
            message = item.schedule
            raw = message.recurrence.SerializeToString()
            spec = known.get(raw)
            if spec is None:
                field = f"schedules[{index}].schedule.recurrence"
                excluded += self._excluded(message.recurrence, customer)
                if excluded > BATCH_EXCLUDED_MAX:
                    raise MessageTooLarge(
                        f"{field}: up to here the different recurrences exclude {excluded:,} dates "
                        f"and windows, with those of calendars; a batch may have "
                        f"{BATCH_EXCLUDED_MAX:,}: split it",
                        fields=((field, f"is over the {BATCH_EXCLUDED_MAX:,} of a batch"),),
                    )
                try:
                    spec = known[raw] = self._spec(message.recurrence, customer, field)
                except TickmeshError:
                    if not self._is_made(customer, job_id, item.schedule_id, making, index):
                        raise
                    spec = NEVER
            new.append(self._new(message, item.schedule_id, spec, making, index))

        def respond(made: Sequence[Schedule]) -> Message:
            response = schedule_pb2.BatchCreateSchedulesResponse()
            for item, asked, schedule in zip(request.schedules, new, made, strict=True):
                response.schedules.append(self._created(item.schedule, asked, schedule))
            return response

        for zone in sorted({spec.zone for spec in known.values()}):
            self._writes.learn(zone)
        return self._writes.submit(
            commands.CreateSchedules(customer, job_id, new, making.request),
            respond,
            weight=len(new),
            field="schedules[].schedule_id",
        )

    def _excluded(self, message: schedule_pb2.Recurrence, customer: str) -> int:
        """How many dates and windows a recurrence excludes, with those of its calendars."""
        count = len(message.excluded_dates) + len(message.excluded_windows)
        for name in message.excluded_calendars:
            parts = names.parse_calendar(name, "excluded_calendars")
            # Another customer's is refused when the recurrence is checked.
            calendar = self._shard.queries.calendar(customer, parts.calendar)
            if calendar is not None:
                count += len(calendar.content.dates) + len(calendar.content.windows)
        return count

    def _is_made(self, customer: str, job_id: str, given: str, making: Making, index: int) -> bool:
        """Whether an earlier request with the same request_id has made a schedule: then it is no
        matter whether what it says could be made now; its times may have passed."""
        job = self._shard.queries.job(customer, job_id)
        if job is None or not making.request:
            return False
        stored = self._shard.queries.schedule(job.uid, making.item("schedule", given, index)[0])
        return stored is not None and stored.request == making.request

    @staticmethod
    def _created(
        message: schedule_pb2.Schedule, asked: commands.NewSchedule, made: Schedule
    ) -> schedule_pb2.Schedule:
        """The response: the request's own message filled in, unless an earlier request made it,
        whose message may have said something else."""
        if made.uid == asked.uid and made.spec == asked.spec:
            if not message.recurrence.time_zone:
                message.recurrence.time_zone = made.spec.zone
            return convert.fill_schedule(message, made)
        return convert.schedule_message(made)

    @staticmethod
    def _new(
        schedule: schedule_pb2.Schedule,
        schedule_id: str,
        spec: recurrence.Spec,
        making: Making,
        index: int,
    ) -> commands.NewSchedule:
        named, uid = making.item("schedule", schedule_id, index)
        policy = convert.policy_of(schedule)
        return commands.NewSchedule(named, uid, labels(schedule), spec, policy, schedule.payload)

    def _spec(self, message: schedule_pb2.Recurrence, customer: str, field: str) -> recurrence.Spec:
        """What a schedule may have as its recurrence."""
        now_ms = self._shard.now_ms()
        spec, ready = self._checked_spec(message, customer, now_ms, field)
        convert.check_rate(ready, now_ms, field, self._shard.plans.of(customer).interval_s_min)
        return spec

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

    def get(self, request: schedule_pb2.GetScheduleRequest) -> Message:
        """See the proto."""
        return convert.schedule_message(found.schedule(self._shard.queries, request.name))

    def list(self, request: schedule_pb2.ListSchedulesRequest) -> Message:
        """See the proto."""
        customer, job_id = names.parse_job(request.parent, "parent")
        job = found.job(self._shard.queries, customer, job_id)
        after = pages.start(request.page_token, "schedules", request.parent)
        schedules, following = self._shard.queries.schedules(
            job.uid, after, pages.size(request.page_size)
        )
        return schedule_pb2.ListSchedulesResponse(
            schedules=[convert.schedule_message(schedule) for schedule in schedules],
            next_page_token=pages.token(following, "schedules", request.parent),
        )

    async def update(self, request: schedule_pb2.UpdateScheduleRequest) -> Message:
        """See the proto."""
        name = request.schedule.name
        parts = names.parse_schedule(name, "schedule.name")

        async def once(given: int) -> Message:
            schedule = found.schedule(self._shard.queries, name, "schedule.name")
            check_given(given, schedule.version, parts.schedule)
            message = convert.schedule_message(schedule)
            merge(request.schedule, message, request.update_mask, SCHEDULE_FIELDS)
            spec = schedule.spec
            if message.recurrence != convert.recurrence_message(spec, parts.customer):
                spec = self._spec(message.recurrence, parts.customer, "schedule.recurrence")
            policy = convert.policy_of(message)
            if request.validate_only:
                return message
            self._writes.learn(spec.zone)
            command = commands.UpdateSchedule(
                *parts, schedule.version, labels(message), spec, policy, message.payload
            )
            return convert.schedule_message((await self._writes.do(command))[0])

        return await update(self._shard.replica, name, request.schedule.etag, once)

    def delete(self, request: schedule_pb2.DeleteScheduleRequest) -> Write:
        """See the proto."""
        parts = names.parse_schedule(request.name)
        command = commands.DeleteSchedules(
            parts.customer,
            parts.job,
            [parts.schedule],
            convert.version_of(request.etag),
            False,
        )
        return self._writes.submit(command, lambda _: empty_pb2.Empty())

    def pause(self, request: schedule_pb2.PauseScheduleRequest) -> Write:
        """See the proto."""
        command = commands.PauseSchedule(*names.parse_schedule(request.name), request.reason)
        return self._writes.submit(command, lambda made: convert.schedule_message(made[0]))

    def resume(self, request: schedule_pb2.ResumeScheduleRequest) -> Write:
        """See the proto."""
        command = commands.ResumeSchedule(*names.parse_schedule(request.name))
        return self._writes.submit(command, lambda made: convert.schedule_message(made[0]))

    def trigger(self, request: schedule_pb2.TriggerScheduleRequest) -> Write:
        """See the proto."""
        parts = names.parse_schedule(request.name)
        placement = self._shard.place(self._shard.queries.job(parts.customer, parts.job))
        command = commands.TriggerSchedule(
            *parts, self._writes.draw(UID_BYTES), placement, self._request_of("trigger", request)
        )
        return self._writes.submit(
            command, lambda made: self._executions.message(made[0]), placements=[placement]
        )

    def _request_of(self, kind: str, request: Any) -> bytes:
        """A request's hash that no other method's or schedule's is like."""
        if not request.request_id:
            return self._writes.draw(REQUEST_BYTES)
        return request_hash(f"{kind} {request.name} {request.request_id}")

    def backfill(self, request: schedule_pb2.BackfillScheduleRequest) -> Write:
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
            *parts, start_ms, end_ms, self._writes.draw(UID_BYTES), backfill
        )
        return self._writes.submit(
            command,
            lambda made: schedule_pb2.BackfillScheduleResponse(
                fire_count=len(made), backfill=spell(backfill)
            ),
            weight=BACKFILL_MAX,
        )

    async def cancel_backfill(self, request: schedule_pb2.CancelBackfillRequest) -> Message:
        """See the proto."""
        await self._shard.replica.read_barrier()
        schedule = found.schedule(self._shard.queries, request.name)
        backfill = unspell(request.backfill, REQUEST_BYTES)
        queries = self._shard.queries
        made = None if backfill is None else queries.request(schedule.customer, backfill)
        if made is None:
            raise NotFound(
                f"there is no backfill {request.backfill!r} of {request.name}; it is remembered "
                "for a day at least, and not longer than history is kept"
            )
        active = [
            (execution.job_uid, execution.id)
            for execution in [queries.execution(*key) for key in made]
            if execution is not None
            and execution.state in ACTIVE_STATES
            and (execution.job_uid, execution.schedule_id)
            == (schedule.job_uid, schedule.schedule_id)
        ]
        if active:
            await self._writes.do(commands.Cancel(active), weight=len(active))
        return schedule_pb2.CancelBackfillResponse(cancelled_count=len(active))

    def preview(self, request: schedule_pb2.PreviewScheduleRequest) -> Message:
        """See the proto."""
        now_ms = self._shard.now_ms()
        after_ms = convert.to_ms(request.after_time) if request.HasField("after_time") else now_ms
        customer = names.parse_customer(request.parent)
        asked_ms = min(after_ms, now_ms)
        key, fired = "", 0
        stored = None
        if request.schedule:
            if names.parse_schedule(request.schedule, "schedule").customer != customer:
                raise invalid("schedule", f"is not a schedule of {request.parent}")
            stored = found.schedule(self._shard.queries, request.schedule, "schedule")
            key, fired = stored.uid.hex(), stored.fire_count + len(stored.waiting)
        if stored is not None and request.recurrence == convert.recurrence_message(
            stored.spec, customer
        ):
            # It need not be one that could be created now: some of its times may have passed.
            spec = pins.ready(self._shard.queries.view(), customer, stored.spec)
        else:
            _, spec = self._checked_spec(request.recurrence, customer, asked_ms, "recurrence")
        response = schedule_pb2.PreviewScheduleResponse()
        count = request.count or PREVIEW_DEFAULT
        for fire in recurrence.preview(spec, after_ms, count, hash_key=key, fired=fired):
            told = response.skipped if fire.skipped else response.fires
            told.add(due_time=convert.from_ms(fire.due_ms), local_time=fire.local, note=fire.note)
        return response
