"""A caller that changes what schedules follow: the customer's calendars, and the zones' files.

The package that zones come from is another one on each replica, as in an upgrade that never ends:
what a zone means must come from the log all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from tickmesh.mesh.errors import AlreadyExists, CalendarInUse, NotFound, TickmeshError
from tickmesh.proto.tickmesh.v1 import calendar_pb2, zone_pb2
from tickmesh.scheduler.core import recurrence

from .clients import CALENDARS, CUSTOMER, ZONES, Client, Unknown
from .loop import PROCESS
from .machine import START_MS
from .pace import Pace
from .versions import Versions

EVERY_S = 2.5
"""Mean between two changes, at a busy pace."""

SHIFT_S = 45.0
"""When clocks go forward in some zones and back in others, from the beginning, at a busy pace: at
a full minute, or hour. On days that is from or to noon."""

FILES = 4
"""Of each zone: the second goes forward, the fourth back."""


def is_pinned(seed: int) -> bool:
    """In every other simulation schedules follow calendars and zones; the others go as if there
    were no such thing."""
    return seed % 4 in (1, 2)


def zone_file(number: int, pace: Pace) -> bytes:
    """A TZif file of version 2 (RFC 8536); half of them with a change while the simulation runs."""
    offset_s = pace.offsets_s[number]
    changed_s = offset_s + (pace.saving_s if number == 1 else -pace.saving_s)
    header = struct.Struct(">4sc15x6l")
    shift_s = START_MS // 1_000 + int(SHIFT_S * pace.stretch)
    changes = [shift_s - shift_s % max(60, pace.saving_s)] if number % 2 else []
    return b"".join(
        (
            header.pack(b"TZif", b"2", 0, 0, 0, 0, 0, 0),
            header.pack(b"TZif", b"2", 0, 0, 0, len(changes), 2, 4),
            *(struct.pack(">q", change) for change in changes),
            b"\1" * len(changes),
            struct.pack(">lBB", offset_s, 0, 0),
            struct.pack(">lBB", changed_s, 0, 0),
            b"SIM\0\n\n",
        )
    )


@contextlib.contextmanager
def packaged(pace: Pace) -> Iterator[None]:
    """Each machine has its own release of the package that zones are read from."""

    def read(name: str) -> bytes:
        process = PROCESS.get()
        assert process is not None, "only replicas read zones"
        release = zlib.crc32(f"{process.name} {name}".encode()) % FILES
        return zone_file(release, pace)

    kept = recurrence.read_zone_file
    recurrence.read_zone_file = read
    try:
        yield
    finally:
        recurrence.read_zone_file = kept


class Almanac(Client):
    """See the module. It is the only one that writes calendars."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._made: set[str] = set()
        """Names of calendars that should be there."""
        self._versions = Versions(self._violate)
        self.changed = 0

    async def run(self) -> None:
        """Until told to stop."""
        stretch = self._pace.stretch
        doings: list[tuple[int, Callable[[], Any]]] = [
            (6, self.change_calendar),
            (1, self.delete_calendar),
            (2, self.read_calendar),
            (3, self.upgrade_zones),
        ]
        weights = [weight for weight, _ in doings]
        for name in CALENDARS:
            await self._try(lambda name=name: self.create_calendar(name))
        while not self.stopping:
            (_, doing) = self.chance.choices(doings, weights)[0]
            await self._try(doing)
            await asyncio.sleep(self.chance.expovariate(1 / EVERY_S) * stretch)

    async def _try(self, doing: Callable[[], Any]) -> None:
        try:
            await doing()
        except Unknown:
            self._note(f"{self.name} does not know")
        except TickmeshError as error:
            self._note(f"{self.name} is refused: {error}")

    # -- calendars -----------------------------------------------------------------------------

    def _content(self, name: str) -> calendar_pb2.Calendar:
        """Stretches of the next while in which nothing fires; some with a zone of their own."""
        chance, stretch_ms = self.chance, 1_000 * self._pace.stretch
        calendar = calendar_pb2.Calendar(name=name)
        for _ in range(chance.choice((0, 1, 1, 2))):
            start_ms = self._now_ms() + int(chance.uniform(-5, 20) * stretch_ms)
            window = calendar.windows.add()
            window.start_time.FromMilliseconds(start_ms)
            window.end_time.FromMilliseconds(start_ms + int(chance.uniform(1, 15) * stretch_ms))
        if chance.random() < 0.3:
            calendar.dates.append("2027-01-16")  # tomorrow
            calendar.time_zone = chance.choice(ZONES)
        return calendar

    async def create_calendar(self, name: str) -> None:
        request = calendar_pb2.CreateCalendarRequest(
            parent=CUSTOMER,
            calendar_id=name.rpartition("/")[2],
            calendar=self._content(""),
            request_id=self.request_id(),
        )
        with contextlib.suppress(AlreadyExists):  # it was not known whether it had been deleted
            await self._calendar("CreateCalendar", request)
        self._made.add(name)

    async def change_calendar(self) -> None:
        name = self.chance.choice(CALENDARS)
        if name not in self._made:
            await self.create_calendar(name)
            return
        request = calendar_pb2.UpdateCalendarRequest(calendar=self._content(name))
        request.update_mask.paths.extend(("dates", "windows", "time_zone"))
        try:
            await self._calendar("UpdateCalendar", request)
        except NotFound:
            self._made.discard(name)
            return
        self.changed += 1

    async def delete_calendar(self) -> None:
        name = self.chance.choice(CALENDARS)
        request = calendar_pb2.DeleteCalendarRequest(name=name)
        with contextlib.suppress(CalendarInUse, NotFound):
            await self.ask(
                "tickmesh.v1.CalendarService/DeleteCalendar", request, calendar_pb2.Calendar
            )
            self._made.discard(name)

    async def read_calendar(self) -> None:
        request = calendar_pb2.GetCalendarRequest(name=self.chance.choice(CALENDARS))
        with contextlib.suppress(NotFound):
            await self._calendar("GetCalendar", request)

    async def _calendar(self, method: str, request: Any) -> None:
        seen = self._versions.begin()
        found, _ = await self.ask(
            f"tickmesh.v1.CalendarService/{method}", request, calendar_pb2.Calendar
        )
        self._versions.told(seen, found.uid, found.etag, found)

    # -- zones ---------------------------------------------------------------------------------

    async def upgrade_zones(self) -> None:
        """To files that are given, or to whatever the leader's package has."""
        request = zone_pb2.UpgradeZonesRequest(shard_id="shard-0")
        if self.chance.random() < 0.6:
            for name in ZONES:
                number = self.chance.randrange(FILES)
                request.files.add(name=name, content=zone_file(number, self._pace))
        response, _ = await self.ask(
            "tickmesh.v1.ZoneService/UpgradeZones", request, zone_pb2.UpgradeZonesResponse
        )
        self.changed += bool(response.changed_zones)
