"""ImageService: images in the mesh's own registry, and those imported on every executor.

A public name customers/{customer}/images/{image} is the executors' reference "{customer}/{image}",
always with a tag: "report" is "report:latest".
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio
from google.protobuf import empty_pb2

from ..mesh.config import OwnRegistry
from ..mesh.errors import (
    STATUS_METADATA_KEY,
    DeadlineExceeded,
    FailedPrecondition,
    NoExecutor,
    NotFound,
    TickmeshError,
    from_rpc_error,
    invalid,
)
from ..mesh.limits import PAGE_SIZE_MAX
from ..mesh.names import ID_PATTERN
from ..proto.tickmesh.internal.v1 import executor_pb2
from ..proto.tickmesh.v1 import cluster_pb2, image_pb2
from .executors import Executors
from .repositories import Pushed, Repositories
from .shards import Shard

if TYPE_CHECKING:  # It exists for type checkers only.
    from ..proto.tickmesh.internal.v1.executor_pb2_grpc import ExecutorServiceAsyncStub

DEFAULT_TAG = "latest"

SETTLE_ATTEMPTS_MAX = 7
SETTLE_S = 0.05
"""Between looks at what a name stands for, doubling: 6 s together, for what takes milliseconds."""
SETTLE_TIMEOUT_S = 10.0

IMAGE_NAME = re.compile(
    rf"customers/{ID_PATTERN}/images/"
    r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,63})?"
)
"""As image.proto has it."""

Answer = TypeVar("Answer")
Ask = Callable[["ExecutorServiceAsyncStub"], Awaitable[Answer]]


def to_reference(name: str) -> str:
    """customers/acme/images/report -> acme/report:latest. The name was validated."""
    _, customer, _, image = name.split("/")
    return f"{customer}/{image}" if ":" in image else f"{customer}/{image}:{DEFAULT_TAG}"


def to_name(reference: str) -> str:
    """acme/report:1 -> customers/acme/images/report:1"""
    customer, _, image = reference.partition("/")
    return f"customers/{customer}/images/{image}"


@dataclass(frozen=True, slots=True)
class Registry:
    """The mesh's own registry: what customers are told of it, and what is in it."""

    settings: OwnRegistry
    authority: str
    """PEM. Empty: its certificate is a public one."""
    login_required: bool
    repositories: Repositories


