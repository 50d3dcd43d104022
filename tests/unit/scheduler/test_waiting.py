"""Whose turn it is among those that wait for an executor."""

from __future__ import annotations

from tickmesh.scheduler.waiting import Waiting


def served(waiting: Waiting, now_ms: int) -> list[bytes]:
    """Everything that is ready, in the order in which it is served."""
    found = []
    while (identity := waiting.first(now_ms)) is not None:
        waiting.pop()
        found.append(identity)
    return found


def test_customers_take_turns_and_each_is_served_oldest_first() -> None:
    waiting = Waiting()
    for number in (3, 1, 2):
        waiting.add(number, "many", b"many-%d" % number)
    waiting.add(9, "one", b"one-9")
    assert served(waiting, 10) == [b"many-1", b"one-9", b"many-2", b"many-3"]
    assert len(waiting) == 0


def test_who_comes_later_waits_for_one_of_each_and_not_for_all() -> None:
    waiting = Waiting()
    for number in range(1_000):
        waiting.add(0, "many", b"%d" % number)
    assert waiting.first(0) is not None
    waiting.add(1, "one", b"one")
    waiting.pop()
    assert served(waiting, 1).index(b"one") <= 1


def test_what_is_not_ready_takes_no_turn() -> None:
    waiting = Waiting()
    waiting.add(50, "retries", b"later")
    waiting.add(5, "retries", b"now")
    assert served(waiting, 10) == [b"now"]
    assert waiting.wake_ms() == 50
    assert served(waiting, 50) == [b"later"]
    assert waiting.wake_ms() is None


def test_the_first_stays_until_it_is_served() -> None:
    waiting = Waiting()
    waiting.add(1, "a", b"x")
    assert waiting.first(1) == waiting.first(2) == b"x"
