"""The static programs beside a sandbox (gate, recorder), their paths, and the gate's message.

The programs are built by `scripts/build-gate` and committed; their C sources say what they do.
"""

import platform
import struct
from pathlib import Path

from .. import limits
from ..errors import HostUnfit, StartError, StartReason

# Where the gate and its files are inside every sandbox. A directory at the root with a name of our
# own: nothing in an image can redirect it, because our layer lies over the image's.
DIRECTORY = "/.tickmesh"
PROGRAM = f"{DIRECTORY}/gate"
EXCHANGE = f"{DIRECTORY}/io"
PAYLOAD = f"{EXCHANGE}/payload"

EXIT_CLOSED = 125
EXIT_NOT_STARTED = 127
"""Of a gate that was started directly, whose command cannot be; a line in its output says why."""

_ERRORS = {
    "m": (StartReason.MESSAGE_INVALID, "the gate refused its message"),
    "p": (StartReason.MESSAGE_INVALID, "the payload could not be opened"),
    "f": (StartReason.MESSAGE_INVALID, "the gate could not fork (is the limit of pids too small?)"),
    "c": (StartReason.WORKING_DIRECTORY_INVALID, "the working directory cannot be entered"),
    "x": (StartReason.COMMAND_NOT_EXECUTABLE, "the command cannot be executed"),
}
_ENOENT = 2


def program(name: str) -> Path:
    """The path of `gate` or `recorder` for this machine. Raises HostUnfit on an unknown one."""
    path = Path(__file__).with_name(f"{name}-{platform.machine()}")
    if not path.exists():
        raise HostUnfit([f"no {path.name}: only x86_64 and aarch64 are built (scripts/build-gate)"])
    return path


def encode(arguments: list[str], variables: dict[str, str], directory: str) -> bytes:
    """The message that opens a gate. Raises StartError for what execve could not take anyway."""
    strings = [*arguments, *(f"{key}={value}" for key, value in variables.items()), directory]
    if not arguments:
        raise StartError(StartReason.MESSAGE_INVALID, 0, "the command is empty")
    if len(strings) > limits.STRINGS_MAX:
        raise StartError(
            StartReason.MESSAGE_INVALID,
            0,
            f"{len(strings)} arguments and variables, at most {limits.STRINGS_MAX}",
        )
    encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
    for string in encoded:
        if b"\0" in string:
            raise StartError(
                StartReason.MESSAGE_INVALID,
                0,
                f"a NUL byte in {string[:64]!r}: execve cannot pass it",
            )
        if len(string) > limits.STRING_BYTES_MAX:
            raise StartError(
                StartReason.MESSAGE_INVALID,
                0,
                f"{len(string)} bytes in {string[:64]!r}...: one argument or variable has at most "
                f"{limits.STRING_BYTES_MAX}",
            )
    body = struct.pack("<II", len(arguments), len(variables)) + b"\0".join(encoded) + b"\0"
    if len(body) + 4 > limits.MESSAGE_BYTES_MAX:
        raise StartError(
            StartReason.MESSAGE_INVALID,
            0,
            f"arguments and environment have {len(body)} bytes, at most {limits.MESSAGE_BYTES_MAX}",
        )
    return struct.pack("<I", len(body)) + body


def failure(report: bytes) -> StartError | None:
    """What the gate wrote before its end-of-file: None when the command runs."""
    report = report.removeprefix(b"w")
    if not report:
        return None
    step, error = chr(report[0]), int.from_bytes(report[1:5], "little")
    reason, message = _ERRORS.get(step, (StartReason.MESSAGE_INVALID, f"step {step!r} failed"))
    if step == "x" and error == _ENOENT:
        reason = StartReason.COMMAND_NOT_FOUND
    return StartError(reason, error, message)
