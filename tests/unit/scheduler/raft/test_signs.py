"""Messages that are only signs of life are taken without a round: that must come to the same."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tickmesh.scheduler.raft.messages import (
    KIND_COMMAND,
    Append,
    AppendReply,
    Entry,
    Message,
    Vote,
    VoteReply,
)

from .test_member import Bench

PEERS = ("a", "c")


def picture(bench: Bench) -> dict[str, Any]:
    """All that a member knows, but for what it is made of."""
    member = bench.member
    kept = {
        name: value
        for name, value in vars(member).items()
        if isinstance(value, (int, float, str, set, frozenset, tuple, dict, type(None)))
        and not name.startswith(("_SyncObj", "_progress", "_nodes", "__", "_method", "_id"))
    }
    peers = {
        peer: (
            member.next_index(peer),
            member.match_index(peer),
            member._SyncObj__lastResponseTime.get(member._nodes[peer]),
            {name: str(value) for name, value in vars(member._progress[peer]).items()},
        )
        for peer in member._progress
    }
    library = {
        name: getattr(member, f"_SyncObj__{name}")
        for name in ("raftState", "raftCurrentTerm", "raftElectionDeadline", "transferInProgress")
    }
    return {
        **kept,
        **library,
        "leader": member.leader_id,
        "commit": member.commit_index,
        "deadline": member.next_deadline(),
        "peers": peers,
        "clocks": {peer: list(each) for peer, each in member.clocks._samples.items()},
        "log": bench.log,
        "ballot": bench.journal.ballot,
        "staged": list(bench.journal._staged),
        "durable": bench.journal.durable_index,
    }


def some_message(chance: random.Random, bench: Bench) -> Message:
    """Mostly what its peers would send now; often a little off."""
    member, journal = bench.member, bench.journal

    def about(value: int) -> int:
        return value if chance.random() < 0.97 else max(0, value + chance.choice((1, -1, -2)))

    term = about(member.term)
    previous = journal.entries[about(len(journal.entries) - 1) % len(journal.entries)]
    usual = "r" if member.is_leader else "h"
    match usual if chance.random() < 0.8 else chance.choice("hrev"):
        case "h" | "e" as kind:
            entries = (Entry(KIND_COMMAND + b"x", previous.index + 1, term),) if kind == "e" else ()
            return Append(
                term,
                about(previous.index),
                previous.term,
                about(member.commit_index),
                about(member.round),
                entries,
                journal.identity.incarnation if chance.random() < 0.03 else 0,
                int(bench.now_s * 1e9),
            )
        case "r":
            return AppendReply(
                term,
                about(journal.last_index + 1),
                chance.random() < 0.97,
                chance.random() < 0.03,
                about(member.round),
                1097 if chance.random() < 0.98 else 1098,
                learner=chance.random() < 0.02,
                asked_ns=int(bench.now_s * 1e9) - 1_000_000,
                clock_ns=int(bench.now_s * 1e9) + chance.randint(-1000, 1000),
                entry_version=chance.choice((1, 2)),
            )
        case _:
            if chance.random() < 0.5:
                return Vote(term + 1, journal.last_index, previous.term, pre=chance.random() < 0.5)
            return VoteReply(member.term, member.term, granted=True)


def course(seed: int, *, signs: bool) -> tuple[list[Any], int]:
    """What a member knows and sends after each message, and how many were taken as signs."""
    chance = random.Random(seed)
    bench, taken = Bench(), 0
    bench.incarnations = dict.fromkeys(PEERS, 1097)
    bench.journal.identity = bench.journal.identity.__class__(1, "group", "b", 77)
    draws = random.Random(seed)
    bench.member._random = draws.random
    if chance.random() < 0.6:
        bench.lead()
    else:
        bench.hear("a", Append(1, 1, 0, 1, 1))
    told: list[Any] = []
    for _ in range(60):
        bench.now_s += chance.choice((0.001, 0.01, 0.05, 0.05, 0.4))
        peer, kind = chance.choice(PEERS), chance.random()
        leader = bench.member.leader_id
        if not bench.member.is_leader and leader is not None and chance.random() < 0.8:
            peer = leader
        try:
            if kind < 0.05:
                bench.member.set_connected(peer, chance.random() < 0.5)
            elif kind < 0.1 and bench.member.is_leader:
                bench.member.propose(b"y")
            elif kind < 0.3:
                bench.member.tick()
                bench.member.replicate()
            else:
                message = some_message(chance, bench)
                if signs and bench.member.receive_sign(peer, message):
                    taken += 1
                    assert not bench.journal.dirty, "a sign needs no flush"
                else:
                    bench.member.receive(peer, message)
        except Exception as error:  # as where two lead in a term: the replica would stop
            told.append(f"{type(error).__name__}: {error}")
            return told, taken
        told.append((picture(bench), bench.take()))
    return told, taken


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_a_sign_is_taken_as_any_message_is(first: int) -> None:
    taken = 0
    for seed in range(first, first + 100):
        quick, signs = course(seed, signs=True)
        slow, _ = course(seed, signs=False)
        assert quick == slow, f"seed {seed}"
        taken += signs
    assert taken > 500


def test_what_must_be_decided_is_no_sign() -> None:
    bench = Bench()
    bench.hear("a", Append(1, 1, 0, 1, 1))
    entry = Entry(KIND_COMMAND + b"x", 2, 1)
    bench.hear("a", Append(1, 1, 0, 1, 2, (entry,)))
    assert bench.member.receive_sign("a", Append(1, 2, 1, 1, 3))
    assert not bench.member.receive_sign("a", Append(1, 2, 1, 2, 3)), "it commits"
    assert not bench.member.receive_sign("a", Append(2, 2, 1, 1, 3)), "a later term"
    assert not bench.member.receive_sign("c", Append(1, 2, 1, 1, 3)), "who leads?"
    assert not bench.member.receive_sign("a", Append(1, 1, 0, 1, 3)), "an earlier end"
    assert not bench.member.receive_sign("a", Append(1, 2, 0, 1, 3)), "another entry's term"
    assert not bench.member.receive_sign("a", Append(1, 2, 1, 1, 3, promote=7)), "a promotion"
    entry = Entry(KIND_COMMAND + b"y", 3, 1)
    bench.member.receive("a", Append(1, 2, 1, 1, 4, (entry,)))
    assert not bench.member.receive_sign("a", Append(1, 3, 1, 1, 5)), "its end is not durable"
