"""The simulator finds bugs that are put back in: else it would prove nothing."""

from __future__ import annotations

import pytest

from .mutations import MUTATIONS, mutated
from .world import run

SEEDS_MAX = 24
"""Within so many seeds; most are found by the first."""

MINUTES = 1.0


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_bug_that_is_put_back_is_found(name: str) -> None:
    with mutated(name):
        found = any(run(seed, MINUTES).violations for seed in range(1, SEEDS_MAX + 1))
    assert found, f"{name} was not found in {SEEDS_MAX} seeds"
