"""Which login an executor is told, by what it is to pull."""

from __future__ import annotations

from ..mesh import telemetry
from ..proto.tickmesh.internal.v1 import shard_pb2
from .secrets import Secrets, place
from .store.queries import Queries

log = telemetry.logger(__name__)


class Logins:
    """See the module."""

    def __init__(self, queries: Queries, secrets: Secrets) -> None:
        self._queries = queries
        self._secrets = secrets

    def of(self, customer: str, image: str) -> shard_pb2.Login | None:
        """The customer's login for the registry that an image is in, if it has one."""
        host, slash, _ = image.partition("/")
        if not slash or ("." not in host and ":" not in host):
            return None  # a customer's own image
        stored = self._queries.registry_credential(customer, host)
        if stored is None:
            return None
        secret = self._secrets.open(place(customer, host), stored.key_id, stored.sealed)
        if secret is None:
            log.error("a login cannot be opened", customer=customer, host=host, key=stored.key_id)
            return None
        return shard_pb2.Login(
            customer=customer, host=host, username=stored.username, secret=secret
        )
