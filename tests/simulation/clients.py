"""Callers of the public methods, and what they may be told.

Each client owns its job and its schedules and does one thing after the other, so what it must see
is known: a read shows a version at least as new as any that was told before the read began, the
same version never shows different contents, what was acknowledged stays, what was deleted is gone.
Other clients read the same schedules at the same time and are held to the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message
from google.rpc import status_pb2

from tickmesh.mesh.errors import (
    AlreadyExists,
    InternalError,
    NotFound,
    TickmeshError,
    Unavailable,
    from_status,
)
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import execution_pb2, job_pb2, schedule_pb2
from tickmesh.scheduler.core.ids import EXECUTION_ID_BYTES, unspell

from .loop import Process
from .machine import START_MS
from .network import Network, Refused, call
from .pace import Pace

Response = TypeVar("Response", bound=Message)
CALL_TIMEOUT_S = 2.5
PATIENCE_S = 12.0
"""How long a client repeats one thing before it gives up and does not know."""

CUSTOMER = "customers/acme"
CALENDARS = (f"{CUSTOMER}/calendars/quiet", f"{CUSTOMER}/calendars/holidays")
ZONES = ("Europe/Berlin", "Asia/Tokyo")
"""What schedules follow, where they do: see almanacs."""

SCHEDULES_MAX = 6
FINAL = frozenset(
    {
        execution_pb2.EXECUTION_STATE_SUCCEEDED,
        execution_pb2.EXECUTION_STATE_FAILED,
        execution_pb2.EXECUTION_STATE_CANCELLED,
        execution_pb2.EXECUTION_STATE_REVOKED,
    }
)


class Unknown(Exception):
    """Nobody answered for sure: it may have happened, or may yet."""


class Seen(NamedTuple):
    """What was known when an operation began."""

    version: int
    deleted: bool


@dataclass
class Register:
    """One schedule, as everybody together has seen it."""

    name: str
    violate: Callable[[str], None]
    version: int = 0
    """The newest that anybody was told."""
    contents: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    payloads: set[bytes] = field(default_factory=set)
    """Whatever was ever asked to be written."""
    created: bool = False
    deleting: bool = False
    deleted: bool = False

    def begin(self) -> Seen:
        """An operation begins."""
        return Seen(self.version, self.deleted)

    def told(self, seen: Seen, schedule: schedule_pb2.Schedule, *, wrote: bool) -> None:
        """An operation that began with `seen` was answered."""
        version = int(schedule.etag[1:])
        if seen.deleted:
            self.violate(f"{self.name} is read after its deletion was acknowledged")
        if version < seen.version or (wrote and version <= seen.version):
            self.violate(f"{self.name}: version {version} after version {seen.version}")
        paused = schedule.state == schedule_pb2.SCHEDULE_STATE_PAUSED
        content = (schedule.payload, paused, schedule.pause_reason)
        if self.contents.setdefault(version, content) != content:
            self.violate(f"{self.name} v{version}: {content} and {self.contents[version]}")
        if schedule.payload not in self.payloads:
            self.violate(f"{self.name}: nobody wrote {schedule.payload!r}")
        self.version = max(self.version, version)

    def absent(self, seen: Seen) -> None:
        """It was not found."""
        if self.created and seen.version and not self.deleting:
            self.violate(f"{self.name} is lost: it was acknowledged and never deleted")


class Client:
    """One caller."""

    def __init__(
        self,
        number: int,
        seed: str,
        pace: Pace,
        network: Network,
        replicas: list[str],
        find: Callable[[str], tuple[Process, Any] | None],
        violate: Callable[[str], None],
        note: Callable[[str], None],
        everybody: list[Register],
        is_forgotten: Callable[[bytes], bool],
    ) -> None:
        self.name = f"client-{number}"
        self.process = Process(self.name)
        self.chance = random.Random(f"{seed}/{self.name}")
        self.executed: dict[str, int] = {}
        """Executions by name that were acknowledged, and the last state seen."""
        self.registers: list[Register] = []
        self.done = 0
        self.unknown = 0
        self.stopping = False
        self.follows = False
        """Whether its schedules follow calendars and zones."""
        self._pace = pace
        self._network = network
        self._replicas = replicas
        self._find = find
        self._violate = violate
        self._note = note
        self._everybody = everybody
        self._is_forgotten = is_forgotten
        self._leader = replicas[0]
        self._job = f"{CUSTOMER}/jobs/job-{number}"
        self._job_made = False
        self._serial = 0

    # -- calls ---------------------------------------------------------------------------------

    async def ask(
        self, method: str, request: Message, kind: type[Response]
    ) -> tuple[Response, bool]:
        """The response, and whether an earlier try may have happened too. Raises TickmeshError
        (refused for sure, or `ambiguous` set on it) and Unknown."""
        loop = asyncio.get_running_loop()
        stretch = self._pace.stretch
        until_s = loop.time() + PATIENCE_S * stretch
        ambiguous = False
        message = shard_pb2.CallRequest(
            calls=[shard_pb2.Call(method=method, request=request.SerializeToString())]
        )
        while loop.time() < until_s:
            try:
                answer = await call(
                    self._network,
                    self.name,
                    self._leader,
                    lambda: self._find(self._leader),
                    message,
                    CALL_TIMEOUT_S * stretch,
                )
            except TimeoutError:
                ambiguous = True
                self._leader = self.chance.choice(self._replicas)
                continue
            except (ConnectionError, Refused):
                self._leader = self.chance.choice(self._replicas)
                await asyncio.sleep(0.05 * stretch)
                continue
            if answer.not_leader:
                self._leader = answer.leader_id or self.chance.choice(self._replicas)
                await asyncio.sleep(0.05 * stretch)
                continue
            (reply,) = answer.replies
            if not reply.status:
                self.done += 1
                return kind.FromString(reply.response), ambiguous
            error = from_status(status_pb2.Status.FromString(reply.status))
            if isinstance(error, InternalError):
                self._violate(f"{method} answers {error}")
            if not isinstance(error, Unavailable) and error.retry_after_ms is None:
                error.ambiguous = ambiguous  # type: ignore[attr-defined]
                raise error
            ambiguous = ambiguous or error.reason != "NO_LEADER"
            await asyncio.sleep(0.1 * stretch)
        self.unknown += 1
        raise Unknown

    def request_id(self) -> str:
        """A new one."""
        self._serial += 1
        return f"{self.name}-{self._serial}"

    async def _ask_once(
        self, replica: str, method: str, request: Message
    ) -> schedule_pb2.Schedule | None:
        message = shard_pb2.CallRequest(
            calls=[
                shard_pb2.Call(
                    method=f"tickmesh.v1.ScheduleService/{method}",
                    request=request.SerializeToString(),
                )
            ]
        )
        try:
            answer = await call(
                self._network,
                self.name,
                replica,
                lambda: self._find(replica),
                message,
                0.4 * self._pace.stretch,
            )
        except (TimeoutError, ConnectionError, Refused):
            return None
        if answer.not_leader or answer.replies[0].status:
            return None
        return schedule_pb2.Schedule.FromString(answer.replies[0].response)

    async def tell_apart(self, isolated: str, seconds: float) -> None:
        """While a leader is cut off from the others: write where they may lead by now, and read
        where it may still believe that it does."""
        register = self._some(self._live())
        if register is None:
            return
        others = [replica for replica in self._replicas if replica != isolated]
        until_s = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until_s and not register.deleting:
            schedule = schedule_pb2.Schedule(name=register.name, payload=self._payload(register))
            request = schedule_pb2.UpdateScheduleRequest(schedule=schedule)
            request.update_mask.paths.append("payload")
            for replica in others:
                seen = register.begin()
                made = await self._ask_once(replica, "UpdateSchedule", request)
                if made is not None:
                    register.told(seen, made, wrote=True)
            seen = register.begin()
            read = schedule_pb2.GetScheduleRequest(name=register.name)
            found = await self._ask_once(isolated, "GetSchedule", read)
            if found is not None:
                register.told(seen, found, wrote=False)
            await asyncio.sleep(0.05 * self._pace.stretch)

    # -- what it does --------------------------------------------------------------------------

    async def run(self) -> None:
        """One thing after the other, until told to stop."""
        await asyncio.sleep(self.chance.uniform(0.5, 2.0) * self._pace.stretch)
        doings: list[tuple[int, Callable[[], Any]]] = [
            (4, self.create_schedule),
            (3, self.update),
            (2, self.pause),
            (3, self.resume),
            (1, self.delete),
            (6, self.execute),
            (2, self.cancel),
            (4, self.read_schedule),
            (3, self.read_execution),
            (1, self.list_schedules),
            (1, self.create_batch),
            (1, self.update_job),
            (2, self.execute_keyed),
            (1, self.execute_batch),
            (2, self.trigger),
            (1, self.backfill),
        ]
        weights = [weight for weight, _ in doings]
        while not self.stopping:
            try:
                if not self._job_made:
                    await self.create_job()
                else:
                    (_, doing) = self.chance.choices(doings, weights)[0]
                    await doing()
            except Unknown:
                self._note(f"{self.name} does not know")
            await asyncio.sleep(self.chance.expovariate(1.5) * self._pace.stretch)

    async def create_job(self) -> None:
        request = job_pb2.CreateJobRequest(
            parent=CUSTOMER,
            job_id=self._job.rpartition("/")[2],
            job=self._job_message(),
            request_id=f"{self.name}-job",
        )
        try:
            await self.ask("tickmesh.v1.JobService/CreateJob", request, job_pb2.Job)
        except AlreadyExists as error:
            self._violate(f"{self.name}: a repeated creation answers {error}")
        self._job_made = True

    def _job_message(self) -> job_pb2.Job:
        """Most retry, some not after a start, some not for long."""
        chance, stretch = self.chance, self._pace.stretch
        job = job_pb2.Job(container=job_pb2.Container(image="hello"))
        if chance.random() < 0.8:
            job.retry_policy.max_attempts = chance.randint(2, 4)
            job.retry_policy.backoff.FromMilliseconds(
                int(chance.choice((100, 100, 2_000)) * stretch)
            )
            job.retry_policy.exit_codes.extend(chance.choice(((), (), (3,))))
        job.at_most_once = chance.random() < 0.3
        if chance.random() < 0.3:
            job.total_timeout.FromMilliseconds(int(chance.choice((3_000, 15_000)) * stretch))
            job.timeout.CopyFrom(job.total_timeout)
        return job

    async def update_job(self) -> None:
        """What it does from now on: another revision."""
        job = self._job_message()
        job.name = self._job
        job.container.args.append(self.request_id())
        request = job_pb2.UpdateJobRequest(job=job)
        paths = ("container", "retry_policy", "at_most_once", "total_timeout", "timeout")
        request.update_mask.paths.extend(paths)
        await self.ask("tickmesh.v1.JobService/UpdateJob", request, job_pb2.Job)

    def _schedule(self, register: Register) -> schedule_pb2.Schedule:
        """A new one: half of them with policies, jitter and bounds."""
        schedule = schedule_pb2.Schedule(
            recurrence=self._recurrence(), payload=self._payload(register)
        )
        if self.chance.random() < 0.5:
            self._draw_policy(schedule)
            self._draw_bounds(schedule.recurrence)
        return schedule

    def _draw_policy(self, schedule: schedule_pb2.Schedule) -> None:
        chance, stretch = self.chance, self._pace.stretch
        schedule.overlap_policy = chance.randint(1, 4)  # type: ignore[assignment]
        schedule.misfire_policy = chance.randint(1, 3)  # type: ignore[assignment]
        schedule.overlap_queue_max = chance.choice((0, 1, 3))
        schedule.misfire_max = chance.choice((0, 1, 5))
        if chance.random() < 0.3:
            schedule.misfire_window.FromMilliseconds(int(chance.choice((5_000, 20_000)) * stretch))
        if chance.random() < 0.3:
            schedule.start_deadline.FromMilliseconds(int(chance.choice((1_000, 9_000)) * stretch))
        schedule.pause_after_failures = chance.choice((0, 0, 1, 3))

    def _draw_bounds(self, recurrence: schedule_pb2.Recurrence) -> None:
        chance, stretch_ms = self.chance, 1_000 * self._pace.stretch
        if chance.random() < 0.3:
            jitter_ms = int(chance.choice((300, 3_000)) * self._pace.stretch)
            recurrence.jitter.FromMilliseconds(jitter_ms)
        if chance.random() < 0.3:
            recurrence.max_fires = chance.choice((1, 5, 20))
        if chance.random() < 0.3:
            start_ms = self._now_ms() + int(chance.uniform(0, 20) * stretch_ms)
            window = recurrence.excluded_windows.add()
            window.start_time.FromMilliseconds(start_ms)
            window.end_time.FromMilliseconds(start_ms + int(15 * stretch_ms))
        if chance.random() < 0.2:
            recurrence.start_time.FromMilliseconds(self._now_ms() + int(5 * stretch_ms))
        if chance.random() < 0.2:
            recurrence.end_time.FromMilliseconds(self._now_ms() + int(90 * stretch_ms))

    @staticmethod
    def _now_ms() -> int:
        return START_MS + int((asyncio.get_running_loop().time() - 1000.0) * 1000)

    def _recurrence(self) -> schedule_pb2.Recurrence:
        recurrence = self._instants()
        if self.follows:
            if self.chance.random() < 0.6:
                count = self.chance.choice((1, 1, 2))
                recurrence.excluded_calendars.extend(self.chance.sample(CALENDARS, count))
            if self.chance.random() < 0.4:
                recurrence.time_zone = self.chance.choice(ZONES)
                recurrence.gap_policy = self.chance.randint(0, 2)  # type: ignore[assignment]
                recurrence.fold_policy = self.chance.randint(0, 2)  # type: ignore[assignment]
        return recurrence

    def _instants(self) -> schedule_pb2.Recurrence:
        recurrence = schedule_pb2.Recurrence()
        match self.chance.randrange(4):
            case 0:
                interval = recurrence.intervals.add()
                interval.every.FromMilliseconds(self.chance.choice(self._pace.every_ms))
                interval.phase.FromMilliseconds(self.chance.choice((0, 0, 300)))
            case 1 | 2:
                recurrence.crons.append(self.chance.choice(sorted(self._pace.crons_ms)))
            case 3:
                now_ms = self._now_ms()
                for _ in range(2):
                    at_ms = now_ms + self.chance.randint(1_000, int(30_000 * self._pace.stretch))
                    moment = recurrence.times.add()
                    moment.seconds, moment.nanos = at_ms // 1000, at_ms % 1000 * 1_000_000
        return recurrence

    def _payload(self, register: Register) -> bytes:
        payload = self.request_id().encode()
        register.payloads.add(payload)
        return payload

    def _live(self) -> list[Register]:
        return [r for r in self.registers if r.created and not r.deleting]

    def _some(self, registers: list[Register]) -> Register | None:
        return self.chance.choice(registers) if registers else None

    async def create_schedule(self) -> None:
        if len(self._live()) >= SCHEDULES_MAX:
            return
        request_id = self.request_id()
        register = Register(f"{self._job}/schedules/s-{self._serial}", self._violate)
        self.registers.append(register)
        self._everybody.append(register)
        request = schedule_pb2.CreateScheduleRequest(
            parent=self._job,
            schedule_id=register.name.rpartition("/")[2],
            schedule=self._schedule(register),
            request_id=request_id,
        )
        seen = register.begin()
        try:
            made, _ = await self.ask(
                "tickmesh.v1.ScheduleService/CreateSchedule", request, schedule_pb2.Schedule
            )
        except AlreadyExists as error:
            self._violate(f"{register.name}: a repeated creation answers {error}")
            return
        except TickmeshError:
            return  # its instants are in the past by now
        register.created = True
        register.told(seen, made, wrote=True)

    async def create_batch(self) -> None:
        """Two at once, or none."""
        if len(self._live()) + 1 >= SCHEDULES_MAX:
            return
        request = schedule_pb2.BatchCreateSchedulesRequest(
            parent=self._job, request_id=self.request_id()
        )
        made = []
        for letter in "ab":
            register = Register(f"{self._job}/schedules/s-{self._serial}{letter}", self._violate)
            self.registers.append(register)
            self._everybody.append(register)
            made.append(register)
            request.schedules.add(
                schedule_id=register.name.rpartition("/")[2], schedule=self._schedule(register)
            )
        seen = [register.begin() for register in made]
        try:
            response, _ = await self.ask(
                "tickmesh.v1.ScheduleService/BatchCreateSchedules",
                request,
                schedule_pb2.BatchCreateSchedulesResponse,
            )
        except AlreadyExists as error:
            self._violate(f"{made[0].name}: a repeated creation answers {error}")
            return
        except TickmeshError:
            return  # its instants are in the past by now
        for register, before, schedule in zip(made, seen, response.schedules, strict=True):
            register.created = True
            register.told(before, schedule, wrote=True)

    async def _write(self, register: Register, method: str, request: Message) -> None:
        seen = register.begin()
        try:
            made, _ = await self.ask(
                f"tickmesh.v1.ScheduleService/{method}", request, schedule_pb2.Schedule
            )
        except NotFound as error:
            if not any(calendar in str(error) for calendar in CALENDARS):
                register.absent(seen)
        except TickmeshError:
            return
        else:
            # To pause what is finished changes nothing.
            wrote = made.state != schedule_pb2.SCHEDULE_STATE_FINISHED
            register.told(seen, made, wrote=wrote)

    async def update(self) -> None:
        register = self._some(self._live())
        if register is None:
            return
        paths, schedule = ["payload"], schedule_pb2.Schedule(name=register.name)
        schedule.payload = self._payload(register)
        if self.chance.random() < 0.5:
            paths.append("recurrence")
            schedule.recurrence.CopyFrom(self._recurrence())
        if self.chance.random() < 0.2:
            paths += [
                *("overlap_policy", "misfire_policy", "overlap_queue_max", "misfire_max"),
                *("misfire_window", "start_deadline", "pause_after_failures"),
            ]
            self._draw_policy(schedule)
        request = schedule_pb2.UpdateScheduleRequest(schedule=schedule)
        request.update_mask.paths.extend(paths)
        await self._write(register, "UpdateSchedule", request)

    async def pause(self) -> None:
        register = self._some(self._live())
        if register is not None:
            request = schedule_pb2.PauseScheduleRequest(
                name=register.name, reason=self.request_id()
            )
            await self._write(register, "PauseSchedule", request)

    async def resume(self) -> None:
        register = self._some(self._live())
        if register is not None:
            request = schedule_pb2.ResumeScheduleRequest(name=register.name)
            await self._write(register, "ResumeSchedule", request)

    async def delete(self) -> None:
        register = self._some(self._live())
        if register is None:
            return
        seen = register.begin()
        register.deleting = True
        request = schedule_pb2.DeleteScheduleRequest(name=register.name)
        try:
            await self.ask("tickmesh.v1.ScheduleService/DeleteSchedule", request, job_pb2.Job)
        except NotFound as error:
            if not error.ambiguous and not seen.deleted:  # type: ignore[attr-defined]
                self._violate(f"{register.name} was lost before it was deleted")
        register.deleted = True

    async def read_schedule(self) -> None:
        register = self._some(self._everybody)
        if register is None:
            return
        await self.read_one(register)

    async def read_one(self, register: Register) -> None:
        """Read a schedule and check what is told."""
        seen = register.begin()
        request = schedule_pb2.GetScheduleRequest(name=register.name)
        try:
            found, _ = await self.ask(
                "tickmesh.v1.ScheduleService/GetSchedule", request, schedule_pb2.Schedule
            )
        except NotFound:
            register.absent(seen)
        else:
            register.told(seen, found, wrote=False)

    async def list_schedules(self) -> None:
        wanted = {r.name: r for r in self.registers if r.created}
        seen = {name: register.begin() for name, register in wanted.items()}
        request = schedule_pb2.ListSchedulesRequest(parent=self._job, page_size=1000)
        page, _ = await self.ask(
            "tickmesh.v1.ScheduleService/ListSchedules",
            request,
            schedule_pb2.ListSchedulesResponse,
        )
        found = {schedule.name: schedule for schedule in page.schedules}
        for name, register in wanted.items():
            if name in found:
                register.told(seen[name], found[name], wrote=False)
            else:
                register.absent(seen[name])

    async def execute(self) -> None:
        request = execution_pb2.ExecuteJobRequest(
            name=self._job, payload=b"now", request_id=self.request_id()
        )
        made, _ = await self.ask(
            "tickmesh.v1.ExecutionService/ExecuteJob", request, execution_pb2.Execution
        )
        self._told(made)
        if self.chance.random() < 0.3:
            await self._read_execution(made.name)

    async def execute_keyed(self) -> None:
        """While one with this key has not ended, that is the answer."""
        request = execution_pb2.ExecuteJobRequest(
            name=self._job, request_id=self.request_id(), active_key="only"
        )
        made, _ = await self.ask(
            "tickmesh.v1.ExecutionService/ExecuteJob", request, execution_pb2.Execution
        )
        self._told(made)

    async def execute_batch(self) -> None:
        request = execution_pb2.BatchExecuteJobsRequest(
            parent=CUSTOMER, request_id=self.request_id()
        )
        for _ in range(3):
            request.executions.add(name=self._job)
        made, _ = await self.ask(
            "tickmesh.v1.ExecutionService/BatchExecuteJobs",
            request,
            execution_pb2.BatchExecuteJobsResponse,
        )
        for execution in made.executions:
            self._told(execution)

    async def trigger(self) -> None:
        register = self._some(self._live())
        if register is None:
            return
        request = schedule_pb2.TriggerScheduleRequest(
            name=register.name, request_id=self.request_id()
        )
        try:
            made, _ = await self.ask(
                "tickmesh.v1.ScheduleService/TriggerSchedule", request, execution_pb2.Execution
            )
        except NotFound:
            return
        self._told(made)

    async def backfill(self) -> None:
        """A short range of the past, and now and then its end before it is done."""
        register = self._some(self._live())
        if register is None:
            return
        end_ms = self._now_ms() - 2_000  # clocks differ
        request = schedule_pb2.BackfillScheduleRequest(
            name=register.name, request_id=self.request_id()
        )
        request.start_time.FromMilliseconds(end_ms - int(6_000 * self._pace.stretch))
        request.end_time.FromMilliseconds(end_ms)
        try:
            made, _ = await self.ask(
                "tickmesh.v1.ScheduleService/BackfillSchedule",
                request,
                schedule_pb2.BackfillScheduleResponse,
            )
            if self.chance.random() < 0.5:
                cancel = schedule_pb2.CancelBackfillRequest(
                    name=register.name, backfill=made.backfill
                )
                await self.ask(
                    "tickmesh.v1.ScheduleService/CancelBackfill",
                    cancel,
                    schedule_pb2.CancelBackfillResponse,
                )
        except NotFound:
            return

    def _told(self, execution: execution_pb2.Execution) -> None:
        self.executed[execution.name] = execution.state

    async def cancel(self) -> None:
        if self.executed:
            name = self.chance.choice(list(self.executed)[-3:])
            request = execution_pb2.CancelExecutionRequest(name=name)
            await self._execution("CancelExecution", name, request)

    async def read_execution(self) -> None:
        if self.executed:
            await self._read_execution(self.chance.choice(list(self.executed)))

    async def _read_execution(self, name: str) -> None:
        request = execution_pb2.GetExecutionRequest(name=name)
        await self._execution("GetExecution", name, request)

    async def _execution(self, method: str, name: str, request: Message) -> None:
        before = self.executed[name]
        try:
            found, _ = await self.ask(
                f"tickmesh.v1.ExecutionService/{method}", request, execution_pb2.Execution
            )
        except NotFound:
            if not self._is_forgotten(unspell(name.rpartition("/")[2], EXECUTION_ID_BYTES) or b""):
                self._violate(f"{name} is lost: it was acknowledged")
            return
        if before in FINAL and found.state != before:
            self._violate(f"{name} ended in {before}, and is {found.state} now")
        self.executed[name] = found.state

    # -- the end -------------------------------------------------------------------------------

    async def read_everything(self) -> None:
        """After everything has healed: all that was acknowledged is there."""
        for register in self.registers:
            await self.read_one(register)
        for name in self.executed:
            await self._read_execution(name)

    def acknowledged(self) -> list[bytes]:
        """The ids of executions that were acknowledged."""
        ids = [unspell(name.rpartition("/")[2], EXECUTION_ID_BYTES) for name in self.executed]
        return [identity for identity in ids if identity is not None]
