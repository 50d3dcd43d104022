"""The methods about customers' logins to registries, which are stored sealed."""

from __future__ import annotations

from google.protobuf import empty_pb2
from google.protobuf.message import Message

from ...mesh import names
from ...mesh.errors import FailedPrecondition
from ...proto.tickmesh.v1 import image_pb2
from .. import convert
from ..core.commands import DeleteRegistryCredential, PutRegistryCredential
from ..core.model import RegistryCredential
from ..secrets import place
from ..shard import Shard
from .writes import Methods, Write, Writes


class Credentials:
    """The methods, as the shard's leader answers them."""

    def __init__(self, shard: Shard, writes: Writes) -> None:
        self._shard = shard
        self._writes = writes
        service = "tickmesh.v1.ImageService"
        self.methods = Methods(
            writes={
                f"{service}/CreateRegistryCredential": (
                    image_pb2.CreateRegistryCredentialRequest,
                    self.create,
                ),
                f"{service}/DeleteRegistryCredential": (
                    image_pb2.DeleteRegistryCredentialRequest,
                    self.delete,
                ),
            },
            reads={
                f"{service}/ListRegistryCredentials": (
                    image_pb2.ListRegistryCredentialsRequest,
                    self.list,
                )
            },
            steps={},
        )

    def create(self, request: image_pb2.CreateRegistryCredentialRequest) -> Write:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        if not self._shard.secrets.there:
            raise FailedPrecondition(
                "this mesh keeps no secrets: its operator has configured no key for them"
            )
        key_id, sealed = self._shard.secrets.seal(place(customer, request.host), request.secret)
        command = PutRegistryCredential(customer, request.host, request.username, key_id, sealed)
        return self._writes.submit(command, lambda made: message(made[0]))

    def list(self, request: image_pb2.ListRegistryCredentialsRequest) -> Message:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        found = self._shard.queries.registry_credentials(customer)
        return image_pb2.ListRegistryCredentialsResponse(registry_credentials=map(message, found))

    def delete(self, request: image_pb2.DeleteRegistryCredentialRequest) -> Write:
        """See the proto."""
        _, customer, _, host = request.name.split("/")
        return self._writes.submit(
            DeleteRegistryCredential(customer, host), lambda _: empty_pb2.Empty()
        )


def message(stored: RegistryCredential) -> image_pb2.RegistryCredential:
    """The public message: without the secret."""
    return image_pb2.RegistryCredential(
        name=f"customers/{stored.customer}/registryCredentials/{stored.host}",
        username=stored.username,
        create_time=convert.from_ms(stored.create_ms),
    )
