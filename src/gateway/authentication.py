"""Who calls: API keys, checked against what their customers' shards store, and remembered shortly.

A key names its customer, so its shard is known without asking anybody. What the shard stores of it
is remembered for KEY_REMEMBERED_S: so long a key that was revoked may still be taken. Its expiry
is looked at each time. No text of a key is kept, logged, or repeated in an error.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from ..mesh import api_keys
from ..mesh.errors import (
    KeyInvalid,
    KeyRequired,
    Overloaded,
    TickmeshError,
    TooManyAttempts,
    Unauthenticated,
)
from ..mesh.names import KeyName
from ..proto.tickmesh.internal.v1 import shard_pb2
from ..proto.tickmesh.v1 import customer_pb2
from .access import Principal, Scope

KEY_REMEMBERED_S = 10.0
"""A shard is asked for a key at most so often by a gateway. What is promised of a revocation
(customer.proto)."""

KEYS_REMEMBERED_MAX = 50_000
"""About 20 MB; the one unused for longest is forgotten beyond."""

LOOKUPS_MAX = 1_000
"""Keys that are asked for at one time; beyond it callers are told to come back."""

LOOKUP_TIMEOUT_S = 5.0
"""Of one look-up, which all who wait for the same key share: elections take less."""

LOOKUP_RETRY_MS = 500

FAILURES_MAX = 20
"""Calls without a good key from one address in a row..."""

FAILURES_PER_S = 2.0
"""...and so many a second after that. A program with a revoked key may retry; nobody can guess 256
bits; this keeps whoever tries from costing the shards anything."""

PEERS_MAX = 10_000
"""Addresses whose failures are counted; the one that failed longest ago is forgotten beyond."""

SCHEME = "bearer"

_SCOPES = {
    customer_pb2.API_SCOPE_READ: Scope.READ,
    customer_pb2.API_SCOPE_EXECUTE: Scope.EXECUTE,
    customer_pb2.API_SCOPE_ADMIN: Scope.READ | Scope.EXECUTE | Scope.ADMIN,
}

Find = Callable[[str, str, float], Awaitable[shard_pb2.FindKeyResponse]]


class _Known(NamedTuple):
    """What a shard said of a key."""

    hash: bytes
    scopes: Scope
    expire_ms: int
    until_s: float
    """By the monotonic clock: not remembered for longer."""


class Attempts:
    """How many calls without a good key an address may make: a bucket each. No I/O."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By address: (failures, at that time)."""

    def _failures(self, address: str, now_s: float) -> float:
        failures, at_s = self._peers.get(address, (0.0, now_s))
        return max(0.0, failures - (now_s - at_s) * FAILURES_PER_S)

    def check(self, address: str, now_s: float) -> None:
        """Raises TooManyAttempts."""
        over = self._failures(address, now_s) - (FAILURES_MAX - 1)
        if over > 0:
            raise TooManyAttempts(
                "too many calls from this address carried no good API key: wait, then show one",
                retry_after_ms=int(over / FAILURES_PER_S * 1_000) + 1,
            )

    def failed(self, address: str, now_s: float) -> None:
        """One more."""
        self._peers[address] = (self._failures(address, now_s) + 1, now_s)
        self._peers.move_to_end(address)
        if len(self._peers) > PEERS_MAX:
            self._peers.popitem(last=False)


