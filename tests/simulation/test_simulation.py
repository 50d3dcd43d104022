"""Some seeds of the whole shard, few enough for every run of the tests; scripts/simulate: more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .world import run

MINUTES = 1.0
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", range(1, 7))
def test_whatever_goes_wrong_what_was_promised_holds(seed: int) -> None:
    report = run(seed, MINUTES)
    trace = "\n".join(report.trace[-40:])
    assert not report.violations, f"{report.violations[0]}\n{trace}"
    assert report.counts["entries"] > 50
    assert report.counts["starts"] > 10
    assert report.counts["calls"] > 20
    assert report.counts["audited"] > 10
    assert report.counts["told"] > 20


def test_a_seed_is_one_course_of_events() -> None:
    """In another process too, where sets of strings have another order."""
    here = run(5, 0.3)
    program = "from tests.simulation.world import run; print(run(5, 0.3).trace_hash)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert there.stdout.strip() == here.trace_hash
    assert run(6, 0.3).trace_hash != here.trace_hash
