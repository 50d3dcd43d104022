"""The table of benchmarks. Each prints what it measured, and judges nothing."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import adopt
import burst
import containers
import execute
import failover
import fairness
import fire
import recurrence
import registered
import soak
import write

BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], Awaitable[dict[str, Any]]], str]] = {
    "fire": (fire.run, "lateness of fires in real containers, cost of creates, memory"),
    "burst": (burst.run, "10,000 no-op schedules that are due at one instant"),
    "adopt": (adopt.run, "an executor killed with 50 containers running, and started again"),
    "containers": (containers.run, "containers a second, beside ctr, podman and docker"),
    "execute": (execute.run, "a client's Execute to the first instruction, cold and warm"),
    "fairness": (fairness.run, "one execution beside another customer's queue of 2,000"),
    "failover": (failover.run, "what SIGKILL of the leader, or of every replica, costs"),
    "registered": (registered.run, "a replica with millions of schedules: memory, opening, calls"),
    "recurrence": (recurrence.run, "next fires of a million schedules over 2,000 expressions"),
    "soak": (soak.run, "10,000 executions in a row, and what they leave on the host"),
    "write": (write.run, "durable creates a second, beside a 3-node etcd's puts"),
}
SECONDS_MAX = 3_600.0
"""Of load: longer is a soak, and belongs to a test bed of its own."""

SECONDS = 20.0
BURSTS = 4
"""Fewer instants of many fires tell nothing of the next one."""

RATE_MAX = 100_000.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure the mesh on this machine.",
        epilog="\n".join(f"  {name:10} {what}" for name, (_, what) in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", action="store_true", help="one JSON line, and nothing else")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"of load (default {SECONDS:g}, and at least {BURSTS} bursts; write: in four parts)",
    )
    parser.add_argument("--rate", type=float, default=0.0, help="fires a second (10; failover: 20)")
    parser.add_argument(
        "--schedules",
        type=int,
        default=0,
        help="that fire (1,000; burst: 10,000); how many (registered: 10 million; recurrence: one)",
    )
    parser.add_argument("--idle", type=int, default=100_000, help="that do not (default 100,000)")
    parser.add_argument(
        "--burst",
        type=int,
        default=1,
        help="fire: so many at one instant, as much less often (default 1)",
    )
    parser.add_argument("--executes", type=int, default=50, help="cold Executes (default 50)")
    parser.add_argument(
        "--executions", type=int, default=10_000, help="soak: in a row (default 10,000)"
    )
    parser.add_argument("--replicas", type=int, default=3, help="of the shard (default 3)")
    parser.add_argument("--executors", type=int, default=1, help="burst: processes (default 1)")
    parser.add_argument(
        "--runtime",
        choices=("containerd", "inprocess", "noop"),
        default="containerd",
        help="of the executors; noop is another name of inprocess",
    )
    parser.add_argument(
        "--kill",
        choices=("leader", "all"),
        default="leader",
        help="failover: whom (default leader)",
    )
    parser.add_argument("--keep", metavar="DIR", default="", help="keep data and logs there")
    arguments = parser.parse_args()
    if arguments.burst < 1:
        parser.error("--burst is 1 or more")
    if arguments.seconds is None:
        between_s = arguments.burst / (arguments.rate or fire.RATE_DEFAULT)
        arguments.seconds = max(SECONDS, BURSTS * between_s if arguments.burst > 1 else 0.0)
    if not 0 < arguments.seconds <= SECONDS_MAX or not 0 <= arguments.rate <= RATE_MAX:
        parser.error(f"--seconds is 0 to {SECONDS_MAX:g}, --rate 0 to {RATE_MAX:g}")
    if arguments.runtime == "noop":
        arguments.runtime = "inprocess"
    return arguments


def main() -> int:
    arguments = _arguments()
    measure, _ = BENCHMARKS[arguments.name]
    result = asyncio.run(measure(arguments))
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:24} {json.dumps(value)}")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
