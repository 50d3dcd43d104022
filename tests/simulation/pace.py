"""How fast things happen in a simulation: one of four paces, by the seed.

Time is virtual, so what costs is what happens, and an idle shard's heartbeats are most of that. A
slower world stretches every cadence alike (heartbeats, elections, leases, what clients do, faults,
restarts, the periods of schedules) and runs as much longer: as much happens in it, in other
proportion to what is not stretched (arming, the misfire grace, network and disk).
"""

from __future__ import annotations

from dataclasses import dataclass

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class Pace:
    """See the module."""

    name: str
    stretch: float
    crons_ms: dict[str, tuple[int, int]]
    """The crons that clients use, as (period, phase)."""
    every_ms: tuple[int, ...]
    """And the intervals."""
    offsets_s: tuple[int, ...] = (0, 7, 23, -11)
    """What files of zones say: so far from UTC."""
    saving_s: int = 13
    """By how much clocks go forward or back in some of them."""


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
DAYS = Pace(
    "days",
    288.0,
    {
        "*/10 * * * *": (10 * MINUTE_MS, 0),
        "*/20 * * * *": (20 * MINUTE_MS, 0),
        "30 * * * *": (HOUR_MS, 30 * MINUTE_MS),
        "0 */2 * * *": (2 * HOUR_MS, 0),
        "30 */4 * * *": (4 * HOUR_MS, 30 * MINUTE_MS),
        "30 12 * * *": (24 * HOUR_MS, 12 * HOUR_MS + 30 * MINUTE_MS),
    },
    (5 * MINUTE_MS, 11 * MINUTE_MS, 33 * MINUTE_MS),
    offsets_s=(0, 3_600, -5 * 3_600, 7_200),
    saving_s=3_600,
)
"""Ten minutes of faults are two days here, and zones differ by hours: the night, and the hour that
daylight saving skips or repeats, are in it."""

PACES = (BUSY, CALM, SPARSE, DAYS)
CRONS_MS = {cron: period for pace in PACES for cron, period in pace.crons_ms.items()}


def of(seed: int) -> Pace:
    """Busy and calm a third of all seeds each, sparse two of nine, days one of nine."""
    return DAYS if seed % 9 == 8 else PACES[seed % 3]
