"""Callers through the SDK, each of one job and its schedules, and what they were told."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tickmesh.sdk.aio import AsyncClient
from tickmesh.sdk.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InternalError,
    NotFound,
    TickmeshError,
    Unavailable,
)
from tickmesh.sdk.types import (
    Execution,
    ExecutionState,
    MisfirePolicy,
    OverlapPolicy,
    Recurrence,
    RetryPolicy,
    Schedule,
    ScheduleState,
)

DEADLINE_S = 15.0
IMAGE = "words:1"
CRONS = ("* * * * * *", "*/2 * * * * *", "*/5 * * * * *")
PAUSE_S = 0.3
"""Mean between two calls of a caller."""

Violate = Callable[[str], None]


class JobKind:
    """What a caller's job does: words of executor/inprocess.py after it has said that it starts."""

    def __init__(self, name: str, *words: str, **job: Any) -> None:
        self.name = name
        self.words = ("print", "started", ";", *words, ";", "print", "ended")
        self.job = job


KINDS = (
    JobKind("quick", "true"),
    JobKind("slow", "sleep", "1.5", retry_policy=RetryPolicy(max_attempts=5)),
    JobKind(
        "flaky",
        *("fail", "1"),
        retry_policy=RetryPolicy(max_attempts=4, backoff=timedelta(seconds=0.2)),
    ),
    JobKind(
        "once",
        *("sleep", "0.5"),
        retry_policy=RetryPolicy(max_attempts=3),
        at_most_once=True,
    ),
)


