"""What operators ask of a shard's leader: the methods of ClusterService that need it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

from ..mesh.errors import FailedPrecondition, NotFound
from ..proto.tickmesh.v1 import cluster_pb2
from .raft.replica import Replica

_PREFIX = "tickmesh.v1.ClusterService"


class Operations:
    """The methods of one replica, by their names, for while it leads."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.steps: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]] = {
            f"{_PREFIX}/TransferLeadership": (
                cluster_pb2.TransferLeadershipRequest,
                self.transfer_leadership,
            ),
        }

    async def transfer_leadership(
        self, request: cluster_pb2.TransferLeadershipRequest
    ) -> cluster_pb2.TransferLeadershipResponse:
        """See cluster.proto."""
        config = self._replica.config
        if request.replica_id == config.replica_id:
            return cluster_pb2.TransferLeadershipResponse(leader_id=config.replica_id)
        if request.replica_id and request.replica_id not in config.peers:
            known = ", ".join(sorted((config.replica_id, *config.peers)))
            raise NotFound(f"there is no replica {request.replica_id!r}; there are: {known}")
        leader = await self._replica.hand_over(request.replica_id)
        if leader is None:
            who = request.replica_id or "any other replica"
            raise FailedPrecondition(
                f"{config.replica_id} leads on: {who} was not connected, not up to date, or did "
                "not take over in time. See GetCluster"
            )
        return cluster_pb2.TransferLeadershipResponse(leader_id=leader)
