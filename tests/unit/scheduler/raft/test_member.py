"""One member, message by message: above all what pysyncobj alone gets wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from tickmesh.scheduler.raft.config import ReplicaConfig
from tickmesh.scheduler.raft.errors import NotLeader, OutcomeUnknown, SafetyViolation
from tickmesh.scheduler.raft.journal import Ballot, Journal, Position
from tickmesh.scheduler.raft.member import Member
from tickmesh.scheduler.raft.members import Listed, Members, configured, encode
from tickmesh.scheduler.raft.messages import (
    KIND_COMMAND,
    KIND_MEMBERS,
    Append,
    AppendReply,
    Entry,
    Message,
    Transfer,
    Vote,
    VoteReply,
)

from .clusters import Cluster, MemoryStorage, virtual


class Bench:
    """A member with its journal and clock; `take` is one round's flush and what it sends."""

    def __init__(self, names: str = "abc", me: str = "b", *, bootstrap: bool = True) -> None:
        self.now_s = 100.0
        self.storage = MemoryStorage()
        peers = tuple(name for name in names if name != me)
        config = ReplicaConfig(
            group_id="group", replica_id=me, peers=peers, directory=Path("unused")
        )
        self.journal = Journal(self.storage, "group", me, config.members, bootstrap=bootstrap)
        self.member = Member(config, self.journal, lambda: self.now_s, lambda: 0.5, self.wall_ns)
        self.take()
        for peer in peers:
            self.member.set_connected(peer, True)
        self.incarnations = {peer: 1000 + ord(peer) for peer in peers}

    def wall_ns(self) -> int:
        return int(self.now_s * 1e9)

    def take(self) -> list[tuple[str, Message]]:
        if self.journal.dirty:
            self.journal.flushed(self.journal.write())
        sent, self.member.outbox = self.member.outbox, []
        return sent

    def hear(self, peer: str, message: Message) -> list[tuple[str, Message]]:
        self.member.receive(peer, message)
        return [(to, anonymous(each)) for to, each in self.take()]

    def tick(self, seconds: float = 0.0) -> list[tuple[str, Message]]:
        self.now_s += seconds
        self.member.tick()
        self.member.replicate()
        sent = self.take()
        self.member.tick()
        return sent + self.take()

    def lead(self) -> None:
        """Wins an election, and its first entry is committed."""
        others = list(self.incarnations)
        self.tick(1.0)
        for peer in others:
            self.hear(peer, VoteReply(self.member.term, self.member.term + 1, True, pre=True))
        self.tick()
        for peer in others:
            self.hear(peer, VoteReply(self.member.term, self.member.term, granted=True))
        assert self.member.is_leader
        self.tick()
        for peer in others:
            self.acknowledge(peer, self.journal.last_index)
        self.tick()
        assert self.member.commit_index == self.journal.last_index

    def acknowledge(self, peer: str, index: int, term: int | None = None) -> None:
        member = self.member
        self.hear(
            peer,
            AppendReply(
                member.term if term is None else term,
                index + 1,
                True,
                False,
                member.round,
                self.incarnations[peer],
            ),
        )

    @property
    def log(self) -> list[tuple[int, int]]:
        """(index, term) of the entries."""
        return [(entry.index, entry.term) for entry in self.journal.entries[1:]]


def anonymous(message: Message) -> Message:
    """Without what is drawn at random."""
    if isinstance(message, VoteReply):
        return msgspec.structs.replace(message, incarnation=0)
    return message


def entries(first: int, last: int, term: int) -> tuple[Entry, ...]:
    return tuple(Entry(KIND_COMMAND + b"%d" % i, i, term) for i in range(first, last + 1))


def append(term: int, previous: tuple[int, int], commit: int, *new: Entry) -> Append:
    return Append(term, *previous, commit, 7, new)


def only(sent: list[tuple[str, Message]]) -> Message:
    ((_, message),) = sent
    return message


# -- following ---------------------------------------------------------------------------------


