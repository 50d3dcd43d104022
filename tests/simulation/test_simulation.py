"""Some seeds of the whole shard, few enough for every run of the tests: scripts/simulate has more."""

from __future__ import annotations

import pytest

from .world import run

MINUTES = 1.0


@pytest.mark.parametrize("seed", range(1, 13))
def test_whatever_goes_wrong_what_was_promised_holds(seed: int) -> None:
    report = run(seed, MINUTES)
    trace = "\n".join(report.trace[-40:])
    assert not report.violations, f"{report.violations[0]}\n{trace}"
    assert report.counts["fires"] > 10
    assert report.counts["calls"] > 20


def test_a_seed_is_one_course_of_events() -> None:
    assert run(5, 0.5).trace_hash == run(5, 0.5).trace_hash
    assert run(5, 0.5).trace_hash != run(6, 0.5).trace_hash
