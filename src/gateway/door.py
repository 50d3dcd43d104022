"""The public methods as gRPC handlers: bytes in, bytes out, one row of METHODS each.

A handler needs a deadline, checks the request, has it answered, and ends with a google.rpc status
if that raises. Nothing here knows what a method means.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import metadata
from typing import Any

import grpc
import grpc.aio

from ..mesh.errors import (
    DeadlineExceeded,
    DeadlineRequired,
    MessageTooLarge,
    NotFound,
    TickmeshError,
    Unauthenticated,
    Unavailable,
    invalid,
)
from ..mesh.limits import CALL_TIMEOUT_MAX_S, MESSAGE_BYTES_MAX, STREAM_SECONDS_MAX
from ..mesh.names import parse_key
from ..proto.tickmesh.v1 import cluster_pb2
from . import logs
from .access import Principal, authorize
from .archive import Archive
from .authentication import Authentication
from .drains import drain, together
from .executors import Executors
from .images import IMAGE_NAME, Images, Registry, first_message_needed, to_name
from .methods import METHODS, REQUEST_ID_CHARACTERS, SERVICES, Kind, Method
from .routing import shard_of, slot_of
from .shards import Shard
from .status import Context, refuse, unexpected
from .validation import check

LATE_S = 1.0
"""A stream that ends by its time with more than this of the caller's left ended by our limit."""

TRACEPARENT_CHARACTERS_MAX = 128
"""A traceparent: 55 today, and room for what a later version appends. A longer one is dropped."""

_GO_ON = "go on from the last cursor"

Answerer = Callable[[Method, Any, bytes, float, Context], Awaitable[bytes]]


