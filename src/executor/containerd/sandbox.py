"""One attempt's sandbox in containerd, from the gate to the last trace of it."""

import asyncio
import contextlib
import os
import shutil
import signal as signals
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...mesh import telemetry
from ...mesh.clock import Clock
from .. import accounting, limits, logs
from ..errors import (
    ContainerdError,
    ContainerdNotFound,
    ContainerdUnavailable,
    GateGone,
    SandboxError,
)
from ..gate.exchange import Exchange
from ..sandbox import Exit
from ..watch import Watcher
from . import shims
from .client import ContainerdClient
from .direct import DirectExchange

log = telemetry.logger(__name__)

SIGNAL_BASE = 128
SIGNALS_MAX = 64


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is remembered of a sandbox across an executor's restart: one file in its directory."""

    container_id: str
    """Its attempt's, or the id of the spare that the attempt was given."""
    cgroup_path: str
    created_ns: int


@dataclass(frozen=True, slots=True)
class Paths:
    """A sandbox's files on the host; both directories are named after its attempt."""

    directory: Path
    """Goes with the sandbox; in memory, see volatile.py."""
    output: Path
    """Stays."""

    @property
    def exchange(self) -> Path:
        """What the sandbox sees: FIFOs and payload."""
        return self.directory / "io"

    @property
    def output_link(self) -> Path:
        """Leads the recorder, when it starts, to where output goes."""
        return self.directory / "output"

    @property
    def ended(self) -> Path:
        """The FIFO that tells the recorder that every process of the sandbox is dead."""
        return self.directory / "ended"

    @property
    def record(self) -> Path:
        """The Record."""
        return self.directory / "record.json"

    @property
    def opened(self) -> Path:
        """When the gate was opened, ns since 1970; empty before. Written before the gate is told,
        so that no start is ever forgotten, and again when the exec's time is known."""
        return self.directory / "opened"


