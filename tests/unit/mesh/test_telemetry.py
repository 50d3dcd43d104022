"""Log lines: what is in one, and what is not."""

import datetime
import json
import subprocess
import sys

import pytest

from tickmesh.mesh import telemetry

PROGRAM = """
from tickmesh.mesh import telemetry
telemetry.start("executor", "executor-7")
telemetry.logger("a.module").info("it serves", port=1)
"""


def test_a_line_says_what_happened_to_what_and_where(capfd: pytest.CaptureFixture[str]) -> None:
    telemetry.logger("a.module").warning("too late", attempt="a-1", late_s=0.5, path={"x": object})
    line = json.loads(capfd.readouterr().err)
    told = datetime.datetime.fromisoformat(line.pop("timestamp"))
    assert abs(datetime.datetime.now(datetime.UTC) - told) < datetime.timedelta(minutes=1)
    assert line == {
        **{"module": "a.module", "level": "warning", "event": "too late"},
        **{"attempt": "a-1", "late_s": 0.5, "path": {"x": "<class 'object'>"}},
    }


def test_each_line_of_a_process_says_which_one_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=60)
    (line,) = done.stderr.splitlines()
    found = json.loads(line)
    assert (found["service"], found["instance"]) == ("executor", "executor-7")


def test_an_error_brings_its_traceback() -> None:
    lines: list[telemetry.Event] = []
    error: BaseException | None = None
    try:
        raise ValueError("a reason")
    except ValueError as raised:
        error = raised
    with telemetry.diverted(lines.append):
        telemetry.logger("a.module").error("it failed", exc_info=error)
    (line,) = lines
    exception = str(line["exception"])
    assert exception.startswith("Traceback") and exception.endswith("ValueError: a reason")
    assert "exc_info" not in line


@pytest.mark.parametrize("key", ["api_key", "Authorization", "new_password", "payload"])
def test_a_secret_is_not_told(key: str) -> None:
    lines: list[telemetry.Event] = []
    with telemetry.diverted(lines.append):
        telemetry.logger("a.module").info("a call", **{key: "s3cret"})
    (line,) = lines
    assert line[key] == "[hidden]" and "s3cret" not in str(line)
