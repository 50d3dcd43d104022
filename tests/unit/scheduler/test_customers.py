"""Keys of customers in the core: made, given a new secret, bounded, forgotten."""

from __future__ import annotations

import pytest

from tickmesh.scheduler.core import commands
from tickmesh.scheduler.core.commands import Outcome, Refused, Why
from tickmesh.scheduler.core.customers import KEYS_MAX
from tickmesh.scheduler.core.model import ApiKey
from tickmesh.scheduler.store.keys import history

from .worlds import SPEC, START_MS, World, uid


def create(
    world: World, number: int = 1, request: bytes = b"", customer: str = "acme", hash: bytes = b"h"
) -> Outcome:
    return world.do(commands.CreateApiKey(customer, uid(number), hash, "ci", (1, 2), 7, request))


def keys(world: World, customer: str = "acme") -> list[ApiKey]:
    found, following = world.queries.api_keys(customer, b"", 1_000)
    assert not following
    return found


def test_a_key_is_stored_as_its_hash_and_forgotten_when_revoked() -> None:
    world = World()
    made = create(world)
    assert made == [ApiKey("acme", uid(1), b"h", "ci", (1, 2), START_MS, 7, b"")] == keys(world)
    assert world.queries.api_key("acme", uid(1)) == keys(world)[0]
    assert world.queries.api_key("acme-2", uid(1)) is None
    world.do(commands.RevokeApiKey("acme", uid(1)))
    assert keys(world) == [] and world.queries.api_key("acme", uid(1)) is None


def test_the_same_request_makes_one_key_and_the_last_secret_holds() -> None:
    world = World()
    create(world, request=b"r")
    world.now_ms += 1_000
    create(world, request=b"r", hash=b"another")
    (key,) = keys(world)
    assert (key.hash, key.create_ms) == (b"another", START_MS)


@pytest.mark.parametrize("request_id", [b"", b"another"])
def test_an_id_that_is_taken_keeps_its_secret(request_id: bytes) -> None:
    world = World()
    create(world, request=b"r")
    refused = create(world, request=request_id, hash=b"another")
    assert isinstance(refused, Refused) and refused.why is Why.ALREADY_EXISTS
    assert keys(world)[0].hash == b"h"


def test_a_customer_has_so_many_keys_and_no_more() -> None:
    world = World()
    world.do(
        *(
            commands.CreateApiKey("acme", uid(number), b"h", "", (1,), 0, b"")
            for number in range(KEYS_MAX + 1)
        )
    )
    assert world.last is not None
    refused = world.last.outcomes[-1]
    assert isinstance(refused, Refused) and refused.why is Why.TOO_MANY_KEYS
    assert len(keys(world)) == KEYS_MAX
    create(world, customer="other")  # has its own
    world.do(commands.RevokeApiKey("acme", uid(3)))
    assert isinstance(create(world, 1_000), list)


def test_who_is_not_there_cannot_be_revoked() -> None:
    world = World()
    create(world)
    before = world.queries.api_key("acme", uid(1))
    for command in (
        commands.RevokeApiKey("acme", uid(2)),
        commands.RevokeApiKey("other", uid(1)),
        commands.RevokeApiKey("acme", b""),
    ):
        refused = world.do(command)
        assert isinstance(refused, Refused) and refused.why is Why.NOT_FOUND
    assert world.queries.api_key("acme", uid(1)) == before


def test_a_page_begins_where_the_last_one_ended() -> None:
    world = World()
    for number in (3, 1, 2):
        create(world, number)
    create(world, 9, customer="acme-2")
    first, following = world.queries.api_keys("acme", b"", 2)
    rest, end = world.queries.api_keys("acme", following, 2)
    assert [key.id for key in first + rest] == [uid(1), uid(2), uid(3)] and not end


def test_a_forged_page_token_leads_to_no_other_customer() -> None:
    """What a token says to go on from is the client's to write."""
    world = World()
    for customer in ("aaa", "mmm"):
        new = commands.NewJob("secret", world.next_uid(), "", (), SPEC)
        world.do(commands.CreateJobs(customer, [new], b""))
        world.do(
            commands.ExecuteJobs(
                customer, [commands.NewExecution("secret", world.next_uid(), b"", None)], b""
            )
        )
        create(world, customer=customer)
    for after in (b"", b"\0", b"h", b"ja", b"jmmm\0", b"p", b"paaa\0", b"t", b"x", b"\xff" * 40):
        for period in world.backend.periods():
            for forged in (after, history(period) + b"x", history(period) + b"y", history(period)):
                queries = world.queries
                jobs, _ = queries.jobs("mmm", forged, 100)
                found, _ = queries.api_keys("mmm", forged, 100)
                executions, _ = queries.executions("mmm", None, forged, 100, bool, 100)
                everything = [*jobs, *found, *executions]
                assert {each.customer for each in everything} <= {"mmm"}
