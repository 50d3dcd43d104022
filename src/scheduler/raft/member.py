"""The rules of one group member that the library lacks, without I/O, tasks or clocks of its own:
messages and ticks go in; `outbox`, committed entries and role changes come out.

Added to the library: pre-vote and protection of a live leader; one vote a peer; replies and rounds
that belong to a term; bounded pipelining; learners (a replica whose disk was empty counts for
nothing until a leader, confirmed by a majority without it, has brought it up to date); and a list
of members that the log itself changes.

Who is counted is what the last list in the leader's or candidate's own journal says, committed or
not. Messages are taken from anybody: who is missing in this replica's list may know a later one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from .clocks import Clocks
from .config import ReplicaConfig
from .errors import SafetyViolation
from .journal import Journal, Position
from .library import RaftLibrary
from .limits import (
    APPEND_BYTES_IN_FLIGHT_MAX,
    APPEND_BYTES_MAX,
    APPEND_ENTRIES_MAX,
    APPENDS_IN_FLIGHT_MAX,
    CAUGHT_UP_ENTRIES,
)
from .members import Members, encode
from .messages import (
    KIND_COMMAND,
    KIND_MEMBERS,
    MEMBERS_SINCE,
    Append,
    AppendReply,
    Entry,
    Message,
    Transfer,
    Vote,
    VoteReply,
)


class _Progress:
    """What the leader knows about one peer, besides the library's next and match index."""

    def __init__(self) -> None:
        self.acknowledged_round = 0
        self.in_flight: deque[tuple[int, int]] = deque()  # (round, bytes of entries)
        self.in_flight_bytes = 0
        self.rewound_round = -1  # the last one before it was sent entries again
        self.incarnation = 0  # 0: not heard of yet in this term
        self.learner = False
        self.learner_since_s = 0.0
        self.learner_round = 0  # the first round after the learner was heard of
        self.learner_match = 0
        self.learner_target: int | None = None
        self.entry_version = 0  # 0: not heard of yet in this term

    def sent(self, round_: int, size_bytes: int) -> None:
        self.in_flight.append((round_, size_bytes))
        self.in_flight_bytes += size_bytes

    def answered(self, round_: int) -> None:
        self.acknowledged_round = max(self.acknowledged_round, round_)
        while self.in_flight and self.in_flight[0][0] <= round_:
            self.in_flight_bytes -= self.in_flight.popleft()[1]

    def lost(self) -> None:
        self.in_flight.clear()
        self.in_flight_bytes = 0

    @property
    def full(self) -> bool:
        return (
            len(self.in_flight) >= APPENDS_IN_FLIGHT_MAX
            or self.in_flight_bytes >= APPEND_BYTES_IN_FLIGHT_MAX
        )


