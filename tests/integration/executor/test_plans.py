"""What a plan gives to an execution: a runtime, and capabilities, beside others on one executor."""

import asyncio
import errno
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.errors import SandboxError
from tickmesh.executor.sandbox import Work, mould
from tickmesh.mesh.plans import CAPABILITIES

from ...conformance.test_runtime import RUNSC, open_directory, runsc
from .conftest import PYTHON_IMAGE, nothing_left, read_output

pytestmark = pytest.mark.integration

BIND = """
import os, socket
assert os.getuid() == 1000
try:
    socket.socket().bind(("", 80))
    print("bound")
except OSError as error:
    print(error.errno)
"""

ALL = """
import os, pathlib
status = pathlib.Path("/proc/self/status").read_text().split()
for kind in ("Bnd", "Eff", "Prm", "Inh", "Amb"):
    print(int(status[status.index(f"Cap{kind}:") + 1], 16))
print(status[status.index("NoNewPrivs:") + 1])
"""

EFFECTIVE = """
import pathlib
status = pathlib.Path("/proc/self/status").read_text().split()
print(int(status[status.index("CapEff:") + 1], 16))
"""

KERNEL = "import pathlib; print(pathlib.Path('/proc/version').read_text())"

Run = Callable[..., Awaitable[str]]


@pytest.fixture
async def both(python_archive: Path) -> AsyncIterator[ContainerdRuntime]:
    """A runtime that has gVisor beside its own default."""
    owner = f"test-{uuid.uuid4().hex[:8]}"
    with open_directory() as directory:
        further = {RUNSC: str(runsc(directory))}
        made = ContainerdRuntime(owner, directory / "executor", runtimes=further)
        await made.start()
        try:
            await made.import_image(PYTHON_IMAGE, python_archive)
            yield made
        finally:
            await made.close()
        await asyncio.to_thread(nothing_left, directory, owner)


@pytest.fixture
def run(python: ContainerdRuntime) -> Run:
    """Runs a program as user 1000; answers what it printed."""

    async def run(program: str, **more: Any) -> str:
        return await _run(python, program, **more)

    return run


async def _run(on: ContainerdRuntime, program: str, user: str = "1000", **more: Any) -> str:
    name = f"a-{uuid.uuid4().hex[:8]}"
    command = ("python3", "-c", program)
    sandbox = await on.prepare(Work(name, "acme", PYTHON_IMAGE, command, user=user, **more))
    try:
        await sandbox.start()
        await sandbox.wait()
        out, err = await read_output(on, name)
        assert err == b"", err.decode()
        return out.decode().strip()
    finally:
        await sandbox.delete()
        await on.discard_output(name)


async def test_a_granted_capability_works_for_a_user_that_is_not_root(run: Run) -> None:
    assert await run(BIND, capabilities=("CAP_NET_BIND_SERVICE",)) == "bound"


async def test_one_that_is_not_granted_does_not(run: Run) -> None:
    assert await run(BIND) == str(errno.EACCES)
    others = tuple(sorted(CAPABILITIES - {"CAP_NET_BIND_SERVICE"}))
    assert await run(BIND, capabilities=others) == str(errno.EACCES)


@pytest.mark.parametrize("user", ["1000", "0"])
async def test_a_process_has_what_is_granted_and_nothing_else(run: Run, user: str) -> None:
    bits = {"CAP_CHOWN": 0, "CAP_KILL": 5, "CAP_NET_BIND_SERVICE": 10}
    wanted = sum(1 << bit for bit in bits.values())
    said = await run(ALL, capabilities=tuple(bits), user=user)
    assert said.split() == [str(wanted)] * 5 + ["1"]
    assert (await run(ALL, user=user)).split() == ["0"] * 5 + ["1"]


async def test_one_executor_runs_each_work_by_the_runtime_that_it_names(
    both: ContainerdRuntime,
) -> None:
    assert both.runtimes == (RUNSC, "tickmesh")
    assert both.id_base, "this host gives user namespaces"
    ours = os.uname().release
    assert ours in await _run(both, KERNEL)
    assert ours in await _run(both, KERNEL, runtime="tickmesh")
    assert ours not in await _run(both, KERNEL, runtime=RUNSC), "gVisor has a kernel of its own"
    # It knows no ambient capabilities, so that what is granted is for root.
    assert await _run(both, EFFECTIVE, "0", runtime=RUNSC) == "0"
    assert await _run(both, EFFECTIVE, "0", runtime=RUNSC, capabilities=("CAP_CHOWN",)) == "1"
    with pytest.raises(SandboxError, match=r"has no runtime io\.containerd\.kata\.v2"):
        await _run(both, KERNEL, runtime="io.containerd.kata.v2")


async def test_a_spare_is_never_given_to_work_of_another_runtime_or_with_other_capabilities(
    both: ContainerdRuntime,
) -> None:
    work = Work("a-1", "acme", PYTHON_IMAGE, ("python3", "-c", KERNEL), runtime=RUNSC)
    for other in (
        Work("a-1", "acme", PYTHON_IMAGE, ("python3", "-c", KERNEL)),
        Work("a-1", "acme", PYTHON_IMAGE, runtime=RUNSC, capabilities=("CAP_CHOWN",)),
    ):
        spare = await both.prepare_spare(mould(other))
        with pytest.raises(AssertionError, match="of its own mould"):
            await spare.assign(work)
        await spare.close()
