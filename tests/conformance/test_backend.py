"""Every backend is an ordered map of bytes: the same suite for each, and the same state on each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.scheduler.worlds import World
from tickmesh.scheduler.core import commands
from tickmesh.scheduler.store import keys
from tickmesh.scheduler.store.backend import MemoryBackend
from tickmesh.scheduler.store.rocksdb import RocksBackend


@pytest.fixture(params=["memory", "rocksdb"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield MemoryBackend()
        return
    made = RocksBackend(tmp_path / "state")
    yield made
    made.close()


def test_reads_see_writes(backend: Any) -> None:
    backend.write({b"a": b"1", b"t9": b"", b"b": b"2"})
    backend.write({b"a": None})
    assert backend.get(b"a") is None
    assert backend.get(b"b") == b"2"
    assert backend.get(b"t9") == b""
    assert backend.get_many([b"a", b"b", b"c"]) == [None, b"2", None]


def test_scans_are_ordered_and_bounded(backend: Any) -> None:
    backend.write({b"k%d" % i: b"%d" % i for i in range(9)})
    assert [k for k, _ in backend.scan(b"k2", b"k5")] == [b"k2", b"k3", b"k4"]
    assert [k for k, _ in backend.scan(b"k2", b"k5", reverse=True)] == [b"k4", b"k3", b"k2"]
    assert list(backend.scan(b"x", b"z")) == []


def test_history_is_read_by_key_and_dropped_by_period(backend: Any) -> None:
    old, new = keys.history(7), keys.history(8)
    backend.write({old + b"a": b"1", new + b"a": b"2", b"k": b"3"})
    backend.write({new + b"b": b"4", old + b"z": None})
    assert backend.periods() == [7, 8]
    assert backend.get(old + b"a") == b"1"
    assert backend.get(keys.history(9) + b"a") is None
    wanted = [new + b"b", b"k", old + b"a", keys.history(9)]
    assert backend.get_many(wanted) == [b"4", b"3", b"1", None]
    assert [key for key, _ in backend.scan(new, keys.history(9))] == [new + b"a", new + b"b"]
    backend.drop_period(7)
    assert backend.periods() == [8]
    assert backend.get(old + b"a") is None
    backend.write({old + b"a": b"5"})
    assert list(backend.scan(old, new)) == [(old + b"a", b"5")]


def test_periods_are_there_again_after_a_restart(tmp_path: Path) -> None:
    backend = RocksBackend(tmp_path / "state")
    backend.write({keys.history(7) + b"a": b"1", keys.history(8) + b"a": b"2"})
    backend.drop_period(7)
    backend.flush()
    backend.checkpoint(tmp_path / "copy")
    backend.close()
    for directory in (tmp_path / "state", tmp_path / "copy"):
        again = RocksBackend(directory)
        assert again.periods() == [8]
        assert again.get(keys.history(8) + b"a") == b"2"
        again.close()


KEYS = st.binary(min_size=1, max_size=3).map(lambda key: b"k" + key)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.dictionaries(KEYS, st.none() | st.binary(max_size=4), max_size=8), max_size=8))
def test_it_is_the_same_map_as_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, batches: list[dict[bytes, bytes | None]]
) -> None:
    rocks = RocksBackend(tmp_path_factory.mktemp("state") / "db")
    memory = MemoryBackend()
    model: dict[bytes, bytes] = {}
    try:
        for batch in batches:
            for each in (rocks, memory):
                each.write(batch)
            for key, value in batch.items():
                if value is None:
                    model.pop(key, None)
                else:
                    model[key] = value
        expected = sorted(model.items())
        assert list(rocks.scan(b"k", b"l")) == list(memory.scan(b"k", b"l")) == expected
        assert list(rocks.scan(b"k", b"l", reverse=True)) == expected[::-1]
    finally:
        rocks.close()


def test_replicas_on_either_backend_hold_the_same_bytes(tmp_path: Path) -> None:
    rocks = RocksBackend(tmp_path / "state")
    worlds = [World(), World(rocks)]
    for world in worlds:
        world.job()
        schedules = [world.new_schedule(f"s{i}", crons=(f"{i} * * * *",)) for i in range(20)]
        world.do(commands.CreateSchedules("acme", "hello", schedules, b"r"))
        world.now_ms += 3_600_000
        for timer in world.timers():
            due = commands.DueFire(timer.job_uid, timer.id.decode(), timer.due_ms, None)
            world.do(commands.Fire([due], 0))
        world.execute(count=3)
    assert worlds[0].everything() == worlds[1].everything()
    rocks.close()


def test_a_restart_finds_the_applied_index_with_the_state(tmp_path: Path) -> None:
    world = World(RocksBackend(tmp_path / "state"))
    world.job()
    applied, everything = world.state.applied, world.everything()
    world.backend.close()
    again = World(RocksBackend(tmp_path / "state"))
    assert (again.state.applied, again.everything()) == (applied, everything)
    again.backend.close()


def test_a_checkpoint_installs_as_the_whole_state(tmp_path: Path) -> None:
    source = World(RocksBackend(tmp_path / "source"))
    source.job()
    source.schedule()
    source.state.flush()
    held = source.state.checkpoint(tmp_path / "checkpoint")
    target = World(RocksBackend(tmp_path / "target"))
    target.job("gone")
    target.state.install(tmp_path / "checkpoint")
    assert target.state.applied == held
    assert target.everything() == source.everything()
    source.backend.close()
    target.backend.close()
