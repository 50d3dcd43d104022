"""What the gateway answers to the mesh's registry and its clients: tokens, and events of pushes."""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import msgspec

from ..mesh import telemetry
from ..mesh.errors import TickmeshError, Unauthenticated
from ..mesh.registries import EXECUTOR_USER, TOKEN_SERVICE
from .authentication import Authentication, address_of
from .http import Request, Response
from .status import unexpected
from .tokens import TOKEN_SECONDS, Tokens, granted_to_customer, granted_to_executor

EVENTS_MAX = 1_000
"""Pushes that wait to be told to executors; of more those are forgotten that came first: executors
learn of them within a minute by themselves."""

AT_ONCE_MAX = 2
"""Pushes that executors are told of at one time: each has all of them pull an image."""

log = telemetry.logger(__name__)

Pull = Callable[[str, str], Awaitable[None]]
"""Has executors pull an image, by its reference, once that stands for a digest."""


class TokenDoor:
    """Answers questions for tokens."""

    def __init__(self, tokens: Tokens, authentication: Authentication) -> None:
        self._tokens = tokens
        self._authentication = authentication

    async def answer(self, request: Request) -> Response:
        """A token with as much of what is asked for as whoever asks may have."""
        login = _basic(request.headers.get("authorization", ""))
        if login is None:
            return _refused("a login is needed: a customer's id, and an API key as the password")
        user, secret = login
        if request.values("service") not in ([], [TOKEN_SERVICE]):
            return _error(HTTPStatus.BAD_REQUEST, f"tokens are for service {TOKEN_SERVICE} only")
        asked = [scope for value in request.values("scope") for scope in value.split(" ")]
        try:
            if user == EXECUTOR_USER:
                subject = self._tokens.executor(secret)
                access = granted_to_executor(asked)
            else:
                address = address_of(_peer(request.address))
                principal = await self._authentication.authenticate(secret, address)
                if principal.customer != user:
                    return _refused("the API key is not this user's: its name is the customer's id")
                subject = principal.customer
                access = granted_to_customer(principal, asked)
        except Unauthenticated as error:
            return _refused(error.message)
        except TickmeshError as error:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, error.message)
        token = self._tokens.make(subject, access)
        return Response(
            HTTPStatus.OK,
            {
                "token": token,
                "access_token": token,
                "expires_in": TOKEN_SECONDS,
                "issued_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        )


class _Target(msgspec.Struct, frozen=True):
    repository: str = ""
    tag: str = ""
    digest: str = ""


class _Event(msgspec.Struct, frozen=True):
    action: str
    target: _Target


class _Events(msgspec.Struct, frozen=True):
    events: list[_Event]


class EventDoor:
    """Hears of pushes, by whatever client, and has executors pull what was pushed."""

    def __init__(self, secret: str, pull: Pull) -> None:
        """secret: what the registry shows with each event."""
        self._expected = f"Bearer {secret}"
        self._pull = pull
        self._waiting: dict[str, str] = {}
        self._wake = asyncio.Event()

    def knows(self, request: Request) -> bool:
        """Whether it is the registry that asks."""
        shown = request.headers.get("authorization", "")
        return hmac.compare_digest(shown.encode(), self._expected.encode())

    async def answer(self, request: Request) -> Response:
        """Take some events."""
        if not self.knows(request):
            return _error(HTTPStatus.FORBIDDEN, "this is not the mesh's registry")
        try:
            events = msgspec.json.decode(request.body, type=_Events).events
        except msgspec.DecodeError as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error))
        for event in events:
            target = event.target
            if event.action == "push" and target.tag and target.repository.count("/") == 1:
                self._waiting[f"{target.repository}:{target.tag}"] = target.digest
        while len(self._waiting) > EVENTS_MAX:
            del self._waiting[next(iter(self._waiting))]
        self._wake.set()
        return Response(HTTPStatus.OK)

    async def run(self) -> None:
        """Tell executors, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE_MAX):
                group.create_task(self._tell())

    async def _tell(self) -> None:
        while True:
            await self._wake.wait()
            if not self._waiting:
                self._wake.clear()
                continue
            reference = next(iter(self._waiting))
            digest = self._waiting.pop(reference)
            try:
                await self._pull(reference, digest)
            except TickmeshError as error:
                log.info("executors were not told of a push", image=reference, why=error.message)
            except Exception as error:  # whoever may push must not end a gateway
                unexpected(f"registry event: {reference}", error)


def _basic(header: str) -> tuple[str, str] | None:
    scheme, _, rest = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, separator, secret = base64.b64decode(rest, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (user, secret) if separator and user and secret else None


def _peer(host: str) -> str:
    """As gRPC names one, for counting failures alike."""
    return f"ipv6:[{host}]:0" if ":" in host else f"ipv4:{host}:0"


def _refused(why: str) -> Response:
    headers = {"WWW-Authenticate": 'Basic realm="tickmesh"'}
    return _error(HTTPStatus.UNAUTHORIZED, why, headers)


def _error(status: HTTPStatus, why: str, headers: dict[str, str] | None = None) -> Response:
    told: dict[str, Any] = {"errors": [{"code": status.name, "message": why}]}
    return Response(status, told, headers or {})
