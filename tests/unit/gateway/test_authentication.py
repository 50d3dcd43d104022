"""Keys are checked, remembered shortly, and tried rarely by those who have none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from tickmesh.gateway import authentication
from tickmesh.gateway.access import Principal, Scope
from tickmesh.gateway.authentication import (
    FAILURES_MAX,
    KEY_REMEMBERED_S,
    Attempts,
    Authentication,
    address_of,
    token_of,
)
from tickmesh.mesh import api_keys
from tickmesh.mesh.errors import KeyInvalid, KeyRequired, NoLeader, Overloaded, TooManyAttempts
from tickmesh.mesh.names import KeyName
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import customer_pb2

KEY_ID = "0123456789abcdef"
KEY = api_keys.make("acme", KEY_ID, bytes(32))
OTHER = api_keys.make("acme", KEY_ID, bytes(31) + b"\x01")
OPERATOR = api_keys.make_operator(bytes(32))
HERE = "192.0.2.1"


@dataclass
class Mesh:
    """What the shards of a small mesh store, and a clock."""

    keys: dict[tuple[str, str], shard_pb2.FindKeyResponse] = field(default_factory=dict)
    asked: int = 0
    now_s: float = 1_000.0
    gate: asyncio.Event | None = None
    broken: Exception | None = None

    async def find(self, customer: str, key_id: str, timeout_s: float) -> shard_pb2.FindKeyResponse:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.broken is not None:
            raise self.broken
        return self.keys.get((customer, key_id), shard_pb2.FindKeyResponse())

    async def was_asked(self, count: int) -> None:
        """Wait until it was, so often."""
        for _ in range(10_000):
            if self.asked >= count:
                return
            await asyncio.sleep(0)
        raise AssertionError(f"asked {self.asked} times")

    def store(self, text: str, *scopes: int, expire_ms: int = 0) -> None:
        name = api_keys.name_of(text)
        assert name is not None
        self.keys[name] = shard_pb2.FindKeyResponse(
            hash=api_keys.digest(text), scopes=scopes, expire_ms=expire_ms
        )

    def clock(self) -> float:
        return self.now_s


@pytest.fixture
def mesh() -> Mesh:
    made = Mesh()
    made.store(KEY, customer_pb2.API_SCOPE_READ)
    return made


@pytest.fixture
def door(mesh: Mesh) -> Authentication:
    return Authentication(
        mesh.find, [api_keys.digest(OPERATOR)], monotonic=mesh.clock, now=mesh.clock
    )


async def test_a_key_says_whom_it_acts_for_and_is_remembered(
    mesh: Mesh, door: Authentication
) -> None:
    for _ in range(3):
        assert await door.authenticate(KEY, HERE) == Principal("acme", Scope.READ, KEY_ID)
    assert mesh.asked == 1
    mesh.now_s += KEY_REMEMBERED_S
    await door.authenticate(KEY, HERE)
    assert mesh.asked == 2


async def test_admin_has_the_other_scopes_too(mesh: Mesh, door: Authentication) -> None:
    mesh.store(KEY, customer_pb2.API_SCOPE_ADMIN)
    principal = await door.authenticate(KEY, HERE)
    assert principal.scopes == Scope.READ | Scope.EXECUTE | Scope.ADMIN


async def test_a_scope_of_the_future_opens_nothing(mesh: Mesh, door: Authentication) -> None:
    mesh.store(KEY, 99)
    assert (await door.authenticate(KEY, HERE)).scopes == Scope(0)


async def test_an_operators_key_costs_no_shard_anything(mesh: Mesh, door: Authentication) -> None:
    assert await door.authenticate(OPERATOR, HERE) == Principal("", Scope.OPERATOR, "operator")
    with pytest.raises(KeyInvalid):
        await door.authenticate(api_keys.make_operator(b"\x01" * 32), HERE)
    assert mesh.asked == 0


async def test_a_revoked_key_is_refused_when_it_is_not_remembered_any_more(
    mesh: Mesh, door: Authentication
) -> None:
    await door.authenticate(KEY, HERE)
    mesh.keys.clear()
    await door.authenticate(KEY, HERE)
    mesh.now_s += KEY_REMEMBERED_S
    with pytest.raises(KeyInvalid):
        await door.authenticate(KEY, HERE)


async def test_a_key_that_was_revoked_here_is_refused_at_once(
    mesh: Mesh, door: Authentication
) -> None:
    await door.authenticate(KEY, HERE)
    mesh.keys.clear()
    door.forget(KeyName("acme", KEY_ID))
    with pytest.raises(KeyInvalid):
        await door.authenticate(KEY, HERE)


async def test_a_key_expires_at_its_instant_though_it_is_remembered(
    mesh: Mesh, door: Authentication
) -> None:
    mesh.store(KEY, customer_pb2.API_SCOPE_READ, expire_ms=1_001_000)
    await door.authenticate(KEY, HERE)
    mesh.now_s = 1_000.999
    await door.authenticate(KEY, HERE)
    mesh.now_s = 1_001.0
    with pytest.raises(KeyInvalid, match="expired"):
        await door.authenticate(KEY, HERE)


async def test_a_new_secret_of_a_remembered_key_is_taken_at_once(
    mesh: Mesh, door: Authentication
) -> None:
    await door.authenticate(KEY, HERE)
    mesh.store(OTHER, customer_pb2.API_SCOPE_READ)
    assert (await door.authenticate(OTHER, HERE)).customer == "acme"
    with pytest.raises(KeyInvalid):
        await door.authenticate(KEY, HERE)


async def test_a_wrong_secret_and_an_unknown_key_get_the_same_answer(door: Authentication) -> None:
    unknown = api_keys.make("nobody", KEY_ID, bytes(32))
    answers = set()
    for token in (OTHER, unknown):
        with pytest.raises(KeyInvalid) as refused:
            await door.authenticate(token, HERE)
        answers.add(refused.value.message)
    (answer,) = answers
    assert not any(part in answer for part in (*OTHER.split("_")[1:], "nobody"))


async def test_what_is_no_key_is_not_looked_up(mesh: Mesh, door: Authentication) -> None:
    for token in ("", "x", KEY[:-1], KEY + "0", KEY.upper(), KEY * 1_000, "tmk_acme__", "tmo_"):
        with pytest.raises(KeyInvalid):
            await door.authenticate(token, "198.51.100.7")
    assert mesh.asked == 0


async def test_who_fails_too_often_waits_and_others_do_not(
    mesh: Mesh, door: Authentication
) -> None:
    await door.authenticate(KEY, HERE)
    for _ in range(FAILURES_MAX):
        with pytest.raises(KeyInvalid):
            await door.authenticate(OTHER, HERE)
    asked = mesh.asked
    with pytest.raises(TooManyAttempts) as refused:
        await door.authenticate(OTHER, HERE)
    assert mesh.asked == asked, "it costs the shard nothing any more"
    # A key that is known to be good passes from the same address.
    await door.authenticate(KEY, HERE)
    with pytest.raises(KeyInvalid):
        await door.authenticate(OTHER, "203.0.113.9")
    assert refused.value.retry_after_ms is not None
    mesh.now_s += refused.value.retry_after_ms / 1_000
    with pytest.raises(KeyInvalid):
        await door.authenticate(OTHER, HERE)


async def test_all_who_ask_for_a_key_at_once_share_one_look_up(
    mesh: Mesh, door: Authentication
) -> None:
    mesh.gate = asyncio.Event()
    calls = [asyncio.create_task(door.authenticate(KEY, HERE)) for _ in range(50)]
    await mesh.was_asked(1)
    calls[0].cancel()  # the one that asked has gone
    mesh.gate.set()
    found = await asyncio.gather(*calls[1:])
    assert mesh.asked == 1 and {each.customer for each in found} == {"acme"}


async def test_look_ups_are_bounded(
    mesh: Mesh, door: Authentication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "LOOKUPS_MAX", 1)
    mesh.gate = asyncio.Event()
    first = asyncio.create_task(door.authenticate(KEY, HERE))
    await mesh.was_asked(1)
    with pytest.raises(Overloaded):
        await door.authenticate(api_keys.make("other", KEY_ID, bytes(32)), HERE)
    mesh.gate.set()
    await first


async def test_nobody_is_let_in_because_nobody_can_tell(mesh: Mesh, door: Authentication) -> None:
    mesh.broken = NoLeader("no leader")
    for _ in range(FAILURES_MAX + 1):  # and it is not counted as the caller's failure
        with pytest.raises(NoLeader):
            await door.authenticate(KEY, HERE)


async def test_what_is_remembered_is_bounded(
    mesh: Mesh, door: Authentication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "KEYS_REMEMBERED_MAX", 2)
    monkeypatch.setattr(authentication, "PEERS_MAX", 3)
    for number in range(10):
        token = api_keys.make(f"c{number}", KEY_ID, bytes(32))
        mesh.store(token, customer_pb2.API_SCOPE_READ)
        await door.authenticate(token, HERE)
        with pytest.raises(KeyInvalid):
            await door.authenticate(OTHER, f"192.0.2.{number}")
    assert len(door._known) <= 2 and len(door._attempts._peers) <= 3


async def test_a_stream_ends_when_its_key_does(
    mesh: Mesh, door: Authentication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "KEY_REMEMBERED_S", 0.0)
    await door.authenticate(KEY, HERE)
    watching = asyncio.create_task(door.until_refused(KEY))
    await mesh.was_asked(5)
    mesh.broken = NoLeader("no leader")  # which is no reason to end it
    await mesh.was_asked(10)
    assert not watching.done()
    mesh.broken = None
    mesh.keys.clear()
    assert isinstance(await watching, KeyInvalid)


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("x-api-key", KEY),),
        (("authorization", KEY),),
        (("authorization", "Bearer "),),
        (("authorization", f"Basic {KEY}"),),
        (("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {OTHER}")),
    ],
)
def test_a_call_without_one_key_is_told_what_to_send(metadata: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(KeyRequired, match="authorization: Bearer KEY"):
        token_of(metadata)


def test_the_key_of_a_call_is_found() -> None:
    assert token_of((("user-agent", "x"), ("authorization", f"bearer {KEY}"))) == KEY


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:4242", "192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3::4%5D:4242", "2001:db8:1:2::/64"),
        ("ipv6:[::ffff:192.0.2.1]:4242", "192.0.2.1"),
        ("ipv6:%5B::1%5D:4242", "::/64"),
        ("unix:", "unix:"),
        ("nonsense", "nonsense"),
        ("ipv6:nonsense:1", "nonsense"),
    ],
)
def test_failures_are_counted_by_address(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_attempts_come_back_with_time() -> None:
    attempts = Attempts()
    for _ in range(FAILURES_MAX):
        attempts.check(HERE, 0.0)
        attempts.failed(HERE, 0.0)
    with pytest.raises(TooManyAttempts):
        attempts.check(HERE, 0.0)
    attempts.check(HERE, 0.5)
