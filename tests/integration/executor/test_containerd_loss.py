"""containerd is killed, stopped, or broken while sandboxes are made and run."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tickmesh.executor import accounting, shim
from tickmesh.executor.containerd import launch, shims
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.errors import HostUnfit, SandboxError
from tickmesh.executor.sandbox import Work

from .conftest import PYTHON_IMAGE, STAMP_IMAGE, nothing_left

pytestmark = pytest.mark.integration

Output = Callable[[str], Awaitable[tuple[bytes, bytes]]]


BUNDLES = "state/io.containerd.runtime.v2.task/tickmesh"


def entries(directory: Path) -> list[str]:
    """Of a state directory; crun keeps the filters that it has compiled in `.cache`, too."""
    return [path.name for path in directory.iterdir() if path.name != ".cache"]


def kill_daemon(runtime: ContainerdRuntime) -> int:
    assert runtime.daemon is not None
    killed = runtime.daemon.pid
    assert killed > 0
    os.kill(killed, signal.SIGKILL)
    return killed


async def test_what_runs_goes_on_when_containerd_is_killed(
    python: ContainerdRuntime, output: Output, tmp_path: Path
) -> None:
    program = (
        "import signal; print('begun', flush=True); signal.sigwait([10]); print('done'); exit(3)"
    )
    program = "import signal; signal.pthread_sigmask(0, [10]); " + program
    sandbox = await python.prepare(
        Work("through", "tests", PYTHON_IMAGE, command=("python3", "-c", program))
    )
    await sandbox.start()
    waiting = asyncio.create_task(sandbox.wait())
    await begun(python, "through")
    killed = kill_daemon(python)
    await sandbox.kill(signal.SIGUSR1)  # waits for the daemon's return
    ended = await waiting
    assert ended.exit_code == 3
    assert await output("through") == (b"begun\ndone\n", b"")
    assert python.daemon is not None and python.daemon.pid not in (0, killed)
    await sandbox.delete()


async def test_an_end_while_containerd_is_dead_is_not_lost(
    python: ContainerdRuntime, output: Output
) -> None:
    program = "import time; print('begun', flush=True); time.sleep(0.15); exit(9)"
    sandbox = await python.prepare(
        Work("meanwhile", "tests", PYTHON_IMAGE, command=("python3", "-c", program))
    )
    await sandbox.start()
    await begun(python, "meanwhile")
    kill_daemon(python)
    assert (await sandbox.wait()).exit_code == 9
    await sandbox.delete()


async def test_how_a_command_ended_is_known_when_containerd_has_dropped_its_task(
    python: ContainerdRuntime,
) -> None:
    """As containerd does from 1.7 on with what ended while it was away; here with any."""
    begun_ns = time.time_ns()
    for number, (program, ending) in enumerate(
        {"exit(9)": (9, 0), "import os; os.kill(os.getpid(), 15)": (143, 15)}.items()
    ):
        name = f"dropped-{number}"
        sandbox = await python.prepare(
            Work(name, "tests", PYTHON_IMAGE, command=("python3", "-c", program))
        )
        await sandbox.start()
        await python._client.wait_task(name)
        await python._client.delete_task(name)
        adopted = await python.adopt(name)
        assert adopted is not None
        for each in (sandbox, adopted):
            ended = await each.wait()
            assert (ended.exit_code, ended.signal) == ending
            assert begun_ns < ended.finished_ns < time.time_ns()
        await sandbox.delete()


async def test_an_end_that_is_still_being_written_is_waited_for(
    python: ContainerdRuntime,
) -> None:
    sandbox = await python.prepare(
        Work("late", "tests", PYTHON_IMAGE, command=("python3", "-c", "exit(9)"))
    )
    loop = asyncio.get_running_loop()
    recorder = await asyncio.to_thread(recorder_of, python, "late")
    ended = os.open(python.paths("late").ended, os.O_RDONLY | os.O_NONBLOCK)
    os.kill(recorder, signal.SIGSTOP)
    try:
        await sandbox.start()
        await python._client.wait_task("late")
        await python._client.delete_task("late")
        told = asyncio.Event()
        loop.add_reader(ended, told.set)
        adopting = asyncio.create_task(python.adopt("late"))
        telling = asyncio.create_task(told.wait())
        await asyncio.wait({adopting, telling}, return_when=asyncio.FIRST_COMPLETED)
        telling.cancel()
    finally:
        os.kill(recorder, signal.SIGCONT)
        loop.remove_reader(ended)
        os.close(ended)
    adopted = await adopting
    assert adopted is not None
    assert (await adopted.wait()).exit_code == 9
    await sandbox.delete()


def recorder_of(runtime: ContainerdRuntime, attempt_id: str) -> int:
    """The pid of what writes a sandbox's output."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().decode().split("\0")
            if "recorder" in words[0] and str(runtime.paths(attempt_id).directory) in words:
                found.append(int(path.name))
    (recorder,) = found
    return recorder


