"""The executor's process: readies the runtime, finds again what it held, works, ends in order."""

import asyncio
import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from ..mesh import process, telemetry, tls
from ..mesh.clock import SystemClock
from ..mesh.config import Config, ConfigError, ExecutorConfig
from ..mesh.limits import INTERNAL_MESSAGE_BYTES_MAX
from ..mesh.objects import Objects
from ..mesh.plans import RUNTIME
from ..proto.tickmesh.internal.v1 import executor_pb2_grpc
from .agent import Agent, Identity, Limits
from .clockwork import Clockwork
from .containerd.client import ContainerdClient
from .containerd.daemon import which
from .containerd.runtime import NAMESPACE, ContainerdRuntime
from .credentials import Credentials
from .errors import HostUnfit
from .inprocess import InProcessRuntime
from .limits import CREATES_AT_ONCE_MAX, LAYERS_AT_ONCE_MAX
from .outputs import Keeping
from .room import Capacity
from .sandbox import Runtime
from .service import ExecutorService
from .uplink import dialler
from .watch import Watcher

EXIT_UNFIT = 2
"""This host cannot do it: the same as for a wrong configuration, as repeating it does not help."""

MEMORY_SHARE = 3, 4
"""Of the host's memory, for attempts."""

CPU_SHARE = 32
"""Times the host's processors, for attempts: most wait for something most of the time, and what a
job may use at most is nothing that it is promised."""

RUNTIMES_MAX = 8
"""Each is tried out at the start, one after the other."""

LABELS_MAX = 32
LABEL_KEY_CHARACTERS_MAX = 63
LABEL_VALUE_CHARACTERS_MAX = 255
"""As of a job's labels."""

VERSION_TIMEOUT_S = 10.0

