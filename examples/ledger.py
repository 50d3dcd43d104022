"""What became of a schedule's instants, from Python: fires five times; prints the ledger, the
statistics, and whether the ledger tells the truth; then makes up for an hour of the past.

tickmesh dev                                  # in another terminal
python examples/hello/build.py hello.tar
tickmesh image import hello:1 hello.tar
python examples/ledger.py
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tickmesh.sdk import Client, OverlapPolicy, RetryPolicy


def main() -> None:
    with Client() as client:
        client.jobs.create(
            "ledger",
            image="hello:1",
            memory_bytes=64 * 2**20,
            retry_policy=RetryPolicy(max_attempts=3),
        )
        try:
            client.schedules.create(
                "ledger",
                "tick",
                every=1,
                max_fires=5,
                overlap_policy=OverlapPolicy.SKIP,
                pause_after_failures=3,
            )
            ended = 0
            for execution in client.executions.watch("ledger", schedule="ledger/tick"):
                ended += execution.state.final
                if ended == 5:
                    break
            for row in client.schedules.fires("ledger/tick"):
                print(f"{row.first_time:%H:%M:%S} {row.outcome:9} {row.hash}")
            statistics = client.schedules.statistics("ledger/tick")
            print(f"{statistics.fired_count} fired; 99 of 100 within {statistics.lateness_p99}")
            problems = client.schedules.verify("ledger/tick").problems
            print(problems or "the ledger tells the truth")

            client.schedules.create("ledger", "minutely", cron="* * * * *")
            now = datetime.now(UTC)
            made = client.schedules.backfill("ledger/minutely", now - timedelta(hours=1), now)
            print(f"backfill {made.id}: {made.fire_count} executions")
        finally:
            client.jobs.delete("ledger", force=True)


if __name__ == "__main__":
    main()
