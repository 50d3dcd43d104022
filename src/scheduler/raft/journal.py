"""The Raft log, the term and the vote, on a JournalStorage: changes are staged, then written in
one batch, then flushed; `durable_index` says how far the log would survive a crash. It also knows
which list of members is in force: that of its last entry of that kind.

Keys: `e` + big-endian index for entries, `m/...` for what there is one of. Every value starts with
the CRC-32 of key and body, so that a damaged value is an error and never an entry.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Callable

import msgspec

from .errors import JournalError, SafetyViolation, WrongJournal
from .members import Members, decode
from .messages import KIND_MEMBERS, KIND_NOTHING, Entry
from .storage import JournalStorage, Operation

FORMAT = 1
FORMAT_WITH_LISTS = 2
"""Once the list of members has changed: a program that knows of no lists must not open it."""
_ENTRY_KEY = struct.Struct(">cQ")
_TERM = struct.Struct(">Q")
_CHECKSUM = struct.Struct(">I")
_ENTRIES_END = b"f"


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Whose journal this is. The incarnation is random: a wiped replica is another one."""

    format: int
    group_id: str
    replica_id: str
    incarnation: int


class Ballot(msgspec.Struct, frozen=True, array_like=True):
    """The current term, and whom this replica voted for in it."""

    term: int
    voted_for: str | None


class Position(msgspec.Struct, frozen=True, array_like=True):
    """A place in the log."""

    index: int
    term: int


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """Whether this replica's disk is complete, so that it may vote and be counted."""

    voter: bool


class BaseMembers(msgspec.Struct, frozen=True, array_like=True):
    """The list in force at the base, and the index of its entry; 0: it was configured."""

    index: int
    members: Members


def _key(index: int) -> bytes:
    return _ENTRY_KEY.pack(b"e", index)


def _sealed(key: bytes, body: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(key))) + body


def _opened(key: bytes, value: bytes) -> bytes:
    body = value[_CHECKSUM.size :]
    if value[: _CHECKSUM.size] != _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(key))):
        raise JournalError(
            f"the journal's record {key!r} fails its checksum: the disk is damaged. Wipe this"
            " replica's directory and start it without bootstrap"
        )
    return body


def _members_of(entry: Entry) -> Members:
    try:
        return decode(entry.command[1:])
    except msgspec.DecodeError as error:
        raise JournalError(f"entry {entry.index} is no list of replicas: {error}") from error


def _placed(members: Members, configured: Members) -> Members:
    """A list that was never changed says who belongs to the group; where they are, is said by the
    configuration of today."""
    if members.number:
        return members
    places = {each.id: each.address for each in configured.replicas}
    moved = [
        msgspec.structs.replace(each, address=places.get(each.id, each.address))
        for each in members.replicas
    ]
    return Members(0, tuple(moved))


def new_incarnation() -> int:
    """63 random bits, never 0."""
    return secrets.randbits(63) | 1


