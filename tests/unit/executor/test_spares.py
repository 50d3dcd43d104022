"""Which jobs keep spares, who gets one, and when they go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tickmesh.executor import spares
from tickmesh.executor.errors import ImageError, SandboxError
from tickmesh.executor.inprocess import InProcessRuntime, InProcessSpare
from tickmesh.executor.sandbox import Sandbox, Work
from tickmesh.executor.spares import Demand, Spares, Wish, allot
from tickmesh.mesh.clock import SystemClock

SECOND_NS = 1_000_000_000
MIB = 1 << 20


def test_a_job_executed_once_wants_no_spare_and_one_executed_often_as_many_as_its_peak() -> None:
    demand = Demand()
    demand.arrive(0)
    assert demand.wanted(0) == 0
    demand.arrive(30 * SECOND_NS)
    assert demand.wanted(30 * SECOND_NS) == 1
    for ms in (0, 100, 200):
        demand.arrive(60 * SECOND_NS + ms * 1_000_000)
    assert demand.wanted(61 * SECOND_NS) == 3
    demand.arrive(170 * SECOND_NS)
    assert demand.wanted(179 * SECOND_NS) == 3
    assert demand.wanted(181 * SECOND_NS) == 0  # the peak is past, and one Execute is not often
    assert demand.count(300 * SECOND_NS) == 0


@pytest.mark.parametrize(
    ("wishes", "count", "memory", "expected"),
    [
        ([], 8, 1_000, {}),
        ([Wish("a", 3, 1, 5, 0)], 8, 1_000, {"a": 3}),
        ([Wish("a", 9, 1, 5, 0)], 8, 1_000, {"a": 8}),
        ([Wish("a", 9, 100, 5, 0)], 8, 250, {"a": 2}),
        # One each before a second one.
        ([Wish("a", 9, 1, 50, 0), Wish("b", 2, 1, 2, 0)], 4, 1_000, {"a": 2, "b": 2}),
        # Who is executed more often first; what does not fit leaves room to who does.
        ([Wish("a", 1, 1, 2, 1), Wish("b", 1, 1, 9, 0)], 1, 1_000, {"b": 1}),
        ([Wish("a", 1, 500, 9, 0), Wish("b", 2, 100, 2, 0)], 8, 250, {"b": 2}),
        # Of two alike, whoever has one keeps it.
        ([Wish("a", 1, 1, 5, 0), Wish("b", 1, 1, 4, 1)], 1, 1_000, {"b": 1}),
        ([Wish("a", 1, 1, 5, 0)], 0, 1_000, {}),
        # One customer's many jobs leave another's one its spare.
        (
            [
                *(Wish(f"customers/a/jobs/{n}", 9, 1, 99, 0) for n in range(5)),
                Wish("customers/b/jobs/x", 2, 1, 2, 0),
            ],
            2,
            1_000,
            {"customers/a/jobs/0": 1, "customers/b/jobs/x": 1},
        ),
    ],
)
def test_the_budget_goes_round(
    wishes: list[Wish], count: int, memory: int, expected: dict[str, int]
) -> None:
    assert allot(wishes, count, memory) == expected


class HandClock(SystemClock):
    """Its monotonic time is set by hand."""

    seconds = 1_000.0

    def monotonic_ns(self) -> int:
        return int(self.seconds * SECOND_NS)


class Watched(InProcessRuntime):
    """Says what was made, given and closed; a spare is made when the test lets it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, SystemClock())
        self.made: list[InProcessSpare] = []
        self.cold: list[str] = []
        self.may_make = asyncio.Event()
        self.may_make.set()
        self.making = 0
        self.trouble: Exception | None = None
        """With the next spare."""

    async def prepare_spare(self, mould: Work) -> InProcessSpare:
        self.making += 1
        try:
            await self.may_make.wait()
        finally:
            self.making -= 1
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble
        self.made.append(await super().prepare_spare(mould))
        return self.made[-1]

    async def prepare(self, work: Work) -> Any:
        self.cold.append(work.attempt_id)
        return await super().prepare(work)


