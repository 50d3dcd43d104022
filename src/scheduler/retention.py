"""What customers keep less long than all history is kept: looked for by the leader, a little at a
time, and proposed to be forgotten.

It walks, again and again, through the customers who ask for it, and costs nothing where nobody
does. What it finds is decided anew when it is applied (core/history.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .core.commands import PurgeExecutions
from .core.history import may_go
from .core.ids import due_ms_of
from .core.model import Customer, Execution, Job
from .store.queries import Queries

PASS_INTERVAL_S = 10.0
"""Between two walks: what is over goes so much later, and where very much is to be looked through a
walk itself takes some minutes."""

LOOK_CHUNK = 500
"""Executions looked at, or fewer, before others have their turn: about 5 ms."""

LOOK_PAUSE_S = 0.05
"""And then nothing for so long: a twentieth of the process's time at most."""

PURGE_MAX = 250
"""Executions in one command: about 10 ms of applying."""

PAGE = 100
"""Customers, or jobs of one, read at a time."""

Propose = Callable[[PurgeExecutions, int], Awaitable[None]]


class Retention:
    """See the module."""

    def __init__(self, queries: Queries, now_ms: Callable[[], int], propose: Propose) -> None:
        self._queries = queries
        self._now_ms = now_ms
        self._propose = propose

    async def run(self) -> None:
        """Walk until cancelled."""
        while True:
            await self.walk()
            await asyncio.sleep(PASS_INTERVAL_S)

    async def walk(self) -> None:
        """Through every customer, once."""
        after = b""
        while True:
            customers, after = self._queries.customers(after, PAGE)
            for customer in customers:
                if customer.max_age_ms:
                    await self._old(customer)
                if customer.executions_per_job_max:
                    await self._surplus(customer)
            if not after:
                return
            await asyncio.sleep(0)

    async def _old(self, customer: Customer) -> None:
        """What ended too long ago. An id begins with an instant before the end: the oldest ids are
        looked at, until one is too young to have ended then."""
        before = b""
        oldest_ms = self._now_ms() - customer.max_age_ms
        while True:
            found, before = self._queries.oldest_executions(customer.customer, before, LOOK_CHUNK)
            await self._purge(customer, found, surplus=False)
            if not before or (found and due_ms_of(found[-1].id) > oldest_ms):
                return
            await asyncio.sleep(LOOK_PAUSE_S)

    async def _surplus(self, customer: Customer) -> None:
        after = b""
        while True:
            jobs, after = self._queries.jobs(customer.customer, after, PAGE)
            for job in jobs:
                await self._surplus_of(customer, job)
            if not after:
                return

    async def _surplus_of(self, customer: Customer, job: Job) -> None:
        """What ended of a job beside the latest, by the order of their listing."""
        active = self._queries.active_of(job.uid)
        kept, after = 0, b""
        while True:
            identities, after = self._queries.execution_ids(job.uid, after, LOOK_CHUNK)
            ended = [each for each in identities if each not in active]
            surplus = ended[max(0, customer.executions_per_job_max - kept) :]
            kept += len(ended) - len(surplus)
            found = [self._queries.execution(job.uid, identity) for identity in surplus]
            await self._purge(customer, [each for each in found if each], surplus=True)
            if not after:
                return
            await asyncio.sleep(LOOK_PAUSE_S)

    async def _purge(self, customer: Customer, found: list[Execution], *, surplus: bool) -> None:
        now_ms = self._now_ms()
        over = [
            (each.job_uid, each.id)
            for each in found
            if may_go(customer, each, now_ms, surplus=surplus)
        ]
        for start in range(0, len(over), PURGE_MAX):
            some = over[start : start + PURGE_MAX]
            command = PurgeExecutions(customer.customer, customer.version, some, surplus)
            await self._propose(command, len(some))
