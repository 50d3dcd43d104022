"""What a schedule's recurrence is: the record, its choices, and a customer's calendars.

Only data belongs here; when something fires is in `program`.
"""

import enum
import hashlib
from collections.abc import Callable

import msgspec

DIGEST_BYTES = 16


class Gap(enum.IntEnum):
    """A fixed local time that does not exist, because clocks went forward over it."""

    AFTER = 0
    """Runs once, at the moment after the gap."""
    SKIP = 1
    """Does not run on that day."""

    # Enum hashes its name in Python code; specs are dictionary keys on the hottest path there is.
    __hash__ = int.__hash__


class Fold(enum.IntEnum):
    """A fixed local time that happens twice, because clocks went back over it."""

    FIRST = 0
    """Runs once, the first time."""
    BOTH = 1
    """Runs both times."""

    __hash__ = int.__hash__


class Calendar(msgspec.Struct, frozen=True, array_like=True):
    """What a customer's calendar excludes. Stored: fields may only be appended, with a default."""

    dates: tuple[str, ...] = ()
    """As `Spec.excluded_dates`."""
    windows: tuple[tuple[int, int], ...] = ()
    """As `Spec.excluded_windows`."""
    zone: str = ""
    """IANA name of the zone that its dates are local to; empty: that of the schedule."""


class Pin(msgspec.Struct, frozen=True, array_like=True):
    """A calendar as a schedule uses it: by its name, and with the content that it had then."""

    name: str
    """The calendar's id."""
    digest: bytes = b""
    """Of its content: see `calendar_digest`. Empty: not looked up yet."""
    content: Calendar | None = None
    """Never stored: `with_calendars` sets it."""
    zone_digest: bytes = b""
    """Of the zone file that its own zone means, if it has one: see `Spec`."""

    def __hash__(self) -> int:
        # Specs are dictionary keys; contents are large.
        return hash((self.name, self.digest, self.zone_digest))


class Spec(msgspec.Struct, frozen=True, array_like=True):
    """When a schedule fires: the union of its crons, periods and instants, less its exclusions.

    Stored as an array inside the schedule's record: fields may only be appended, with a default.
    Instants are epoch milliseconds UTC.
    """

    crons: tuple[str, ...] = ()
    """Cron expressions of 5 fields, or of 6 with seconds first, in `zone`'s local time."""
    every: tuple[tuple[int, int], ...] = ()
    """(period_ms, phase_ms): fires at every instant t with (t - phase) % period == 0. The phase is
    counted from the epoch, so neither a restart nor an edit of something else moves a fire."""
    at_ms: tuple[int, ...] = ()
    """One-off instants."""
    zone: str = "UTC"
    """IANA name, looked up in the pinned `tzdata` package, never in the host's files."""
    gap: Gap = Gap.AFTER
    fold: Fold = Fold.FIRST
    start_ms: int | None = None
    """No fire before this instant (one at it is)."""
    end_ms: int | None = None
    """No fire at or after this instant."""
    max_fires: int | None = None
    """Ends after so many fires. Counting needs state: the machine that keeps the schedule enforces
    it; here only `preview` does, which is told how many there were."""
    jitter_ms: int = 0
    """Each fire is due up to this much after its nominal time, never past the next nominal one."""
    excluded_dates: tuple[str, ...] = ()
    """Local dates of `zone`, as 2026-12-25 (that day) or 12-25 (that day of every year)."""
    excluded_windows: tuple[tuple[int, int], ...] = ()
    """[from_ms, until_ms): no fire whose nominal instant is inside."""
    calendars: tuple[Pin, ...] = ()
    """The customer's calendars to exclude. Whatever computes fires takes a spec that
    `with_calendars` gave their content."""
    zone_digest: bytes = b""
    """Of the zone file that `zone` means (see `zones.register`). Empty: that of the package."""


class Problem(msgspec.Struct, frozen=True, array_like=True):
    """One thing wrong with a spec: `field` is a path such as "crons[1]"; `message` says what."""

    field: str
    message: str


def calendar_digest(calendar: Calendar) -> bytes:
    """What names a calendar's content: the same content has the same name everywhere."""
    raw = msgspec.msgpack.encode(calendar)
    return hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest()


def with_calendars(spec: Spec, content: Callable[[Pin], Calendar]) -> Spec:
    """The spec with its calendars' content, as `content` finds it for each."""
    if not spec.calendars:
        return spec
    pins = tuple(msgspec.structs.replace(pin, content=content(pin)) for pin in spec.calendars)
    return msgspec.structs.replace(spec, calendars=pins)
