"""Readers of WatchExecutions, who go on from their cursor across leader changes and restarts.

A cursor says: everything up to this entry has been told. So whoever holds one must have seen each
execution at least as it was after its last change up to there; the log knows what that was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import execution_pb2
from tickmesh.scheduler.core.ids import EXECUTION_ID_BYTES, unspell

from .ledger import Ledger, Stage
from .loop import Process
from .network import Network, Refused, read_stream
from .pace import Pace

RUNNING = execution_pb2.EXECUTION_STATE_RUNNING
ASSIGNED = execution_pb2.EXECUTION_STATE_ASSIGNED


def stage(execution: execution_pb2.Execution) -> Stage:
    """As ledger.stage has it. Running is told, and not stored."""
    attempts = execution.attempts
    state = ASSIGNED if execution.state == RUNNING else execution.state
    return int(state), len(attempts), bool(attempts and attempts[-1].HasField("end_time"))


class Watch:
    """One reader of a job's executions."""

    def __init__(
        self,
        number: int,
        seed: str,
        pace: Pace,
        network: Network,
        replicas: list[str],
        find: Callable[[str], tuple[Process, Any] | None],
        ledger: Ledger,
        violate: Callable[[str], None],
    ) -> None:
        self.name = f"watch-{number}"
        self.process = Process(self.name)
        self.told = 0
        self.resumed = 0
        """How often it went on from a cursor."""
        self._pace = pace
        self._chance = random.Random(f"{seed}/{self.name}")
        self._network = network
        self._replicas = replicas
        self._find = find
        self._ledger = ledger
        self._violate = violate
        self._parent = f"customers/acme/jobs/job-{number}"
        self._job = f"job-{number}"
        self._cursor = ""
        self._seen: dict[bytes, int] = {}
        """Of each execution the last change that was told, as its number in the history."""
        self._checked = 0
        """Changes of the log that were held against what was told."""

    async def run(self) -> None:
        """Until the simulation's end."""
        await asyncio.sleep(2.0 * self._pace.stretch)
        while True:
            target = self._chance.choice(self._replicas)
            asked = execution_pb2.WatchExecutionsRequest(parent=self._parent, cursor=self._cursor)
            request = shard_pb2.WatchRequest(request=asked.SerializeToString())
            self.resumed += bool(self._cursor)
            try:
                async for response in read_stream(
                    self._network, self.name, target, lambda t=target: self._find(t), request
                ):
                    self._hear(execution_pb2.WatchExecutionsResponse.FromString(response.response))
                    if self._chance.random() < 0.01:
                        break  # it goes away, and comes back
            except Refused as error:
                if "the cursor" in str(error.args):
                    self._expired(str(error.args))
            except ConnectionError:
                pass
            await asyncio.sleep(self._chance.uniform(0.05, 0.5) * self._pace.stretch)

    def _expired(self, why: str) -> None:
        """Only where history was dropped: then it begins anew."""
        after, meta = int(self._cursor or 0), self._ledger.state.meta
        if after + 1 >= meta.changes_from or not self._cursor:
            self._violate(f"{self.name}: its cursor {self._cursor!r} is refused: {why}")
        self._cursor = ""

    def _hear(self, response: execution_pb2.WatchExecutionsResponse) -> None:
        self.told += 1
        for execution in response.executions:
            identity = unspell(execution.name.rpartition("/")[2], EXECUTION_ID_BYTES) or b""
            now = stage(execution)
            history = self._ledger.history.get(identity, [])
            rank = max((n for n, (_, each) in enumerate(history) if each == now), default=-1)
            if rank < 0:
                self._violate(f"{self.name} is told of {execution}, which never was: {history}")
            self._seen[identity] = rank
        if not self._cursor:
            self._seen.clear()
            self._checked = self._upto(int(response.cursor), 0, check=False)
        elif int(response.cursor) < int(self._cursor):
            self._violate(f"{self.name}: cursor {response.cursor} after {self._cursor}")
        else:
            self._checked = self._upto(int(response.cursor), self._checked, check=True)
        self._cursor = response.cursor

    def _upto(self, cursor: int, at: int, *, check: bool) -> int:
        """Changes from number `at` to those of entry `cursor`: each was told, or a later one."""
        changes = self._ledger.changes
        while at < len(changes) and changes[at][0] <= cursor:
            index, identity = changes[at]
            at += 1
            if check and not self._was_told(index, identity):
                self._violate(
                    f"{self.name} holds cursor {cursor}, and was not told of entry {index}'s"
                    f" change: {self._ledger.executions[identity]}"
                )
        return at

    def _was_told(self, index: int, identity: bytes) -> bool:
        of_another = self._ledger.executions[identity].job_id != self._job
        if of_another or self._ledger.is_forgotten(identity):
            return True
        history = self._ledger.history[identity]
        rank = max(n for n, (entry, _) in enumerate(history) if entry <= index)
        # What a stage looks like may come again: then it was seen as the later one.
        return self._seen.get(identity, -1) >= rank

    def is_behind(self, index: int) -> bool:
        """Whether something that happened up to an entry was not told yet."""
        if not self._cursor:
            return True
        return any(
            not self._was_told(entry, identity)
            for entry, identity in self._ledger.changes[self._checked :]
            if entry <= index
        )
