"""What an executor can hold, and what of it is taken. Pure.

A job's memory is counted whole, as it may use it and cannot be made to give it back (its scratch
disk is part of it). Processor time is a limit and no reservation, so that executors offer more than
they have. Spares are not counted here: one that waits needs next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from .sandbox import NETWORK_EGRESS, Work

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an executor has to give; 0: not counted."""

    slot_count: int
    memory_bytes: int = 0
    cpu_millis: int = 0
    egress: bool = True
    runtimes: tuple[str, ...] = ()
    """Those that plans may name."""
    capabilities: bool = True
    """Whether it grants those that plans have."""


class Room:
    """What is taken of a capacity, by attempt."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._taken: dict[str, tuple[int, int]] = {}
        self.memory_bytes = 0
        """Taken."""
        self.cpu_millis = 0
        """Taken."""

    def refusal(self, work: Work) -> str:
        """Why there is no room for an attempt; "" if there is."""
        capacity = self.capacity
        if len(self._taken) >= capacity.slot_count:
            return f"all of its {capacity.slot_count} slots are taken"
        memory_bytes = self.memory_bytes + work.memory_bytes
        if capacity.memory_bytes and memory_bytes > capacity.memory_bytes:
            return (
                f"of its {capacity.memory_bytes // MIB} MiB of memory "
                f"{self.memory_bytes // MIB} are taken, and {work.memory_bytes // MIB} were asked "
                "for"
            )
        cpu_millis = self.cpu_millis + work.cpu_millis
        if capacity.cpu_millis and cpu_millis > capacity.cpu_millis:
            return (
                f"of its {capacity.cpu_millis} thousandths of a core {self.cpu_millis} are taken, "
                f"and {work.cpu_millis} were asked for"
            )
        if work.network == NETWORK_EGRESS and not capacity.egress:
            return "it gives no egress"
        if work.runtime and work.runtime not in capacity.runtimes:
            return f"it has no runtime {work.runtime}"
        if work.capabilities and not capacity.capabilities:
            return "it grants no capabilities, as it has no user namespaces"
        return ""

    def take(self, work: Work) -> None:
        """Count an attempt; it may be more than there is room for, as what is found again is."""
        if work.attempt_id not in self._taken:
            self._taken[work.attempt_id] = work.memory_bytes, work.cpu_millis
            self.memory_bytes += work.memory_bytes
            self.cpu_millis += work.cpu_millis

    def give(self, attempt_id: str) -> None:
        """An attempt has ended; one that was not counted is passed over."""
        memory_bytes, cpu_millis = self._taken.pop(attempt_id, (0, 0))
        self.memory_bytes -= memory_bytes
        self.cpu_millis -= cpu_millis
