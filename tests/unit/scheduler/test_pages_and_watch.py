"""Page tokens belong to their listing; cursors go on where they stopped, or say they cannot."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.unit.scheduler.test_creates import Leader
from tests.unit.scheduler.worlds import HERE, SPEC, START_MS, World, shard_of
from tickmesh.mesh.clock import SystemClock
from tickmesh.mesh.errors import InvalidRequest, PageTokenInvalid, Unavailable
from tickmesh.mesh.limits import MESSAGE_BYTES_MAX, STATUS_MESSAGE_CHARACTERS_MAX
from tickmesh.proto.tickmesh.v1 import execution_pb2, schedule_pb2
from tickmesh.scheduler import convert, pages, service, watch
from tickmesh.scheduler.core import commands, recurrence
from tickmesh.scheduler.core.history import PERIOD_MS, period
from tickmesh.scheduler.core.model import Attempt, Reason, Retry
from tickmesh.scheduler.service import ShardService
from tickmesh.scheduler.store.queries import Queries
from tickmesh.scheduler.store.rocksdb import RocksBackend
from tickmesh.scheduler.store.state import State
from tickmesh.scheduler.watch import Changes


def test_a_token_goes_on_in_its_own_listing() -> None:
    token = pages.token(b"key", "jobs", "customers/a")
    assert pages.start(token, "jobs", "customers/a") == b"key"


@pytest.mark.parametrize(
    ("token", "listing"),
    [
        (pages.token(b"key", "jobs", "customers/a"), ("jobs", "customers/b")),
        (pages.token(b"key", "jobs", "customers/a"), ("schedules", "customers/a")),
        ("!!!", ("jobs", "customers/a")),
        ("AAAA", ("jobs", "customers/a")),
        ("é", ("jobs", "customers/a")),
    ],
)
def test_another_listings_or_a_damaged_token_is_refused(
    token: str, listing: tuple[str, ...]
) -> None:
    with pytest.raises(PageTokenInvalid) as caught:
        pages.start(token, *listing)
    assert caught.value.fields[0][0] == "page_token"


def changes_after(entries: int) -> tuple[Changes, World]:
    world = World()
    world.job()
    changes = Changes()
    world.state.observe(lambda applied: changes.note(applied.index, applied.executions))
    for _ in range(entries):
        world.execute()
    return changes, world


def test_a_cursor_goes_on_after_what_it_has_seen() -> None:
    _, world = changes_after(3)
    assert [index for index, _, _ in world.queries.changes(2, 10)] == [3, 4]
    assert world.queries.changes(4, 10) == []


def test_a_chunk_of_stored_changes_ends_with_an_entry() -> None:
    _, world = changes_after(0)
    world.execute(count=3)
    world.execute(count=3)
    stored = world.queries.changes(0, 2)
    assert [index for index, _, _ in stored] == [2, 2, 2]
    assert [index for index, _, _ in world.queries.changes(2, 2)] == [3, 3, 3]


def test_changes_are_known_after_a_restart_and_until_their_history_is_dropped() -> None:
    _, world = changes_after(2)
    world.now_ms += 3 * PERIOD_MS
    for execution in list(world.queries.active()):
        world.end(execution)
    world.execute()
    assert State(world.backend).meta == world.state.meta
    assert [index for index, _, _ in Queries(world.backend).changes(0, 10)] == [2, 3, 4, 5, 6]
    world.do(commands.DropHistory(period(world.now_ms)))
    assert world.state.meta.changes_from == 4
    assert [index for index, _, _ in world.queries.changes(0, 10)] == [4, 5, 6]


async def test_a_stream_gets_what_it_wants_in_order() -> None:
    changes, world = changes_after(0)
    stream = changes.open(lambda execution: True, "acme")
    first = world.execute()[0]
    second = world.execute()[0]
    assert [c.execution.id for c in await stream.take()] == [first.id, second.id]


async def test_a_reader_that_is_too_slow_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "STREAM_QUEUE_MAX", 2)
    changes, world = changes_after(0)
    stream = changes.open(lambda execution: True, "acme")
    for _ in range(4):
        world.execute()
    assert len(await stream.take()) == 2
    with pytest.raises(Unavailable):
        await stream.take()


@pytest.mark.parametrize("each", [1, 3])
async def test_a_reader_that_was_too_slow_goes_on_where_it_was_cut_off(
    each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told the beginning of the entry that was too much, with a cursor after it, and then
    what came later."""
    monkeypatch.setattr(watch, "STREAM_QUEUE_MAX", 4)
    changes, world = changes_after(0)
    stream = changes.open(lambda execution: True, "acme")
    made = [execution.id for _ in range(5) for execution in world.execute(count=each)]
    seen: list[bytes] = []
    told = world.state.meta.index - 5

    async def read() -> None:
        nonlocal told
        while True:
            for batch, cursor in watch.pieces(await stream.take()):
                seen.extend(change.execution.id for change in batch)
                told = cursor
            if len(made) < 5 * each + 2:
                made.extend(execution.id for execution in world.execute())

    with pytest.raises(Unavailable):
        await read()
    seen += [identity for _, _, identity in world.queries.changes(told, 1_000)]
    assert seen == made