class ContainerdSandbox:
    """Implements sandbox.Sandbox."""

    def __init__(
        self,
        client: ContainerdClient,
        watcher: Watcher,
        clock: Clock,
        deletes: asyncio.Semaphore,
        paths: Paths,
        record: Record,
        exchange: Exchange | DirectExchange | None,
        message: bytes,
        started_ns: int = 0,
    ) -> None:
        self._client = client
        self._watcher = watcher
        self._clock = clock
        self._deletes = deletes
        self._paths = paths
        self._record = record
        self._exchange = exchange
        self._message = message
        self._started_ns = started_ns
        self._exit: Exit | None = None
        self._deleted = False
        self._deleting = asyncio.Lock()

    @property
    def attempt_id(self) -> str:
        """See sandbox.Sandbox."""
        return self._paths.output.name

    @property
    def started_ns(self) -> int:
        """See sandbox.Sandbox."""
        return self._started_ns

    @property
    def waits(self) -> bool:
        """Whether it can still be started."""
        return self._exchange is not None and not self._exchange.lost

    def assign(self, paths: Paths, message: bytes, payload: bytes) -> None:
        """Makes a spare that waits at its gate the sandbox of an attempt. Raises OSError.

        Inline, as it stands before a start: two renames and a small file take 0.1 ms. The recorder
        and the sandbox hold on to the directories themselves, whatever they are called.
        """
        assert self._exchange is not None and not self._started_ns, "only a spare is assigned"
        if paths.directory.exists():
            raise FileExistsError(f"sandbox {paths.directory.name} exists already")
        if payload:  # a spare's is empty
            self._exchange.put(payload)
        # In this order: a sandbox's directory always has its output.
        self._paths.output.rename(paths.output)
        self._paths.directory.rename(paths.directory)
        self._paths, self._message = paths, message

    def start(self) -> Awaitable[int]:
        """See sandbox.Sandbox."""
        assert self._exchange is not None and not self._started_ns, "a sandbox is started once"
        if self._deleted:
            raise GateGone("the sandbox was deleted before its start")
        # Inline, not in a thread: it takes 20 microseconds and stands between due time and exec.
        self._note_opened(self._clock.now_ns())
        return self._executed(self._exchange.open(self._message))

    async def _executed(self, executed: Awaitable[int]) -> int:
        self._started_ns = await executed
        self._message = b""
        self._note_opened(self._started_ns)
        return self._started_ns

    def _note_opened(self, time_ns: int) -> None:
        file = os.open(self._paths.opened, os.O_WRONLY | os.O_CLOEXEC)  # it is there: no creation
        try:
            os.write(file, str(time_ns).encode())  # as long as what it replaces, for 250 years
        finally:
            os.close(file)

    async def wait(self) -> Exit:
        """See sandbox.Sandbox."""
        if self._exit is not None:
            return self._exit
        ended = await self._ended()
        usage = await asyncio.to_thread(accounting.read, self._record.cgroup_path)
        written = await self._written()
        if ended is None:
            if written.status is None:
                raise SandboxError(f"sandbox {self.attempt_id} has vanished")
            ended = 0, await asyncio.to_thread(logs.ended_ns, self._paths.output)
        status, exited_ns = ended
        exit_code, signal = _ending(status, written.status)
        self._exit = Exit(
            exit_code=exit_code,
            signal=signal,
            oom=usage.oom_kills > 0 and exit_code != 0,
            finished_ns=exited_ns,
            peak_memory_bytes=usage.peak_memory_bytes,
            cpu_ns=usage.cpu_ns,
            output_bytes=written.output_bytes,
            dropped_bytes=written.dropped_bytes,
        )
        return self._exit

    async def has_told(self) -> bool:
        """Whether it is written down how the command ended, of a sandbox of which containerd knows
        nothing. Its recorder writes that a moment after the end, and this waits for it."""
        return (await self._written()).status is not None

    async def _written(self) -> logs.Written:
        """What the recorder wrote down, once it has."""
        await self._output_whole()
        return await asyncio.to_thread(logs.written, self._paths.output)

    async def kill(self, signal: int) -> None:
        """See sandbox.Sandbox. The gate, process 1, passes a signal on to all others; SIGKILL ends
        it, and the kernel everything in its pid namespace."""
        if self._exit is not None:
            return  # it has ended
        try:
            await self._retried(self._client.kill_task, self._record.container_id, signal)
        except ContainerdNotFound:
            return  # it has ended
        except ContainerdError as error:
            if "not found" in str(error) or "already finished" in str(error):
                return
            raise SandboxError(str(error)) from error

    async def delete(self) -> None:
        """See sandbox.Sandbox. Raises SandboxError when containerd does not let go of it."""
        async with self._deleting:
            if self._deleted:
                return
            if self._exchange is not None:
                self._exchange.close()
            try:
                async with self._deletes:
                    await self._delete_task()
                    with contextlib.suppress(ContainerdNotFound):
                        await self._retried(
                            self._client.delete_container, self._record.container_id
                        )
            except ContainerdError as error:
                raise SandboxError(
                    f"sandbox {self.attempt_id} cannot be removed: {error}"
                ) from error
            await asyncio.to_thread(self._remove_files)
            self._deleted = True

    def _remove_files(self) -> None:
        client, name = self._client, self._record.container_id
        accounting.remove(self._record.cgroup_path)
        # These two are there only after runtime or shim were killed half-way.
        shutil.rmtree(client.runtime_state / name, ignore_errors=True)
        shims.socket_of(client.socket, client.namespace, name).unlink(missing_ok=True)
        shutil.rmtree(self._paths.directory, ignore_errors=True)

    async def _delete_task(self) -> None:
        name = self._record.container_id
        if self._exit is None:
            try:
                await self._retried(self._client.kill_task, name, signals.SIGKILL)
            except ContainerdUnavailable:
                raise
            except ContainerdError:  # it has ended, or its runtime has forgotten it
                await asyncio.to_thread(accounting.end, self._record.cgroup_path)
            with contextlib.suppress(SandboxError, TimeoutError):
                async with asyncio.timeout(limits.TASK_DEADLINE_S):
                    await self._ended()
        try:
            await self._retried(self._client.delete_task, name)
        except ContainerdUnavailable:
            raise
        except ContainerdNotFound:
            await self._end_shim()  # one that containerd was killed over, if there is one
        except ContainerdError as error:
            # Killed between two steps, shim and runtime disagree for ever; a dead shim is cleaned
            # up after. Nothing is lost with it: its sandbox has ended.
            if not await self._end_shim():
                raise
            log.warning("the shim had to be killed", attempt=self.attempt_id, error=str(error))
            await self._cleaned_up()

    async def _cleaned_up(self) -> None:
        """Returns when containerd has cleaned up after a shim that was killed."""
        deadline = time.monotonic() + limits.TASK_DEADLINE_S
        while True:
            try:
                await self._retried(self._client.delete_task, self._record.container_id)
                return
            except ContainerdNotFound:
                return
            except ContainerdError:  # "ttrpc: closed", while it is at it
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(limits.CLEANED_UP_POLL_S)

    async def _end_shim(self) -> int:
        client = self._client
        return await asyncio.to_thread(
            shims.end, client.socket, client.namespace, self._record.container_id
        )

    async def _ended(self) -> tuple[int, int] | None:
        """Waits for the first process's end, through restarts of containerd: its status, and when.

        None: containerd knows nothing of it. From 1.7 on it drops, when it starts, a task that has
        ended while it was away; how the command ended is then what its gate told the recorder.
        """
        while True:
            try:
                answer = await self._client.wait_task(self._record.container_id)
                return answer.exit_status, answer.exited_at.ToNanoseconds()
            except ContainerdNotFound:
                return None
            except ContainerdUnavailable:
                try:
                    await self._client.connected(limits.DAEMON_AWAY_DEADLINE_S)
                except ContainerdUnavailable as error:
                    raise SandboxError(str(error)) from error
            except ContainerdError as error:
                raise SandboxError(str(error)) from error

    async def _retried(self, call: object, *arguments: object) -> None:
        """Makes a call that may be repeated, once more for each restart of containerd."""
        deadline = time.monotonic() + limits.TASK_DEADLINE_S
        while True:
            try:
                await call(*arguments)  # type: ignore[operator]
                return
            except ContainerdUnavailable:
                if time.monotonic() > deadline:
                    raise
                await self._client.connected(limits.DAEMON_START_DEADLINE_S)

    async def _output_whole(self) -> None:
        """Has the recorder write the last byte, and waits for it: a millisecond after the exit."""
        end = self._paths.output / logs.END
        try:
            with self._watcher.changes(self._paths.output) as changed:
                self._tell_recorder()
                async with asyncio.timeout(limits.OUTPUT_DEADLINE_S):
                    while not await asyncio.to_thread(end.exists):
                        await changed.wait()
                        changed.clear()
        except (TimeoutError, OSError) as error:
            log.warning("output may be cut", attempt=self.attempt_id, error=repr(error))
            with contextlib.suppress(OSError):  # its readers must not wait for ever
                await asyncio.to_thread(logs.close, self._paths.output)

    def _tell_recorder(self) -> None:
        """Says that no process of the sandbox is left; a recorder that is gone needs no telling."""
        with contextlib.suppress(FileNotFoundError):
            fifo = os.open(self._paths.ended, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fifo, b"e")
            finally:
                os.close(fifo)


def _ending(status: int, told: int | None) -> tuple[int, int]:
    """Exit code and signal: as the gate told, or, when it was killed itself, by its own status."""
    if told is None:
        signal = status - SIGNAL_BASE
        return status, signal if 0 < signal <= SIGNALS_MAX else 0
    if os.WIFSIGNALED(told):
        return SIGNAL_BASE + os.WTERMSIG(told), os.WTERMSIG(told)
    return os.WEXITSTATUS(told), 0
