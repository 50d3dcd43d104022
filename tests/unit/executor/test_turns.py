"""Whose sandbox is made next."""

from __future__ import annotations

import asyncio

from tickmesh.executor.quiet import Quiet
from tickmesh.executor.turns import Turns


class Bed:
    """Customers who ask for turns, and keep them until the test ends them."""

    def __init__(
        self, at_once: int, newcomers_max: int, shared_s: float = 0.0, lately_s: float = 0.0
    ) -> None:
        self.quiet = Quiet()
        self.turns = Turns(at_once, newcomers_max, self.quiet, shared_s, lately_s)
        self.has: list[str] = []
        self._over: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str, due_ns: int = 0, patient: bool = False) -> None:
        """Each name is one ask; its first letter is the customer."""
        for name in names:
            self._over[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._one(name, due_ns, patient))
        await self.settle()

    async def _one(self, name: str, due_ns: int, patient: bool) -> None:
        async with self.turns.turn(name[0], due_ns, patient=patient):
            self.has.append(name)
            await self._over[name].wait()
        self.has.remove(name)

    async def end(self, name: str) -> None:
        self._over[name].set()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def test_a_customer_alone_has_every_turn_and_no_more() -> None:
    bed = Bed(2, 6)
    await bed.ask("a1", "a2", "a3", "a4")
    assert bed.has == ["a1", "a2"]
    await bed.end("a1")
    assert bed.has == ["a2", "a3"]


async def test_who_has_none_in_the_making_goes_at_once_and_the_others_then_wait_for_it() -> None:
    bed = Bed(2, 6)
    await bed.ask("a1", "a2", "a3", "a4")
    await bed.ask("b1", "b2")
    assert bed.has == ["a1", "a2", "b1"]
    await bed.end("a1")
    assert bed.has == ["a2", "b1"]  # a newcomer's turn is one of the others' now
    await bed.end("b1")
    assert bed.has == ["a2", "b2"]
    await bed.end("a2")
    assert bed.has == ["b2", "a3"]


async def test_nobody_gets_another_while_a_newcomers_is_made() -> None:
    bed = Bed(2, 6)
    await bed.ask("a1", "a2", "a3", "a4", "b1")
    await bed.end("a1")
    assert bed.has == ["a2", "b1"]
    # Who has none left in the making is one of those that come.
    await bed.end("a2")
    assert bed.has == ["b1", "a3"]
    await bed.end("b1")
    assert bed.has == ["a3", "a4"]


async def test_while_newcomers_come_there_is_one_turn_less_for_the_others() -> None:
    bed = Bed(2, 6, shared_s=60.0)
    await bed.ask("a1", "a2", "a3", "a4", "b1")
    await bed.end("a1")
    await bed.end("a2")
    await bed.end("b1")
    assert bed.has == ["a3"]
    await bed.end("a3")
    assert bed.has == ["a4"]
    # One turn is left whatever happens.
    bed = Bed(1, 6, shared_s=60.0)
    await bed.ask("a1", "a2", "b1")
    await bed.end("a1")
    await bed.end("b1")
    assert bed.has == ["a2"]


async def test_a_queue_between_two_turns_is_no_newcomer() -> None:
    bed = Bed(2, 6, shared_s=60.0, lately_s=60.0)
    await bed.ask("a1", "a2", "a3", "a4", "b1")
    await bed.end("a1")
    await bed.end("a2")
    assert bed.has == ["b1"]
    await bed.ask("c1")
    assert bed.has == ["b1", "c1"]
    await bed.end("b1")
    await bed.ask("b2")  # served just now: it comes in turn
    assert bed.has == ["c1"]
    await bed.end("c1")
    assert len(bed.has) == 1


async def test_newcomers_do_not_keep_a_queue_waiting_for_ever() -> None:
    bed = Bed(1, 6, lately_s=0.0)
    await bed.ask("a1", "a2", "b1")
    await bed.end("a1")
    assert bed.has == ["b1", "a2"]  # it had no turn for as long as makes a newcomer


async def test_what_can_wait_is_told_of_newcomers() -> None:
    bed = Bed(1, 6)
    await bed.ask("a1")
    await bed.quiet.wait()  # nobody has come
    await bed.ask("b1", "c1")
    ended = asyncio.create_task(bed.quiet.wait())
    await bed.end("b1")
    assert not ended.done()
    await bed.end("c1")
    assert ended.done()


async def test_what_is_patient_comes_in_turn_but_never_as_a_newcomer() -> None:
    bed = Bed(2, 6)
    await bed.ask("a1", "a2", "a3")
    await bed.ask("a-old", "b-old", patient=True)
    await bed.ask("c1")
    assert bed.has == ["a1", "a2", "c1"]
    await bed.end("a1")
    assert bed.has == ["a2", "c1"]  # it waits for the newcomer
    await bed.end("c1")
    assert bed.has == ["a2", "a-old"]
    await bed.ask("b1")  # and is in nobody's way: its customer's next is a newcomer all the same
    assert bed.has == ["a2", "a-old", "b1"]
    await bed.end("b1")
    await bed.end("a2")
    assert bed.has == ["a-old", "a3"]
    await bed.end("a-old")
    assert bed.has == ["a3", "b-old"]


async def test_newcomers_are_limited_together_and_then_served_in_turn() -> None:
    bed = Bed(1, 2)
    await bed.ask("a1", "b1", "c1", "d1", "e1")
    assert bed.has == ["a1", "b1", "c1"]
    await bed.end("b1")
    assert bed.has == ["a1", "c1", "d1"]
    await bed.ask("b2")
    await bed.end("a1")
    assert bed.has == ["c1", "d1", "e1"]


async def test_within_a_customer_what_is_due_first_comes_first() -> None:
    bed = Bed(1, 0)
    await bed.ask("a1")
    await bed.ask("a2", due_ns=9)
    await bed.ask("a3", due_ns=5)
    await bed.end("a1")
    assert bed.has == ["a3"]


async def test_who_gives_up_takes_nobodys_turn() -> None:
    bed = Bed(1, 0)
    await bed.ask("a1", "a2", "b1")
    bed.tasks["a2"].cancel()
    bed.tasks["b1"].cancel()
    await bed.ask("c1")
    await bed.end("a1")
    assert bed.has == ["c1"]
    bed.tasks["c1"].cancel()
    await bed.ask("d1")
    assert bed.has[-1] == "d1"


async def test_a_turn_that_came_just_as_it_was_given_up_goes_on() -> None:
    bed = Bed(1, 0)
    await bed.ask("a1", "a2", "a3")
    bed._over["a1"].set()
    await asyncio.sleep(0)  # a1 ends: a2 has its turn, and does not know it yet
    bed.tasks["a2"].cancel()
    await bed.settle()
    assert bed.has == ["a3"]
