"""History is kept by the period, and dropped by it, whole.

An execution belongs to the period of its due time; a row of a ledger, a change and a request to
that of the entry which wrote them. So the records of a period may be forgotten once everything that
was due in it has ended, and its retention after that is over.
"""

from __future__ import annotations

from .commands import DropHistory
from .view import View

PERIOD_MS = 86_400_000
"""A day: a week of history is a handful of files to drop, and none to compact."""


def period(time_ms: int) -> int:
    """The period of an instant."""
    return time_ms // PERIOD_MS


def drop(view: View, command: DropHistory) -> list[int]:
    """Forget every period before one, unless something that was due in them has not ended, or
    schedules are pinned to calendars' contents that are history by now."""
    if view.calendars_pending(1):
        return []
    if view.active_before(command.before * PERIOD_MS) or command.before <= view.history_from:
        return []
    view.drop_history(command.before)
    return [command.before]
