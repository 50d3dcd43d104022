"""Limits drawn small, so that what happens at them happens in every simulation."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from types import ModuleType

from tickmesh.executor import agent, outputs, spares, uplink
from tickmesh.scheduler import ahead, dispatch, proposals, retention, shard, timers
from tickmesh.scheduler.calls import ledgers
from tickmesh.scheduler.core import audit, calendars, history, zones
from tickmesh.scheduler.raft import member, replica

from .keepers import KEPT_S, WALK_S, is_forgetful
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
    (dispatch, "TAKE_UP_SLICE", (1, 2)),
    (dispatch, "ENDS_MAX", (1, 2)),
    (calendars, "PINNED_MAX", (1, 2)),
    (zones, "PINNED_MAX", (1, 2)),
    (zones, "SCANNED_MAX", (2, 5)),
    (uplink, "REPORTS_MAX", (1, 2)),
    (uplink, "INVENTORY_SLICE", (1, 2)),
)
"""Where each stands, and what it may be instead."""

CADENCES: tuple[tuple[ModuleType, str], ...] = (
    (dispatch, "LEASE_CHECK_S"),
    (dispatch, "TIMEOUT_CHECK_S"),
    (ahead, "EXECUTORS_LOOK_S"),
    (shard, "PIN_INTERVAL_S"),
    (uplink, "HEARTBEAT_S"),
    (uplink, "SILENCE_S"),
    (uplink, "REDIAL_S_MIN"),
    (uplink, "REDIAL_S_MAX"),
    (agent, "HOLDINGS_LOOK_S"),
    (outputs, "LOOK_S"),
    (spares, "LOOK_S"),
)
"""What a slower pace stretches."""

HISTORY_S = {"period": 15.0, "retention": 10.0, "run": 5.0, "look": 3.0}
"""How long history is kept where it is short, at a busy pace. A period is longer than a client
repeats a request; period and retention are shorter than many an execution's life."""

CHANCE = 0.3
"""Of each to be small."""


HISTORY: tuple[tuple[ModuleType, str], ...] = (
    (audit, "AHEAD_MS"),
    (history, "PERIOD_MS"),
    (ledgers, "PERIOD_MS"),
    (shard, "RUN_MS_MAX"),
    (shard, "FORGET_INTERVAL_S"),
    (history, "KEPT_MS_MIN"),
    (retention, "PASS_INTERVAL_S"),
    (retention, "PURGE_MAX"),
    (retention, "LOOK_CHUNK"),
)


def is_history_short(seed: int) -> bool:
    """In every other simulation it is dropped while everybody looks."""
    return seed % 2 == 0


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
    kept += [(module, name, getattr(module, name)) for module, name in HISTORY]
    if is_history_short(seed):
        told.append("history")
        unit_ms = int(1_000 * pace.stretch)
        history.PERIOD_MS = ledgers.PERIOD_MS = int(HISTORY_S["period"]) * unit_ms
        audit.AHEAD_MS = 13_000  # as world.py has it, and some
        shard.RUN_MS_MAX = int(HISTORY_S["run"]) * unit_ms
        shard.FORGET_INTERVAL_S = HISTORY_S["look"] * pace.stretch
    if is_forgetful(seed):
        told.append("retention")
        history.KEPT_MS_MIN = int(KEPT_S * 1_000 * pace.stretch)
        retention.PASS_INTERVAL_S = WALK_S * pace.stretch
        retention.PURGE_MAX, retention.LOOK_CHUNK = 2, 5
    try:
        yield told
    finally:
        for module, name, value in kept:
            setattr(module, name, value)
