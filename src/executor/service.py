"""ExecutorService: the adapter between gRPC and what this executor holds. For gateways only."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from ..mesh import telemetry
from ..mesh.errors import (
    FailedPrecondition,
    ImageCorrupt,
    ImageTooLarge,
    InternalError,
    NotFound,
    TickmeshError,
    Unavailable,
    invalid,
    refuse,
)
from ..mesh.limits import IMAGE_BYTES_MAX
from ..mesh.output import Chunk, to_wire
from ..mesh.tls import require_role
from ..proto.tickmesh.internal.v1 import executor_pb2, executor_pb2_grpc
from . import logs
from .agent import Agent
from .attempts import Attempt
from .drain import State
from .errors import ContainerdUnavailable, ExecutorError, ImageError, ImageReason
from .sandbox import ATTEMPT_ID, Runtime
from .watch import Watcher

ARCHIVE_BYTES_MAX = IMAGE_BYTES_MAX + 1024 * 1024
"""An archive: the image, and what the tar around it takes."""

IMPORTS_MAX = 4
"""Archives taken in at one time: each may take its size on disk twice."""

ARCHIVES_MAX = 1_000
"""Answered by one listing."""

END_GRACE_S = 5.0
"""After an attempt's end, until its output is whole: then what is there is all."""

log = telemetry.logger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


def explain(error: Exception) -> TickmeshError:
    """An exception as what the caller is told."""
    match error:
        case TickmeshError():
            return error
        case ImageError(reason=ImageReason.NOT_FOUND):
            return NotFound(str(error))
        case ImageError(reason=ImageReason.TOO_LARGE):
            return ImageTooLarge(str(error))
        case ImageError(reason=ImageReason.CORRUPT):
            return ImageCorrupt(str(error))
        case ImageError(reason=ImageReason.REFERENCE_INVALID):
            return invalid("reference", str(error))
        case ImageError():
            return FailedPrecondition(str(error))
        case ContainerdUnavailable():
            return Unavailable(str(error))
        case ExecutorError():
            return InternalError(str(error))
    log.error("a call failed", exc_info=error)
    return InternalError(f"a bug of ours: {type(error).__name__}")


