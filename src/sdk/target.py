"""Where the mesh is and who asks: from arguments, else the environment, else what is near."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..mesh import api_keys, names
from ..mesh.addresses import is_loopback
from ..mesh.errors import invalid

ADDRESS_VARIABLE = "TICKMESH_ADDRESS"
CUSTOMER_VARIABLE = "TICKMESH_CUSTOMER"
AUTHORITY_VARIABLE = "TICKMESH_CA_FILE"
API_KEY_VARIABLE = "TICKMESH_API_KEY"
DEVELOPMENT_FILE = Path(".tickmesh/dev.json")
"""Written by `tickmesh dev`, below its working directory."""
DEFAULT_ADDRESS = "127.0.0.1:7300"
DEFAULT_CUSTOMER = "default"


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway, and the customer on whose behalf to call it."""

    address: str
    customer: str
    tls: bool
    ca_file: str
    """PEM of the authority that signed the gateway's certificate; "" is the system's own."""
    api_key: str = field(default="", repr=False)
    """Shown with each call; "": none."""


def resolve(
    address: str | None = None,
    customer: str | None = None,
    *,
    tls: bool | None = None,
    ca_file: str | Path | None = None,
    api_key: str | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Target:
    """The target: an argument wins over the environment, that over `.tickmesh/dev.json`.

    Raises InvalidRequest for a customer that cannot be one, and for a key that is another's or
    that would leave this machine in plain text.
    """
    variables = os.environ if environment is None else environment
    address = address or variables.get(ADDRESS_VARIABLE) or _of_development_mesh(directory)
    api_key = (api_key or variables.get(API_KEY_VARIABLE) or "").strip()
    key_name = api_keys.name_of(api_key)
    if api_key and key_name is None and not api_keys.is_operators(api_key):
        raise invalid("api_key", "is not an API key, as tmk_{customer}_{key}_{secret}")
    customer = customer or variables.get(CUSTOMER_VARIABLE)
    if customer and key_name is not None and customer != key_name.customer:
        raise invalid(
            "customer",
            f"the API key is of customer {key_name.customer!r}, not {customer[:80]!r}",
        )
    customer = customer or (DEFAULT_CUSTOMER if key_name is None else key_name.customer)
    if not names.is_id(customer):
        raise invalid(
            "customer", f"{customer[:80]!r} is not a customer's id: a letter, then [a-z0-9-]"
        )
    authority = str(ca_file or variables.get(AUTHORITY_VARIABLE) or "")
    tls = bool(authority) if tls is None else tls
    if api_key and not tls and not is_loopback(address.rpartition(":")[0]):
        raise invalid(
            "api_key",
            f"would be sent to {address} in plain text: use TLS (tls=True or a ca_file; --tls or "
            "--ca-file)",
        )
    return Target(address, customer, tls, authority, api_key)


def _of_development_mesh(directory: Path | None) -> str:
    try:
        found = json.loads(((directory or Path.cwd()) / DEVELOPMENT_FILE).read_text())
        return str(found["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_ADDRESS
