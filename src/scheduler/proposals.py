"""Group commit: many commands in one Raft entry.

One entry is in flight at a time; whatever is submitted meanwhile goes into the next. So the cost of
a commit (an fsync on a majority) is shared by all who wait, and the entry grows with the load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple, Protocol

import msgspec

from ..mesh.clock import Clock
from ..mesh.errors import FailedPrecondition, Overloaded
from .core.commands import SINCE, AnyCommand, Outcome
from .raft.errors import NotLeader, OutcomeUnknown
from .raft.limits import PAYLOAD_BYTES_MAX
from .store.state import Applied, State, encode_command, encode_entry

COMMANDS_MAX = 512
"""Commands in one entry: bounds how long applying it keeps others waiting."""

WEIGHT_MAX = 2_000
"""Items (schedules, executions, ...) in one entry, 30 to 80 ms of applying. One command may have
more by itself."""

WEIGHT_MIN = 50
APPLY_S_MAX = 0.1
"""An entry that took longer to apply is followed by one half as large, down to WEIGHT_MIN: on a
machine that has too much to do, applying takes many times as long, and nobody hears of this replica
meanwhile."""

ENTRY_BYTES_MAX = PAYLOAD_BYTES_MAX - 64
"""Commands in one entry, which adds a few bytes of its own: what the log takes."""

QUEUE_MAX = 20_000
"""Commands that wait: a few seconds' work. Beyond it callers are told to come back."""

RETRY_AFTER_MS = 500
"""What they are told: about what half of the queue takes."""


class Waiting(NamedTuple):
    """A command that waits for its entry."""

    since: int
    """The version of entries that it is new in."""
    raw: msgspec.Raw
    """Encoded when it is submitted: what cannot be fails for itself, and its size is known."""
    weight: int
    future: asyncio.Future[Outcome]


class Log(Protocol):
    """What proposals need of a replica: raft.replica.Replica."""

    @property
    def entry_version(self) -> int:
        """The highest that every replica is known to apply."""
        ...

    @property
    def apply_s(self) -> float:
        """How long applying the last entry took."""
        ...

    async def propose(self, payload: bytes) -> object: ...


class Proposals:
    """The queue of commands of a shard's leader."""

    def __init__(self, log: Log, state: State, clock: Clock) -> None:
        self._log = log
        self._state = state
        self._clock = clock
        self._queue: deque[Waiting] = deque()
        self._wake = asyncio.Event()
        self._weight = WEIGHT_MAX
        """Of the next entry, at most."""

    @property
    def version(self) -> int:
        """Of what is proposed now. What was once committed in a version is applied by whoever still
        is a replica."""
        return max(self._log.entry_version, self._state.meta.entry_version)

    def submit(
        self, command: AnyCommand, weight: int = 1, *, owed: bool = False
    ) -> asyncio.Future[Outcome]:
        """What will come of a command. Raises Overloaded; the future raises RaftError.

        owed: not asked by a caller who could come back: never refused. Its number is limited by
        what it answers, as ends are by the slots of executors.
        """
        if len(self._queue) >= QUEUE_MAX and not owed:
            raise Overloaded(
                f"the shard has {QUEUE_MAX} commands waiting: try again later",
                retry_after_ms=RETRY_AFTER_MS,
            )
        raw = encode_command(command)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(SINCE.get(type(command), 1), raw, weight, future))
        self._wake.set()
        return future

    async def run(self) -> None:
        """Propose until cancelled."""
        while True:
            await self._wake.wait()
            # Let everything that is ready to submit do so: it shares this entry.
            await asyncio.sleep(0)
            batch = self._take()
            if not self._queue:
                self._wake.clear()
            if batch:
                await self._propose(batch)

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        weight = size = 0
        while self._queue and len(batch) < COMMANDS_MAX:
            first = self._queue[0]
            if not first.future.cancelled():
                weight += first.weight
                size += len(first.raw)
                if batch and (weight > self._weight or size > ENTRY_BYTES_MAX):
                    break
                batch.append(first)
            self._queue.popleft()
        return batch

    async def _propose(self, batch: list[Waiting]) -> None:
        now_ms = max(self._clock.now_ns() // 1_000_000, self._state.meta.time_ms)
        version = self.version
        batch = self._known_to_all(batch, version)
        if not batch:
            return
        payload = encode_entry(now_ms, [each.raw for each in batch], version)
        try:
            applied = await self._log.propose(payload)
        except asyncio.CancelledError:
            # It may have reached the others already.
            self._fail(batch, OutcomeUnknown("the replica stops"))
            raise
        except Exception as error:
            self._fail(batch, error)
            if isinstance(error, NotLeader):
                self._fail_queue(error)
            return
        assert isinstance(applied, Applied)
        self._learn()
        for each, outcome in zip(batch, applied.outcomes, strict=True):
            if not each.future.done():
                each.future.set_result(outcome)

    def _learn(self) -> None:
        """How much the next entry may hold."""
        if self._log.apply_s > APPLY_S_MAX:
            self._weight = max(WEIGHT_MIN, self._weight // 2)
        else:
            self._weight = min(WEIGHT_MAX, self._weight + WEIGHT_MIN)

    def _known_to_all(self, batch: list[Waiting], version: int) -> list[Waiting]:
        """Without what some replica does not understand; that is refused."""
        new = [each for each in batch if each.since > version]
        if not new:
            return batch
        error = FailedPrecondition(
            "this needs a newer version of the scheduler on every replica of the shard: one runs an"
            " older one, or has not been heard of since the last election. Upgrade or start it"
        )
        self._fail(new, error)
        return [each for each in batch if each.since <= version]

    def _fail_queue(self, error: Exception) -> None:
        waiting = list(self._queue)
        self._queue.clear()
        self._fail(waiting, error)

    @staticmethod
    def _fail(batch: list[Waiting], error: Exception) -> None:
        for each in batch:
            if not each.future.done():
                each.future.set_exception(error)