async def test_of_a_gate_that_was_killed_nothing_is_known_when_containerd_has_dropped_its_task(
    stamp: ContainerdRuntime,
) -> None:
    sandbox = await stamp.prepare(Work("untold", "tests", STAMP_IMAGE))
    await sandbox.kill(signal.SIGKILL)
    await stamp._client.wait_task("untold")
    await stamp._client.delete_task("untold")
    with pytest.raises(SandboxError, match="untold has vanished"):
        await sandbox.wait()
    assert await stamp.adopt("untold") is None
    await sandbox.delete()


async def test_a_gate_opens_while_containerd_is_dead(
    stamp: ContainerdRuntime, output: Output
) -> None:
    sandbox = await stamp.prepare(Work("armed", "tests", STAMP_IMAGE))
    kill_daemon(stamp)
    await sandbox.start()
    assert (await sandbox.wait()).exit_code == 0
    assert (await output("armed"))[0].strip().isdigit()
    await sandbox.delete()


async def test_under_load_each_prepare_works_or_says_that_it_does_not(
    stamp: ContainerdRuntime,
) -> None:
    outcomes: dict[str, str] = {}
    killed = [0]

    def kill_twice() -> None:
        """Once among the first, and again as soon as it is back."""
        assert stamp.daemon is not None
        if len(killed) < 3 and len(outcomes) >= 6 and stamp.daemon.pid not in killed:
            killed.append(kill_daemon(stamp))

    async def one(number: int) -> None:
        name = f"load-{number}"
        kill_twice()
        try:
            sandbox = await stamp.prepare(Work(name, "tests", STAMP_IMAGE))
        except SandboxError as error:
            outcomes[name] = str(error)
            return
        finally:
            kill_twice()
        await sandbox.start()
        assert (await sandbox.wait()).exit_code == 0
        await sandbox.delete()
        outcomes[name] = "ran"

    async with asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(one(number))
    assert len(outcomes) == 40
    failed = {name: outcome for name, outcome in outcomes.items() if outcome != "ran"}
    for name, outcome in failed.items():
        assert f"sandbox {name} cannot be made" in outcome or "cannot be looked up" in outcome
    assert len(killed) == 3
    assert 0 < len(failed) < 40
    # Afterwards it works as before.
    sandbox = await stamp.prepare(Work("after", "tests", STAMP_IMAGE))
    await sandbox.start()
    assert (await sandbox.wait()).exit_code == 0
    await sandbox.delete()


@pytest.mark.parametrize("binary", ["crun", "runc"])
async def test_a_sandbox_that_its_runtime_has_forgotten_is_removed(
    binary: str, tmp_path: Path, stamp_archive: Path
) -> None:
    """What a kill between the runtime's delete and containerd's hearing of it leaves."""
    runtime = ContainerdRuntime(f"forgotten-{binary}", tmp_path / "executor", runtime_binary=binary)
    await runtime.start()
    try:
        await runtime.import_image(STAMP_IMAGE, stamp_archive)
        ended = await runtime.prepare(Work("ended", "tests", STAMP_IMAGE))
        waits = await runtime.prepare(Work("waits", "tests", STAMP_IMAGE))
        await ended.start()
        assert (await ended.wait()).exit_code == 0
        state = runtime._client.runtime_state
        assert sorted(entries(state)) == ["ended", "waits"]
        for name in entries(state):
            await asyncio.to_thread(shutil.rmtree, state / name)
        await asyncio.gather(ended.delete(), waits.delete())
        assert runtime.daemon is not None
        bundles = Path(runtime.daemon.socket).parent / BUNDLES
        assert entries(bundles) == entries(state) == []
        assert accounting.children(f"/tickmesh-forgotten-{binary}") == set()
    finally:
        await runtime.close()
    await asyncio.to_thread(nothing_left, tmp_path, f"forgotten-{binary}")


async def test_a_sandbox_that_containerd_has_forgotten_is_removed(
    stamp: ContainerdRuntime,
) -> None:
    """What a kill while a shim was being made leaves."""
    sandbox = await stamp.prepare(Work("lost", "tests", STAMP_IMAGE))
    assert stamp.daemon is not None
    shim_socket = shims.socket_of(stamp.daemon.socket, "tickmesh", "lost")
    assert shim_socket.is_socket()
    bundle = Path(stamp.daemon.socket).parent / BUNDLES / "lost"
    for name in ("address", "bootstrap.json"):  # the second from 1.7 on, the first up to it
        (bundle / name).unlink(missing_ok=True)  # a new containerd cannot find its shim
    kill_daemon(stamp)
    await stamp._client.connected(10)
    await sandbox.delete()
    assert not bundle.exists()
    assert not shim_socket.exists()
    assert entries(stamp._client.runtime_state) == []
    assert shims.end(stamp.daemon.socket) == 0
    again = await stamp.prepare(Work("lost-2", "tests", STAMP_IMAGE))
    await again.delete()


