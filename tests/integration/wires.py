"""A TCP connection that is cut in the middle of what is sent on it, as by the death of a peer; it
is not taken up again."""

from __future__ import annotations

import asyncio
import socket
import struct

PIECE_BYTES = 16_384


class Wire:
    """Between those who dial `address` and `to`."""

    def __init__(self, to: str) -> None:
        self._to = to
        self._cut_after: dict[bool, int] = {}
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        """Where it is dialled."""
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def cut_after(self, count: int, *, downwards: bool) -> None:
        """Once so many more bytes have come from the one that is dialled (downwards), or from the
        one that dials."""
        self._cut_after[downwards] = count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._to.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers += [writer, far_writer]
        self._tasks += [
            asyncio.create_task(self._carry(reader, far_writer, downwards=False)),
            asyncio.create_task(self._carry(far_reader, writer, downwards=True)),
        ]

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, downwards: bool
    ) -> None:
        while piece := await reader.read(PIECE_BYTES):
            if downwards in self._cut_after:
                self._cut_after[downwards] -= len(piece)
                if self._cut_after[downwards] <= 0:
                    self._cut()
                    return
            writer.write(piece)
            await writer.drain()
        writer.close()

    def _cut(self) -> None:
        self._server.close()
        while self._writers:
            transport = self._writers.pop().transport
            if not transport.is_closing():
                # A reset, as a kernel sends it for a process that left something unread.
                transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                transport.abort()
