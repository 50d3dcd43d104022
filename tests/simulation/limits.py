"""Limits drawn small, so that what happens at them happens in every simulation."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from types import ModuleType

from tickmesh.scheduler import dispatch, proposals, shard, timers
from tickmesh.scheduler.raft import member, replica

from .pace import Pace

SMALL: tuple[tuple[ModuleType, str, tuple[int, ...]], ...] = (
    (proposals, "QUEUE_MAX", (3, 10)),
    (proposals, "COMMANDS_MAX", (1, 3)),
    (proposals, "WEIGHT_MAX", (1, 4)),
    (shard, "FIRE_MAX", (1, 2)),
    (dispatch, "ASSIGN_MAX", (1, 2)),
    (timers, "LOAD_MAX", (1, 3)),
    (timers, "HORIZON_MS", (4_000, 10_000)),
    (timers, "REFILL_MS", (3_000,)),
    (replica, "ROUND_MESSAGES_MAX", (1, 4)),
    (replica, "ROUND_APPLY_MAX", (1, 2)),
    (member, "APPEND_ENTRIES_MAX", (1, 3)),
    (member, "APPENDS_IN_FLIGHT_MAX", (1, 2)),
)
"""Where each stands, and what it may be instead."""

CADENCES: tuple[tuple[ModuleType, str], ...] = (
    (dispatch, "LEASE_CHECK_S"),
    (dispatch, "TIMEOUT_CHECK_S"),
)
"""What a slower pace stretches."""

CHANCE = 0.3
"""Of each to be small."""


@contextlib.contextmanager
def drawn(seed: int, pace: Pace) -> Iterator[list[str]]:
    """At a pace, and with some limits small; which, for the trace."""
    chance = random.Random(f"{seed}/limits")
    kept = [(module, name, getattr(module, name)) for module, name, _ in SMALL]
    kept += [(module, name, getattr(module, name)) for module, name in CADENCES]
    told = []
    for module, name in CADENCES:
        setattr(module, name, getattr(module, name) * pace.stretch)
    for module, name, values in SMALL:
        if chance.random() < CHANCE:
            value = chance.choice(values)
            setattr(module, name, value)
            told.append(f"{name} = {value}")
    try:
        yield told
    finally:
        for module, name, value in kept:
            setattr(module, name, value)
