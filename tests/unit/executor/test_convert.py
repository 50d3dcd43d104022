"""A shard's messages as the executor's own values."""

import pytest

from tickmesh.executor import convert
from tickmesh.executor.sandbox import NETWORK_EGRESS, NETWORK_NONE
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import job_pb2


@pytest.mark.parametrize(
    ("number", "network"),
    [
        (0, NETWORK_NONE),  # a replica that knows no networks
        (job_pb2.NETWORK_NONE, NETWORK_NONE),
        (job_pb2.NETWORK_EGRESS, NETWORK_EGRESS),
        (77, NETWORK_NONE),
    ],
)
def test_only_who_asks_for_egress_has_it(number: int, network: str) -> None:
    assert convert.order(shard_pb2.Work(network=number), "shard-0").work.network == network


def test_what_a_plan_gives_arrives_and_an_older_replica_gives_nothing() -> None:
    message = shard_pb2.Work(runtime="io.containerd.runsc.v1", capabilities=["CAP_CHOWN"])
    work = convert.order(message, "shard-0").work
    assert (work.runtime, work.capabilities) == ("io.containerd.runsc.v1", ("CAP_CHOWN",))
    work = convert.order(shard_pb2.Work(), "shard-0").work
    assert (work.runtime, work.capabilities) == ("", ())
