"""The gate's program, on each machine: in a root of its own, process 1 of its own pid namespace."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tickmesh.executor import gate
from tickmesh.executor.errors import StartError, StartReason
from tickmesh.executor.gate.exchange import STATUS, Exchange
from tickmesh.mesh.clock import SystemClock

from . import machines

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces and changes its root")

DEADLINE_S = 60.0
DIRECTORIES = ("usr", "bin", "lib", "lib64", "proc", "tmp")
# Arguments: the root, then what runs there. The mounts are gone with the namespace.
ENTER = """\
set -e
root=$1
shift
for name in usr bin lib lib64; do
  [ ! -d "/$name" ] || mount --rbind "/$name" "$root/$name"
done
mount -t proc proc "$root/proc"
exec chroot "$root" "$@"
"""
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child")


@dataclass
class Gate:
    """One gate that runs, and the executor's side of it."""

    exchange: Exchange
    process: subprocess.Popen[bytes]
    told: int
    """Read end of what it tells the recorder."""
    output: bytes = field(default=b"", init=False)

    async def ended(self) -> int:
        """Waits for its end: the exit code."""
        self.output = (await asyncio.to_thread(self.process.communicate, None, DEADLINE_S))[0]
        return self.process.returncode

    @property
    def status(self) -> int | None:
        """The command's wait status, as it was told."""
        told = os.read(self.told, 16)
        return int.from_bytes(told, "little") if told else None

    def signal(self, number: int) -> None:
        """Sends process 1 of the namespace a signal, as a runtime does."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        os.kill(int(children.split()[0]), number)


def _enter(root: Path, command: list[str]) -> subprocess.Popen[bytes]:
    command = [*NAMESPACES, "sh", "-c", ENTER, "enter", str(root), *command]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


@pytest.fixture(params=machines.MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Start:
    """Starts gates of one machine and ends them."""

    def __init__(self, directory: Path, machine: str) -> None:
        self._directory = directory
        self._machine = machine
        self.started: list[Gate] = []

    async def __call__(self, payload: bytes = b"") -> Gate:
        root = self._directory / "root"
        for name in DIRECTORIES:
            (root / name).mkdir(parents=True)
        own = root / gate.DIRECTORY[1:]
        exchange = Exchange(own / "io", SystemClock())
        exchange.make(payload)
        command = []
        for path in machines.command("gate", self._machine):
            shutil.copy(path, own)
            command.append(f"{gate.DIRECTORY}/{Path(path).name}")
        told = os.open(own / "io" / STATUS, os.O_RDONLY | os.O_NONBLOCK)
        exchange.connect()
        self.started.append(Gate(exchange, _enter(root, command), told))
        await exchange.waiting()
        return self.started[-1]

    def close(self) -> None:
        for each in self.started:
            each.process.kill()
            each.process.wait(DEADLINE_S)
            os.close(each.told)
            if each.process.stdout:
                each.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path, machine: str) -> Iterator[Start]:
    starter = Start(tmp_path, machine)
    yield starter
    starter.close()


def shell(script: str, *arguments: str, **variables: str) -> bytes:
    return gate.encode(["/bin/sh", "-c", script, "sh", *arguments], variables, "/tmp")


async def test_the_command_has_arguments_environment_directory_and_payload(start: Start) -> None:
    waits = await start(b"the payload")
    script = 'echo "$1|$2|$NAME|$(pwd)|$(cat)"; exit 7'
    await waits.exchange.open(shell(script, "a b", "", NAME="ü"))
    assert await waits.ended() == 7
    assert waits.output.decode() == "a b||ü|/tmp|the payload\n"
    assert waits.status == 7 << 8


async def test_the_largest_message_passes(start: Start) -> None:
    waits = await start()
    await waits.exchange.open(shell('echo "$#" "${#9}"', *["x" * 100_000] * 9))
    assert await waits.ended() == 0
    assert waits.output == b"9 100000\n"


@pytest.mark.parametrize(
    ("arguments", "directory", "reason"),
    [
        (["/nothing/here"], "/", StartReason.COMMAND_NOT_FOUND),
        (["/tmp"], "/", StartReason.COMMAND_NOT_EXECUTABLE),
        (["/bin/true"], "/nothing", StartReason.WORKING_DIRECTORY_INVALID),
    ],
)
async def test_what_cannot_be_started_says_why(
    start: Start, arguments: list[str], directory: str, reason: StartReason
) -> None:
    waits = await start()
    with pytest.raises(StartError) as caught:
        await waits.exchange.open(gate.encode(arguments, {}, directory))
    assert caught.value.reason is reason
    assert await waits.ended() == gate.EXIT_NOT_STARTED


async def test_a_gate_that_is_closed_ends(start: Start) -> None:
    waits = await start()
    waits.exchange.close()
    assert await waits.ended() == gate.EXIT_CLOSED


async def test_a_gate_that_waits_ends_when_it_is_told_to(start: Start) -> None:
    waits = await start()
    waits.signal(signal.SIGTERM)
    assert await waits.ended() == 128 + signal.SIGTERM


async def test_a_signal_reaches_the_command_and_what_ended_it_is_told(start: Start) -> None:
    waits = await start()
    await waits.exchange.open(gate.encode(["/bin/sleep", "600"], {}, "/"))
    waits.signal(signal.SIGTERM)
    assert await waits.ended() == 128 + signal.SIGTERM
    assert waits.status == signal.SIGTERM


async def test_orphans_are_reaped(start: Start) -> None:
    waits = await start()
    # The subshell's child outlives it and becomes process 1's; it is gone from /proc once reaped.
    script = (
        "orphan=$( (sleep 0 >/dev/null & echo $!) ); while [ -e /proc/$orphan ]; do :; done; echo x"
    )
    await waits.exchange.open(shell(script))
    assert await waits.ended() == 0
    assert waits.output == b"x\n"


async def test_the_command_has_nothing_of_the_gate_open(start: Start) -> None:
    waits = await start()
    await waits.exchange.open(shell("readlink /proc/$$/fd/* || true"))
    assert await waits.ended() == 0
    payload, output, _ = waits.output.decode().splitlines()  # the third is our standard error
    assert payload == gate.PAYLOAD and output.startswith("pipe:")