class Bed:
    """Spares at work on a watched runtime."""

    def __init__(self, directory: Path) -> None:
        self.clock = HandClock()
        self.runtime = Watched(directory)
        self.spares = Spares(self.runtime, self.clock, 8, 1 << 30)
        self._names = 0

    def work(self, job: str = "often", revision: int = 1, **more: Any) -> Work:
        self._names += 1
        return Work(f"a-{self._names}", "acme", "acme/x:1", job=job, revision=revision, **more)

    async def execute(self, job: str = "often", revision: int = 1, **more: Any) -> Sandbox:
        return await self.spares.sandbox(self.work(job, revision, **more), True)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not true():  # noqa: ASYNC110 - a turn of the loop is the event
                await asyncio.sleep(0)

    @property
    def waiting(self) -> list[InProcessSpare]:
        """Spares that are neither used nor closed."""
        return [spare for spare in self.runtime.made if not spare.spent]

    async def settled(self, count: int) -> None:
        """Wait until so many spares wait; then a look changes nothing more."""
        self.clock.seconds += spares.OPENING_S
        await self.until(lambda: len(self.waiting) == count)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(self.waiting) == count


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    made = Bed(tmp_path)
    running = asyncio.create_task(made.spares.run())
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def warm(bed: Bed) -> None:
    """Make it a job that is executed often, with one spare."""
    await bed.execute()
    bed.clock.seconds += 10
    await bed.execute()
    await bed.settled(1)
    bed.clock.seconds += 10


async def test_the_third_execute_finds_a_spare_and_another_takes_its_place(bed: Bed) -> None:
    await warm(bed)
    spare = bed.waiting[0]
    sandbox = await bed.execute(args=("exit", "7"))
    assert sandbox.attempt_id == "a-3"
    assert spare.spent
    await bed.settled(1)
    assert len(bed.runtime.made) == 2
    await sandbox.start()
    assert (await sandbox.wait()).exit_code == 7


async def test_a_fire_neither_takes_a_spare_nor_asks_for_one(bed: Bed) -> None:
    for _ in range(3):
        await bed.spares.sandbox(bed.work(), False)
    await bed.settled(0)
    await warm(bed)
    await bed.spares.sandbox(bed.work(), False)
    await bed.settled(1)
    assert len(bed.runtime.made) == 1


async def test_nobody_else_gets_a_spare(bed: Bed) -> None:
    await warm(bed)
    kept = bed.waiting[0]
    await bed.execute(job="another")
    await bed.execute(revision=0)  # a retry of what ran before the job was changed
    await bed.settled(1)
    assert bed.waiting == [kept]


@pytest.mark.parametrize("change", [{"revision": 2}, {"memory_bytes": 5 * MIB}, {"pids": 9}])
async def test_a_new_revision_has_its_own_spares(bed: Bed, change: dict[str, int]) -> None:
    await warm(bed)
    old = bed.waiting[0]
    await bed.execute(**change)
    await bed.settled(0)
    assert old.spent
    bed.clock.seconds += 10
    await bed.execute(**change)
    await bed.settled(1)
    assert bed.waiting != [old]


async def test_spares_go_when_nobody_executes_the_job_any_more(bed: Bed) -> None:
    await warm(bed)
    bed.clock.seconds += spares.KEEP_S
    await bed.spares.sandbox(bed.work(), False)  # whatever happens makes it look
    await bed.settled(0)


