"""The recorder: both streams to their end, whatever is written to them, within its limit."""

import fcntl
import functools
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tickmesh.executor import logs
from tickmesh.executor.watch import Watcher
from tickmesh.mesh import output

from . import machines

DEADLINE_S = 20.0
MIB = 1024 * 1024
MS = 1_000_000


@dataclass
class Recording:
    """A recorder at work, as a shim starts it: pipes as descriptors 3 and 4, told by closing 5."""

    output: Path
    sandbox: Path
    process: subprocess.Popen[bytes]
    stdout: int
    stderr: int

    def end(self) -> None:
        """Closes both pipes and waits until the recorder has written all."""
        for pipe in (self.stdout, self.stderr):
            if pipe >= 0:
                os.close(pipe)
        self.stdout = self.stderr = -1
        assert self.process.wait(DEADLINE_S) == 0
        assert not (self.sandbox / "ended").exists()


Record = Callable[[Path, int], Recording]

# The shell moves the descriptors to where the recorder expects them, then becomes it.
_START = 'exec 3<&"$1" 4<&"$2" 5>&"$3"; eval "exec $1<&- $2<&- $3>&-"; shift 3; exec "$@"'


@pytest.fixture(params=machines.MACHINES)
def record(request: pytest.FixtureRequest) -> Record:
    return functools.partial(_record, machines.command("recorder", request.param))


def _record(program: list[str], output: Path, bytes_max: int) -> Recording:
    sandbox = output.with_name(f"{output.name}-sandbox")
    (sandbox / "io").mkdir(parents=True)
    (sandbox / "output").symlink_to(output)
    for name in ("ended", "io/status"):
        os.mkfifo(sandbox / name)
    pipes = [os.pipe() for _ in range(3)]
    # Away from 3, 4 and 5 themselves, which the shell is about to make of them.
    ours = (pipes[0][0], pipes[1][0], pipes[2][1])
    passed = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in ours]
    command = ["bash", "-c", _START, "-", *map(str, passed)]
    command += [*program, str(sandbox), str(bytes_max)]
    process = subprocess.Popen(command, pass_fds=passed)
    for descriptor in (*passed, *ours):
        os.close(descriptor)
    assert os.read(pipes[2][0], 1) == b""  # closed: it is ready
    os.close(pipes[2][0])
    return Recording(output, sandbox, process, pipes[0][1], pipes[1][1])


@pytest.fixture
async def watcher() -> AsyncIterator[Watcher]:
    opened = Watcher()
    yield opened
    opened.close()


async def contents(
    directory: Path, watcher: Watcher, cursor: str = ""
) -> tuple[dict[int, bytes], dict[int, int]]:
    """What is kept of each stream, and how much was dropped of it."""
    kept, dropped = {logs.STDOUT: b"", logs.STDERR: b""}, {logs.STDOUT: 0, logs.STDERR: 0}
    async for chunk in logs.read(directory, cursor, False, watcher):
        kept[chunk.stream] += chunk.data
        dropped[chunk.stream] += chunk.dropped_bytes
    return kept, dropped