class Authentication:
    """See the module."""

    def __init__(
        self,
        find: Find,
        operator_hashes: Sequence[bytes] = (),
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """find: (customer, key id, seconds) to what the customer's shard stores."""
        self._find = find
        self._operator_hashes = tuple(operator_hashes)
        self._monotonic = monotonic
        self._now = now
        self._known: OrderedDict[KeyName, _Known] = OrderedDict()
        self._lookups: dict[KeyName, asyncio.Task[_Known | None]] = {}
        self._attempts = Attempts()

    async def authenticate(self, token: str, address: str) -> Principal:
        """Whom a key acts for. address: of who shows it (see address_of), whose failures are
        counted. Raises KeyInvalid, TooManyAttempts, or NoLeader and the like if nobody can tell
        now."""
        principal = self._remembered(token)
        if principal is not None:
            return principal
        self._attempts.check(address, self._monotonic())
        try:
            return await self._asked(token)
        except Unauthenticated:
            self._attempts.failed(address, self._monotonic())
            raise

    async def authenticate_call(
        self, metadata: Sequence[tuple[str, str | bytes]], peer: str
    ) -> tuple[Principal, str]:
        """Whom a gRPC call acts for, and the key that it shows. Raises as `authenticate`, and
        KeyRequired."""
        token = token_of(metadata)
        return await self.authenticate(token, address_of(peer)), token

    async def until_refused(self, token: str) -> Unauthenticated:
        """Waits until a key that was good is not any more: expired or revoked."""
        while True:
            await asyncio.sleep(KEY_REMEMBERED_S)
            try:
                if self._remembered(token) is None:
                    await self._asked(token)
            except Unauthenticated as error:
                return error
            except TickmeshError:
                continue  # nobody can tell now: the stream goes on for as long as it can

    def close(self) -> None:
        """End what is being asked."""
        for lookup in self._lookups.values():
            lookup.cancel()

    def forget(self, name: KeyName) -> None:
        """A key was changed through this gateway: ask for it anew."""
        self._known.pop(name, None)

    def _remembered(self, token: str) -> Principal | None:
        """Whom a key acts for, if that is remembered; raises nothing: what fails is asked for."""
        if api_keys.is_operators(token):
            digest = api_keys.digest(token)
            # All are looked at, in a time that tells nothing.
            found = [hmac.compare_digest(digest, each) for each in self._operator_hashes]
            return Principal("", Scope.OPERATOR, "operator") if any(found) else None
        name = api_keys.name_of(token)
        known = None if name is None else self._known.get(name)
        if name is None or known is None or known.until_s <= self._monotonic():
            return None
        if not self._good(token, known):
            return None
        self._known.move_to_end(name)
        return Principal(name.customer, known.scopes, name.key)

    def _good(self, token: str, known: _Known) -> bool:
        return hmac.compare_digest(api_keys.digest(token), known.hash) and not self._expired(known)

    def _expired(self, known: _Known) -> bool:
        return 0 < known.expire_ms <= self._now() * 1_000

    async def _asked(self, token: str) -> Principal:
        """Whom a key acts for, as its shard says now."""
        name = api_keys.name_of(token)
        if name is None:
            raise KeyInvalid("the API key is none of this mesh")
        known = await self._look_up(name)
        if known is None or not hmac.compare_digest(api_keys.digest(token), known.hash):
            # The same answer whether the key, or the customer, exists or not.
            raise KeyInvalid("the API key is not known here: it is wrong, or was revoked")
        if self._expired(known):
            raise KeyInvalid("the API key has expired: create another")
        return Principal(name.customer, known.scopes, name.key)

    async def _look_up(self, name: KeyName) -> _Known | None:
        """What the shard stores. All who ask for a key at the same time share the answer."""
        lookup = self._lookups.get(name)
        if lookup is None:
            if len(self._lookups) >= LOOKUPS_MAX:
                raise Overloaded(
                    f"{LOOKUPS_MAX:,} API keys are looked up at this moment: try again",
                    retry_after_ms=LOOKUP_RETRY_MS,
                )
            lookup = asyncio.create_task(self._ask_shard(name))
            self._lookups[name] = lookup
            lookup.add_done_callback(lambda task: self._looked_up(name, task))
        return await asyncio.shield(lookup)

    def _looked_up(self, name: KeyName, task: asyncio.Task[_Known | None]) -> None:
        self._lookups.pop(name, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it; perhaps nobody does any more

    async def _ask_shard(self, name: KeyName) -> _Known | None:
        began_s = self._monotonic()
        stored = await self._find(name.customer, name.key, LOOKUP_TIMEOUT_S)
        if not stored.hash:
            self._known.pop(name, None)
            return None
        scopes = Scope(0)
        for scope in stored.scopes:
            # One that only a newer gateway knows opens nothing here.
            scopes |= _SCOPES.get(scope, Scope(0))  # type: ignore[call-overload]
        known = _Known(stored.hash, scopes, stored.expire_ms, began_s + KEY_REMEMBERED_S)
        self._known[name] = known
        self._known.move_to_end(name)
        if len(self._known) > KEYS_REMEMBERED_MAX:
            self._known.popitem(last=False)
        return known


def token_of(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    """The key that a call shows. Raises KeyRequired."""
    shown = [value for key, value in metadata if key == "authorization"]
    if not shown:
        raise KeyRequired('the call carries no API key: send "authorization: Bearer KEY"')
    scheme, _, token = str(shown[0]).partition(" ")
    if len(shown) > 1 or scheme.lower() != SCHEME or not token:
        raise KeyRequired('the call must carry one "authorization: Bearer KEY"')
    return token.strip()


def address_of(peer: str) -> str:
    """Whose failures are counted together, by a peer as gRPC names it ("ipv4:192.0.2.1:4242"): a
    host; of IPv6 the 64 bits that one host can change at will are left out."""
    kind, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    if kind != "ipv6":
        return host or peer
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
