"""pysyncobj 0.3.17, and everything that touches what it keeps private: nothing else imports it.

Its election, commitment and log-matching logic decides here; journal, transport, clock, randomness,
snapshots, batching of sends and application are ours. `Member` (member.py) adds what it lacks.

What is replaced, and why:
- createJournal takes a ready journal (ours), not only a file name.
- monotonicTime reads the active replica's clock, so that a simulator can drive it.
- the commit index never passes what this replica's own disk holds (a leader counts itself).
- who is counted follows the list of members in the journal; its own membership changes stay off.
- sending, applying and compacting are left to the replica's rounds.
- commands are never unpickled; nothing here opens a socket, a pipe or a thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import pysyncobj.syncobj as library
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport as LibraryTransport

from .config import ReplicaConfig
from .journal import Journal

PINNED: Final = "0.3.17"
_METHODS: Final = (
    "_SyncObj__applyLogEntries",
    "_SyncObj__generateRaftTimeout",
    "_SyncObj__onMessageReceived",
    "_SyncObj__onNodeConnected",
    "_SyncObj__onNodeDisconnected",
    "_SyncObj__sendAppendEntries",
    "_SyncObj__sendNextNodeIdx",
    "_SyncObj__setCurrentTerm",
    "_SyncObj__setState",
    "_SyncObj__tryLogCompaction",
    "_checkCommandsToApply",
    "_isLeader",
    "_onTick",
)
_FIELDS: Final = (
    "_SyncObj__lastResponseTime",
    "_SyncObj__newAppendEntriesTime",
    "_SyncObj__noopIDx",
    "_SyncObj__otherNodes",
    "_SyncObj__raftCommitIndex",
    "_SyncObj__raftCurrentTerm",
    "_SyncObj__raftElectionDeadline",
    "_SyncObj__raftLastApplied",
    "_SyncObj__raftLeader",
    "_SyncObj__raftLog",
    "_SyncObj__raftMatchIndex",
    "_SyncObj__raftNextIndex",
    "_SyncObj__raftState",
    "_SyncObj__transferInProgress",
    "_SyncObj__transport",
    "_poller",
)


def _check_pin() -> None:
    fields = SyncObj.__init__.__code__.co_names
    missing = [name for name in _METHODS if not callable(getattr(SyncObj, name, None))]
    missing += [name for name in _FIELDS if name not in fields]
    missing += [
        name
        for name in ("createJournal", "monotonicTime", "_RAFT_STATE")
        if not hasattr(library, name)
    ]
    if missing or library.VERSION != PINNED:
        raise ImportError(
            f"tickmesh needs pysyncobj {PINNED} exactly; this is {library.VERSION}, and it"
            f" lacks {missing}. Install the pinned version"
        )


_check_pin()

_active: list[Callable[[], float]] = []
_create_journal = library.createJournal


def _monotonic_time() -> float:
    return _active[-1]() if _active else time.monotonic()


def _journal_or_file(journal: Any = None) -> Any:
    return journal if isinstance(journal, JournalAdapter) else _create_journal(journal)


library.monotonicTime = _monotonic_time
library.createJournal = _journal_or_file
# It reports, as critical, truncations that our journal does not do: it truncates on a conflict
# only, and a conflict with anything committed stops the replica.
logging.getLogger("pysyncobj.syncobj").addFilter(
    lambda record: "truncating already-applied" not in str(record.msg)
)

FOLLOWER: Final = library._RAFT_STATE.FOLLOWER
CANDIDATE: Final = library._RAFT_STATE.CANDIDATE
LEADER: Final = library._RAFT_STATE.LEADER


class Peer(Node):  # type: ignore[misc]
    """A replica by its id, with a hash that is the same in every process (for the simulator)."""

    def __init__(self, peer: str) -> None:
        super().__init__(peer)
        self._hash = int.from_bytes(peer.encode(), "big") & 0x7FFFFFFF

    def __hash__(self) -> int:
        return self._hash


class _Peers(dict[str, Peer]):
    """Made when they are first asked for."""

    def __missing__(self, peer: str) -> Peer:
        made = self[peer] = Peer(peer)
        return made


class _Running:
    """While it is entered, the library's time is this clock's."""

    __slots__ = ("_clock",)

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        _active.append(self._clock)

    def __exit__(self, *_: object) -> None:
        _active.pop()


class JournalAdapter:
    """Our journal by the names that the library calls."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __len__(self) -> int:
        return len(self._journal.entries)

    def __getitem__(self, item: Any) -> Any:
        return self._journal.entries[item]

    def add(self, command: bytes, index: int, term: int) -> None:
        self._journal.add(command, index, term)

    def deleteEntriesFrom(self, offset: int) -> None:
        self._journal.suspect_from(offset)

    def setCurrentTerm(self, term: int, voted_for: str | None) -> None:
        self._journal.set_ballot(term, voted_for)

    def getCurrentTerm(self) -> int:
        return self._journal.ballot.term

    def getVotedForNodeId(self) -> str | None:
        return self._journal.ballot.voted_for

    def setRaftCommitIndex(self, index: int) -> None:
        """Not stored: it is found again from the leader."""

    def getRaftCommitIndex(self) -> int:
        return 1

    def onOneSecondTimer(self) -> None:
        """Nothing to do."""