def write(pipe: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


def sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


def kept_bytes(directory: Path) -> int:
    return sum(sizes(directory).get(name, 0) for name in ("stdout", "stdout.500"))


def mount(*arguments: str, program: tuple[str, ...] = ("mount",)) -> None:
    subprocess.run([*program, *arguments], check=True, timeout=DEADLINE_S)


def numbered(bytes_min: int) -> Iterator[bytes]:
    count = 0
    while count * 16 < bytes_min:
        yield b"%015d\n" % count
        count += 1


async def test_what_fits_is_kept_whole(record: Record, tmp_path: Path, watcher: Watcher) -> None:
    recording = record(tmp_path, 1000)
    data = random.Random(1).randbytes(1000)
    write(recording.stdout, data)
    write(recording.stderr, b"trouble")
    recording.end()
    kept, dropped = await contents(tmp_path, watcher)
    assert kept == {logs.STDOUT: data, logs.STDERR: b"trouble"}
    assert dropped == {logs.STDOUT: 0, logs.STDERR: 0}
    assert sorted(sizes(tmp_path)) == [
        "end", "stderr", "stderr.times", "stdout", "stdout.500", "stdout.500.times", "stdout.times",
    ]  # fmt: skip


@pytest.mark.parametrize("bytes_max", [0, 1, 5, 1000, 200_001, MIB])
async def test_of_a_flood_the_first_and_the_last_half_are_kept(
    record: Record, tmp_path: Path, watcher: Watcher, bytes_max: int
) -> None:
    recording = record(tmp_path, bytes_max)
    data = b"".join(numbered(4 * MIB))
    write(recording.stdout, data)
    recording.end()
    kept, dropped = await contents(tmp_path, watcher)
    last = bytes_max // 2
    assert kept[logs.STDOUT] == data[: bytes_max - last] + data[len(data) - last :]
    assert dropped[logs.STDOUT] == len(data) - bytes_max
    assert logs.written(tmp_path) == logs.Written(len(data), len(data) - bytes_max)
    archived = output.unpack(output.pack(logs.archived(tmp_path, "x")), "x")
    chunks = [chunk async for chunk in logs.read(tmp_path, "", False, watcher)]
    assert list(output.archived_chunks(archived, "")) == chunks
    assert sum(sizes(tmp_path).values()) <= bytes_max + bytes_max // 4 + 3 * 65536


async def test_each_byte_has_the_time_at_which_it_was_read(
    record: Record, tmp_path: Path, watcher: Watcher
) -> None:
    began_ns = time.time_ns()
    recording = record(tmp_path, 1000)
    written_ns = []
    with watcher.changes(tmp_path) as changed:
        for number in range(5):
            written_ns.append(time.time_ns())
            write(recording.stdout, b"%04d\n" % number * 40)  # 200 bytes: the last are in the end
            while kept_bytes(tmp_path) < 200 * (number + 1):
                await changed.wait()
                changed.clear()
    recording.end()
    ended_ns = time.time_ns()
    read_ns: dict[int, int] = {}
    offset = 0
    async for chunk in logs.read(tmp_path, "", False, watcher):
        assert chunk.times and chunk.times[0][0] == 0
        read_ns |= {offset + at: instant for at, instant in chunk.times}
        offset += len(chunk.data)
    assert offset == 1000
    for number, instant in enumerate(written_ns):
        seen = max((at, read) for at, read in read_ns.items() if at <= 200 * number)[1]
        # Reads of one millisecond share a time, that of the first.
        later = [*written_ns, ended_ns][number + 1]
        assert instant - 2 * MS <= seen <= later and seen >= began_ns


async def test_byte_by_byte_the_times_are_fewer_than_the_bytes(
    record: Record, tmp_path: Path, watcher: Watcher
) -> None:
    recording = record(tmp_path, MIB)
    began_ns = time.time_ns()
    for _ in range(20_000):
        os.write(recording.stdout, b"x")
    recording.end()
    took_ms = (time.time_ns() - began_ns) / MS
    assert sizes(tmp_path)["stdout"] == 20_000
    assert sizes(tmp_path)["stdout.times"] <= 16 * (took_ms + 1)


async def test_a_cursor_is_good_before_and_after_what_it_points_at_was_dropped(
    record: Record, tmp_path: Path, watcher: Watcher
) -> None:
    recording = record(tmp_path, 200_000)
    data = b"".join(numbered(2 * MIB))
    seen = bytearray()
    lost = 0
    cursor = ""
    for start in range(0, len(data), 150_000):
        write(recording.stdout, data[start : start + 150_000])
        async for chunk in logs.read(tmp_path, cursor, False, watcher):
            lost += chunk.dropped_bytes
            offset = len(seen) + lost
            assert chunk.data == data[offset : offset + len(chunk.data)]
            seen += chunk.data
            cursor = chunk.cursor
    recording.end()
    async for chunk in logs.read(tmp_path, cursor, True, watcher):
        lost += chunk.dropped_bytes
        seen += chunk.data
    assert len(seen) + lost == len(data)
    assert seen[-100_000:] == data[-100_000:]


async def test_a_recorder_that_is_killed_leaves_what_it_wrote(
    record: Record, tmp_path: Path, watcher: Watcher
) -> None:
    recording = record(tmp_path, 1000)
    with watcher.changes(tmp_path) as changed:
        write(recording.stdout, b"x" * 800)
        while not (tmp_path / "stdout.500").exists():
            await changed.wait()
            changed.clear()
        while (tmp_path / "stdout.500").stat().st_size < 300:
            await changed.wait()
            changed.clear()
    recording.process.kill()
    recording.process.wait(DEADLINE_S)
    logs.close(tmp_path)
    kept, _ = await contents(tmp_path, watcher)
    assert kept[logs.STDOUT] == b"x" * 800
    os.close(recording.stdout)
    os.close(recording.stderr)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
async def test_a_full_disk_costs_the_output_and_blocks_nobody(
    record: Record, tmp_path: Path, watcher: Watcher
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small))
    try:
        output = small / "output"
        output.mkdir()
        recording = record(output, 8 * MIB)
        write(recording.stdout, bytes(2 * MIB))  # returns: it is read
        mount("-o", "remount,size=1m", str(small))
        write(recording.stdout, b"the end")
        recording.end()
        kept, dropped = await contents(output, watcher)
        assert kept[logs.STDOUT].endswith(b"the end")
        assert len(kept[logs.STDOUT]) + dropped[logs.STDOUT] == 2 * MIB + 7
    finally:
        mount("umount", str(small), program=())


@pytest.mark.parametrize("status", [None, 0, 137 << 8, 9])
def test_the_status_that_the_gate_told_is_kept(
    record: Record, tmp_path: Path, status: int | None
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    recording = record(output, MIB)
    gate_end = os.open(recording.sandbox / "io" / "status", os.O_WRONLY | os.O_NONBLOCK)
    if status is not None:
        os.write(gate_end, status.to_bytes(4, "little"))
    os.close(gate_end)
    write(recording.stdout, b"x")
    recording.end()
    assert logs.written(output).status == status


def test_a_file_is_made_for_what_is_written_alone(record: Record, tmp_path: Path) -> None:
    silent, one = tmp_path / "silent", tmp_path / "one"
    for directory in (silent, one):
        directory.mkdir()
    record(silent, MIB).end()
    assert sizes(silent).keys() == {"end"}
    recording = record(one, MIB)
    write(recording.stderr, b"x")
    recording.end()
    assert sizes(one).keys() == {"end", "stderr", "stderr.times"}
