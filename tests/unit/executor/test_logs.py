"""Output files, read from a cursor, while a recorder writes them."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tickmesh.executor import logs
from tickmesh.executor.watch import Watcher
from tickmesh.mesh import output


@pytest.fixture
async def watcher() -> AsyncIterator[Watcher]:
    opened = Watcher()
    yield opened
    opened.close()


def write_output(directory: Path, stdout: bytes, stderr: bytes, end: str | None) -> None:
    (directory / "stdout").write_bytes(stdout)
    (directory / "stderr").write_bytes(stderr)
    if end is not None:
        (directory / "end").write_text(end)


async def all_chunks(
    directory: Path, watcher: Watcher, cursor: str = "", follow: bool = False
) -> list[logs.Chunk]:
    return [chunk async for chunk in logs.read(directory, cursor, follow, watcher)]


async def test_both_streams_come_whole_and_in_bounded_pieces(
    tmp_path: Path, watcher: Watcher
) -> None:
    long = bytes(range(256)) * 1024
    write_output(tmp_path, long, b"trouble\n", f"{len(long)} 8\n")
    chunks = await all_chunks(tmp_path, watcher)
    assert b"".join(c.data for c in chunks if c.stream == logs.STDOUT) == long
    assert b"".join(c.data for c in chunks if c.stream == logs.STDERR) == b"trouble\n"
    assert max(len(c.data) for c in chunks) == output.CHUNK_BYTES_MAX
    assert not any(c.truncated for c in chunks)
    # The short stream does not wait for the long one's end.
    assert [c.stream for c in chunks[:2]] == [logs.STDOUT, logs.STDERR]


async def test_every_cursor_resumes_exactly_behind_its_chunk(
    tmp_path: Path, watcher: Watcher
) -> None:
    write_output(tmp_path, b"o" * 150_000, b"e" * 70_000, "400000 70000 150000\n")
    (tmp_path / "stdout.240000").write_bytes(b"t" * 160_000)
    chunks = await all_chunks(tmp_path, watcher)
    for index, chunk in enumerate(chunks):
        rest = await all_chunks(tmp_path, watcher, chunk.cursor)
        for stream in (logs.STDOUT, logs.STDERR):
            expected = [
                (c.data, c.dropped_bytes) for c in chunks[index + 1 :] if c.stream == stream
            ]
            assert [(c.data, c.dropped_bytes) for c in rest if c.stream == stream] == expected


async def test_what_was_dropped_is_told_once_between_head_and_tail(
    tmp_path: Path, watcher: Watcher
) -> None:
    write_output(tmp_path, b"head", b"all", "9000 3 5\n")
    (tmp_path / "stdout.8990").write_bytes(b"0123")  # of which nothing is in the last five
    (tmp_path / "stdout.8994").write_bytes(b"456789")
    chunks = await all_chunks(tmp_path, watcher, follow=True)
    assert [(c.stream, c.data, c.dropped_bytes) for c in chunks] == [
        (logs.STDOUT, b"head", 0),
        (logs.STDERR, b"all", 0),
        (logs.STDOUT, b"56789", 8991),
    ]
    assert [c.truncated for c in chunks] == [False, False, True]
    assert await all_chunks(tmp_path, watcher, chunks[-1].cursor, follow=True) == []


async def test_a_loss_at_the_very_end_is_told_once(tmp_path: Path, watcher: Watcher) -> None:
    write_output(tmp_path, b"kept", b"all", "9000 3\n")
    chunks = await all_chunks(tmp_path, watcher, follow=True)
    assert [(c.data, c.dropped_bytes) for c in chunks] == [(b"kept", 0), (b"all", 0), (b"", 8996)]
    assert await all_chunks(tmp_path, watcher, chunks[-1].cursor, follow=True) == []


async def test_a_follower_that_falls_behind_goes_on_with_what_is_kept(
    tmp_path: Path, watcher: Watcher
) -> None:
    write_output(tmp_path, b"head", b"", None)
    (tmp_path / "stdout.4").write_bytes(b"first")
    stream = logs.read(tmp_path, "", True, watcher)
    assert (await anext(stream)).data == b"head"
    assert (await anext(stream)).data == b"first"
    later = asyncio.ensure_future(anext(stream))
    with watcher.changes(tmp_path) as changed:
        (tmp_path / "stdout.1000").write_bytes(b"later")
        await changed.wait()
    (tmp_path / "stdout.4").unlink()
    chunk = await later
    assert (chunk.data, chunk.dropped_bytes, chunk.cursor) == (b"later", 991, "o2.1005.0")
    await stream.aclose()


async def test_a_lost_recorders_output_ends_where_it_is(tmp_path: Path, watcher: Watcher) -> None:
    write_output(tmp_path, b"head", b"err", None)
    (tmp_path / "stdout.100").write_bytes(b"tail")
    logs.close(tmp_path)
    assert (tmp_path / "end").read_text() == "104 3\n"
    assert logs.written(tmp_path) == logs.Written(107, 96)
    chunks = await all_chunks(tmp_path, watcher, follow=True)
    assert [(c.data, c.dropped_bytes) for c in chunks] == [(b"head", 0), (b"err", 0), (b"tail", 96)]


def test_how_much_is_in_an_output_that_is_not_whole_is_not_known(tmp_path: Path) -> None:
    write_output(tmp_path, b"so far", b"", None)
    assert logs.written(tmp_path).output_bytes is None


async def test_without_follow_it_ends_at_what_is_there(tmp_path: Path, watcher: Watcher) -> None:
    assert await all_chunks(tmp_path, watcher) == []
    write_output(tmp_path, b"so far", b"", None)
    (chunk,) = await all_chunks(tmp_path, watcher)
    assert (chunk.data, chunk.truncated) == (b"so far", False)


async def test_follow_gives_what_is_written_when_it_is_written(
    tmp_path: Path, watcher: Watcher
) -> None:
    stream = logs.read(tmp_path, "", True, watcher)
    first = asyncio.ensure_future(anext(stream))
    with watcher.changes(tmp_path) as changed:
        write_output(tmp_path, b"one", b"", None)
        await changed.wait()
    assert (await first).data == b"one"
    second = asyncio.ensure_future(anext(stream))
    with (tmp_path / "stdout").open("ab") as file:
        file.write(b"two")
    assert (await second).data == b"two"
    with (tmp_path / "stderr").open("ab") as file:
        file.write(b"late")
    (tmp_path / "end.new").write_text("6 4\n")
    (tmp_path / "end.new").rename(tmp_path / "end")
    assert [c.data async for c in stream] == [b"late"]


async def test_follow_ends_when_the_output_is_discarded(tmp_path: Path, watcher: Watcher) -> None:
    directory = tmp_path / "attempt"
    directory.mkdir()
    write_output(directory, b"one", b"", None)
    stream = logs.read(directory, "", True, watcher)
    assert (await anext(stream)).data == b"one"
    rest = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    assert await rest is None


@pytest.mark.parametrize(
    "cursor",
    ["x", "o1.1-.2", "o1.-1-.0-", "o1.1-.2-\n", "o2.1-.2-", "o1.1x.2-", "o1." + "9" * 40 + "-.0-"],
)
async def test_a_foreign_cursor_is_refused(tmp_path: Path, watcher: Watcher, cursor: str) -> None:
    write_output(tmp_path, b"abc", b"def", "3 3\n")
    with pytest.raises(ValueError, match="not a cursor"):
        await all_chunks(tmp_path, watcher, cursor)


async def test_a_cursor_beyond_the_end_is_refused(tmp_path: Path, watcher: Watcher) -> None:
    write_output(tmp_path, b"abc", b"def", "3 3\n")
    with pytest.raises(ValueError, match=r"beyond the end of stderr \(3 bytes\)"):
        await all_chunks(tmp_path, watcher, "o2.3.4")


async def test_no_output_at_all_is_said(tmp_path: Path, watcher: Watcher) -> None:
    with pytest.raises(FileNotFoundError):
        await all_chunks(tmp_path / "none", watcher)


def write_times(path: Path, *pairs: tuple[int, int]) -> None:
    data = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
    path.with_name(f"{path.name}.times").write_bytes(data + b"half")  # one is being written


async def test_chunks_tell_when_their_bytes_were_read(tmp_path: Path, watcher: Watcher) -> None:
    write_output(tmp_path, b"headhead", b"old", "1000 3 6\n")
    write_times(tmp_path / "stdout", (0, 100), (4, 200))
    (tmp_path / "stdout.990").write_bytes(b"0123456789")
    write_times(tmp_path / "stdout.990", (990, 300), (993, 400), (996, 500))
    chunks = await all_chunks(tmp_path, watcher)
    assert [(c.data, c.times) for c in chunks] == [
        (b"headhead", ((0, 100), (4, 200))),
        (b"old", ()),  # of a recorder that knew of no times
        (b"456789", ((0, 400), (2, 500))),
    ]
    (rest,) = await all_chunks(tmp_path, watcher, "o2.998.3")
    assert (rest.data, rest.times) == (b"89", ((0, 500),))


async def test_a_chunk_with_too_many_times_is_cut(
    tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "CHUNK_TIMES_MAX", 3)
    write_output(tmp_path, b"0123456789", b"", "10 0\n")
    write_times(tmp_path / "stdout", *((at, 100 + at) for at in range(10)))
    chunks = await all_chunks(tmp_path, watcher)
    assert [c.data for c in chunks] == [b"012", b"345", b"678", b"9"]
    assert [instant for c in chunks for _, instant in c.times] == list(range(100, 110))


async def test_what_is_archived_reads_as_the_files_do(tmp_path: Path, watcher: Watcher) -> None:
    write_output(tmp_path, b"o" * 150_000, b"e" * 70_000, "400000 70000 150000\n")
    write_times(tmp_path / "stdout", *((at, at) for at in range(0, 150_000, 7_000)))
    (tmp_path / "stdout.240000").write_bytes(b"t" * 160_000)
    write_times(tmp_path / "stdout.240000", (240_000, 7), (300_000, 8))
    name = "2026-01-31/acme/report/01/1"
    whole = output.unpack(output.pack(logs.archived(tmp_path, name)), name)
    chunks = await all_chunks(tmp_path, watcher)
    assert list(output.archived_chunks(whole, "")) == chunks
    for chunk in chunks:
        rest = await all_chunks(tmp_path, watcher, chunk.cursor)
        assert list(output.archived_chunks(whole, chunk.cursor)) == rest
    with pytest.raises(ValueError, match="not a cursor"):
        output.archived_chunks(whole, "x")
    with pytest.raises(ValueError, match="beyond the end of stdout"):
        output.archived_chunks(whole, "o2.400001.0")


def test_any_damage_of_what_is_archived_is_found(tmp_path: Path) -> None:
    write_output(tmp_path, b"some words", b"", "10 0\n")
    name = "2026-01-31/acme/report/01/1"
    data = output.pack(logs.archived(tmp_path, name))
    whole = output.unpack(data, name)
    missed: list[int] = []
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        with contextlib.suppress(output.DamagedOutput):  # the frame has bits that nobody reads
            assert output.unpack(bytes(damaged), name) == whole
            missed.append(place)
    assert len(missed) <= 1
    for size in range(len(data)):
        with pytest.raises(output.DamagedOutput):
            output.unpack(data[:size], name)
    with pytest.raises(output.DamagedOutput, match="is that of"):
        output.unpack(data, name + "0")


def test_an_output_that_is_not_whole_is_not_archived(tmp_path: Path) -> None:
    write_output(tmp_path, b"so far", b"", None)
    with pytest.raises(FileNotFoundError):
        logs.archived(tmp_path, "x")
