"""Calls to a shard whose replicas do as a script says: real gRPC and mutual TLS on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tickmesh.gateway.calls import SLOW_OF_OWNER_MAX
from tickmesh.gateway.methods import METHODS
from tickmesh.gateway.shards import Shard
from tickmesh.mesh import tls
from tickmesh.mesh.config import Peer, ShardMembers, Tls
from tickmesh.mesh.errors import (
    DeadlineExceeded,
    EtagMismatch,
    MessageTooLarge,
    NoLeader,
    NotFound,
    OutcomeUnknown,
    TickmeshError,
    Unavailable,
    to_status,
)
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2, shard_pb2_grpc
from tickmesh.proto.tickmesh.v1 import cluster_pb2

CREATE = METHODS["tickmesh.v1.JobService/CreateJob"]
DELETE = METHODS["tickmesh.v1.JobService/DeleteJob"]
GET = METHODS["tickmesh.v1.JobService/GetJob"]
LONG_S = 30.0
END_GRACE_S = 5.0

Answer = Callable[[shard_pb2.CallRequest, Any], Awaitable[shard_pb2.CallResponse]]


def reply(error: TickmeshError | None = None, response: bytes = b"done") -> shard_pb2.Reply:
    if error is not None:
        return shard_pb2.Reply(status=to_status(error).SerializeToString())
    return shard_pb2.Reply(response=response)


async def answer_all(request: shard_pb2.CallRequest, _: Any) -> shard_pb2.CallResponse:
    return shard_pb2.CallResponse(replies=[reply(response=call.request) for call in request.calls])


class ScriptedReplica(shard_pb2_grpc.ShardServiceServicer):
    """Says of itself what the test wants, and answers calls by a list of answers."""

    def __init__(self) -> None:
        self.leader = False
        self.term = 1
        self.answers: list[Answer] = []
        """For one Call each; after the last, every call is answered by its own bytes."""
        self.members: shard_pb2.ShardMembers | None = None
        self.batches: list[list[bytes]] = []
        self.silent: asyncio.Event | None = None
        """While set (to an event that is not), GetStatus does not answer."""
        self.watches: list[Callable[[Any], AsyncIterator[bytes]]] = []
        self.received = asyncio.Event()
        self.server = grpc.aio.server()
        self.address = ""

    async def start(self, credentials: grpc.ServerCredentials) -> None:
        shard_pb2_grpc.add_ShardServiceServicer_to_server(self, self.server)
        port = self.server.add_secure_port(self.address or "127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{port}"
        await self.server.start()

    async def Call(self, request: Any, context: Any) -> Any:
        self.batches.append([call.request for call in request.calls])
        self.received.set()
        if not self.leader:
            return shard_pb2.CallResponse(not_leader=True)
        return await (self.answers.pop(0) if self.answers else answer_all)(request, context)

    async def GetStatus(self, request: Any, context: Any) -> Any:
        if self.silent is not None:
            await self.silent.wait()
        replica = cluster_pb2.Replica(leader=self.leader, term=self.term, reachable=True)
        return shard_pb2.GetStatusResponse(
            replica=replica.SerializeToString(), members=self.members
        )

    async def Watch(self, request: Any, context: Any) -> Any:
        self.received.set()
        async for response in self.watches.pop(0)(context):
            yield shard_pb2.WatchResponse(response=response)


class World:
    """Three scripted replicas, and the gateway's view of them."""

    def __init__(self, replicas: list[ScriptedReplica], credentials: Tls) -> None:
        self.replicas = replicas
        self.over = asyncio.Event()
        """Set when the test ends: what hangs ends then."""
        self.ending: list[asyncio.Task[None]] = []
        """Servers that stop."""
        peers = tuple(Peer(f"r{n}", replica.address) for n, replica in enumerate(replicas))
        self.shard = Shard(ShardMembers("shard-0", peers), tls.channel_credentials(credentials))

    def lead(self, number: int, term: int) -> ScriptedReplica:
        for replica in self.replicas:
            replica.leader = False
        self.replicas[number].leader, self.replicas[number].term = True, term
        return self.replicas[number]

    async def call(self, request: bytes, method: Any = CREATE, timeout_s: float = LONG_S) -> bytes:
        return await self.shard.call(method, request, timeout_s, "")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tls, Tls]:
    directory: Path = tmp_path_factory.mktemp("certificates")
    authority = tls.DevelopmentAuthority(directory)
    return authority.issue("scheduler", "r"), authority.issue("gateway", "g")


