"""The executor's side of one gate: its FIFOs and its payload file."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from ...mesh.clock import Clock
from .. import limits
from ..errors import GateGone, SandboxError, StartError, StartReason
from . import failure

_PIPE_BYTES = 64 * 1024  # a FIFO's default size
STATUS = "status"
"""The FIFO that goes from the gate to the recorder, and is not read here."""
_FIFOS = {"go": 0o444, "started": 0o222, STATUS: 0o222}


class Exchange:
    """Makes the FIFOs, learns that the gate waits, opens it, learns of the exec."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._go = -1
        self._started = -1
        self._report = bytearray()
        self._executed_ns = 0
        self._waiting: asyncio.Future[None]
        self._ended: asyncio.Future[None]

    def make(self, payload: bytes) -> None:
        """Makes directory, FIFOs and payload. Blocks: call it in a thread."""
        self._directory.mkdir(parents=True)
        # The job's own user opens them, in a mount that only its sandbox sees.
        for name, mode in _FIFOS.items():
            os.mkfifo(self._directory / name)
            (self._directory / name).chmod(mode)
        self.put(payload)
        (self._directory / "payload").chmod(0o444)

    def put(self, payload: bytes) -> None:
        """Writes the payload, which the gate opens when it is opened."""
        (self._directory / "payload").write_bytes(payload)

    def connect(self) -> None:
        """Opens our ends, before the gate opens its."""
        loop = asyncio.get_running_loop()
        self._waiting, self._ended = loop.create_future(), loop.create_future()
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        # Both ways, so that opening needs no reader yet; our death still ends the gate's reading.
        self._go = os.open(self._directory / "go", os.O_RDWR | flags)
        self._started = os.open(self._directory / "started", os.O_RDONLY | flags)
        loop.add_reader(self._started, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._started, limits.KIB)
        except BlockingIOError:
            return
        if data:
            self._report += data
            if not self._waiting.done():
                # All ends are open: without names, nobody in the sandbox can ever touch them.
                for name in _FIFOS:
                    (self._directory / name).unlink(missing_ok=True)
                self._waiting.set_result(None)
            return
        self._executed_ns = self._clock.now_ns()
        asyncio.get_running_loop().remove_reader(self._started)
        for future in (self._waiting, self._ended):
            if not future.done():
                future.set_result(None)

    async def waiting(self) -> None:
        """Returns when the gate waits. Raises SandboxError when it ended instead."""
        try:
            async with asyncio.timeout(limits.GATE_DEADLINE_S):
                await self._waiting
        except TimeoutError:
            raise SandboxError("the sandbox's first process did not reach its gate") from None
        if self._ended.done():
            raise SandboxError("the sandbox's first process ended before its gate")

    @property
    def lost(self) -> bool:
        """Whether the gate has ended, or its command was executed already."""
        return self._started < 0 or self._ended.done()

    def open(self, message: bytes) -> Coroutine[Any, Any, int]:
        """Sends the message, before it returns. What it answers says when the command was executed,
        ns since 1970, or raises StartError.

        Raises GateGone if the message was not even written.
        """
        if self.lost:
            raise GateGone("the sandbox ended before its start")
        try:
            if len(message) > _PIPE_BYTES:
                fcntl.fcntl(self._go, fcntl.F_SETPIPE_SZ, limits.MESSAGE_BYTES_MAX)
            written = os.write(self._go, message)
        except OSError as error:  # the kernel limits how much all pipes of a user hold
            raise GateGone("the gate's message cannot be passed", error.errno or 0) from error
        assert written == len(message), "a FIFO of that size takes the message at once"
        return self._executed()

    async def _executed(self) -> int:
        try:
            async with asyncio.timeout(limits.GATE_DEADLINE_S):
                await self._ended
        except TimeoutError:
            raise StartError(StartReason.GATE_LOST, 0, "the gate did not answer") from None
        refusal = failure(bytes(self._report))
        self.close()
        if refusal is not None:
            raise refusal
        return self._executed_ns

    def close(self) -> None:
        """Lets go of both ends: a gate that still waits exits. May be called again."""
        if self._started >= 0:
            with contextlib.suppress(RuntimeError):  # no loop runs any more
                asyncio.get_running_loop().remove_reader(self._started)
            os.close(self._started)
            os.close(self._go)
            self._started = self._go = -1