def test_a_repeated_or_stale_append_takes_nothing_back() -> None:
    bench = Bench()
    new = entries(2, 21, 1)
    reply = only(bench.hear("a", append(1, (1, 0), 1, *new)))
    assert isinstance(reply, AppendReply)
    assert (reply.success, reply.next_index) == (True, 22)
    reply = only(bench.hear("a", append(1, (1, 0), 1, *new[:5])))
    assert isinstance(reply, AppendReply)
    assert reply.success
    assert reply.next_index == 7, "no more is said than what this append verified"
    assert len(bench.log) == 20, "what was acknowledged stays"


def test_only_a_conflict_truncates() -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1, *entries(2, 10, 1)))
    bench.hear("c", append(2, (5, 1), 1, *entries(6, 7, 2)))
    assert bench.log == [(2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2)]


def test_no_success_and_no_commit_for_a_tail_that_was_not_verified() -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1, *entries(2, 10, 1)))
    # A new leader, whose log agrees up to 5 and says nothing yet about what follows.
    reply = only(bench.hear("c", append(2, (5, 1), 9)))
    assert isinstance(reply, AppendReply)
    assert (reply.success, reply.next_index) == (True, 6)
    bench.tick()
    assert bench.member.commit_index == 5
    bench.hear("c", append(2, (5, 1), 7, *entries(6, 7, 2)))
    bench.tick()
    assert bench.member.commit_index == 7
    assert bench.log[-1] == (7, 2)


def test_a_gap_is_answered_by_where_it_begins() -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1, *entries(2, 5, 1)))
    reply = only(bench.hear("a", append(1, (9, 1), 9, *entries(10, 10, 1))))
    assert isinstance(reply, AppendReply)
    assert (reply.success, reply.reset, reply.next_index) == (False, True, 6)


def test_a_whole_term_that_differs_is_skipped_at_once() -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1, *entries(2, 5, 1)))
    bench.hear("a", append(1, (5, 1), 5))
    bench.hear("c", append(2, (5, 1), 5, *entries(6, 900, 2)))
    reply = only(bench.hear("a", append(3, (900, 3), 5)))
    assert isinstance(reply, AppendReply)
    assert (reply.success, reply.reset, reply.next_index) == (False, True, 6)


def test_a_follower_counts_a_commit_only_as_far_as_its_own_disk() -> None:
    bench = Bench()
    bench.member.receive("a", append(1, (1, 0), 3, *entries(2, 3, 1)))
    assert bench.member.commit_index == 1, "nothing is flushed yet"
    bench.take()
    bench.tick()
    assert bench.member.commit_index == 3


def test_two_leaders_in_one_term_stop_this_replica() -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1))
    with pytest.raises(SafetyViolation, match="both lead in term 1"):
        bench.hear("c", append(1, (1, 0), 1))


def test_an_append_of_an_old_term_is_told_the_new_one() -> None:
    bench = Bench()
    bench.hear("c", append(5, (1, 0), 1))
    reply = only(bench.hear("a", append(4, (1, 0), 1, *entries(2, 3, 4))))
    assert isinstance(reply, AppendReply)
    assert (reply.term, reply.success) == (5, False)
    assert bench.log == []


# -- voting ------------------------------------------------------------------------------------


def test_a_vote_is_staged_before_it_is_sent() -> None:
    bench = Bench()
    bench.member.receive("a", Vote(1, 1, 0))
    assert [(to, anonymous(each)) for to, each in bench.member.outbox] == [
        ("a", VoteReply(1, 1, True))
    ]
    assert bench.journal.dirty
    bench.take()
    found = Journal(bench.storage, "group", "b", configured("abc", {}), bootstrap=True)
    assert found.ballot == Ballot(1, "a")


def test_one_vote_a_term_also_after_a_restart() -> None:
    bench = Bench()
    bench.hear("a", Vote(1, 1, 0))
    assert bench.hear("c", Vote(1, 1, 0)) == []
    bench.journal = Journal(bench.storage, "group", "b", configured("abc", {}), bootstrap=True)
    config = ReplicaConfig(
        group_id="group", replica_id="b", peers=("a", "c"), directory=Path("unused")
    )
    bench.member = Member(config, bench.journal, lambda: bench.now_s, lambda: 0.5, bench.wall_ns)
    assert bench.member.term == 1
    assert bench.hear("c", Vote(1, 1, 0)) == []


