"""Whose turn it is among those that wait for an executor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tickmesh.scheduler import waiting as module
from tickmesh.scheduler.placing import Need, No
from tickmesh.scheduler.waiting import Waiting

SMALL, LARGE = Need(64, 100), Need(1024, 100)


def served(
    waiting: Waiting,
    now_ms: int,
    count: int = 1_000_000,
    no: Callable[[bytes], No | None] = lambda _: None,
) -> list[bytes]:
    """What is served in one pass, in its order; `no`: what is not, and why."""

    def place(identity: bytes) -> bytes | No:
        answer = no(identity)
        return identity if answer is None else answer

    return waiting.serve(now_ms, count, place)


def test_customers_take_turns_and_each_is_served_oldest_first() -> None:
    waiting = Waiting()
    for number in (3, 1, 2):
        waiting.add(number, "many", SMALL, b"many-%d" % number)
    waiting.add(9, "one", SMALL, b"one-9")
    assert served(waiting, 10) == [b"many-1", b"one-9", b"many-2", b"many-3"]
    assert len(waiting) == 0


def test_who_comes_later_waits_for_one_of_each_and_not_for_all() -> None:
    waiting = Waiting()
    for number in range(1_000):
        waiting.add(0, "many", SMALL, b"%d" % number)
    assert len(served(waiting, 0, 10)) == 10
    waiting.add(1, "one", SMALL, b"one")
    assert served(waiting, 1).index(b"one") <= 1


def test_a_customer_that_is_forgotten_waits_no_more_until_it_is_added_again() -> None:
    waiting = Waiting()
    for number in range(3):
        waiting.add(0, "moved", SMALL, b"moved-%d" % number)
        waiting.add(number, "other", SMALL, b"other-%d" % number)
    waiting.add(50, "moved", SMALL, b"moved-later")
    assert served(waiting, 0, 2) == [b"moved-0", b"other-0"]
    waiting.forget("moved")
    waiting.forget("nobody")
    assert waiting.wake_ms() == 1
    waiting.add(0, "moved", LARGE, b"moved-2")
    assert sorted(served(waiting, 60)) == [b"moved-2", b"other-1", b"other-2"]
    assert len(waiting) == 0


def test_what_is_not_ready_takes_no_turn() -> None:
    waiting = Waiting()
    waiting.add(50, "retries", SMALL, b"later")
    waiting.add(5, "retries", SMALL, b"now")
    assert served(waiting, 10) == [b"now"]
    assert waiting.wake_ms() == 50
    assert served(waiting, 50) == [b"later"]
    assert waiting.wake_ms() is None


def test_a_customer_of_weight_three_gets_three_turns_where_another_gets_one() -> None:
    waiting = Waiting(lambda customer: 3 if customer == "heavy" else 1)
    for number in range(90):
        for customer in ("heavy", "light"):
            waiting.add(0, customer, SMALL, b"%s-%d" % (customer.encode(), number))
    counted = Counter(identity.partition(b"-")[0] for identity in served(waiting, 0, 80))
    assert counted == {b"heavy": 60, b"light": 20}


def test_what_there_is_no_room_for_stands_in_nobodys_way() -> None:
    waiting = Waiting()
    asked: list[bytes] = []

    def large(identity: bytes) -> No | None:
        asked.append(identity)
        return No.ROOM if identity.startswith(b"large") else None

    for number in range(5):
        waiting.add(number, "big", LARGE, b"large-%d" % number)
        waiting.add(number, "both", LARGE, b"large-b%d" % number)
    waiting.add(9, "both", SMALL, b"small")
    waiting.add(9, "other", SMALL, b"other")
    assert sorted(served(waiting, 9, no=large)) == [b"other", b"small"]
    assert (
        len([each for each in asked if each.startswith(b"large")]) == 1
    )  # one of a need is enough
    assert waiting.stuck and len(waiting) == 10
    assert len(served(waiting, 9)) == 10


def test_a_customer_that_holds_enough_is_passed_over_and_loses_no_turn() -> None:
    waiting = Waiting()
    for number in range(3):
        waiting.add(0, "much", SMALL, b"much-%d" % number)
        waiting.add(0, "little", SMALL, b"little-%d" % number)

    def share(identity: bytes) -> No | None:
        return No.SHARE if identity.startswith(b"much") else None

    assert served(waiting, 0, 2, no=share) == [b"little-0", b"little-1"]
    assert served(waiting, 0, 2)[0] == b"much-0"


def test_without_a_slot_nobody_else_is_asked_for() -> None:
    waiting = Waiting()
    asked: list[bytes] = []

    def none(identity: bytes) -> No:
        asked.append(identity)
        return No.SLOT

    for number in range(100):
        waiting.add(0, f"c{number}", SMALL, b"%d" % number)
    assert served(waiting, 0, no=none) == []
    assert len(asked) == 1 and waiting.stuck and not waiting.unfinished


def test_what_does_not_wait_any_more_takes_no_turn_and_no_room() -> None:
    waiting = Waiting()
    for number in range(3):
        waiting.add(number, "a", SMALL, b"a%d" % number)
    waiting.add(0, "b", SMALL, b"b")
    gone = served(waiting, 5, 2, no=lambda each: No.GONE if each in (b"a0", b"a1") else None)
    assert gone == [b"b", b"a2"]


def test_a_newcomer_overtakes_only_those_that_nobody_can_place() -> None:
    waiting = Waiting()
    assert not waiting.before("new")
    waiting.add(0, "old", SMALL, b"1")
    waiting.add(0, "old", SMALL, b"2")
    assert not waiting.before("new")  # not ready: it is nobody's turn yet
    served(waiting, 0, 1)
    assert waiting.before("new")
    served(waiting, 0, no=lambda _: No.SHARE)
    assert not waiting.before("new") and waiting.before("old")
    waiting.look_again()
    assert waiting.before("new")


def test_a_pass_ends_though_endlessly_many_cannot_be_placed_and_the_next_begins_with_others() -> (
    None
):
    waiting = Waiting()
    for number in range(3 * module.MISSES_MAX):
        waiting.add(0, f"odd-{number}", Need(number + 2_000, 1), b"odd-%d" % number)
    waiting.add(1, "plain", SMALL, b"plain")
    asked = 0

    def odd(identity: bytes) -> No | None:
        nonlocal asked
        asked += 1
        return No.ROOM if identity.startswith(b"odd") else None

    passes = 0
    while not served(waiting, 1, no=odd):
        assert waiting.unfinished and asked <= module.MISSES_MAX
        asked, passes = 0, passes + 1
    assert passes <= 4


def test_one_customers_many_needs_are_looked_at_in_part_each_time_and_all_at_last() -> None:
    waiting = Waiting()
    for number in range(500):
        waiting.add(number, "odd", Need(number + 2_000, 1), b"odd-%d" % number)
    waiting.add(9_999, "odd", SMALL, b"fits")
    found: list[bytes] = []
    for _ in range(20):
        found += served(
            waiting, 9_999, no=lambda each: No.ROOM if each.startswith(b"odd") else None
        )
    assert found == [b"fits"]
