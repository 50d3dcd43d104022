"""Which executor an execution goes to: what fits, what is preferred, who may take how much. No I/O.

An executor fits a job that asks for nothing that it has not: labels, egress, memory, processor
time, a slot. Among those that fit and are not crowded, one that holds the image is preferred, then
one that has a spare of the job, then the one with most room.

Nobody may fill the mesh alone: a customer who holds much of it gets more only while much is left
(see HEADROOM), so that whoever asks for one slot finds one.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..mesh.plans import Plan
from .core.model import JobSpec, Network

HEADROOM = 16
"""A customer may take another slot while so many times those that are free are more than what it
holds: alone it gets 16 of 17. What is left is there at once for somebody else, who then is bound by
the same rule. A mesh of up to 16 slots keeps none free. (Dynamic thresholds, as switches have them
for queues that share a buffer.)"""

SCAN_MAX = 64
"""Executors looked at for one placement, beside HOLDERS_MAX: the next begins where this ended."""

HOLDERS_MAX = 16
"""Executors looked at because they hold the image, or a spare of the job."""

CROWDED_SHARE = 3, 4
"""Of an executor's slots or memory: with more taken, what it holds is no reason to go there."""

FITTING_MAX = 1_024
"""Kinds of jobs whose fitting executors are remembered, until any executor changes."""

MIB = 1 << 20


class Need(NamedTuple):
    """What an execution needs of its executor."""

    memory_bytes: int
    cpu_millis: int
    egress: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    runtime: str = ""
    """As containerd names it; "": any."""
    capabilities: bool = False
    """Of the executor: whether it grants some."""


def need_of(spec: JobSpec, plan: Plan) -> Need:
    """What executions of a job need, by its customer's plan."""
    return Need(
        spec.memory_bytes,
        spec.cpu_millis,
        spec.network is Network.EGRESS,
        spec.executor_labels,
        plan.runtime,
        bool(plan.capabilities),
    )


class Asked(NamedTuple):
    """What is known of an execution that needs an executor."""

    customer: str
    need: Need
    image: int = 0
    """As in shard_pb2.Offer."""
    job: int = 0
    """The same."""


class No(enum.Enum):
    """Why something is not placed now."""

    SLOT = "slot"
    """No executor has a free slot."""
    ROOM = "room"
    """No executor that fits has room for such a need."""
    SHARE = "share"
    """Its customer holds enough."""
    GONE = "gone"
    """It does not wait any more."""


