"""Customers' logins to registries: sealed wherever they are kept, and opened by their key alone."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tickmesh.mesh.config import ConfigError, SecretKey
from tickmesh.scheduler.core.commands import (
    DeleteRegistryCredential,
    PutRegistryCredential,
    Refused,
    Why,
)
from tickmesh.scheduler.core.customers import CREDENTIALS_MAX
from tickmesh.scheduler.logins import Logins
from tickmesh.scheduler.secrets import Secrets, place

from .worlds import World

HOST = "registry.example:5000"
SECRET = "open sesame"


def key(directory: Path, key_id: str, byte: bytes = b"k") -> SecretKey:
    path = directory / key_id
    path.write_bytes(base64.b64encode(byte * 32) + b"\n")
    return SecretKey(key_id, str(path))


def put(secrets: Secrets, customer: str = "acme", host: str = HOST) -> PutRegistryCredential:
    return PutRegistryCredential(
        customer, host, "robot", *secrets.seal(place(customer, host), SECRET)
    )


def test_a_login_is_told_with_what_it_is_for(tmp_path: Path) -> None:
    world, secrets = World(), Secrets([key(tmp_path, "one")])
    world.do(put(secrets))
    logins = Logins(world.queries, secrets)
    told = logins.of("acme", f"{HOST}/team/report:1")
    assert told is not None
    assert (told.customer, told.host, told.username, told.secret) == ("acme", HOST, "robot", SECRET)
    assert logins.of("evil", f"{HOST}/team/report:1") is None
    assert logins.of("acme", "registry.example/team/report:1") is None
    assert logins.of("acme", "acme/report:1") is None


def test_nothing_that_is_stored_has_the_secret(tmp_path: Path) -> None:
    world, secrets = World(), Secrets([key(tmp_path, "one")])
    command = put(secrets)
    world.do(command)
    stored = b"".join(a + b for a, b in world.backend.scan(b"", b"\xff"))
    assert HOST.encode() in stored and b"robot" in stored
    assert SECRET.encode() not in stored and SECRET not in repr(command)
    assert put(secrets).sealed != command.sealed, "the same secret is sealed anew each time"


def test_keys_take_one_anothers_place(tmp_path: Path) -> None:
    world, old = World(), key(tmp_path, "old")
    world.do(put(Secrets([old])))
    both = Secrets([key(tmp_path, "new", b"n"), old])
    assert Logins(world.queries, both).of("acme", f"{HOST}/x") is not None
    assert both.seal("x", "y")[0] == "new"
    assert (
        Logins(world.queries, Secrets([key(tmp_path, "new", b"n")])).of("acme", f"{HOST}/x") is None
    )
    assert (
        Logins(world.queries, Secrets([key(tmp_path, "old", b"o")])).of("acme", f"{HOST}/x") is None
    )


def test_what_is_sealed_cannot_be_moved(tmp_path: Path) -> None:
    secrets = Secrets([key(tmp_path, "one")])
    key_id, sealed = secrets.seal(place("acme", HOST), SECRET)
    assert secrets.open(place("acme", HOST), key_id, sealed) == SECRET
    assert secrets.open(place("evil", HOST), key_id, sealed) is None
    assert secrets.open(place("acme", HOST), key_id, sealed[:-1] + b"x") is None
    assert secrets.open(place("acme", HOST), key_id, b"") is None


def test_a_login_takes_the_place_of_another_and_goes(tmp_path: Path) -> None:
    world, secrets = World(), Secrets([key(tmp_path, "one")])
    for number in range(CREDENTIALS_MAX):
        world.do(put(secrets, host=f"r{number:03}.example"))
    world.do(put(secrets, host="r000.example"))
    refused = world.do(put(secrets, host="one-more.example"))
    assert isinstance(refused, Refused) and refused.why is Why.TOO_MANY_CREDENTIALS
    world.do(put(secrets, customer="other"))
    found = world.queries.registry_credentials("acme")
    assert [each.host for each in found] == [f"r{n:03}.example" for n in range(CREDENTIALS_MAX)]
    world.do(DeleteRegistryCredential("acme", "r000.example"))
    refused = world.do(DeleteRegistryCredential("acme", "r000.example"))
    assert isinstance(refused, Refused) and refused.why is Why.NOT_FOUND
    assert not isinstance(world.do(put(secrets, host="one-more.example")), Refused)


@pytest.mark.parametrize("content", ["", "x", base64.b64encode(bytes(31)).decode(), "é" * 44])
def test_a_key_that_is_none_stops_the_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"secret_keys\[0\]"):
        Secrets([SecretKey("one", str(path))])
    with pytest.raises(ConfigError, match="No such file"):
        Secrets([SecretKey("one", str(tmp_path / "none"))])
