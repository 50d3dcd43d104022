"""A client that is lost while it is sent something, and what its server's log says of it."""

from __future__ import annotations

import asyncio
import sys

import grpc
import grpc.aio
import pytest

from .wires import Wire

pytestmark = pytest.mark.integration
TIMEOUT_S = 20.0
CLIENTS = 5
SERVER = """
import asyncio, sys
import grpc
from tickmesh.mesh import telemetry

over = asyncio.Semaphore(0)

async def large(request, context):
    context.add_done_callback(lambda _: over.release())
    yield bytes(8 << 20)

async def main():
    telemetry.start("gateway", "gateway-0")
    server = grpc.aio.server(options=(("grpc.max_send_message_length", 16 << 20),))
    method = grpc.unary_stream_rpc_method_handler(large)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test", {"Large": method}),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    for _ in range(int(sys.argv[1])):
        await over.acquire()
    await server.stop(1.0)

asyncio.run(main())
"""


async def lose_one(server: str) -> None:
    """A client that is lost in the middle of an answer."""
    async with Wire(server) as wire:
        wire.cut_after(1 << 20, downwards=True)
        options = (("grpc.max_receive_message_length", 16 << 20),)
        async with grpc.aio.insecure_channel(wire.address, options) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_stream("/test/Large")(b"").read()


async def test_a_client_that_is_lost_while_it_is_sent_something_is_one_plain_line() -> None:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER, str(CLIENTS)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            port = int(await server.stdout.readline())
            for _ in range(CLIENTS):
                await lose_one(f"127.0.0.1:{port}")
            _, said = await server.communicate()
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()
    lines = said.decode().splitlines()
    assert len(lines) <= CLIENTS, "none where the server heard of the loss first"
    assert all("the client must be gone" in line and "/test/Large" in line for line in lines)
