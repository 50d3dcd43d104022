"""A small HTTP port, for what speaks no gRPC: the registry and its clients. One request a
connection, small ones only. h11 reads and writes the protocol.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11

from ..mesh import telemetry

CONNECTIONS_MAX = 500
"""At one time; further ones are closed at once."""

REQUEST_S = 10.0
"""From its connection to a request's end, and again for its answer: both are small."""

BODY_BYTES_MAX = 4 * 1024 * 1024
"""A registry tells of some events at a time; each carries a manifest's description."""

STRANGERS_BODY_BYTES_MAX = 16 * 1024
"""Of whoever has not shown who it is: CONNECTIONS_MAX of these are 8 MB, not 2 GB."""

READ_BYTES = 64 * 1024

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: dict[str, str]
    """By lower-case names."""
    body: bytes
    address: str
    """Of who asks: a host."""

    def values(self, name: str) -> list[str]:
        """Of a query's parameter."""
        return [value for key, value in self.query if key == name]


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered: JSON, or nothing."""

    status: HTTPStatus
    value: Any = None
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]
Known = Callable[[Request], bool]


class HttpPort:
    """A listening port, and a handler by method and path."""

    def __init__(
        self, handlers: dict[tuple[str, str], Handler], known: dict[tuple[str, str], Known]
    ) -> None:
        """known: tells of requests by their headers, before their bodies are read, whether who
        asks may send a large one."""
        self._handlers = handlers
        self._known = known
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[Any]] = set()

    async def open(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen. Answers the port. Raises OSError."""
        self._server = await asyncio.start_server(
            self._serve, host, port, ssl=context, ssl_handshake_timeout=_or_none(context)
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End what is under way."""
        if self._server is None:
            return
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, EOFError):
            pass  # whoever asked is gone
        except asyncio.CancelledError:
            pass  # the port is closed; asyncio would call it an error
        finally:
            self._open.discard(task)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            async with asyncio.timeout(REQUEST_S):
                request = await _read(connection, reader, writer, self._body_bytes_max)
            response = await self._handle(request)
        except h11.RemoteProtocolError as error:
            hint = error.error_status_hint
            response = Response(HTTPStatus(hint), {"errors": [{"message": str(error)}]})
        if connection.our_state is not h11.SEND_RESPONSE and connection.our_state is not h11.IDLE:
            return
        body = b"" if response.value is None else json.dumps(response.value).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Connection": "close",
            **response.headers,
        }
        parts = (
            h11.Response(status_code=response.status, headers=list(headers.items())),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        writer.write(b"".join(connection.send(part) or b"" for part in parts))
        async with asyncio.timeout(REQUEST_S):
            await writer.drain()

    def _body_bytes_max(self, request: Request) -> int:
        known = self._known.get((request.method, request.path))
        return BODY_BYTES_MAX if known and known(request) else STRANGERS_BODY_BYTES_MAX

    async def _handle(self, request: Request) -> Response:
        handler = self._handlers.get((request.method, request.path))
        if handler is None:
            known = any(path == request.path for _, path in self._handlers)
            return Response(HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND)
        try:
            return await handler(request)
        except Exception as error:
            log.error("a request failed", path=request.path, exc_info=error)
            return Response(HTTPStatus.INTERNAL_SERVER_ERROR)


async def _read(
    connection: h11.Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    body_bytes_max: Callable[[Request], int],
) -> Request:
    """Raises RemoteProtocolError, EOFError."""
    request: Request | None = None
    body = bytearray()
    most = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                going_on = h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[])
                writer.write(connection.send(going_on) or b"")
            connection.receive_data(await reader.read(READ_BYTES))
        elif isinstance(event, h11.Request):
            request = _request(event, writer)
            most = body_bytes_max(request)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > most:
                raise h11.RemoteProtocolError(
                    f"over {most} bytes", HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                )
        elif isinstance(event, h11.EndOfMessage):
            break
        else:
            raise EOFError
    assert request is not None
    return replace(request, body=bytes(body))


def _request(head: h11.Request, writer: asyncio.StreamWriter) -> Request:
    """A request whose body is not read yet. Raises RemoteProtocolError."""
    peer = writer.get_extra_info("peername") or ("",)
    try:
        target = urlsplit(head.target.decode("latin-1"))
        query = parse_qsl(target.query, keep_blank_values=True, max_num_fields=100)
    except ValueError as error:
        raise h11.RemoteProtocolError(str(error)) from error
    return Request(
        head.method.decode("latin-1"),
        target.path,
        tuple(query),
        {key.decode("latin-1"): value.decode("latin-1") for key, value in head.headers},
        b"",
        str(peer[0]),
    )


def _or_none(context: ssl.SSLContext | None) -> float | None:
    return None if context is None else REQUEST_S