class Caller:
    """See the module. It does one thing after the other until `stopping`."""

    def __init__(
        self,
        client: AsyncClient,
        kind: JobKind,
        program: tuple[str, ...],
        schedules_max: int,
        seed: int,
        violate: Violate,
    ) -> None:
        """program: what follows the words. schedules_max: at a time."""
        self.client = client
        self.kind = kind
        self.stopping = False
        self.chance = random.Random(f"{seed}/{kind.name}")
        self.schedules: dict[str, Schedule] = {}
        """By id, as they were told last; those that were deleted for sure are not among them."""
        self.uids: dict[str, str] = {}
        """Of every schedule that was ever told, also of deleted ones: its name."""
        self.doubtful: set[str] = set()
        """Ids of schedules of which the last change, or deletion, is not known."""
        self.executions: set[str] = set()
        """Names of executions that were acknowledged."""
        self.done = self.unknown = 0
        self._command = (*program, *kind.words)
        self._schedules_max = schedules_max
        self._violate = violate
        self._serial = 0

    async def run(self) -> None:
        """See the class."""
        job = self.kind.name
        await self._surely(
            lambda: self.client.jobs.create(
                job, image=IMAGE, command=self._command, request_id=job, **self.kind.job
            )
        )
        doings = [
            (5, self._create),
            (4, self._update),
            (2, self._pause),
            (4, self._resume),
            (1, self._delete),
            (6, self._execute),
            (2, self._cancel),
            (2, self._trigger),
            (1, self._backfill),
            (3, self._read),
        ]
        weights = [weight for weight, _ in doings]
        while not self.stopping:
            (_, doing) = self.chance.choices(doings, weights)[0]
            try:
                await doing()
                self.done += 1
            except (Unavailable, DeadlineExceeded):
                self.unknown += 1
            except InternalError as error:
                self._violate(f"{job}: {error}")
            except TickmeshError:
                self.done += 1  # refused: it is paused, or finished, or gone
            await asyncio.sleep(self.chance.expovariate(1 / PAUSE_S))

    async def pause_all(self) -> None:
        """So that nothing more fires."""
        job = self.kind.name
        names = [each async for each in self.client.schedules.list(job) if not _rests(each)]
        for schedule in names:
            await self._surely(lambda name=schedule.name: self.client.schedules.pause(name))

    async def check(self) -> None:
        """At the end: what was acknowledged is there, and each ledger agrees."""
        client, job = self.client, self.kind.name
        there = {_id(each.name): each async for each in client.schedules.list(job)}
        for key, told in self.schedules.items():
            found = there.get(key)
            if found is None and key not in self.doubtful:
                self._violate(f"{job}/{key} was acknowledged and never deleted, and is lost")
            if found is not None and _version(found.etag) < _version(told.etag):
                self._violate(f"{job}/{key} is {found.etag}, and was told as {told.etag}")
        for uid, key in self.uids.items():
            checked = await client.schedules.verify(f"{job}/{key}", uid=uid)
            for problem in checked.problems:
                self._violate(f"{job}/{key}: {problem}")
            if not checked.complete:
                self._violate(f"{job}/{key}: only {checked.instant_count} instants were looked at")
        listed = {each.name async for each in client.executions.list(job)}
        for name in self.executions - listed:
            self._violate(f"{name} was acknowledged, and is lost")

    async def _surely(self, call: Callable[[], Any]) -> None:
        """Until it is known to have been done."""
        while True:
            try:
                await call()
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(0.2)
            except (AlreadyExists, NotFound):
                return
            else:
                return

    def _id_for(self, what: str) -> str:
        self._serial += 1
        return f"{what}-{self._serial}"

    def _some(self) -> Schedule | None:
        live = [s for key, s in self.schedules.items() if key not in self.doubtful]
        return self.chance.choice(live) if live else None

    def _told(self, schedule: Schedule) -> None:
        key = _id(schedule.name)
        before = self.schedules.get(key)
        if before is not None and _version(schedule.etag) < _version(before.etag):
            self._violate(f"{schedule.name}: {schedule.etag} after {before.etag}")
        self.schedules[key] = schedule
        self.uids[schedule.uid] = key

    def _recurrence(self) -> Recurrence:
        chance, now = self.chance, datetime.now(UTC)
        recurrence = Recurrence(crons=(chance.choice(CRONS),))
        if chance.random() < 0.2:
            recurrence = Recurrence(times=tuple(now + timedelta(seconds=s) for s in (1, 3, 9)))
        if chance.random() < 0.3:
            recurrence = replace(recurrence, jitter=timedelta(seconds=0.4))
        if chance.random() < 0.2:
            recurrence = replace(recurrence, max_fires=chance.choice((1, 5)))
        return recurrence

    async def _create(self) -> None:
        if len(self.schedules) - len(self.doubtful) >= self._schedules_max:
            return
        chance, key = self.chance, self._id_for("s")
        schedule = Schedule(
            recurrence=self._recurrence(),
            overlap_policy=chance.choice([None, *_known(OverlapPolicy)]),
            misfire_policy=chance.choice([None, *_known(MisfirePolicy)]),
            misfire_max=chance.choice((0, 3)),
            start_deadline=chance.choice((None, timedelta(seconds=2))),
        )
        request_id = self._id_for("r")
        self.doubtful.add(key)
        for _ in range(3):  # one request_id makes one, however often it is sent
            with contextlib.suppress(Unavailable, DeadlineExceeded):
                made = await self.client.schedules.add(
                    self.kind.name, schedule, key, request_id=request_id
                )
                self.doubtful.discard(key)
                self._told(made)
                return
        self.unknown += 1

    async def _change(self, schedule: Schedule, call: Any) -> None:
        key = _id(schedule.name)
        self.doubtful.add(key)
        try:
            self._told(await call)
        except NotFound:
            self._violate(f"{schedule.name} was acknowledged, and is lost")
        except (Unavailable, DeadlineExceeded):
            raise
        except TickmeshError:
            pass  # refused: nothing has changed
        self.doubtful.discard(key)

    async def _update(self) -> None:
        if schedule := self._some():
            new = replace(schedule, recurrence=self._recurrence(), etag="")
            call = self.client.schedules.update(new, ["recurrence"], deadline_s=DEADLINE_S)
            await self._change(schedule, call)

    async def _pause(self) -> None:
        if schedule := self._some():
            await self._change(schedule, self.client.schedules.pause(schedule.name, "chaos"))

    async def _resume(self) -> None:
        if schedule := self._some():
            await self._change(schedule, self.client.schedules.resume(schedule.name))

    async def _delete(self) -> None:
        if schedule := self._some():
            key = _id(schedule.name)
            self.doubtful.add(key)
            await self.client.schedules.delete(schedule.name)
            del self.schedules[key]
            self.doubtful.discard(key)

    async def _read(self) -> None:
        if schedule := self._some():
            await self._change(schedule, self.client.schedules.get(schedule.name))

    async def _execute(self) -> None:
        request_id = self._id_for("r")
        made = await self.client.execute(self.kind.name, request_id=request_id)
        self.executions.add(made.name)
        if self.chance.random() < 0.2:
            again = await self.client.execute(self.kind.name, request_id=request_id)
            if again.name != made.name:
                self._violate(f"request {request_id} made {made.name} and {again.name}")

    async def _cancel(self) -> None:
        if self.executions:
            await self.client.executions.cancel(self.chance.choice(sorted(self.executions)[-5:]))

    async def _trigger(self) -> None:
        if schedule := self._some():
            self.executions.add((await self.client.schedules.trigger(schedule.name)).name)

    async def _backfill(self) -> None:
        if schedule := self._some():
            end = datetime.now(UTC) - timedelta(seconds=1)
            await self.client.schedules.backfill(schedule.name, end - timedelta(seconds=5), end)


class Follower:
    """Watches all executions from the beginning, through whatever happens to its stream."""

    def __init__(self, client: AsyncClient, violate: Violate) -> None:
        self.seen: dict[str, Execution] = {}
        self.told = 0
        self._client = client
        self._violate = violate
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async for each in self._client.executions.watch():
            self.told += 1
            before = self.seen.get(each.name)
            # What was taken back may be armed again, if the schedule has that instant again.
            final = before is not None and before.state.final
            if final and before.state is not ExecutionState.REVOKED and each.state != before.state:
                self._violate(f"{each.name} ended {before.state}, and is {each.state} later")
            self.seen[each.name] = each
            self._changed.set()

    async def has_seen(self, ended: dict[str, Execution]) -> None:
        """Wait until the end of each of these was told."""
        while any(not _is_same(self.seen.get(name), each) for name, each in ended.items()):
            self._changed.clear()
            await self._changed.wait()


def _is_same(seen: Execution | None, there: Execution) -> bool:
    return seen is not None and seen.state is there.state and seen.end_time == there.end_time


def _known(policies: Any) -> list[Any]:
    return [each for each in policies if each.value != "UNKNOWN"]


def _rests(schedule: Schedule) -> bool:
    return schedule.state in (ScheduleState.PAUSED, ScheduleState.FINISHED)


def _id(name: str) -> str:
    return name.rpartition("/")[2]


def _version(etag: str) -> int:
    return int(etag[1:])