def test_a_message_that_breaks_off_within_an_entry_has_the_cursor_before_it() -> None:
    _, world = changes_after(1)
    made = world.execute()[0]
    changes = [watch.Change(at, made) for at in (7, *[8] * (2 * watch.WATCH_BATCH_MAX), 9)]
    found = watch.pieces(changes)
    assert [len(batch) for batch, _ in found] == [100, 100, 2]
    assert [cursor for _, cursor in found] == [7, 7, 9]


class Watched:
    """A replica's service over the state of a world, without a log."""

    def __init__(self, world: World) -> None:
        replica: Any = SimpleNamespace(
            subscribe=lambda _: None, on_members=lambda _: None, entry_version=1
        )
        shard = shard_of(world, replica)
        shard.leading = SimpleNamespace(soft={}, pending_reason=lambda _: "")  # type: ignore[assignment]
        world.state.observe(shard.observe)
        self.shard = shard
        self._service = ShardService(shard, SystemClock(), "shard-0", "replica-0")

    def watch(self, cursor: str = "", job: str = "hello", schedule: str = "") -> Any:
        asked = execution_pb2.WatchExecutionsRequest(
            parent=f"customers/acme/jobs/{job}", cursor=cursor, schedule=schedule
        )
        return self._service._watch(asked)


async def test_the_first_cursor_after_a_snapshot_is_the_snapshots(tmp_path: Path) -> None:
    ahead = World(RocksBackend(tmp_path / "ahead"))
    ahead.job()
    for _ in range(3):
        ahead.execute()
    ahead.state.flush()
    ahead.state.checkpoint(tmp_path / "incoming")
    ahead.backend.close()
    world = World(RocksBackend(tmp_path / "state"))
    world.job()
    watched = Watched(world)
    world.state.install(tmp_path / "incoming")
    first = await anext(watched.watch())
    assert int(first.cursor) == world.state.applied[0] == 4
    on = await anext(watched.watch(first.cursor))
    assert on.cursor == first.cursor
    world.backend.close()


async def test_who_led_while_a_reader_caught_up_does_not_keep_its_stream() -> None:
    world = World()
    world.job()
    watched = Watched(world)
    world.execute()
    stream = watched.watch("1")
    assert [e.name for e in (await anext(stream)).executions]
    watched.shard.leading = None
    with pytest.raises(Unavailable):
        await anext(stream)


