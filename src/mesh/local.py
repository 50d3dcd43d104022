"""A whole mesh on this machine: its configuration, certificates and processes.

`tickmesh dev`, the tests and the benchmarks stand on it. The processes are the real ones, started
by `python -m`; nothing of them is imported here. They end with whoever started them, however that
ends. In the directory of a mesh:

    secrets.key     seals the customers' secrets
    operator.key    where callers are authenticated: the key that makes the first customers' keys
    lock            held (flock) by the one process that uses the directory
    shape.json      how many replicas the shard began with, and where those that there are now
                    listen; written when it first had a leader
    certificates/   new at each start
    config/ logs/ run/          one file a process
    shard-0-0/ executor-0/ ...  what each process stores
    archive/                    what executions wrote, if it is archived there
    shard-0-0/ executor-0/ registry/ ...  what each process stores
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import grpc.aio
import msgspec

from ..proto.tickmesh.v1 import cluster_pb2, cluster_pb2_grpc
from . import api_keys, launch
from .config import (
    REMOVED,
    Archive,
    Config,
    ExecutorConfig,
    GatewayConfig,
    OwnRegistry,
    Peer,
    RegistryDoor,
    SchedulerConfig,
    SecretKey,
    ShardMembers,
)
from .plans import Plan
from .registries import PROGRAM, Distribution
from .tls import DevelopmentAuthority

READY_TIMEOUT_S = 60.0
"""How long a process may take to serve: a private containerd's first start is the longest."""

READY_POLL_S = 0.01
"""Between looks at a ready file: short against what is waited for."""

END_GRACE_S = 15.0
"""Between SIGTERM and SIGKILL: executors end and remove their containers meanwhile."""

LOG_LINES_SHOWN = 12
"""Of a process that ended unasked: enough for a traceback's end."""

WHOLE_POLL_S = 0.1
"""Between questions whether the mesh is whole: an election takes 0.3 s and more."""

LOG_BYTES_MAX = 64 * 1024 * 1024
"""A process's log: looked at by people, and on a developer's disk."""

LOG_KEEP_BYTES = 1024 * 1024
"""What stays of the end of a log that reached its limit."""

LOG_LOOK_S = 10.0
"""Between looks at the sizes of logs."""

PORT_FIRST, PORT_LAST = 20_000, 32_000
"""Where free ports are looked for: below the range from which the kernel takes ports for outgoing
connections, so that none is taken between our look and the service's own bind."""

PORT_TRIES_MAX = 500
"""Looks for free ports: a machine where this many random ones are taken has another problem."""

SHARD_ID = "shard-0"
HOST = "127.0.0.1"


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
    plans: tuple[tuple[str, Plan], ...] = ()
    """As in Config."""
    executor: tuple[tuple[str, Any], ...] = ()
    """Further ExecutorConfig fields."""
    authentication: Literal["none", "api_keys"] = "none"
    """As in GatewayConfig; the operator's key is made at the first start."""
    archive: Archive | None = None
    """Of executors and gateways. A path that is not absolute is in the mesh's own directory."""
    registry: bool = False
    """An image registry of its own: needs CNCF Distribution (registries.PROGRAM) installed."""


