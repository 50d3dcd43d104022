"""Half a minute of it; `scripts/chaos` goes on for as long as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mesh import run

SECONDS = 30.0


@pytest.mark.integration
async def test_what_was_promised_holds_whoever_is_killed(tmp_path: Path) -> None:
    report = await run(1, "inprocess", SECONDS, tmp_path)
    trace = "\n".join(report.trace[-60:])
    assert not report.violations, f"{report.violations[0]}\n{trace}"
    faults, executions = report.counts["faults"], report.counts["executions"]
    assert isinstance(faults, dict) and sum(faults.values()) > 5
    assert isinstance(executions, dict) and executions["SUCCEEDED"] > 10
