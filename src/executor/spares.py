"""Spares: sandboxes made ahead for jobs that are executed often.

An Execute that finds a spare of its job runs about 70 ms earlier than one whose sandbox is made for
it. A fire needs none: it is armed ahead of its due time. What belongs here is which jobs keep how
many spares and who gets one; how a spare is made is the runtime's (see sandbox.Spare).

A job has spares while it was executed OFTEN times lately, as many as came in its liveliest second,
within a budget of count and memory that goes round by how often each job is executed. They are
given up when the job has a new revision, when nobody executed it for KEEP_S, and while the host is
short of memory. They take no slot and none of the memory that attempts are promised: a gate that
waits needs some MiB, and what a spare becomes is counted as the attempt that it is. (Were they
given up whenever all slots are taken, a queue that fills each slot as it comes free would have a
spare made and removed for each of its executions.)
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from ..mesh import telemetry
from ..mesh.clock import Clock
from .errors import ExecutorError, SpareUnfit
from .sandbox import Runtime, Sandbox, Spare, Work, mould

OFTEN = 2
"""Executes within KEEP_S that make a job one that is executed often."""

KEEP_S = 120.0
"""After a job's last Execute its spares are kept no longer."""

BURST_S = 1.0
"""Spares are wanted for as many Executes as came within so long. Making one takes 0.1 s."""

ARRIVALS_MAX = 256
"""Executes remembered of one job: a peak older than so many has passed."""

JOBS_MAX = 1_024
"""Jobs whose Executes are remembered, about 4 KiB each; the one executed longest ago goes."""

OPENING_S = 0.02
"""Until whoever was given a spare runs, no other is made: it would take the processors away."""

LOOK_S = 1.0
"""Between looks at what nobody tells of: time that passes, memory that becomes short."""

CLOSE_TRIES_MAX = 60
"""Then what cannot be removed is left to the next start's sweep."""

MEMORY_FLOOR = 1, 16
"""Of the host's memory: with less available, there are no spares."""

MEMINFO = Path("/proc/meminfo")
"""See proc(5)."""

_NS = 1_000_000_000

Turn = Callable[[Work], AbstractAsyncContextManager[None]]

log = telemetry.logger(__name__)


@dataclass(slots=True)
class Demand:
    """How often a job was executed lately."""

    peaks: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=ARRIVALS_MAX))
    """Of each Execute: when, and how many came within BURST_S until then."""

    def arrive(self, now_ns: int) -> None:
        """An Execute has come."""
        horizon_ns = now_ns - int(BURST_S * _NS)
        before = sum(at_ns > horizon_ns for at_ns, _ in self.peaks)
        self.peaks.append((now_ns, before + 1))

    def count(self, now_ns: int) -> int:
        """Executes within KEEP_S."""
        horizon_ns = now_ns - int(KEEP_S * _NS)
        while self.peaks and self.peaks[0][0] <= horizon_ns:
            self.peaks.popleft()
        return len(self.peaks)

    def wanted(self, now_ns: int) -> int:
        """Spares that would have served every Execute within KEEP_S."""
        if self.count(now_ns) < OFTEN:
            return 0
        return max(peak for _, peak in self.peaks)


@dataclass(frozen=True, slots=True)
class Wish:
    """What one job would like."""

    job: str
    wanted: int
    memory_bytes: int
    """Of one sandbox."""
    executes: int
    """Lately."""
    held: int
    """Spares it has."""


def allot(wishes: Iterable[Wish], count_max: int, memory_bytes_max: int) -> dict[str, int]:
    """Pure: who gets how many spares. One each, then a second one each, and so on.

    First comes one job of each customer, then a second one of each. Within that those that are
    executed more often; by half or double, so that two alike do not take each other's spares away
    with every Execute. Among those alike, whoever has spares.
    """
    often = sorted(wishes, key=lambda wish: (-wish.executes.bit_length(), -wish.held, wish.job))
    nth: dict[str, int] = {}
    seen: dict[str, int] = {}
    for wish in often:
        customer = "/".join(wish.job.split("/")[:2])
        nth[wish.job] = seen[customer] = seen.get(customer, -1) + 1
    ranked = sorted(often, key=lambda wish: nth[wish.job])
    allotted: dict[str, int] = {}
    count, memory_bytes = 0, 0
    while True:
        given = False
        for wish in ranked:
            if count >= count_max:
                return allotted
            fits = memory_bytes + wish.memory_bytes <= memory_bytes_max
            if allotted.get(wish.job, 0) < wish.wanted and fits:
                allotted[wish.job] = allotted.get(wish.job, 0) + 1
                count, memory_bytes, given = count + 1, memory_bytes + wish.memory_bytes, True
        if not given:
            return allotted


