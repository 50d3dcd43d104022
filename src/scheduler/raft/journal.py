"""The Raft log, the term and the vote, on a JournalStorage: changes are staged, then written in
one batch, then flushed; `durable_index` says how far the log would survive a crash.

Keys: `e` + big-endian index for entries, `m/...` for what there is one of. Every value starts with
the CRC-32 of key and body, so that a damaged value is an error and never an entry.
"""

from __future__ import annotations

import secrets
import struct
import zlib

import msgspec

from .errors import JournalError, SafetyViolation, WrongJournal
from .messages import KIND_NOTHING, Entry
from .storage import JournalStorage, Operation

FORMAT = 1
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
    """Whether this replica may vote and be counted."""

    voter: bool


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


class Journal:
    """Entries are held in memory too; compaction bounds them. The first element of `entries` is
    the base: the position before the first entry, whose command nobody needs any more."""

    def __init__(
        self, storage: JournalStorage, group_id: str, replica_id: str, *, bootstrap: bool
    ) -> None:
        self._storage = storage
        self._staged: list[Operation] = []
        self._suspects: list[Entry] = []
        self.commit_floor = 0  # nothing at or below may be truncated; the replica maintains it
        identity = self._load_meta("identity", Identity)
        if identity is None:
            self._create(group_id, replica_id, bootstrap)
        else:
            self._open(identity, group_id, replica_id)
        self.durable_index = self.last_index if identity is not None else 0

    # -- opening -----------------------------------------------------------------------------

    def _create(self, group_id: str, replica_id: str, bootstrap: bool) -> None:
        for key, _ in self._storage.scan(b""):
            raise JournalError(f"the journal has records ({key!r}) but no identity: it is damaged")
        self.identity = Identity(FORMAT, group_id, replica_id, secrets.randbits(63) | 1)
        self.ballot = Ballot(0, None)
        self.voter = bootstrap
        self.installing: Position | None = None
        self.entries = [Entry(KIND_NOTHING, 1, 0)]
        self.size_bytes = 0
        self._stage_meta("identity", self.identity)
        self._stage_meta("ballot", self.ballot)
        self._stage_meta("base", Position(1, 0))
        self._stage_meta("membership", Membership(bootstrap))

    def _open(self, identity: Identity, group_id: str, replica_id: str) -> None:
        if identity.format != FORMAT:
            raise JournalError(f"the journal's format is {identity.format}, this is {FORMAT}")
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
        key = _key(index)
        self._staged.append(("put", key, _sealed(key, _TERM.pack(term) + command)))

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
        self._staged.append(("delete_range", _key(old), _key(base.index + 1)))

    def begin_install(self, position: Position) -> None:
        """The whole log becomes `position`; the mark makes a restart finish the installation."""
        assert not self._suspects
        self.entries = [Entry(KIND_NOTHING, position.index, position.term)]
        self.size_bytes = 0
        self.durable_index = 0
        self.installing = position
        self._stage_meta("base", position)
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
