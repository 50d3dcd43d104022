"""Time zones as the shard knows them, and the schedules that follow when they change.

A zone's file comes into the state with the first schedule that uses it, from the leader's tzdata
package, and is replaced only by an upgrade that an operator asks for. So it does not matter to the
state which release of tzdata a replica has.
"""

from __future__ import annotations

from . import recurrence
from .calendars import PINNED_MAX, follow_pins
from .commands import LearnZones
from .model import Zone
from .view import View

SCANNED_MAX = 1_000
"""Schedules that one command looks at, about 20 ms."""


def learn(view: View, command: LearnZones) -> list[Zone]:
    """Those that are new; with `upgrade`, schedules in those that changed follow by PinZones."""
    made = []
    for name, content in command.zones:
        known = view.zone(name)
        digest = recurrence.register_zone_file(content)
        if known is not None and (known.digest == digest or not command.upgrade):
            continue
        zone = Zone(name, digest, command.version)
        view.put_zone(zone, content)
        made.append(zone)
        if known is not None:
            view.set_zones_pending(b"")
    return made


def pin(view: View, now_ms: int) -> list[int]:
    """Change the next schedules; how many."""
    after = view.zones_pending()
    if after is None:
        return []
    changed = 0
    schedules = view.schedules_after(after, SCANNED_MAX)
    for schedule in schedules:
        after = schedule.job_uid + schedule.schedule_id.encode()
        changed += follow_pins(view, schedule, now_ms)
        if changed == PINNED_MAX:
            break
    done = len(schedules) < SCANNED_MAX and changed < PINNED_MAX
    view.set_zones_pending(None if done else after)
    return [changed]
