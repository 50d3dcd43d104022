"""The fire ledger: what became of every instant of a schedule, in rows that are chained by hash.

A row is about one instant, or about a run of them in order (first, last, how many) with the same
outcome: a second-by-second schedule that is paused for a year has one row for it. Rows of outcome
DEFINED hold the schedule's definition as of a time, so that the instants that should have been can
be computed again from the ledger alone (audit.py); calendars are named in it by their content's
digest (pins.py). Rows of outcome PURGED name the instants whose executions were forgotten by the
customer's retention, so that these are not missed, and no others can be gone for that reason. Rows
are numbered from 0 in the order of their decision; their times never run backwards.

    hash(n) = BLAKE2b-16(hash(n - 1) + n in 8 bytes, big-endian + the row's fields as msgpack)
"""

from __future__ import annotations

import enum
import hashlib
from itertools import accumulate

import msgspec

from .model import Policy, Record, ScheduleState
from .recurrence import Spec

HASH_BYTES = 16


class Outcome(enum.IntEnum):
    """What became of an instant. Numbers are stored, and as in the public API."""

    DEFINED = 1
    """Not an instant: the schedule was created, changed, paused or resumed; see Definition."""
    FIRED = 2
    """It has an execution of its own: the one with its id."""
    CAUGHT_UP = 3
    """The same, late: by the misfire policy."""
    MISSED = 4
    """Nobody fired it in time, and the misfire policy does not make up for it."""
    OVERLAP = 5
    """Skipped: an earlier execution had not ended."""
    DEADLINE = 6
    """Skipped: it was later than the start deadline."""
    PAUSED = 7
    """Skipped: the schedule was paused."""
    CLOCK = 8
    """Skipped: daylight saving, by the gap or fold policy."""
    EXCLUDED = 9
    """Skipped: an excluded date, window or calendar."""
    BRAKE = 10
    """Skipped: the runaway brake, which also paused the schedule."""
    PURGED = 11
    """Not an instant: executions of a run of instants were forgotten."""


class Definition(Record, frozen=True):
    """What a schedule was from a time on."""

    uid: bytes
    version: int
    state: ScheduleState
    spec: Spec
    policy: Policy


class Row(Record, frozen=True):
    """One row. Times are milliseconds since 1970."""

    outcome: Outcome
    at_ms: int
    """When it was decided."""
    first_ms: int
    """The nominal instant, or the first of a run; for DEFINED the time from which it holds."""
    last_ms: int
    count: int
    """Instants of the run; 0: too many to count (1,000 or more)."""
    detail: bytes
    """A Definition, for DEFINED; the calendar's id, for EXCLUDED by one; the instants, for PURGED;
    else empty."""
    hash: bytes


_encode = msgspec.msgpack.Encoder().encode
_DEFINITION = msgspec.msgpack.Decoder(Definition)
_INSTANTS = msgspec.msgpack.Decoder(list[int])


def chained(previous: bytes, number: int, row: Row) -> bytes:
    """The hash of a row that follows one whose hash is `previous` (empty for row 0)."""
    return _hash(
        previous,
        number,
        (row.outcome, row.at_ms, row.first_ms, row.last_ms, row.count, row.detail),
    )


def _hash(previous: bytes, number: int, fields: tuple[int, int, int, int, int, bytes]) -> bytes:
    content = previous + number.to_bytes(8, "big") + _encode(fields)
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


def make(
    previous: bytes,
    number: int,
    outcome: Outcome,
    at_ms: int,
    first_ms: int,
    last_ms: int,
    count: int,
    detail: str | Definition = "",
) -> Row:
    """A row with its hash."""
    raw = detail.encode() if isinstance(detail, str) else _encode(detail)
    digest = _hash(previous, number, (outcome, at_ms, first_ms, last_ms, count, raw))
    return Row(outcome, at_ms, first_ms, last_ms, count, raw, digest)


def definition_of(row: Row) -> Definition:
    """What a DEFINED row holds. Raises msgspec.DecodeError if it was damaged."""
    return _DEFINITION.decode(row.detail)


def make_purged(previous: bytes, number: int, at_ms: int, instants: list[int]) -> Row:
    """A row that tells of which instants, in order, the executions are forgotten."""
    # As differences: most instants of a schedule are as far apart as the last two were.
    raw = _encode([after - before for before, after in zip([0, *instants], instants, strict=False)])
    first_ms, last_ms, count = instants[0], instants[-1], len(instants)
    digest = _hash(previous, number, (Outcome.PURGED, at_ms, first_ms, last_ms, count, raw))
    return Row(Outcome.PURGED, at_ms, first_ms, last_ms, count, raw, digest)


def purged_of(row: Row) -> list[int]:
    """The instants of a PURGED row. Raises msgspec.DecodeError if it was damaged."""
    return list(accumulate(_INSTANTS.decode(row.detail)))
