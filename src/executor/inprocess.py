"""A Runtime without containers: for measuring and testing the mesh.

A sandbox's command is a little script, interpreted here: steps divided by ";", each a word and its
argument, as ("print", "hello", ";", "sleep", "0.5", ";", "exit", "3").

    true            nothing; so is an empty command
    print TEXT      a line on stdout
    error TEXT      a line on stderr
    env NAME        a variable's value, as a line on stdout
    payload         the payload, on stdout
    sleep SECONDS   how long this takes; without it a command ends at once
    ignore SIGNAL   this number's signal does nothing from here on
    exit CODE       ends it
    fail ATTEMPTS   ends it with 1, in its first so many attempts
    signal SIGNAL   ends it as this number's signal would
    oom             ends it as the kernel does for want of memory

Another word cannot be started, as a file that is not there. A script without a word that writes has
no output files either: making them would be most of what it costs. tests/conformance has the same
words as a program in a real image.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import signal as signals
import struct
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

from ..mesh.clock import Clock
from . import archive, logs
from .errors import (
    GateGone,
    ImageError,
    ImageReason,
    SandboxError,
    SpareUnfit,
    StartError,
    StartReason,
)
from .sandbox import ATTEMPT_ID, Exit, Work, mould

WORDS = frozenset(
    ["true", "print", "error", "env", "payload", "sleep", "ignore", "exit", "fail", "signal", "oom"]
)
WRITES = frozenset(["print", "error", "env", "payload"])
SIGNAL_BASE = 128
_TIME = struct.Struct("<QQ")
"""As the recorder writes when something was read; see logs.py."""


@dataclass(frozen=True, slots=True)
class Image:
    """Implements sandbox.ImageInfo."""

    reference: str
    digest: str
    size_bytes: int


class InProcessRuntime:
    """Implements sandbox.Runtime."""

    def __init__(self, directory: Path, clock: Clock, any_image: bool = True) -> None:
        """any_image: every image is at hand; else only those that were imported."""
        self.directory = directory
        self._outputs = directory / "output"
        self._clock = clock
        self._any_image = any_image
        self._images: dict[str, Image] = {}
        self._sandboxes: dict[str, InProcessSandbox] = {}

    async def start(self) -> None:
        """See sandbox.Runtime."""
        self.directory.mkdir(parents=True, exist_ok=True)

    async def close(self) -> None:
        """See sandbox.Runtime."""
        await self.sweep(frozenset())

    async def ensure_image(self, reference: str, customer: str = "") -> Image:
        """See sandbox.Runtime."""
        image = self._images.get(reference)
        if image is not None:
            return image
        if self._any_image:
            return Image(reference, "", 0)
        raise ImageError(ImageReason.NOT_FOUND, f"image {reference} is not on this executor")

    async def refresh_image(self, reference: str) -> Image:
        """See sandbox.Runtime: there is no registry."""
        return await self.ensure_image(reference)

    async def import_image(self, reference: str, archive_path: Path) -> Image:
        """See sandbox.Runtime. Looks at the archive's index only."""
        _, digest, _ = await archive.ArchiveSource(archive_path).root()
        image = Image(reference, digest, await asyncio.to_thread(os.path.getsize, archive_path))
        self._images[reference] = image
        return image

    async def list_images(self) -> list[str]:
        """See sandbox.Runtime."""
        return sorted(self._images)

    async def delete_image(self, reference: str) -> None:
        """See sandbox.Runtime."""
        if self._images.pop(reference, None) is None:
            raise ImageError(ImageReason.NOT_FOUND, f"image {reference} is not on this executor")

    async def prepare(self, work: Work) -> "InProcessSandbox":
        """See sandbox.Runtime."""
        if not ATTEMPT_ID.fullmatch(work.attempt_id):
            raise SandboxError(
                f"attempt id {work.attempt_id!r} does not match {ATTEMPT_ID.pattern}"
            )
        if work.attempt_id in self._sandboxes:
            raise SandboxError(f"sandbox {work.attempt_id} exists already")
        await self.ensure_image(work.image)
        steps = _steps([*work.command, *work.args])
        output = None
        if any(word in WRITES for word, _ in steps):
            directory = self.output_directory(work.attempt_id)
            output = Output(directory, work.output_bytes_max, self._clock)
        sandbox = InProcessSandbox(work, steps, output, self._clock, self._sandboxes)
        self._sandboxes[work.attempt_id] = sandbox
        return sandbox

    async def prepare_spare(self, mould: Work) -> "InProcessSpare":
        """See sandbox.Runtime. Nothing is made ahead of an attempt here: it costs nothing."""
        return InProcessSpare(self, mould, await self.ensure_image(mould.image))

    async def adopt(self, attempt_id: str) -> "InProcessSandbox | None":
        """See sandbox.Runtime. There are none but this object's own."""
        sandbox = self._sandboxes.get(attempt_id)
        return sandbox if sandbox is not None and sandbox.started_ns else None

    async def sweep(self, claimed: frozenset[str]) -> int:
        """See sandbox.Runtime."""
        unclaimed = [box for name, box in self._sandboxes.items() if name not in claimed]
        for sandbox in unclaimed:
            await sandbox.delete()
        return len(unclaimed)

    def output_directory(self, attempt_id: str) -> Path:
        """See sandbox.Runtime."""
        return self._outputs / attempt_id

    async def discard_output(self, attempt_id: str) -> None:
        """See sandbox.Runtime."""
        shutil.rmtree(self.output_directory(attempt_id), ignore_errors=True)


