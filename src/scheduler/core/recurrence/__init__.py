"""When a schedule fires: crons, periods and instants, across every change of the clocks.

Pure: every answer depends on the arguments and on the pinned `tzdata` package only. Instants are
epoch milliseconds UTC; nothing fires before 1970 or from the year 2300 on.

Cron has 5 fields (minute hour day-of-month month day-of-week), or 6 with the SECONDS FIRST; the
grammar is in `cron`. Where both day fields are restricted, a day that matches either is enough; a
field that has a star in it (`*`, `*/2`) is not restricted, and then both must match.

Daylight saving. A cron whose minute and hour are both free of stars names FIXED local times:

    a time that does not exist    runs once, at the moment after the gap (Gap.SKIP: not that day)
    several in one gap            run once together
    a time that happens twice     runs once, the first time (Fold.BOTH: both times)

A cron with a starred minute or hour (`*/30 2 * * *`, `0 * * * *`, `H/15 * * * *`) is a rhythm: it
FOLLOWS ELAPSED TIME, so it fires whenever the clock shows a matching time, in a fold both times,
and nothing is added for a gap. The two policies do not change it.

Periods (`every`) and instants (`at_ms`) are absolute: clocks do not move them.
"""

from .cron import parse as parse_cron
from .describe import describe
from .errors import (
    BadSpec,
    BadZoneFile,
    CronError,
    RecurrenceError,
    UnknownZone,
)
from .preview import Fire, preview
from .program import draws, due_ms, latest_fire, next_fire
from .skips import Skip, skips
from .spec import Calendar, Fold, Gap, Pin, Problem, Spec, calendar_digest, with_calendars
from .upgrade import Moves, fires_moved
from .validate import validate, validate_calendar
from .zones import names as zone_names
from .zones import parse as check_zone_file
from .zones import read_file as read_zone_file
from .zones import register as register_zone_file
from .zones import version as zones_version

__all__ = [
    "BadSpec",
    "BadZoneFile",
    "Calendar",
    "CronError",
    "Fire",
    "Fold",
    "Gap",
    "Moves",
    "Pin",
    "Problem",
    "RecurrenceError",
    "Skip",
    "Spec",
    "UnknownZone",
    "calendar_digest",
    "check_zone_file",
    "describe",
    "draws",
    "due_ms",
    "fires_moved",
    "latest_fire",
    "next_fire",
    "parse_cron",
    "preview",
    "read_zone_file",
    "register_zone_file",
    "skips",
    "validate",
    "validate_calendar",
    "with_calendars",
    "zone_names",
    "zones_version",
]
