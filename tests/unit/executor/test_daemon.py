"""Which programs a private containerd needs, and where they are looked for."""

import os
from pathlib import Path

import pytest

from tickmesh.executor.containerd import daemon
from tickmesh.executor.containerd.client import RUNC_RUNTIME, RUNTIME
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.errors import HostUnfit


@pytest.mark.parametrize("ours", ["", "/nothing/here", "/nothing/here:/usr/bin"])
def test_programs_are_found_in_the_systems_directories_too(
    ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", ours)
    assert daemon.which("sh") is not None
    assert "" not in daemon.search_path().split(":"), "that would be the working directory"


def test_programs_of_our_path_go_before_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert daemon.which("sh") == str(tmp_path / "sh")
    assert daemon.search_path().split(":")[0] == str(tmp_path)


RUNSC = "io.containerd.runsc.v1"


@pytest.mark.parametrize(
    ("containerd_runtime", "further", "needed"),
    [
        (RUNTIME, {}, False),
        (RUNTIME, {RUNSC: ""}, False),
        (RUNTIME, {RUNSC: "/usr/bin/runsc"}, True),
        (RUNTIME, {RUNC_RUNTIME: ""}, True),
        (RUNC_RUNTIME, {}, True),
        (RUNSC, {}, False),
    ],
)
async def test_containerds_own_shim_is_asked_for_where_something_runs_through_it(
    containerd_runtime: str,
    further: dict[str, str],
    needed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(daemon, "SYSTEM_PATH", "/nothing/here")
    monkeypatch.setenv("PATH", "/nothing/here")
    runtime = ContainerdRuntime(
        "executor-0", tmp_path, containerd_runtime=containerd_runtime, runtimes=further
    )
    with pytest.raises(HostUnfit) as told:
        await runtime.start()
    assert "`containerd` is not on the PATH" in str(told.value)
    assert ("containerd-shim-runc-v2" in str(told.value)) is needed