class InProcessSpare:
    """Implements sandbox.Spare."""

    def __init__(self, runtime: InProcessRuntime, mould: Work, image: Image) -> None:
        self._runtime = runtime
        self._mould = mould
        self._image = image
        self.spent = False
        """Given to an attempt, or closed."""

    async def assign(self, work: Work) -> "InProcessSandbox":
        """See sandbox.Spare."""
        assert mould(work) == self._mould, "a spare is for attempts of its own mould"
        if await self._runtime.ensure_image(work.image) != self._image:
            raise SpareUnfit(f"{work.image} is another image than when the spare was made")
        if self.spent:
            raise SpareUnfit("the spare was closed")
        sandbox = await self._runtime.prepare(work)
        self.spent = True
        return sandbox

    async def close(self) -> None:
        """See sandbox.Spare."""
        self.spent = True


class Output:
    """The files that the recorder would write; small enough to be written where we are."""

    def __init__(self, directory: Path, bytes_max: int, clock: Clock) -> None:
        self._clock = clock
        self.directory = directory
        self._bytes_max = bytes_max
        self._seen = {"stdout": 0, "stderr": 0}
        directory.mkdir(parents=True)
        for name in self._seen:
            (directory / name).touch(0o600)

    def write(self, name: str, data: bytes) -> None:
        """Keep what fits."""
        room = max(0, self._bytes_max - self._seen[name])
        with (self.directory / f"{name}.times").open("ab") as times:
            times.write(_TIME.pack(self._seen[name], self._clock.now_ns()))
        self._seen[name] += len(data)
        with (self.directory / name).open("ab") as file:
            file.write(data[:room])

    def finish(self) -> None:
        """Say that this is all."""
        scratch = self.directory / "end.new"
        scratch.write_text(f"{self._seen['stdout']} {self._seen['stderr']}\n")
        scratch.rename(self.directory / "end")


class InProcessSandbox:
    """Implements sandbox.Sandbox."""

    def __init__(
        self,
        work: Work,
        steps: list[tuple[str, str]],
        output: Output | None,
        clock: Clock,
        register: "dict[str, InProcessSandbox]",
    ) -> None:
        self._work = work
        self._output = output
        self._clock = clock
        self._register = register
        self._steps = steps
        self._ignored: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._started_ns = 0

    @property
    def attempt_id(self) -> str:
        """See sandbox.Sandbox."""
        return self._work.attempt_id

    @property
    def started_ns(self) -> int:
        """See sandbox.Sandbox."""
        return self._started_ns

    def start(self) -> Awaitable[int]:
        """See sandbox.Sandbox."""
        assert not self._started_ns, "a sandbox is started once"
        if self._exit.done():
            raise GateGone("the sandbox ended before its start")
        if self._steps and self._steps[0][0] not in WORDS:
            raise StartError(
                StartReason.COMMAND_NOT_FOUND, errno.ENOENT, "the command cannot be executed"
            )
        self._started_ns = self._clock.now_ns()
        loop = asyncio.get_running_loop()
        loop.call_soon(self._go_on)  # as a process: beside its start
        started: asyncio.Future[int] = loop.create_future()
        started.set_result(self._started_ns)
        return started

    async def wait(self) -> Exit:
        """See sandbox.Sandbox."""
        if self._exit.done():
            return self._exit.result()
        return await asyncio.shield(self._exit)

    async def kill(self, signal: int) -> None:
        """See sandbox.Sandbox."""
        if signal not in self._ignored or signal == signals.SIGKILL:
            self._end(signal=signal)

    async def delete(self) -> None:
        """See sandbox.Sandbox."""
        self._end(signal=signals.SIGKILL)
        self._register.pop(self.attempt_id, None)

    def _go_on(self) -> None:
        """Run steps until one takes time, or the end."""
        self._timer = None
        while not self._exit.done():
            word, argument = self._steps.pop(0) if self._steps else ("exit", "0")
            match word:
                case "print":
                    self._write("stdout", argument.encode() + b"\n")
                case "error":
                    self._write("stderr", argument.encode() + b"\n")
                case "env":
                    self._write("stdout", self._work.env.get(argument, "").encode() + b"\n")
                case "payload":
                    self._write("stdout", self._work.payload)
                case "sleep":
                    loop = asyncio.get_running_loop()
                    self._timer = loop.call_later(float(argument), self._go_on)
                    return
                case "ignore":
                    self._ignored.add(int(argument))
                case "exit":
                    self._end(int(argument))
                case "fail" if int(self._work.env["TICKMESH_ATTEMPT"]) <= int(argument):
                    self._end(1)
                case "signal":
                    self._end(signal=int(argument))
                case "oom":
                    self._end(signal=signals.SIGKILL, oom=True)

    def _write(self, name: str, data: bytes) -> None:
        assert self._output is not None
        self._output.write(name, data)

    def _end(self, code: int = 0, signal: int = 0, oom: bool = False) -> None:
        if self._exit.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        written = logs.Written()
        if self._output is not None:
            with contextlib.suppress(OSError):  # it has been discarded
                self._output.finish()
                written = logs.written(self._output.directory)
        self._exit.set_result(
            Exit(
                exit_code=SIGNAL_BASE + signal if signal else code,
                signal=signal,
                oom=oom,
                finished_ns=self._clock.now_ns(),
                peak_memory_bytes=0,
                cpu_ns=0,
                output_bytes=written.output_bytes,
                dropped_bytes=written.dropped_bytes,
            )
        )


def _steps(words: list[str]) -> list[tuple[str, str]]:
    """A command's words as steps."""
    steps = []
    while words:
        end = words.index(";") if ";" in words else len(words)
        if end:
            steps.append((words[0], " ".join(words[1:end])))
        words = words[end + 1 :]
    return steps
