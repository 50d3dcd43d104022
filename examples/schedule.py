"""A job on a schedule, from Python: creates it, prints ten fires with their lateness, removes it.

tickmesh dev                                  # in another terminal
python examples/hello/build.py hello.tar
tickmesh image import hello:1 hello.tar
python examples/schedule.py
"""

from __future__ import annotations

import itertools

from tickmesh.sdk import Client


def main() -> None:
    with Client() as client:
        client.jobs.create("example", image="hello:1", memory_bytes=64 * 2**20)
        try:
            client.schedules.create("example", "tick", every=1)
            fires = (
                execution
                for execution in client.executions.watch("example", schedule="example/tick")
                if execution.state.final
            )
            for execution in itertools.islice(fires, 10):
                output = b"".join(chunk.data for chunk in client.executions.logs(execution.name))
                print(
                    f"due {execution.due_time:%H:%M:%S} · {execution.lateness_ms:6.1f} ms late · "
                    f"{execution.state} · {output.decode().strip()}"
                )
        finally:
            client.jobs.delete("example", force=True)


if __name__ == "__main__":
    main()
