"""Where files are that mean nothing after a reboot."""

import os
from pathlib import Path

import pytest

from tickmesh.executor import volatile
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.errors import HostUnfit

ROOT_ID = 0


@pytest.fixture
def open_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory like /dev/shm, in which everybody may make files."""
    root = tmp_path / "shm"
    root.mkdir()
    root.chmod(0o1777)
    monkeypatch.setattr(volatile, "_root", lambda: root)
    return root


def test_each_lasting_directory_has_its_own(open_to_all: Path, tmp_path: Path) -> None:
    one, other = (volatile.directory_of(tmp_path / name) for name in ("one", "other"))
    assert one != other
    assert one == volatile.directory_of(tmp_path / "one")
    for directory in (one, other, one):
        volatile.make(directory)
    assert sorted(open_to_all.rglob("*")) == sorted([one.parent, one, other])
    volatile.remove(one)
    assert not one.exists() and other.exists()
    (other / "held").touch()
    volatile.remove(other)
    assert other.exists()
    (other / "held").unlink()
    volatile.remove(other)
    assert not any(open_to_all.iterdir())


@pytest.mark.skipif(os.geteuid() != ROOT_ID, reason="gives directories away")
@pytest.mark.parametrize("whose", ["another's", "open", "a link"])
def test_a_directory_that_others_can_change_is_refused(
    open_to_all: Path, tmp_path: Path, whose: str
) -> None:
    wanted = volatile.directory_of(tmp_path)
    if whose == "a link":
        (tmp_path / "elsewhere").mkdir()
        wanted.parent.symlink_to(tmp_path / "elsewhere")
    else:
        wanted.parent.mkdir()
        if whose == "open":
            wanted.parent.chmod(0o777)
        else:
            os.chown(wanted.parent, 1000, 1000)
    with pytest.raises(HostUnfit, match="belongs to somebody else: remove it"):
        volatile.make(wanted)


def test_the_first_that_is_in_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert volatile.directory_of(tmp_path).parent.parent in volatile.CANDIDATES
    monkeypatch.setattr(volatile, "CANDIDATES", (tmp_path, Path("/dev/shm")))
    kinds = [line.split(" ")[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    memory = ["/dev/shm", "tmpfs"] in kinds
    assert volatile.directory_of(tmp_path).parent.parent == (
        Path("/dev/shm") if memory else tmp_path
    )


def test_what_an_earlier_version_has_left_is_replaced_when_it_is_empty(
    open_to_all: Path, tmp_path: Path
) -> None:
    shown = tmp_path / "executor" / "sandboxes"
    (shown / "runs").mkdir(parents=True)
    runtime = ContainerdRuntime("earlier", tmp_path / "executor")
    with pytest.raises(HostUnfit, match="sandboxes of an earlier version: drain the executor"):
        runtime._make_directories()
    (shown / "runs").rmdir()
    for _ in range(2):
        runtime._make_directories()
        assert shown.is_symlink() and shown.is_dir()
    runtime._remove_directories()
    assert not shown.is_symlink() and not any(open_to_all.iterdir())