@dataclass(slots=True)
class _Pool:
    """A job's spares, all of one mould."""

    mould: Work
    demand: Demand = field(default_factory=Demand)
    ready: deque[Spare] = field(default_factory=deque)
    making: bool = False
    promised: asyncio.Future[Spare | None] | None = None
    """Who waits for the one that is being made."""
    given_up: bool = False
    """The job has another mould by now."""


class Spares:
    """Sandboxes for attempts: a spare where there is one. `run` must run to have any."""

    def __init__(
        self,
        runtime: Runtime,
        clock: Clock,
        count_max: int,
        memory_bytes_max: int,
        turn: Turn = lambda _: contextlib.nullcontext(),
    ) -> None:
        """turn: what must be held while a spare is made for a customer."""
        self._runtime = runtime
        self._clock = clock
        self._count_max = count_max
        self._memory_bytes_max = memory_bytes_max
        self._turn = turn
        self._pools: OrderedDict[str, _Pool] = OrderedDict()
        """By job; executed last comes last."""
        self._closing: deque[tuple[Spare, int]] = deque()
        """With how often it was tried."""
        self._preparing: Counter[str] = Counter()
        """Attempts that a sandbox is made for, by customer."""
        self._taken_ns = 0
        self._wake = asyncio.Event()

    @property
    def jobs(self) -> list[str]:
        """The jobs that have a spare."""
        return [job for job, pool in self._pools.items() if pool.ready]

    async def sandbox(
        self, work: Work, executed: bool, prepare: Callable[[], Awaitable[Sandbox]] | None = None
    ) -> Sandbox:
        """A sandbox for an attempt, at its gate. Raises what Runtime.prepare does.

        executed: it may start at once; else there is time to make one. prepare: makes one.
        """
        if executed and work.job and self._count_max:
            pool = self._noted(work)
            while pool is not None:
                spare = await self._taken(pool)
                if spare is None:
                    break
                try:
                    return await spare.assign(work)
                except BaseException as error:
                    self._give_up(spare)
                    if not isinstance(error, SpareUnfit):
                        raise
                    log.info("a spare is of no use", job=work.job, error=str(error))
        self._preparing[work.customer] += 1
        try:
            return await (self._runtime.prepare(work) if prepare is None else prepare())
        finally:
            self._preparing[work.customer] -= 1
            if not self._preparing[work.customer]:
                del self._preparing[work.customer]
            self._wake.set()

    def _noted(self, work: Work) -> _Pool | None:
        """The pool of a job that is executed; None for a revision that is past."""
        wanted = mould(work)
        pool = self._pools.get(work.job)
        if pool is not None and pool.mould != wanted:
            if work.revision < pool.mould.revision:
                return None
            self._drop(work.job)
            pool = None
        if pool is None:
            pool = self._pools[work.job] = _Pool(wanted)
            if len(self._pools) > JOBS_MAX:
                self._drop(next(iter(self._pools)))
        self._pools.move_to_end(work.job)
        pool.demand.arrive(self._clock.monotonic_ns())
        self._wake.set()
        return pool

    async def _taken(self, pool: _Pool) -> Spare | None:
        """A spare, or the one that is being made: it is nearer to its gate than a new one."""
        if pool.ready:
            self._taken_ns = self._clock.monotonic_ns()
            self._wake.set()
            return pool.ready.popleft()
        if not pool.making or pool.promised is not None:
            return None
        promise: asyncio.Future[Spare | None] = asyncio.get_running_loop().create_future()
        pool.promised = promise
        try:
            return await promise
        except asyncio.CancelledError:
            if not promise.cancelled() and (spare := promise.result()) is not None:
                self._put(pool, spare)
            raise

    def _put(self, pool: _Pool, spare: Spare) -> None:
        if pool.given_up:
            self._give_up(spare)
        else:
            pool.ready.append(spare)
            self._wake.set()  # by now it may be one too many

    def _give_up(self, spare: Spare) -> None:
        self._closing.append((spare, 0))
        self._wake.set()

    def _drop(self, job: str) -> None:
        pool = self._pools.pop(job)
        pool.given_up = True
        while pool.ready:
            self._give_up(pool.ready.popleft())

    # -- making and closing --------------------------------------------------------------------

    async def run(self) -> None:
        """Make and close spares until cancelled; what is left is removed by the runtime's end."""
        while True:
            self._wake.clear()
            if not await self._tend():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._wake.wait()
                # Whoever woke us by taking a spare is still to open its gate.
                await asyncio.sleep(OPENING_S)

    async def _tend(self) -> bool:
        """One step: close one, or make one. Whether there was something to do."""
        allotted = self._allotted()
        missing: str | None = None
        for job, pool in list(self._pools.items()):
            target = allotted.get(job, 0)
            while len(pool.ready) > target:
                self._give_up(pool.ready.pop())
            # Whoever needs a sandbox now goes first: making is bound by the processors.
            waits = pool.mould.customer in self._preparing
            if missing is None and len(pool.ready) < target and not waits:
                missing = job
        if self._closing:
            return await self._close()
        if missing is not None:
            since_s = (self._clock.monotonic_ns() - self._taken_ns) / _NS
            if since_s < OPENING_S:
                await asyncio.sleep(OPENING_S - since_s)
                return True
            await self._make(missing)
            return True
        return False

    def _allotted(self) -> dict[str, int]:
        now_ns = self._clock.monotonic_ns()
        wishes = []
        for job, pool in list(self._pools.items()):
            executes = pool.demand.count(now_ns)
            if not executes:
                self._drop(job)
            elif wanted := pool.demand.wanted(now_ns):
                held = len(pool.ready)
                wishes.append(Wish(job, wanted, pool.mould.memory_bytes, executes, held))
        if not wishes or _memory_is_short():
            return {}
        return allot(wishes, self._count_max, self._memory_bytes_max)

    async def _make(self, job: str) -> None:
        pool = self._pools[job]
        async with self._turn(pool.mould):
            if not pool.given_up:
                await self._make_for(job, pool)

    async def _make_for(self, job: str, pool: _Pool) -> None:
        pool.making = True
        spare: Spare | None = None
        try:
            spare = await self._runtime.prepare_spare(pool.mould)
        except Exception as error:  # whatever is wrong with one job must not end the executor
            # Whoever executes it is told; and the next Execute asks for a spare again.
            if isinstance(error, ExecutorError):
                log.warning("no spare can be made", job=job, error=str(error))
            else:
                log.error("making a spare failed", job=job, exc_info=error)
            if self._pools.get(job) is pool:
                self._drop(job)
        finally:
            pool.making = False
            promise, pool.promised = pool.promised, None
            if promise is not None and not promise.done():
                promise.set_result(spare)
            elif spare is not None:
                self._put(pool, spare)

    async def _close(self) -> bool:
        spare, tries = self._closing.popleft()
        try:
            await spare.close()
        except Exception as error:  # as where one is made
            if tries < CLOSE_TRIES_MAX:
                self._closing.append((spare, tries + 1))
            if isinstance(error, ExecutorError):
                log.warning("a spare is left over", error=str(error), tries=tries)
            else:
                log.error("removing a spare failed", tries=tries, exc_info=error)
            return False
        return True


def _memory_is_short() -> bool:
    """Whether the host has little memory to give."""
    sizes = {}
    for line in MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        sizes[name] = int(value.split()[0])
    numerator, denominator = MEMORY_FLOOR
    return sizes["MemAvailable"] * denominator < sizes["MemTotal"] * numerator
