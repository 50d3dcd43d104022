"""The public methods, as the shard's leader answers them: one module for each noun."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..shard import Shard
from .calendars import Calendars
from .credentials import Credentials
from .customers import Customers
from .executions import Executions
from .jobs import Jobs
from .ledgers import Ledgers
from .schedules import Schedules
from .writes import Methods, Write, Writes

__all__ = ["Calls", "Write"]


class Calls:
    """The methods of one shard's leader."""

    def __init__(self, shard: Shard, draw: Callable[[int], bytes] = os.urandom) -> None:
        """draw: so many bytes that nobody can guess."""
        writes = Writes(shard, draw)
        self.executions = Executions(shard, writes)
        self.customers = Customers(shard, writes)
        self.methods = Methods({}, {}, {})
        for noun in (
            Jobs(shard, writes),
            Schedules(shard, writes, self.executions),
            Ledgers(shard),
            Calendars(shard, writes),
            self.executions,
            self.customers,
            Credentials(shard, writes),
        ):
            self.methods.writes.update(noun.methods.writes)
            self.methods.reads.update(noun.methods.reads)
            self.methods.steps.update(noun.methods.steps)
