"""What can go wrong with a replica, named for what the caller can do about it.

RaftError
├── NotLeader          nothing was proposed or read: ask the leader
├── ReplicaBusy        nothing was proposed: wait and ask again
├── OutcomeUnknown     it was proposed; ask again only with the same request id
├── ChangeRefused      the list of replicas cannot be changed so now; nothing was changed
│   ├── AlreadyMember      who should be added is in it
│   └── NoSuchMember       who should be removed is not in it
└── ReplicaFailed      this replica must stop (fail-stop); the process should exit
    ├── JournalError       the journal cannot be read or written
    │   └── WrongJournal   the journal belongs to another group or replica
    └── SafetyViolation    what Raft promises did not hold: a bug, or a disk that lied
"""


class RaftError(Exception):
    """The root of this package's errors."""


class NotLeader(RaftError):
    """This replica does not lead; `leader` is the replica id to ask, None while there is none."""

    def __init__(self, leader: str | None) -> None:
        super().__init__(f"not the leader; the leader is {leader or 'not known'}")
        self.leader = leader


class ReplicaBusy(RaftError):
    """Too many proposals are waiting already."""


class OutcomeUnknown(RaftError):
    """Leadership or the replica was lost before the commit was known: it may be committed yet."""


class ChangeRefused(RaftError):
    """The list of replicas was not changed; the message says what to do."""


class AlreadyMember(ChangeRefused):
    """Who should be added is in the list."""


class NoSuchMember(ChangeRefused):
    """Who should be removed is not in the list."""


class ReplicaFailed(RaftError):
    """The replica has stopped for good and must not be used."""


class JournalError(ReplicaFailed):
    """The journal is damaged or could not be written."""


class WrongJournal(JournalError):
    """The journal in this directory belongs to another group or replica."""


class SafetyViolation(ReplicaFailed):
    """A property that must always hold did not: stop before it spreads."""
