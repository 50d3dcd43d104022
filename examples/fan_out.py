"""Many executions at once, with asyncio: each with its own payload, all waited for together.

tickmesh dev                                  # in another terminal
python examples/hello/build.py hello.tar
tickmesh image import hello:1 hello.tar
python examples/fan_out.py
"""

from __future__ import annotations

import asyncio

from tickmesh.sdk import AsyncClient, ExecutionFailed

PROGRAM = """
import os
number = int(open(os.environ["TICKMESH_PAYLOAD_FILE"]).read())
if number == 7:
    raise SystemExit(7)
print(number, "squared is", number * number)
"""


async def main() -> None:
    async with AsyncClient() as client:
        await client.jobs.create("square", image="hello:1", command=("python3", "-c", PROGRAM))
        try:
            await asyncio.gather(*(square(client, number) for number in range(10)))
        finally:
            await client.jobs.delete("square")


async def square(client: AsyncClient, number: int) -> None:
    """One execution: its output, or how it failed."""
    handle = await client.execute("square", str(number))
    try:
        await handle.result(deadline_s=60)
    except ExecutionFailed as error:
        print(f"{number} failed: {error.execution.reason}, exit code {error.execution.exit_code}")
        return
    output = b"".join([chunk.data async for chunk in handle.logs()])
    print(output.decode().strip())


if __name__ == "__main__":
    asyncio.run(main())
