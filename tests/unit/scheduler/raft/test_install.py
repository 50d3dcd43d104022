"""The real state's replacement by a checkpoint, cut off by a crash at each of its steps."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tickmesh.scheduler.raft.config import ReplicaConfig
from tickmesh.scheduler.raft.installation import Installation
from tickmesh.scheduler.raft.journal import Position
from tickmesh.scheduler.store import keys
from tickmesh.scheduler.store.rocksdb import RocksBackend
from tickmesh.scheduler.store.state import State, encode_entry


def state_at(directory: Path, index: int) -> State:
    """A state that has applied entries up to `index`."""
    state = State(RocksBackend(directory))
    for number in range(1, index + 1):
        state.apply(number, 1, encode_entry(number, []))
    return state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a state at 7, as `incoming` holds it."""
    source = state_at(tmp_path / "source", 7)
    source.flush()
    incoming = tmp_path / "raft" / "incoming"
    assert source.checkpoint(incoming) == (7, 1)
    source.backend.close()
    return incoming


def test_the_state_becomes_the_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    state = state_at(tmp_path / "state", 3)
    state.install(checkpoint)
    assert state.applied == (7, 1)
    assert state.backend.get(keys.META) is not None
    state.apply(8, 1, encode_entry(8, []))
    state.backend.close()
    again = State(RocksBackend(tmp_path / "state"))
    assert again.applied == (8, 1)
    again.backend.close()
    assert not checkpoint.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raft", "source", "state"]


@pytest.mark.parametrize("step", ["before", "old moved away", "new moved in"])
def test_a_crash_at_any_step_leaves_one_whole_state_or_another_try(
    tmp_path: Path, checkpoint: Path, step: str
) -> None:
    target = tmp_path / "state"
    state_at(target, 3).backend.close()
    if step != "before":
        target.rename(tmp_path / "state.old")
    if step == "new moved in":
        checkpoint.rename(target)
    # The next start: the state is opened first, then the replica, which has the mark, asks.
    state = State(RocksBackend(target))
    if step == "new moved in":
        assert state.applied == (7, 1)
    else:
        assert state.applied in ((3, 1), (0, 0))
    config = ReplicaConfig(
        group_id="shard-0", replica_id="a", peers=("b", "c"), directory=tmp_path / "raft"
    )
    journal: Any = SimpleNamespace(installing=Position(7, 1), end_install=lambda: None)
    nothing: Any = None
    Installation(config, state, nothing, nothing, journal).finish()
    assert state.applied == (7, 1)
    state.backend.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raft", "source", "state"]


def test_leftovers_of_an_interrupted_installation_do_not_stop_the_next(
    tmp_path: Path, checkpoint: Path
) -> None:
    state = state_at(tmp_path / "state", 3)
    shutil.copytree(checkpoint, tmp_path / "state.old")
    state.install(checkpoint)
    assert state.applied == (7, 1)
    assert not (tmp_path / "state.old").exists()
    state.backend.close()
