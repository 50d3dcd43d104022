"""What attempts wrote on their executors: it says who really started, whatever was told of it."""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

STARTED, ENDED = b"started\n", b"ended\n"
"""The first thing that each attempt writes, and the last."""

WHOLE = STARTED + ENDED

TIME = struct.Struct("<QQ")
"""From which byte on, and when it was read, in ns: see executor/gate/recorder.c."""


@dataclass(frozen=True, slots=True)
class Witness:
    """Of one attempt, on one executor."""

    executor: str
    first_ns: int
    """When the first of it was read: soon after the start."""
    ended: bool
    """Whether it came to its end."""


def witnesses(executors: dict[str, Path]) -> dict[tuple[str, int], list[Witness]]:
    """By (execution's id, attempt's number), from the executors' data directories."""
    found: dict[tuple[str, int], list[Witness]] = defaultdict(list)
    for executor, directory in executors.items():
        for path in directory.glob("**/output/*/stdout"):
            execution, _, number = path.parent.name.rpartition("-")
            if text := path.read_bytes():
                _, first_ns = TIME.unpack_from(path.with_name("stdout.times").read_bytes())
                witness = Witness(executor, first_ns, text.endswith(ENDED))
                found[execution, int(number)].append(witness)
    return found
