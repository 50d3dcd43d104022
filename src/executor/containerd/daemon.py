"""A private containerd: found running or started, watched, restarted, ended by its pid.

It lives in a mount namespace of its own (see launch.py), so that its mounts never show on the host,
and outlives the executor: sandboxes go on while an executor is replaced, and the next one finds the
same daemon by the pid file in its directory. `close()` ends it.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from ...mesh import telemetry
from .. import limits, volatile
from ..errors import ContainerdUnavailable, HostUnfit
from . import launch, shims
from .client import RUNC_RUNTIME, RUNTIME, ContainerdClient

log = telemetry.logger(__name__)

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SOCKET_PATH_BYTES_MAX = 107  # what the kernel takes for a unix socket's path
HEALTHY_AFTER_S = 60.0
NEEDED_PLUGINS = (
    "io.containerd.snapshotter.v1.overlayfs",
    "io.containerd.grpc.v1.tasks",
    "io.containerd.grpc.v1.diff",
)

# Only what the executor calls: no CRI (it would wait for CNI configuration), no other snapshotters,
# no metrics of its own. Some have another name in containerd 2; a name that it does not know is
# none to it. Version 2 of the configuration is what 1.6 reads, and 2.x still does.
_CONFIGURATION = """\
version = 2
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
  "io.containerd.internal.v1.restart",
  "io.containerd.monitor.v1.cgroups",
  "io.containerd.monitor.container.v1.restart",
  "io.containerd.monitor.task.v1.cgroups",
  "io.containerd.nri.v1.nri",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.differ.v1.erofs",
]

[grpc]
address = {socket}

