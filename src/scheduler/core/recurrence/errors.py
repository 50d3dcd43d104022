"""What a recurrence can be refused for.

RecurrenceError (a ValueError)
├── CronError            text that is not a cron expression
├── UnknownZone          no such zone in the pinned tzdata
├── BadZoneFile          a zone file that is not one
└── BadSpec              anything else that `validate` would have told
"""


class RecurrenceError(ValueError):
    """A recurrence that cannot be evaluated. The message is meant for the customer."""


class CronError(RecurrenceError):
    """Text that is not a cron expression. `token` is the offending part, `column` counts from 1."""

    def __init__(self, message: str, token: str = "", column: int = 1) -> None:
        where = f"'{token}' at column {column}: " if token else ""
        super().__init__(where + message)
        self.token = token
        self.column = column


class UnknownZone(RecurrenceError):
    """No such zone in the pinned `tzdata`."""


class BadZoneFile(RecurrenceError):
    """A zone file that is not one: the package is damaged, or a candidate upgrade is."""


class BadSpec(RecurrenceError):
    """A spec that nobody validated: evaluating it would guess."""
