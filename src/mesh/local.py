"""A whole mesh on this machine: its configuration, certificates and processes.

`tickmesh dev`, the tests and the benchmarks stand on it. The processes are the real ones, started
by `python -m`; nothing of them is imported here. They end with whoever started them, however that
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .config import (
    Config,
    ExecutorConfig,
    GatewayConfig,
    Peer,
    SchedulerConfig,
    ShardMembers,
)
from .tls import DevelopmentAuthority

READY_TIMEOUT_S = 60.0
"""How long a process may take to serve: a private containerd's first start is the longest."""

READY_POLL_S = 0.01
"""Between looks at a ready file: short against what is waited for."""

END_GRACE_S = 15.0
"""Between SIGTERM and SIGKILL: executors end and remove their containers meanwhile."""

LOG_LINES_SHOWN = 12
"""Of a process that ended unasked: enough for a traceback's end."""

_PR_SET_PDEATHSIG = 1
SHARD_ID = "shard-0"


class MeshFailed(Exception):
    """A process did not start or ended unasked; the message says which, and its last words."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        """exit_code: of the process that failed; 2 if this host cannot run it."""
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """What the mesh consists of. Zero ports are chosen."""

    replicas: int = 1
    executors: int = 1
    gateways: int = 1
    port: int = 0
    runtime: str = "containerd"
    scheduler: tuple[tuple[str, Any], ...] = ()
    """Further SchedulerConfig fields."""
    executor: tuple[tuple[str, Any], ...] = ()
    """Further ExecutorConfig fields."""


class Child:
    """One process of the mesh: can be started, ended and started again."""

    def __init__(self, name: str, service: str, directory: Path, settings: Config) -> None:
        self.name = name
        self.service = service
        self.log = directory / "logs" / f"{name}.log"
        self.ready = directory / "run" / f"{name}.ready"
        self._config = directory / "config" / f"{name}.toml"
        for path in (self.log, self.ready, self._config):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._config.write_bytes(msgspec.toml.encode(_without_empty(settings)))
        self._config.chmod(0o600)
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process is not None
        return self.process.pid

    async def spawn(self) -> None:
        """Start the process, without waiting until it serves."""
        self.ready.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", f"tickmesh.{self.service}", "--config", self._config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    async def serving(self) -> None:
        """Wait until it serves. Raises MeshFailed."""
        assert self.process is not None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not self.ready.exists():
                    if self.process.returncode is not None:
                        raise self.failed()
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError:
            raise MeshFailed(
                f"{self.name} does not serve after {READY_TIMEOUT_S:.0f} s; its log, {self.log}, "
                f"ends with:\n{self.last_words()}"
            ) from None

    def failed(self) -> MeshFailed:
        """What to say of a process that ended unasked."""
        assert self.process is not None
        code = self.process.returncode or 0
        return MeshFailed(
            f"{self.name} ended with exit code {code}; its log, {self.log}, ends with:\n"
            f"{self.last_words()}",
            code if code > 0 else 1,
        )

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join(f"  {line[:400]}" for line in lines)

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def end(self) -> None:
        """SIGTERM, a grace, SIGKILL."""
        self.signal(signal.SIGTERM)
        if self.process is None:
            return
        try:
            await asyncio.wait_for(self.process.wait(), END_GRACE_S)
        except TimeoutError:
            await self.kill()


class LocalMesh:
    """See the module. Use as an async context manager, or start and stop."""

    def __init__(self, directory: Path, options: LocalOptions | None = None) -> None:
        """directory: data, logs and configuration; kept from one start to the next."""
        self.directory = directory.resolve()
        self.options = options or LocalOptions()
        self.gateways: list[Child] = []
        self.replicas: list[Child] = []
        self.executors: list[Child] = []
        self.addresses: list[str] = []
        """Of the gateways."""
        self._lock = -1

    @property
    def address(self) -> str:
        """Of the (first) gateway."""
        return self.addresses[0]

    @property
    def children(self) -> list[Child]:
        """All processes, in the order in which they are started."""
        return [*self.executors, *self.replicas, *self.gateways]

    async def __aenter__(self) -> LocalMesh:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Start everything and wait until it serves. Raises MeshFailed; then nothing runs."""
        self._take_lock()
        try:
            self._configure()
            for child in self.children:
                await child.spawn()
            for child in self.children:
                progress(f"waiting for {child.name}")
                await child.serving()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End everything: the door first, so that nothing new comes in."""
        for group in (self.gateways, self.replicas + self.executors):
            await asyncio.gather(*(child.end() for child in group))
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            raise MeshFailed(
                f"{self.directory} is in use by another mesh: end that, or name another directory"
            ) from None

    def _configure(self) -> None:
        options = self.options
        certificates = self.directory / "certificates"
        shutil.rmtree(certificates, ignore_errors=True)
        authority = DevelopmentAuthority(certificates)
        ports = free_ports(options.replicas + options.executors + options.gateways)
        names = [f"{SHARD_ID}-{number}" for number in range(options.replicas)]
        fresh = not any((self.directory / name).exists() for name in names)
        peers = tuple(Peer(name, f"127.0.0.1:{ports.pop()}") for name in names)
        shard = ShardMembers(SHARD_ID, peers)
        self.replicas, self.executors, self.gateways, self.addresses = [], [], [], []
        for peer in peers:
            child_ready = str(self.directory / "run" / f"{peer.replica_id}.ready")
            scheduler = SchedulerConfig(
                replica_id=peer.replica_id,
                shard=shard,
                data_directory=str(self.directory / peer.replica_id),
                tls=authority.issue("scheduler", peer.replica_id),
                bootstrap=fresh,
                ready_file=child_ready,
                **dict(options.scheduler),
            )
            settings = Config(scheduler=scheduler)
            self.replicas.append(Child(peer.replica_id, "scheduler", self.directory, settings))
        for number in range(options.executors):
            name = f"executor-{number}"
            executor = ExecutorConfig(
                executor_id=name,
                listen=f"127.0.0.1:{ports.pop()}",
                shards=(shard,),
                data_directory=str(self.directory / name),
                tls=authority.issue("executor", name),
                runtime=options.runtime,
                ready_file=str(self.directory / "run" / f"{name}.ready"),
                **dict(options.executor),
            )
            self.executors.append(
                Child(name, "executor", self.directory, Config(executor=executor))
            )
        for number in range(options.gateways):
            name = f"gateway-{number}"
            port = ports.pop()
            address = f"127.0.0.1:{options.port if options.port and not number else port}"
            gateway = GatewayConfig(
                listen=address,
                shards=(shard,),
                tls=authority.issue("gateway", name),
                ready_file=str(self.directory / "run" / f"{name}.ready"),
            )
            self.gateways.append(Child(name, "gateway", self.directory, Config(gateway=gateway)))
            self.addresses.append(address)


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
        return ports


def _end_with_parent() -> None:
    """In the child, before exec: SIGTERM when the parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _without_empty(settings: Config) -> Any:
    """As plain data without None, which TOML cannot say."""
    return {key: value for key, value in msgspec.to_builtins(settings).items() if value is not None}