@pytest.fixture
async def world(certificates: tuple[Tls, Tls]) -> AsyncIterator[World]:
    server, client = certificates
    replicas = [ScriptedReplica() for _ in range(3)]
    for replica in replicas:
        await replica.start(tls.server_credentials(server))
    made = World(replicas, client)
    made.lead(0, term=1)
    sender = asyncio.create_task(made.shard.run())
    try:
        yield made
    finally:
        made.over.set()
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        await made.shard.close()
        await asyncio.gather(*made.ending)
        for replica in replicas:
            await replica.server.stop(END_GRACE_S)


async def test_the_leader_answers_and_its_errors_are_the_callers(world: World) -> None:
    assert await world.call(b"1") == b"1"

    async def refuse(request: Any, _: Any) -> Any:
        return shard_pb2.CallResponse(replies=[reply(NotFound("there is no such job"))])

    world.replicas[0].answers.append(refuse)
    with pytest.raises(NotFound, match="no such job"):
        await world.call(b"2")
    assert world.replicas[1].batches == world.replicas[2].batches == []


async def test_calls_that_come_while_batches_are_under_way_leave_together(world: World) -> None:
    gate = asyncio.Event()

    async def wait(request: Any, context: Any) -> Any:
        await gate.wait()
        return await answer_all(request, context)

    world.replicas[0].answers.extend([wait] * 4)
    calls = []
    for number in range(4):
        world.replicas[0].received.clear()
        calls.append(asyncio.create_task(world.call(b"%d" % number)))
        await world.replicas[0].received.wait()
    calls.extend(asyncio.create_task(world.call(b"%d" % number)) for number in range(4, 100))
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*calls) == [b"%d" % number for number in range(100)]
    assert sorted(map(len, world.replicas[0].batches)) == [1, 1, 1, 1, 96]


async def test_calls_that_take_long_are_in_nobodys_way(world: World) -> None:
    """Four of them, of one customer, were as much as was under way to a shard at one time: all
    others waited for their end."""
    gate = asyncio.Event()
    arrived: list[bytes] = []
    changed = asyncio.Condition()

    async def wait(request: Any, context: Any) -> Any:
        async with changed:
            arrived.extend(call.request for call in request.calls)
            changed.notify_all()
        await gate.wait()
        return await answer_all(request, context)

    async def until(count: int) -> None:
        async with changed:
            await changed.wait_for(lambda: len(arrived) == count)

    def slow(request: bytes, owner: str) -> asyncio.Task[bytes]:
        call = world.shard.call(DELETE, request, LONG_S, "", slow=True, owner=owner)
        return asyncio.create_task(call)

    world.replicas[0].answers.extend([wait] * 6)
    calls = [slow(b"acme", "acme") for _ in range(SLOW_OF_OWNER_MAX + 2)]
    await until(SLOW_OF_OWNER_MAX)
    calls.append(slow(b"other", "other"))  # overtakes those that are too many of acme's
    calls.append(slow(b"operator", ""))
    await until(SLOW_OF_OWNER_MAX + 2)
    assert sorted(arrived) == [b"acme"] * SLOW_OF_OWNER_MAX + [b"operator", b"other"]
    assert await world.call(b"quick") == b"quick"
    gate.set()
    answers = await asyncio.gather(*calls)
    assert answers == [b"acme"] * (SLOW_OF_OWNER_MAX + 2) + [b"other", b"operator"]


async def test_one_that_does_not_lead_any_more_costs_no_call(world: World) -> None:
    await world.call(b"1")
    world.lead(1, term=2)
    answers = await asyncio.gather(*(world.call(b"%d" % n, DELETE) for n in range(10)))
    assert answers == [b"%d" % n for n in range(10)]


async def test_a_leader_that_says_it_was_deposed_before_it_did_anything_is_left(
    world: World,
) -> None:
    async def depose(request: Any, _: Any) -> Any:
        world.lead(2, term=2)
        return shard_pb2.CallResponse(replies=[reply(NoLeader("deposed")) for _ in request.calls])

    world.replicas[0].answers.append(depose)
    assert await world.call(b"1", DELETE) == b"1"
    assert world.replicas[2].batches == [[b"1"]]


async def test_what_may_have_been_done_is_repeated_only_if_that_is_safe(world: World) -> None:
    async def lose(request: Any, _: Any) -> Any:
        world.lead(1, term=2)
        return shard_pb2.CallResponse(
            replies=[reply(OutcomeUnknown("lost")) for _ in request.calls]
        )

    world.replicas[0].answers.append(lose)
    created, read, deleted = await asyncio.gather(
        world.call(b"1", CREATE),
        world.call(b"2", GET),
        world.call(b"3", DELETE),
        return_exceptions=True,
    )
    assert (created, read) == (b"1", b"2")
    assert isinstance(deleted, OutcomeUnknown)
    assert world.replicas[1].batches == [[b"1", b"2"]]


