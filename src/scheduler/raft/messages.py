"""What replicas say to each other, inside the process. `convert` puts it on the wire."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from .members import Members


class Entry(NamedTuple):
    """One entry of the log in the order that pysyncobj expects it."""

    command: bytes  # kind byte, then the payload
    index: int  # type: ignore[assignment]  # the log's name for it, not the tuple's method
    term: int


KIND_COMMAND = b"\x00"
KIND_NOTHING = b"\x01"
KIND_MEMBERS = b"\x02"

MEMBERS_SINCE = 2
"""The version of entries that the last kind came with: an older replica stops at it."""


class Append(msgspec.Struct, frozen=True):
    """Entries, or a heartbeat without any, from the leader of `term`."""

    term: int
    previous_index: int
    previous_term: int
    commit_index: int
    round: int
    entries: tuple[Entry, ...] = ()
    promote: int = 0
    asked_ns: int = 0  # the leader's monotonic clock, to be echoed


class AppendReply(msgspec.Struct, frozen=True):
    """`success`: everything before next_index is durable here and equals the leader's log."""

    term: int
    next_index: int
    success: bool
    reset: bool
    round: int
    incarnation: int
    learner: bool = False
    asked_ns: int = 0
    clock_ns: int = 0  # the sender's wall clock
    entry_version: int = 0  # the highest that the sender can apply


class Vote(msgspec.Struct, frozen=True):
    """A candidate asks; with `pre` only whether it would be worth asking."""

    term: int
    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False


class VoteReply(msgspec.Struct, frozen=True):
    """The answer to the Vote about `request_term`, from a replica whose term is `term`."""

    term: int
    request_term: int
    granted: bool
    pre: bool = False
    incarnation: int = 0  # of the voter's disk; 0: not told


class Transfer(msgspec.Struct, frozen=True):
    """The leader asks the receiver to take over at once."""

    term: int


Message: TypeAlias = Append | AppendReply | Vote | VoteReply | Transfer


class Greeting(msgspec.Struct, frozen=True):
    """What a replica says of itself when it is connected: the number of the last list that it knows
    to be committed, and which disk it has (0: not told). A learner's disk is not complete."""

    members_number: int = 0
    incarnation: int = 0
    learner: bool = False


class Exclusion(msgspec.Struct, frozen=True):
    """Why a replica is not listened to: the committed list of this number is without its disk.
    removed: the list says that this very disk was."""

    members_number: int
    removed: bool = False


class Introduction(msgspec.Struct, frozen=True):
    """Who a replica is, and what its journal holds: to judge whether it can be added."""

    group_id: str
    replica_id: str
    last_index: int
    voter: bool
    entry_version: int
    incarnation: int = 0


class SnapshotHeader(msgspec.Struct, frozen=True):
    """Who ships a checkpoint of which log position, in which leader's term; members is the list in
    force there, None from a program that knows of none."""

    group_id: str
    sender_id: str
    recipient_id: str
    term: int
    index: int
    index_term: int
    members: Members | None = None


class SnapshotChunk(msgspec.Struct, frozen=True):
    """Part of one file; checksum is the CRC-32 of data."""

    name: str
    offset: int
    data: bytes
    checksum: int


class SnapshotEnd(msgspec.Struct, frozen=True):
    """All files have been sent."""

    files: int
    size_bytes: int


SnapshotPart: TypeAlias = SnapshotHeader | SnapshotChunk | SnapshotEnd


class SnapshotReply(msgspec.Struct, frozen=True):
    """Whether the receiver now holds the snapshot's position, and if not, why."""

    accepted: bool
    reason: str = ""
