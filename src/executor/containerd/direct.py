"""Starting without the gate's FIFOs, for runtimes whose sandboxes cannot open the host's."""

import os
from pathlib import Path

from ...mesh.clock import Clock
from .. import gate, limits
from ..errors import ContainerdError, StartError, StartReason
from .client import ContainerdClient

COMMAND = (gate.PROGRAM, "direct")
"""The sandbox's first process."""


class DirectExchange:
    """As gate.exchange.Exchange is: the sandbox is created ahead, and its first process, the gate,
    starts when it is opened. So the start costs what the runtime's own start costs, and a command
    that cannot be executed ends with gate.EXIT_NOT_STARTED and a line in its output."""

    def __init__(
        self, directory: Path, clock: Clock, client: ContainerdClient, container_id: str
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._client = client
        self._container_id = container_id
        self._go = -1

    def make(self, payload: bytes) -> None:
        """Makes directory and payload. Blocks: call it in a thread."""
        self._directory.mkdir(parents=True)
        for name, data in (("go", b""), ("payload", payload)):
            path = self._directory / name
            path.write_bytes(data)
            path.chmod(0o444)  # the job's own user reads it, in a mount that only its sandbox sees

    def put(self, payload: bytes) -> None:
        """Writes the payload, which the gate opens when it starts."""
        (self._directory / "payload").write_bytes(payload)

    def connect(self) -> None:
        """Opens the message's file: its directory has another name once a spare is assigned."""
        self._go = os.open(self._directory / "go", os.O_WRONLY | os.O_CLOEXEC)

    async def waiting(self) -> None:
        """It waits as soon as it is created."""

    @property
    def lost(self) -> bool:
        """Whether it was opened or closed already."""
        return self._go < 0

    async def open(self, message: bytes) -> int:
        """Starts the sandbox with its message, once it is awaited. Answers when it was, ns since
        1970.

        Raises StartError.
        """
        if self.lost:
            raise StartError(StartReason.GATE_LOST, 0, "the sandbox ended before its start")
        assert len(message) <= limits.MESSAGE_BYTES_MAX, "gate.encode has seen to that"
        try:
            # Inline: a small file stands before a start.
            written = os.write(self._go, message)
            assert written == len(message), "a file takes it at once"
            self.close()
            await self._client.start_task(self._container_id)
        except (ContainerdError, OSError) as error:
            raise StartError(
                StartReason.GATE_LOST, 0, f"the sandbox cannot be started: {error}"
            ) from error
        return self._clock.now_ns()

    def close(self) -> None:
        """A sandbox that was never started is deleted as it is. May be called again."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