async def test_what_did_not_fit_beside_other_answers_is_asked_for_alone(world: World) -> None:
    """All of them were sent again, and what may not be had an unknown outcome."""
    too_large = MessageTooLarge("no room", metadata={MessageTooLarge.TOGETHER: "true"})

    async def no_room(request: Any, _: Any) -> Any:
        replies = [reply(too_large) for call in request.calls[:-1]]
        return shard_pb2.CallResponse(replies=[*replies, reply()])

    world.replicas[0].answers.append(no_room)
    created, read, deleted, other = await asyncio.gather(
        world.call(b"1", CREATE),
        world.call(b"2", GET),
        world.call(b"3", DELETE),
        world.call(b"4", DELETE),
        return_exceptions=True,
    )
    assert (created, read, other) == (b"1", b"2", b"done")
    assert isinstance(deleted, MessageTooLarge)
    first, *alone = world.replicas[0].batches
    assert first == [b"1", b"2", b"3", b"4"] and sorted(alone) == [[b"1"], [b"2"]]

    # One that is alone already is not asked for for ever.
    async def no_room_alone(request: Any, _: Any) -> Any:
        return shard_pb2.CallResponse(replies=[reply(too_large)])

    world.replicas[0].answers.append(no_room_alone)
    with pytest.raises(MessageTooLarge):
        await world.shard.call(GET, b"5", LONG_S, "", slow=True)


async def test_a_leader_that_dies_is_left_and_the_next_one_gets_what_may_be_repeated(
    world: World,
) -> None:
    async def die(request: Any, context: Any) -> Any:
        world.lead(1, term=2)
        world.ending.append(asyncio.create_task(world.replicas[0].server.stop(0)))
        await world.over.wait()
        return shard_pb2.CallResponse()

    world.replicas[0].answers.append(die)
    created, deleted = await asyncio.gather(
        world.call(b"1", CREATE), world.call(b"2", DELETE), return_exceptions=True
    )
    assert created == b"1"
    assert isinstance(deleted, OutcomeUnknown)


async def test_a_leader_that_hangs_is_left_as_soon_as_another_leads(world: World) -> None:
    async def hang(request: Any, context: Any) -> Any:
        world.replicas[0].silent = world.over
        world.replicas[1].leader, world.replicas[1].term = True, 2
        await world.over.wait()
        return shard_pb2.CallResponse()

    world.replicas[0].answers.append(hang)
    created, deleted = await asyncio.gather(
        world.call(b"1", CREATE), world.call(b"2", DELETE), return_exceptions=True
    )
    assert created == b"1"
    assert isinstance(deleted, OutcomeUnknown)
    assert await world.call(b"3", DELETE) == b"3"
    assert world.replicas[0].batches == [[b"1", b"2"]]


def listed(number: int, *replicas: ScriptedReplica, learner: str = "") -> shard_pb2.ShardMembers:
    members = [
        shard_pb2.ShardMember(replica_id=f"n{n}", address=each.address, voter=f"n{n}" != learner)
        for n, each in enumerate(replicas)
    ]
    return shard_pb2.ShardMembers(number=number, replicas=members)


@pytest.fixture
async def fourth(certificates: tuple[Tls, Tls]) -> AsyncIterator[ScriptedReplica]:
    """One that nobody has configured."""
    replica = ScriptedReplica()
    await replica.start(tls.server_credentials(certificates[0]))
    yield replica
    await replica.server.stop(0)


async def test_a_replica_that_joined_is_found_by_the_list_of_the_others(
    world: World, fourth: ScriptedReplica
) -> None:
    world.lead(0, term=1).leader = False
    fourth.leader, fourth.term = True, 2
    world.replicas[1].members = listed(3, *world.replicas[1:], fourth, learner="n0")
    assert await world.call(b"1") == b"1"
    assert fourth.batches == [[b"1"]]
    # An older list changes nothing.
    world.replicas[2].members = listed(2, *world.replicas)
    shard, _ = await world.shard.views()
    assert [(each.replica_id, each.learner) for each in shard.replicas] == [
        ("n0", True),
        ("n1", False),
        ("n2", False),
    ]
    assert shard.members_number == 3


async def test_if_nobody_in_the_list_answers_the_configured_ones_are_asked_again(
    world: World, certificates: tuple[Tls, Tls]
) -> None:
    gone = ScriptedReplica()
    await gone.start(tls.server_credentials(certificates[0]))
    gone.leader, gone.term = True, 2
    world.lead(0, term=1).leader = False
    world.replicas[1].members = listed(3, gone)
    assert await world.call(b"1") == b"1"
    assert gone.batches == [[b"1"]]
    world.replicas[1].members = None
    world.lead(2, term=3)
    await gone.server.stop(0)
    assert await world.call(b"2") == b"2"
    assert world.replicas[2].batches == [[b"2"]]


