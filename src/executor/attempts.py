"""One attempt on this executor, from its order to its end.

    PREPARING ─► PREPARED ─► RUNNING ─► ENDED
        └────────────┴── never started ──┘

It is written down before its gate is opened, and its end before that is told. What ends it early:
a stop (cancelled: at any time; revoked or returned: only before its start; the executor's own
shutdown), or its timeout. Whoever stops an attempt whose gate is opening waits until it runs.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from ..mesh import telemetry
from ..mesh.clock import Clock
from ..proto.tickmesh.internal.v1 import shard_pb2
from ..proto.tickmesh.v1 import execution_pb2
from . import convert
from .clockwork import Reading
from .convert import End, Order
from .errors import ExecutorError, GateGone
from .ledger import Ledger
from .quiet import Quiet
from .sandbox import Exit, Runtime, Sandbox

KILL_DEADLINE_S = 15.0
"""From SIGKILL to the end's news: the runtime's own retries of a containerd that is restarting."""

_NS = 1_000_000_000
BEFORE_START = frozenset(
    {execution_pb2.EXECUTION_REASON_REVOKED, execution_pb2.EXECUTION_REASON_RETURNED}
)
"""Stops of what has not started; what has goes on."""

_LOST = execution_pb2.EXECUTION_REASON_EXECUTOR_LOST
_LOST_MESSAGE = "the executor restarted and cannot find it again; it may or may not have run"

log = telemetry.logger(__name__)


class Host(Protocol):
    """What an attempt needs of its agent."""

    runtime: Runtime
    ledger: Ledger
    clock: Clock
    quiet: Quiet

    async def sandbox(self, order: Order) -> Sandbox:
        """A sandbox that waits at its gate. Raises what Runtime.prepare does."""
        ...

    async def due(
        self, order: Order, act: Callable[[], Awaitable[int]]
    ) -> tuple[Reading, Awaitable[int]]:
        """Call `act` when an order may start. How the leader's clock stood then, and what `act`
        answered; raises what it raises."""
        ...

    async def was_due(self, order: Order) -> bool:
        """Whether an earlier process may have found an order due. Waits until a leader tells the
        time."""
        ...

    def changed(self, attempt: "Attempt") -> None:
        """The attempt's report is another now."""
        ...

    def removal(self, order: Order) -> AbstractAsyncContextManager[None]:
        """What must be held while an order's sandbox is removed."""
        ...


