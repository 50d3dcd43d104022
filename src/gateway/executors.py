"""Channels to executors, by the addresses that they gave their shards."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from ..proto.tickmesh.internal.v1.executor_pb2_grpc import ExecutorServiceStub
from .replicas import MESH_CHANNEL_OPTIONS

if TYPE_CHECKING:  # It exists for type checkers only.
    from ..proto.tickmesh.internal.v1.executor_pb2_grpc import ExecutorServiceAsyncStub

CHANNELS_MAX = 1_000
"""Executors that a gateway keeps a channel to; the one unused for longest is closed beyond."""


class Executors:
    """Stubs by address, made at first use."""

    def __init__(self, credentials: grpc.ChannelCredentials) -> None:
        self._credentials = credentials
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()

    async def at(self, address: str) -> ExecutorServiceAsyncStub:
        """The stub for the executor that listens there."""
        channel = self._channels.get(address)
        if channel is None:
            channel = grpc.aio.secure_channel(
                address, self._credentials, options=MESH_CHANNEL_OPTIONS
            )
            self._channels[address] = channel
            if len(self._channels) > CHANNELS_MAX:
                _, oldest = self._channels.popitem(last=False)
                await oldest.close()
        self._channels.move_to_end(address)
        return ExecutorServiceStub(channel)

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