async def test_of_two_that_say_they_lead_the_higher_term_is_believed(world: World) -> None:
    world.replicas[2].leader, world.replicas[2].term = True, 5
    assert await world.call(b"1") == b"1"
    assert world.replicas[2].batches == [[b"1"]]


async def test_without_a_leader_the_caller_hears_in_its_own_time_that_nothing_was_changed(
    world: World,
) -> None:
    world.replicas[0].leader = False
    with pytest.raises(NoLeader, match="nothing was changed"):
        await world.call(b"1", timeout_s=0.2)


async def test_a_leader_found_late_still_gets_what_waits(world: World) -> None:
    world.replicas[0].leader = False
    call = asyncio.create_task(world.call(b"1"))
    await asyncio.sleep(0)
    world.lead(2, term=2)
    assert await call == b"1"


async def test_a_write_that_is_not_answered_in_time_may_have_been_done(world: World) -> None:
    async def hang(request: Any, context: Any) -> Any:
        await world.over.wait()
        return shard_pb2.CallResponse()

    assert await world.call(b"0") == b"0", "now the leader is known"
    world.replicas[0].answers.extend([hang, hang])
    with pytest.raises(DeadlineExceeded, match="may or may not"):
        await world.call(b"1", CREATE, timeout_s=0.5)
    with pytest.raises(DeadlineExceeded, match="repeat the call"):
        await world.call(b"2", GET, timeout_s=0.5)


async def test_a_caller_that_leaves_takes_its_call_out_of_the_queue(world: World) -> None:
    world.replicas[0].leader = False
    call = asyncio.create_task(world.call(b"1"))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    world.lead(0, term=2)
    assert await world.call(b"2") == b"2"
    assert world.replicas[0].batches == [[b"2"]]


async def test_a_watch_is_passed_on_until_it_ends(world: World) -> None:
    async def two(_: Any) -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"

    world.replicas[0].watches.append(two)
    assert [part async for part in world.shard.watch(b"", LONG_S)] == [b"1", b"2"]


async def test_a_watch_begins_at_whoever_leads(world: World) -> None:
    async def refuse(context: Any) -> AsyncIterator[bytes]:
        world.lead(1, term=2)
        status = to_status(NoLeader("not me")).SerializeToString()
        context.set_trailing_metadata((("grpc-status-details-bin", status),))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not me")
        yield b""

    async def one(_: Any) -> AsyncIterator[bytes]:
        yield b"1"

    world.replicas[0].watches.append(refuse)
    world.replicas[1].watches.append(one)
    assert [part async for part in world.shard.watch(b"", LONG_S)] == [b"1"]


async def test_a_watch_ends_with_unavailable_when_its_leader_dies_or_hangs(world: World) -> None:
    async def hang(_: Any) -> AsyncIterator[bytes]:
        yield b"1"
        world.replicas[0].silent = world.over
        world.replicas[1].leader, world.replicas[1].term = True, 2
        await world.over.wait()

    world.replicas[0].watches.append(hang)
    parts = world.shard.watch(b"", LONG_S)
    assert await anext(parts) == b"1"
    with pytest.raises(Unavailable, match="go on from the last cursor"):
        await anext(parts)


async def test_what_the_leader_says_of_a_watch_is_the_callers(world: World) -> None:
    async def refuse(context: Any) -> AsyncIterator[bytes]:
        status = to_status(EtagMismatch("as it were")).SerializeToString()
        context.set_trailing_metadata((("grpc-status-details-bin", status),))
        await context.abort(grpc.StatusCode.ABORTED, "as it were")
        yield b""

    world.replicas[0].watches.append(refuse)
    with pytest.raises(EtagMismatch):
        await anext(world.shard.watch(b"", LONG_S))


async def test_the_view_of_the_shard_has_every_replica(world: World) -> None:
    await world.replicas[2].server.stop(None)
    shard, _ = await world.shard.views()
    assert [(r.replica_id, r.reachable, r.leader) for r in shard.replicas] == [
        ("r0", True, True),
        ("r1", True, False),
        ("r2", False, False),
    ]
    assert [r.address for r in shard.replicas] == [r.address for r in world.replicas]


async def test_of_two_that_say_they_lead_only_the_later_is_told(world: World) -> None:
    world.replicas[1].leader, world.replicas[1].term = True, 2  # r0 was stopped for a while
    shard, views = await world.shard.views()
    assert [(each.replica_id, each.leader) for each in shard.replicas] == [
        ("r0", False),
        ("r1", True),
        ("r2", False),
    ]
    assert all(each.reachable for each in shard.replicas) and len(views) == 3