class Journal:
    """Entries are held in memory too; compaction bounds them. The first element of `entries` is
    the base: the position before the first entry, whose command nobody needs any more."""

    def __init__(
        self,
        storage: JournalStorage,
        group_id: str,
        replica_id: str,
        configured: Members,
        *,
        bootstrap: bool,
        incarnation: Callable[[], int] = new_incarnation,
    ) -> None:
        """configured: whom the group begins with; of no interest once the journal has a list.
        incarnation: for a disk that has no journal yet."""
        self._storage = storage
        self._staged: list[Operation] = []
        self._suspects: list[Entry] = []
        self._lists: list[tuple[int, Members]] = [(0, configured)]
        self.commit_floor = 0  # nothing at or below may be truncated; the replica maintains it
        identity = self._load_meta("identity", Identity)
        if identity is None:
            self._create(Identity(FORMAT, group_id, replica_id, incarnation()), bootstrap)
        else:
            self._open(identity, group_id, replica_id, configured)
        self.durable_index = self.last_index if identity is not None else 0

    # -- opening -----------------------------------------------------------------------------

    def _create(self, identity: Identity, bootstrap: bool) -> None:
        for key, _ in self._storage.scan(b""):
            raise JournalError(f"the journal has records ({key!r}) but no identity: it is damaged")
        self.identity = identity
        self.ballot = Ballot(0, None)
        self.voter = bootstrap
        self.installing: Position | None = None
        self.entries = [Entry(KIND_NOTHING, 1, 0)]
        self.size_bytes = 0
        self._stage_meta("identity", self.identity)
        self._stage_meta("ballot", self.ballot)
        self._stage_meta("base", Position(1, 0))
        self._stage_meta("membership", Membership(bootstrap))
        self._stage_meta("members", BaseMembers(*self._lists[0]))

    def _open(
        self, identity: Identity, group_id: str, replica_id: str, configured: Members
    ) -> None:
        if identity.format not in (FORMAT, FORMAT_WITH_LISTS):
            raise JournalError(
                f"the journal's format is {identity.format}, this program knows {FORMAT} and"
                f" {FORMAT_WITH_LISTS}: it was written by a newer one"
            )
        if (identity.group_id, identity.replica_id) != (group_id, replica_id):
            raise WrongJournal(
                f"this journal belongs to replica {identity.replica_id!r} of group"
                f" {identity.group_id!r}, not to {replica_id!r} of {group_id!r}: check the"
                " configured directory"
            )
        ballot = self._load_meta("ballot", Ballot)
        base = self._load_meta("base", Position)
        membership = self._load_meta("membership", Membership)
        if ballot is None or base is None or membership is None:
            raise JournalError("the journal lacks its ballot, base or membership: it is damaged")
        self.identity = identity
        self.ballot = ballot
        self.voter = membership.voter
        self.installing = self._load_meta("installing", Position)
        if self.installing is not None and self.installing.index == 0:
            self.installing = None
        self.entries = [Entry(KIND_NOTHING, base.index, base.term)]
        self.size_bytes = 0
        listed = self._load_meta("members", BaseMembers)
        if listed is None:  # of an older program
            if identity.format == FORMAT_WITH_LISTS:
                raise JournalError("the journal lacks its list of members: it is damaged")
            self._stage_meta("members", BaseMembers(*self._lists[0]))
        else:
            self._lists = [(listed.index, _placed(listed.members, configured))]
        for key, value in self._storage.scan(_key(base.index + 1)):
            if key >= _ENTRIES_END:
                break
            self._load_entry(key, value)

    def _load_entry(self, key: bytes, value: bytes) -> None:
        body = _opened(key, value)
        (index,) = _TERM.unpack(key[1:])
        if index != self.last_index + 1:
            raise JournalError(f"the journal lacks entry {self.last_index + 1}: it is damaged")
        (term,) = _TERM.unpack_from(body)
        self._append(Entry(body[_TERM.size :], index, term))

    def _load_meta(self, name: str, kind: type[msgspec.Struct]):  # type: ignore[no-untyped-def]
        key = b"m/" + name.encode()
        value = self._storage.get(key)
        if value is None:
            return None
        return msgspec.msgpack.decode(_opened(key, value), type=kind)

    def _stage_meta(self, name: str, record: msgspec.Struct) -> None:
        key = b"m/" + name.encode()
        self._staged.append(("put", key, _sealed(key, msgspec.msgpack.encode(record))))

    # -- reading -----------------------------------------------------------------------------

    @property
    def base(self) -> Position:
        return Position(self.entries[0].index, self.entries[0].term)

    @property
    def base_index(self) -> int:
        return self.entries[0].index

    @property
    def last_index(self) -> int:
        return self.entries[-1].index

    def at(self, index: int) -> Entry | None:
        """The entry, the base included; None outside of what is kept."""
        offset = index - self.entries[0].index
        return self.entries[offset] if 0 <= offset < len(self.entries) else None

    def from_index(self, index: int, limit: int) -> list[Entry]:
        """Up to `limit` entries from `index`, which is above the base."""
        offset = index - self.entries[0].index
        assert offset > 0, "the base has no command"
        return self.entries[offset : offset + limit]

    @property
    def members(self) -> Members:
        """The list in force."""
        return self._lists[-1][1]

    @property
    def members_index(self) -> int:
        """The index of its entry; 0: it was configured."""
        return self._lists[-1][0]

    def lists_from(self, index: int) -> list[Members]:
        """The list in force at `index`, and all later ones."""
        first = len(self._lists) - 1
        while first and self._lists[first][0] > index:
            first -= 1
        return [members for _, members in self._lists[first:]]

    def first_of_term(self, index: int) -> int:
        """The first kept index whose entries up to `index` all have the term of `index`."""
        offset = index - self.entries[0].index
        term = self.entries[offset].term
        while offset > 0 and self.entries[offset - 1].term == term:
            offset -= 1
        return self.entries[offset].index

    # -- changing ----------------------------------------------------------------------------

    def _append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.size_bytes += len(entry.command)
        if entry.command[:1] == KIND_MEMBERS:
            self._lists.append((entry.index, _members_of(entry)))

    def add(self, command: bytes, index: int, term: int) -> None:
        """Appends; an entry that is already here (see `suspect_from`) is recognised."""
        if self._suspects:
            suspect = self._suspects[0]
            if (suspect.index, suspect.term) == (index, term):
                self.entries.append(self._suspects.pop(0))
                return
            self._truncate()
        if index != self.last_index + 1:
            raise SafetyViolation(f"entry {index} does not follow {self.last_index}")
        self._append(Entry(command, index, term))
        if command[:1] == KIND_MEMBERS:
            self._mark_lists()
        key = _key(index)
        self._staged.append(("put", key, _sealed(key, _TERM.pack(term) + command)))

    def _mark_lists(self) -> None:
        if self.identity.format != FORMAT_WITH_LISTS:
            self.identity = msgspec.structs.replace(self.identity, format=FORMAT_WITH_LISTS)
            self._stage_meta("identity", self.identity)

    def suspect_from(self, offset: int) -> None:
        """Sets the tail aside: an append covers it, which may confirm or contradict it."""
        assert offset > 0, "the base cannot be truncated"
        self._suspects = self.entries[offset:]
        del self.entries[offset:]

    def settle(self) -> None:
        """Ends an append: what was set aside and not contradicted stays."""
        self.entries.extend(self._suspects)
        self._suspects = []

    def _truncate(self) -> None:
        first = self._suspects[0].index
        if first <= self.commit_floor:
            raise SafetyViolation(
                f"the leader contradicts entry {first}, but {self.commit_floor} is committed"
            )
        self.size_bytes -= sum(len(entry.command) for entry in self._suspects)
        self._suspects = []
        while self._lists[-1][0] >= first:
            self._lists.pop()
        self._staged.append(("delete_range", _key(first), _ENTRIES_END))
        self.durable_index = min(self.durable_index, first - 1)

    def compact(self, base_index: int) -> None:
        """Forgets everything up to and including base_index, except its position."""
        offset = base_index - self.entries[0].index
        if offset <= 0:
            return
        old = self.entries[0].index
        base = self.entries[offset]
        self.size_bytes -= sum(len(entry.command) for entry in self.entries[1 : offset + 1])
        self.entries[: offset + 1] = [Entry(KIND_NOTHING, base.index, base.term)]
        self._stage_meta("base", Position(base.index, base.term))
        if len(self._lists) > 1 and self._lists[1][0] <= base_index:
            while len(self._lists) > 1 and self._lists[1][0] <= base_index:
                del self._lists[0]
            self._stage_meta("members", BaseMembers(*self._lists[0]))
        self._staged.append(("delete_range", _key(old), _key(base.index + 1)))

    def begin_install(self, position: Position, members: Members | None = None) -> None:
        """The whole log becomes `position`; the mark makes a restart finish the installation.
        members: the list in force there, None if it is the configured one still."""
        assert not self._suspects
        self.entries = [Entry(KIND_NOTHING, position.index, position.term)]
        self.size_bytes = 0
        self.durable_index = 0
        self.installing = position
        self._lists = [(position.index, members)] if members else self._lists[:1]
        if self.members.number:
            self._mark_lists()
        self._stage_meta("base", position)
        self._stage_meta("members", BaseMembers(*self._lists[0]))
        self._stage_meta("installing", position)
        self._staged.append(("delete_range", b"e", _ENTRIES_END))

    def begin_at(self, position: Position) -> None:
        """A new journal of a group whose log begins after `position`, which the state holds."""
        assert (self.last_index, self.ballot.term) == (1, 0), "only a new one"
        self.entries = [Entry(KIND_NOTHING, position.index, position.term)]
        self._stage_meta("base", position)
        self.set_ballot(position.term, None)

    def end_install(self) -> None:
        """The state holds what was installed."""
        self.installing = None
        self._stage_meta("installing", Position(0, 0))

    def set_ballot(self, term: int, voted_for: str | None) -> None:
        """Neither a term nor a vote within a term is ever taken back."""
        if term < self.ballot.term or (
            term == self.ballot.term
            and self.ballot.voted_for is not None
            and voted_for != self.ballot.voted_for
        ):
            raise SafetyViolation(f"the ballot {self.ballot} cannot become {term}, {voted_for!r}")
        if (term, voted_for) != (self.ballot.term, self.ballot.voted_for):
            self.ballot = Ballot(term, voted_for)
            self._stage_meta("ballot", self.ballot)

    def become_voter(self) -> None:
        """This replica has caught up: from now on it counts."""
        self.voter = True
        self._stage_meta("membership", Membership(True))

    # -- durability --------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether something is staged: nothing that depends on it may leave before a flush."""
        return bool(self._staged)

    @property
    def appending(self) -> bool:
        """Whether all that is staged are further entries: no ballot, no list, none taken back."""
        return all(kind == "put" and key.startswith(b"e") for kind, key, _ in self._staged)

    def write(self) -> int:
        """Writes what is staged, unsynced; returns what to pass to `flushed` after the flush."""
        staged, self._staged = self._staged, []
        self._storage.write(staged)
        return self.last_index

    def flush(self) -> None:
        """Blocks until everything written is durable; for a worker thread."""
        self._storage.flush()

    def flushed(self, written_index: int) -> None:
        """The flush after the write that returned `written_index` has succeeded."""
        self.durable_index = max(self.durable_index, min(written_index, self.last_index))

    def close(self) -> None:
        self._storage.close()