class Attempt:
    """See the module."""

    def __init__(
        self,
        host: Host,
        order: Order,
        recorded: Awaitable[None] | None = None,
        sandbox: Sandbox | None = None,
        *,
        again: bool = False,
    ) -> None:
        """recorded: done once the ledger has it. sandbox: of an attempt that runs already. again:
        an earlier process had it, and it cannot be found."""
        self._host = host
        self.order = order
        self._recorded = recorded
        self._sandbox = sandbox
        self._again = again
        self.id = order.work.attempt_id
        self.prepared_ns = 0
        self.started_ns = sandbox.started_ns if sandbox is not None else 0
        self._reading = Reading()
        """Of the leader's clock, when it started."""
        self.end: End | None = None
        """Set once it is on disk."""
        self._stop = 0
        self._stop_message = ""
        self._grace_s = order.grace_s
        self._hurried = asyncio.Event()
        """Set when its grace was made shorter."""
        self._opening = sandbox is not None
        self._living: asyncio.Task[None] | None = None
        """While a stop may end it by cancelling."""
        self._cancelled = False
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready = asyncio.Event()
        """Set when it has a place for its output, or has ended."""
        self.over = asyncio.Event()
        """Set when it has ended."""

    @classmethod
    def ended(cls, host: Host, order: Order, report: shard_pb2.AttemptReport) -> "Attempt":
        """An attempt whose end was written by an earlier process."""
        attempt = cls(host, order)
        attempt.prepared_ns, attempt.started_ns = report.prepared_ns, report.started_ns
        # Its times are by the leader's clock already.
        attempt._reading = Reading(0, report.clock_uncertainty_ns)
        attempt._finish(convert.reported_end(report))
        return attempt

    def report(self) -> shard_pb2.AttemptReport:
        """Where it is now."""
        if self.end is not None:
            phase = shard_pb2.ATTEMPT_PHASE_ENDED
        elif self.started_ns:
            phase = shard_pb2.ATTEMPT_PHASE_RUNNING
        elif self.prepared_ns:
            phase = shard_pb2.ATTEMPT_PHASE_PREPARED
        else:
            phase = shard_pb2.ATTEMPT_PHASE_PREPARING
        return self._report(phase, self.end)

    def _report(
        self, phase: shard_pb2.AttemptPhase.ValueType, end: End | None
    ) -> shard_pb2.AttemptReport:
        return convert.report(self.id, phase, self.prepared_ns, self.started_ns, end, self._reading)

    def stop(self, reason: int, message: str, grace_s: float | None = None) -> None:
        """End it, for a tickmesh.v1.ExecutionReason. BEFORE_START never ends what has started."""
        if self.over.is_set() or (self._opening and reason in BEFORE_START):
            return
        if grace_s is not None:
            self._grace_s = min(self._grace_s, grace_s)
            self._hurried.set()
        if self._stop:
            return
        self._stop, self._stop_message = reason, message
        self._stopped.set_result(None)
        if not self._opening and self._living is not None:
            self._cancelled = True
            self._living.cancel()

    async def run(self) -> None:
        """Live. Raises only what the ledger does."""
        if self._again and await self._host.was_due(self.order):
            # Whatever stops came meanwhile: they are for what has not started.
            end = End(_LOST, _LOST_MESSAGE, self._host.clock.now_ns())
        else:
            if self._again:
                await self._host.runtime.discard_output(self.id)
            self._living = asyncio.current_task()
            end = await self._outcome()
            self._living = None
        await self._host.quiet.wait()
        await self._write(end)
        if self._sandbox is not None:
            try:
                async with self._host.removal(self.order):
                    await self._sandbox.delete()
            except Exception as error:  # its end is told: what is left must not end the executor
                if isinstance(error, ExecutorError):
                    log.warning("a sandbox is left over", attempt=self.id, error=str(error))
                else:
                    log.error("removing a sandbox failed", attempt=self.id, exc_info=error)

    async def _outcome(self) -> End:
        if self._stop:
            return self._never_started()
        try:
            return await self._live()
        except asyncio.CancelledError:
            # A stop's own cancel ends here; the agent's, which may come beside it, does not.
            if not self._cancelled or self._living is None or self._living.uncancel():
                raise
            return self._never_started()
        except Exception as error:
            if self._stop and not self._opening:
                return self._never_started()
            if not isinstance(error, ExecutorError):
                log.error("an attempt failed", attempt=self.id, exc_info=error)
            return convert.failed(error, self._host.clock.now_ns())

    def _never_started(self) -> End:
        return End(self._stop, self._stop_message, self._host.clock.now_ns())

    async def _write(self, end: End) -> None:
        phase = shard_pb2.ATTEMPT_PHASE_ENDED
        report = self._report(phase, end)
        output = self._host.runtime.output_directory(self.id)
        key = self.order.output_key if end.output_bytes != 0 else ""
        await self._host.ledger.end(self.id, report.SerializeToString(), end.ended_ns, output, key)
        self._finish(end)
        self._host.changed(self)

    def _finish(self, end: End) -> None:
        self.end = end
        self.ready.set()
        self.over.set()

    async def _live(self) -> End:
        if self._sandbox is None:
            try:
                await self._start()
            except GateGone as error:
                # Nothing ran, so another sandbox may: one more, as what ends two may end all.
                log.warning("a gate is gone", attempt=self.id, error=str(error))
                await self._discard()
                if self._stop:  # it came while the gate was opening
                    return self._never_started()
                await self._start()
            # Whatever else is due now starts first; what follows from a start can wait.
            await self._host.quiet.wait()
            self._host.changed(self)
        self.ready.set()
        assert self._sandbox is not None
        return await self._follow(self._sandbox)

    async def _start(self) -> None:
        """Have a sandbox, and open its gate when it is due. Raises GateGone if nothing ran."""
        self._sandbox = await self._host.sandbox(self.order)
        self.prepared_ns = self._host.clock.now_ns()
        self.ready.set()
        self._host.changed(self)
        if self._recorded is not None:
            await self._recorded
        try:
            self._reading, started = await self._host.due(self.order, self._open)
            self.started_ns = await started
        finally:
            if self._opening:
                self._host.quiet.end()

    def _open(self) -> Awaitable[int]:
        assert self._sandbox is not None
        self._opening = True
        self._host.quiet.begin()
        return self._sandbox.start()

    async def _discard(self) -> None:
        """Remove a sandbox that never ran, so that another may have its name."""
        assert self._sandbox is not None
        self._opening = False
        await self._sandbox.delete()
        await self._host.runtime.discard_output(self.id)
        self._sandbox = None

    async def _follow(self, sandbox: Sandbox) -> End:
        """Wait for the command's end, and see to it that it comes."""
        exited = asyncio.create_task(sandbox.wait())
        try:
            await asyncio.sleep(0)  # a command that is over at once is known to be
            if not exited.done():
                either: set[asyncio.Future[Any]] = {exited, self._stopped}
                left_s = self._left_s()
                await asyncio.wait(either, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                if not self._stop:
                    self._stop = execution_pb2.EXECUTION_REASON_TIMEOUT
                    self._stop_message = f"it ran for its timeout, {self.order.work.timeout_s:g} s"
                await self._terminate(sandbox, exited)
                return self._exited(exited.result(), self._stop)
            return self._exited(exited.result(), 0)
        finally:
            exited.cancel()

    def _exited(self, exit: Exit, stop: int) -> End:
        return convert.exited(exit, self.order.work.memory_bytes, stop, self._stop_message)

    def _left_s(self) -> float | None:
        """Until its timeout; None without one."""
        if not self.order.work.timeout_s:
            return None
        run_s = (self._host.clock.now_ns() - self.started_ns) / _NS
        return max(0.0, self.order.work.timeout_s - run_s)

    async def _terminate(self, sandbox: Sandbox, exited: "asyncio.Task[Exit]") -> None:
        """SIGTERM, its grace, SIGKILL. Raises ExecutorError if even that does not end it."""
        try:
            await sandbox.kill(signal.SIGTERM)
        except ExecutorError as error:
            log.warning("SIGTERM could not be sent", attempt=self.id, error=str(error))
        begun_s = asyncio.get_running_loop().time()
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            either: set[asyncio.Future[Any]] = {exited, hurried}
            await asyncio.wait(either, timeout=self._grace_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
        if not exited.done():
            left_s = begun_s + self._grace_s - asyncio.get_running_loop().time()
            await asyncio.wait({exited}, timeout=max(0.0, left_s))
        if exited.done():
            return
        await sandbox.kill(signal.SIGKILL)
        await asyncio.wait({exited}, timeout=KILL_DEADLINE_S)
        if not exited.done():
            raise ExecutorError(f"{self._stop_message}; it could not be killed")
