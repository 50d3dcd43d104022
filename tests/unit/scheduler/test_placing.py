"""Which executor takes what, and who may take how much."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tickmesh.scheduler import placing
from tickmesh.scheduler.placing import Asked, Host, Hosts, Need, No, hashed, score

MIB = 1 << 20
NEED = Need(256 * MIB, 1_000)
EU = (("region", "eu"),)


def add(hosts: Hosts, name: str, slots: int = 8, **more: Any) -> Host:
    host = hosts[name]
    host.incarnation = f"{name}.1"
    host.slot_count = slots
    for key, value in more.items():
        setattr(host, key, value)
    hosts.attach(host)
    return host


def fill(hosts: Hosts, host: Host, count: int, customer: str = "busy", need: Need = NEED) -> None:
    for _ in range(count):
        hosts.take(host, customer, need)


def placed(hosts: Hosts, need: Need = NEED, customer: str = "acme", **more: int) -> str:
    """Where it goes; or why not."""
    host = hosts.place(Asked(customer, need, **more))
    return host.value if isinstance(host, No) else host.executor_id


def test_most_room_wins_by_what_is_scarcest() -> None:
    hosts = Hosts()
    assert placed(hosts) == "slot"
    add(hosts, "a", 8)
    add(hosts, "b", 9)
    assert placed(hosts) == "b"
    fill(hosts, hosts["b"], 2)
    assert placed(hosts) == "a"
    hosts["a"].memory_bytes = 512 * MIB  # room for two of them
    assert placed(hosts) == "b"
    hosts["b"].cpu_millis = 3_000
    assert placed(hosts) == "a"


@pytest.mark.parametrize(
    ("more", "need", "expected"),
    [
        ({"labels": frozenset(EU)}, Need(MIB, 10, labels=EU), "a"),
        ({"labels": frozenset((*EU, ("gpu", "1")))}, Need(MIB, 10, labels=EU), "a"),
        ({"labels": frozenset({("region", "us")})}, Need(MIB, 10, labels=EU), "room"),
        ({}, Need(MIB, 10, labels=EU), "room"),
        ({"egress": True}, Need(MIB, 10, egress=True), "a"),
        ({}, Need(MIB, 10, egress=True), "room"),
        ({"runtimes": frozenset({"runsc", "kata"})}, Need(MIB, 10, runtime="kata"), "a"),
        ({"runtimes": frozenset({"runsc"})}, Need(MIB, 10, runtime="kata"), "room"),
        ({}, Need(MIB, 10, runtime="kata"), "room"),
        ({"runtimes": frozenset({"runsc"})}, Need(MIB, 10), "a"),
        ({"capabilities": True}, Need(MIB, 10, capabilities=True), "a"),
        ({}, Need(MIB, 10, capabilities=True), "room"),
        ({"memory_bytes": 100 * MIB}, Need(100 * MIB, 10), "a"),
        ({"memory_bytes": 100 * MIB}, Need(101 * MIB, 10), "room"),
        ({"cpu_millis": 999}, Need(MIB, 1_000), "room"),
        ({"slot_count": 0}, Need(MIB, 10), "slot"),
        ({"draining": True}, Need(MIB, 10), "slot"),
    ],
)
def test_what_does_not_fit_is_not_placed(more: dict[str, Any], need: Need, expected: str) -> None:
    hosts = Hosts()
    add(hosts, "a", **more)
    assert placed(hosts, need) == expected


def test_the_image_goes_before_a_spare_and_a_spare_before_room() -> None:
    hosts = Hosts()
    image, job = hashed("acme/x:1"), hashed("customers/acme/jobs/x")
    add(hosts, "roomy", 100)
    add(hosts, "spare", 8)
    add(hosts, "image", 4)
    hosts.offers(hosts["spare"], False, [], [job])
    assert placed(hosts, image=image, job=job) == "spare"
    hosts.offers(hosts["image"], False, [image], [])
    assert placed(hosts, image=image, job=job) == "image"
    hosts.offers(hosts["spare"], False, [image], [job])
    assert placed(hosts, image=image, job=job) == "spare"
    assert placed(hosts, image=1, job=2) == "roomy"
    # Nearly full, it is not worth the crowd.
    fill(hosts, hosts["spare"], 7)
    assert placed(hosts, image=image, job=job) == "image"
    hosts.offers(hosts["image"], False, [], [])
    assert placed(hosts, image=image, job=job) == "roomy"


def test_a_score_is_of_the_host_alone() -> None:
    host = Host("a")
    host.slot_count, host.images, host.jobs = 8, frozenset({1}), frozenset({2})
    assert score(host, Asked("acme", NEED, 1, 2), 5) == (True, True, 5)
    assert score(host, Asked("acme", NEED, 1, 3), 5) == (True, False, 5)
    host.slots_used = 7
    assert score(host, Asked("acme", NEED, 1, 2), 5) == (False, False, 5)


def test_one_customer_alone_leaves_room_and_a_newcomer_finds_it() -> None:
    hosts = Hosts()
    host = add(hosts, "a", 64)
    while placed(hosts, customer="many") == "a":
        hosts.take(host, "many", NEED)
    assert placed(hosts, customer="many") == "share"
    assert host.slots_used == 61
    for _ in range(3):  # and who has few gets what is left
        assert placed(hosts, customer="one") == "a"
        hosts.take(host, "one", NEED)
    assert placed(hosts, customer="two") == "slot"
    # The next slot that is free is not for those who have most of them.
    hosts.give(host, "many", NEED)
    assert placed(hosts, customer="many") == "share"
    assert placed(hosts, customer="two") == "a"


@pytest.mark.parametrize("slots", [1, 2, 16])
def test_a_small_mesh_keeps_nothing_free(slots: int) -> None:
    hosts = Hosts()
    host = add(hosts, "a", slots)
    fill(hosts, host, slots - 1, "many")
    assert placed(hosts, customer="many") == "a"


def test_memory_is_shared_like_slots_and_a_weight_counts() -> None:
    hosts = Hosts(lambda customer: 4 if customer == "heavy" else 1)
    host = add(hosts, "a", 1_000, memory_bytes=32 * 1024 * MIB)
    large = Need(1024 * MIB, 10)
    for customer, expected in (("many", 31), ("heavy", 32)):
        count = 0
        while placed(hosts, large, customer) == "a":
            hosts.take(host, customer, large)
            count += 1
        assert count == expected
        for _ in range(count):
            hosts.give(host, customer, large)


def test_what_a_lost_executor_holds_is_counted_until_it_has_ended() -> None:
    hosts = Hosts()
    host = add(hosts, "a", 8)
    fill(hosts, host, 3)
    hosts.detach(host)
    assert (placed(hosts), hosts.slot_count) == ("slot", 0)
    assert add(hosts, "a", 8).slots_used == 3
    hosts.detach(hosts["a"])
    for _ in range(3):
        hosts.give(hosts["a"], "busy", NEED)
    assert add(hosts, "a", 8).slots_used == 0


def test_a_drained_executor_is_given_nothing_until_it_is_undone() -> None:
    hosts = Hosts()
    host = add(hosts, "a")
    hosts.offers(host, True, [], [])
    assert (placed(hosts), hosts.slot_count) == ("slot", 0)
    hosts.offers(host, False, [], [])
    assert placed(hosts) == "a"


def test_the_one_that_fits_is_found_among_thousands_and_each_look_is_bounded() -> None:
    hosts = Hosts()
    for number in range(2_000):
        fill(hosts, add(hosts, f"full-{number}", 1), 1)
    add(hosts, "free", 1)
    looks = 0
    while placed(hosts) == "room":
        looks += 1
    assert looks <= 2_001 // placing.SCAN_MAX + 1
    image = hashed("acme/x:1")
    hosts.offers(hosts["free"], False, [image], [])
    assert placed(hosts, image=image) == "free"
    add(hosts, "labelled", 1, labels=frozenset(EU))
    assert placed(hosts, Need(MIB, 10, labels=EU)) == "labelled"
    began = time.perf_counter()
    for _ in range(200):
        placed(hosts)
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    ("more", "need", "words"),
    [
        (None, NEED, "no executor is attached"),
        ({}, Need(MIB, 10, labels=EU), "no executor with the labels region=eu is attached"),
        ({}, Need(MIB, 10, egress=True), "no executor gives egress"),
        (
            {"labels": frozenset(EU), "memory_bytes": 128 * MIB, "cpu_millis": 2_000},
            Need(256 * MIB, 1_000, labels=EU),
            "no executor with the labels region=eu is large enough for its 256 MiB of memory and "
            "1000 thousandths of a core; the largest gives 128 MiB and 2000",
        ),
        ({"draining": True}, NEED, "every executor that fits it is drained"),
        ({"slots_used": 8}, NEED, "every executor that fits it is full"),
        ({}, NEED, ""),
    ],
)
def test_who_waits_is_told_why(more: dict[str, Any] | None, need: Need, words: str) -> None:
    hosts = Hosts()
    if more is not None:
        add(hosts, "a", **more)
    assert hosts.reason("acme", need) == words


def test_who_holds_enough_is_told_so() -> None:
    hosts = Hosts()
    fill(hosts, add(hosts, "a", 64), 61, "many")
    assert hosts.reason("many", NEED).startswith("customers/many holds 61 slots")
    assert hosts.reason("one", NEED) == ""
