"""The bounds of a recurrence: how much may be written in one, and how far a search goes.

Every value has its reason beside it. Nothing here may change without a new record version: replicas
that disagreed about a bound would compute different fires.
"""

from typing import Final

CRON_CHARACTERS_MAX: Final = 256
"""Sixty minutes written out take 169 characters; longer text is a mistake or an attack."""

CRONS_MAX: Final = 16
"""Each cron costs one search a fire; sixteen cover every real schedule that we have seen."""

EVERIES_MAX: Final = 16
"""As many as crons: they cost less."""

AT_MAX: Final = 100
"""One-off instants in one record. More belong into several schedules or executions."""

EXCLUDED_DATES_MAX: Final = 1_000
"""Public holidays of several countries for decades; 11 bytes each in the record."""

EXCLUDED_WINDOWS_MAX: Final = 200
"""Maintenance windows; 18 bytes each in the record."""

CALENDARS_MAX: Final = 8
"""Calendars on one schedule; each has dates and windows up to the two bounds above."""

JITTER_MS_MAX: Final = 6 * 3_600_000
"""Wider than any herd; a jitter of days would hide a schedule's own times."""

PERIOD_MS_MIN: Final = 1_000
"""Schedules are to the second; plans may ask for more."""

PERIOD_MS_MAX: Final = 100 * 366 * 86_400_000
"""A century: beyond it `at` says what is meant."""

MAX_FIRES_MAX: Final = 1_000_000_000
"""A fire each second for thirty years."""

ZONE_CHARACTERS_MAX: Final = 64
"""The longest IANA name has 32."""

HORIZON_YEAR: Final = 2300
"""Nothing fires in this year or later: zone timelines are computed up to here."""

HORIZON_S: Final = 10_413_792_000
"""2300-01-01T00:00:00Z in epoch seconds."""

HORIZON_MS: Final = HORIZON_S * 1_000

SEARCH_YEARS: Final = 50
"""How far a cron looks for its next day. A 29 February on a given weekday can be 40 years away
(across 2100, 2200); a pattern that has no day in 50 years has none at all."""

COUNT_MAX: Final = 1_000
"""`latest_fire` counts no further: a fire each second missed for a week is 604,800, and no policy
starts more than this many late ones."""

PREVIEW_MAX: Final = 1_000
"""Fires in one preview."""

PREVIEW_SKIPPED_MAX: Final = 200
"""Skipped instants shown in one preview, besides its fires."""

PREVIEW_QUIET_MS: Final = 366 * 86_400_000
"""How far a preview looks for skipped instants when the schedule has no more fires."""

NOTE_TIMES_MAX: Final = 4
"""Local times named in one note; the rest are counted."""

PROGRAMS_CACHED_MAX: Final = 16_384
"""Distinct specs held compiled, about 1.5 KB each: a shard is expected to see some 2,000."""

PATTERNS_CACHED_MAX: Final = 16_384
"""Distinct (cron fields, zone, policies) held; a hashed cron takes one entry a hash value."""

TEMPLATES_CACHED_MAX: Final = 8_192
"""Distinct cron texts held parsed, about 0.5 KB each."""

ZONES_CACHED_MAX: Final = 700
"""All the zones there are (598 in 2026f), about 40 KB each once used."""

CALENDARS_CACHED_MAX: Final = 1_024
"""Distinct sets of exclusions held ready, about 60 KB each for 1,000 dates; usual ones have 20."""

MONTHS_CACHED_MAX: Final = 24
"""Day masks of months held for one pattern."""

EXCLUDED_STEPS_MAX: Final = 5_000
"""Excluded stretches that one search steps over, each a day or a window: a daily schedule shut out
for 13 years in a row. Then it counts as never firing again."""