class Shape(msgspec.Struct, frozen=True):
    """shape.json: of what shard the data in a mesh's directory is."""

    replicas: int
    """That it began with."""
    addresses: dict[str, str] = {}
    """By the id of each replica that there is or was."""


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
        self.configure(settings)
        self.process: asyncio.subprocess.Process | None = None
        self.within: tuple[str, ...] = ()
        """A program, by its path, and its arguments, that becomes this one elsewhere: nsenter."""

    def configure(self, settings: Config) -> None:
        """Write its configuration, for its next start."""
        self.settings = settings
        self._config.touch(mode=0o600)
        self._config.write_bytes(msgspec.toml.encode(_without_empty(settings)))

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process is not None
        return self.process.pid

    @property
    def program(self) -> tuple[str, ...]:
        """What it runs."""
        return (sys.executable, "-m", f"tickmesh.{self.service}", "--config", str(self._config))

    def serves(self) -> bool:
        """Whether it takes calls."""
        return self.ready.exists()

    async def spawn(self) -> None:
        """Start the process, without waiting until it serves."""
        self.ready.unlink(missing_ok=True)
        program = self.program
        launcher = (sys.executable, "-I", "-S", launch.__file__)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(*launcher, str(os.getpid()), str(int(signal.SIGTERM)), *self.within, *program),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on, in the right order
            )

    async def serving(self) -> None:
        """Wait until it serves. Raises MeshFailed."""
        assert self.process is not None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not self.serves():
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
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        return MeshFailed(
            f"{self.name} {how}; its log, {self.log}, ends with:\n{self.last_words()}",
            code if code > 0 else 1,
        )

    def last_words(self) -> str:
        """The end of its log."""
        lines = tail(self.log, 16 * 1024).splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join(f"  {line[:400]}" for line in lines)

    def trim_log(self) -> None:
        """Keep the log under its limit: of one that reached it, the end stays."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            kept = tail(self.log, LOG_KEEP_BYTES)
            with self.log.open("r+") as file:  # in place: the process appends to this very file
                file.truncate(0)
                file.write(f"... (older lines were dropped at {LOG_BYTES_MAX} bytes)\n{kept}")

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


class RegistryChild(Child):
    """The mesh's image registry: CNCF Distribution, which knows nothing of us."""

    def __init__(self, name: str, directory: Path, distribution: Distribution) -> None:
        self._distribution = distribution
        super().__init__(name, PROGRAM, directory, Config())
        self._config = self._config.with_suffix(".yml")
        self._config.touch(mode=0o600)
        self._config.write_text(distribution.document())

    def configure(self, settings: Config) -> None:
        """Its configuration is its own."""
        self.settings = settings

    @property
    def program(self) -> tuple[str, ...]:
        """What it runs."""
        path = shutil.which(PROGRAM)
        if path is None:
            raise MeshFailed(f"{PROGRAM} is not installed: install it, or do without a registry", 2)
        return (path, "serve", str(self._config))

    def serves(self) -> bool:
        """Whether it takes connections."""
        host, _, port = self._distribution.listen.rpartition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0