def hashed(name: str) -> int:
    """A name as executors tell it: see shard_pb2.Offer."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class Host:
    """An executor's room, as a leader counts it."""

    __slots__ = (
        *("attached", "capabilities", "cpu_millis", "cpu_used", "draining", "egress"),
        *("executor_id", "images", "incarnation", "jobs", "labels", "memory_bytes"),
        *("memory_used", "runtimes", "slot_count", "slots_used"),
    )

    def __init__(self, executor_id: str) -> None:
        self.executor_id = executor_id
        self.incarnation = ""
        self.attached = False
        self.draining = False
        self.slot_count = 0
        self.memory_bytes = 0
        """0: not counted."""
        self.cpu_millis = 0
        """0: not counted."""
        self.egress = False
        self.runtimes: frozenset[str] = frozenset()
        """Those that plans may name."""
        self.capabilities = False
        """Whether it grants those that plans have."""
        self.labels: frozenset[tuple[str, str]] = frozenset()
        self.images: frozenset[int] = frozenset()
        self.jobs: frozenset[int] = frozenset()
        self.slots_used = 0
        self.memory_used = 0
        self.cpu_used = 0

    @property
    def open(self) -> bool:
        """Whether it is given work."""
        return self.attached and not self.draining

    def has(self, need: Need) -> bool:
        """Whether it is of the kind that it takes, however large it is."""
        return (
            self.labels.issuperset(need.labels)
            and (self.egress or not need.egress)
            and (not need.runtime or need.runtime in self.runtimes)
            and (self.capabilities or not need.capabilities)
        )

    def suits(self, need: Need) -> bool:
        """Whether it could take it if it were empty."""
        return (
            self.has(need)
            and (not self.memory_bytes or need.memory_bytes <= self.memory_bytes)
            and (not self.cpu_millis or need.cpu_millis <= self.cpu_millis)
        )

    def room(self, need: Need) -> int:
        """How many such it can take now."""
        count = self.slot_count - self.slots_used
        if self.memory_bytes:
            count = min(count, (self.memory_bytes - self.memory_used) // need.memory_bytes)
        if self.cpu_millis:
            count = min(count, (self.cpu_millis - self.cpu_used) // need.cpu_millis)
        return count

    @property
    def crowded(self) -> bool:
        """Whether it is nearly full."""
        part, whole = CROWDED_SHARE
        return (
            self.slots_used * whole > self.slot_count * part
            or self.memory_used * whole > self.memory_bytes * part > 0
        )


def score(host: Host, asked: Asked, room: int) -> tuple[bool, bool, int]:
    """The higher, the better: it holds the image, it has a spare of the job, it has most room."""
    if host.crowded:
        return False, False, room
    return asked.image in host.images, asked.job in host.jobs, room


class Hosts:
    """Every executor that is attached or holds something, and what each customer holds."""

    def __init__(self, weight: Callable[[str], int] = lambda _: 1) -> None:
        """weight: of a customer, 1 as a rule."""
        self._weight = weight
        self._hosts: dict[str, Host] = {}
        self._fitting: dict[Need, list[Host]] = {}
        """By need, without its size."""
        self._images: dict[int, set[str]] = {}
        self._jobs: dict[int, set[str]] = {}
        self._next = 0
        """Where the next scan begins."""
        self._held: dict[str, list[int]] = {}
        """By customer: slots, bytes of memory."""
        # Of the hosts that are open:
        self.slot_count = 0
        self._slots_used = 0
        self._memory_bytes = 0
        self._memory_used = 0
        self._memory_counted = False
        """Every one of them counts its memory."""

    def __getitem__(self, executor_id: str) -> Host:
        host = self._hosts.get(executor_id)
        if host is None:
            host = self._hosts[executor_id] = Host(executor_id)
        return host

    # -- executors -----------------------------------------------------------------------------

    def attach(self, host: Host) -> None:
        """An executor is attached, or is another now."""
        host.attached = True
        self._changed()

    def detach(self, host: Host) -> None:
        """It is not attached any more; what it holds is still counted."""
        host.attached = False
        self.offers(host, host.draining, (), ())
        if not host.slots_used:
            del self._hosts[host.executor_id]
        self._changed()

    def offers(
        self, host: Host, draining: bool, images: Iterable[int], jobs: Iterable[int]
    ) -> None:
        """What an executor says of itself."""
        for index, held, holds in (
            (self._images, host.images, frozenset(images)),
            (self._jobs, host.jobs, frozenset(jobs)),
        ):
            for each in held - holds:
                index[each].discard(host.executor_id)
                if not index[each]:
                    del index[each]
            for each in holds - held:
                index.setdefault(each, set()).add(host.executor_id)
        host.images, host.jobs = frozenset(images), frozenset(jobs)
        if draining != host.draining:
            host.draining = draining
            self._changed()

    def _changed(self) -> None:
        self._fitting.clear()
        opened = [host for host in self._hosts.values() if host.open]
        self.slot_count = sum(host.slot_count for host in opened)
        self._slots_used = sum(host.slots_used for host in opened)
        self._memory_bytes = sum(host.memory_bytes for host in opened)
        self._memory_used = sum(host.memory_used for host in opened)
        self._memory_counted = all(host.memory_bytes for host in opened)

    # -- what is taken -------------------------------------------------------------------------

    def take(self, host: Host, customer: str, need: Need) -> None:
        """A customer has something there; there is room for it or not."""
        self._count(host, customer, need, 1)

    def give(self, host: Host, customer: str, need: Need) -> None:
        """What was taken is free again."""
        self._count(host, customer, need, -1)
        if not host.slots_used and not host.attached:
            self._hosts.pop(host.executor_id, None)

    def _count(self, host: Host, customer: str, need: Need, sign: int) -> None:
        memory_bytes = sign * need.memory_bytes
        host.slots_used += sign
        host.memory_used += memory_bytes
        host.cpu_used += sign * need.cpu_millis
        if host.open:
            self._slots_used += sign
            self._memory_used += memory_bytes
        held = self._held.setdefault(customer, [0, 0])
        held[0] += sign
        held[1] += memory_bytes
        if not held[0]:
            del self._held[customer]

    def may_take(self, customer: str) -> bool:
        """Whether a customer may hold more: see HEADROOM."""
        slots, memory_bytes = self._held.get(customer, (0, 0))
        headroom = HEADROOM * self._weight(customer)
        if (self.slot_count - self._slots_used) * headroom <= slots:
            return False
        left = self._memory_bytes - self._memory_used
        return not self._memory_counted or left * headroom > memory_bytes

    # -- placing -------------------------------------------------------------------------------

    def place(self, asked: Asked) -> Host | No:
        """Where something goes now. Looks at a bounded number of executors, however many there
        are."""
        if self._slots_used >= self.slot_count:
            return No.SLOT
        if not self.may_take(asked.customer):
            return No.SHARE
        fitting = self._fits(asked.need)
        best: Host | None = None
        best_score = (False, False, 0)
        for host in self._candidates(fitting, asked):
            room = host.room(asked.need)
            if room > 0 and (scored := score(host, asked, room)) > best_score:
                best, best_score = host, scored
        return No.ROOM if best is None else best

    def _candidates(self, fitting: list[Host], asked: Asked) -> Iterable[Host]:
        if len(fitting) <= SCAN_MAX:
            return fitting
        begin = self._next % len(fitting)
        self._next = begin + SCAN_MAX
        found = fitting[begin : begin + SCAN_MAX]
        found += fitting[: SCAN_MAX - len(found)]
        holders = [*self._some(self._images, asked.image), *self._some(self._jobs, asked.job)]
        found += [host for host in holders if host.open and host.suits(asked.need)]
        return found

    def _some(self, index: dict[int, set[str]], key: int) -> Iterable[Host]:
        names = index.get(key, ())
        return (self._hosts[name] for name, _ in zip(names, range(HOLDERS_MAX), strict=False))

    def _fits(self, need: Need) -> list[Host]:
        """The executors that have what it needs; how large they are is seen each time."""
        kind = need._replace(memory_bytes=0, cpu_millis=0)
        fitting = self._fitting.get(kind)
        if fitting is None:
            if len(self._fitting) >= FITTING_MAX:
                self._fitting.clear()
            fitting = [host for host in self._hosts.values() if host.open and host.has(need)]
            self._fitting[kind] = fitting
        return fitting

    def lacking(self, image: int, need: Need, holders: int) -> list[str]:
        """Executors that should pull an image, so that so many of those that fit a need hold it:
        those with most room."""
        fitting = [host for host in self._fits(need) if host.suits(need)]
        missing = holders - sum(image in host.images for host in fitting)
        if missing <= 0:
            return []
        without = [host for host in fitting if image not in host.images]
        without.sort(key=lambda host: (-host.room(need), host.executor_id))
        return [host.executor_id for host in without[:missing]]

    def reason(self, customer: str, need: Need) -> str:
        """Why something waits, for people; "" if there is room for it. Looks at every executor."""
        attached = [host for host in self._hosts.values() if host.attached]
        if not attached:
            return "no executor is attached"
        labelled = [host for host in attached if host.labels.issuperset(need.labels)]
        words = ", ".join(f"{key}={value}" for key, value in need.labels)
        those = f"executor with the labels {words}" if words else "executor"
        if not labelled:
            return f"no {those} is attached"
        connected = [host for host in labelled if host.egress or not need.egress]
        if not connected:
            return f"no {those} gives egress"
        running = [host for host in connected if not need.runtime or need.runtime in host.runtimes]
        if not running:
            return f"no {those} has the runtime {need.runtime}, which the customer's plan asks for"
        connected = [host for host in running if host.capabilities or not need.capabilities]
        if not connected:
            return f"no {those} grants capabilities, which the customer's plan has"
        suiting = [host for host in connected if host.suits(need)]
        if not suiting:
            return (
                f"no {those} is large enough for its {need.memory_bytes / MIB:g} MiB of memory and "
                f"{need.cpu_millis} thousandths of a core; the largest gives "
                f"{max(host.memory_bytes for host in connected) / MIB:g} MiB and "
                f"{max(host.cpu_millis for host in connected)}"
            )
        opened = [host for host in suiting if not host.draining]
        if not opened:
            return f"every {those} that fits it is drained"
        if not any(host.room(need) > 0 for host in opened):
            return f"every {those} that fits it is full"
        if not self.may_take(customer):
            slots, memory_bytes = self._held.get(customer, (0, 0))
            return (
                f"customers/{customer} holds {slots} slots and {memory_bytes / MIB:g} MiB of the "
                "mesh; the little that is left is for others"
            )
        return ""
