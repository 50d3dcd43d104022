"""What runs work: the interfaces that the agent uses, and the values that cross them.

Two implementations pass the same suite (tests/conformance/test_runtime.py): ContainerdRuntime, and
InProcessRuntime, which does no work, for measuring and testing the mesh without containers.
"""

import re
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from . import limits

ATTEMPT_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,74}[a-z0-9])?")
"""Also a containerd id (76 characters at most), a file name and a cgroup's name."""

NETWORK_NONE = "none"
NETWORK_EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class Work:
    """One attempt: what to run and how much it may use."""

    attempt_id: str
    """Unique for ever; see ATTEMPT_ID."""
    customer: str
    image: str
    """The reference as `ensure_image` takes it."""
    command: tuple[str, ...] = ()
    """Replaces the image's entrypoint; empty: the image's own."""
    args: tuple[str, ...] = ()
    """Follow the entrypoint; empty, and no command: the image's own."""
    env: dict[str, str] = field(default_factory=dict)
    """Over the image's."""
    working_dir: str = ""
    user: str = ""
    """As in an image's configuration; empty: the image's, and 65534 when it names none."""
    payload: bytes = b""
    """The command's standard input, and the file that TICKMESH_PAYLOAD_FILE names."""
    memory_bytes: int = 256 * limits.MIB
    cpu_millis: int = 1000
    pids: int = 128
    scratch_bytes: int = 64 * limits.MIB
    """Size of /tmp; what is in it counts as memory."""
    timeout_s: float = 0.0
    """Enforced by the caller, with `kill`."""
    output_bytes_max: int = 1 * limits.MIB
    """Kept of stdout, and of stderr."""
    job: str = ""
    """Resource name of its job; "" for none. With the revision, what keeps spares apart."""
    revision: int = 0
    network: str = NETWORK_NONE
    """NETWORK_NONE, or NETWORK_EGRESS: the internet's public addresses."""
    runtime: str = ""
    """As containerd names what is to run it; "": the executor's default."""
    capabilities: tuple[str, ...] = ()
    """Of mesh.plans.CAPABILITIES, sorted."""


def mould(work: Work) -> Work:
    """What is fixed when a sandbox is made: all but what goes through its gate, and its timeout.

    Two attempts with equal moulds may have each other's sandbox while its gate is closed. What a
    mould leaves out is named here, so that whatever Work gains keeps sandboxes apart by itself.
    """
    return replace(
        work,
        attempt_id="",
        command=(),
        args=(),
        env={},
        working_dir="",
        payload=b"",
        timeout_s=0.0,
    )


@dataclass(frozen=True, slots=True)
class Exit:
    """How a sandbox's command ended."""

    exit_code: int
    """0 to 255; 128 + n when signal n ended it."""
    signal: int
    """The signal that ended it; 0 for none, also when it exited with 128 + n by itself."""
    oom: bool
    """The kernel killed something in the sandbox for want of memory, and the command failed."""
    finished_ns: int
    """Nanoseconds since 1970, by containerd, or by the output's end where that has dropped it."""
    peak_memory_bytes: int
    """0 when the kernel does not tell."""
    cpu_ns: int
    output_bytes: int | None = 0
    """Written to stdout and stderr, kept or not. None: nobody knows."""
    dropped_bytes: int = 0
    """Of these, what was over the limit."""


class Sandbox(Protocol):
    """One attempt's sandbox: made, waiting at its gate, running, ended, gone."""

    @property
    def attempt_id(self) -> str:
        """Its work's."""
        ...

    @property
    def started_ns(self) -> int:
        """When its gate was opened, in nanoseconds since 1970; 0 before."""
        ...

    def start(self) -> Awaitable[int]:
        """Opens the gate, before it returns. What it answers must be awaited: when the command was
        executed, in nanoseconds since 1970.

        Either raises StartError when it could not be, GateGone when nothing of it can have run; the
        sandbox is of no more use then.
        """
        ...

    async def wait(self) -> Exit:
        """Waits until the command has ended and its output is on disk. Raises SandboxError."""
        ...

    async def kill(self, signal: int) -> None:
        """Sends a signal to every process of the sandbox. One that has ended takes no notice."""
        ...

    async def delete(self) -> None:
        """Ends it if need be, and removes everything but its output. May be called again."""
        ...


class Spare(Protocol):
    """A sandbox made ahead of any attempt: it waits at its gate, and runs at most one."""

    async def assign(self, work: Work) -> Sandbox:
        """Makes it the sandbox of an attempt of its mould.

        Raises SpareUnfit when it cannot be; else what `prepare` raises of the work itself. Then it
        must be closed.
        """
        ...

    async def close(self) -> None:
        """Removes one that was not assigned, whole. Raises SandboxError."""
        ...


class ImageInfo(Protocol):
    """An image that is at hand."""

    @property
    def reference(self) -> str:
        """The name that it was asked for by."""
        ...

    @property
    def digest(self) -> str:
        """Of its manifest for this machine."""
        ...

    @property
    def size_bytes(self) -> int:
        """Compressed."""
        ...


class Runtime(Protocol):
    """Makes sandboxes on this host."""

    async def start(self) -> None:
        """Raises HostUnfit with everything that this host lacks."""
        ...

    async def close(self) -> None:
        """Deletes what is left of its sandboxes, and ends what it started."""
        ...

    async def ensure_image(self, reference: str, customer: str = "") -> ImageInfo:
        """Has an image at hand: it is, or it is pulled, with the customer's login where one is
        known. Raises ImageError, SandboxError."""
        ...

    async def refresh_image(self, reference: str) -> ImageInfo:
        """Has at hand what a name of the mesh's own registry stands for now. Raises as above."""
        ...

    async def import_image(self, reference: str, archive: Path) -> ImageInfo:
        """Takes an OCI archive in under a name.

        Raises ImageError, SandboxError; then nothing has changed.
        """
        ...

    async def list_images(self) -> list[str]:
        """The references of the images at hand."""
        ...

    async def delete_image(self, reference: str) -> None:
        """Forgets an image; what runs from it goes on. Raises ImageError(NOT_FOUND)."""
        ...

    async def prepare(self, work: Work) -> Sandbox:
        """Makes a sandbox that waits at its gate. Raises ImageError, StartError, SandboxError."""
        ...

    async def prepare_spare(self, mould: Work) -> Spare:
        """Makes a spare for attempts of this mould. Raises what `prepare` does."""
        ...

    async def adopt(self, attempt_id: str) -> Sandbox | None:
        """The sandbox of an attempt that was started before this process; None: there is none."""
        ...

    async def sweep(self, claimed: frozenset[str]) -> int:
        """Deletes this executor's sandboxes of no claimed attempt, spares with them. Answers how
        many."""
        ...

    def output_directory(self, attempt_id: str) -> Path:
        """Where an attempt's output is (see logs.py); it stays when the sandbox is deleted."""
        ...

    async def discard_output(self, attempt_id: str) -> None:
        """Removes an attempt's output."""
        ...
