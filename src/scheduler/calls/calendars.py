"""The methods of CalendarService, as the shard's leader answers them."""

from __future__ import annotations

import asyncio

from google.protobuf import empty_pb2
from google.protobuf.message import Message
from msgspec.structs import replace

from ...mesh import names
from ...mesh.errors import OutcomeUnknown, Overloaded
from ...proto.tickmesh.v1 import calendar_pb2
from .. import convert, pages
from ..core import commands, recurrence
from ..core.calendars import PINNED_MAX, left_without, listed
from ..core.commands import Refused, Why
from ..core.model import Calendar
from ..raft.errors import RaftError
from ..shard import Shard
from . import found
from .updates import check_given, merge, update
from .writes import Methods, Write, Writes, labels, refusal

CALENDAR_FIELDS = frozenset({"display_name", "labels", "dates", "windows", "time_zone"})
"""What an update may name."""


class Calendars:
    """See the module."""

    def __init__(self, shard: Shard, writes: Writes) -> None:
        self._shard = shard
        self._writes = writes
        service = "tickmesh.v1.CalendarService"
        self.methods = Methods(
            writes={
                f"{service}/CreateCalendar": (calendar_pb2.CreateCalendarRequest, self.create),
                f"{service}/DeleteCalendar": (calendar_pb2.DeleteCalendarRequest, self.delete),
            },
            reads={
                f"{service}/GetCalendar": (calendar_pb2.GetCalendarRequest, self.get),
                f"{service}/ListCalendars": (calendar_pb2.ListCalendarsRequest, self.list),
            },
            steps={f"{service}/UpdateCalendar": (calendar_pb2.UpdateCalendarRequest, self.update)},
        )

    def create(self, request: calendar_pb2.CreateCalendarRequest) -> Write:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        making = self._writes.making(request.request_id)
        calendar = request.calendar
        content = convert.calendar_content(calendar, self._shard.now_ms(), "calendar")
        calendar_id, uid = making.item("calendar", request.calendar_id)
        command = commands.CreateCalendar(
            customer,
            calendar_id,
            uid,
            calendar.display_name,
            labels(calendar),
            content,
            making.request,
        )
        return self._writes.create(
            request, calendar, command, convert.calendar_message, "calendar_id", content.zone
        )

    def get(self, request: calendar_pb2.GetCalendarRequest) -> Message:
        """See the proto."""
        return convert.calendar_message(found.calendar(self._shard.queries, request.name))

    def list(self, request: calendar_pb2.ListCalendarsRequest) -> Message:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        after = pages.start(request.page_token, "calendars", request.parent)
        calendars, following = self._shard.queries.calendars(
            customer, after, pages.size(request.page_size)
        )
        return calendar_pb2.ListCalendarsResponse(
            calendars=[convert.calendar_message(calendar) for calendar in calendars],
            next_page_token=pages.token(following, "calendars", request.parent),
        )

    async def update(self, request: calendar_pb2.UpdateCalendarRequest) -> Message:
        """See the proto."""
        name = request.calendar.name
        parts = names.parse_calendar(name, "calendar.name")

        async def once(given: int) -> Message:
            calendar = found.calendar(self._shard.queries, name, "calendar.name")
            check_given(given, calendar.version, parts.calendar)
            message = convert.calendar_message(calendar)
            merge(request.calendar, message, request.update_mask, CALENDAR_FIELDS)
            content = convert.calendar_content(message, self._shard.now_ms(), "calendar")
            await self._check_users(calendar, content)
            if request.validate_only:
                return message
            self._writes.learn(content.zone)
            command = commands.UpdateCalendar(
                *parts, calendar.version, message.display_name, labels(message), content
            )
            made = await self._writes.do(command, weight=PINNED_MAX)
            await self._follow(*parts)
            return convert.calendar_message(made[0])

        return await update(self._shard.replica, name, request.calendar.etag, once)

    async def _follow(self, customer: str, calendar_id: str) -> None:
        """Let all schedules that use a changed calendar follow it. Whoever leads does so in any
        case: what goes wrong here is no refusal, and the call must not be done again for it."""
        try:
            while self._shard.queries.view().calendar_pending(customer, calendar_id) is not None:
                command = commands.PinSchedules(customer, calendar_id)
                await self._writes.do(command, weight=PINNED_MAX)
        except (Overloaded, RaftError) as error:
            raise OutcomeUnknown(
                "the calendar is changed, and the schedules that use it follow within seconds: "
                "read it before you repeat the call"
            ) from error

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

    def delete(self, request: calendar_pb2.DeleteCalendarRequest) -> Write:
        """See the proto."""
        parts = names.parse_calendar(request.name)
        command = commands.DeleteCalendar(*parts, convert.version_of(request.etag))
        return self._writes.submit(command, lambda _: empty_pb2.Empty())
