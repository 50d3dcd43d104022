"""A command whose standard streams are closed, full or read by nobody; and how long it waits."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.sdk.fake_gateway import FakeGateway
from tickmesh.sdk.cli.main import EXIT_DEADLINE, EXIT_GENERIC, EXIT_NOT_FOUND, run

TICKMESH = shlex.join(
    [sys.executable, "-c", "from tickmesh.sdk.cli.main import main; main()", "--timeout", "60s"]
)
FOUND = "job list"
NOT_FOUND = "job get nobody"
FULL = "error: [Errno 28] No space left on device\n"
NOT_OPEN = "error: [Errno 9] Bad file descriptor\n"
SAID = "error: customers/default/jobs/nobody: there is none\n"


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    made = FakeGateway()
    with made.serving() as address:
        monkeypatch.setenv("TICKMESH_ADDRESS", address)
        monkeypatch.delenv("TICKMESH_CUSTOMER", raising=False)
        assert run(["job", "create", "hello", "--image", "busybox:1"]) == 0
        yield made


@pytest.mark.parametrize(
    ("command", "redirection", "code", "said"),
    [
        (FOUND, ">&-", 0, ""),
        ("run hello --follow", ">&-", 0, ""),
        (NOT_FOUND, ">&-", EXIT_NOT_FOUND, SAID),
        (NOT_FOUND, "2>&-", EXIT_NOT_FOUND, ""),
        (NOT_FOUND, "2>/dev/full", EXIT_NOT_FOUND, ""),
        (FOUND, "<&- >&- 2>&-", 0, ""),
        (FOUND, ">/dev/full", EXIT_GENERIC, FULL),
        (FOUND, "| :", EXIT_GENERIC, ""),
        (
            "run hello --payload-file -",
            "<&-",
            EXIT_GENERIC,
            "error: [Errno 9] Bad file descriptor\n",
        ),
    ],
)
@pytest.mark.usefixtures("gateway")
def test_it_ends_by_its_exit_code_and_without_a_traceback(
    command: str, redirection: str, code: int, said: str
) -> None:
    script = f"{TICKMESH} {command} {redirection}"
    shell = f"set -o pipefail; ( {script} )"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, said)
    if "2>" in redirection:
        assert done.stdout == ""


class Quiet(FakeGateway):
    """Output ends after a second, and executions never do."""

    def StreamLogs(self, request: Any, context: Any) -> Iterator[Any]:
        time.sleep(1)
        yield from ()

    def succeed(self, execution: Any) -> None:
        return


def test_a_wait_for_output_and_for_the_end_is_one(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The output took its time, and then the end was waited for as long again."""
    gateway = Quiet()
    with gateway.serving() as address:
        monkeypatch.setenv("TICKMESH_ADDRESS", address)
        assert run(["job", "create", "hello", "--image", "busybox:1"]) == 0
        assert run(["run", "hello", "--follow", "--wait-timeout", "3s"]) == EXIT_DEADLINE
        assert gateway.calls[-1] == "WatchExecutions"
        assert gateway.last_deadline_s < 2.1
    assert "has not ended after 3 s, and goes on" in capfd.readouterr().err
