"""IANA zones as timelines of UTC offsets, read from the pinned `tzdata` package.

Replicas must agree to the second about local time, so the host's zone files and the standard
library's search path play no part; and as replicas may have different releases of the package while
they are upgraded, whoever needs them to agree names the very file by its digest: see `register`. A
timeline is exact: the transitions that the file lists (RFC 8536), and after them those of its
footer's rule (POSIX TZ), up to the horizon.
"""

import datetime
import hashlib
import importlib.resources
import re
import struct
from bisect import bisect_right
from functools import lru_cache
from typing import Final, NamedTuple

from .errors import BadZoneFile, UnknownZone
from .limits import HORIZON_S, HORIZON_YEAR, ZONE_CHARACTERS_MAX, ZONES_CACHED_MAX
from .spec import DIGEST_BYTES

BEGINNING_S: Final = -(2**53)
"""Before every instant and, with an offset added, before every local time."""

EPOCH_ORDINAL: Final = datetime.date(1970, 1, 1).toordinal()


class Timeline(NamedTuple):
    """The offsets of one zone from 1970 to the horizon. All values are seconds.

    Segment i is [starts[i], starts[i + 1]), with local = instant + offsets[i]. `starts` has one
    entry more than the others: the horizon.
    """

    starts: tuple[int, ...]
    offsets: tuple[int, ...]
    highs: tuple[int, ...]
    """highs[i]: the furthest that the local clock had come before segment i began. Local times in
    the segment below it are repeats; those between it and the segment's first never existed."""

    def segment(self, instant_s: int) -> int:
        return bisect_right(self.starts, instant_s, 0, len(self.offsets)) - 1

    def offset_s(self, instant_s: int) -> int:
        return self.offsets[bisect_right(self.starts, instant_s, 0, len(self.offsets)) - 1]


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    """All zone names of the pinned package."""
    text = (importlib.resources.files("tzdata") / "zones").read_text(encoding="ascii")
    return frozenset(text.split())


@lru_cache(maxsize=1)
def version() -> str:
    """The IANA release in use, such as "2026a". Replicas with different ones may disagree."""
    text = (importlib.resources.files("tzdata") / "zoneinfo" / "tzdata.zi").read_text(
        encoding="ascii"
    )
    return text.split("\n", 1)[0].removeprefix("# version").strip()


_registered: dict[bytes, bytes] = {}
"""Zone files by digest: what is under one never changes, so it may be known to all."""


def register(content: bytes) -> bytes:
    """Makes a zone file known by its digest, which is returned. The same for the same content."""
    digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
    _registered.setdefault(digest, content)
    return digest


def read_file(name: str) -> bytes:
    """Returns the pinned package's file of a zone. Raises UnknownZone."""
    if len(name) > ZONE_CHARACTERS_MAX or name not in names():
        raise UnknownZone(f"unknown time zone {name[:ZONE_CHARACTERS_MAX]!r}")
    resource = importlib.resources.files("tzdata") / "zoneinfo"
    for part in name.split("/"):
        resource = resource / part
    return resource.read_bytes()


@lru_cache(maxsize=ZONES_CACHED_MAX)
def load(name: str, digest: bytes = b"") -> Timeline:
    """Returns the timeline of a zone: of the file that was registered with a digest, or of the
    package's. Raises UnknownZone."""
    if not digest:
        return parse(read_file(name))
    content = _registered.get(digest)
    if content is None:
        raise UnknownZone(f"the zone file {digest.hex()} of {name} is not known")
    return parse(content)


def parse(content: bytes) -> Timeline:
    """Returns the timeline that a TZif file holds. Raises BadZoneFile."""
    try:
        transitions, first_offset_s, footer = _read(content)
    except (struct.error, IndexError, ValueError) as error:
        raise BadZoneFile(f"not a zone file of version 2 or later: {error}") from error
    starts = [BEGINNING_S]
    offsets = [first_offset_s]
    for start_s, offset_s in transitions:
        _append(starts, offsets, start_s, offset_s)
    last_s = transitions[-1][0] if transitions else BEGINNING_S
    for start_s, offset_s in _rule_transitions(footer, last_s):
        _append(starts, offsets, start_s, offset_s)
    highs = [BEGINNING_S]
    for index in range(1, len(starts)):
        highs.append(max(highs[-1], starts[index] + offsets[index - 1]))
    return Timeline((*starts, HORIZON_S), tuple(offsets), tuple(highs))