class ExecutorService(executor_pb2_grpc.ExecutorServiceServicer):
    """See executor.proto."""

    def __init__(self, agent: Agent, runtime: Runtime, spool: Path, watcher: Watcher) -> None:
        """spool: a directory for archives on their way in; emptied at the start."""
        self._agent = agent
        self._runtime = runtime
        self._spool = spool
        self._watcher = watcher
        self._imports = 0

    async def _admit(self, context: Context) -> None:
        try:
            require_role(context, "gateway")
        except TickmeshError as error:
            await refuse(context, error)

    # -- output --------------------------------------------------------------------------------

    async def StreamOutput(
        self, request: executor_pb2.StreamOutputRequest, context: Context
    ) -> AsyncIterator[executor_pb2.StreamOutputResponse]:
        """See executor.proto."""
        await self._admit(context)
        try:
            async for chunk in self._output(request):
                yield to_wire(chunk)
        except Exception as error:
            await refuse(context, explain(error))

    async def _output(self, request: executor_pb2.StreamOutputRequest) -> AsyncIterator[Chunk]:
        if not ATTEMPT_ID.fullmatch(request.attempt_id):
            raise invalid("attempt_id", f"does not match {ATTEMPT_ID.pattern}")
        attempt = self._agent.find(request.attempt_id)
        directory = self._runtime.output_directory(request.attempt_id)
        if attempt is not None and request.follow:
            await attempt.ready.wait()
        if not await asyncio.to_thread(directory.is_dir):
            if attempt is None:
                raise NotFound(
                    f"attempt {request.attempt_id} is not known here, or its output is not kept "
                    "any more"
                )
            return
        cursor = request.cursor
        try:
            if attempt is not None and request.follow:
                async for chunk in self._followed(attempt, directory, cursor):
                    cursor = chunk.cursor
                    yield chunk
            # What a recorder that was killed never finished, or all there is for who does not wait.
            async for chunk in logs.read(directory, cursor, False, self._watcher):
                yield chunk
        except FileNotFoundError as error:  # dropped just now
            raise NotFound(str(error)) from error
        except ValueError as error:
            raise invalid("cursor", str(error)) from error

    async def _followed(
        self, attempt: Attempt, directory: Path, cursor: str
    ) -> AsyncIterator[Chunk]:
        """An attempt's output as it comes; ends a little after the attempt, come what may."""
        chunks = logs.read(directory, cursor, True, self._watcher)
        over = asyncio.create_task(attempt.over.wait())
        coming: asyncio.Future[Chunk | None] | None = None
        try:
            while True:
                coming = asyncio.ensure_future(anext(chunks, None))
                if not over.done():
                    await asyncio.wait({coming, over}, return_when=asyncio.FIRST_COMPLETED)
                if over.done() and not coming.done():
                    await asyncio.wait({coming}, timeout=END_GRACE_S)
                if not coming.done():
                    return
                chunk = coming.result()
                if chunk is None:
                    return
                yield chunk
        finally:
            over.cancel()
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    # -- images --------------------------------------------------------------------------------

    async def ImportImage(
        self,
        request_iterator: AsyncIterator[executor_pb2.ImportArchiveRequest],
        context: Context,
    ) -> executor_pb2.ImportArchiveResponse:
        """See executor.proto."""
        await self._admit(context)
        response = executor_pb2.ImportArchiveResponse()
        path = self._spool / uuid.uuid4().hex
        try:
            if self._imports >= IMPORTS_MAX:
                raise Unavailable(f"{IMPORTS_MAX} imports are under way here; try again later")
            self._imports += 1
            try:
                reference = await _receive(request_iterator, path)
                image = await self._runtime.import_image(reference, path)
            finally:
                self._imports -= 1
                await asyncio.to_thread(path.unlink, missing_ok=True)
            response.digest, response.size_bytes = image.digest, image.size_bytes
        except Exception as error:
            await refuse(context, explain(error))
        return response

    async def ListArchives(
        self, request: executor_pb2.ListArchivesRequest, context: Context
    ) -> executor_pb2.ListArchivesResponse:
        """See executor.proto."""
        await self._admit(context)
        response = executor_pb2.ListArchivesResponse()
        try:
            names = [
                name
                for name in sorted(await self._runtime.list_images())
                if name.startswith(request.prefix)
            ]
            for name in names[:ARCHIVES_MAX]:
                with contextlib.suppress(ImageError):  # deleted meanwhile
                    image = await self._runtime.ensure_image(name)
                    response.archives.add(
                        reference=name, digest=image.digest, size_bytes=image.size_bytes
                    )
        except Exception as error:
            await refuse(context, explain(error))
        return response

    async def PullArchive(
        self, request: executor_pb2.PullArchiveRequest, context: Context
    ) -> executor_pb2.PullArchiveResponse:
        """See executor.proto."""
        await self._admit(context)
        response = executor_pb2.PullArchiveResponse()
        try:
            image = await self._runtime.refresh_image(request.reference)
            response.digest, response.size_bytes = image.digest, image.size_bytes
        except Exception as error:
            await refuse(context, explain(error))
        return response

    async def DeleteArchive(
        self, request: executor_pb2.DeleteArchiveRequest, context: Context
    ) -> executor_pb2.DeleteArchiveResponse:
        """See executor.proto."""
        await self._admit(context)
        try:
            await self._runtime.delete_image(request.reference)
        except Exception as error:
            await refuse(context, explain(error))
        return executor_pb2.DeleteArchiveResponse()

    # -- operators -----------------------------------------------------------------------------

    async def Drain(
        self, request: executor_pb2.DrainRequest, context: Context
    ) -> executor_pb2.DrainResponse:
        """See executor.proto."""
        await self._admit(context)
        response = executor_pb2.DrainResponse()
        end_ns = 0
        if request.end_after_ms and not request.undo:
            end_ns = self._agent.clock.now_ns() + request.end_after_ms * 1_000_000
        try:
            state = State(draining=not request.undo, end_ns=end_ns)
            response.held_count = await self._agent.drain(state)
        except OSError as error:
            await refuse(context, Unavailable(f"the drain cannot be written down: {error}"))
        except Exception as error:
            await refuse(context, explain(error))
        return response


async def _receive(messages: AsyncIterator[executor_pb2.ImportArchiveRequest], path: Path) -> str:
    """Spool an archive to a file. Answers its reference. Raises TickmeshError."""
    reference, total = "", 0
    with await asyncio.to_thread(path.open, "xb") as file:
        async for message in messages:
            if not total and message.reference:
                reference = message.reference
            if not reference:
                raise invalid("reference", "must be in the first message")
            total += len(message.data)
            if total > ARCHIVE_BYTES_MAX:
                raise ImageTooLarge(f"the archive has more than {ARCHIVE_BYTES_MAX} bytes")
            await asyncio.to_thread(file.write, message.data)
    if not total:
        raise ImageCorrupt("the archive is empty")
    return reference
