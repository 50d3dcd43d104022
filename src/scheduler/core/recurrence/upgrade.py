"""What another release of tzdata would do to a schedule, before anybody installs it."""

import msgspec

from .limits import HORIZON_MS
from .program import Program, program
from .spec import Spec
from .zones import parse


class Moves(msgspec.Struct, frozen=True):
    """Fires that only one of two tzdata releases has, in order; `more` if there are others."""

    gone_ms: tuple[int, ...] = ()
    new_ms: tuple[int, ...] = ()
    more: bool = False


def fires_moved(
    spec: Spec,
    zone_file: bytes,
    after_ms: int,
    until_ms: int,
    *,
    hash_key: str = "",
    most: int = 100,
) -> Moves:
    """Compares the fires in (after, until] of the pinned zone and of a candidate's TZif file.

    `most` bounds the fires returned. Raises BadZoneFile.
    """
    if not spec.crons and not spec.excluded_dates and not spec.calendars:
        return Moves()
    present = program(spec, hash_key)
    candidate = Program(spec, hash_key, parse(zone_file))
    gone: list[int] = []
    new: list[int] = []
    left, right = present.next_ms(after_ms), candidate.next_ms(after_ms)
    until_ms = min(until_ms, HORIZON_MS - 1)
    while min(left, right) <= until_ms:
        if left != right:
            if len(gone) + len(new) >= most:
                return Moves(tuple(gone), tuple(new), more=True)
            (gone if left < right else new).append(min(left, right))
        earlier = min(left, right)
        left, right = present.next_ms(earlier), candidate.next_ms(earlier)
    return Moves(tuple(gone), tuple(new))
