"""What the journal promises of disks: damage is an error, a cut tail is not, nothing is assumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tickmesh.scheduler.raft.errors import JournalError, SafetyViolation, WrongJournal
from tickmesh.scheduler.raft.journal import Ballot, Journal, Position
from tickmesh.scheduler.raft.members import Members, configured, encode
from tickmesh.scheduler.raft.messages import KIND_MEMBERS
from tickmesh.scheduler.raft.storage import JournalStorage, RocksStorage

from .clusters import MemoryStorage


def opened(storage: JournalStorage, group: str = "group", replica: str = "a") -> Journal:
    return Journal(storage, group, replica, configured("abc", {}), bootstrap=True)


def saved(journal: Journal) -> None:
    written = journal.write()
    journal.flush()
    journal.flushed(written)


def filled(storage: JournalStorage, count: int = 5, term: int = 1) -> Journal:
    """A journal with a ballot and `count` entries, from index 2 on, durable."""
    journal = opened(storage)
    journal.set_ballot(term, "a")
    for index in range(2, 2 + count):
        journal.add(b"\x00command %d" % index, index, term)
    saved(journal)
    return journal


def entry_key(index: int) -> bytes:
    return b"e" + index.to_bytes(8, "big")


# -- opening -----------------------------------------------------------------------------------


def test_everything_is_there_again() -> None:
    storage = MemoryStorage()
    before = filled(storage)
    after = opened(storage.after_crash())
    assert after.entries == before.entries
    assert after.ballot == Ballot(1, "a")
    assert after.identity == before.identity
    assert (after.size_bytes, after.durable_index) == (before.size_bytes, 6)


def test_what_was_not_flushed_is_forgotten_and_does_not_count() -> None:
    storage = MemoryStorage()
    journal = filled(storage)
    journal.add(b"\x00more", 7, 1)
    assert (journal.last_index, journal.durable_index) == (7, 6)
    written = journal.write()
    assert journal.durable_index == 6
    assert opened(storage.after_crash()).last_index == 6
    journal.flush()
    journal.flushed(written)
    assert journal.durable_index == 7
    assert opened(storage.after_crash()).last_index == 7


def test_a_damaged_entry_is_an_error_and_never_an_entry() -> None:
    storage = MemoryStorage()
    filled(storage)
    value = storage.data[entry_key(4)]
    for position in range(len(value)):
        damaged = bytearray(value)
        damaged[position] ^= 1
        storage.data[entry_key(4)] = bytes(damaged)
        with pytest.raises(JournalError, match="fails its checksum"):
            opened(storage)


@pytest.mark.parametrize("name", ["identity", "ballot", "base", "membership"])
def test_a_damaged_or_missing_record_is_an_error(name: str) -> None:
    key = b"m/" + name.encode()
    storage = MemoryStorage()
    filled(storage)
    value = storage.data[key]
    storage.data[key] = value[:-1] + bytes([value[-1] ^ 1])
    with pytest.raises(JournalError, match="fails its checksum"):
        opened(storage)
    del storage.data[key]
    with pytest.raises(JournalError, match="damaged"):
        opened(storage)


def test_entries_that_changed_places_are_an_error() -> None:
    storage = MemoryStorage()
    filled(storage)
    first, second = entry_key(3), entry_key(4)
    storage.data[first], storage.data[second] = storage.data[second], storage.data[first]
    with pytest.raises(JournalError, match="fails its checksum"):
        opened(storage)


@pytest.mark.parametrize("index", [2, 4])
def test_a_gap_is_an_error(index: int) -> None:
    storage = MemoryStorage()
    filled(storage)
    del storage.data[entry_key(index)]
    with pytest.raises(JournalError, match=f"lacks entry {index}"):
        opened(storage)


def test_another_groups_or_replicas_journal_is_refused() -> None:
    storage = MemoryStorage()
    filled(storage)
    with pytest.raises(WrongJournal, match="check the configured directory"):
        opened(storage, group="other")
    with pytest.raises(WrongJournal, match="belongs to replica 'a'"):
        opened(storage, replica="b")


def test_a_wiped_replica_is_another_one() -> None:
    assert opened(MemoryStorage()).identity != opened(MemoryStorage()).identity


# -- changing ----------------------------------------------------------------------------------


def test_entries_come_without_gaps() -> None:
    journal = filled(MemoryStorage())
    with pytest.raises(SafetyViolation, match="does not follow"):
        journal.add(b"\x00", 8, 1)


@pytest.mark.parametrize("ballot", [(1, "b"), (1, None), (0, None)])
def test_neither_term_nor_vote_is_taken_back(ballot: tuple[int, str | None]) -> None:
    journal = filled(MemoryStorage())
    with pytest.raises(SafetyViolation):
        journal.set_ballot(*ballot)


def test_a_repeated_append_neither_truncates_nor_writes() -> None:
    journal = filled(MemoryStorage())
    journal.suspect_from(1)
    journal.add(b"\x00command 2", 2, 1)
    journal.settle()
    assert journal.last_index == 6
    assert journal.durable_index == 6
    assert not journal.dirty


def test_a_conflict_truncates_from_there_on_also_on_disk() -> None:
    storage = MemoryStorage()
    journal = filled(storage)
    journal.suspect_from(2)
    journal.add(b"\x00other", 3, 2)
    journal.settle()
    assert [(entry.index, entry.term) for entry in journal.entries[1:]] == [(2, 1), (3, 2)]
    assert journal.durable_index == 2, "the replaced entry is not durable yet"
    saved(journal)
    found = opened(storage.after_crash())
    assert found.entries == journal.entries
    assert found.size_bytes == journal.size_bytes


def test_what_is_committed_is_never_truncated() -> None:
    journal = filled(MemoryStorage())
    journal.commit_floor = 3
    journal.suspect_from(2)
    with pytest.raises(SafetyViolation, match="3 is committed"):
        journal.add(b"\x00other", 3, 2)


def test_compaction_keeps_the_position_and_frees_the_disk() -> None:
    storage = MemoryStorage()
    journal = filled(storage, 10)
    journal.compact(8)
    saved(journal)
    found = opened(storage.after_crash())
    assert found.base == Position(8, 1)
    assert [entry.index for entry in found.entries[1:]] == [9, 10, 11]
    assert found.size_bytes == journal.size_bytes == sum(len(e.command) for e in found.entries[1:])
    assert sum(key.startswith(b"e") for key in storage.data) == 3


def test_an_installation_is_marked_until_it_has_ended() -> None:
    storage = MemoryStorage()
    journal = filled(storage)
    journal.begin_install(Position(100, 4))
    assert journal.durable_index == 0, "nothing may be acknowledged yet"
    saved(journal)
    assert journal.durable_index == 100
    restarted = storage.after_crash()
    found = opened(restarted)
    assert (found.installing, found.base, found.last_index) == (
        Position(100, 4),
        Position(100, 4),
        100,
    )
    found.end_install()
    saved(found)
    assert opened(restarted.after_crash()).installing is None


# -- on RocksDB --------------------------------------------------------------------------------


# -- the list of members -------------------------------------------------------------------------


def listed(number: int, names: str) -> bytes:
    return KIND_MEMBERS + encode(Members(number, configured(names, {}).replicas))


def names_of(members: Members) -> str:
    return "".join(members.ids)


def test_a_list_is_in_force_from_its_append_and_is_known_again_from_the_disk_alone() -> None:
    storage = MemoryStorage()
    journal = filled(storage)
    assert (names_of(journal.members), journal.members_index) == ("abc", 0)
    journal.add(listed(1, "abcd"), 7, 1)
    assert (names_of(journal.members), journal.members_index) == ("abcd", 7)
    assert opened(storage.after_crash()).members.number == 0, "it was never flushed"
    saved(journal)
    found = opened(storage.after_crash())
    assert (names_of(found.members), found.members_index) == ("abcd", 7)
    assert [each.number for each in found.lists_from(6)] == [0, 1]
    assert [each.number for each in found.lists_from(7)] == [1]


def test_a_list_is_taken_back_when_it_is_truncated_also_on_disk() -> None:
    storage = MemoryStorage()
    journal = filled(storage)
    journal.add(listed(1, "abcd"), 7, 1)
    journal.add(listed(2, "bcd"), 8, 1)
    saved(journal)
    journal.suspect_from(7)  # the entries from 8 on
    journal.settle()
    assert names_of(journal.members) == "bcd", "what nobody contradicts stays"
    journal.suspect_from(7)
    journal.add(b"\x00another", 8, 2)
    journal.settle()
    assert names_of(journal.members) == "abcd"
    saved(journal)
    assert names_of(opened(storage.after_crash()).members) == "abcd"


def test_compaction_keeps_the_list_in_force_at_the_base() -> None:
    storage = MemoryStorage()
    journal = filled(storage)
    journal.add(listed(1, "abcd"), 7, 1)
    journal.add(listed(2, "bcd"), 8, 1)
    saved(journal)
    for base, numbers in ((6, [0, 1, 2]), (7, [1, 2]), (8, [2])):
        journal.compact(base)
        saved(journal)
        found = opened(storage.after_crash())
        assert [each.number for each in found.lists_from(base)] == numbers
        assert names_of(found.members) == "bcd"


def test_an_installation_brings_its_list() -> None:
    storage = MemoryStorage()
    journal = filled(storage)
    journal.add(listed(1, "abcd"), 7, 1)
    journal.begin_install(Position(50, 3), Members(4, configured("bde", {}).replicas))
    saved(journal)
    found = opened(storage.after_crash())
    assert (names_of(found.members), found.members.number) == ("bde", 4)
    assert found.installing == Position(50, 3)


def test_the_configuration_says_who_a_new_group_is_and_later_only_where_they_are() -> None:
    storage = MemoryStorage()
    saved(Journal(storage, "group", "a", configured("abc", {"b": "one"}), bootstrap=True))
    moved = configured("abcd", {"b": "other"})
    journal = Journal(storage.after_crash(), "group", "a", moved, bootstrap=False)
    assert names_of(journal.members) == "abc"
    b = journal.members.find("b")
    assert b is not None and b.address == "other"


def test_a_journal_of_an_older_program_takes_the_configured_list() -> None:
    storage = MemoryStorage()
    filled(storage)
    del storage.data[b"m/members"]
    journal = opened(storage)
    assert names_of(journal.members) == "abc"
    saved(journal)
    assert b"m/members" in storage.data


def test_only_a_journal_whose_list_has_changed_is_closed_to_older_programs() -> None:
    storage = MemoryStorage()
    journal = filled(storage)
    assert journal.identity.format == 1
    journal.add(listed(1, "abcd"), 7, 1)
    saved(journal)
    assert opened(storage.after_crash()).identity.format == 2
    del storage.durable[b"m/members"]
    with pytest.raises(JournalError, match="lacks its list"):
        opened(storage.after_crash())


def test_an_entry_that_is_no_list_is_an_error() -> None:
    journal = filled(MemoryStorage())
    with pytest.raises(JournalError, match="no list of replicas"):
        journal.add(KIND_MEMBERS + b"rubbish", 7, 1)


def write_ahead_log(directory: Path) -> Path:
    """The log that holds what was written last."""
    return max(directory.glob("*.log"), key=lambda path: (path.stat().st_size, path.name))


def crashed(directory: Path, target: Path) -> Path:
    """The files as they are while the database is open: what a crash leaves."""
    shutil.copytree(directory, target)
    return target


def test_a_half_written_tail_is_dropped_and_the_rest_is_whole(tmp_path: Path) -> None:
    storage = RocksStorage(tmp_path / "journal")
    filled(storage, 3)
    complete = write_ahead_log(tmp_path / "journal").stat().st_size
    journal = opened(storage)
    journal.add(b"\x00" + b"the tail, which no fsync has covered" * 50, 5, 1)
    journal.set_ballot(2, "b")
    journal.write()
    storage.flush()
    size = write_ahead_log(tmp_path / "journal").stat().st_size
    assert size > complete
    for cut in (complete, complete + 1, complete + 7, (complete + size) // 2, size - 1):
        copy = crashed(tmp_path / "journal", tmp_path / f"cut-{cut}")
        with write_ahead_log(copy).open("r+b") as log:
            log.truncate(cut)
        found_storage = RocksStorage(copy)
        found = opened(found_storage)
        assert (found.last_index, found.ballot) == (4, Ballot(1, "a")), "a batch is atomic"
        found.add(b"\x00again", 5, 1)
        saved(found)
        found_storage.close()
        again = RocksStorage(copy)
        assert opened(again).last_index == 5
        again.close()
    storage.close()


def test_damage_inside_the_log_is_an_error_and_not_a_shorter_log(tmp_path: Path) -> None:
    storage = RocksStorage(tmp_path / "journal")
    journal = opened(storage)
    for index in range(2, 40):
        journal.add(b"\x00" + bytes([index]) * 500, index, 1)
        saved(journal)
    size = write_ahead_log(tmp_path / "journal").stat().st_size
    for where in (size // 4, size // 2):
        copy = crashed(tmp_path / "journal", tmp_path / f"damaged-{where}")
        with write_ahead_log(copy).open("r+b") as log:
            log.seek(where)
            byte = log.read(1)
            log.seek(where)
            log.write(bytes([byte[0] ^ 0xFF]))
        with pytest.raises(JournalError, match="wipe this replica's directory"):
            opened(RocksStorage(copy))
    storage.close()


def test_a_directory_in_use_is_an_error(tmp_path: Path) -> None:
    storage = RocksStorage(tmp_path / "journal")
    with pytest.raises(JournalError, match="cannot open the journal"):
        RocksStorage(tmp_path / "journal")
    storage.close()
