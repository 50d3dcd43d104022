"""Every way to end has its reason, and a message that says what was wrong."""

from __future__ import annotations

import pytest

from tickmesh.executor import convert
from tickmesh.executor.errors import (
    ContainerdUnavailable,
    ExecutorError,
    ImageError,
    ImageReason,
    SandboxError,
    StartError,
    StartReason,
)
from tickmesh.executor.sandbox import Exit
from tickmesh.mesh.limits import STATUS_MESSAGE_CHARACTERS_MAX
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1.execution_pb2 import ExecutionReason


def named(reason: int) -> str:
    return ExecutionReason.Name(reason).removeprefix("EXECUTION_REASON_")


def exit(code: int, signal: int = 0, oom: bool = False) -> Exit:
    return Exit(code, signal, oom, finished_ns=5, peak_memory_bytes=6, cpu_ns=7)


@pytest.mark.parametrize(
    ("ended", "stop", "reason", "words"),
    [
        (exit(0), 0, "UNSPECIFIED", ""),
        (exit(3), 0, "EXIT_CODE", "code 3"),
        (exit(139, 11), 0, "SIGNAL", "SIGSEGV"),
        (exit(128 + 40, 40), 0, "SIGNAL", "signal 40"),
        (exit(137, 9, oom=True), 0, "OUT_OF_MEMORY", "4096 bytes"),
        (exit(143, 15), ExecutionReason.EXECUTION_REASON_TIMEOUT, "TIMEOUT", "why"),
        (exit(0), ExecutionReason.EXECUTION_REASON_CANCELLED, "CANCELLED", "why"),
    ],
)
def test_an_exit_is_told_by_its_cause(ended: Exit, stop: int, reason: str, words: str) -> None:
    end = convert.exited(ended, 4096, stop, "why")
    assert named(end.reason) == reason
    assert words in end.message
    assert bool(end.message) == (reason != "UNSPECIFIED")
    assert (end.exit_code, end.ended_ns, end.peak_memory_bytes, end.cpu_ns) == (
        ended.exit_code,
        5,
        6,
        7,
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImageError(ImageReason.NOT_FOUND, "no x"), "IMAGE_NOT_FOUND"),
        (ImageError(ImageReason.UNSUPPORTED, "no x"), "IMAGE_NOT_FOUND"),
        (ImageError(ImageReason.TOO_LARGE, "no x"), "IMAGE_TOO_LARGE"),
        (ImageError(ImageReason.CORRUPT, "no x"), "IMAGE_CORRUPT"),
        (ImageError(ImageReason.REGISTRY_DENIED, "no x"), "REGISTRY_UNAVAILABLE"),
        (ImageError(ImageReason.NO_COMMAND, "no x"), "COMMAND_NOT_STARTED"),
        (StartError(StartReason.COMMAND_NOT_FOUND, 2, "no x"), "COMMAND_NOT_STARTED"),
        (StartError(StartReason.WORKING_DIRECTORY_INVALID, 2, "no x"), "COMMAND_NOT_STARTED"),
        (StartError(StartReason.GATE_LOST, 0, "no x"), "INFRASTRUCTURE"),
        (SandboxError("no x"), "INFRASTRUCTURE"),
        (ContainerdUnavailable("no x"), "INFRASTRUCTURE"),
        (KeyError("no x"), "INFRASTRUCTURE"),
    ],
)
def test_an_error_becomes_an_end(error: Exception, reason: str) -> None:
    end = convert.failed(error, 9)
    assert (named(end.reason), end.ended_ns, end.exit_code) == (reason, 9, None)
    assert "no x" in end.message
    assert ("bug" in end.message) != isinstance(error, ExecutorError)


def test_every_reason_of_an_image_is_mapped() -> None:
    for reason in ImageReason:
        assert convert.failed(ImageError(reason, "x"), 0).reason


def test_a_report_carries_an_end_whole_and_back() -> None:
    phase = shard_pb2.ATTEMPT_PHASE_ENDED
    for end in (convert.exited(exit(3), 1, 0, ""), convert.failed(SandboxError("x"), 9)):
        report = convert.report("a-1", phase, 1, 2, end)
        assert convert.reported_end(report) == end
    long = convert.failed(SandboxError("x" * 5_000), 9)
    report = convert.report("a-1", phase, 1, 2, long)
    assert len(report.message) == STATUS_MESSAGE_CHARACTERS_MAX
