"""The gate's message and its answers."""

import struct

import pytest

from tickmesh.executor import gate, limits
from tickmesh.executor.errors import StartError, StartReason


def decode(message: bytes) -> tuple[list[bytes], int, int]:
    length, arguments, variables = struct.unpack_from("<III", message)
    assert length == len(message) - 4
    body = message[12:]
    assert body.endswith(b"\0")
    return body[:-1].split(b"\0"), arguments, variables


def test_a_message_holds_all_strings_in_order() -> None:
    message = gate.encode(["/x", "", "ü"], {"A": "1", "B": ""}, "/w")
    assert decode(message) == ([b"/x", b"", "ü".encode(), b"A=1", b"B=", b"/w"], 3, 2)


def test_bytes_that_are_no_text_pass() -> None:
    strings, _, _ = decode(gate.encode(["\udcff"], {}, "/"))
    assert strings[0] == b"\xff"


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        ([], {}, "the command is empty"),
        (["a\0b"], {}, "a NUL byte"),
        (["a"], {"B": "\0"}, "a NUL byte"),
        (["a" * limits.STRING_BYTES_MAX + "b"], {}, "at most 131071"),
        (["a"], {"B": "x" * limits.STRING_BYTES_MAX}, "at most 131071"),
        (["a"] * limits.STRINGS_MAX, {}, "at most 16384"),
        (["a" * 100_000] * 11, {}, "at most 1048576"),
    ],
)
def test_what_execve_cannot_take_is_refused(
    arguments: list[str], variables: dict[str, str], words: str
) -> None:
    with pytest.raises(StartError, match=words) as caught:
        gate.encode(arguments, variables, "/")
    assert caught.value.reason is StartReason.MESSAGE_INVALID


def test_the_largest_strings_pass() -> None:
    gate.encode(["a" * limits.STRING_BYTES_MAX], {}, "/")
    gate.encode(["a"] * (limits.STRINGS_MAX - 1), {}, "/")


@pytest.mark.parametrize(
    ("step", "errno", "reason"),
    [
        (b"x", 2, StartReason.COMMAND_NOT_FOUND),
        (b"x", 13, StartReason.COMMAND_NOT_EXECUTABLE),
        (b"x", 8, StartReason.COMMAND_NOT_EXECUTABLE),
        (b"c", 2, StartReason.WORKING_DIRECTORY_INVALID),
        (b"f", 11, StartReason.MESSAGE_INVALID),
        (b"?", 0, StartReason.MESSAGE_INVALID),
    ],
)
def test_an_answer_says_which_step_failed_and_how(
    step: bytes, errno: int, reason: StartReason
) -> None:
    error = gate.failure(b"w" + step + errno.to_bytes(4, "little"))
    assert error is not None
    assert (error.reason, error.errno) == (reason, errno)


def test_an_end_of_file_alone_is_the_exec() -> None:
    assert gate.failure(b"w") is None
