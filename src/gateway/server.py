"""The gateway's process: opens the door, finds the shards, serves, ends in order."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from joserfc.errors import JoseError

from ..mesh import api_keys, process, tls
from ..mesh.addresses import is_loopback
from ..mesh.clock import SystemClock
from ..mesh.config import Config, ConfigError, GatewayConfig, RegistryDoor
from ..mesh.limits import MESSAGE_BYTES_MAX
from ..mesh.names import customer_name
from ..mesh.registries import EVENTS_PATH, TOKEN_PATH
from ..proto.tickmesh.internal.v1 import shard_pb2
from ..proto.tickmesh.v1 import customer_pb2
from . import reflection
from .archive import Archive
from .authentication import Authentication
from .door import Door
from .executors import Executors
from .http import Handler, HttpPort, Known
from .images import Registry
from .methods import METHODS, SERVICES
from .registry_door import EventDoor, Pull, TokenDoor
from .repositories import Repositories
from .routing import shard_of, slot_of
from .shards import Shard
from .tokens import Tokens

MESSAGE_MARGIN_BYTES = 64 * 1024
"""gRPC's own limit stands this far above ours, so that ours answers, with its reason, where it can:
a message over both is refused by gRPC without one."""

CONCURRENT_CALLS_MAX = 20_000
"""Calls and streams at one time: what waits for shards (calls.py), and as many streams."""

CUSTOMER_TIMEOUT_S = 10.0
"""For what a shard knows of a customer: milliseconds, or an election."""

PING_INTERVAL_MS_MIN = 10_000
"""How often a client may ping to keep a silent stream alive."""

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX + MESSAGE_MARGIN_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX + MESSAGE_MARGIN_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
)


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    settings = config.gateway
    assert settings is not None
    if not settings.shards:
        raise ConfigError("gateway.shards: names no shard")
    credentials = tls.channel_credentials(settings.tls)
    executors = Executors(credentials)
    shards = tuple(Shard(members, credentials) for members in settings.shards)
    authentication = _authentication(settings, shards)
    archive = None
    if settings.archive is not None:
        archive = Archive(settings.archive, SystemClock(), partial(_max_age, shards))
    tokens = _tokens(settings)
    registry = _registry(settings, tokens)
    door = Door(shards, executors, authentication, archive, registry)
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX)
    server.add_generic_rpc_handlers((*door.handlers(), *reflection.handlers()))
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = _open(server, settings)
    registry_door = await _open_registry_door(settings, tokens, authentication, door.pull_pushed)
    await server.start()
    try:
        # A sender that ends by itself ends the process.
        async with asyncio.TaskGroup() as group:
            senders = [group.create_task(shard.run()) for shard in shards]
            if archive is not None:
                senders.append(group.create_task(archive.run()))
            if registry_door is not None and registry_door.events is not None:
                senders.append(group.create_task(registry_door.events.run()))
            process.settle()
            await process.serving(health, *SERVICES)
            process.announce(settings.ready_file, address)
            await stop.wait()
            await health.enter_graceful_shutdown()
            # What is under way may end well: the senders go on meanwhile.
            door.end_streams()
            await server.stop(process.STOP_GRACE_S)
            for sender in senders:
                sender.cancel()
    finally:
        await server.stop(None)
        if registry_door is not None:
            await registry_door.port.close()
        if authentication is not None:
            authentication.close()
        for shard in shards:
            await shard.close()
        await executors.close()
        if registry is not None:
            await registry.repositories.close()


@dataclass(frozen=True, slots=True)
class _RegistryDoor:
    """The HTTP port for the registry, and what runs behind it."""

    port: HttpPort
    events: EventDoor | None


def _tokens(settings: GatewayConfig) -> Tokens | None:
    """What signs the registry's tokens, if it wants any. Raises ConfigError."""
    door = settings.registry_door
    if door is None or not door.token_key:
        if settings.registry is not None and settings.authentication != "none":
            raise ConfigError(
                "gateway.registry_door.token_key: is needed where callers are authenticated"
            )
        return None
    if settings.authentication == "none":
        raise ConfigError('gateway.registry_door.token_key: needs authentication = "api_keys"')
    paths = (door.token_key, door.token_certificate, settings.tls.authority)
    try:
        key, certificate, authority = (Path(path).read_bytes() for path in paths)
        return Tokens(key, certificate, authority, time.time)
    except OSError as error:
        raise ConfigError(f"gateway.registry_door: {error.filename}: {error.strerror}") from error
    except (ValueError, JoseError) as error:
        raise ConfigError(f"gateway.registry_door.token_key or its certificate: {error}") from error