async def test_spares_go_while_the_host_is_short_of_memory(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(bed)
    told = tmp_path / "meminfo"
    monkeypatch.setattr(spares, "MEMINFO", told)
    told.write_text("MemTotal:       1600 kB\nMemAvailable:     99 kB\n")
    await bed.spares.sandbox(bed.work(), False)  # whatever happens makes it look
    await bed.settled(0)
    told.write_text("MemTotal:       1600 kB\nMemAvailable:    100 kB\n")
    await bed.spares.sandbox(bed.work(), False)
    await bed.settled(1)


async def test_another_customers_queue_does_not_keep_a_spare_from_being_made(bed: Bed) -> None:
    await bed.execute()
    bed.clock.seconds += 10
    may_prepare = asyncio.Event()

    async def slow() -> Any:
        await may_prepare.wait()

    queue = asyncio.create_task(
        bed.spares.sandbox(Work("z-1", "zoe", "zoe/x:1", job="queued"), True, slow)
    )
    await asyncio.sleep(0)
    await bed.execute()
    await bed.settled(1)
    may_prepare.set()
    await queue


async def test_a_customers_own_attempts_go_before_its_spares(bed: Bed) -> None:
    await bed.execute()
    bed.clock.seconds += 10
    may_prepare = asyncio.Event()

    async def slow() -> Any:
        await may_prepare.wait()

    own = asyncio.create_task(bed.spares.sandbox(bed.work("other"), True, slow))
    await asyncio.sleep(0)
    await bed.execute()
    await bed.settled(0)
    may_prepare.set()
    await own
    await bed.settled(1)


async def test_who_comes_while_a_spare_is_made_waits_for_it_and_only_one_does(bed: Bed) -> None:
    bed.runtime.may_make.clear()
    await bed.execute()
    await bed.execute()
    await bed.until(lambda: bed.runtime.making == 1)
    waiting = asyncio.create_task(bed.execute())
    await asyncio.sleep(0)
    await bed.execute()
    assert "a-4" in bed.runtime.cold
    assert not waiting.done()
    bed.runtime.may_make.set()
    assert (await waiting).attempt_id == "a-3"
    assert bed.runtime.made[0].spent


async def test_a_waiter_that_gives_up_leaves_the_spare_to_the_next(bed: Bed) -> None:
    bed.runtime.may_make.clear()
    await bed.execute()
    bed.clock.seconds += 10
    await bed.execute()
    await bed.until(lambda: bed.runtime.making == 1)
    waiting = asyncio.create_task(bed.execute())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    bed.runtime.may_make.set()
    await bed.until(lambda: len(bed.waiting) >= 1)
    first = bed.runtime.made[0]
    assert not first.spent
    await bed.execute()
    assert any(spare.spent for spare in bed.runtime.made)


async def test_a_spare_that_is_of_no_use_costs_the_attempt_nothing(bed: Bed) -> None:
    await warm(bed)
    useless = bed.waiting[0]
    await useless.close()
    assert (await bed.execute()).attempt_id == "a-3"
    await bed.settled(1)


async def test_what_is_wrong_with_the_work_is_told_and_the_spare_is_closed(bed: Bed) -> None:
    await warm(bed)
    spare = bed.waiting[0]
    bad = Work("../a", "acme", "acme/x:1", job="often", revision=1)
    with pytest.raises(SandboxError):
        await bed.spares.sandbox(bad, True)
    await bed.until(lambda: spare.spent)


async def test_a_job_without_its_image_is_told_so_and_made_no_spares(tmp_path: Path) -> None:
    runtime = InProcessRuntime(tmp_path, SystemClock(), any_image=False)
    made = Spares(runtime, HandClock(), 8, 1 << 30)
    running = asyncio.create_task(made.run())
    for number in range(3):
        work = Work(f"a-{number}", "acme", "acme/gone:1", job="often")
        with pytest.raises(ImageError):
            await made.sandbox(work, True)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_a_spare_that_cannot_be_closed_is_tried_again(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(bed)
    spare = bed.waiting[0]
    troubles = [OSError("too many open files"), SandboxError("containerd is away")]

    async def close(_: InProcessSpare) -> None:
        if troubles:
            raise troubles.pop()
        spare.spent = True

    monkeypatch.setattr(InProcessSpare, "close", close)
    monkeypatch.setattr(spares, "LOOK_S", 0.0)
    bed.clock.seconds += spares.KEEP_S
    await bed.spares.sandbox(bed.work(), False)  # whatever happens makes it look
    await bed.until(lambda: spare.spent)


async def test_what_nobody_thought_of_ends_no_executor(bed: Bed) -> None:
    """An image or its registry is the customer's: what is wrong with it can be anything."""
    bed.runtime.trouble = IsADirectoryError("etc/passwd")
    await bed.execute()
    await bed.execute()
    await bed.until(lambda: bed.runtime.trouble is None)
    for _ in range(2):
        bed.clock.seconds += 10
        await bed.execute(job="another")
    await bed.settled(1)