class LocalMesh:
    """See the module. Use as an async context manager, or start and stop."""

    def __init__(self, directory: Path, options: LocalOptions | None = None) -> None:
        """directory: data, logs and configuration; kept from one start to the next."""
        self.directory = directory.resolve()
        self.options = options or LocalOptions()
        self.gateways: list[Child] = []
        self.replicas: list[Child] = []
        self.executors: list[Child] = []
        self.registries: list[Child] = []
        self.registry_address = ""
        """Of its own image registry, if it has one."""
        self.addresses: list[str] = []
        """Of the gateways."""
        self._authority: DevelopmentAuthority | None = None
        self._lock = -1

    @property
    def address(self) -> str:
        """Of the (first) gateway."""
        return self.addresses[0]

    @property
    def operator_key_file(self) -> Path:
        """Holds the operator's key, if callers are authenticated."""
        return self.directory / "operator.key"

    @property
    def children(self) -> list[Child]:
        """All processes, in the order in which they are started."""
        return [*self.registries, *self.executors, *self.replicas, *self.gateways]

    async def __aenter__(self) -> LocalMesh:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Start everything and wait until the mesh is whole: its shard has a leader, its executors
        are attached. `progress` hears what is waited for. Raises MeshFailed; then nothing runs.
        """
        self._take_lock()
        try:
            self._check_shape()
            await self._freed()
            self._configure()
            for child in self.children:
                await child.spawn()
            await self._all_serve(progress)
            if self.gateways:
                await _first_failure_ends(self.ended_unasked(), self._whole(progress))
            self._settle()
        except BaseException:
            await self.stop()
            raise

    def further_replica(self, name: str) -> Child:
        """One replica more, not started: without data, and no member yet (see AddReplica)."""
        assert self._authority is not None, "only of a mesh that was started"
        settings = self.replicas[0].settings.scheduler
        assert settings is not None
        peers = {peer.replica_id: peer for peer in settings.shard.replicas}
        for child in self.replicas:
            assert child.settings.scheduler is not None
            peers |= {peer.replica_id: peer for peer in child.settings.scheduler.shard.replicas}
        peers[name] = Peer(name, f"{HOST}:{free_ports(1)[0]}")
        self._keep_shape(peers.values())
        child = Child(
            name,
            "scheduler",
            self.directory,
            Config(
                scheduler=msgspec.structs.replace(
                    settings,
                    replica_id=name,
                    shard=ShardMembers(SHARD_ID, tuple(peers.values())),
                    data_directory=str(self.directory / name),
                    tls=self._authority.issue("scheduler", name),
                    bootstrap=False,
                    ready_file=str(self.directory / "run" / f"{name}.ready"),
                ),
                plans=self.replicas[0].settings.plans,
            ),
        )
        self.replicas.append(child)
        return child

    def _is_removed(self, replica_id: str) -> bool:
        """Whether its shard has removed it, and it has heard of it."""
        return (self.directory / replica_id / REMOVED).exists()

    def _leaves(self, child: Child) -> bool:
        """Whether a process that has ended is a replica that its shard has removed: it is no part
        of the mesh any more."""
        if child not in self.replicas or not self._is_removed(child.name):
            return False
        self.replicas.remove(child)
        return True

    async def stop(self) -> None:
        """End everything: the door first, so that nothing new comes in; then the executors, which
        report what they ended; then those to whom they report."""
        for group in (self.gateways, self.executors, self.replicas, self.registries):
            await asyncio.gather(*(child.end() for child in group))
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def ended_unasked(self) -> None:
        """Wait until a process ends, which nobody should have asked to; raises its MeshFailed. A
        replica that its shard has removed may end. Looks after the logs meanwhile."""
        children = {
            asyncio.create_task(child.process.wait()): child
            for child in self.children
            if child.process is not None
        }
        try:
            while True:
                done, _ = await asyncio.wait(
                    children, timeout=LOG_LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    child = children.pop(task)
                    if not self._leaves(child):
                        raise child.failed()
                for child in children.values():
                    child.trim_log()
        finally:
            for task in children:
                task.cancel()

    async def _all_serve(self, progress: Callable[[str], None]) -> None:
        waiting = {asyncio.create_task(child.serving()): child for child in self.children}
        try:
            while waiting:
                progress(f"waiting for {', '.join(c.name for c in waiting.values())}")
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    child = waiting.pop(task)
                    if task.exception() is None or not self._leaves(child):
                        task.result()
        finally:
            for task in waiting:
                task.cancel()

    async def _whole(self, progress: Callable[[str], None]) -> None:
        """Ask the gateway until every shard has a leader and every executor is attached."""
        missing = "an answer of the gateway"
        metadata: tuple[tuple[str, str], ...] = ()
        if self.options.authentication == "api_keys":
            metadata = (("authorization", f"Bearer {self.operator_key_file.read_text()}"),)
        async with grpc.aio.insecure_channel(self.address) as channel:
            cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
            try:
                async with asyncio.timeout(READY_TIMEOUT_S):
                    while True:
                        progress(f"waiting for {missing}")
                        try:
                            seen = await cluster.GetCluster(
                                cluster_pb2.GetClusterRequest(),
                                timeout=READY_TIMEOUT_S,
                                metadata=metadata,
                            )
                            missing = self._missing(seen)
                        except grpc.aio.AioRpcError as error:
                            missing = f"the mesh ({error.details()})"
                        if not missing:
                            return
                        await asyncio.sleep(WHOLE_POLL_S)
            except TimeoutError:
                raise MeshFailed(
                    f"the mesh is not whole after {READY_TIMEOUT_S:.0f} s: it still waits for "
                    f"{missing}; the logs are in {self.directory / 'logs'}"
                ) from None

    def _missing(self, seen: cluster_pb2.Cluster) -> str:
        """What a mesh that is whole has, and this one has not yet; "" if nothing."""
        for shard in seen.shards:
            if not any(replica.leader for replica in shard.replicas):
                return f"a leader of {shard.shard_id}"
        attached = {executor.executor_id for executor in seen.executors}
        absent = [child.name for child in self.executors if child.name not in attached]
        return f"{', '.join(absent)} to attach" if absent else ""

    @property
    def _shape(self) -> Path:
        return self.directory / "shape.json"

    def _check_shape(self) -> None:
        """Refuse another number of replicas than the data is of: it would be another shard."""
        if self._shape.exists():
            made = self._read_shape().replicas
            if made != self.options.replicas:
                raise MeshFailed(
                    f"the data in {self.directory} is of a shard with {made} "
                    f"replica{'s' if made != 1 else ''}, not {self.options.replicas}: ask for "
                    f"{made}, or name another directory",
                    2,
                )

    def _read_shape(self) -> Shape:
        return msgspec.json.decode(self._shape.read_bytes(), type=Shape)

    def _keep_shape(self, peers: Iterable[Peer]) -> None:
        addresses = {peer.replica_id: peer.address for peer in peers}
        write_whole(self._shape, msgspec.to_builtins(Shape(self.options.replicas, addresses)))

    def _settle(self) -> None:
        """The shard has begun its life: from now on a replica without data must not vote."""
        for child in self.replicas:
            assert child.settings.scheduler is not None
            settled = msgspec.structs.replace(child.settings.scheduler, bootstrap=False)
            child.configure(msgspec.structs.replace(child.settings, scheduler=settled))
        self._keep_shape(settled.shard.replicas)

    def _kept_addresses(self) -> dict[str, str]:
        kept = self._read_shape().addresses if self._shape.exists() else {}
        return {name: address for name, address in kept.items() if not self._is_removed(name)}

    async def _freed(self) -> None:
        """Waits a while for those who end: processes of a mesh that was itself killed."""
        ports = [int(each.rpartition(":")[2]) for each in self._kept_addresses().values()]
        looks = round(END_GRACE_S / WHOLE_POLL_S)
        while looks and not all(map(is_free, ports)):
            looks -= 1
            await asyncio.sleep(WHOLE_POLL_S)

    def _peers(self) -> tuple[Peer, ...]:
        """The replicas that there are. They keep their addresses, which their shard's own list has
        once it was changed. Raises MeshFailed."""
        addresses = self._kept_addresses()
        if not addresses:
            names = [f"{SHARD_ID}-{number}" for number in range(self.options.replicas)]
            ports = free_ports(len(names))
            return tuple(Peer(n, f"{HOST}:{p}") for n, p in zip(names, ports, strict=True))
        for name, address in addresses.items():
            port = int(address.rpartition(":")[2])
            if not is_free(port):
                raise MeshFailed(
                    f"{name} listens at {address}, as the shard's list of replicas says, and "
                    "somebody else does so now: end that, or name another directory"
                )
        return tuple(Peer(name, address) for name, address in addresses.items())

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
        authority = self._authority = DevelopmentAuthority(certificates)
        archive = options.archive
        if archive is not None and "://" not in archive.url:
            archive = msgspec.structs.replace(archive, url=str(self.directory / archive.url))
        fresh = not self._shape.exists()
        peers = self._peers()
        taken = {int(peer.address.rpartition(":")[2]) for peer in peers}
        ports = free_ports(options.executors + options.gateways, taken)
        shard = ShardMembers(SHARD_ID, peers)
        self.replicas, self.executors, self.gateways, self.addresses = [], [], [], []
        own, registry_door = self._configure_registry(authority)
        secrets = self.directory / "secrets.key"
        _keep(secrets, lambda: base64.b64encode(os.urandom(32)).decode())
        for peer in peers:
            child_ready = str(self.directory / "run" / f"{peer.replica_id}.ready")
            scheduler = SchedulerConfig(
                replica_id=peer.replica_id,
                shard=shard,
                data_directory=str(self.directory / peer.replica_id),
                tls=authority.issue("scheduler", peer.replica_id),
                bootstrap=fresh,
                secret_keys=(SecretKey("local", str(secrets)),),
                ready_file=child_ready,
                **dict(options.scheduler),
            )
            settings = Config(scheduler=scheduler, plans=dict(options.plans))
            self.replicas.append(Child(peer.replica_id, "scheduler", self.directory, settings))
        operators: tuple[str, ...] = ()
        if options.authentication == "api_keys":
            operators = (api_keys.digest(_operator_key(self.operator_key_file)).hex(),)
        # Work without containers takes none.
        real = options.runtime != "inprocess"
        memory_bytes = _memory_share(options.executors) if real else 0
        for number in range(options.executors):
            name = f"executor-{number}"
            executor = ExecutorConfig(
                executor_id=name,
                listen=f"{HOST}:{ports.pop()}",
                shards=(shard,),
                data_directory=str(self.directory / name),
                tls=authority.issue("executor", name),
                runtime=options.runtime,
                archive=archive,
                ready_file=str(self.directory / "run" / f"{name}.ready"),
                registry=own,
                **{"memory_bytes": memory_bytes, **dict(options.executor)},
            )
            self.executors.append(
                Child(name, "executor", self.directory, Config(executor=executor))
            )
        for number in range(options.gateways):
            name = f"gateway-{number}"
            port = ports.pop()
            address = f"{HOST}:{options.port if options.port and not number else port}"
            gateway = GatewayConfig(
                listen=address,
                shards=(shard,),
                tls=authority.issue("gateway", name),
                authentication=options.authentication,
                operator_key_hashes=operators,
                archive=archive,
                registry=own,
                registry_door=registry_door,
                ready_file=str(self.directory / "run" / f"{name}.ready"),
            )
            if registry_door is not None:  # the registry knows the first gateway's alone
                other = f"{HOST}:{free_ports(1)[0]}"
                registry_door = msgspec.structs.replace(registry_door, listen=other)
            self.gateways.append(Child(name, "gateway", self.directory, Config(gateway=gateway)))
            self.addresses.append(address)

    def _configure_registry(
        self, authority: DevelopmentAuthority
    ) -> tuple[OwnRegistry | None, RegistryDoor | None]:
        """The registry's process, if there is to be one: what it is, and the port of the first
        gateway that it asks."""
        self.registries, self.registry_address = [], ""
        if not self.options.registry:
            return None, None
        listen, door = (f"{HOST}:{port}" for port in free_ports(2))
        self.registry_address = listen
        secret = self.directory / "certificates" / "events.secret"
        secret.touch(mode=0o600)
        secret.write_text(os.urandom(32).hex())
        token_key = token_certificate = ""
        if self.options.authentication == "api_keys":
            issued = authority.issue_for_tokens("registry-tokens")
            token_key, token_certificate = issued.key, issued.certificate
        distribution = Distribution(
            listen=listen,
            storage=self.directory / "registry",
            gateway=f"http://{door}",
            token_certificate=token_certificate,
            events_secret=secret.read_text(),
        )
        self.registries.append(RegistryChild("registry", self.directory, distribution))
        return (
            OwnRegistry(listen, plain=True),
            RegistryDoor(door, token_key, token_certificate, str(secret)),
        )


def _operator_key(path: Path) -> str:
    """The key in a file that only we can read, made at first use."""
    return _keep(path, lambda: api_keys.make_operator(os.urandom(api_keys.SECRET_BYTES)))


def _keep(path: Path, make: Callable[[], str]) -> str:
    """What is in a file that only we can read, made at first use."""
    if not path.exists():
        scratch = path.with_name(path.name + ".tmp")
        scratch.unlink(missing_ok=True)
        scratch.touch(mode=0o600)
        scratch.write_text(make())
        scratch.rename(path)
    return path.read_text()


def _memory_share(executors: int) -> int:
    """An executor's part of the host's memory; 0 (its own default) where it is alone, or none."""
    if executors <= 1:
        return 0
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return host * 3 // 4 // executors


def is_free(port: int) -> bool:
    """Whether nobody listens on a loopback port. (A plain bind also finds those who share it.)"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_ports(count: int, but: Collection[int] = ()) -> list[int]:
    """Different loopback ports that nobody listens on now. Raises MeshFailed."""
    found: set[int] = set()
    for _ in range(PORT_TRIES_MAX):
        if len(found) == count:
            return list(found)
        port = random.randint(PORT_FIRST, PORT_LAST)
        if port not in but and is_free(port):
            found.add(port)
    raise MeshFailed(f"no {count} free ports between {PORT_FIRST} and {PORT_LAST} on {HOST}")


def tail(path: Path, size_bytes: int) -> str:
    """The last bytes of a file, from the beginning of a line, as text; "" if there is none."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - size_bytes)
            file.seek(start)
            content = file.read(size_bytes)
    except OSError:
        return ""
    if start:
        content = content.partition(b"\n")[2]
    return content.decode("utf-8", "replace")


def write_whole(path: Path, value: Any) -> None:
    """Write JSON so that nobody ever reads half of it."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    scratch.rename(path)


async def _first_failure_ends(*parts: Coroutine[Any, Any, None]) -> None:
    """Run until one of the parts has ended; raises what it raised."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _without_empty(settings: Any) -> Any:
    """As plain data without None, which TOML cannot say."""
    plain = msgspec.to_builtins(settings)
    if not isinstance(plain, dict):
        return plain
    return {key: _without_empty(value) for key, value in plain.items() if value is not None}
