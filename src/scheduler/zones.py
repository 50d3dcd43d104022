"""What operators ask of a shard's leader about time zones: the methods of ZoneService."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from google.protobuf.message import Message

from ..mesh import names
from ..mesh.errors import InvalidRequest, invalid
from ..proto.tickmesh.v1 import zone_pb2
from . import convert, pages
from .core import pins, recurrence
from .core.calendars import PINNED_MAX
from .core.commands import LearnZones, PinZones, Refused
from .core.model import Schedule, ScheduleState, Zone
from .core.recurrence import Moves
from .shard import Shard

DAYS_DEFAULT = 366
DAY_MS = 86_400_000

SCANNED_MAX = 10_000
"""Schedules that one page looks at."""

SLICE = 200
"""Schedules looked at before others have a turn: about 2 ms."""

MOVES_MAX = 20
"""Fires told of one schedule."""

FILES_MAX = 64
"""Zone files in one command: 100 KB of an entry at most."""

_PREFIX = "tickmesh.v1.ZoneService"


class Zones:
    """The methods of ZoneService, by their names."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self.steps: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]] = {
            f"{_PREFIX}/PreviewZones": (zone_pb2.PreviewZonesRequest, self.preview),
            f"{_PREFIX}/UpgradeZones": (zone_pb2.UpgradeZonesRequest, self.upgrade),
        }

    def _changed(self, given: Sequence[zone_pb2.ZoneFile]) -> dict[str, bytes]:
        """The new files of zones in use that differ. Raises InvalidRequest for what is none."""
        for index, file in enumerate(given):
            try:
                recurrence.check_zone_file(file.content)
            except recurrence.BadZoneFile as error:
                raise invalid(f"files[{index}].content", f"{file.name}: {error}") from error
        files = {file.name: file.content for file in given}
        changed: dict[str, bytes] = {}
        for zone in self._shard.queries.zones():
            content = files.get(zone.name, b"") if files else _package_file(zone)
            if not content:
                continue
            if recurrence.register_zone_file(content) != zone.digest:
                changed[zone.name] = content
        return changed

    async def preview(self, request: zone_pb2.PreviewZonesRequest) -> Message:
        """See the proto."""
        await self._shard.replica.read_barrier()
        changed = self._changed(request.files)
        response = zone_pb2.PreviewZonesResponse(changed_zones=sorted(changed))
        days = request.days or DAYS_DEFAULT
        listing = ("zones", request.shard_id, str(days))
        after = pages.start(request.page_token, *listing)
        if not changed:
            return response
        size = pages.size(request.page_size)
        until_ms = self._shard.now_ms() + days * DAY_MS
        known: dict[object, Moves] = {}
        for _ in range(SCANNED_MAX // SLICE):
            view = self._shard.queries.view()
            found = view.schedules_after(after, SLICE)
            for schedule in found:
                after = schedule.job_uid + schedule.schedule_id.encode()
                content = changed.get(schedule.spec.zone)
                if content is None or schedule.state is ScheduleState.FINISHED:
                    continue
                spec = pins.ready(view, schedule.customer, schedule.spec)
                key = (spec, schedule.uid if "H" in "".join(spec.crons).upper() else b"")
                if key not in known:
                    known[key] = await self._moves(schedule, spec, content, until_ms)
                moves = known[key]
                if moves.gone_ms or moves.new_ms or moves.more:
                    response.schedules.append(_message(schedule, moves))
                    if len(response.schedules) == size:
                        break
            else:
                if len(found) < SLICE:
                    return response
                await asyncio.sleep(0)
                continue
            break
        response.next_page_token = pages.token(after, *listing)
        return response

    async def _moves(
        self, schedule: Schedule, spec: recurrence.Spec, content: bytes, until_ms: int
    ) -> Moves:
        return await asyncio.to_thread(
            recurrence.fires_moved,
            spec,
            content,
            self._shard.now_ms(),
            until_ms,
            hash_key=schedule.uid.hex(),
            most=MOVES_MAX,
        )

    async def upgrade(self, request: zone_pb2.UpgradeZonesRequest) -> Message:
        """See the proto."""
        await self._shard.replica.read_barrier()
        changed = sorted(self._changed(request.files).items())
        release = request.release or recurrence.zones_version()
        for at in range(0, len(changed), FILES_MAX):
            await self._do(LearnZones(tuple(changed[at : at + FILES_MAX]), release, True))
        count = 0
        while self._shard.queries.view().zones_pending() is not None:
            count += sum(await self._do(PinZones()))
        return zone_pb2.UpgradeZonesResponse(
            changed_zones=[name for name, _ in changed], changed_schedule_count=count
        )

    async def _do(self, command: LearnZones | PinZones) -> Any:
        outcome = await self._shard.proposals.submit(command, PINNED_MAX)
        if isinstance(outcome, Refused):
            raise InvalidRequest(f"zones: refused: {outcome.what}")
        return outcome


def _package_file(zone: Zone) -> bytes:
    """The package's file of a zone; empty if it has none any more."""
    try:
        return recurrence.read_zone_file(zone.name)
    except recurrence.UnknownZone:
        return b""


def _message(schedule: Schedule, moves: Moves) -> zone_pb2.MovedSchedule:
    return zone_pb2.MovedSchedule(
        name=names.schedule_name(schedule.customer, schedule.job_id, schedule.schedule_id),
        time_zone=schedule.spec.zone,
        old_times=[convert.from_ms(instant_ms) for instant_ms in moves.gone_ms],
        new_times=[convert.from_ms(instant_ms) for instant_ms in moves.new_ms],
        more=moves.more,
    )
