"""Where the mesh is and who asks: from arguments, else the environment, else what is near."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..mesh import names
from ..mesh.errors import invalid

ADDRESS_VARIABLE = "TICKMESH_ADDRESS"
CUSTOMER_VARIABLE = "TICKMESH_CUSTOMER"
AUTHORITY_VARIABLE = "TICKMESH_CA_FILE"
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


def resolve(
    address: str | None = None,
    customer: str | None = None,
    *,
    tls: bool | None = None,
    ca_file: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Target:
    """The target: an argument wins over the environment, that over `.tickmesh/dev.json`.

    Raises InvalidRequest for a customer that cannot be one.
    """
    variables = os.environ if environment is None else environment
    address = address or variables.get(ADDRESS_VARIABLE) or _of_development_mesh(directory)
    customer = customer or variables.get(CUSTOMER_VARIABLE) or DEFAULT_CUSTOMER
    if not names.is_id(customer):
        raise invalid(
            "customer", f"{customer[:80]!r} is not a customer's id: a letter, then [a-z0-9-]"
        )
    authority = str(ca_file or variables.get(AUTHORITY_VARIABLE) or "")
    return Target(address, customer, bool(authority) if tls is None else tls, authority)


def _of_development_mesh(directory: Path | None) -> str:
    try:
        found = json.loads(((directory or Path.cwd()) / DEVELOPMENT_FILE).read_text())
        return str(found["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_ADDRESS