async def test_the_schedule_that_is_watched_is_of_one_job() -> None:
    """Schedules of other jobs with the same id were told as well."""
    world = World()
    fired = []
    for job_id in ("hello", "other"):
        world.job(job_id)
        schedule = world.schedule(job_id=job_id)
        world.now_ms = max(world.now_ms, schedule.due_ms)
        fired += world.fire(schedule)
    watched = Watched(world)
    name = "customers/acme/jobs/hello/schedules/often"
    stream = watched.watch("1", "-", name)
    assert [e.schedule for e in (await anext(stream)).executions] == [name]
    world.end(fired[1])
    world.end(fired[0])
    assert [e.schedule for e in (await anext(stream)).executions] == [name]
    for job, schedule in (("other", name), ("-", name.replace("acme", "evil"))):
        with pytest.raises(InvalidRequest):
            await anext(watched.watch("", job, schedule))


LARGE = 64 * 1024


async def pages_of(leader: Leader, method: str, request: Any, field: str) -> list[list[str]]:
    """The names in each page, all of which are answers that may be sent."""
    found = []
    while True:
        answer = await leader.call(method, request)
        assert answer.ByteSize() <= MESSAGE_BYTES_MAX
        found.append([each.name for each in getattr(answer, field)])
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


async def test_a_page_of_large_records_ends_before_it_is_too_large_to_send() -> None:
    leader = Leader()
    world = leader.world
    new = [
        msgspec.structs.replace(world.new_schedule(f"s-{number:03}"), payload=b"x" * LARGE)
        for number in range(100)
    ]
    world.do(commands.CreateSchedules("acme", "hello", new, b""))
    request = schedule_pb2.ListSchedulesRequest(parent="customers/acme/jobs/hello")
    found = await pages_of(leader, "ScheduleService/ListSchedules", request, "schedules")
    assert len(found) == 5
    assert [name[-5:] for page in found for name in page] == [each.schedule_id for each in new]


@pytest.mark.parametrize("job", ["hello", "-"])
async def test_a_page_of_executions_that_failed_often_and_told_much_ends_early_too(
    job: str,
) -> None:
    leader = Leader()
    world = leader.world
    retry = Retry(max_attempts=20, backoff_ms=100)
    world.do(commands.DeleteJob("acme", "hello", 0))
    world.job(spec=msgspec.structs.replace(SPEC, retry=retry))
    made = [execution for _ in range(200) for execution in world.execute()]
    for number in range(1, 21):
        told = "é" * STATUS_MESSAGE_CHARACTERS_MAX
        attempt = Attempt(number, "", "", 0, exit_code=1, reason=Reason.EXIT_CODE, message=told)
        world.do(commands.EndAttempts([(each.job_uid, each.id, attempt) for each in made]))
        placed = [(each.job_uid, each.id, HERE) for each in made]
        world.do(commands.Assign(placed))
    parent = f"customers/acme/jobs/{job}"
    request = execution_pb2.ListExecutionsRequest(parent=parent, page_size=1_000)
    found = await pages_of(leader, "ExecutionService/ListExecutions", request, "executions")
    assert len(found) == 4
    names = [name for page in found for name in page]
    assert len(names) == len(set(names)) == len(made)


WINDOWS = tuple((START_MS + 1 + 1_000 * n, START_MS + 999 + 1_000 * n) for n in range(200))
"""As many as may be excluded: the message of each is much larger than its record."""
OFTEN: Any = {"every": ((10_000, 0),), "excluded_windows": WINDOWS}


async def test_a_page_of_records_that_grow_as_messages_ends_early_too() -> None:
    leader = Leader()
    world = leader.world
    new = [world.new_schedule(f"s-{n:03}", **OFTEN) for n in range(1_000)]
    for first in range(0, len(new), 100):
        made = world.do(commands.CreateSchedules("acme", "hello", new[first : first + 100], b""))
        assert isinstance(made, list)
    request = schedule_pb2.ListSchedulesRequest(parent="customers/acme/jobs/hello", page_size=1_000)
    found = await pages_of(leader, "ScheduleService/ListSchedules", request, "schedules")
    assert [name[-5:] for page in found for name in page] == [each.schedule_id for each in new]


