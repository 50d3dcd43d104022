"""The queue before a shard: what leaves together, what is refused, what is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from tickmesh.gateway import calls
from tickmesh.gateway.calls import Pending, Queue, SlowQueue, expiry_s, repeatable, to_message
from tickmesh.gateway.methods import METHODS
from tickmesh.mesh.errors import NotFound, Overloaded

CREATE = METHODS["tickmesh.v1.JobService/CreateJob"]
LIST = METHODS["tickmesh.v1.JobService/ListJobs"]


async def pending(
    request: bytes = b"x", method: object = CREATE, alone: bool = False, owner: str = ""
) -> Pending:
    return Pending(
        method=method,  # type: ignore[arg-type]
        request=request,
        traceparent="",
        expires_s=10.0,
        answer=asyncio.get_running_loop().create_future(),
        repeatable=True,
        alone=alone,
        owner=owner,
    )


async def filled(*requests: bytes, method: object = CREATE) -> tuple[Queue, list[Pending]]:
    queue = Queue()
    made = [await pending(request, method) for request in requests]
    for call in made:
        queue.append(call)
    return queue, made


async def test_what_waits_leaves_together_and_in_order() -> None:
    queue, made = await filled(b"1", b"2", b"3")
    assert queue.take() == made
    assert len(queue) == 0 and queue.take() == []


async def test_a_batch_ends_at_the_number_of_calls_that_a_message_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "BATCH_CALLS_MAX", 2)
    queue, made = await filled(b"1", b"2", b"3")
    assert queue.take() == made[:2]
    assert queue.take() == made[2:]


async def test_a_batch_ends_before_its_requests_are_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "BATCH_BYTES_MAX", 5)
    queue, made = await filled(b"123", b"12", b"1", b"123456", b"1")
    assert queue.take() == made[:2]
    assert queue.take() == made[2:3]
    assert queue.take() == made[3:4], "one that is too large for any batch goes alone"


async def test_a_batch_ends_before_its_answers_are_too_large() -> None:
    queue, made = await filled(*[b"x"] * 20, method=LIST)
    first = queue.take()
    assert len(first) == calls.BATCH_ANSWER_BYTES_MAX // LIST.answer_bytes < len(made)


async def test_a_call_that_must_go_alone_goes_alone() -> None:
    queue = Queue()
    before, alone, after = await pending(), await pending(alone=True), await pending()
    for call in (before, alone, after):
        queue.append(call)
    assert [queue.take(), queue.take(), queue.take()] == [[before], [alone], [after]]


async def test_a_full_queue_refuses_with_a_time_to_wait_and_takes_again_when_emptied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Queue, "calls_max", 1)
    queue, made = await filled(b"1")
    with pytest.raises(Overloaded) as refused:
        queue.append(await pending())
    assert refused.value.retry_after_ms == calls.OVERLOAD_RETRY_MS
    queue.forget(made[0])
    queue.append(await pending())


async def test_a_queue_is_full_by_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "QUEUE_BYTES_MAX", 4)
    queue, _ = await filled(b"1234")
    with pytest.raises(Overloaded):
        queue.append(await pending())
    queue.take()
    queue.append(await pending())


@pytest.mark.parametrize("queue", [Queue(), SlowQueue()])
async def test_no_customer_fills_a_queue(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ten thousand calls of one customer all others were refused."""
    monkeypatch.setattr(type(queue), "calls_max", 4)
    made = [await pending(owner="acme") for _ in range(3)]
    queue.append(made[0])
    queue.append(made[1])
    with pytest.raises(Overloaded, match="of customer acme wait"):
        queue.append(made[2])
    queue.append(await pending(owner="other"))
    queue.append(await pending())
    with pytest.raises(Overloaded, match=r"^4 calls"):
        queue.append(await pending())
    queue.forget(made[0])
    queue.forget(made[0])
    queue.append(made[2])
    while taken := queue.take():
        queue.put_back(taken)
        queue.ended(taken)
        assert queue.take() == taken
        queue.ended(taken)
    queue.append(await pending(owner="acme"))
    queue.append(await pending(owner="acme"))
    monkeypatch.setattr(calls, "QUEUE_BYTES_MAX", 4)
    with pytest.raises(Overloaded, match="acme"):
        queue.append(await pending(owner="acme"))


async def test_what_returns_from_a_lost_leader_goes_first_again_in_its_order() -> None:
    queue, made = await filled(b"1", b"2", b"3")
    taken = queue.take()
    later = await pending()
    queue.append(later)
    queue.put_back(taken)
    assert queue.take() == [*made, later]


async def test_what_nobody_waits_for_does_not_return() -> None:
    queue, made = await filled(b"1", b"2")
    taken = queue.take()
    made[0].fail(NotFound("gone"))
    queue.put_back(taken)
    assert queue.take() == [made[1]]


async def test_a_call_is_forgotten_wherever_it_is() -> None:
    queue, made = await filled(b"1", b"2")
    queue.forget(made[0])
    queue.forget(made[0])
    assert queue.take() == [made[1]]
    queue.forget(made[1])


async def test_the_first_answer_counts() -> None:
    call = await pending()
    call.succeed(b"answer")
    call.fail(NotFound("too late"))
    call.succeed(b"other")
    assert await call.answer == b"answer"


@pytest.mark.parametrize(("timeout_s", "kept_s"), [(1.0, 0.1), (0.1, 0.01), (60.0, 0.25)])
def test_a_little_time_is_kept_for_the_answer(timeout_s: float, kept_s: float) -> None:
    assert expiry_s(100.0, timeout_s) == pytest.approx(100.0 + timeout_s - kept_s)


async def test_a_message_carries_each_call_with_its_own_time() -> None:
    queue, made = await filled(b"1", b"2")
    made[0].traceparent = "00-1-2-01"
    made[1].expires_s = 5.5
    message = to_message(queue.take(), now_s=5.0)
    assert [(c.method, c.request, c.timeout_ms, c.traceparent) for c in message.calls] == [
        (CREATE.name, b"1", 5_000, "00-1-2-01"),
        (CREATE.name, b"2", 500, ""),
    ]


def test_what_may_be_sent_twice_is_said_by_the_table() -> None:
    assert repeatable(CREATE) and repeatable(LIST)
    assert not repeatable(METHODS["tickmesh.v1.JobService/DeleteJob"])