class _Sender(LibraryTransport):  # type: ignore[misc]
    """Hands what the library sends to the member's translation."""

    def __init__(self, member: RaftLibrary, self_node: Node, other_nodes: Any) -> None:
        super().__init__(member, self_node, other_nodes)
        self._member = member

    @property
    def ready(self) -> bool:
        return True

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self._member.library_sent(node.id, message)
        return True


class _NoPoller:
    def poll(self, timeout: float) -> None:
        """There is nothing to poll: messages arrive by calls."""


class RaftLibrary(SyncObj):  # type: ignore[misc]
    """The library with the parts named above replaced, its private state under public names."""

    def __init__(
        self,
        config: ReplicaConfig,
        journal: Journal,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self.journal = journal
        self.clock = clock
        self._random = random
        self._minimum_s = config.election_timeout_min_s
        self._spread_s = config.election_timeout_max_s - config.election_timeout_min_s
        self._commit_wanted = 1
        self.broadcast_wanted = False
        self._nodes = _Peers()
        conf = SyncObjConf(
            autoTick=False,
            # Sends follow the replica's rounds; it also keeps the library from making a pipe.
            appendEntriesUseBatch=True,
            appendEntriesPeriod=config.heartbeat_interval_s,
            raftMinTimeout=config.election_timeout_min_s,
            raftMaxTimeout=config.election_timeout_max_s,
            connectionTimeout=config.election_timeout_max_s * 10,
            # A leader that hears no majority for so long stands down, and its callers learn it.
            leaderFallbackTimeout=config.election_timeout_max_s * config.patience,
            dynamicMembershipChange=False,
            journalFile=JournalAdapter(journal),
            pollerType="poll",
            onStateChanged=self._state_changed,
        )
        self._running = _Running(clock)
        with self._running:
            super().__init__(self._nodes[config.replica_id], [], conf, transportClass=_Sender)
        self._poller = _NoPoller()

    def __dir__(self) -> list[str]:
        # The library looks itself over for replicated methods while it is half made; properties
        # would answer too early, and there are no such methods.
        return []

    # -- what the library calls, replaced ------------------------------------------------------

    @property
    def _SyncObj__raftCommitIndex(self) -> int:
        return self.commit_index

    @_SyncObj__raftCommitIndex.setter
    def _SyncObj__raftCommitIndex(self, index: int) -> None:
        # The library lowers it when an append shortens its log; our journal keeps that tail.
        if index > self._commit_wanted:
            self._commit_wanted = index
            self.journal.commit_floor = index

    def election_timeout(self) -> float:
        """How long to wait for a leader this time, in seconds."""
        return self._minimum_s + self._spread_s * self._random()

    _SyncObj__generateRaftTimeout = election_timeout

    def _SyncObj__sendAppendEntries(self) -> None:
        self._SyncObj__newAppendEntriesTime = self.clock() + self.conf.appendEntriesPeriod
        self.broadcast_wanted = True

    def _SyncObj__applyLogEntries(self) -> bool:
        return False

    def _SyncObj__tryLogCompaction(self) -> None:
        pass

    def _checkCommandsToApply(self) -> None:
        """Nothing is ever queued: the member appends to the journal itself."""

    def library_sent(self, peer: str, message: dict[str, Any]) -> None:
        """The library wants `message` (its own form) to go to `peer`."""
        raise NotImplementedError

    def role_changed(self, was_leader: bool, is_leader: bool) -> None:
        """This replica's role in the election changed."""
        raise NotImplementedError

    def _state_changed(self, old: int, new: int) -> None:
        self.role_changed(old == LEADER, new == LEADER)

    # -- its private state under public names --------------------------------------------------

    def library_tick(self) -> None:
        """Elections, commitment, standing down; heartbeats by way of broadcast_wanted."""
        with self._running:
            self._onTick(0.0)

    def library_receive(self, peer: str, message: dict[str, Any]) -> None:
        """A message in the library's own form."""
        with self._running:
            SyncObj._SyncObj__onMessageReceived(self, self._nodes[peer], message)

    def library_connected(self, peer: str, connected: bool) -> None:
        """The library sends an election only when connected to somebody."""
        node = self._nodes[peer]
        if connected:
            self._SyncObj__onNodeConnected(node)
        else:
            self._SyncObj__onNodeDisconnected(node)

    @property
    def is_leader(self) -> bool:
        leads: bool = self._SyncObj__raftState == LEADER
        return leads

    @property
    def is_candidate(self) -> bool:
        return bool(self._SyncObj__raftState == CANDIDATE)

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def leader_id(self) -> str | None:
        leader = self._SyncObj__raftLeader
        return None if leader is None else str(leader.id)

    @property
    def commit_index(self) -> int:
        durable_index = self.journal.durable_index
        return (
            self._commit_wanted if self._commit_wanted <= durable_index else max(durable_index, 1)
        )

    @property
    def applied_index(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    @applied_index.setter
    def applied_index(self, index: int) -> None:
        self._SyncObj__raftLastApplied = index

    def jump_to(self, index: int) -> None:
        """The state holds everything up to `index`, which is committed."""
        self._SyncObj__raftLastApplied = max(index, 1)
        self._SyncObj__raftCommitIndex = max(index, 1)

    @property
    def first_index_of_term(self) -> int | None:
        """The index of this leadership's first entry."""
        index = self._SyncObj__noopIDx
        return None if index is None else int(index)

    @property
    def election_deadline(self) -> float:
        return float(self._SyncObj__raftElectionDeadline)

    @election_deadline.setter
    def election_deadline(self, when: float) -> None:
        self._SyncObj__raftElectionDeadline = when

    @property
    def heartbeat_deadline(self) -> float:
        return float(self._SyncObj__newAppendEntriesTime)

    @property
    def transferring(self) -> bool:
        return bool(self._SyncObj__transferInProgress)

    def count(self, voters: Iterable[str]) -> None:
        """Elections, commitment and standing down ask these peers from now on, and no others."""
        self._SyncObj__otherNodes = {self._nodes[peer] for peer in sorted(voters)}

    def follow(self, peer: str) -> None:
        """A leader begins to send to `peer`, of which nothing is known."""
        node = self._nodes[peer]
        self._SyncObj__raftNextIndex[node] = self.journal.last_index + 1
        self._SyncObj__raftMatchIndex[node] = 0
        self._SyncObj__lastResponseTime[node] = self.clock()

    def next_index(self, peer: str) -> int:
        index: int = self._SyncObj__raftNextIndex[self._nodes[peer]]
        return index

    def set_next_index(self, peer: str, index: int) -> None:
        self._SyncObj__raftNextIndex[self._nodes[peer]] = index

    def match_index(self, peer: str) -> int:
        index: int = self._SyncObj__raftMatchIndex.get(self._nodes[peer], 0)
        return index

    def heard_from(self, peer: str, index: int) -> None:
        """A leader: `peer` answers, and holds the log up to `index`, which is committed."""
        node, matches = self._nodes[peer], self._SyncObj__raftMatchIndex
        if matches[node] < index:
            matches[node] = index
        self._SyncObj__lastResponseTime[node] = self.clock()

    def forget_match(self, peer: str) -> None:
        """What this peer has acknowledged counts no more: its disk is another one."""
        self._SyncObj__raftMatchIndex[self._nodes[peer]] = 0

    def step_down(self) -> None:
        """Leads no more, though nobody else does yet: as where it hears no majority."""
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__raftLeader = None

    def forget_leader(self) -> None:
        self._SyncObj__raftLeader = None

    def adopt_term(self, term: int) -> None:
        """Somebody is in a later term: follow, with no vote cast in it yet."""
        assert term > self.term
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__raftLeader = None
        self._SyncObj__setState(FOLLOWER)

    def vote_in_term(self, peer: str) -> None:
        """Uses up this term's vote."""
        self._SyncObj__setCurrentTerm(self.term, peer)