def _registry(settings: GatewayConfig, tokens: Tokens | None) -> Registry | None:
    """The mesh's own registry, if it has one. Raises ConfigError."""
    if settings.registry is None:
        return None
    own = settings.registry
    make = None if tokens is None else lambda access: tokens.make("gateway", [access])
    try:
        authority = Path(own.authority).read_text() if own.authority else ""
        repositories = Repositories(own, make)
    except OSError as error:
        raise ConfigError(f"gateway.registry: {error.filename}: {error.strerror}") from error
    return Registry(own, authority, login_required=tokens is not None, repositories=repositories)


def _events_secret(door: RegistryDoor) -> str:
    """Empty: no events are taken. Raises ConfigError, OSError."""
    if not door.events_secret_file:
        return ""
    secret = Path(door.events_secret_file).read_text().strip()
    if not secret:
        raise ConfigError("gateway.registry_door.events_secret_file: is empty")
    return secret


async def _open_registry_door(
    settings: GatewayConfig,
    tokens: Tokens | None,
    authentication: Authentication | None,
    pull: Pull,
) -> _RegistryDoor | None:
    """Open the HTTP port for the registry, if there is to be one. Raises ConfigError."""
    door = settings.registry_door
    if door is None:
        return None
    host, _, port = door.listen.rpartition(":")
    context = None
    if settings.door_certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.door_certificate, settings.door_key)
    elif not is_loopback(host):
        raise ConfigError(
            f"gateway.registry_door.listen: {door.listen} is not a loopback address: set "
            "door_certificate and door_key, or listen on 127.0.0.1"
        )
    handlers: dict[tuple[str, str], Handler] = {}
    known: dict[tuple[str, str], Known] = {}
    events = None
    if tokens is not None and authentication is not None:
        handlers["GET", TOKEN_PATH] = TokenDoor(tokens, authentication).answer
    try:
        if secret := _events_secret(door):
            events = EventDoor(secret, pull)
            handlers["POST", EVENTS_PATH] = events.answer
            known["POST", EVENTS_PATH] = events.knows
        made = HttpPort(handlers, known)
        await made.open(host.strip("[]"), int(port), context)
    except (OSError, ValueError) as error:
        raise ConfigError(f"gateway.registry_door: {error}") from error
    return _RegistryDoor(made, events)


def _authentication(settings: GatewayConfig, shards: tuple[Shard, ...]) -> Authentication | None:
    """What checks callers, if they are to be checked. Raises ConfigError."""
    hashes = []
    for index, text in enumerate(settings.operator_key_hashes):
        digest = api_keys.digest_from_hex(text)
        if digest is None:
            raise ConfigError(
                f"gateway.operator_key_hashes[{index}]: is not a SHA-256 in 64 hexadecimal digits: "
                '`printf %s "$KEY" | sha256sum` prints a key\'s'
            )
        hashes.append(digest)
    if settings.authentication == "none":
        return None

    async def find(customer: str, key_id: str, timeout_s: float) -> shard_pb2.FindKeyResponse:
        shard = shards[shard_of(slot_of(customer), len(shards))]
        return await shard.find_key(customer, key_id, timeout_s)

    return Authentication(find, hashes)


async def _max_age(shards: tuple[Shard, ...], customer: str) -> datetime.timedelta | None:
    """How long a customer wants its history to be kept; None: as long as all. Raises what its shard
    answers, or NoLeader."""
    request = customer_pb2.GetCustomerRequest(name=customer_name(customer))
    answer = await shards[shard_of(slot_of(customer), len(shards))].call(
        METHODS["tickmesh.v1.CustomerService/GetCustomer"],
        request.SerializeToString(),
        CUSTOMER_TIMEOUT_S,
        "",
    )
    retention = customer_pb2.Customer.FromString(answer).retention
    return retention.max_age.ToTimedelta() if retention.HasField("max_age") else None


def _open(server: grpc.aio.Server, settings: GatewayConfig) -> str:
    """Bind the public port; the address with the port that was bound. Raises ConfigError."""
    host, _, _ = settings.listen.rpartition(":")
    secure = bool(settings.door_certificate or settings.door_key)
    if secure and not (settings.door_certificate and settings.door_key):
        raise ConfigError("gateway.door_certificate and door_key: set both, or neither")
    if not secure and not is_loopback(host):
        raise ConfigError(
            f"gateway.listen: {settings.listen} is not a loopback address: set door_certificate "
            "and door_key, or listen on 127.0.0.1"
        )
    try:
        if secure:
            paths = (settings.door_key, settings.door_certificate)
            key, certificate = (Path(path).read_bytes() for path in paths)
            credentials = grpc.ssl_server_credentials([(key, certificate)])
            port = server.add_secure_port(settings.listen, credentials)
        else:
            port = server.add_insecure_port(settings.listen)
    except OSError as error:
        raise ConfigError(f"gateway: {error.filename}: {error.strerror}") from error
    except RuntimeError as error:
        raise ConfigError(f"gateway.listen: {settings.listen} cannot be bound: {error}") from error
    return f"{host}:{port}"
