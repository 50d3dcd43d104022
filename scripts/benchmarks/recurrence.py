"""bench recurrence: the next fire of many schedules that share few expressions, on one core."""

from __future__ import annotations

import argparse
import time
from typing import Any

import bed
from bed import say, spread

from tickmesh.scheduler.core import recurrence
from tickmesh.scheduler.core.recurrence import Spec

SCHEDULES = 1_000_000
EXPRESSIONS = 2_000
ROUNDS = 3
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
NOW_MS = 1_774_742_400_000
"""An instant a few hours before clocks change in Europe: the dearest case."""


def expressions() -> list[Spec]:
    """Distinct (expression, zone): daily, hourly, weekly, monthly and rhythms, as people write."""
    shapes = (
        "{minute} {hour} * * *",
        "{minute} * * * *",
        "{minute} {hour} * * 1-5",
        "{minute} {hour} 1 * *",
        "{minute}-59/15 {hour} * * *",
    )
    found = []
    for index in range(EXPRESSIONS):
        cron = shapes[index % len(shapes)].format(minute=index % 60, hour=index // 60 % 24)
        found.append(Spec(crons=(cron,), zone=ZONES[index // 7 % len(ZONES)]))
    distinct = list(dict.fromkeys(found))
    for index in range(EXPRESSIONS - len(distinct)):  # where two came out alike
        cron = f"{index % 60} {index // 60 % 24} * * 0"
        distinct.append(Spec(crons=(cron,), zone="Europe/Paris"))
    return distinct


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each round begins with nothing remembered of the instant that is asked for."""
    noise = await bed.noise()
    specs = expressions()
    count = arguments.schedules or SCHEDULES
    assert len(set(specs)) == EXPRESSIONS
    began = time.perf_counter()
    for spec in specs:
        recurrence.next_fire(spec, NOW_MS)
    cold_s = time.perf_counter() - began
    say(f"{EXPRESSIONS} expressions parsed and asked once: {cold_s:.2f} s")
    seconds = []
    for number in range(1, ROUNDS + 1):
        began = time.process_time()
        for index in range(count):
            recurrence.next_fire(specs[index % EXPRESSIONS], NOW_MS + number * 60_000)
        seconds.append(time.process_time() - began)
        say(f"{count:,} schedules: {seconds[-1]:.2f} s")
    return {
        "benchmark": "recurrence",
        "schedules": count,
        "expressions": EXPRESSIONS,
        "cpu_s": spread(seconds),
        "cold_s": round(cold_s, 3),
        "us_each": round(sorted(seconds)[ROUNDS // 2] / count * 1e6, 3),
        "noise_ms": noise,
        "machine": bed.machine(),
        "versions": bed.versions("none"),
    }