def test_no_vote_for_a_shorter_or_older_log() -> None:
    bench = Bench()
    bench.hear("a", append(2, (1, 0), 1, *entries(2, 3, 2)))
    bench.now_s += 10
    for last in ((2, 2), (9, 1)):
        assert bench.hear("c", Vote(3, *last)) == []
    bench.now_s += 10
    assert only(bench.hear("c", Vote(4, 3, 2))) == VoteReply(4, 4, True)


def test_a_live_leader_is_protected_from_candidates() -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1))
    assert bench.hear("c", Vote(9, 50, 8)) == []
    assert bench.hear("c", Vote(9, 50, 8, pre=True)) == []
    assert bench.member.term == 1
    assert only(bench.hear("c", Vote(9, 50, 8, transfer=True))) == VoteReply(9, 9, True)


def test_a_silent_leader_is_given_longer_than_one_whose_connection_is_lost() -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1))
    assert bench.tick(0.7) == [], "its connection stands: it is late"
    assert bench.hear("c", Vote(2, 1, 0, pre=True)) == [], "so that nobody else is helped"
    bench.member.set_connected("a", False)
    assert only(bench.hear("c", Vote(2, 1, 0, pre=True))) == VoteReply(1, 2, True, pre=True)
    assert bench.tick(0.4) == []
    assert [message for _, message in bench.tick(0.1)] == [Vote(2, 1, 0, pre=True)] * 2


def test_a_leader_that_is_silent_too_long_is_replaced_though_its_connection_stands() -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1))
    assert bench.tick(1.1) == []
    assert [message for _, message in bench.tick(0.1)] == [Vote(2, 1, 0, pre=True)] * 2


def test_an_election_is_asked_for_before_it_moves_the_term() -> None:
    bench = Bench()
    sent = bench.tick(1.0)
    assert sent == [(peer, Vote(1, 1, 0, pre=True)) for peer in "ac"]
    assert (bench.member.term, bench.journal.dirty) == (0, False)
    bench.hear("a", VoteReply(0, 1, True, pre=True))
    assert [message for _, message in bench.tick()] == [Vote(1, 1, 0)] * 2
    assert bench.journal.ballot == Ballot(1, "b")


def test_one_peer_is_one_vote_however_often_it_answers() -> None:
    bench = Bench("abcde")
    bench.tick(1.0)
    for _ in range(3):
        bench.hear("a", VoteReply(0, 1, True, pre=True))
    bench.tick()
    assert bench.member.term == 0
    bench.hear("c", VoteReply(0, 1, True, pre=True))
    bench.tick()
    assert bench.member.term == 1
    for _ in range(3):
        bench.hear("a", VoteReply(1, 1, True))
    assert not bench.member.is_leader
    bench.hear("c", VoteReply(1, 1, True))
    assert bench.member.is_leader


def test_answers_to_an_earlier_question_do_not_count() -> None:
    bench = Bench()
    bench.tick(1.0)
    bench.hear("a", VoteReply(0, 9, True, pre=True))
    bench.tick()
    assert bench.member.term == 0


def test_an_empty_disk_says_nothing_to_candidates_and_is_none() -> None:
    bench = Bench(bootstrap=False)
    assert bench.hear("a", Vote(1, 1, 0)) == []
    assert bench.hear("a", Vote(1, 1, 0, pre=True)) == []
    assert bench.tick(100.0) == []
    assert bench.hear("a", Transfer(0)) == []


# -- leading -----------------------------------------------------------------------------------


def test_acknowledgements_do_not_send_again_what_is_in_flight() -> None:
    bench = Bench()
    bench.lead()
    first = bench.journal.last_index + 1
    for number in range(3):
        bench.member.propose(b"%d" % number)
        bench.tick()
    assert bench.member.next_index("a") == first + 3
    bench.acknowledge("a", first)
    assert bench.member.next_index("a") == first + 3
    assert not [m for _, m in bench.tick() if isinstance(m, Append) and m.entries]


