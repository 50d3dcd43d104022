"""One connection with one peer: mutual TLS, in it frames (RaftFrame), each behind its length.

Of a gRPC stream a message costs about four times the processor time: three switches between
threads each way. A leader sends ten for each container (docs/decisions/0022-frames.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from google.protobuf.message import DecodeError

from ...mesh.tls import certificate_role
from ...proto.tickmesh.internal.v1 import raft_pb2
from .limits import (
    DIAL_DEADLINE_S,
    FAREWELL_S,
    FRAME_BYTES_MAX,
    LINK_PING_S,
    LINK_SILENCE_S,
    REASON_CHARACTERS_MAX,
    WAITING_BYTES_MAX,
)
from .transport import TransportError

_LENGTH_BYTES = 4
_SILENT_PULSES_MAX = round(LINK_SILENCE_S / LINK_PING_S)
_ALIVE = bytes(_LENGTH_BYTES)
"""An empty frame."""


def framed(frame: raft_pb2.RaftFrame) -> bytes:
    """As it goes over the wire."""
    body = frame.SerializeToString()
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class Link(asyncio.Protocol):
    """One end of it, whichever dialled. What arrives is given to `receive` until `end`."""

    def __init__(
        self,
        opened: Callable[[Link], None],
        receive: Callable[[Link, raft_pb2.RaftFrame], None],
        closed: Callable[[Link], None],
    ) -> None:
        """opened: once TLS is, before anything is received. `receive` may raise TransportError,
        which ends the link. closed: once, when it ends, for whatever reason."""
        self.role, self.name = "", ""
        """Of the peer, by its certificate."""
        self.reason = ""
        """Why it has ended."""
        self.ended = asyncio.Event()
        """Nothing that still arrives counts."""
        self.greeted = False
        """A hello has gone each way."""
        self._opened = opened
        self._receive = receive
        self._closed = closed
        self._transport: asyncio.WriteTransport | None = None
        self._arrived = bytearray()
        self._silent_pulses = 0
        self._sent = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    # -- what asyncio calls ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self.role, self.name = certificate_role(transport.get_extra_info("peercert"))
        self._timer = self._loop.call_later(DIAL_DEADLINE_S, self.end, "no hello has come")
        self._opened(self)

    def data_received(self, data: bytes) -> None:
        self._silent_pulses = 0
        if self.ended.is_set():
            return
        arrived = self._arrived
        arrived += data
        start = 0
        try:
            while len(arrived) - start >= _LENGTH_BYTES and not self.ended.is_set():
                begin = start + _LENGTH_BYTES
                size = int.from_bytes(arrived[start:begin], "big")
                if size > FRAME_BYTES_MAX:
                    raise TransportError(f"a frame of {size} bytes; at most {FRAME_BYTES_MAX}")
                if len(arrived) < begin + size:
                    break
                start = begin + size
                if size:
                    self._receive(self, _frame(bytes(arrived[begin:start])))
        except TransportError as error:
            self.end(str(error))
        del arrived[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"{type(exc).__name__}: {exc}" if exc else "the peer closed it", tell=False)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    # -- what its owner calls --------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """The replica at the other end; "" if there is another kind of process."""
        return self.name if self.role == "scheduler" else ""

    def greet(self) -> None:
        """Both hellos are there: from now on each end shows that it is alive."""
        self.greeted = True
        self._pulse_later()

    def send(self, frame: bytes) -> None:
        """Sends what `framed` gave, or drops it if the peer takes nothing: Raft repeats what
        matters."""
        transport = self._transport
        if transport is None or self.ended.is_set():
            return
        if transport.get_write_buffer_size() <= WAITING_BYTES_MAX:
            self._sent = True
            transport.write(frame)

    def end(self, reason: str, *, tell: bool = True) -> None:
        """It is over; the first reason stays, and is told to the peer unless that is of no use."""
        if self.ended.is_set():
            return
        transport = self._transport
        self.reason = reason = reason[:REASON_CHARACTERS_MAX]
        if transport is not None and tell:
            transport.write(framed(raft_pb2.RaftFrame(farewell=reason)))
        self.ended.set()
        if self._timer is not None:
            self._timer.cancel()
        if transport is not None:
            if tell:
                # What is written still goes, but not for ever. ssl_shutdown_timeout would not do:
                # it does not run where the peer has closed its half and reads nothing.
                self._timer = self._loop.call_later(FAREWELL_S, transport.abort)
                transport.close()
            else:
                transport.abort()
        self._closed(self)

    # -- life ------------------------------------------------------------------------------------

    def _pulse_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.ended.is_set():
            self._timer = self._loop.call_later(LINK_PING_S, self._pulse)

    def _pulse(self) -> None:
        # Pulses are counted, not seconds: a process that was itself stopped for a while must not
        # conclude from its own clock that the others were silent.
        self._silent_pulses += 1
        if self._silent_pulses >= _SILENT_PULSES_MAX:
            self.end(f"silent for {LINK_SILENCE_S} s", tell=False)
            return
        if not self._sent:
            self.send(_ALIVE)
        self._sent = False
        self._pulse_later()


def _frame(body: bytes) -> raft_pb2.RaftFrame:
    try:
        return raft_pb2.RaftFrame.FromString(body)
    except DecodeError as error:
        raise TransportError(f"what came is no frame: {error}") from None
