"""How fast things happen in a simulation: one of three paces, by the seed.

Time is virtual, so what costs is what happens, and an idle shard's heartbeats are most of that. A
slower world stretches every cadence alike (heartbeats, elections, leases, what clients do, faults,
restarts, the periods of schedules) and runs as much longer: as much happens in it, in other
proportion to what is not stretched (arming, the misfire grace, network and disk).
"""

from __future__ import annotations

from dataclasses import dataclass

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS


@dataclass(frozen=True, slots=True)
class Pace:
    """See the module."""

    name: str
    stretch: float
    crons_ms: dict[str, tuple[int, int]]
    """The crons that clients use, as (period, phase)."""
    every_ms: tuple[int, ...]
    """And the intervals."""


BUSY = Pace(
    "busy",
    1.0,
    {
        "* * * * * *": (SECOND_MS, 0),
        "*/2 * * * * *": (2 * SECOND_MS, 0),
        "*/5 * * * * *": (5 * SECOND_MS, 0),
        "*/20 * * * * *": (20 * SECOND_MS, 0),
        "* * * * *": (MINUTE_MS, 0),
        "30 * * * * *": (MINUTE_MS, 30 * SECOND_MS),
    },
    (1_000, 1_000, 2_500, 7_000),
)
CALM = Pace(
    "calm",
    6.0,
    {
        "*/10 * * * * *": (10 * SECOND_MS, 0),
        "*/20 * * * * *": (20 * SECOND_MS, 0),
        "* * * * *": (MINUTE_MS, 0),
        "30 * * * * *": (MINUTE_MS, 30 * SECOND_MS),
        "*/2 * * * *": (2 * MINUTE_MS, 0),
        "*/5 * * * *": (5 * MINUTE_MS, 0),
    },
    (6_000, 15_000, 42_000),
)
SPARSE = Pace(
    "sparse",
    45.0,
    {
        "* * * * *": (MINUTE_MS, 0),
        "30 * * * * *": (MINUTE_MS, 30 * SECOND_MS),
        "*/2 * * * *": (2 * MINUTE_MS, 0),
        "*/5 * * * *": (5 * MINUTE_MS, 0),
        "*/15 * * * *": (15 * MINUTE_MS, 0),
        "0 * * * *": (60 * MINUTE_MS, 0),
    },
    (60_000, 100_000, 300_000),
)

PACES = (BUSY, CALM, SPARSE)
CRONS_MS = {cron: period for pace in PACES for cron, period in pace.crons_ms.items()}


def of(seed: int) -> Pace:
    """A third of all seeds each."""
    return PACES[seed % len(PACES)]
