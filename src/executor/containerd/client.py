"""A thin typed client of containerd's API over its unix socket.

One method a call that the executor needs: a deadline on each, our exceptions for its errors, plain
values where a message would say no more. What the calls are combined into belongs elsewhere.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf import any_pb2, empty_pb2, field_mask_pb2
from google.protobuf.message import Message

from ...proto.containerd import (
    containers_pb2,
    containers_pb2_grpc,
    content_pb2,
    content_pb2_grpc,
    diff_pb2,
    diff_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    introspection_pb2,
    introspection_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    runc_options_pb2,
    snapshots_pb2,
    snapshots_pb2_grpc,
    task_types_pb2,
    tasks_pb2,
    tasks_pb2_grpc,
    types_pb2,
    version_pb2_grpc,
)
from .. import limits
from ..errors import (
    ContainerdError,
    ContainerdExists,
    ContainerdNotFound,
    ContainerdUnavailable,
)

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
RUNC_OPTIONS_TYPE = "containerd.runc.v1.Options"
RUNTIME = "tickmesh"
"""Our own shim, as configuration names it; to containerd it goes by its path."""
RUNC_RUNTIME = "io.containerd.runc.v2"
"""containerd's shim for the same."""
RUNC_LIKE = (RUNTIME, RUNC_RUNTIME)
RUNTIME_ROOT = "/run/containerd/runc"  # where both let runc or crun keep their state
BINARIES = ("crun", "runc")
"""Of RUNC_LIKE; the faster first."""

Result = TypeVar("Result")
Metadata = tuple[tuple[str, str], ...]
Mounts = Sequence[types_pb2.Mount]

_CODES: dict[grpc.StatusCode, type[ContainerdError]] = {
    grpc.StatusCode.NOT_FOUND: ContainerdNotFound,
    grpc.StatusCode.ALREADY_EXISTS: ContainerdExists,
    grpc.StatusCode.UNAVAILABLE: ContainerdUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: ContainerdUnavailable,
}


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Raises our error for gRPC's, naming the call."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        kind = _CODES.get(error.code(), ContainerdError)
        raise kind(f"containerd {what}: {error.code().name}: {error.details()}") from error


def runc_options(binary: str, root: str = "", waits: bool = False) -> any_pb2.Any:
    """Options of RUNC_LIKE that name the program to run: "runc", "crun" or a path.

    `root`: where it keeps its state; empty: where containerd lets it. `waits`: our own shim may let
    the first process run when it creates it, which then is at its gate.
    """
    options = runc_options_pb2.Options(binary_name=binary, root=root, run_at_create=waits)
    options.plain = binary in BINARIES  # by how those keep what they know of a container
    options.no_new_keyring = binary in BINARIES  # others do not know of it
    return any_pb2.Any(type_url=RUNC_OPTIONS_TYPE, value=options.SerializeToString())


