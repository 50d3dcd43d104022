"""What an executor has room for."""

from __future__ import annotations

from typing import Any

import pytest

from tickmesh.executor.room import Capacity, Room
from tickmesh.executor.sandbox import NETWORK_EGRESS, Work

MIB = 1 << 20


def work(name: str = "a", memory: int = 100, cpu: int = 1_000, **more: Any) -> Work:
    return Work(name, "acme", "x:1", memory_bytes=memory * MIB, cpu_millis=cpu, **more)


@pytest.mark.parametrize(
    ("capacity", "asked", "words"),
    [
        (Capacity(2, 200 * MIB, 2_000), work("b"), ""),
        (Capacity(1, 200 * MIB, 2_000), work("b"), "all of its 1 slots are taken"),
        (Capacity(2, 199 * MIB, 2_000), work("b"), "of its 199 MiB of memory 100 are taken"),
        (Capacity(2, 200 * MIB, 1_999), work("b"), "of its 1999 thousandths of a core 1000 are"),
        (Capacity(2), work("b", memory=1 << 20, cpu=4_000), ""),
        (Capacity(2, egress=False), work("b", network=NETWORK_EGRESS), "it gives no egress"),
        (Capacity(2, egress=True), work("b", network=NETWORK_EGRESS), ""),
        (Capacity(2), work("b", runtime="kata"), "it has no runtime kata"),
        (Capacity(2, runtimes=("runsc",)), work("b", runtime="kata"), "it has no runtime kata"),
        (Capacity(2, runtimes=("runsc", "kata")), work("b", runtime="kata"), ""),
        (
            Capacity(2, capabilities=False),
            work("b", capabilities=("CAP_CHOWN",)),
            "it grants no capabilities, as it has no user namespaces",
        ),
        (Capacity(2), work("b", capabilities=("CAP_CHOWN",)), ""),
    ],
)
def test_what_is_missing_is_named(capacity: Capacity, asked: Work, words: str) -> None:
    room = Room(capacity)
    room.take(work("a"))
    refusal = room.refusal(asked)
    assert refusal.startswith(words) and bool(refusal) == bool(words)


def test_what_is_taken_is_counted_once_and_given_back_once() -> None:
    room = Room(Capacity(2, 150 * MIB))
    room.take(work("a"))
    room.take(work("a"))
    assert (room.memory_bytes, room.cpu_millis) == (100 * MIB, 1_000)
    room.take(work("b"))  # found again: there or not
    assert (room.memory_bytes, room.cpu_millis) == (200 * MIB, 2_000)
    room.give("a")
    room.give("a")
    room.give("never")
    assert (room.memory_bytes, room.cpu_millis) == (100 * MIB, 1_000)
