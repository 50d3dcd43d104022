"""The methods of CustomerService, as the shard's leader answers them."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2
from google.protobuf.message import Message

from ...mesh import api_keys, names
from ...mesh.errors import FailedPrecondition, invalid
from ...mesh.plans import STANDARD, Plan
from ...proto.tickmesh.internal.v1 import shard_pb2
from ...proto.tickmesh.v1 import customer_pb2
from .. import convert, pages
from ..core.commands import PLAN_SINCE, CreateApiKey, RevokeApiKey, UpdateCustomer
from ..core.ids import UID_BYTES, spell, unspell
from ..core.model import ApiKey, Customer
from ..core.recurrence.limits import HORIZON_MS
from ..shard import Shard
from .updates import merge, update
from .writes import Methods, Write, Writes

CUSTOMER_FIELDS = frozenset({"retention", "plan"})
"""What an update may name."""


class Customers:
    """See the module."""

    def __init__(self, shard: Shard, writes: Writes) -> None:
        self._shard = shard
        self._writes = writes
        service = "tickmesh.v1.CustomerService"
        self.methods = Methods(
            writes={
                f"{service}/CreateApiKey": (customer_pb2.CreateApiKeyRequest, self.create_api_key),
                f"{service}/RevokeApiKey": (customer_pb2.RevokeApiKeyRequest, self.revoke_api_key),
            },
            reads={
                f"{service}/GetCustomer": (customer_pb2.GetCustomerRequest, self.get_customer),
                f"{service}/ListApiKeys": (customer_pb2.ListApiKeysRequest, self.list_api_keys),
            },
            steps={
                f"{service}/UpdateCustomer": (
                    customer_pb2.UpdateCustomerRequest,
                    self.update_customer,
                )
            },
        )

    def _stored(self, name: str, field: str) -> Customer:
        """What is stored of a customer, or what stands for nothing."""
        customer = names.parse_customer(name, field)
        return self._shard.queries.customer(customer) or Customer(customer, 0)

    def _message(self, stored: Customer) -> customer_pb2.Customer:
        message = customer_pb2.Customer(
            name=names.customer_name(stored.customer), etag=convert.etag(stored.version)
        )
        if stored.max_age_ms:
            message.retention.max_age.FromMilliseconds(stored.max_age_ms)
        if stored.executions_per_job_max:
            message.retention.executions_per_job_max = stored.executions_per_job_max
        message.history_max_age.FromMilliseconds(self._shard.retention_ms)
        message.plan = stored.plan or STANDARD
        plans = self._shard.plans
        message.effective_plan.CopyFrom(
            plan_message(plans.name_of(stored.customer), plans.of(stored.customer))
        )
        return message

    def get_customer(self, request: customer_pb2.GetCustomerRequest) -> Message:
        """See the proto."""
        return self._message(self._stored(request.name, "name"))

    async def update_customer(self, request: customer_pb2.UpdateCustomerRequest) -> Message:
        """See the proto."""

        async def once(given: int) -> Message:
            stored = self._stored(request.customer.name, "customer.name")
            message = self._message(stored)
            merge(request.customer, message, request.update_mask, CUSTOMER_FIELDS)
            max_age_ms = message.retention.max_age.ToMilliseconds()
            if max_age_ms > self._shard.retention_ms:
                raise invalid(
                    "customer.retention.max_age",
                    f"{max_age_ms / 1_000:g} s is longer than the mesh keeps anything: at most "
                    f"{self._shard.retention_ms / 1_000:g} s",
                )
            command = UpdateCustomer(
                stored.customer,
                given or stored.version,
                max_age_ms,
                message.retention.executions_per_job_max,
                self._new_plan(message.plan, stored.plan),
            )
            return self._message((await self._writes.do(command))[0])

        return await update(self._shard.replica, request.customer.name, request.customer.etag, once)

    def _new_plan(self, name: str, stored: str) -> str:
        """The plan to store. Raises InvalidRequest for one that is not there."""
        if name in ("", stored or STANDARD):
            return stored
        if name not in self._shard.plans.names:
            there = ", ".join(self._shard.plans.names)
            raise invalid("customer.plan", f"there is no plan {name!r}; there are: {there}")
        if self._shard.proposals.version < PLAN_SINCE:
            raise FailedPrecondition(
                "customer.plan needs a newer version of the scheduler on every replica of the "
                "shard: upgrade those that run an older one"
            )
        return "" if name == STANDARD else name

    def create_api_key(self, request: customer_pb2.CreateApiKeyRequest) -> Write:
        """See the proto. The text leaves in the answer and is kept nowhere."""
        customer = names.parse_customer(request.parent)
        asked = request.api_key
        expire_ms = 0
        if asked.HasField("expire_time"):
            expire_ms = convert.to_ms(asked.expire_time)
            if expire_ms <= self._shard.now_ms():
                raise invalid("api_key.expire_time", "is not in the future")
            if expire_ms >= HORIZON_MS:
                raise invalid("api_key.expire_time", "is too far in the future: leave it out")
        for index, scope in enumerate(asked.scopes):
            if scope == customer_pb2.API_SCOPE_UNSPECIFIED:
                raise invalid(f"api_key.scopes[{index}]", "is none of the scopes")
        making = self._writes.making(request.request_id)
        key_id = making.uid()
        text = api_keys.make(customer, spell(key_id), self._writes.draw(api_keys.SECRET_BYTES))
        command = CreateApiKey(
            customer,
            key_id,
            api_keys.digest(text),
            asked.display_name,
            tuple(sorted(set(asked.scopes))),
            expire_ms,
            making.request,
        )
        return self._writes.submit(
            command,
            lambda made: customer_pb2.CreateApiKeyResponse(
                api_key=api_key_message(made[0]), text=text
            ),
        )

    def list_api_keys(self, request: customer_pb2.ListApiKeysRequest) -> Message:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        after = pages.start(request.page_token, "keys", request.parent)
        size = pages.size(request.page_size)
        found, following = self._shard.queries.api_keys(customer, after, size)
        return customer_pb2.ListApiKeysResponse(
            api_keys=[api_key_message(key) for key in found],
            next_page_token=pages.token(following, "keys", request.parent),
        )

    def revoke_api_key(self, request: customer_pb2.RevokeApiKeyRequest) -> Write:
        """See the proto."""
        customer, spelled = names.parse_key(request.name)
        # What cannot be an id is not the id of any: the shard says NOT_FOUND.
        key_id = unspell(spelled, UID_BYTES) or b""
        return self._writes.submit(RevokeApiKey(customer, key_id), lambda _: empty_pb2.Empty())

    def find_key(self, request: shard_pb2.FindKeyRequest) -> shard_pb2.FindKeyResponse:
        """See shard.proto."""
        key_id = unspell(request.key_id, UID_BYTES)
        key = None if key_id is None else self._shard.queries.api_key(request.customer, key_id)
        if key is None:
            return shard_pb2.FindKeyResponse()
        return shard_pb2.FindKeyResponse(hash=key.hash, scopes=key.scopes, expire_ms=key.expire_ms)


def plan_message(name: str, plan: Plan) -> customer_pb2.Plan:
    """The public message of a plan."""
    message = customer_pb2.Plan(
        name=name,
        weight=plan.weight,
        runtime=plan.runtime,
        capabilities=sorted(plan.capabilities),
        memory_bytes_max=plan.memory_bytes_max,
        cpu_millis_max=plan.cpu_millis_max,
    )
    message.timeout_max.FromSeconds(plan.timeout_s_max)
    message.interval_min.FromSeconds(plan.interval_s_min)
    return message


def api_key_message(key: ApiKey) -> customer_pb2.ApiKey:
    """The public message of a key."""
    scopes: Any = key.scopes
    message = customer_pb2.ApiKey(
        name=names.key_name(key.customer, spell(key.id)),
        display_name=key.display_name,
        scopes=scopes,
        create_time=convert.from_ms(key.create_ms),
    )
    if key.expire_ms:
        message.expire_time.CopyFrom(convert.from_ms(key.expire_ms))
    return message
