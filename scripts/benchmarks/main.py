"""The table of benchmarks. Each prints what it measured, and judges nothing."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import failover
import fire

BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], Awaitable[dict[str, Any]]], str]] = {
    "fire": (fire.run, "lateness of fires in real containers, cost of creates, memory"),
    "failover": (failover.run, "what SIGKILL of the leader, or of every replica, costs"),
}
SECONDS_MAX = 3_600.0
"""Of load: longer is a soak, and belongs to a test bed of its own."""

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
    parser.add_argument("--seconds", type=float, default=20.0, help="of load (default 20)")
    parser.add_argument("--rate", type=float, default=0.0, help="fires a second (10; failover: 20)")
    parser.add_argument("--schedules", type=int, default=1_000, help="that fire (default 1,000)")
    parser.add_argument("--idle", type=int, default=100_000, help="that do not (default 100,000)")
    parser.add_argument("--executes", type=int, default=50, help="cold Executes (default 50)")
    parser.add_argument("--replicas", type=int, default=3, help="of the shard (default 3)")
    parser.add_argument("--runtime", choices=("containerd", "inprocess"), default="containerd")
    parser.add_argument(
        "--kill",
        choices=("leader", "all"),
        default="leader",
        help="failover: whom (default leader)",
    )
    parser.add_argument("--keep", metavar="DIR", default="", help="keep data and logs there")
    arguments = parser.parse_args()
    if not 0 < arguments.seconds <= SECONDS_MAX or not 0 <= arguments.rate <= RATE_MAX:
        parser.error(f"--seconds is 0 to {SECONDS_MAX:g}, --rate 0 to {RATE_MAX:g}")
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
