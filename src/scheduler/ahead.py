"""Has executors pull images before fires need them: at a schedule's creation or change, and again
before each fire is armed. A leader has one, for its term; nothing of it is durable.

An image is to be on some executors of those that fit the job. Which hold it they tell themselves
(shard_pb2.Offer); who has been asked is asked again after a while only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from ..mesh.plans import Plan
from ..proto.tickmesh.internal.v1 import shard_pb2
from .convert import image_reference
from .core.model import Timer, TimerKind
from .placing import Hosts, hashed, need_of
from .store.queries import Queries

if TYPE_CHECKING:
    from .dispatch import Link

K = TypeVar("K")

HOLDERS = 3
"""Executors that are to hold an image: placing prefers those, and one of them may be lost."""

NOTED_MAX = 10_000
"""Jobs that wait to be looked at; what comes on top is looked at before its next fire."""

LOOK_AGAIN_MS = 45_000
"""A job is looked at once in so long: less than timers are held ahead (timers.HORIZON_MS)."""

RECENT_MAX = 50_000
"""Jobs that were looked at lately, about 100 bytes each."""

ASKED_MAX = 10_000
"""Questions to executors that are remembered, so as not to be repeated for LOOK_AGAIN_MS."""

SLICE = 50
"""Jobs looked at before others have a turn: some milliseconds."""

EXECUTORS_LOOK_S = 1.0
"""Between looks for executors that have joined."""


class Ahead:
    """See the module."""

    def __init__(
        self,
        queries: Queries,
        hosts: Hosts,
        links: Mapping[str, Link],
        term: int,
        now_ms: Callable[[], int],
        coming: Callable[[int], Iterable[Timer]],
        login: Callable[[str, str], shard_pb2.Login | None] = lambda _customer, _image: None,
        plan: Callable[[str], Plan] = lambda _: Plan(),
    ) -> None:
        """coming: the first so many timers of the next minute. login, plan: see Dispatcher."""
        self._plan = plan
        self._login = login
        self._queries = queries
        self._hosts = hosts
        self._links = links
        self._term = term
        self._now_ms = now_ms
        self._coming = coming
        self._noted: dict[bytes, str] = {}
        """By job uid: one of its schedules."""
        self._recent: dict[bytes, int] = {}
        """By job uid: until when it is not looked at again."""
        self._asked: dict[tuple[str, int], int] = {}
        """By executor and image: the same."""
        self._wake = asyncio.Event()

    def note(self, timers: Iterable[Timer]) -> None:
        """Timers that were just made, or come near."""
        now_ms = self._now_ms()
        for timer in timers:
            if timer.kind is not TimerKind.FIRE or timer.job_uid in self._noted:
                continue
            if self._recent.get(timer.job_uid, 0) > now_ms or len(self._noted) >= NOTED_MAX:
                continue
            self._noted[timer.job_uid] = timer.id.decode()
            self._wake.set()

    async def run(self) -> None:
        """Ask, until cancelled."""
        seen: set[str] = set()
        while True:
            try:
                async with asyncio.timeout(EXECUTORS_LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            attached = set(self._links)
            if attached - seen:
                self._recent.clear()
                self.note(self._coming(NOTED_MAX))
            seen = attached
            while self._noted:
                for job_uid in list(self._noted)[:SLICE]:
                    self._look(job_uid, self._noted.pop(job_uid))
                await asyncio.sleep(0)

    def _look(self, job_uid: bytes, schedule_id: str) -> None:
        schedule = self._queries.schedule(job_uid, schedule_id)
        job = None if schedule is None else self._queries.job(schedule.customer, schedule.job_id)
        if job is None or job.uid != job_uid:
            return
        now_ms = self._now_ms()
        _remember(self._recent, job_uid, now_ms + LOOK_AGAIN_MS, RECENT_MAX)
        reference = image_reference(job.spec.image, job.customer, "image")
        image = hashed(reference)
        need = need_of(job.spec, self._plan(job.customer))
        for executor_id in self._hosts.lacking(image, need, HOLDERS):
            link = self._links.get(executor_id)
            if link is None or self._asked.get((executor_id, image), 0) > now_ms:
                continue
            _remember(self._asked, (executor_id, image), now_ms + LOOK_AGAIN_MS, ASKED_MAX)
            login = self._login(job.customer, reference)
            if login is not None:
                link.send(shard_pb2.ShardMessage(login=login))
            pull = shard_pb2.Pull(customer=job.customer, image=reference, term=self._term)
            link.send(shard_pb2.ShardMessage(pull=pull))


def _remember(known: dict[K, int], key: K, until_ms: int, count_max: int) -> None:
    """The oldest is forgotten where there are too many."""
    known.pop(key, None)
    while len(known) >= count_max:
        known.pop(next(iter(known)))
    known[key] = until_ms