class ContainerdClient:
    """One connection to one containerd, in one of its namespaces.

    It reconnects by itself: a call during a restart raises ContainerdUnavailable, `connected()`
    waits for the daemon's return.
    """

    def __init__(
        self,
        socket: str,
        namespace: str,
        snapshotter: str = "overlayfs",
        runtime_root: str = "",
    ) -> None:
        self.socket = socket
        self.namespace = namespace
        self.snapshotter = snapshotter
        self.runtime_state = Path(runtime_root or RUNTIME_ROOT, namespace)
        """Where runc or crun keep what they know of this namespace's containers."""
        self._metadata: Metadata = (("containerd-namespace", namespace),)
        self._channel = grpc.aio.insecure_channel(
            f"unix://{socket}",
            options=[
                ("grpc.default_authority", "localhost"),
                ("grpc.max_receive_message_length", 16 * limits.MIB),
                ("grpc.initial_reconnect_backoff_ms", limits.RECONNECT_BACKOFF_MS_MIN),
                # By its name a pause, but gRPC gives each attempt that long to become a connection.
                ("grpc.min_reconnect_backoff_ms", limits.CONNECT_DEADLINE_MS),
                ("grpc.max_reconnect_backoff_ms", limits.RECONNECT_BACKOFF_MS_MAX),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._containers = containers_pb2_grpc.ContainersStub(self._channel)
        self._content = content_pb2_grpc.ContentStub(self._channel)
        self._diff = diff_pb2_grpc.DiffStub(self._channel)
        self._images = images_pb2_grpc.ImagesStub(self._channel)
        self._introspection = introspection_pb2_grpc.IntrospectionStub(self._channel)
        self._leases = leases_pb2_grpc.LeasesStub(self._channel)
        self._snapshots = snapshots_pb2_grpc.SnapshotsStub(self._channel)
        self._tasks = tasks_pb2_grpc.TasksStub(self._channel)
        self._version = version_pb2_grpc.VersionStub(self._channel)

    async def close(self) -> None:
        """Drops the connection; calls under way fail with ContainerdUnavailable."""
        await self._channel.close()

    def leased(self, lease: str) -> "ContainerdClient":
        """The same connection, whose calls put everything they make under `lease`."""
        twin = object.__new__(ContainerdClient)
        twin.__dict__.update(self.__dict__)
        twin._metadata = (*self._metadata, ("containerd-lease", lease))
        return twin

    async def connected(self, timeout_s: float) -> None:
        """Returns once the daemon answers. Raises ContainerdUnavailable after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    state = self._channel.get_state(try_to_connect=True)
                    if state is grpc.ChannelConnectivity.READY:
                        return
                    await self._channel.wait_for_state_change(state)
        except TimeoutError:
            raise ContainerdUnavailable(f"no containerd answers on {self.socket}") from None

    async def version(self) -> str:
        """The daemon's version."""
        return (await self._ask("version", self._version.Version, empty_pb2.Empty())).version

    async def broken_plugins(self) -> dict[str, str]:
        """Plugins that are loaded, "type.id" -> why each does not work ("" for those that do)."""
        request = introspection_pb2.PluginsRequest()
        plugins = (await self._ask("list plugins", self._introspection.Plugins, request)).plugins
        return {f"{plugin.type}.{plugin.id}": plugin.init_err.message for plugin in plugins}

    async def _ask(
        self,
        what: str,
        method: Callable[..., Awaitable[Result]],
        request: Message,
        deadline_s: float = limits.CALL_DEADLINE_S,
    ) -> Result:
        with _translated(what):
            return await method(request, metadata=self._metadata, timeout=deadline_s)

    # Containers and tasks.

    async def create_container(self, container: containers_pb2.Container) -> None:
        """Records a container."""
        request = containers_pb2.CreateContainerRequest(container=container)
        await self._ask(f"create container {container.id}", self._containers.Create, request)

    async def get_container(self, container_id: str) -> containers_pb2.Container:
        """One container's record."""
        request = containers_pb2.GetContainerRequest(id=container_id)
        return (
            await self._ask(f"get container {container_id}", self._containers.Get, request)
        ).container

    async def list_containers(self, label: str, value: str) -> list[containers_pb2.Container]:
        """The containers that carry a label of that value."""
        request = containers_pb2.ListContainersRequest(filters=[f'labels."{label}"=="{value}"'])
        return list((await self._ask("list containers", self._containers.List, request)).containers)

    async def delete_container(self, container_id: str) -> None:
        """Forgets a container that has no task any more."""
        request = containers_pb2.DeleteContainerRequest(id=container_id)
        await self._ask(f"delete container {container_id}", self._containers.Delete, request)

    async def create_task(
        self, container_id: str, rootfs: Mounts, output: str, options: any_pb2.Any
    ) -> int:
        """Makes the container's process, not yet running. Answers its pid."""
        request = tasks_pb2.CreateTaskRequest(
            container_id=container_id,
            rootfs=rootfs,
            stdout=output,
            stderr=output,
            options=options,
        )
        return (
            await self._ask(
                f"create task {container_id}", self._tasks.Create, request, limits.TASK_DEADLINE_S
            )
        ).pid

    async def start_task(self, container_id: str) -> int:
        """Lets the process run. Answers its pid."""
        request = tasks_pb2.StartRequest(container_id=container_id)
        return (
            await self._ask(
                f"start task {container_id}", self._tasks.Start, request, limits.TASK_DEADLINE_S
            )
        ).pid

    async def get_task(self, container_id: str) -> task_types_pb2.Process:
        """The task's state."""
        request = tasks_pb2.GetRequest(container_id=container_id)
        return (await self._ask(f"get task {container_id}", self._tasks.Get, request)).process

    async def wait_task(self, container_id: str) -> tasks_pb2.WaitResponse:
        """Waits for the process's end: the one call without a deadline, for it runs for a day.

        A daemon that goes away ends it with ContainerdUnavailable.
        """
        request = tasks_pb2.WaitRequest(container_id=container_id)
        with _translated(f"wait for task {container_id}"):
            return await self._tasks.Wait(request, metadata=self._metadata)

    async def kill_task(self, container_id: str, signal: int, whole: bool = False) -> None:
        """Sends a signal to the first process, or to every process of the container."""
        request = tasks_pb2.KillRequest(container_id=container_id, signal=signal, all=whole)
        await self._ask(f"kill task {container_id}", self._tasks.Kill, request)

    async def delete_task(self, container_id: str) -> tasks_pb2.DeleteResponse:
        """Removes an ended task: its cgroups, mounts and shim."""
        request = tasks_pb2.DeleteTaskRequest(container_id=container_id)
        return await self._ask(
            f"delete task {container_id}", self._tasks.Delete, request, limits.TASK_DEADLINE_S
        )

    # Images, snapshots and leases.

    async def get_image(self, name: str) -> images_pb2.Image:
        """One image's record."""
        request = images_pb2.GetImageRequest(name=name)
        return (await self._ask(f"get image {name}", self._images.Get, request)).image

    async def list_images(self) -> list[images_pb2.Image]:
        """Every image of the namespace."""
        request = images_pb2.ListImagesRequest()
        return list((await self._ask("list images", self._images.List, request)).images)

    async def put_image(self, image: images_pb2.Image) -> None:
        """Creates an image's record, or points the one of that name at the new target."""
        create = images_pb2.CreateImageRequest(image=image)
        update = images_pb2.UpdateImageRequest(image=image)
        try:
            await self._ask(f"create image {image.name}", self._images.Create, create)
        except ContainerdExists:
            await self._ask(f"update image {image.name}", self._images.Update, update)

    async def delete_image(self, name: str) -> None:
        """Forgets an image, and collects what only it kept before answering."""
        request = images_pb2.DeleteImageRequest(name=name, sync=True)
        await self._ask(
            f"delete image {name}", self._images.Delete, request, limits.APPLY_DEADLINE_S
        )

    async def create_lease(self, lease: str, labels: dict[str, str]) -> None:
        """Makes a lease, for `leased()`."""
        request = leases_pb2.CreateRequest(id=lease, labels=labels)
        await self._ask(f"create lease {lease}", self._leases.Create, request)

    async def delete_lease(self, lease: str) -> None:
        """Ends a lease, and collects what only it kept before answering."""
        request = leases_pb2.DeleteRequest(id=lease, sync=True)
        await self._ask(
            f"delete lease {lease}", self._leases.Delete, request, limits.APPLY_DEADLINE_S
        )

    async def list_leases(self) -> list[leases_pb2.Lease]:
        """Every lease of the namespace."""
        request = leases_pb2.ListRequest()
        return list((await self._ask("list leases", self._leases.List, request)).leases)

    async def add_to_lease(self, lease: str, identity: str, kind: str = "content") -> None:
        """Puts what was there before (a blob, or a snapshot: "snapshots/x") under the lease too."""
        resource = leases_pb2.Resource(id=identity, type=kind)
        request = leases_pb2.AddResourceRequest(id=lease, resource=resource)
        await self._ask(f"add {identity} to lease {lease}", self._leases.AddResource, request)

    async def prepare_snapshot(self, key: str, parent: str, labels: dict[str, str]) -> Mounts:
        """A writable snapshot on top of `parent` ("" for none)."""
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels=labels
        )
        return (await self._ask(f"prepare snapshot {key}", self._snapshots.Prepare, request)).mounts

    async def view_snapshot(self, key: str, parent: str, labels: dict[str, str]) -> Mounts:
        """A read-only snapshot of `parent`."""
        request = snapshots_pb2.ViewSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels=labels
        )
        return (await self._ask(f"view snapshot {key}", self._snapshots.View, request)).mounts

    async def snapshot_mounts(self, key: str) -> Mounts:
        """How to mount a prepared or viewed snapshot."""
        request = snapshots_pb2.MountsRequest(snapshotter=self.snapshotter, key=key)
        return (
            await self._ask(f"mounts of snapshot {key}", self._snapshots.Mounts, request)
        ).mounts

    async def commit_snapshot(self, name: str, key: str, labels: dict[str, str]) -> None:
        """Makes a prepared snapshot a parent for others, under `name`."""
        request = snapshots_pb2.CommitSnapshotRequest(
            snapshotter=self.snapshotter, name=name, key=key, labels=labels
        )
        await self._ask(f"commit snapshot {name}", self._snapshots.Commit, request)

    async def remove_snapshot(self, key: str) -> None:
        """Removes a snapshot that nothing stands on."""
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key)
        await self._ask(f"remove snapshot {key}", self._snapshots.Remove, request)

    async def stat_snapshot(self, key: str) -> snapshots_pb2.Info:
        """What a snapshot is. Raises ContainerdNotFound."""
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=self.snapshotter, key=key)
        return (await self._ask(f"stat snapshot {key}", self._snapshots.Stat, request)).info

    async def list_snapshots(self) -> list[snapshots_pb2.Info]:
        """Every snapshot of the namespace."""
        found: list[snapshots_pb2.Info] = []
        with _translated("list snapshots"):
            async for part in self._snapshots.List(
                snapshots_pb2.ListSnapshotsRequest(snapshotter=self.snapshotter),
                metadata=self._metadata,
                timeout=limits.CALL_DEADLINE_S,
            ):
                found.extend(part.info)
        return found

    async def apply_diff(self, layer: types_pb2.Descriptor, mounts: Mounts) -> str:
        """Unpacks a layer onto mounts. Answers the digest of what was unpacked (its diff_id)."""
        request = diff_pb2.ApplyRequest(diff=layer, mounts=mounts)
        return (
            await self._ask(
                f"apply layer {layer.digest}", self._diff.Apply, request, limits.APPLY_DEADLINE_S
            )
        ).applied.digest

    # Content.

    async def content_labels(self, digest: str) -> dict[str, str]:
        """The labels of a blob that is whole. Raises ContainerdNotFound."""
        request = content_pb2.InfoRequest(digest=digest)
        answer = await self._ask(f"info of {digest}", self._content.Info, request)
        return dict(answer.info.labels)

    async def label_content(self, digest: str, labels: dict[str, str]) -> None:
        """Sets labels of a blob, leaving its other ones."""
        request = content_pb2.UpdateRequest(
            info=content_pb2.Info(digest=digest, labels=labels),
            update_mask=field_mask_pb2.FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        await self._ask(f"label {digest}", self._content.Update, request)

    async def list_content(self) -> list[str]:
        """The digests of every blob of the namespace."""
        found: list[str] = []
        with _translated("list content"):
            async for part in self._content.List(
                content_pb2.ListContentRequest(),
                metadata=self._metadata,
                timeout=limits.CALL_DEADLINE_S,
            ):
                found.extend(info.digest for info in part.info)
        return found

    async def list_ingests(self) -> list[str]:
        """The names of unfinished writes."""
        request = content_pb2.ListStatusesRequest()
        return [
            status.ref
            for status in (
                await self._ask("list ingests", self._content.ListStatuses, request)
            ).statuses
        ]

    async def abort_ingest(self, ref: str) -> None:
        """Drops an unfinished write."""
        request = content_pb2.AbortRequest(ref=ref)
        await self._ask(f"abort write of {ref}", self._content.Abort, request)

    async def read_content(self, digest: str, bytes_max: int) -> bytes:
        """A small blob, whole. Raises ContainerdError when it is larger than `bytes_max`."""
        data = bytearray()
        async for part in self.content_chunks(digest, limits.CALL_DEADLINE_S):
            data += part
            if len(data) > bytes_max:
                raise ContainerdError(f"{digest} is larger than {bytes_max} bytes")
        return bytes(data)

    async def content_chunks(self, digest: str, deadline_s: float) -> AsyncIterator[bytes]:
        """A blob, in pieces. Raises ContainerdNotFound."""
        with _translated(f"read {digest}"):
            async for part in self._content.Read(
                content_pb2.ReadContentRequest(digest=digest),
                metadata=self._metadata,
                timeout=deadline_s,
            ):
                yield part.data

    async def write_content(
        self, ref: str, digest: str, size: int, chunks: AsyncIterator[bytes], deadline_s: float
    ) -> None:
        """Writes a blob that must come out as `digest`.

        Raises ContainerdExists when it is there already (no chunk is read then), ContainerdError
        when digest or size come out different. An unfinished write stays until `abort_ingest`.
        """
        with _translated(f"write {digest}"):
            call = self._content.Write(metadata=self._metadata, timeout=deadline_s)

            async def exchange(
                action: content_pb2.WriteAction.ValueType, offset: int = 0, data: bytes = b""
            ) -> int:
                """Sends one step; answers the offset that the daemon is at after it."""
                message = content_pb2.WriteContentRequest(
                    action=action, ref=ref, total=size, expected=digest, offset=offset, data=data
                )
                with contextlib.suppress(asyncio.InvalidStateError):
                    await call.write(message)
                    answer = await call.read()
                    if isinstance(answer, content_pb2.WriteContentResponse):
                        return answer.offset
                # The stream ended: its status says why.
                raise grpc.aio.AioRpcError(
                    await call.code(),
                    grpc.aio.Metadata(),
                    grpc.aio.Metadata(),
                    details=await call.details(),
                )

            try:
                offset = await exchange(content_pb2.STAT)
                if offset:
                    raise ContainerdError(f"write {digest}: another write left {offset} bytes")
                async for chunk in chunks:
                    offset = await exchange(content_pb2.WRITE, offset, chunk)
                await exchange(content_pb2.COMMIT, offset)
                await call.done_writing()
            except BaseException:
                call.cancel()  # lets go of the write, so that it can be aborted
                raise