[debug]
level = "warn"
"""


def missing(runtimes: Collection[str]) -> list[str]:
    """What this machine lacks for running containers, one sentence each; empty when it is fit.

    runtimes: what will run them, by containerd's names.
    """
    lacks = []
    if os.geteuid() != 0:
        lacks.append("root is needed to start containerd (effective uid is not 0)")
    binaries = ["containerd"]
    if RUNC_RUNTIME in runtimes:
        binaries.append("containerd-shim-runc-v2")
    lacks += [
        f"`{binary}` is not on the PATH (Debian package: containerd)"
        for binary in binaries
        if which(binary) is None
    ]
    if which("runc") is None and which("crun") is None:
        lacks.append("neither `runc` nor `crun` is on the PATH (Debian packages of these names)")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text() and not _loadable("overlay"):
        lacks.append("the kernel has no overlayfs (`modprobe overlay`)")
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    if not unified and not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        lacks.append("no cgroup hierarchy with memory control is mounted under /sys/fs/cgroup")
    elif not os.access("/sys/fs/cgroup", os.W_OK):
        lacks.append("/sys/fs/cgroup is read-only")
    return lacks


def which(binary: str) -> str | None:
    """Where a program is."""
    return shutil.which(binary, path=search_path())


def search_path() -> str:
    """Ours, and the system's own directories: a service's PATH often lacks sbin."""
    return f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}".lstrip(":")


def _loadable(module: str) -> bool:
    pattern = f"/lib/modules/{os.uname().release}"
    return any(Path(pattern).rglob(f"{module}.ko*")) if Path(pattern).exists() else False


class Daemon:
    """One private containerd, whose lasting data is in `directory`."""

    def __init__(self, directory: Path, runtimes: Collection[str] = (RUNTIME,)) -> None:
        """runtimes: what will run its containers, by its own names."""
        self._directory = directory.absolute()
        self._runtimes = runtimes
        self._state = volatile.directory_of(self._directory)
        self.socket = str(self._state / "containerd.sock")
        self.runtime_state = str(self._state / "runtime")
        """Where runc or crun keep theirs, so that it goes with the daemon's."""
        self._pid_file = self._directory / "containerd.pid"
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._pidfd = -1
        self._restarts = 0
        self._closing = False
        self._watch: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] | None = None
        """Never done while all is well; its exception says why the daemon is given up."""

    async def start(self) -> None:
        """Finds the daemon of this directory, or starts it. Raises HostUnfit."""
        if lacks := await asyncio.to_thread(missing, self._runtimes):
            raise HostUnfit(lacks)
        assert len(os.fsencode(self.socket)) <= SOCKET_PATH_BYTES_MAX
        self.failed = asyncio.get_running_loop().create_future()
        if not self._adopt():
            await asyncio.to_thread(self._spawn)
        try:
            await self._ready()
        except BaseException:
            await self.close()
            raise
        self._watch = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Ends the daemon, what it lost sight of, and its state. Containers must be gone before."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        if self._pidfd < 0:
            return
        ended = asyncio.create_task(self._ended())
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(ended), limits.DAEMON_STOP_DEADLINE_S)
        except TimeoutError:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await ended
        self._forget()
        await asyncio.to_thread(self._remove_state)

    def _remove_state(self) -> None:
        if lost := shims.end(self.socket):
            log.warning("shims were left when containerd ended", n=lost)
        self._pid_file.unlink(missing_ok=True)
        shutil.rmtree(self._state, ignore_errors=True)
        volatile.remove(self._state)

    def detach(self) -> None:
        """Leaves the daemon running for the next executor."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    @property
    def pid(self) -> int:
        """The running daemon's process id."""
        return self._pid

    def _adopt(self) -> bool:
        """Takes over the daemon that the pid file names, if it is still that one."""
        try:
            record = json.loads(self._pid_file.read_bytes())
            pid, started = int(record["pid"]), record["started"]
            pidfd = os.pidfd_open(pid)
        except (OSError, ValueError, KeyError):
            return False
        if _started(pid) != started:
            os.close(pidfd)
            return False
        self._pid, self._pidfd = pid, pidfd
        return True

    def _spawn(self) -> None:
        binary = which("containerd")
        assert binary is not None, "missing() has looked"
        volatile.make(self._state)
        self._directory.mkdir(parents=True, exist_ok=True)
        configuration = self._directory / "containerd.toml"
        values = {
            "root": self._directory / "root",
            "state": self._state / "state",
            "socket": self.socket,
        }
        # A JSON string is a TOML string.
        text = _CONFIGURATION.format(**{key: json.dumps(str(path)) for key, path in values.items()})
        configuration.write_text(text)
        environment = {
            # So that its shims and their runtimes are those that we have looked for, and not those
            # of another release that the system has too.
            "PATH": search_path(),
            "GOMAXPROCS": str(os.cpu_count() or 1),
        }
        with (self._directory / "containerd.log").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, binary, "--config", configuration],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        self._pid = self._process.pid
        self._pidfd = os.pidfd_open(self._pid)
        record = json.dumps({"pid": self._pid, "started": _started(self._pid)})
        scratch = self._pid_file.with_suffix(".new")
        scratch.write_text(record)
        scratch.rename(self._pid_file)

    async def _ready(self) -> None:
        """Waits until the daemon answers, and looks whether what we need of it works."""
        client = ContainerdClient(self.socket, "tickmesh")
        answer = asyncio.create_task(client.connected(limits.DAEMON_START_DEADLINE_S))
        death = asyncio.create_task(self._ended())
        try:
            await asyncio.wait({answer, death}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise HostUnfit([f"containerd ended at its start: {self._last_words()}"])
            await answer
            plugins = await client.broken_plugins()
            trouble = {name: plugins.get(name, "it is not there") for name in NEEDED_PLUGINS}
            lacks = [
                f"containerd's {name} does not work: {why}" for name, why in trouble.items() if why
            ]
            if lacks:
                raise HostUnfit(lacks)
        except ContainerdUnavailable as error:
            raise HostUnfit([f"{error}: {self._last_words()}"]) from error
        finally:
            answer.cancel()
            death.cancel()
            await asyncio.gather(answer, death, return_exceptions=True)
            await client.close()

    def _last_words(self) -> str:
        log_file = self._directory / "containerd.log"
        if not log_file.exists():
            return "it wrote no log"
        lines = log_file.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1]} ({log_file})" if lines else f"{log_file} is empty"

    async def _ended(self) -> None:
        """Waits for the daemon's death."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        descriptor = os.dup(self._pidfd)

        def notice() -> None:
            if not ended.done():
                ended.set_result(None)

        loop.add_reader(descriptor, notice)
        try:
            await ended
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        if self._process is not None:
            self._process.poll()  # so that it is no zombie

    def _forget(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd, self._pid, self._process = -1, 0, None

    async def _keep(self) -> None:
        """Starts the daemon again whenever it ends. Containers live on meanwhile in their shims."""
        loop = asyncio.get_running_loop()
        while not self._closing:
            since = loop.time()
            await self._ended()
            if self._closing:
                return
            self._restarts = 0 if loop.time() - since > HEALTHY_AFTER_S else self._restarts + 1
            log.warning("containerd ended, starting it again", pid=self._pid, n=self._restarts)
            self._forget()
            try:
                if self._restarts > limits.DAEMON_RESTARTS_MAX:
                    raise HostUnfit([f"containerd keeps ending: {self._last_words()}"])
                await asyncio.to_thread(self._spawn)
            except (OSError, HostUnfit) as error:
                assert self.failed is not None
                self.failed.set_exception(error)
                return


def _started(pid: int) -> str:
    """When a process began, in ticks since boot: with the pid, its identity. "" when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
