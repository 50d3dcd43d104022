"""The door itself: where it may stand open, TLS, readiness."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tickmesh.gateway.server import serve
from tickmesh.mesh.config import Config, ConfigError, GatewayConfig, Peer, ShardMembers
from tickmesh.mesh.tls import CHANNEL_OPTIONS, DevelopmentAuthority

pytestmark = pytest.mark.integration

TIMEOUT_S = 10.0
NOWHERE = ShardMembers("shard-0", (Peer("shard-0-0", "127.0.0.1:1"),))


def settings(directory: Path, **fields: Any) -> Config:
    authority = DevelopmentAuthority(directory)
    return Config(
        gateway=GatewayConfig(
            **{
                "listen": "127.0.0.1:0",
                "shards": (NOWHERE,),
                "tls": authority.issue("gateway", "gateway-0"),
                "ready_file": str(directory / "ready"),
                **fields,
            }
        )
    )


async def test_an_open_door_off_loopback_needs_tls(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.listen: 0\.0\.0\.0:0 is not a loopback"):
        await serve(settings(tmp_path, listen="0.0.0.0:0"), asyncio.Event())


async def test_half_of_a_doors_tls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set both, or neither"):
        await serve(settings(tmp_path, door_key="key.pem"), asyncio.Event())


async def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    missing = settings(tmp_path, door_key="no-key.pem", door_certificate="no-certificate.pem")
    with pytest.raises(ConfigError, match=r"no-key\.pem: No such file"):
        await serve(missing, asyncio.Event())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "{}:{}".format(*taken.getsockname())
        with pytest.raises(ConfigError, match=f"gateway.listen: {address} cannot be bound"):
            await serve(settings(tmp_path, listen=address), asyncio.Event())


async def test_a_door_with_tls_admits_who_speaks_it_and_ends_when_asked(tmp_path: Path) -> None:
    made = DevelopmentAuthority(tmp_path / "door").issue("door", "door")
    config = settings(tmp_path, door_certificate=made.certificate, door_key=made.key)
    trusted = (tmp_path / "door" / "authority.pem").read_bytes()
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(config, stop))
    ready = tmp_path / "ready"
    async with asyncio.timeout(TIMEOUT_S):
        while not ready.exists():  # noqa: ASYNC110  # A file is how it says that it serves.
            await asyncio.sleep(0.005)
        address = ready.read_text()
        authority = grpc.ssl_channel_credentials(trusted)
        request = health_pb2.HealthCheckRequest()
        async with grpc.aio.secure_channel(address, authority, CHANNEL_OPTIONS) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(request, timeout=TIMEOUT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await stub.Check(request, timeout=TIMEOUT_S)
        stop.set()
        await serving