def _append(starts: list[int], offsets: list[int], start_s: int, offset_s: int) -> None:
    """Adds a transition; those before 1970 only set the first offset, and no-changes vanish."""
    if start_s <= 0:
        offsets[0] = offset_s
    elif offsets[-1] != offset_s and start_s < HORIZON_S:
        starts.append(start_s)
        offsets.append(offset_s)


def _read(content: bytes) -> tuple[list[tuple[int, int]], int, str]:
    """Returns (transitions as (instant, offset after it), offset before the first, footer)."""
    header = struct.Struct(">4sc15x6l")
    magic, version_byte, isut, isstd, leaps, times, types, characters = header.unpack_from(content)
    if magic != b"TZif" or version_byte < b"2":
        raise ValueError("wrong magic or version")
    at = header.size + times * 5 + types * 6 + characters + leaps * 8 + isstd + isut
    magic, _, isut, isstd, leaps, times, types, characters = header.unpack_from(content, at)
    if magic != b"TZif" or leaps or not types:
        raise ValueError("wrong second header")
    at += header.size
    instants = struct.unpack_from(f">{times}q", content, at)
    at += times * 8
    kinds = content[at : at + times]
    at += times
    offsets = [struct.unpack_from(">l", content, at + 6 * index)[0] for index in range(types)]
    at += types * 6 + characters + isstd + isut
    footer = content[at:].decode("ascii").strip("\n")
    pairs = [(instant, offsets[kind]) for instant, kind in zip(instants, kinds, strict=True)]
    return pairs, offsets[0], footer


_NAME = r"(?:<[^>]+>|[A-Za-z]+)"
_TIME = r"[+-]?\d+(?::\d+){0,2}"
_FOOTER = re.compile(
    rf"{_NAME}(?P<standard>{_TIME})"
    rf"(?:{_NAME}(?P<summer>{_TIME})?,(?P<start>[^,]+),(?P<end>[^,]+))?"
)


def _rule_transitions(footer: str, after_s: int) -> list[tuple[int, int]]:
    """Returns the transitions of a POSIX TZ rule after an instant, up to the horizon."""
    if not footer:
        return []
    match = _FOOTER.fullmatch(footer)
    if match is None:
        raise BadZoneFile(f"a footer that is not a rule: {footer!r}")
    standard_s = -_seconds(match["standard"])
    if match["start"] is None:
        return [(after_s + 1, standard_s)] if after_s > 0 else []
    summer_s = -_seconds(match["summer"]) if match["summer"] else standard_s + 3_600
    found = []
    first_year = datetime.date.fromordinal(EPOCH_ORDINAL + max(0, after_s) // 86_400).year
    for year in range(first_year, HORIZON_YEAR):
        found.append((_rule_instant(match["start"], year) - standard_s, summer_s))
        found.append((_rule_instant(match["end"], year) - summer_s, standard_s))
    return sorted(pair for pair in found if pair[0] > after_s)


def _rule_instant(rule: str, year: int) -> int:
    """Returns the local wall-clock second at which a rule such as M3.5.0/2 holds in a year."""
    date, _, time = rule.partition("/")
    if date.startswith("M"):
        month, week, weekday = (int(part) for part in date[1:].split("."))
        first = datetime.date(year, month, 1)
        ordinal = first.toordinal() + (weekday - first.isoweekday()) % 7 + 7 * (week - 1)
        while datetime.date.fromordinal(ordinal).month != month:  # week 5 means the last one
            ordinal -= 7
    elif date.startswith("J"):  # 1 to 365, 29 February is never counted
        ordinal = datetime.date(2001, 1, 1).toordinal() + int(date[1:]) - 1
        day = datetime.date.fromordinal(ordinal)
        ordinal = day.replace(year=year).toordinal()
    else:  # 0 to 365, 29 February is counted
        ordinal = datetime.date(year, 1, 1).toordinal() + int(date)
    return (ordinal - EPOCH_ORDINAL) * 86_400 + (_seconds(time) if time else 7_200)


def _seconds(text: str) -> int:
    """Returns [+-]h[:m[:s]] in seconds."""
    parts = [int(part) for part in text.lstrip("+-").split(":")]
    total = sum(part * unit for part, unit in zip(parts, (3_600, 60, 1), strict=False))
    return -total if text.startswith("-") else total
