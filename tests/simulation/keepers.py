"""A caller that changes, again and again, how much of their history the customer keeps."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.message import Message

from tickmesh.mesh.errors import FailedPrecondition, InvalidRequest
from tickmesh.proto.tickmesh.v1 import customer_pb2

from .clients import CUSTOMER, Client, Unknown
from .versions import Versions

EVERY_S = 8.0
"""Between two changes of mind, at a busy pace."""

KEPT_S = 14.0
"""What is kept after its end whatever the retention: longer than a client repeats a request, and
otherwise as short as can be."""

WALK_S = 3.0
"""Between the leader's walks."""


def is_forgetful(seed: int) -> bool:
    """In three of eight simulations; the others go as if there were no such thing."""
    return seed % 8 in (3, 6, 7)


class Keeper(Client):
    """See the module. It is the only one that writes the customer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._versions = Versions(self._violate)

    async def run(self) -> None:
        """Until told to stop."""
        stretch = self._pace.stretch
        while not self.stopping:
            await asyncio.sleep(self.chance.uniform(0.2, 2.0) * EVERY_S * stretch)
            customer = customer_pb2.Customer(name=CUSTOMER)
            if self.chance.random() < 0.5:
                age_s = self.chance.choice((10.0, 20.0, 60.0))
                customer.retention.max_age.FromMilliseconds(int(age_s * stretch * 1_000))
            customer.retention.executions_per_job_max = self.chance.choice((0, 1, 1, 3, 10))
            request = customer_pb2.UpdateCustomerRequest(customer=customer)
            request.update_mask.paths.append("retention")
            try:
                await self._customer("UpdateCustomer", request)
                await self._customer("GetCustomer", customer_pb2.GetCustomerRequest(name=CUSTOMER))
            except InvalidRequest:
                pass  # longer than history is kept in this simulation
            except FailedPrecondition:
                pass  # the leader has not heard yet of a replica that it knows such commands
            except Unknown:
                self._note(f"{self.name} does not know")

    async def _customer(self, method: str, request: Message) -> None:
        seen = self._versions.begin()
        found, _ = await self.ask(
            f"tickmesh.v1.CustomerService/{method}", request, customer_pb2.Customer
        )
        self._versions.told(seen, found.name, found.etag, found)
