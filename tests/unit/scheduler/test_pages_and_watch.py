"""Page tokens belong to their listing; cursors go on where they stopped, or say they cannot."""

from __future__ import annotations

import pytest

from tests.unit.scheduler.worlds import World
from tickmesh.mesh.errors import CursorExpired, PageTokenInvalid, Unavailable
from tickmesh.scheduler import pages, watch
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
    changes.begin(world.state.applied[0])
    world.state.observe(lambda applied: changes.note(applied.index, applied.executions))
    for _ in range(entries):
        world.execute()
    return changes, world


def test_a_cursor_goes_on_after_what_it_has_seen() -> None:
    changes, _ = changes_after(3)
    assert [index for index, _, _ in changes.since(2)] == [3, 4]
    assert changes.since(4) == []


def test_a_cursor_from_the_future_is_refused() -> None:
    changes, _ = changes_after(1)
    with pytest.raises(CursorExpired):
        changes.since(99)


def test_a_cursor_from_before_the_restart_is_refused() -> None:
    changes, _ = changes_after(1)
    with pytest.raises(CursorExpired):
        changes.since(0)


async def test_a_stream_gets_what_it_wants_in_order() -> None:
    changes, world = changes_after(0)
    stream = changes.open(lambda execution: True)
    first = world.execute()[0]
    second = world.execute()[0]
    assert [c.execution.id for c in await stream.take()] == [first.id, second.id]


async def test_a_reader_that_is_too_slow_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "STREAM_QUEUE_MAX", 2)
    changes, world = changes_after(0)
    stream = changes.open(lambda execution: True)
    for _ in range(4):
        world.execute()
    assert len(await stream.take()) == 2
    with pytest.raises(Unavailable):
        await stream.take()


def test_a_message_that_breaks_off_within_an_entry_has_the_cursor_before_it() -> None:
    _, world = changes_after(1)
    made = world.execute()[0]
    changes = [watch.Change(at, made) for at in (7, *[8] * (2 * watch.WATCH_BATCH_MAX), 9)]
    found = watch.pieces(changes)
    assert [len(batch) for batch, _ in found] == [100, 100, 2]
    assert [cursor for _, cursor in found] == [7, 7, 9]
