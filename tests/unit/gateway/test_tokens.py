"""Tokens for the registry: who gets which, and who is taken for an executor."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tickmesh.executor.credentials import Credentials
from tickmesh.gateway.access import Principal, Scope
from tickmesh.gateway.tokens import (
    TOKEN_SECONDS,
    Tokens,
    granted_to_customer,
    granted_to_executor,
    parse_scope,
)
from tickmesh.mesh.clock import SystemClock
from tickmesh.mesh.config import Tls
from tickmesh.mesh.errors import KeyInvalid
from tickmesh.mesh.tls import DevelopmentAuthority

OWN = "repository:acme/report:pull,push,delete"
FOREIGN = "repository:evil/report:pull,push"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentAuthority:
    return DevelopmentAuthority(tmp_path_factory.mktemp("certificates"))


class Now:
    """A clock to be set."""

    seconds: float = 0.0

    def __init__(self) -> None:
        self.seconds = SystemClock().now_ns() / 1e9

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def tokens(authority: DevelopmentAuthority, now: Now) -> Tokens:
    signer = authority.issue_for_tokens("tokens")
    paths = (signer.key, signer.certificate, signer.authority)
    return Tokens(*(Path(path).read_bytes() for path in paths), now)


def holder(*scopes: Scope, customer: str = "acme") -> Principal:
    found = Scope(0)
    for scope in scopes:
        found |= scope
    return Principal(customer, found, "k")


@pytest.mark.parametrize(
    ("principal", "asked", "granted"),
    [
        (holder(Scope.READ), OWN, ("pull",)),
        (holder(Scope.READ, Scope.ADMIN), OWN, ("pull", "push", "delete")),
        (holder(Scope.ADMIN), "repository:acme/report:pull", ()),
        (holder(Scope.EXECUTE), OWN, ()),
        (holder(Scope.READ, Scope.ADMIN), FOREIGN, ()),
        (holder(Scope.READ, Scope.ADMIN), "repository:acme:pull", ()),
        (holder(Scope.READ, Scope.ADMIN), "repository:acme-two/report:pull", ()),
        (holder(Scope.READ, Scope.ADMIN), "repository:acme/report:*", ()),
        (holder(Scope.READ, Scope.ADMIN), "registry:catalog:*", ()),
        (holder(Scope.READ, Scope.ADMIN), "nonsense", ()),
        (holder(Scope.OPERATOR, customer=""), "repository:/report:pull", ()),
        (holder(Scope.OPERATOR, customer=""), OWN, ()),
    ],
)
def test_a_customer_gets_its_own_as_its_key_allows(
    principal: Principal, asked: str, granted: tuple[str, ...]
) -> None:
    found = granted_to_customer(principal, [asked, FOREIGN])
    assert [actions for _, _, actions in found] == ([granted] if granted else [])
    assert all(name.startswith("acme/") for _, name, _ in found)


def test_an_executor_pulls_and_no_more() -> None:
    assert granted_to_executor([OWN, "registry:catalog:*", "repository:acme/x:push"]) == [
        ("repository", "acme/report", ("pull",))
    ]


def test_a_scope_may_name_a_registry_with_a_port() -> None:
    assert parse_scope("repository:host:5000/a:pull") == ("repository", "host:5000/a", ("pull",))


def test_a_token_says_so_much_and_for_so_long(tokens: Tokens, now: Now) -> None:
    token = tokens.make("acme", [("repository", "acme/report", ("pull",))])
    header, claims = (
        json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2]
    )
    assert header["alg"] == "ES256" and len(header["x5c"]) == 1
    assert claims["access"] == [{"type": "repository", "name": "acme/report", "actions": ["pull"]}]
    assert (claims["sub"], claims["aud"], claims["iss"]) == ("acme", "tickmesh", "tickmesh")
    assert claims["exp"] == int(now()) + TOKEN_SECONDS


def stated(tls: Tls) -> str:
    return Credentials(SystemClock(), tls).own_login().secret


def test_an_executor_is_who_its_certificate_says(
    tokens: Tokens, authority: DevelopmentAuthority
) -> None:
    assert tokens.executor(stated(authority.issue("executor", "executor-7"))) == "executor-7"


def test_a_statement_is_good_for_a_minute(
    tokens: Tokens, authority: DevelopmentAuthority, now: Now
) -> None:
    statement = stated(authority.issue("executor", "executor-7"))
    now.seconds += 120
    with pytest.raises(KeyInvalid):
        tokens.executor(statement)


@pytest.mark.parametrize("role", ["gateway", "scheduler"])
def test_other_services_are_no_executors(
    tokens: Tokens, authority: DevelopmentAuthority, role: str
) -> None:
    with pytest.raises(KeyInvalid, match="no executor's"):
        tokens.executor(stated(authority.issue(role, "x")))


def test_another_mesh_is_not_believed(tokens: Tokens, tmp_path: Path) -> None:
    other = DevelopmentAuthority(tmp_path / "other")
    with pytest.raises(KeyInvalid):
        tokens.executor(stated(other.issue("executor", "executor-7")))


def test_a_statement_that_was_changed_is_not_believed(
    tokens: Tokens, authority: DevelopmentAuthority
) -> None:
    one = stated(authority.issue("executor", "one")).split(".")
    two = stated(authority.issue("executor", "two")).split(".")
    for forged in (
        ".".join([one[0], one[1], two[2]]),
        ".".join([two[0], one[1], one[2]]),
        ".".join([one[0], one[1], ""]),
        "", "x", "a.b.c", "." * 20_000,
    ):  # fmt: skip
        with pytest.raises(KeyInvalid):
            tokens.executor(forged)


def test_a_statement_that_is_not_signed_is_not_believed(
    tokens: Tokens, authority: DevelopmentAuthority
) -> None:
    header, claims, _ = stated(authority.issue("executor", "one")).split(".")
    told = json.loads(base64.urlsafe_b64decode(header + "=="))
    told["alg"] = "none"
    unsigned = base64.urlsafe_b64encode(json.dumps(told).encode()).decode().rstrip("=")
    with pytest.raises(KeyInvalid):
        tokens.executor(f"{unsigned}.{claims}.")
