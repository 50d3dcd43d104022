"""The methods about customers' logins to registries, which are stored sealed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf import empty_pb2
from google.protobuf.message import Message

from ..mesh import names
from ..mesh.errors import FailedPrecondition
from ..proto.tickmesh.v1 import image_pb2
from . import convert
from .core.commands import DeleteRegistryCredential, PutRegistryCredential
from .core.model import RegistryCredential
from .secrets import Secrets, place
from .shard import Shard

if TYPE_CHECKING:
    from .calls import Write


class CredentialCalls:
    """The methods, as the shard's leader answers them."""

    def __init__(self, shard: Shard, secrets: Secrets, submit: Callable[..., Write]) -> None:
        self._shard = shard
        self._secrets = secrets
        self._submit = submit

    def create(self, request: image_pb2.CreateRegistryCredentialRequest) -> Write:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        if not self._secrets.there:
            raise FailedPrecondition(
                "this mesh keeps no secrets: its operator has configured no key for them"
            )
        key_id, sealed = self._secrets.seal(place(customer, request.host), request.secret)
        command = PutRegistryCredential(customer, request.host, request.username, key_id, sealed)
        return self._submit(command, lambda made: message(made[0]))

    def list(self, request: image_pb2.ListRegistryCredentialsRequest) -> Message:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        found = self._shard.queries.registry_credentials(customer)
        return image_pb2.ListRegistryCredentialsResponse(registry_credentials=map(message, found))

    def delete(self, request: image_pb2.DeleteRegistryCredentialRequest) -> Write:
        """See the proto."""
        _, customer, _, host = request.name.split("/")
        return self._submit(DeleteRegistryCredential(customer, host), lambda _: empty_pb2.Empty())


def message(stored: RegistryCredential) -> image_pb2.RegistryCredential:
    """The public message: without the secret."""
    return image_pb2.RegistryCredential(
        name=f"customers/{stored.customer}/registryCredentials/{stored.host}",
        username=stored.username,
        create_time=convert.from_ms(stored.create_ms),
    )