class Member(RaftLibrary):
    """One member. All calls come from one thread; what `outbox` holds may leave only after
    everything that the journal had staged by then has been flushed."""

    def __init__(
        self,
        config: ReplicaConfig,
        journal: Journal,
        clock: Callable[[], float],
        random: Callable[[], float],
        wall_ns: Callable[[], int],
    ) -> None:
        self._config = config
        self.clocks = Clocks(clock, wall_ns, int(config.clock_skew_max_s * 1e9))
        self.outbox: list[tuple[str, Message]] = []
        self.connected: set[str] = set()
        self.round = 0
        self.stood_down = False  # set when leadership was lost; the replica clears it
        self._reply_round = 0
        self._reply_asked_ns = 0
        self._campaign_not_before_s = -math.inf
        self._heard_leader_s = -math.inf
        self._patience = 1.0  # with the leader that was heard: see ReplicaConfig
        self._suspect_at_s = math.inf
        self._backers: set[str] | None = None  # pre-votes for the election being considered
        self._elected = False
        self._transfer_requested = False
        self._voters: set[str] = set()
        self._progress: dict[str, _Progress] = {}  # while it leads
        self.members = Members(0, ())
        self.others: tuple[str, ...] = ()  # who is in the list, but for this replica
        self.voting: frozenset[str] = frozenset()  # those of them who count
        self.learners: tuple[str, ...] = ()  # who does not count yet
        self._counts = False  # this replica, by the list
        super().__init__(config, journal, clock, random)
        self.follow_list()
        if not self.voting and self.may_lead:
            self.election_deadline = self.clock() - 1.0  # there is nobody to wait for

    # -- the list of members -------------------------------------------------------------------

    def follow_list(self) -> None:
        """The journal's list is in force, whether or not it is committed."""
        members = self.journal.members
        if members is self.members:
            return
        self.members = members
        self._backers, self._elected = None, False
        if self.is_candidate:
            self.step_down()  # its votes were counted by another list
        self.others = tuple(each for each in members.ids if each != self._config.replica_id)
        voters = members.voters
        self._counts = self._config.replica_id in voters
        self.voting = voters - {self._config.replica_id}
        self.learners = members.learners
        self.count(self.voting)
        self.clocks.follow(self.voting)
        if self.is_leader:
            assert self._counts, "a leader does not remove itself"
            gone = self._progress.keys() - set(self.others)
            for peer in gone:
                del self._progress[peer]
            for peer in self.others:
                if peer not in self._progress:
                    self._progress[peer] = _Progress()
                    self.follow(peer)
            self.broadcast_wanted = True

    @property
    def replica_id(self) -> str:
        return self._config.replica_id

    @property
    def may_lead(self) -> bool:
        """Whether this replica is a voter: by the list, and by its disk."""
        return self._counts and self.journal.voter

    @property
    def majority(self) -> int:
        """How many voters decide."""
        return (len(self.voting) + 1) // 2 + 1

    @property
    def committed_members(self) -> Members:
        """The list that can be taken back no more."""
        return self.journal.lists_from(self.commit_index)[0]

    @property
    def may_change_members(self) -> bool:
        """Whether a list may be appended: the one before it is committed, so that no two of them
        are ever skipped; and an entry of this leader's own term is, so that no earlier leader's
        list, of which this one knows nothing, can be committed beside it."""
        return self.leads_with_own_entry and self.journal.members_index <= self.commit_index

    def change_members(self, members: Members) -> Position:
        """Appends a list to the leader's log: it is in force at once. Precondition:
        may_change_members."""
        voters = members.voters ^ self.members.voters
        if (
            not self.may_change_members
            or members.number != self.members.number + 1
            or len(voters) > 1
            or self._config.replica_id not in members.voters
        ):
            raise SafetyViolation(f"{members} must not follow {self.members}")
        index, term = self.journal.last_index + 1, self.term
        self.journal.add(KIND_MEMBERS + encode(members), index, term)
        self.follow_list()
        return Position(index, term)

    @property
    def caught_up(self) -> str | None:
        """A replica that is no voter yet and now may become one: a leader that a majority confirmed
        has brought its disk up to date, and it keeps up."""
        for peer in self.learners:
            progress = self._progress.get(peer)
            if (
                progress is not None
                and progress.incarnation
                and not progress.learner
                and peer in self.connected
                and self.match_index(peer) + CAUGHT_UP_ENTRIES >= self.commit_index
            ):
                return peer
        return None

    def replaced_disk(self, peer: str) -> int:
        """The disk that a replica has in place of the one that the list counts, and that is not
        complete; 0 if there is none. The list must have it, as a learner's, before it counts."""
        listed, progress = self.members.find(peer), self._progress.get(peer)
        if listed is None or progress is None or not progress.learner:
            return 0
        if not listed.voter and listed.incarnation in (0, progress.incarnation):
            return 0
        if not self.members.number and self.entry_version < MEMBERS_SINCE:
            return 0  # among older programs, which know no lists, the list counts whichever it has
        return progress.incarnation

    @property
    def replaced(self) -> tuple[str, int] | None:
        """A replica with such a disk, and the disk."""
        for peer, progress in self._progress.items():
            if progress.learner and (incarnation := self.replaced_disk(peer)):
                return peer, incarnation
        return None

    @property
    def sound(self) -> frozenset[str]:
        """The other voters that are connected and whose disks are complete."""
        return frozenset(
            peer
            for peer in self.voting & self.connected
            if self._progress[peer].incarnation and not self._progress[peer].learner
        )

    # -- time ----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Whatever is due by the clock, and what can be committed. Cheap when nothing is."""
        if self.is_leader:
            # Whether a majority still answers is looked at with every heartbeat.
            if self.clock() <= self.heartbeat_deadline and self._all_is_committed:
                return
        else:
            self._consider_election()
            if self.clock() <= self.election_deadline:
                return
        term = self.term
        self.library_tick()
        if self.term != term:
            self._voters = {self._config.replica_id}

    @property
    def _all_is_committed(self) -> bool:
        return self.commit_index == self.journal.last_index

    def next_deadline(self) -> float:
        """When `tick` has something to do, by this member's clock."""
        if self.is_leader:
            return self.heartbeat_deadline
        return min(self.election_deadline, self._suspect_at_s) if self.may_lead else math.inf

    def suspect(self) -> str | None:
        """A leader that is connected and silent: is its host there? `judge` must follow."""
        if self.clock() <= self._suspect_at_s:
            return None
        self._suspect_at_s = math.inf
        leader = None if self.is_leader or not self.may_lead else self.leader_id
        return leader if leader in self.connected else None

    def judge(self, leader: str, there: bool) -> None:
        """Whether the host of a suspected leader answered: then the leader is late, and waited for;
        otherwise it is lost, as if its connection was."""
        silent_s = self.clock() - self._heard_leader_s
        if leader != self.leader_id or silent_s <= self._config.silence_s:
            return
        if there:
            self._suspect_at_s = self.clock() + self._config.silence_s
        else:
            self._patience = 1.0
            self.election_deadline = min(
                self.election_deadline, self._heard_leader_s + self.election_timeout()
            )

    def _consider_election(self) -> None:
        now = self.clock()
        if not self.may_lead:
            self.election_deadline = math.inf
            return
        if not self.transferring:
            self.election_deadline = max(self.election_deadline, self._campaign_not_before_s)
        if self.election_deadline >= now:
            return
        if not self.voting or self.transferring or self._elected:
            self._transfer_requested = self.transferring
            self._elected = False
            self._backers = None
            return  # the library starts the election in this tick
        self.forget_leader()
        self._backers = {self._config.replica_id}
        # A question moves nobody's term, so it is repeated soon, at a random distance.
        self.election_deadline = now + self._config.heartbeat_interval_s * (1 + self._random())
        last = self.journal.entries[-1]
        for peer in sorted(self.voting):
            self._send(peer, Vote(self.term + 1, last.index, last.term, pre=True))

    # -- messages ------------------------------------------------------------------------------

    def receive(self, peer: str, message: Message) -> None:
        """A message from another member of the group."""
        match message:
            case Append():
                self._receive_append(peer, message)
            case AppendReply():
                self._receive_append_reply(peer, message)
            case Vote():
                self._receive_vote(peer, message)
            case VoteReply():
                self._receive_vote_reply(peer, message)
            case Transfer():
                if self.may_lead and peer == self.leader_id and message.term == self.term:
                    self.library_receive(peer, {"type": "timeout_now", "term": message.term})
                    self.election_deadline = self.clock() - 1.0

    def receive_sign(self, peer: str, message: Message) -> bool:
        """Takes a message that is only a sign that its sender is there, or has come to where a
        majority is, as most are; whether it was one. `receive` would come to the same: nothing is
        staged, committed or decided by it, so what `outbox` holds then needs no flush."""
        if type(message) is Append:
            return self._receive_heartbeat(peer, message)
        return type(message) is AppendReply and self._receive_heartbeat_reply(peer, message)

    def _receive_heartbeat(self, peer: str, message: Append) -> bool:
        last = self.journal.entries[-1]
        if (
            message.entries
            or message.promote
            or message.previous_index != last.index
            or message.previous_term != last.term
            or message.term != self.term
            or message.commit_index > self.commit_index
            or self.journal.durable_index != last.index
            or peer != self.leader_id
            or self.transferring
        ):
            return False
        self._reply_round, self._reply_asked_ns = message.round, message.asked_ns
        self._heard_leader_s = now = self.clock()
        self._backers, self._elected = None, False
        self._expect_leader(peer, now + self.election_timeout())
        self._send_append_reply(peer, last.index + 1, success=True, reset=False)
        return True

    def _receive_heartbeat_reply(self, peer: str, message: AppendReply) -> bool:
        progress = self._progress.get(peer)
        if (
            progress is None
            or message.term != self.term
            or not message.success
            or message.reset
            or message.learner
            or progress.learner
            or message.incarnation != progress.incarnation
            or message.next_index > self.next_index(peer)
            or message.next_index > self.commit_index + 1
            or not self.match_index(peer)
            or progress.full
            or not self.is_leader
        ):
            return False
        self._answered(peer, progress, message)
        self.heard_from(peer, message.next_index - 1)
        return True

    def _send(self, peer: str, message: Message) -> None:
        self.outbox.append((peer, message))

    def library_sent(self, peer: str, message: dict[str, Any]) -> None:
        match message["type"]:
            case "request_vote":
                self._send(
                    peer,
                    Vote(
                        message["term"],
                        message["last_log_index"],
                        message["last_log_term"],
                        transfer=self._transfer_requested,
                    ),
                )
            case "response_vote":
                self._send_vote_reply(peer, message["term"], granted=True)
            case "next_node_idx":
                self._send_append_reply(
                    peer, message["next_node_idx"], message["success"], message["reset"]
                )
            case "timeout_now":
                self._send(peer, Transfer(message["term"]))
            case other:
                raise AssertionError(f"the library sends {other!r}, which nothing here asks for")

    def _send_vote_reply(self, peer: str, asked: int, *, granted: bool, pre: bool = False) -> None:
        incarnation = self.journal.identity.incarnation
        self._send(peer, VoteReply(self.term, asked, granted, pre, incarnation))

    def _send_append_reply(self, peer: str, next_index: int, success: bool, reset: bool) -> None:
        if reset and not success and next_index <= self.journal.last_index:
            # The entry before it has another term: skip the whole of that term at once.
            if next_index <= self.commit_index:
                raise SafetyViolation(f"{peer} contradicts entry {next_index}, which is committed")
            next_index = max(self.journal.first_of_term(next_index), self.commit_index + 1)
        self._send(
            peer,
            AppendReply(
                self.term,
                next_index,
                success,
                reset,
                self._reply_round,
                self.journal.identity.incarnation,
                learner=not self.journal.voter,
                asked_ns=self._reply_asked_ns,
                clock_ns=self.clocks.wall_ns(),
                entry_version=self._config.entry_version,
            ),
        )

    # -- as a follower -------------------------------------------------------------------------

    def _receive_append(self, peer: str, message: Append) -> None:
        self._reply_round = message.round
        self._reply_asked_ns = message.asked_ns
        if message.term < self.term:
            # It does not know that it was replaced: this answer makes it stand down.
            self._send_append_reply(peer, self.journal.last_index + 1, success=False, reset=False)
            return
        if message.term == self.term and (
            self.is_leader or (self.leader_id is not None and self.leader_id != peer)
        ):
            raise SafetyViolation(f"{peer} and {self.leader_id} both lead in term {self.term}")
        self._heard_leader_s = self.clock()
        self._backers = None
        self._elected = False
        if message.promote and message.promote == self.journal.identity.incarnation:
            self._become_voter(peer, message.term)
        self.library_receive(
            peer,
            {
                "type": "append_entries",
                "term": message.term,
                "commit_index": message.commit_index,
                "prevLogIdx": message.previous_index,
                "prevLogTerm": message.previous_term,
                "entries": message.entries,
            },
        )
        self.journal.settle()
        self._expect_leader(peer, self.election_deadline)
        self.follow_list()

    def _expect_leader(self, leader: str, until_s: float) -> None:
        """It was heard, and must be heard again until then; later, if it is connected."""
        now = self.clock()
        self._patience = self._config.patience if leader in self.connected else 1.0
        self._suspect_at_s = now + self._config.silence_s
        self.election_deadline = now + (until_s - now) * self._patience

    def _become_voter(self, leader: str, term: int) -> None:
        if self.journal.voter:
            return
        if term > self.term:
            self.adopt_term(term)
        self.journal.become_voter()
        if self.journal.ballot.voted_for is None:
            # What this replica voted before its disk was lost is not known: not again in this term.
            self.vote_in_term(leader)

    def _receive_vote(self, peer: str, message: Vote) -> None:
        if not self.journal.voter:
            return
        # Neither's place in this replica's list matters: the candidate counts by its own, which
        # may be a later one.
        live_leader = self.is_leader or (
            self.clock() - self._heard_leader_s
            < self._config.election_timeout_min_s * self._patience
        )
        if message.term < self.term + (1 if message.pre else 0):
            self._send_vote_reply(peer, message.term, granted=False, pre=message.pre)
        elif live_leader and not message.transfer:
            return
        elif not message.pre:
            self.library_receive(
                peer,
                {
                    "type": "request_vote",
                    "term": message.term,
                    "last_log_index": message.last_index,
                    "last_log_term": message.last_term,
                },
            )
        else:
            last = self.journal.entries[-1]
            granted = (message.last_term, message.last_index) >= (last.term, last.index)
            if granted and self._backers is None:
                # Two that were ready at once would split the votes: let the other go first.
                self.election_deadline = max(
                    self.election_deadline,
                    self.clock() + self._config.heartbeat_interval_s * (1 + self._random()),
                )
            self._send_vote_reply(peer, message.term, granted=granted, pre=True)

    # -- as a candidate ------------------------------------------------------------------------

    def _receive_vote_reply(self, peer: str, message: VoteReply) -> None:
        if message.term > self.term and not message.granted:
            self.adopt_term(message.term)
        if not message.granted or self.is_leader:
            return
        if not self.members.names(peer, message.incarnation):
            return  # a disk that was removed, under an id that is in use again
        if message.pre:
            if self._backers is None or message.request_term != self.term + 1:
                return
            if peer in self.voting:
                self._backers.add(peer)
            if len(self._backers) >= self.majority:
                self._elected = True
                self.election_deadline = self.clock() - 1.0
        elif message.request_term == self.term and peer in self.voting and peer not in self._voters:
            self._voters.add(peer)
            self.library_receive(peer, {"type": "response_vote", "term": message.request_term})

    # -- as a leader ---------------------------------------------------------------------------

    def role_changed(self, was_leader: bool, is_leader: bool) -> None:
        if was_leader:
            self.stood_down = True
        if is_leader:
            self._backers = None
            self._progress = {peer: _Progress() for peer in self.others}
            for peer in self.others:
                self.follow(peer)
            self.clocks.forget()
            self.broadcast_wanted = True

    def propose(self, payload: bytes) -> Position:
        """Appends a command to the leader's log. Precondition: this member leads."""
        assert self.is_leader
        index, term = self.journal.last_index + 1, self.term
        self.journal.add(KIND_COMMAND + payload, index, term)
        return Position(index, term)

    def _receive_append_reply(self, peer: str, message: AppendReply) -> None:
        if message.term > self.term:
            self.adopt_term(message.term)
            return
        if message.term < self.term or not self.is_leader:
            return  # about an earlier leadership: what it acknowledges may be gone
        if peer not in self._progress:
            return  # it was removed: what it acknowledges counts for nothing
        progress = self._identified(peer, message)
        if progress is None:
            return
        if message.next_index > self.journal.last_index + 1 and message.success:
            raise SafetyViolation(
                f"{peer} acknowledges up to {message.next_index - 1}, beyond this leader's log"
                f" ({self.journal.last_index}) of term {self.term}"
            )
        self._answered(peer, progress, message)
        next_index = min(message.next_index, self.journal.last_index + 1)
        reset = message.reset
        if reset and not message.success and message.round <= progress.rewound_round:
            # About what was sent before it was sent entries again: what then is in flight may be
            # all it lacks. Each such answer would send all of it once more, and one window that
            # arrives out of order has many of them.
            reset = False
        elif reset:
            progress.rewound_round = self.round
            progress.lost()
        if message.learner:
            self._learner_replied(peer, progress, message, next_index, reset=reset)
            return
        in_flight_to = self.next_index(peer)
        self.library_receive(
            peer,
            {
                "type": "next_node_idx",
                "next_node_idx": next_index,
                "reset": reset,
                "success": message.success,
            },
        )
        if message.success and not reset:
            # The library would send again everything that is in flight behind this answer.
            self.set_next_index(peer, max(in_flight_to, next_index))

    def _answered(self, peer: str, progress: _Progress, message: AppendReply) -> None:
        progress.answered(message.round)
        progress.entry_version = message.entry_version
        self.clocks.sample(peer, message.asked_ns, message.clock_ns)

    def _identified(self, peer: str, message: AppendReply) -> _Progress | None:
        """The progress that this reply belongs to; None when its sender's disk is another one."""
        progress = self._progress[peer]
        if progress.incarnation == message.incarnation:
            if message.learner and not progress.learner:
                return None  # from before its promotion
            progress.learner = message.learner
            return progress
        if self.members.has_removed(peer, message.incarnation):
            return None  # late: it is never in the list again
        if not message.learner:
            if progress.incarnation or not self.members.names(peer, message.incarnation):
                # Another disk that claims to be up to date, or a late reply of the lost one.
                return None
            progress.incarnation = message.incarnation
            return progress
        self.forget_match(peer)
        progress = self._progress[peer] = _Progress()
        progress.incarnation = message.incarnation
        progress.learner = True
        progress.learner_since_s = self.clock()
        progress.learner_round = self.round + 1
        return progress

    def _learner_replied(
        self, peer: str, progress: _Progress, message: AppendReply, next_index: int, *, reset: bool
    ) -> None:
        if reset:
            self.set_next_index(peer, next_index)
        if message.success and next_index - 1 > progress.learner_match:
            progress.learner_match = next_index - 1
            self.set_next_index(peer, max(self.next_index(peer), next_index))

    def _promotion(self, peer: str, progress: _Progress) -> int:
        """The incarnation to promote, or 0. A wiped disk is thereby harmless."""
        if not progress.learner or self.replaced_disk(peer):
            return 0
        if progress.learner_target is None:
            # Everything committed before the disk was lost is at or below the commit index of a
            # leader that a majority without this replica confirmed after it came back. The wait
            # outlives every vote that the lost disk may have cast.
            waited_s = self.clock() - progress.learner_since_s
            if (
                self.may_change_members  # the list that has this disk is committed, too
                and self.confirmed_round >= progress.learner_round
                and waited_s > 2 * self._config.election_timeout_max_s
            ):
                progress.learner_target = self.commit_index
            return 0
        return progress.incarnation if progress.learner_match >= progress.learner_target else 0

    @property
    def leads_with_own_entry(self) -> bool:
        """Leads, and an entry of its own term is committed: its commit index is the group's."""
        first = self.first_index_of_term
        return self.is_leader and first is not None and self.commit_index >= first

    @property
    def confirmed_round(self) -> int:
        """The latest round that a majority acknowledged: until then nobody else led."""
        rounds = sorted(
            (
                0 if progress.learner else progress.acknowledged_round
                for peer, progress in self._progress.items()
                if peer in self.voting
            ),
            reverse=True,
        )
        others = self.majority - 1
        return rounds[others - 1] if others else self.round

    # -- sending -------------------------------------------------------------------------------

    def replicate(self) -> None:
        """Appends for every peer that lacks entries; heartbeats for all when one is due."""
        broadcast, self.broadcast_wanted = self.broadcast_wanted, False
        if not self.is_leader:
            return
        base, last = self.journal.base_index, self.journal.last_index
        # Who needs a snapshot is only sent heartbeats meanwhile.
        peers = (
            self.others
            if broadcast
            else [
                peer
                for peer in self.others
                if base < self.next_index(peer) <= last and not self._progress[peer].full
            ]
        )
        if not broadcast and not peers:
            return
        self.round += 1
        shared: dict[tuple[int, int], Append] = {}
        for peer in peers:
            if peer not in self.connected:
                continue
            progress = self._progress[peer]
            self._send_append(peer, progress, shared)
            while base < self.next_index(peer) <= last and not progress.full:
                self._send_append(peer, progress, shared)

    def _needs_snapshot(self, peer: str) -> bool:
        return self.next_index(peer) <= self.journal.base_index

    def _send_append(
        self, peer: str, progress: _Progress, shared: dict[tuple[int, int], Append]
    ) -> None:
        needs_snapshot = self._needs_snapshot(peer)
        # A heartbeat at our end: its answer says where the peer really is.
        next_index = self.journal.last_index + 1 if needs_snapshot else self.next_index(peer)
        sends_entries = not needs_snapshot and not progress.full
        promote = self._promotion(peer, progress)
        key = (next_index if sends_entries else -next_index, promote)
        append = shared.get(key)
        if append is None:
            append = shared[key] = self._append(next_index, sends_entries, promote)
        if append.entries:
            self.set_next_index(peer, append.entries[-1].index + 1)
            progress.sent(append.round, sum(len(entry.command) for entry in append.entries))
        self._send(peer, append)

    def _append(self, next_index: int, sends_entries: bool, promote: int) -> Append:
        entries: list[Entry] = []
        if sends_entries and next_index <= self.journal.last_index:
            size_bytes = 0
            for entry in self.journal.from_index(next_index, APPEND_ENTRIES_MAX):
                size_bytes += len(entry.command)
                if entries and size_bytes > APPEND_BYTES_MAX:
                    break
                entries.append(entry)
        previous = self.journal.at(next_index - 1)
        assert previous is not None
        return Append(
            self.term,
            previous.index,
            previous.term,
            self.commit_index,
            self.round,
            tuple(entries),
            promote,
            self.clocks.monotonic_ns(),
        )

    def set_connected(self, peer: str, connected: bool) -> None:
        """The transport gained or lost its connection to `peer`."""
        self.library_connected(peer, connected)
        if connected:
            self.connected.add(peer)
        else:
            self.connected.discard(peer)
            self.clocks.forget(peer)
            if peer == self.leader_id:
                self._patience = 1.0
                self.election_deadline = min(
                    self.election_deadline, self.clock() + self.election_timeout()
                )
        if not self.is_leader or peer not in self._progress:
            return
        self._progress[peer].lost()
        if connected:
            # What was in flight may be lost: ask from our end rather than trust the old guess.
            self.set_next_index(peer, self.journal.last_index + 1)
            self.broadcast_wanted = True

    @property
    def snapshots_wanted(self) -> list[str]:
        """The connected peers that need entries which the journal has no more."""
        if not self.is_leader:
            return []
        return [
            peer for peer in self.others if peer in self.connected and self._needs_snapshot(peer)
        ]

    def progress_of(self, peer: str) -> int:
        """How far `peer` is known to hold this leader's log, learners included."""
        if peer not in self._progress:
            return 0
        return max(self.match_index(peer), self._progress[peer].learner_match)

    def shipped(self, peer: str, index: int) -> None:
        """`peer` holds everything up to `index` by a snapshot: go on from there."""
        if self.is_leader and peer in self._progress and self.next_index(peer) <= index:
            self.set_next_index(peer, index + 1)
            self.broadcast_wanted = True

    @property
    def entry_version(self) -> int:
        """The highest version of payloads that every replica can apply. Who was not heard of in
        this term may be an old program: 1."""
        versions = [max(peer.entry_version, 1) for peer in self._progress.values()]
        return min([self._config.entry_version, *versions])

    # -- leadership transfer -------------------------------------------------------------------

    def transfer_to(self, peer: str) -> bool:
        """Asks `peer` to take over if it holds the whole log; whether it was asked."""
        if (
            not self.is_leader
            or peer not in self.connected
            or peer not in self.voting
            or self._progress[peer].learner
            or self.match_index(peer) != self.journal.last_index
        ):
            return False
        self._send(peer, Transfer(self.term))
        return True

    def retire(self, pause_s: float) -> None:
        """Leads no more, and for a while leaves it to others to be elected."""
        self._campaign_not_before_s = self.clock() + pause_s
        if self.is_leader:
            self.step_down()