@pytest.mark.parametrize("learner", [False, True])
def test_entries_are_sent_again_once_however_many_answers_say_that_they_lack(
    learner: bool,
) -> None:
    bench = Bench()
    bench.lead()
    member = bench.member
    for _ in range(3):
        member.propose(b"x")
        bench.tick()
    first = member.round - 2

    def lacks(round_: int) -> list[Message]:
        """What `a`, which lacks the first of them, is sent when it says so of another."""
        index, incarnation = bench.journal.last_index - 2, bench.incarnations["a"]
        reply = AppendReply(member.term, index, False, True, round_, incarnation, learner=learner)
        bench.hear("a", reply)
        return [message for peer, message in bench.tick() if peer == "a"]

    if learner:
        bench.incarnations["a"] += 1
        member._progress["a"].incarnation = bench.incarnations["a"]
        member._progress["a"].learner = True
    (again,) = lacks(first + 1)
    assert isinstance(again, Append) and len(again.entries) == 3
    assert lacks(first + 2) == [], "it was sent before that"
    (once_more,) = lacks(again.round)
    assert isinstance(once_more, Append) and len(once_more.entries) == 3


def test_an_acknowledgement_of_an_earlier_leadership_counts_for_nothing() -> None:
    bench = Bench()
    bench.lead()
    position = bench.member.propose(b"x")
    bench.tick()
    bench.acknowledge("a", position.index, term=bench.member.term - 1)
    bench.tick()
    assert bench.member.commit_index == position.index - 1
    bench.acknowledge("a", position.index)
    bench.tick()
    assert bench.member.commit_index == position.index


def test_an_acknowledgement_of_another_disk_counts_for_nothing() -> None:
    bench = Bench()
    bench.lead()
    position = bench.member.propose(b"x")
    bench.tick()
    bench.incarnations["a"] += 1
    bench.acknowledge("a", position.index)
    bench.tick()
    assert bench.member.commit_index == position.index - 1


def test_a_leader_commits_nothing_that_its_own_disk_lacks() -> None:
    bench = Bench()
    bench.lead()
    position = bench.member.propose(b"x")
    bench.member.replicate()
    bench.member.outbox.clear()
    for peer in "ac":
        reply = AppendReply(
            bench.member.term,
            position.index + 1,
            True,
            False,
            bench.member.round,
            bench.incarnations[peer],
        )
        bench.member.receive(peer, reply)
    bench.member.tick()
    assert bench.member.commit_index == position.index - 1
    bench.take()
    bench.tick()
    assert bench.member.commit_index == position.index


def test_an_entry_of_an_earlier_term_is_not_committed_by_counting() -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1, *entries(2, 3, 1)))
    bench.tick(5.0)
    bench.hear("c", VoteReply(1, 2, True, pre=True))
    bench.tick()
    bench.hear("c", VoteReply(2, 2, True))
    bench.tick()
    assert bench.member.is_leader
    bench.acknowledge("c", 3)
    bench.tick()
    assert bench.member.commit_index == 1
    bench.acknowledge("c", 4)
    bench.tick()
    assert bench.member.commit_index == 4


def test_a_leader_that_hears_no_majority_stands_down() -> None:
    bench = Bench()
    bench.lead()
    for _ in range(40):
        bench.tick(0.05)
    assert not bench.member.is_leader
    assert bench.member.stood_down


def test_an_acknowledgement_beyond_the_log_stops_this_replica() -> None:
    bench = Bench()
    bench.lead()
    with pytest.raises(SafetyViolation, match="beyond this leader's log"):
        bench.acknowledge("a", bench.journal.last_index + 1)


