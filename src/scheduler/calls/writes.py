"""How a public method becomes a command: what creates share, and what a refused command means."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from google.protobuf.message import Message

from ...mesh.errors import (
    AlreadyExists,
    CalendarInUse,
    EtagMismatch,
    FailedPrecondition,
    JobHasSchedules,
    MessageTooLarge,
    NotFound,
    NotPaused,
    ResourceExhausted,
    TickmeshError,
    TooManyKeys,
    invalid,
)
from ...mesh.limits import MESSAGE_BYTES_MAX
from ..core import recurrence
from ..core.calendars import CALENDARS_MAX
from ..core.commands import AnyCommand, LearnZones, Outcome, Placement, Refused, Why
from ..core.customers import CREDENTIALS_MAX, KEYS_MAX
from ..core.fires import BACKFILL_MAX
from ..core.ids import UID_BYTES, spell
from ..shard import Shard

REQUEST_BYTES = 12
"""What is stored of a request_id: nobody has so many that two are alike."""


SET_BYTES = 1024
"""What the server sets in a message, at most: names, times, an etag, defaults."""


class Write(NamedTuple):
    """A submitted command: its outcome to come, and how that becomes a response."""

    outcome: asyncio.Future[Outcome]
    respond: Callable[[Any], Message]
    placements: list[Placement | None]


class Methods(NamedTuple):
    """Public methods by their full names: each with its request, and what answers it.

    A write checks a request and submits one command, and makes the response of what came of it. A
    read looks at the state after a read barrier. A step-by-step method does several of these.
    """

    writes: dict[str, tuple[type[Message], Callable[[Any], Write]]]
    reads: dict[str, tuple[type[Message], Callable[[Any], Message]]]
    steps: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]]


def request_hash(request_id: str) -> bytes:
    """What is stored of a request_id."""
    if not request_id:
        return b""
    return hashlib.blake2b(request_id.encode(), digest_size=REQUEST_BYTES).digest()


class Making:
    """What one create draws, for what it makes."""

    def __init__(self, request_id: str, draw: Callable[[int], bytes]) -> None:
        self.request = request_hash(request_id)
        self._draw = draw

    def item(self, prefix: str, given: str, index: int = 0) -> tuple[str, bytes]:
        """The id and the uid of one thing: an id is made up where the client left it out, the same
        one for a repetition of the request. index: which item of the batch it is."""
        uid = self._draw(UID_BYTES)
        return given or f"{prefix}-{spell(self._of_request(index) or uid)}", uid

    def uid(self) -> bytes:
        """Of what has no other id: the same one for a repetition of the request."""
        return self._of_request(0) or self._draw(UID_BYTES)

    def _of_request(self, index: int) -> bytes:
        if not self.request:
            return b""
        return hashlib.blake2b(self.request + b"%d" % index, digest_size=UID_BYTES).digest()


def check_answer_size(request: Message, count: int) -> None:
    """Raises MessageTooLarge for a batch whose answer could not be sent once it is made."""
    size, size_max = request.ByteSize(), MESSAGE_BYTES_MAX - count * SET_BYTES
    if size > size_max:
        raise MessageTooLarge(
            f"the request has {size:,} bytes, and its answer more; with {count:,} items it may have"
            f" {size_max:,}: split it",
            metadata={"limit_bytes": str(size_max), "bytes": str(size)},
        )


def labels(message: Any) -> tuple[tuple[str, str], ...]:
    """Labels as they are stored."""
    given = message.labels
    return tuple(sorted(given.items())) if given else ()


class Writes:
    """Submits commands to a shard's log."""

    def __init__(self, shard: Shard, draw: Callable[[int], bytes]) -> None:
        """draw: so many bytes that nobody can guess."""
        self._shard = shard
        self.draw = draw
        self._learning: set[str] = set()
        """Time zones that the shard is about to know."""

    def making(self, request_id: str) -> Making:
        """For a create."""
        return Making(request_id, self.draw)

    def create(
        self,
        request: Any,
        resource: Message,
        command: AnyCommand,
        respond: Callable[[Any], Message],
        field: str,
        zone: str = "",
    ) -> Write:
        """Submit the creation of one resource, or answer validate_only.

        respond: makes the response of what was made. field: of its id. zone: that it uses.
        """
        if request.validate_only:
            return self.checked(resource)
        self.learn(zone)
        return self.submit(command, lambda made: respond(made[0]), field=field)

    @staticmethod
    def checked(response: Message) -> Write:
        """The answer to validate_only: nothing is submitted."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        outcome.set_result([])
        return Write(outcome, lambda _: response, [])

    def submit(
        self,
        command: AnyCommand,
        respond: Callable[[Any], Message],
        weight: int = 1,
        placements: list[Placement | None] | None = None,
        field: str = "",
    ) -> Write:
        """respond: makes the response of the outcome. field: of what may be taken already."""

        def answered(outcome: Outcome) -> Message:
            if isinstance(outcome, Refused):
                raise refusal(outcome, field.replace("[]", f"[{outcome.index}]"))
            return respond(outcome)

        try:
            submitted = self._shard.proposals.submit(command, weight)
        except Exception:
            self._shard.release(placements or [])
            raise
        return Write(submitted, answered, placements or [])

    async def do(self, command: AnyCommand, weight: int = 1) -> Any:
        """What came of a command. Raises what its refusal means."""
        outcome = await self._shard.proposals.submit(command, weight)
        if isinstance(outcome, Refused):
            raise refusal(outcome)
        return outcome

    def learn(self, zone: str) -> None:
        """Let the shard know a time zone, ahead of what is about to be submitted and uses it."""
        if zone in ("", "UTC", *self._learning) or self._shard.queries.view().zone(zone):
            return
        files = ((zone, recurrence.read_zone_file(zone)),)
        command = LearnZones(files, recurrence.zones_version(), False)

        def learned(outcome: asyncio.Future[Outcome]) -> None:
            self._learning.discard(zone)
            # If it failed, what follows it fails too; or a replica is older, and knows no pins.
            if not outcome.cancelled():
                outcome.exception()

        submitted = self._shard.proposals.submit(command)
        self._learning.add(zone)
        submitted.add_done_callback(learned)


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
            recurrence_field = field.removesuffix("schedule_id") + "schedule.recurrence"
            return invalid(recurrence_field, "has no instant that is still to come")
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