@pytest.mark.parametrize("newest_first", [False, True])
async def test_a_page_of_a_ledger_with_large_definitions_ends_early_too(newest_first: bool) -> None:
    """A schedule that was changed often: its ledger could not be read with pages of 1,000."""
    leader = Leader()
    world = leader.world
    schedule = world.schedule()
    changes = 1_000
    for number in range(changes):
        spec = recurrence.Spec(every=((10_000, number % 2),), excluded_windows=WINDOWS)
        made = world.do(
            commands.UpdateSchedule("acme", "hello", "often", 0, (), spec, schedule.policy, b"")
        )
        assert isinstance(made, list), made
    request = schedule_pb2.ListFiresRequest(
        parent="customers/acme/jobs/hello/schedules/often",
        page_size=1_000,
        newest_first=newest_first,
    )
    numbers = []
    while True:
        answer = await leader.call("ScheduleService/ListFires", request)
        assert answer.ByteSize() <= MESSAGE_BYTES_MAX
        numbers += [row.number for row in answer.rows]
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    assert sorted(numbers, reverse=newest_first) == numbers
    assert sorted(numbers) == list(range(world.stored(schedule).ledger_count))
    assert len(numbers) > changes


def test_a_message_of_a_stream_is_not_too_large_to_send() -> None:
    """Whoever watched could go on from no cursor: each time the same message was too large."""
    world = World()
    world.job()
    attempts = tuple(
        Attempt(number, "", "", 0, message="\N{WOLF FACE}" * STATUS_MESSAGE_CHARACTERS_MAX)
        for number in range(1, 21)
    )
    made = msgspec.structs.replace(world.execute()[0], attempts=attempts)
    found = watch.pieces([watch.Change(at, made) for at in (7, *[8] * 200, 9)])
    messages = [
        [convert.execution_message(change.execution, None) for change in batch]
        for batch, _ in found
    ]
    assert sum(map(len, messages)) == 202
    assert all(sum(e.ByteSize() + 8 for e in batch) <= MESSAGE_BYTES_MAX for batch in messages)
    assert [cursor for _, cursor in found] == [7] * (len(found) - 1) + [9]


def test_no_customer_has_all_streams_of_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thousand of one customer nobody else could watch, or follow output."""
    monkeypatch.setattr(watch, "STREAMS_OF_CUSTOMER_MAX", 2)
    changes, _ = changes_after(0)
    mine = [changes.open(lambda _: True, "acme") for _ in range(2)]
    with pytest.raises(Unavailable, match="customer acme has 2 streams open"):
        changes.open(lambda _: True, "acme")
    changes.open(lambda _: True, "other")
    for _ in range(2):  # to forget it twice frees one
        changes.forget(mine[0])
    changes.open(lambda _: True, "acme")
    with pytest.raises(Unavailable, match="customer acme"):
        changes.open(lambda _: True, "acme")


async def test_readers_with_old_cursors_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read a thousand changes a turn, and nobody else was served before all had."""
    world = World()
    world.job()
    for _ in range(20):
        world.execute()
    monkeypatch.setattr(service, "CATCH_UP_CHUNK", 5)
    watched = Watched(world)
    turns, read_in = 0, []
    changes = watched.shard.queries.changes

    def counted(after: int, count: int) -> Any:
        found = changes(after, count)
        if found:
            read_in.append(turns)
        return found

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def catch_up(stream: Any) -> int:
        seen = 0
        while seen < 20:
            seen += len((await anext(stream)).executions)
        return seen

    monkeypatch.setattr(watched.shard.queries, "changes", counted)
    running = asyncio.create_task(others())
    told = await asyncio.gather(*(catch_up(watched.watch("1")) for _ in range(10)))
    running.cancel()
    assert told == [20] * 10
    assert len(read_in) >= 40 and len(set(read_in)) == len(read_in)