class Door:
    """Everything that the public API can do, over the shards of one mesh."""

    def __init__(
        self,
        shards: tuple[Shard, ...],
        executors: Executors,
        authentication: Authentication | None = None,
        archive: Archive | None = None,
        registry: Registry | None = None,
    ) -> None:
        """authentication: None: whoever calls is believed. registry: the mesh's own, if any."""
        self._authentication = authentication
        self._shards = shards
        self._executors = executors
        self._outputs = logs.Sources(executors, archive)
        self._images = Images(executors, registry)
        self._streams: set[asyncio.Task[Any]] = set()
        self._ending = False

    def end_streams(self) -> None:
        """The process ends: tell every reader to go on at another gateway."""
        self._ending = True
        for task in self._streams:
            task.cancel()

    async def pull_pushed(self, reference: str, digest: str) -> None:
        """Somebody pushed an image into the registry: have executors pull it."""
        name = to_name(reference)
        if IMAGE_NAME.fullmatch(name) is not None:  # others cannot be named by jobs
            await self._images.settled(reference, digest)
            await self._images.pull_image(self._shard(name), name, CALL_TIMEOUT_MAX_S)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """One a service, for grpc.aio's server."""
        made = {name: self._handler(method) for name, method in METHODS.items()}
        return [
            grpc.method_handlers_generic_handler(
                service,
                {
                    name.rpartition("/")[2]: handler
                    for name, handler in made.items()
                    if name.startswith(f"{service}/")
                },
            )
            for service in SERVICES
        ]

    def _handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        make: Any
        match method.kind:
            case Kind.WATCH:
                return grpc.unary_stream_rpc_method_handler(self._stream(method, self._watch))
            case Kind.LOGS:
                return grpc.unary_stream_rpc_method_handler(self._stream(method, self._logs))
            case Kind.IMAGE_IMPORT:
                return grpc.stream_unary_rpc_method_handler(self._import(method))
            case Kind.SHARD | Kind.SHARD_SLOW:
                make = self._forward
            case Kind.IMAGE:
                make = self._image
            case Kind.CLUSTER:
                make = self._cluster
            case Kind.EXECUTOR:
                make = self._drain
            case Kind.OPERATION:
                make = self._operate
        return grpc.unary_unary_rpc_method_handler(self._unary(method, make))

    def _shard(self, name: str) -> Shard:
        """The shard of a resource name's customer. The name was validated."""
        customer = name.split("/", 2)[1]
        return self._shards[shard_of(slot_of(customer), len(self._shards))]

    async def _admit(self, context: Context) -> tuple[Principal | None, str]:
        """Who calls, and the key that says so; None where everybody is believed."""
        if self._authentication is None:
            return None, ""
        metadata: Any = context.invocation_metadata() or ()
        return await self._authentication.authenticate_call(metadata, context.peer())

    def _unary(
        self, method: Method, answer: Answerer
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(data: bytes, context: Context) -> bytes:
            try:
                _timeout(context, CALL_TIMEOUT_MAX_S)
                principal, _ = await self._admit(context)
                request = check(method, data)
                if principal is not None:
                    authorize(principal, method, request)
                timeout_s = _timeout(context, CALL_TIMEOUT_MAX_S)
                response = await answer(method, request, data, timeout_s, context)
                if len(response) > MESSAGE_BYTES_MAX:
                    raise MessageTooLarge(
                        f"the response has {len(response):,} bytes, more than the limit of "
                        f"{MESSAGE_BYTES_MAX:,}: ask for less, as by page_size",
                        metadata={
                            "limit_bytes": str(MESSAGE_BYTES_MAX),
                            "bytes": str(len(response)),
                        },
                    )
                return response
            except TickmeshError as error:
                await refuse(context, error)
            except Exception as error:
                await refuse(context, unexpected(method.name, error))

        return handle

    # -- one message in, one out -----------------------------------------------------------------

    async def _forward(
        self, method: Method, request: Any, data: bytes, timeout_s: float, context: Context
    ) -> bytes:
        """The customer's shard answers."""
        if method.request_id_tag and not request.request_id:
            # The same call may have to be sent again after a leader is lost.
            made = os.urandom(REQUEST_ID_CHARACTERS // 2).hex().encode()
            data = data + method.request_id_tag + made
        name = method.read_name(request)
        # Deleting a job with its schedules takes as long as there are many.
        slow = method.kind is Kind.SHARD_SLOW or bool(getattr(request, "force", False))
        answer = await self._shard(name).call(
            method,
            data,
            timeout_s,
            _traceparent(context),
            slow=slow,
            owner=name.split("/", 2)[1],
        )
        if self._authentication is not None and method.name.endswith("/RevokeApiKey"):
            self._authentication.forget(parse_key(request.name))  # here at once
        return answer

    async def _image(
        self, method: Method, request: Any, _data: bytes, timeout_s: float, _context: Context
    ) -> bytes:
        """The executors answer."""
        name = method.read_name(request)
        shard = self._shard(name)
        match method.name.rpartition("/")[2]:
            case "GetRegistry":
                return self._images.get_registry(name).SerializeToString()
            case "PullImage":
                pulled = await self._images.pull_image(shard, name, timeout_s)
                return pulled.SerializeToString()
            case "GetImage":
                image = await self._images.get_image(shard, name, timeout_s)
                return image.SerializeToString()
            case "ListImages":
                images = await self._images.list_images(shard, name, timeout_s)
                return images.SerializeToString()
            case "DeleteImage":
                nothing = await self._images.delete_image(shard, name, timeout_s)
                return nothing.SerializeToString()
        raise AssertionError(method.name)

    async def _cluster(
        self, _method: Method, _request: Any, _data: bytes, _timeout_s: float, _context: Context
    ) -> bytes:
        """The replicas tell what they see."""
        cluster = cluster_pb2.Cluster(version=metadata.version("tickmesh"))
        executors: dict[str, cluster_pb2.Executor] = {}
        for shard, views in await asyncio.gather(*(shard.views() for shard in self._shards)):
            cluster.shards.append(shard)
            seen = {each.executor_id: each for view in views for each in view.executors}
            for name, each in seen.items():
                known = executors.get(name)
                executors[name] = each if known is None else together(known, each)
        cluster.executors.extend(executors[name] for name in sorted(executors))
        return cluster.SerializeToString()

    async def _drain(
        self, _method: Method, request: Any, _data: bytes, timeout_s: float, _context: Context
    ) -> bytes:
        """The executor that is named answers."""
        worker = await drain(self._shards, self._executors, request, timeout_s)
        return worker.SerializeToString()

    async def _operate(
        self, method: Method, request: Any, data: bytes, timeout_s: float, context: Context
    ) -> bytes:
        """The leader of the shard that is named answers."""
        for shard in self._shards:
            if shard.id == request.shard_id:
                # It may take long, and a batch is answered as a whole.
                return await shard.call(method, data, timeout_s, _traceparent(context), slow=True)
        known = ", ".join(shard.id for shard in self._shards)
        raise NotFound(f"there is no shard {request.shard_id!r}; there are: {known}")

    # -- streams ---------------------------------------------------------------------------------

    def _stream(
        self, method: Method, answer: Callable[[Method, Any, bytes, float], AsyncIterator[bytes]]
    ) -> Callable[[bytes, Context], AsyncIterator[bytes]]:
        async def handle(data: bytes, context: Context) -> AsyncIterator[bytes]:
            task = asyncio.current_task()
            assert task is not None
            self._streams.add(task)
            holder: asyncio.Task[Unauthenticated] | None = None

            def end(_: object) -> None:
                task.cancel()

            try:
                _timeout(context, STREAM_SECONDS_MAX)
                principal, token = await self._admit(context)
                request = check(method, data)
                if principal is not None and self._authentication is not None:
                    authorize(principal, method, request)
                    holder = asyncio.create_task(self._authentication.until_refused(token))
                    holder.add_done_callback(end)
                timeout_s = _timeout(context, STREAM_SECONDS_MAX)
                async for response in answer(method, request, data, timeout_s):
                    yield response
            except asyncio.CancelledError:
                if holder is not None and holder.done() and not holder.cancelled():
                    await refuse(context, holder.result())
                if not self._ending:
                    raise
                await refuse(context, Unavailable(f"this gateway ends: {_GO_ON}"))
            except DeadlineExceeded as error:
                left_s = context.time_remaining()
                if left_s is not None and left_s > LATE_S:
                    hours = f"{STREAM_SECONDS_MAX / 3600:g} h"
                    await refuse(context, Unavailable(f"a stream lasts {hours} at most: {_GO_ON}"))
                await refuse(context, error)
            except TickmeshError as error:
                await refuse(context, error)
            except Exception as error:
                await refuse(context, unexpected(method.name, error))
            finally:
                self._streams.discard(task)
                if holder is not None:
                    holder.remove_done_callback(end)
                    holder.cancel()

        return handle

    def _watch(
        self, method: Method, request: Any, data: bytes, timeout_s: float
    ) -> AsyncIterator[bytes]:
        return self._shard(method.read_name(request)).watch(data, timeout_s)

    def _logs(
        self, method: Method, request: Any, _data: bytes, timeout_s: float
    ) -> AsyncIterator[bytes]:
        shard = self._shard(method.read_name(request))
        return logs.stream(shard, self._outputs, request, timeout_s)

    def _import(
        self, method: Method
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[bytes]]:
        async def chunks(first: bytes, following: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            yield first
            async for data in following:
                request = check(method, data)
                if request.name:
                    raise invalid("name", "belongs in the first message only")
                yield request.data

        async def handle(messages: AsyncIterator[bytes], context: Context) -> bytes:
            try:
                # Whatever its sender does: it may send nothing, and give itself a year for that.
                async with asyncio.timeout(_timeout(context, STREAM_SECONDS_MAX)) as limit:
                    principal, _ = await self._admit(context)
                    following = aiter(messages)
                    data = await anext(following, None)
                    first = None if data is None else check(method, data)
                    if first is None or not first.name:
                        raise first_message_needed()
                    if principal is not None:
                        authorize(principal, method, first)
                    timeout_s = _timeout(context, STREAM_SECONDS_MAX)
                    image = await self._images.import_image(
                        self._shard(first.name),
                        first.name,
                        chunks(first.data, following),
                        timeout_s,
                    )
                return image.SerializeToString()
            except TickmeshError as error:
                await refuse(context, error)
            except TimeoutError as error:
                if not limit.expired():
                    await refuse(context, unexpected(method.name, error))
                hours = f"{STREAM_SECONDS_MAX / 3600:g} h"
                await refuse(context, DeadlineExceeded(f"an import may take {hours} at most"))
            except Exception as error:
                await refuse(context, unexpected(method.name, error))

        return handle


def _timeout(context: Context, limit_s: float) -> float:
    """Seconds that the caller waits, within a limit. Raises DeadlineRequired."""
    remaining_s = context.time_remaining()
    if remaining_s is None:
        raise DeadlineRequired(
            "the call carries no deadline: set one (grpcurl: -max-time 10), so that nothing is "
            "done for a caller who has gone"
        )
    return min(remaining_s, limit_s)


def _traceparent(context: Context) -> str:
    """The caller's W3C trace context, if it sent one."""
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str):
            return value if len(value) <= TRACEPARENT_CHARACTERS_MAX else ""
    return ""