def test_a_peer_that_needs_a_snapshot_is_not_asked_again_and_again() -> None:
    bench = Bench()
    bench.lead()
    for number in range(20):
        position = bench.member.propose(b"%d" % number)
    bench.tick()
    bench.acknowledge("c", position.index)
    bench.tick()
    bench.journal.compact(position.index - 2)
    behind = AppendReply(
        bench.member.term, 2, False, True, bench.member.round, bench.incarnations["a"]
    )
    bench.hear("a", behind)
    assert bench.member.snapshots_wanted == ["a"]
    assert not bench.tick(), "only with the next heartbeat"
    sent = bench.tick(0.06)
    assert [peer for peer, _ in sent] == ["a", "c"]


# -- what leaves is durable --------------------------------------------------------------------


def durable_ballot(storage: MemoryStorage) -> Ballot:
    return msgspec.msgpack.decode(storage.durable[b"m/ballot"][4:], type=Ballot)


@virtual
async def test_whatever_a_message_claims_is_on_the_senders_disk(tmp_path: Path) -> None:
    """Checked for every message of a group that crashes, loses and repeats."""
    cluster = Cluster(tmp_path)
    seen: set[str] = set()

    def check(sender: str, recipient: str, message: Message) -> None:
        durable = cluster[sender].disk.durable
        ballot = durable_ballot(cluster[sender].disk)
        seen.add(type(message).__name__)
        match message:
            case Vote(pre=False):
                assert ballot.term > message.term or ballot == Ballot(message.term, sender)
            case VoteReply(pre=False, granted=True):
                assert ballot.term > message.term or ballot == Ballot(message.term, recipient)
            case AppendReply(success=True):
                assert ballot.term >= message.term
                wanted = message.next_index - 1
                assert wanted == 1 or b"e" + wanted.to_bytes(8, "big") in durable

    cluster.network.trace = check
    cluster.network.faults.duplicate = 0.1
    await cluster.start()
    for number in range(30):
        leader = await cluster.leader()
        try:
            async with asyncio.timeout(5):
                await leader.replica.propose(b"%d" % number)
        except (NotLeader, OutcomeUnknown, TimeoutError):
            continue
        if number % 3 == 0:
            await cluster.crash(leader.name)
            await cluster.start(leader.name)
    await cluster.stop()
    assert seen == {"Append", "AppendReply", "Vote", "VoteReply"}


# -- the list of members -------------------------------------------------------------------------


def list_entry(index: int, term: int, number: int, voters: str, learners: str = "") -> Entry:
    replicas = [Listed(name, "", True) for name in voters]
    replicas += [Listed(name, "", False) for name in learners]
    return Entry(KIND_MEMBERS + encode(Members(number, tuple(replicas))), index, term)


def leading(names: str = "abcd") -> Bench:
    """Who leads a group, with everything committed."""
    bench = Bench(names)
    bench.lead()
    return bench


def test_a_removed_replica_counts_for_nothing_from_the_append_on() -> None:
    bench = leading()
    member = bench.member
    members = member.members.without("c")
    position = member.change_members(members)
    bench.tick()
    bench.acknowledge("c", position.index)
    bench.tick()
    assert member.commit_index < position.index, "only this one and who was removed have it"
    bench.acknowledge("a", position.index)
    bench.tick()
    assert member.commit_index == position.index, "two of three"
    assert "c" not in member.others
    assert not any(peer == "c" for peer, _ in bench.tick(1.0))


def test_an_added_replica_counts_for_nothing_before_it_is_a_voter() -> None:
    bench = leading("abc")
    member = bench.member
    position = member.change_members(member.members.with_learner("d", "there"))
    bench.incarnations["d"] = 7
    member.set_connected("d", True)
    bench.tick()
    bench.acknowledge("d", position.index)
    bench.tick()
    assert member.commit_index < position.index
    assert member.majority == 2
    bench.acknowledge("a", position.index)
    bench.tick()
    assert member.commit_index == position.index
    position = member.change_members(member.members.with_voter("d"))
    assert member.majority == 3, "at once"
    bench.tick()
    bench.acknowledge("a", position.index)
    bench.tick()
    assert member.commit_index < position.index, "two of four"
    bench.acknowledge("d", position.index)
    bench.tick()
    assert member.commit_index == position.index