log = telemetry.logger(__name__)


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises what made the executor fail."""
    settings = config.executor
    assert settings is not None
    check(settings)
    directory = Path(settings.data_directory)
    spool = directory / "spool"
    await asyncio.to_thread(_empty, spool)
    clock = SystemClock()
    credentials = Credentials(clock, settings.tls)
    runtime: Runtime
    if settings.runtime == "inprocess":
        runtime = InProcessRuntime(directory / "inprocess", clock)
    else:
        if not 1 <= settings.layers_at_once <= LAYERS_AT_ONCE_MAX:
            raise ConfigError(f"executor.layers_at_once: 1 to {LAYERS_AT_ONCE_MAX}")
        runtime = ContainerdRuntime(
            host_name(settings.executor_id, directory),
            directory,
            settings.containerd_socket,
            settings.runtime_binary,
            settings.insecure_registries,
            clock,
            settings.egress,
            settings.user_namespaces,
            settings.image_cache_bytes,
            settings.containerd_runtime,
            settings.gate,
            settings.registry,
            credentials,
            settings.layers_at_once,
            settings.runtimes,
        )
    try:
        await runtime.start()
    except HostUnfit as error:
        print("this host cannot run containers:", file=sys.stderr)
        for missing in error.missing:
            print(f"  {missing}", file=sys.stderr)
        raise SystemExit(EXIT_UNFIT) from None
    try:
        await _serve(settings, runtime, credentials, directory, spool, clock, stop)
    finally:
        await runtime.close()


async def _serve(
    settings: ExecutorConfig,
    runtime: Runtime,
    credentials: Credentials,
    directory: Path,
    spool: Path,
    clock: SystemClock,
    stop: asyncio.Event,
) -> None:
    identity = Identity(
        executor_id=settings.executor_id,
        address=settings.listen,
        runtime=await _describe(runtime, settings),
        capacity=_capacity(settings, runtime),
        labels=dict(settings.labels),
    )
    processors = os.cpu_count() or 1
    # More at once than processors only makes each later, and one alone leaves gaps.
    at_once = min(max(2, processors), CREATES_AT_ONCE_MAX - 1)
    real = isinstance(runtime, ContainerdRuntime)
    limits = Limits(
        making_at_once=at_once if real else 0,
        newcomers_max=CREATES_AT_ONCE_MAX - at_once,
        spares_max=settings.spares_max,
        spares_memory_bytes=settings.spares_memory_bytes,
        keeping=_keeping(settings),
    )
    archive = None
    if settings.archive is not None:
        archive = Objects(settings.archive, "executor.archive")
    agent = Agent(
        identity,
        settings.shards,
        dialler(settings.tls),
        runtime,
        directory / "ledger.db",
        Clockwork(clock),
        limits,
        archive,
        credentials,
    )
    await agent.start()
    watcher = Watcher()
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", INTERNAL_MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", INTERNAL_MESSAGE_BYTES_MAX),
        )
    )
    service = ExecutorService(agent, runtime, spool, watcher)
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(service, server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_secure_port(settings.listen, tls.server_credentials(settings.tls))
    await server.start()
    await process.serving(health)
    process.settle()
    process.announce(settings.ready_file, settings.listen)
    try:
        await _until_ended(agent, runtime, stop)
    finally:
        await health.enter_graceful_shutdown()
        await server.stop(process.STOP_GRACE_S)
        watcher.close()


def _keeping(settings: ExecutorConfig) -> Keeping:
    """How long outputs stay here."""
    archive = settings.archive
    return Keeping(
        settings.output_retention_s if archive is None else settings.output_archived_s,
        settings.output_retention_s if archive is None else archive.retention_s,
        settings.output_bytes_max,
    )


async def _until_ended(agent: Agent, runtime: Runtime, stop: asyncio.Event) -> None:
    """Run the agent; end with it, or with a containerd that cannot be kept alive."""
    daemon = runtime.daemon if isinstance(runtime, ContainerdRuntime) else None
    working = asyncio.create_task(agent.run(stop))
    awaited: set[asyncio.Future[None]] = {working}
    if daemon is not None and daemon.failed is not None:
        awaited.add(daemon.failed)
    try:
        done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    for future in done:
        future.result()


def host_name(executor_id: str, directory: Path) -> str:
    """What an executor is called on its host: cgroups, namespaces and rules carry it, and are swept
    by it. Two meshes on one host may have executors of the same id, but not the same directory."""
    digest = hashlib.blake2b(str(directory.resolve()).encode(), digest_size=4).hexdigest()
    return f"{executor_id}-{digest}"


async def _describe(runtime: Runtime, settings: ExecutorConfig) -> str:
    """What runs the work, with versions, as "containerd 1.6.20, crun 1.8.1"."""
    if not isinstance(runtime, ContainerdRuntime):
        return settings.runtime
    socket = runtime.daemon.socket if runtime.daemon else settings.containerd_socket
    client = ContainerdClient(socket, NAMESPACE)
    try:
        containerd = await client.version()
    finally:
        await client.close()
    asked = await asyncio.create_subprocess_exec(
        which(runtime.binary) or runtime.binary,
        "--version",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await asyncio.wait_for(asked.communicate(), VERSION_TIMEOUT_S)
    except TimeoutError:
        asked.kill()
        output = b""
    version = re.search(rb"version (\S+)", output)
    suffix = f" {version[1].decode()}" if version else ""
    namespaces = "user namespaces" if runtime.id_base else "no user namespaces"
    return f"containerd {containerd}, {runtime.binary}{suffix}, {namespaces}"


def _empty(directory: Path) -> None:
    """Make a directory, without what an earlier process left in it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def check(settings: ExecutorConfig) -> None:
    """What a schema cannot say of a configuration. Raises ConfigError."""
    if settings.slot_count < 1 or settings.memory_bytes < 0 or settings.cpu_millis < 0:
        raise ConfigError(
            "executor.slot_count is at least 1, memory_bytes and cpu_millis at least 0"
        )
    if len(settings.runtimes) > RUNTIMES_MAX:
        raise ConfigError(
            f"executor.runtimes has {len(settings.runtimes)} runtimes; at most {RUNTIMES_MAX}"
        )
    for name, binary in settings.runtimes.items():
        if RUNTIME.fullmatch(name) is None or name == settings.containerd_runtime:
            raise ConfigError(
                f"executor.runtimes: {name!r}: another name of containerd's than that of "
                "containerd_runtime, as io.containerd.runsc.v1"
            )
        if binary and not binary.startswith("/"):
            raise ConfigError(f"executor.runtimes.{name}: {binary!r} is neither empty nor a path")
    if len(settings.labels) > LABELS_MAX:
        raise ConfigError(
            f"executor.labels has {len(settings.labels)} labels; at most {LABELS_MAX}"
        )
    for key, value in settings.labels.items():
        if not 0 < len(key) <= LABEL_KEY_CHARACTERS_MAX or len(value) > LABEL_VALUE_CHARACTERS_MAX:
            raise ConfigError(
                f"executor.labels: {key!r}: a key has 1 to {LABEL_KEY_CHARACTERS_MAX} characters, "
                f"a value at most {LABEL_VALUE_CHARACTERS_MAX}"
            )


def _capacity(settings: ExecutorConfig, runtime: Runtime) -> Capacity:
    """What there is for attempts. Work without containers takes neither memory nor a processor, and
    runs anywhere."""
    if not isinstance(runtime, ContainerdRuntime):
        return Capacity(
            settings.slot_count,
            settings.memory_bytes,
            settings.cpu_millis,
            runtimes=tuple(sorted(settings.runtimes)),
        )
    return Capacity(
        settings.slot_count,
        settings.memory_bytes or _memory_share(),
        settings.cpu_millis or (os.cpu_count() or 1) * 1_000 * CPU_SHARE,
        settings.egress is not None,
        runtime.runtimes,
        # Without a user namespace a capability is one of the host's.
        capabilities=bool(runtime.id_base),
    )


def _memory_share() -> int:
    """Three quarters of the host's memory, in bytes."""
    numerator, denominator = MEMORY_SHARE
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total * numerator // denominator
