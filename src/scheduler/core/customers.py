"""Customers: what is kept of theirs, and their API keys."""

from __future__ import annotations

from msgspec.structs import replace

from .commands import (
    CreateApiKey,
    DeleteRegistryCredential,
    PutRegistryCredential,
    Refused,
    RevokeApiKey,
    UpdateCustomer,
    Why,
)
from .jobs import check_version
from .model import ApiKey, Customer, RegistryCredential
from .view import View

KEYS_MAX = 100
"""API keys of one customer, expired ones too: more than anybody tells apart."""

CREDENTIALS_MAX = 100
"""Logins to registries of one customer."""


def of(view: View, customer: str, now_ms: int) -> Customer:
    """What is stored of a customer, or what would be."""
    return view.customer(customer) or Customer(customer, create_ms=now_ms)


def update(view: View, command: UpdateCustomer, now_ms: int) -> list[Customer]:
    """What is kept from now on, what was forgotten does not come back; and its plan."""
    stored = of(view, command.customer, now_ms)
    check_version(stored.version, command.version, f"customers/{command.customer}")
    changed = replace(
        stored,
        max_age_ms=command.max_age_ms,
        executions_per_job_max=command.executions_per_job_max,
        plan=command.plan,
        version=stored.version + 1,
    )
    view.put_customer(changed)
    return [changed]


def create_key(view: View, command: CreateApiKey, now_ms: int) -> list[ApiKey]:
    """The same request again gives the key that it made a new secret: what the first answer said
    may never have arrived, and cannot be told again."""
    stored = view.api_key(command.customer, command.key_id)
    if stored is not None:
        if not command.request or stored.request != command.request:
            raise Refused(Why.ALREADY_EXISTS, "the key's id")
        again = replace(stored, hash=command.hash)
        view.put_api_key(again)
        return [again]
    customer = of(view, command.customer, now_ms)
    if customer.key_count >= KEYS_MAX:
        raise Refused(Why.TOO_MANY_KEYS, f"customers/{command.customer}")
    made = ApiKey(
        customer=command.customer,
        id=command.key_id,
        hash=command.hash,
        display_name=command.display_name,
        scopes=command.scopes,
        create_ms=now_ms,
        expire_ms=command.expire_ms,
        request=command.request,
    )
    view.put_api_key(made)
    view.put_customer(replace(customer, key_count=customer.key_count + 1))
    return [made]


def revoke_key(view: View, command: RevokeApiKey, now_ms: int) -> list[ApiKey]:
    """Forgotten: a key that is not there is refused as one that never was."""
    stored = view.api_key(command.customer, command.key_id)
    if stored is None:
        raise Refused(Why.NOT_FOUND, "such key")
    customer = of(view, command.customer, now_ms)
    view.delete_api_key(stored)
    view.put_customer(replace(customer, key_count=customer.key_count - 1))
    return [stored]


def put_credential(
    view: View, command: PutRegistryCredential, now_ms: int
) -> list[RegistryCredential]:
    """Keep a login; the same again changes nothing but what it is sealed with."""
    made = RegistryCredential(
        customer=command.customer,
        host=command.host,
        username=command.username,
        key_id=command.key_id,
        sealed=command.sealed,
        create_ms=now_ms,
    )
    if view.registry_credential(command.customer, command.host) is None:
        customer = of(view, command.customer, now_ms)
        if customer.credential_count >= CREDENTIALS_MAX:
            raise Refused(Why.TOO_MANY_CREDENTIALS, f"customers/{command.customer}")
        view.put_customer(replace(customer, credential_count=customer.credential_count + 1))
    view.put_registry_credential(made)
    return [made]


def delete_credential(
    view: View, command: DeleteRegistryCredential, now_ms: int
) -> list[RegistryCredential]:
    """Forget a login."""
    stored = view.registry_credential(command.customer, command.host)
    if stored is None:
        raise Refused(Why.NOT_FOUND, f"login to {command.host}")
    customer = of(view, command.customer, now_ms)
    view.delete_registry_credential(stored)
    view.put_customer(replace(customer, credential_count=customer.credential_count - 1))
    return [stored]
