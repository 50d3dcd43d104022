"""What can go wrong while a sandbox is made and run: one tree, named for what the caller can do.

ExecutorError
├── HostUnfit            this machine cannot run containers; `missing` says what to install or fix
├── ContainerdError      one call to containerd failed
│   ├── ContainerdNotFound
│   ├── ContainerdExists
│   └── ContainerdUnavailable   stopped, restarting, or over its deadline: the call may be repeated
├── ImageError           this image cannot be used; `reason` is stable
├── StartError           the sandbox is there, its command could not be started
│   └── GateGone         its gate ended before it was opened: nothing ran, another sandbox may
└── SandboxError         the sandbox could not be made; the executor's fault, another may try
    └── SpareUnfit       this spare cannot be what the attempt needs: make a sandbox for it instead
"""

import os
from enum import StrEnum


class ExecutorError(Exception):
    """Base of everything that this package raises for the world's faults."""


class HostUnfit(ExecutorError):
    """This machine cannot run containers. `missing`: one sentence for each thing it lacks."""

    def __init__(self, missing: list[str]) -> None:
        self.missing = tuple(missing)
        super().__init__("cannot run containers here: " + "; ".join(missing))


class ContainerdError(ExecutorError):
    """containerd refused or failed a call, for a reason that repeating it will not mend."""


class ContainerdNotFound(ContainerdError):
    """What the call names does not exist."""


class ContainerdExists(ContainerdError):
    """What the call would create exists already."""


class ContainerdUnavailable(ContainerdError):
    """containerd did not answer: it is stopped, restarting or overloaded."""


class ImageReason(StrEnum):
    """Why an image cannot be used. Stable: it becomes the reason of an execution's end."""

    NOT_FOUND = "IMAGE_NOT_FOUND"
    TOO_LARGE = "IMAGE_TOO_LARGE"
    CORRUPT = "IMAGE_CORRUPT"
    UNSUPPORTED = "IMAGE_UNSUPPORTED"
    REFERENCE_INVALID = "IMAGE_REFERENCE_INVALID"
    REGISTRY_UNAVAILABLE = "REGISTRY_UNAVAILABLE"
    REGISTRY_DENIED = "REGISTRY_DENIED"
    USER_UNKNOWN = "IMAGE_USER_UNKNOWN"
    NO_COMMAND = "IMAGE_NO_COMMAND"


class ImageError(ExecutorError):
    """An image cannot be used. The message names the part: the reference, the blob, the entry."""

    def __init__(self, reason: ImageReason, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class StartReason(StrEnum):
    """Why a sandbox's command did not start. Stable, as above."""

    COMMAND_NOT_FOUND = "COMMAND_NOT_FOUND"
    COMMAND_NOT_EXECUTABLE = "COMMAND_NOT_EXECUTABLE"
    WORKING_DIRECTORY_INVALID = "WORKING_DIRECTORY_INVALID"
    MESSAGE_INVALID = "MESSAGE_INVALID"
    GATE_LOST = "GATE_LOST"


class StartError(ExecutorError):
    """A command could not be started; `errno` is the kernel's answer, 0 when there was none."""

    def __init__(self, reason: StartReason, errno: int, message: str) -> None:
        self.reason = reason
        self.errno = errno
        super().__init__(f"{message}: {os.strerror(errno)}" if errno else message)


class GateGone(StartError):
    """A gate ended before it was opened: nothing of the command has run, nor ever will here."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(StartReason.GATE_LOST, errno, message)


class SandboxError(ExecutorError):
    """A sandbox could not be made or followed: this executor's fault, not the customer's."""


class SpareUnfit(SandboxError):
    """A spare cannot be given to an attempt: its gate is lost, or the image is another by now."""
