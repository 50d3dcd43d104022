"""The small HTTP port: what it answers, and to what it does not listen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest

from tickmesh.gateway import http
from tickmesh.gateway.http import (
    BODY_BYTES_MAX,
    STRANGERS_BODY_BYTES_MAX,
    HttpPort,
    Request,
    Response,
)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async def echo(request: Request) -> Response:
        told = {"query": request.query, "body": request.body.decode(), "from": request.address}
        return Response(HTTPStatus.OK, told, {"X-Is": request.headers.get("x-is", "")})

    async def broken(_request: Request) -> Response:
        raise RuntimeError("secret")

    handlers = {("GET", "/e"): echo, ("POST", "/e"): echo, ("GET", "/b"): broken}
    made = HttpPort(handlers, {("POST", "/e"): lambda request: "x-known" in request.headers})
    yield await made.open("127.0.0.1", 0, None)
    await made.close()


async def said(port: int, data: bytes, end: bool = False) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if end:
        writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_request_is_answered_once(port: int) -> None:
    answer = await said(port, b"GET /e?a=1&a=%20 HTTP/1.1\r\nHost: x\r\nX-Is: y\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ") and b"Connection: close" in answer
    assert b'[["a", "1"], ["a", " "]]' in answer and b"X-Is: y" in answer
    body = b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    assert b'"body": "abc"' in await said(port, body)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"PUT /e HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n", b"500"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /e HTTP/1.1\r\n\r\n", b"400"),
        (b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /e?" + b"a&" * 101 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /e HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b"431"),
        (
            b"POST /e HTTP/1.1\r\nHost: x\r\nX-Known: y\r\nContent-Length: %d\r\n\r\n"
            % (BODY_BYTES_MAX + 1)
            + bytes(BODY_BYTES_MAX + 1),
            b"413",
        ),
        (
            b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            % (STRANGERS_BODY_BYTES_MAX + 1)
            + bytes(STRANGERS_BODY_BYTES_MAX + 1),
            b"413",
        ),
        (
            b"POST /e HTTP/1.1\r\nHost: x\r\nX-Known: y\r\nContent-Length: %d\r\n\r\n"
            % BODY_BYTES_MAX
            + bytes(BODY_BYTES_MAX),
            b"200",
        ),
    ],
)
async def test_what_is_wrong_is_said(port: int, data: bytes, status: bytes) -> None:
    answer = await said(port, data)
    assert answer.split(b" ")[1] == status
    assert b"secret" not in answer


@pytest.mark.parametrize("data", [b"", b"GET /e HT", b"POST /e HTTP/1.1\r\nHost: x\r\n"])
async def test_half_a_request_is_no_request(port: int, data: bytes) -> None:
    assert b"200" not in await said(port, data, end=True)


async def test_who_says_nothing_is_not_waited_for(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.01)
    assert await said(port, b"GET /e HTTP/1.1\r\n") == b""


async def test_of_too_many_connections_the_last_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
