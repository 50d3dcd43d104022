"""Who may call what: every method has scopes, and nobody reaches another customer's names."""

from __future__ import annotations

from typing import Any

import pytest

from tickmesh.gateway.access import ACCESS, Principal, Scope, authorize
from tickmesh.gateway.methods import METHODS, Method
from tickmesh.mesh.errors import NotFound, ScopeMissing

ALL = list(METHODS.values())
OPERATOR = Principal("", Scope.OPERATOR, "operator")


def holder(*scopes: Scope, customer: str = "acme") -> Principal:
    found = Scope(0)
    for scope in scopes:
        found |= scope
    return Principal(customer, found, "k")


def request_for(method: Method, name: str) -> Any:
    request = method.request_type()
    *outer, last = method.routing_field.split(".")
    target = request
    for part in outer:
        target = getattr(target, part)
    setattr(target, last, name)
    return request


def test_every_method_has_a_row() -> None:
    """A method that was added needs one in access.py: which scope it takes."""
    assert set(ACCESS) == set(METHODS)
    assert all(ACCESS.values())


@pytest.mark.parametrize("method", [m for m in ALL if m.routing_field], ids=lambda m: m.name)
@pytest.mark.parametrize("name", ["customers/other", "customers/other/jobs/j", "customers/acme2"])
def test_nobody_reaches_another_customers_names(method: Method, name: str) -> None:
    key = holder(Scope.READ, Scope.EXECUTE, Scope.ADMIN)
    with pytest.raises(NotFound, match=name):
        authorize(key, method, request_for(method, name))
    # One without any scope learns no more.
    with pytest.raises(NotFound, match=name):
        authorize(holder(), method, request_for(method, name))


@pytest.mark.parametrize("method", [m for m in ALL if m.routing_field], ids=lambda m: m.name)
def test_a_scope_opens_what_its_row_says_and_nothing_else(method: Method) -> None:
    request = request_for(method, "customers/acme/jobs/j")
    for scope in (Scope.READ, Scope.EXECUTE, Scope.ADMIN):
        if ACCESS[method.name] & scope:
            authorize(holder(scope), method, request)
        else:
            with pytest.raises(ScopeMissing):
                authorize(holder(scope), method, request)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_operators_have_the_mesh_and_the_keys_and_nothing_that_customers_own(
    method: Method,
) -> None:
    request = request_for(method, "customers/acme") if method.routing_field else None
    if method.name.split("/")[0].endswith(("CustomerService", "ClusterService", "ZoneService")):
        authorize(OPERATOR, method, request)
    else:
        with pytest.raises(ScopeMissing):
            authorize(OPERATOR, method, request)


@pytest.mark.parametrize(
    ("paths", "plan", "allowed"),
    [
        (["retention"], "", True),
        (["retention"], "gold", True),  # what the mask leaves out is not looked at
        (["*"], "", True),  # which leaves the plan as it is
        (["*"], "gold", False),
        (["plan"], "gold", False),
        (["plan"], "", False),
        (["retention", "plan"], "gold", False),
    ],
)
def test_only_operators_change_a_plan(paths: list[str], plan: str, allowed: bool) -> None:
    method = METHODS["tickmesh.v1.CustomerService/UpdateCustomer"]
    request = request_for(method, "customers/acme")
    request.customer.plan = plan
    request.update_mask.paths.extend(paths)
    authorize(OPERATOR, method, request)
    if allowed:
        authorize(holder(Scope.ADMIN), method, request)
    else:
        with pytest.raises(ScopeMissing, match="operator's key only"):
            authorize(holder(Scope.ADMIN), method, request)
    with pytest.raises(ScopeMissing, match="needs scope"):
        authorize(holder(Scope.READ), method, request)


@pytest.mark.parametrize("method", [m for m in ALL if not m.routing_field], ids=lambda m: m.name)
def test_what_belongs_to_no_customer_is_the_operators(method: Method) -> None:
    with pytest.raises(ScopeMissing, match="operator"):
        authorize(holder(Scope.READ, Scope.EXECUTE, Scope.ADMIN), method, method.request_type())