def test_one_change_at_a_time_and_none_before_an_own_entry_is_committed() -> None:
    bench = leading()
    member = bench.member
    assert member.may_change_members
    first = member.members
    member.change_members(first.without("c"))
    assert not member.may_change_members
    with pytest.raises(SafetyViolation, match="must not follow"):
        member.change_members(member.members)
    bench = Bench("abcd")
    bench.tick(1.0)
    for peer in "acd":
        bench.hear(peer, VoteReply(bench.member.term, bench.member.term + 1, True, pre=True))
    bench.tick()
    for peer in "acd":
        bench.hear(peer, VoteReply(bench.member.term, bench.member.term, granted=True))
    assert bench.member.is_leader
    assert not bench.member.may_change_members
    with pytest.raises(SafetyViolation, match="must not follow"):
        bench.member.change_members(bench.member.members.without("c"))


@pytest.mark.parametrize("number", [0, 2])
def test_lists_follow_each_other_by_one_voter_and_one_number(number: int) -> None:
    bench = leading("abcde")
    for members in (
        Members(number, bench.member.members.without("e").replicas),
        Members(1, configured("abc", {}).replicas),  # two at once
        Members(1, configured("acde", {}).replicas),  # without the leader
    ):
        with pytest.raises(SafetyViolation, match="must not follow"):
            bench.member.change_members(members)
    assert bench.member.members.number == 0


def test_a_followers_list_is_in_force_at_once_and_back_when_it_is_truncated() -> None:
    bench = Bench("abcd")
    bench.hear("a", append(1, (1, 0), 1, list_entry(2, 1, 1, "acd")))
    assert not bench.member.may_lead, "it is not in it"
    assert bench.tick(5.0) == [], "so it does not ask to be elected"
    bench.hear("c", append(2, (1, 0), 1, *entries(2, 2, 2)))
    assert bench.member.may_lead
    assert {peer for peer, _ in bench.tick(5.0)} == {"a", "c", "d"}


def test_votes_are_counted_by_the_last_list_in_the_journal_and_given_to_anybody() -> None:
    bench = Bench("abcd")
    bench.hear("a", append(1, (1, 0), 1, list_entry(2, 1, 1, "abc")))
    bench.tick(5.0)
    assert bench.hear("d", Vote(2, 9, 9))[0][1] == VoteReply(2, 2, granted=True)
    bench.tick(5.0)
    term = bench.member.term
    bench.hear("d", VoteReply(term, term + 1, granted=True, pre=True))
    bench.tick()
    assert bench.member.term == term, "who is not in the list is no backer"
    bench.hear("a", VoteReply(term, term + 1, granted=True, pre=True))
    bench.tick()
    assert bench.member.term == term + 1
    bench.hear("d", VoteReply(term + 1, term + 1, granted=True))
    assert not bench.member.is_leader
    bench.hear("c", VoteReply(term + 1, term + 1, granted=True))
    assert bench.member.is_leader


def test_a_vote_counts_if_the_list_names_the_voters_disk() -> None:
    """Another disk of the same name is another voter, whose vote somebody else may have had."""
    bench = Bench("abc")
    replicas = (Listed("a", "", True, 5), Listed("b", "", True), Listed("c", "", True, 7))
    entry = Entry(KIND_MEMBERS + encode(Members(1, replicas)), 2, 1)
    bench.hear("a", append(1, (1, 0), 1, entry))
    bench.tick(5.0)
    term = bench.member.term
    backs = VoteReply(term, term + 1, granted=True, pre=True, incarnation=8)
    bench.hear("c", backs)
    bench.tick()
    assert bench.member.term == term
    bench.hear("c", msgspec.structs.replace(backs, incarnation=7))
    bench.tick()
    assert bench.member.term == term + 1
    votes = VoteReply(term + 1, term + 1, granted=True, incarnation=8)
    bench.hear("c", votes)
    assert not bench.member.is_leader
    bench.hear("c", msgspec.structs.replace(votes, incarnation=7))
    assert bench.member.is_leader


