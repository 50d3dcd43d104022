"""The real runtime: sandboxes in containerd."""

import asyncio
import contextlib
import dataclasses
import json
import os
import platform
import resource
import shutil
import tempfile
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...mesh import telemetry
from ...mesh.clock import Clock, SystemClock
from ...mesh.config import Egress, OwnRegistry
from ...proto.containerd import containers_pb2, task_types_pb2
from .. import accounting, archive, gate, limits, shim, users, volatile
from ..credentials import Credentials
from ..errors import (
    ContainerdError,
    ContainerdNotFound,
    ContainerdUnavailable,
    ExecutorError,
    HostUnfit,
    ImageError,
    ImageReason,
    SandboxError,
    SpareUnfit,
)
from ..gate.exchange import Exchange
from ..sandbox import ATTEMPT_ID, NETWORK_EGRESS, NETWORK_NONE, Exit, Work, mould
from ..spec import OPEN_FILES_HARD, SandboxSpec, build
from ..watch import Watcher
from .client import (
    BINARIES,
    RUNC_LIKE,
    RUNC_RUNTIME,
    RUNTIME,
    SPEC_TYPE,
    ContainerdClient,
    runc_options,
)
from .daemon import Daemon, which
from .direct import COMMAND as DIRECT_COMMAND
from .direct import DirectExchange
from .images import Image, ImageStore
from .pulls import Puller
from .sandbox import ContainerdSandbox, Paths, Record

log = telemetry.logger(__name__)

NAMESPACE = "tickmesh"
LABEL_OWNER = "tickmesh.io/owner"
LABEL_CUSTOMER = "tickmesh.io/customer"
SPARE_PREFIX = "spare-"  # of ids; an attempt's begin with a hexadecimal number
PROBE_IMAGE = "tickmesh.internal/probe"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROBE_DEADLINE_S = 30.0
GATES = ("auto", "off")
# What is tried in turn for each setting: the host's id of a sandbox's root, 0 for no namespace.
USER_NAMESPACES = {"required": (limits.ID_BASE,), "auto": (limits.ID_BASE, 0), "off": (0,)}

if TYPE_CHECKING:
    from ..network.pool import EgressPool


def _egress_pool(owner: str, egress: Egress | None) -> "EgressPool | None":
    """The pool, where there is egress: its netlink library takes 0.6 s to import, which an executor
    that has no use for it would lose at every start."""
    if egress is None:
        return None
    from ..network.pool import EgressPool

    return EgressPool(owner, egress)


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What runs a sandbox."""

    name: str
    """RUNTIME, or the runtime's as containerd knows it."""
    binary: str
    """Of RUNC_LIKE: the program that it runs."""
    direct: bool
    """Its sandboxes start when they are due: see direct.py."""

    @property
    def runs_at_create(self) -> bool:
        """Whether its sandboxes' first process, the gate, needs no start of its own."""
        return self.name == RUNTIME and not self.direct


