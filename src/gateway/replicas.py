"""The replicas of one shard as a gateway reaches them: channels, and the search for the leader.

Who they are is said by the configuration at first, and then by the replicas themselves: each answer
has a list with a number, and the highest counts. If nobody in it answers, those that are configured
are asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import grpc
import grpc.aio

from ..mesh.config import Peer, ShardMembers
from ..mesh.limits import INTERNAL_MESSAGE_BYTES_MAX
from ..mesh.tls import CHANNEL_OPTIONS
from ..proto.tickmesh.internal.v1 import shard_pb2
from ..proto.tickmesh.internal.v1.shard_pb2_grpc import ShardServiceStub
from ..proto.tickmesh.v1 import cluster_pb2

if TYPE_CHECKING:  # It exists for type checkers only.
    from ..proto.tickmesh.internal.v1.shard_pb2_grpc import ShardServiceAsyncStub

PROBE_TIMEOUT_S = 0.25
"""How long a replica may take to say whether it leads: far more than one that lives needs, and
little enough to ask again soon where one hangs while the others elect."""

VIEW_TIMEOUT_S = 2.0
"""How long a replica may take to tell of itself, to people: on a busy machine one that lives should
not be shown as one that does not. One that is gone says so at once."""

SETTLE_S = 0.05
"""How long the others may take to contradict a replica that says it leads: one that was cut off or
paused may not know yet of a higher term."""

RECONNECT_MS_MIN = 50
RECONNECT_MS_MAX = 1_000
"""A lost connection is tried again after so long: gRPC's default of up to 2 minutes would keep a
replica that restarted out of use."""

MESH_CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    *CHANNEL_OPTIONS,
    ("grpc.max_receive_message_length", INTERNAL_MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", INTERNAL_MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS_MIN),
    ("grpc.min_reconnect_backoff_ms", RECONNECT_MS_MAX),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
    # What may be sent twice is decided here (calls.py), not by the transport.
    ("grpc.enable_retries", 0),
)


class Replica:
    """One replica: its channel and stub."""

    def __init__(self, peer: Peer, credentials: grpc.ChannelCredentials) -> None:
        self.id = peer.replica_id
        self.address = peer.address
        self.channel = grpc.aio.secure_channel(
            peer.address, credentials, options=MESH_CHANNEL_OPTIONS
        )
        self.stub: ShardServiceAsyncStub = ShardServiceStub(self.channel)

    @property
    def connected(self) -> bool:
        """Whether a call could leave now. If not, it surely was not sent."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY


class View(NamedTuple):
    """What a replica told of itself."""

    source: Replica
    replica: cluster_pb2.Replica
    executors: tuple[cluster_pb2.Executor, ...]


class Replicas:
    """All replicas of one shard."""

    def __init__(self, members: ShardMembers, credentials: grpc.ChannelCredentials) -> None:
        self.shard_id = members.shard_id
        self.number = 0
        """Of the list that is in force."""
        self.learners: frozenset[str] = frozenset()
        """Who in it is not counted yet."""
        self._credentials = credentials
        self._configured = tuple((peer.replica_id, peer.address) for peer in members.replicas)
        self._made: dict[tuple[str, str], Replica] = {}
        self.all = self._reach(self._configured)

    def _reach(self, places: Sequence[tuple[str, str]]) -> tuple[Replica, ...]:
        """The replicas of some ids and addresses. A channel, once made, stays: there are few."""
        for replica_id, address in places:
            if (replica_id, address) not in self._made:
                peer = Peer(replica_id=replica_id, address=address)
                self._made[replica_id, address] = Replica(peer, self._credentials)
        return tuple(self._made[place] for place in places)

    def learn(self, members: shard_pb2.ShardMembers) -> None:
        """A replica says who belongs to the shard."""
        if members.number > self.number and members.replicas:
            self.number = members.number
            self.learners = frozenset(e.replica_id for e in members.replicas if not e.voter)
            self.all = self._reach([(each.replica_id, each.address) for each in members.replicas])

    async def close(self) -> None:
        """Close the channels."""
        for replica in self._made.values():
            await replica.channel.close()

    async def find_leader(self, hint: str = "") -> Replica | None:
        """The replica that says it leads, with the highest term. One named by `hint` is believed
        without asking the others, so that a replica that hangs does not delay what is known."""
        hinted = [replica for replica in self.all if replica.id == hint]
        found = _leader(await self._claims(hinted))
        if found is not None:
            return found
        views = await self._claims(self.all)
        if not views and self.number:
            # All that were known are gone: who is configured may know better, or start anew.
            self.number, self.learners = 0, frozenset()
            self.all = self._reach(self._configured)
        return _leader(views)

    async def find_newer_leader(self, leader: Replica) -> Replica | None:
        """Another replica that leads with a term above the leader's own word (or its silence)."""
        views = await self._claims(self.all)
        term = max((v.replica.term for v in views if v.source is leader), default=-1)
        newer = [v for v in views if v.source is not leader and v.replica.term > term]
        return _leader(newer)

    async def ask(self) -> list[View]:
        """The views of all that answer in time. At most one leads: see `_one_leads`."""
        answers = await asyncio.gather(*(self._ask_one(r, VIEW_TIMEOUT_S) for r in self.all))
        return _one_leads([view for view in answers if view is not None])

    async def _claims(self, replicas: Sequence[Replica]) -> list[View]:
        """Views until one says that it leads, and those that come within SETTLE_S after it."""
        waiting = {asyncio.ensure_future(self._ask_one(r, PROBE_TIMEOUT_S)) for r in replicas}
        views: list[View] = []
        timeout_s: float | None = None
        try:
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                views.extend(view for view in (task.result() for task in done) if view)
                if _leader(views) is not None:
                    timeout_s = SETTLE_S
        finally:
            for task in waiting:
                task.cancel()
        return views

    async def _ask_one(self, replica: Replica, timeout_s: float) -> View | None:
        try:
            status = await replica.stub.GetStatus(shard_pb2.GetStatusRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return None
        self.learn(status.members)
        return View(
            replica,
            cluster_pb2.Replica.FromString(status.replica),
            tuple(cluster_pb2.Executor.FromString(e) for e in status.executors),
        )


def _one_leads(views: list[View]) -> list[View]:
    """What replicas told, but that of those who say that they lead only one in the highest term is
    believed. Another was stopped or cut off for a while, and has not heard of its successor yet.
    """
    term = max((view.replica.term for view in views if view.replica.leader), default=0)
    told = []
    for view in views:
        if view.replica.leader and view.replica.term < term:
            view.replica.leader = False
            told.append(View(view.source, view.replica, ()))
        else:
            told.append(view)
    return told


def _leader(views: list[View]) -> Replica | None:
    leading = [view for view in views if view.replica.leader]
    return max(leading, key=lambda view: view.replica.term).source if leading else None