def test_an_acknowledgement_counts_if_the_list_names_the_disk() -> None:
    bench = leading("abc")
    member = bench.member
    right = bench.incarnations["c"]
    for members in (
        lambda: member.members.with_disk("c", right),
        lambda: member.members.with_voter("c"),
    ):
        position = member.change_members(members())
        bench.tick()
        bench.acknowledge("a", position.index)
        bench.tick()
        assert member.commit_index == position.index
    index = member.propose(b"x").index
    bench.tick()
    member._progress["c"].incarnation = 0  # as in another term: it was not heard of
    bench.incarnations["c"] = right + 1
    bench.acknowledge("c", index)
    bench.tick()
    assert member.commit_index < index
    bench.incarnations["c"] = right
    bench.acknowledge("c", index)
    bench.tick()
    assert member.commit_index == index


def test_a_disk_that_was_removed_does_not_come_back_into_the_list() -> None:
    """Some of what it said is on its way still."""
    bench = leading("abc")
    member = bench.member
    for disk in (7, 8):
        position = member.change_members(member.members.with_disk("c", disk))
        bench.tick()
        bench.acknowledge("a", position.index)
        bench.tick()
    late = AppendReply(member.term, 1, False, True, member.round, 7, learner=True)
    bench.hear("c", late)
    assert member.replaced is None
    bench.hear("c", msgspec.structs.replace(late, incarnation=9))
    assert member.replaced == ("c", 9)


def test_a_candidate_whose_list_changes_begins_anew() -> None:
    bench = Bench("abcde")
    bench.tick(5.0)
    for peer in "ac":
        bench.hear(peer, VoteReply(0, 1, granted=True, pre=True))
    bench.tick()
    assert bench.member.is_candidate
    bench.hear("c", VoteReply(1, 1, granted=True))
    bench.journal.begin_install(Position(50, 1), Members(3, configured("bde", {}).replicas))
    bench.member.follow_list()
    bench.member.jump_to(50)
    bench.take()
    assert not bench.member.is_candidate
    bench.hear("d", VoteReply(1, 1, granted=True))
    assert not bench.member.is_leader, "one of its two votes was from outside of the list"


def test_who_is_asked_for_a_list_of_the_replicas_knows_it_before_its_first_vote() -> None:
    bench = Bench("abc")
    bench.hear("a", append(1, (1, 0), 1, list_entry(2, 1, 1, "abcd")))
    found = Journal(bench.storage, "group", "b", configured("abc", {}), bootstrap=False)
    config = ReplicaConfig(
        group_id="group", replica_id="b", peers=("a", "c"), directory=Path("unused")
    )
    member = Member(config, found, lambda: bench.now_s, lambda: 0.5, bench.wall_ns)
    assert member.voting == {"a", "c", "d"}
    assert member.majority == 3


# -- a leader that is silent -------------------------------------------------------------------


def elects_after(bench: Bench) -> float:
    """How long it is until this member asks the others."""
    began_s = bench.now_s
    while not any(isinstance(message, Vote) for _, message in bench.tick(0.01)):
        assert bench.now_s < began_s + 5.0
    return bench.now_s - began_s


@pytest.mark.parametrize(("there", "longest_s"), [(False, 0.61), (True, 1.51)])
def test_a_silent_leader_is_waited_for_while_its_host_answers(
    there: bool, longest_s: float
) -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1))
    assert bench.member.suspect() is None
    bench.now_s += 0.16
    assert bench.member.next_deadline() < bench.now_s
    assert bench.member.suspect() == "a"
    assert bench.member.suspect() is None, "asked once"
    bench.now_s += 0.2
    bench.member.judge("a", there)
    waited_s = 0.36 + elects_after(bench)
    assert waited_s <= longest_s
    assert (waited_s > 0.76) is there


def test_a_leader_that_was_heard_meanwhile_is_not_judged() -> None:
    bench = Bench()
    bench.hear("a", append(1, (1, 0), 1))
    bench.now_s += 0.16
    assert bench.member.suspect() == "a"
    bench.hear("a", append(1, (1, 0), 1))
    bench.member.judge("a", False)
    assert elects_after(bench) > 0.76