class ContainerdRuntime:
    """Implements sandbox.Runtime on a containerd that is there, or on a private one."""

    def __init__(
        self,
        owner: str,
        data_directory: Path,
        containerd_socket: str = "",
        runtime_binary: str = "auto",
        insecure_registries: tuple[str, ...] = (),
        clock: Clock | None = None,
        egress: Egress | None = None,
        user_namespaces: str = "auto",
        image_cache_bytes: int = 0,
        containerd_runtime: str = RUNTIME,
        gate: str = "auto",
        own_registry: OwnRegistry | None = None,
        credentials: Credentials | None = None,
        layers_at_once: int = limits.LAYERS_AT_ONCE,
        runtimes: Mapping[str, str] | None = None,
    ) -> None:
        """`owner`: the executor's id; what it makes carries it, and it touches nothing else.

        `user_namespaces`: one of USER_NAMESPACES. `image_cache_bytes`: see ImageStore.trim.
        `containerd_runtime`: RUNTIME, or containerd's name of what runs sandboxes. `gate`: one of
        GATES. `own_registry`: the mesh's; `credentials`: for registries that want a login.
        `runtimes`: further ones, as in ExecutorConfig.
        """
        self._owner = owner
        self._data_directory = data_directory.absolute()
        self._sandboxes_shown = self._data_directory / "sandboxes"
        """A link, for people who look for them."""
        self._sandboxes = volatile.directory_of(self._sandboxes_shown)
        self._socket = containerd_socket
        self._runtime_binary = runtime_binary
        self._containerd_runtime = containerd_runtime
        self._gate = gate
        # Only those that we know are known to share the host's FIFOs with their sandboxes.
        self._direct = (
            gate == "off"
            or containerd_runtime not in RUNC_LIKE
            or runtime_binary not in ("auto", *BINARIES)
        )
        self._further = {
            name: Kind(RUNC_RUNTIME if path else name, path, True)
            for name, path in (runtimes or {}).items()
        }
        self._user_namespaces = user_namespaces
        self._image_cache_bytes = image_cache_bytes
        self._insecure_registries = frozenset(insecure_registries)
        self._clock = clock or SystemClock()
        self._own_registry = own_registry
        self._credentials = credentials or Credentials(self._clock)
        self._layers_at_once = layers_at_once
        self._cgroup_parent = f"/tickmesh-{owner}"
        self._swap_accounting = accounting.swap_accounting()
        # Without CAP_SYS_RESOURCE nobody may be given more than we have ourselves.
        self._open_files_max = min(OPEN_FILES_HARD, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        self._creates = asyncio.Semaphore(limits.CREATES_AT_ONCE_MAX)
        self._deletes = asyncio.Semaphore(limits.DELETES_AT_ONCE_MAX)
        self._removals: set[asyncio.Task[None]] = set()
        self._views: Counter[str] = Counter()  # of sandboxes that are being made
        self._users: dict[tuple[str, str], tuple[int, int]] = {}
        self._egress = _egress_pool(owner, egress)
        self.daemon: Daemon | None = None
        """The private containerd; None when one was given."""
        self._state_root = ""
        self._client: ContainerdClient
        self._images: ImageStore
        self._puller: Puller | None = None
        self._watcher: Watcher
        self.binary = ""
        """What runs containers: "crun" or "runc"."""
        self.id_base = 0
        """The host's id that is root in a sandbox; 0: this host gives no user namespaces."""

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The names of the runtimes that work may ask for."""
        # Whatever a path leads to is not what containerd's name stands for.
        known = self._runtime_binary in ("auto", *BINARIES)
        return tuple(sorted([*self._further, *([self._containerd_runtime] if known else [])]))

    def _kind(self, runtime: str) -> Kind:
        """What runs work that asks for a runtime, or for none ("")."""
        if runtime in self._further:
            return self._further[runtime]
        if runtime and runtime not in self.runtimes:
            raise SandboxError(f"this executor has no runtime {runtime}")
        return Kind(self._containerd_runtime, self.binary, self._direct)

    # Life.

    async def start(self) -> None:
        """See sandbox.Runtime. Sandboxes of an earlier process stay until `adopt` or `sweep`."""
        if self._runtime_binary not in ("auto", *BINARIES) and not self._runtime_binary.startswith(
            "/"
        ):
            raise HostUnfit(
                [f"runtime_binary is {self._runtime_binary!r}, not auto, crun, runc or a path"]
            )
        if self._gate not in GATES:
            raise HostUnfit([f"gate is {self._gate!r}, not {' or '.join(GATES)}"])
        if self._user_namespaces not in USER_NAMESPACES:
            raise HostUnfit(
                [f"user_namespaces is {self._user_namespaces!r}, not {', '.join(USER_NAMESPACES)}"]
            )
        if self._socket and not await asyncio.to_thread(Path(self._socket).is_socket):
            raise HostUnfit([f"there is no socket at {self._socket} (is containerd running?)"])
        await asyncio.to_thread(self._make_directories)
        try:
            await asyncio.to_thread(accounting.weigh, self._cgroup_parent, limits.SANDBOXES_WEIGHT)
        except OSError as error:
            log.warning("sandboxes weigh as much as one process", error=str(error))
        if not self._socket:
            self.daemon = Daemon(
                self._data_directory / "containerd",
                {self._containerd_runtime, *(kind.name for kind in self._further.values())},
            )
            await self.daemon.start()
            self._socket = self.daemon.socket
            self._state_root = self.daemon.runtime_state
        self._client = ContainerdClient(self._socket, NAMESPACE, runtime_root=self._state_root)
        self._images = ImageStore(
            self._client,
            owner=self._owner,
            cache_bytes=self._image_cache_bytes,
            layers_at_once=self._layers_at_once,
        )
        self._puller = Puller(
            self._images,
            self._insecure_registries,
            self._own_registry,
            self._credentials,
            self._trim,
        )
        self._watcher = Watcher()
        try:
            await self._client.connected(limits.DAEMON_START_DEADLINE_S)
            await self._images.sweep()
            await self._choose_binary()
            await self._try_further()
            if self._egress:
                await self._egress.start()
        except BaseException as error:
            await self.close()
            if isinstance(error, ContainerdUnavailable):
                raise HostUnfit([str(error)]) from error
            raise

    async def close(self) -> None:
        """See sandbox.Runtime."""
        if self._puller is not None:
            await self._puller.close()
        for task in self._removals:
            task.cancel()
        await asyncio.gather(*self._removals, return_exceptions=True)
        with contextlib.suppress(ExecutorError):
            await self.sweep(frozenset())
        if self._egress:
            await self._egress.close(remove=True)
        self._watcher.close()
        await self._client.close()
        if self.daemon is not None:
            await self.daemon.close()
            await asyncio.to_thread(self._remove_leftovers)
        await asyncio.to_thread(accounting.remove, self._cgroup_parent)
        await asyncio.to_thread(self._remove_directories)

    def _make_directories(self) -> None:
        (self._data_directory / "output").mkdir(mode=0o700, parents=True, exist_ok=True)
        volatile.make(self._sandboxes)
        self._sandboxes.chmod(0o700)
        if self._direct or self._further:
            _open_to_sandboxes(self._sandboxes)
        shown = self._sandboxes_shown
        if shown.is_dir() and not shown.is_symlink():
            try:
                shown.rmdir()  # an earlier version had them there
            except OSError as error:
                raise HostUnfit(
                    [f"{shown} has sandboxes of an earlier version: drain the executor with that"]
                ) from error
        shown.unlink(missing_ok=True)
        shown.symlink_to(self._sandboxes)

    def _remove_directories(self) -> None:
        """What is still in one of them stays with it."""
        volatile.remove(self._sandboxes)
        if not self._sandboxes.exists():
            self._sandboxes_shown.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """What a runtime was killed over half-way, and containerd then refused to remove: with the
        daemon gone, its processes and files are all that there is of it."""
        for directory in self._sandboxes.iterdir():
            accounting.remove(f"{self._cgroup_parent}/{directory.name}")
            shutil.rmtree(directory, ignore_errors=True)

    async def detach(self) -> None:
        """Ends this object and leaves everything running for the executor's next process."""
        if self._egress:
            await self._egress.close(remove=False)
        self._watcher.close()
        await self._client.close()
        if self.daemon is not None:
            self.daemon.detach()

    async def _choose_binary(self) -> None:
        """Takes the first of crun and runc that really runs a sandbox, and remembers it."""
        memory = self._data_directory / "runtime.json"
        candidates: tuple[str, ...] = (self._containerd_runtime,)  # which needs no other program
        if self._containerd_runtime in RUNC_LIKE:
            candidates = BINARIES if self._runtime_binary == "auto" else (self._runtime_binary,)
        modes = [
            (binary, id_base)
            for id_base in USER_NAMESPACES[self._user_namespaces]
            for binary in candidates
        ]
        version = await self._client.version()
        host = {
            "boot": _boot_id(),
            "containerd": version,
            # Ours keeps from a runtime what another one would let it do: see launch.py.
            "socket": self._socket,
            "shim": self._containerd_runtime,
        }
        tested = await asyncio.to_thread(_remembered, memory, host)
        trouble: list[str] = []
        if tested not in modes:
            tested = await self._first_that_works(modes, trouble)
            await asyncio.to_thread(_remember, memory, host, *tested)
        self.binary, self.id_base = tested
        self._images.id_base = self.id_base
        if not self.id_base:
            log.warning(
                "sandboxes have no user namespaces: their root is the host's, without capabilities",
                configured=self._user_namespaces,
                trouble=trouble,
            )

    async def _first_that_works(
        self, modes: list[tuple[str, int]], trouble: list[str]
    ) -> tuple[str, int]:
        """Fills `trouble` with why those before it do not. Raises HostUnfit."""
        for binary, id_base in modes:
            self.binary, self.id_base = binary, id_base
            self._images.id_base = id_base
            what = f"{binary} with{'' if id_base else 'out'} user namespaces"
            try:
                await self._install_probe()
                ended = await self._probe()
                if ended.exit_code == 0:
                    return binary, id_base
                trouble.append(f"{what} runs, but a sandbox exits with {ended.exit_code}")
            except (ExecutorError, TimeoutError) as error:
                trouble.append(f"{what} cannot run a sandbox: {error}")
        raise HostUnfit(trouble)

    async def _try_further(self) -> None:
        """Runs a sandbox with each further runtime. Raises HostUnfit."""
        if self._further:
            await self._install_probe()
        for name in self._further:
            how = f"{name} with{'' if self.id_base else 'out'} user namespaces"
            try:
                ended = await self._probe(name)
            except (ExecutorError, TimeoutError) as error:
                where = f"{self._data_directory} and what is above it must be open to others (+x)"
                reach = f" (the cause may be that {where})" if self.id_base else ""
                raise HostUnfit([f"{how} cannot run a sandbox{reach}: {error}"]) from error
            if ended.exit_code:
                raise HostUnfit([f"{how} runs, but a sandbox exits with {ended.exit_code}"])

    async def _install_probe(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "probe.tar")
            process = archive.Process(command=(gate.PROGRAM, "probe"))
            archive.files_image(path, {"/probe": archive.File(b"")}, process)
            await self._images.install(PROBE_IMAGE, archive.ArchiveSource(path))

    async def _probe(self, runtime: str = "") -> Exit:
        name = f"probe-{self._clock.now_ns()}"
        work = Work(attempt_id=name, customer="", image=PROBE_IMAGE, runtime=runtime)
        owner = _owner_of_null()
        sandbox = await self.prepare(work)
        try:
            async with asyncio.timeout(PROBE_DEADLINE_S):
                await sandbox.start()
                ended = await sandbox.wait()
        finally:
            await sandbox.delete()
            await self.discard_output(name)
        if _owner_of_null() != owner:
            os.chown(os.devnull, *owner)
            raise SandboxError(
                "it makes the host's /dev/null its sandboxes' own, which may close it to all: "
                "use runc or a newer crun there, or let the executor start a containerd (leave "
                "containerd_socket out)"
            )
        return ended

    # Images.

    async def ensure_image(self, reference: str, customer: str = "") -> Image:
        """See sandbox.Runtime. Many who ask at once share one pull."""
        assert self._puller is not None, "it was started"
        return await self._puller.image(reference, customer)

    async def refresh_image(self, reference: str) -> Image:
        """See sandbox.Runtime."""
        assert self._puller is not None, "it was started"
        return await self._puller.refresh(reference)

    async def import_image(self, reference: str, archive_path: Path) -> Image:
        """See sandbox.Runtime."""
        try:
            return await self._images.install(reference, archive.ArchiveSource(archive_path))
        except ContainerdError as error:
            raise SandboxError(f"image {reference} cannot be stored: {error}") from error

    async def list_images(self) -> list[str]:
        """See sandbox.Runtime."""
        try:
            return [name for name in await self._images.list() if name != PROBE_IMAGE]
        except ContainerdError as error:
            raise SandboxError(str(error)) from error

    async def delete_image(self, reference: str) -> None:
        """See sandbox.Runtime."""
        try:
            await self._images.delete(reference)
        except ContainerdError as error:
            raise SandboxError(f"image {reference} cannot be deleted: {error}") from error

    async def _trim(self, pulled: Image) -> None:
        """Makes room in the cache after a pull, for which it came too late: it may be over its
        limit by what is being pulled."""

        async def in_use() -> set[str]:
            containers = await self._client.list_containers(LABEL_OWNER, self._owner)
            held = {container.snapshot_key for container in containers}
            return held | {pulled.view} | {view for view, n in self._views.items() if n}

        try:
            deleted = await self._images.trim(in_use)
        except ContainerdError as error:
            log.warning("the image cache cannot be trimmed", error=str(error))
            return
        if deleted:
            log.info("images deleted from the cache", images=deleted)

    # Sandboxes.

    async def prepare(self, work: Work) -> ContainerdSandbox:
        """See sandbox.Runtime."""
        if not ATTEMPT_ID.fullmatch(work.attempt_id):
            raise SandboxError(
                f"attempt id {work.attempt_id!r} does not match {ATTEMPT_ID.pattern}"
            )
        image = await self.ensure_image(work.image, work.customer)
        return await self._make(work, image, _message(work, image, work.attempt_id))

    async def prepare_spare(self, mould: Work) -> "ContainerdSpare":
        """See sandbox.Runtime."""
        work = dataclasses.replace(mould, attempt_id=f"{SPARE_PREFIX}{uuid.uuid4().hex}")
        image = await self.ensure_image(work.image, work.customer)
        return ContainerdSpare(self, mould, image, await self._make(work, image, b""))

    async def _make(self, work: Work, image: Image, message: bytes) -> ContainerdSandbox:
        self._views[image.view] += 1  # so that the cache keeps it until the container does
        try:
            return await self._make_of(work, image, message)
        finally:
            self._views[image.view] -= 1
            self._views += Counter()  # drops the zeros

    async def _make_of(self, work: Work, image: Image, message: bytes) -> ContainerdSandbox:
        kind = self._kind(work.runtime)
        uid, gid = await self._user(work, image)
        paths = self.paths(work.attempt_id)
        record = Record(
            container_id=work.attempt_id,
            cgroup_path=f"{self._cgroup_parent}/{work.attempt_id}",
            created_ns=self._clock.now_ns(),
        )
        exchange = (
            DirectExchange(paths.exchange, self._clock, self._client, record.container_id)
            if kind.direct
            else Exchange(paths.exchange, self._clock)
        )
        sandbox = ContainerdSandbox(
            self._client,
            self._watcher,
            self._clock,
            self._deletes,
            paths,
            record,
            exchange,
            message,
        )
        try:
            # First, and alone: what another sandbox of that id has must not be undone.
            await asyncio.to_thread(_claim, paths, kind.direct)
        except FileExistsError as error:
            raise SandboxError(f"sandbox {work.attempt_id} exists already") from error
        except OSError as error:
            raise SandboxError(f"sandbox {work.attempt_id} cannot be made: {error}") from error
        try:
            # The namespace is the sandbox's own from its first process on, and ours until then.
            async with self._creates, self._network(work) as namespace:
                container = self._container(work, image, paths, record, uid, gid, namespace)
                container.runtime.CopyFrom(self._container_runtime(kind))
                await self._create(kind, work, image, container, exchange, paths, record)
            await exchange.waiting()
        except (ContainerdError, OSError) as error:
            self._images.forget()  # perhaps somebody else has removed this one
            await self._undo(sandbox, paths)
            raise SandboxError(f"sandbox {work.attempt_id} cannot be made: {error}") from error
        except BaseException:
            await self._undo(sandbox, paths)
            raise
        return sandbox

    def _network(self, work: Work) -> AbstractAsyncContextManager[str]:
        """The path of a wired namespace for work that asks for one; "" for work without."""
        if work.network == NETWORK_NONE:
            return contextlib.nullcontext("")
        if work.network != NETWORK_EGRESS:
            raise SandboxError(f"there is no network {work.network!r}, only none and egress")
        if self._egress is None:
            raise SandboxError("this executor's configuration has no egress to give")
        return self._egress.namespace()

    def _resolv_conf(self, work: Work) -> bytes:
        return self._egress.resolv_conf if self._egress and work.network != NETWORK_NONE else b""

    async def _create(
        self,
        kind: Kind,
        work: Work,
        image: Image,
        container: containers_pb2.Container,
        exchange: Exchange | DirectExchange,
        paths: Paths,
        record: Record,
    ) -> None:
        # Not a TaskGroup: its ExceptionGroup would hide from the caller what went wrong.
        outcomes = await asyncio.gather(
            asyncio.to_thread(
                _make_files, paths, exchange, record, work.payload, self._resolv_conf(work)
            ),
            self._client.create_container(container),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        exchange.connect()
        await self._client.create_task(
            work.attempt_id,
            image.mounts,
            self._output_uri(paths.directory, work.output_bytes_max),
            container.runtime.options,
        )
        if not kind.direct and not kind.runs_at_create:
            await self._client.start_task(work.attempt_id)

    async def _undo(self, sandbox: ContainerdSandbox, paths: Paths) -> None:
        """Removes a sandbox that was not made whole; goes on by itself when that takes long."""
        task = asyncio.create_task(self._remove(sandbox, paths))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)
        await asyncio.wait({task}, timeout=limits.UNDO_WAIT_S)

    async def _remove(self, sandbox: ContainerdSandbox, paths: Paths) -> None:
        for _ in range(limits.REMOVALS_MAX):
            try:
                await sandbox.delete()
                await asyncio.to_thread(shutil.rmtree, paths.output, ignore_errors=True)
                return
            except ExecutorError as error:
                log.warning("cannot be removed yet", attempt=sandbox.attempt_id, error=str(error))
            await asyncio.sleep(limits.REMOVAL_RETRY_S)
        log.error("left for the next start's sweep", attempt=sandbox.attempt_id)

    def _container(
        self,
        work: Work,
        image: Image,
        paths: Paths,
        record: Record,
        uid: int,
        gid: int,
        namespace: str,
    ) -> containers_pb2.Container:
        document = build(
            SandboxSpec(
                name=work.attempt_id,
                architecture=platform.machine(),
                cgroup_path=record.cgroup_path,
                exchange_directory=str(paths.exchange),
                uid=uid,
                gid=gid,
                memory_bytes=work.memory_bytes,
                cpu_millis=work.cpu_millis,
                pids=work.pids,
                scratch_bytes=work.scratch_bytes,
                network_namespace=namespace,
                open_files_max=self._open_files_max,
                id_base=self.id_base,
                swap_accounting=self._swap_accounting,
                command=DIRECT_COMMAND if self._kind(work.runtime).direct else (gate.PROGRAM,),
                capabilities=work.capabilities,
            )
        )
        container = containers_pb2.Container(
            id=work.attempt_id,
            labels={LABEL_OWNER: self._owner, LABEL_CUSTOMER: work.customer},
            image=image.reference,
            snapshotter=self._client.snapshotter,
            snapshot_key=image.view,
        )
        container.spec.type_url = SPEC_TYPE
        container.spec.value = document
        return container

    def _container_runtime(self, kind: Kind) -> containers_pb2.Container.Runtime:
        if kind.name not in RUNC_LIKE:
            return containers_pb2.Container.Runtime(name=kind.name)
        options = runc_options(kind.binary, self._state_root, kind.runs_at_create)
        name = str(shim.program()) if kind.name == RUNTIME else kind.name
        return containers_pb2.Container.Runtime(name=name, options=options)

    async def _user(self, work: Work, image: Image) -> tuple[int, int]:
        user = work.user or image.config.user
        key = (image.view, user)
        if key not in self._users:
            layers = [Path(path) for path in _lower_directories(image)]
            if len(self._users) >= limits.IMAGE_CACHE_ENTRIES_MAX:
                self._users.clear()
            self._users[key] = await asyncio.to_thread(users.resolve, user, layers)
        return self._users[key]

    async def adopt(self, attempt_id: str) -> ContainerdSandbox | None:
        """See sandbox.Runtime."""
        paths = self.paths(attempt_id)
        try:
            record, started_ns = await asyncio.to_thread(_noted, paths)
        except (OSError, ValueError):
            return None
        sandbox = ContainerdSandbox(
            self._client,
            self._watcher,
            self._clock,
            self._deletes,
            paths,
            record,
            None,
            b"",
            started_ns,
        )
        try:
            task = await self._client.get_task(record.container_id)
        except ContainerdNotFound:
            # It has ended, and containerd has dropped it since: see ContainerdSandbox.wait.
            return sandbox if await sandbox.has_told() else None
        except ContainerdError as error:
            raise SandboxError(f"sandbox {attempt_id} cannot be looked up: {error}") from error
        if task.status == task_types_pb2.CREATED:
            return None  # we ended between saying that it starts, and starting it
        return sandbox

    async def sweep(self, claimed: frozenset[str]) -> int:
        """See sandbox.Runtime."""
        try:
            mine = await self._client.list_containers(LABEL_OWNER, self._owner)
        except ContainerdError as error:
            raise SandboxError(str(error)) from error
        directories = await asyncio.to_thread(os.listdir, self._sandboxes)
        # A container that was a spare's has another name than the attempt that it was given to.
        kept = await asyncio.to_thread(self._containers_of, claimed)
        unclaimed = ({container.id for container in mine} - kept) | (set(directories) - claimed)
        deletions = []
        for name in unclaimed:
            record = Record(name, f"{self._cgroup_parent}/{name}", 0)
            sandbox = ContainerdSandbox(
                self._client,
                self._watcher,
                self._clock,
                self._deletes,
                self.paths(name),
                record,
                None,
                b"",
            )
            deletions.append(sandbox.delete())
        # One that fails must not keep the others, nor hide behind an ExceptionGroup.
        for outcome in await asyncio.gather(*deletions, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        for output in await asyncio.to_thread(os.listdir, self._data_directory / "output"):
            if output.startswith(SPARE_PREFIX):
                await self.discard_output(output)
        # Last: what a runtime was killed over has a cgroup and nothing else.
        left = await asyncio.to_thread(accounting.children, self._cgroup_parent)
        for name in left - kept - {container.id for container in mine}:
            await asyncio.to_thread(accounting.remove, f"{self._cgroup_parent}/{name}")
        return len(unclaimed)

    def _containers_of(self, attempt_ids: frozenset[str]) -> set[str]:
        found = set()
        for attempt_id in attempt_ids:
            try:
                data = self.paths(attempt_id).record.read_bytes()
                found.add(msgspec.json.decode(data, type=Record).container_id)
            except (OSError, msgspec.DecodeError):
                found.add(attempt_id)  # one without a record was no spare
        return found

    def output_directory(self, attempt_id: str) -> Path:
        """See sandbox.Runtime."""
        return self._data_directory / "output" / attempt_id

    async def discard_output(self, attempt_id: str) -> None:
        """See sandbox.Runtime."""
        await asyncio.to_thread(
            shutil.rmtree, self.output_directory(attempt_id), ignore_errors=True
        )

    def paths(self, attempt_id: str) -> Paths:
        """The files of an attempt's sandbox."""
        assert ATTEMPT_ID.fullmatch(attempt_id), "it becomes part of a path"
        return Paths(
            directory=self._sandboxes / attempt_id,
            output=self.output_directory(attempt_id),
        )

    @staticmethod
    def _output_uri(directory: Path, bytes_max: int) -> str:
        """The recorder with its arguments, as containerd's shim takes it: one key=value pair."""
        program = urllib.parse.quote(str(gate.program("recorder")))
        return f"binary://{program}?{urllib.parse.quote(str(directory))}={bytes_max}"


class ContainerdSpare:
    """Implements sandbox.Spare."""

    def __init__(
        self, runtime: ContainerdRuntime, mould: Work, image: Image, sandbox: ContainerdSandbox
    ) -> None:
        self._runtime = runtime
        self._mould = mould
        self._image = image
        self._sandbox = sandbox

    async def assign(self, work: Work) -> ContainerdSandbox:
        """See sandbox.Spare."""
        assert mould(work) == self._mould, "a spare is for attempts of its own mould"
        if not ATTEMPT_ID.fullmatch(work.attempt_id):
            raise SandboxError(
                f"attempt id {work.attempt_id!r} does not match {ATTEMPT_ID.pattern}"
            )
        image = await self._runtime.ensure_image(work.image, work.customer)
        if (image.digest, image.view) != (self._image.digest, self._image.view):
            raise SpareUnfit(f"{work.image} is another image than when the spare was made")
        message = _message(work, image, self._sandbox.attempt_id)
        if not self._sandbox.waits:
            raise SpareUnfit("the spare's gate is lost")
        try:
            self._sandbox.assign(self._runtime.paths(work.attempt_id), message, work.payload)
        except OSError as error:
            raise SandboxError(f"sandbox {work.attempt_id} cannot be made: {error}") from error
        return self._sandbox

    async def close(self) -> None:
        """See sandbox.Spare."""
        await self._sandbox.delete()
        await self._runtime.discard_output(self._sandbox.attempt_id)


def _owner_of_null() -> tuple[int, int]:
    found = os.stat(os.devnull)  # noqa: PTH116 - a number is all that is wanted
    return found.st_uid, found.st_gid


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _remembered(memory: Path, host: dict[str, str]) -> tuple[str, int] | None:
    """What ran a sandbox under this boot, containerd and shim: a binary, and with which ids."""
    try:
        known = json.loads(memory.read_text())
        if host.items() <= known.items():
            binary, id_base = str(known["binary"]), int(known["id_base"])
            return (binary, id_base) if which(binary) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # none yet, or damaged: the probe runs again
    return None


def _remember(memory: Path, host: dict[str, str], binary: str, id_base: int) -> None:
    memory.write_text(json.dumps({**host, "binary": binary, "id_base": id_base}))


def _open_to_sandboxes(directory: Path) -> None:
    """Runtimes with a kernel of their own open what a sandbox is to see as who they are by then:
    the sandbox's root. So that one goes through this directory, and sees no names in it."""
    os.chown(directory, -1, limits.ID_BASE)
    directory.chmod(0o710)


def _claim(paths: Paths, direct: bool) -> None:
    paths.directory.mkdir(mode=0o700)
    if direct:
        _open_to_sandboxes(paths.directory)
    try:
        paths.output.mkdir(mode=0o700)
    except OSError:
        paths.directory.rmdir()
        raise


def _make_files(
    paths: Paths,
    exchange: Exchange | DirectExchange,
    record: Record,
    payload: bytes,
    resolv_conf: bytes,
) -> None:
    exchange.make(payload)
    paths.output_link.symlink_to(paths.output)
    os.mkfifo(paths.ended, 0o600)
    if resolv_conf:
        file = paths.exchange / "resolv.conf"  # images.our_layer leads /etc/resolv.conf here
        file.write_bytes(resolv_conf)
        file.chmod(0o444)
    paths.record.write_bytes(msgspec.json.encode(record))
    paths.opened.touch()


def _noted(paths: Paths) -> tuple[Record, int]:
    """What an earlier process wrote down of a sandbox, and when its gate was opened.

    Raises OSError, ValueError.
    """
    record = msgspec.json.decode(paths.record.read_bytes(), type=Record)
    # Empty: never opened, so its gate has exited by itself.
    return record, int(paths.opened.read_text())


def _message(work: Work, image: Image, host_name: str) -> bytes:
    """The gate's message: the image's process with the work's own over it, as Docker does it."""
    config = image.config
    if work.command:
        arguments = [*work.command, *work.args]
    else:
        arguments = [*config.entrypoint, *(work.args or config.command)]
    if not arguments:
        raise ImageError(
            ImageReason.NO_COMMAND, f"image {work.image} names no command, and the job none either"
        )
    if len(work.payload) > limits.PAYLOAD_BYTES_MAX:
        raise SandboxError(
            f"payload of {len(work.payload)} bytes, at most {limits.PAYLOAD_BYTES_MAX}"
        )
    environment = {
        "PATH": DEFAULT_PATH,
        "HOME": "/tmp",
        "HOSTNAME": host_name[:63],
        **dict(config.environment),
        **work.env,
        "TICKMESH_PAYLOAD_FILE": gate.PAYLOAD,
    }
    directory = work.working_dir or config.working_directory or "/"
    return gate.encode(arguments, environment, directory)


def _lower_directories(image: Image) -> list[str]:
    """The host's directories of an image's layers, topmost first, out of its mounts."""
    mount = image.mounts[0]
    for option in mount.options:
        if option.startswith("lowerdir="):
            return option.removeprefix("lowerdir=").split(":")
    return [mount.source]
