"""The simulator finds bugs that are put back in: else it would prove nothing."""

from __future__ import annotations

import pytest

from .mutations import MUTATIONS, mutated
from .world import run

SEEDS_MAX = 80
"""Within so many seeds; most are found by the first or the second, the rarest by one in thirty."""

MINUTES = 1.0

FIRST_SEEDS = {
    "attempt_number_ignored": 43,
    "time_runs_backwards_in_the_log": 6,
    "two_lists_at_once": 25,
    "list_before_an_own_entry": 5,
    "removed_replica_counted": 10,
    "list_forgotten_in_a_snapshot": 5,
}
"""Where the search begins, for those that take longest: it only saves time."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_bug_that_is_put_back_is_found(name: str) -> None:
    first = FIRST_SEEDS.get(name, 1)
    with mutated(name):
        found = any(
            run((first + number - 1) % SEEDS_MAX + 1, MINUTES).violations
            for number in range(SEEDS_MAX)
        )
    assert found, f"{name} was not found in {SEEDS_MAX} seeds"