def test_only_the_shims_that_are_meant_are_killed() -> None:
    def named(program: str, *words: str) -> list[str]:
        return [program, "-c", "import signal; print(flush=True); signal.pause()", *words]

    def shim(socket: str, name: str, *more: str) -> list[str]:
        words = ("-namespace", "here", "-id", name, "-address", socket)
        return named("/usr/bin/containerd-shim-x-v2", *words, *more)

    meant = [shim("/a.sock", "one"), shim("/a.sock", "one", "start")]
    others = [
        shim("/a.sock", "one", "delete"),
        shim("/a.sock", "two"),
        shim("/b.sock", "one"),
        named("/usr/bin/other", *shim("/a.sock", "one")[3:]),
    ]
    children = [
        subprocess.Popen(words, executable=sys.executable, stdout=subprocess.PIPE)
        for words in (*meant, *others)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()  # it is what its words say by now
        assert shims.end("/a.sock", "here", "one") == len(meant)
        ended = [child.poll() for child in children]
        assert ended == [-signal.SIGKILL] * len(meant) + [None] * len(others)
        assert shims.end("/a.sock", "there") == 0
    finally:
        for child in children:
            child.kill()
            child.communicate()


async def test_a_containerd_that_hangs_fails_a_prepare_by_its_deadline(
    stamp: ContainerdRuntime,
) -> None:
    assert stamp.daemon is not None
    os.kill(stamp.daemon.pid, signal.SIGSTOP)
    try:
        with pytest.raises(SandboxError, match=r"sandbox hung cannot be made: .*DEADLINE_EXCEEDED"):
            await stamp.prepare(Work("hung", "tests", STAMP_IMAGE))
    finally:
        os.kill(stamp.daemon.pid, signal.SIGCONT)
    # What was begun is removed by itself, and it works again.
    await asyncio.gather(*stamp._removals)
    assert not stamp.output_directory("hung").exists()
    sandbox = await stamp.prepare(Work("hung", "tests", STAMP_IMAGE))
    await sandbox.start()
    assert (await sandbox.wait()).exit_code == 0
    await sandbox.delete()


async def begun(runtime: ContainerdRuntime, attempt: str) -> None:
    """Waits until an attempt has written something."""
    directory = runtime.output_directory(attempt)
    written = directory / "stdout"
    with runtime._watcher.changes(directory) as changed:
        while not (written.exists() and written.stat().st_size):
            await changed.wait()
            changed.clear()


async def test_a_containerd_that_is_not_there_is_said(tmp_path: Path) -> None:
    runtime = ContainerdRuntime("none", tmp_path, containerd_socket=str(tmp_path / "no.sock"))
    with pytest.raises(HostUnfit, match=r"no socket at .*no\.sock"):
        await runtime.start()


async def test_a_shim_that_containerd_does_not_see_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "program", lambda: tmp_path / "containerd-shim-elsewhere")
    runtime = ContainerdRuntime("unseen", tmp_path / "executor")
    with pytest.raises(HostUnfit, match=r"invalid custom binary path: .*containerd-shim-elsewhere"):
        await runtime.start()
    await asyncio.to_thread(nothing_left, tmp_path, "unseen")


async def test_a_broken_containerd_is_said_with_its_last_words(tmp_path: Path) -> None:
    runtime = ContainerdRuntime("broken", tmp_path)
    (tmp_path / "containerd").mkdir()
    (tmp_path / "containerd" / "root").write_text("a file where its directory should be")
    with pytest.raises(HostUnfit, match=r"containerd ended at its start: .*not a directory"):
        await runtime.start()


async def test_an_unknown_binary_is_said(tmp_path: Path) -> None:
    with pytest.raises(HostUnfit, match="runtime_binary is 'docker'"):
        await ContainerdRuntime("binary", tmp_path, runtime_binary="docker").start()


def text(path: str) -> str:
    return Path(path).read_text()


def owner(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_uid, found.st_gid


async def test_a_runtime_that_takes_the_hosts_null_device_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Debian 12's crun does, where containerd was not started by us."""
    unprotected = text(launch.__file__).replace("os.devnull.encode()", 'b"/dev/full"')
    changed = tmp_path / "launch.py"
    changed.write_text(unprotected)
    monkeypatch.setattr(launch, "__file__", str(changed))
    runtime = ContainerdRuntime(
        "null", tmp_path / "data", runtime_binary="crun", user_namespaces="required"
    )
    before = owner("/dev/null")
    with pytest.raises(HostUnfit, match="makes the host's /dev/null its sandboxes' own"):
        await runtime.start()
    assert owner("/dev/null") == before


async def test_a_given_containerd_is_left_running(
    stamp: ContainerdRuntime, tmp_path: Path, stamp_archive: Path
) -> None:
    assert stamp.daemon is not None
    guest = ContainerdRuntime("guest", tmp_path / "guest", containerd_socket=stamp.daemon.socket)
    await guest.start()
    await guest.prepare(Work("guest", "tests", STAMP_IMAGE))
    await guest.close()  # deletes its own
    sandbox = await stamp.prepare(Work("own", "tests", STAMP_IMAGE))
    await sandbox.start()
    assert (await sandbox.wait()).exit_code == 0
    await sandbox.delete()