class Images:
    """The methods; each gets the customer's shard, whose leader knows the executors."""

    def __init__(self, executors: Executors, registry: Registry | None = None) -> None:
        self._executors = executors
        self._registry = registry

    async def import_image(
        self, shard: Shard, name: str, chunks: AsyncIterator[bytes], timeout_s: float
    ) -> image_pb2.Image:
        """Send the archive to every executor at the pace of the slowest. All must take it."""
        loop = asyncio.get_running_loop()
        expires_s = loop.time() + timeout_s
        workers = await self._attached(shard, timeout_s)
        reference = to_reference(name)
        calls: list[Any] = []
        for worker in workers:
            stub = await self._executors.at(worker.address)
            calls.append(stub.ImportImage(timeout=expires_s - loop.time()))
        try:
            first = True
            async for data in chunks:
                message = executor_pb2.ImportArchiveRequest(
                    reference=reference if first else "", data=data
                )
                first = False
                if not all(await asyncio.gather(*(_write(call, message) for call in calls))):
                    break
            else:
                await asyncio.gather(*(_finish_writing(call) for call in calls))
            answers = await asyncio.gather(*map(_answer, workers, calls))
        finally:
            for call in calls:
                call.cancel()
        return image_pb2.Image(
            name=to_name(reference), digest=answers[0].digest, size_bytes=answers[0].size_bytes
        )

    def get_registry(self, name: str) -> image_pb2.Registry:
        """Where to push to."""
        registry = self._own()
        customer = name.split("/")[1]
        return image_pb2.Registry(
            name=name,
            address=registry.settings.address,
            plain=registry.settings.plain,
            authority=registry.authority,
            login_required=registry.login_required,
            repository_prefix=f"{customer}/",
        )

    async def pull_image(
        self, shard: Shard, name: str, timeout_s: float
    ) -> image_pb2.PullImageResponse:
        """Have every executor pull what a name stands for now."""
        reference = to_reference(name)
        loop = asyncio.get_running_loop()
        expires_s = loop.time() + timeout_s
        pushed = await self._own().repositories.get(reference, timeout_s)
        request = executor_pb2.PullArchiveRequest(reference=reference)
        response = image_pb2.PullImageResponse(image=_of_pushed(pushed))

        async def one(worker: cluster_pb2.Executor) -> None:
            try:
                stub = await self._executors.at(worker.address)
                await stub.PullArchive(request, timeout=expires_s - loop.time())
            except grpc.aio.AioRpcError as error:
                message = explained(worker, error).message
                response.failures.add(executor=worker.executor_id, message=message)
            else:
                response.executors.append(worker.executor_id)

        workers = await shard.executors(expires_s - loop.time())
        await asyncio.gather(*map(one, workers))
        response.executors.sort()
        return response

    async def settled(self, reference: str, digest: str) -> None:
        """A registry tells of a manifest just before it moves the name to it: wait for that."""
        for attempt in range(SETTLE_ATTEMPTS_MAX):
            with contextlib.suppress(NotFound):
                pushed = await self._own().repositories.get(reference, SETTLE_TIMEOUT_S)
                if pushed.digest == digest:
                    return
            await asyncio.sleep(SETTLE_S * 2.0**attempt)

    def _own(self) -> Registry:
        if self._registry is None:
            raise FailedPrecondition(
                "this mesh has no registry of its own: import images, or name those of another"
            )
        return self._registry

    async def get_image(self, shard: Shard, name: str, timeout_s: float) -> image_pb2.Image:
        """The image, if the registry or any executor holds it."""
        reference = to_reference(name)
        if self._registry is not None:
            with contextlib.suppress(NotFound):
                return _of_pushed(await self._registry.repositories.get(reference, timeout_s))
        for image in await self._list(shard, reference, timeout_s):
            if image.name == to_name(reference):
                return image
        raise _not_found(reference)

    async def list_images(
        self, shard: Shard, parent: str, timeout_s: float
    ) -> image_pb2.ListImagesResponse:
        """What the registry and the executors hold of a customer, together."""
        customer = parent.partition("/")[2]
        images = {image.name: image for image in await self._list(shard, f"{customer}/", timeout_s)}
        if self._registry is not None:
            for pushed in await self._registry.repositories.of_customer(customer, timeout_s):
                images[to_name(pushed.reference)] = _of_pushed(pushed)
        ordered = [images[name] for name in sorted(images)]
        return image_pb2.ListImagesResponse(images=ordered[:PAGE_SIZE_MAX])

    async def delete_image(self, shard: Shard, name: str, timeout_s: float) -> empty_pb2.Empty:
        """Delete it from the registry and on every executor."""
        reference = to_reference(name)
        request = executor_pb2.DeleteArchiveRequest(reference=reference)
        found = False
        if self._registry is not None:  # first: else an executor could pull it again
            with contextlib.suppress(NotFound):
                await self._registry.repositories.delete(reference, timeout_s)
                found = True

        async def delete(stub: ExecutorServiceAsyncStub) -> bool:
            try:
                await stub.DeleteArchive(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                if isinstance(from_rpc_error(error), NotFound):
                    return False
                raise
            return True

        if not any(await self._each(shard, delete, timeout_s)) and not found:
            raise _not_found(reference)
        return empty_pb2.Empty()

    async def _list(self, shard: Shard, prefix: str, timeout_s: float) -> list[image_pb2.Image]:
        request = executor_pb2.ListArchivesRequest(prefix=prefix)

        async def ask(stub: ExecutorServiceAsyncStub) -> executor_pb2.ListArchivesResponse:
            return await stub.ListArchives(request, timeout=timeout_s)

        found = {
            archive.reference: archive
            for answer in await self._each(shard, ask, timeout_s)
            for archive in answer.archives
        }
        return [
            image_pb2.Image(
                name=to_name(reference), digest=archive.digest, size_bytes=archive.size_bytes
            )
            for reference, archive in sorted(found.items())
        ]

    async def _attached(self, shard: Shard, timeout_s: float) -> list[cluster_pb2.Executor]:
        workers = await shard.executors(timeout_s)
        if not workers:
            raise NoExecutor("no executor is attached: start one, or try again later")
        return workers

    async def _each(self, shard: Shard, ask: Ask[Answer], timeout_s: float) -> list[Answer]:
        """What every executor answers. Raises the first failure, which names its executor."""

        async def one(worker: cluster_pb2.Executor) -> Answer:
            try:
                return await ask(await self._executors.at(worker.address))
            except grpc.aio.AioRpcError as error:
                raise explained(worker, error) from error

        if self._registry is None:
            workers = await self._attached(shard, timeout_s)
        else:  # without executors there is still what the registry has
            workers = await shard.executors(timeout_s)
        return list(await asyncio.gather(*map(one, workers)))


async def _write(call: Any, message: executor_pb2.ImportArchiveRequest) -> bool:
    """False: the call has failed, and its answer says why. One that has ended well has seen the
    archive's end, and is not written to."""
    if not call.done():
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(message)
    return not call.done() or await call.code() is grpc.StatusCode.OK


async def _finish_writing(call: Any) -> None:
    # An InternalError: the executor is gone. As with the others, the answer says why.
    with contextlib.suppress(
        grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError
    ):
        await call.done_writing()


async def _answer(worker: cluster_pb2.Executor, call: Any) -> executor_pb2.ImportArchiveResponse:
    try:
        answer: executor_pb2.ImportArchiveResponse = await call
    except grpc.aio.AioRpcError as error:
        raise explained(worker, error) from error
    return answer


def explained(worker: cluster_pb2.Executor, error: grpc.aio.AioRpcError) -> TickmeshError:
    """What an executor answered, or that it could not be reached."""
    if STATUS_METADATA_KEY in (error.trailing_metadata() or ()):
        return from_rpc_error(error)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{worker.executor_id} did not answer in time")
    return NoExecutor(
        f"{worker.executor_id} cannot be reached: try again "
        f"({error.code().name}: {error.details()})",
        metadata={"executor_id": worker.executor_id},
    )


def _of_pushed(pushed: Pushed) -> image_pb2.Image:
    return image_pb2.Image(
        name=to_name(pushed.reference), digest=pushed.digest, size_bytes=pushed.size_bytes
    )


def _not_found(reference: str) -> NotFound:
    return NotFound(f"there is no image {to_name(reference)}")


def first_message_needed() -> TickmeshError:
    """An import without a name."""
    return invalid("name", "is required in the first message")
