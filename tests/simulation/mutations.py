"""Bugs put back in, one at a time, to see that the simulator finds each of them.

Each says what the product does instead; `mutated` patches it in for a while.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from tickmesh.executor.agent import Agent
from tickmesh.executor.uplink import Shard as Uplink
from tickmesh.executor.uplink import Stream
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.scheduler import retention, shard
from tickmesh.scheduler.core import (
    calendars,
    executions,
    fires,
    history,
    machine,
    recurrence,
    zones,
)
from tickmesh.scheduler.core.ids import attempt_id, split_attempt_id
from tickmesh.scheduler.core.model import ExecutionState, Reason
from tickmesh.scheduler.dispatch import Dispatcher
from tickmesh.scheduler.operations import Operations
from tickmesh.scheduler.proposals import Proposals
from tickmesh.scheduler.raft.journal import Journal
from tickmesh.scheduler.raft.library import RaftLibrary
from tickmesh.scheduler.raft.member import Member
from tickmesh.scheduler.raft.replica import Replica
from tickmesh.scheduler.service import ShardService
from tickmesh.scheduler.store import keys
from tickmesh.scheduler.store.state import State
from tickmesh.scheduler.store.view import StoreView
from tickmesh.scheduler.timers import Window

Patch = tuple[Any, str, Any]


def vote_not_flushed() -> list[Patch]:
    """A vote leaves before the disk has it."""

    async def persist(self: Any) -> None:
        journal = self._journal
        if journal.dirty:
            only_ballot = all(key == b"m/ballot" for _, key, _ in journal._staged)
            written = journal.write()
            if not only_ballot:
                await self._journal_worker.run(journal.flush)
            journal.flushed(written)

    return [(Replica, "_persist", persist)]


def everything_sent_ahead() -> list[Patch]:
    """All that a round decided leaves before the disk has it, not a leader's entries alone."""

    def sent(self: Any) -> list[Any]:
        outbox, self._member.outbox = self._member.outbox, []
        for peer, message in outbox:
            self._transport.send(peer, message)
        return []

    return [(Replica, "_send_ahead", sent)]


def acknowledged_before_flush() -> list[Patch]:
    """Entries are acknowledged before the disk has them."""

    async def persist(self: Any) -> None:
        journal = self._journal
        if journal.dirty:
            only_entries = all(key[:1] == b"e" for _, key, _ in journal._staged)
            written = journal.write()
            if not only_entries:
                await self._journal_worker.run(journal.flush)
            journal.flushed(written)

    return [(Replica, "_persist", persist)]


def applied_index_in_a_batch_of_its_own() -> list[Patch]:
    """An entry's changes are one write, its index another."""
    apply = State.apply

    def applied(self: Any, index: int, term: int, payload: bytes) -> Any:
        write = self.backend.write

        def split(changes: dict[bytes, bytes | None]) -> None:
            rest = {key: value for key, value in changes.items() if key != keys.META}
            write(rest)
            write({keys.META: changes[keys.META]})

        self.backend.write = split
        try:
            return apply(self, index, term, payload)
        finally:
            del self.backend.write

    return [(State, "apply", applied)]


def end_acknowledged_before_its_commit() -> list[Patch]:
    """An executor is told to forget an end when it is proposed."""
    submit = Dispatcher._submit_ends

    def submitted(self: Any, ends: Any) -> None:
        submit(self, ends)
        for _, identity, attempt in ends:
            link = self.links.get(attempt.executor)
            if link is not None:
                ids = [attempt_id(identity, attempt.number)]
                acknowledgement = shard_pb2.Acknowledgement(attempt_ids=ids)
                link.send(shard_pb2.ShardMessage(acknowledgement=acknowledgement))

    return [(Dispatcher, "_submit_ends", submitted)]


def timers_before_the_new_leader_forgotten() -> list[Patch]:
    """A new leader looks for timers from now on, not from the floor on."""

    class Hasty(Window):
        begun = False

        def extend(self, now_ms: int) -> None:
            if not self.begun:
                self.begun, self.until_ms = True, now_ms
            super().extend(now_ms)

    return [(shard, "Window", Hasty)]


def request_id_ignored() -> list[Patch]:
    """A repeated ExecuteJob executes again."""
    execute = executions.execute

    def executed(view: Any, command: Any, now_ms: int) -> Any:
        return execute(view, replace(command, request=b""), now_ms)

    return [(machine.executions, "execute", executed)]


def read_without_barrier() -> list[Patch]:
    """A replica that believes that it leads answers reads."""

    async def read_barrier(self: Any) -> None:
        self._check_leading()

    return [(Replica, "read_barrier", read_barrier)]


def attempt_number_ignored() -> list[Patch]:
    """The end of an earlier attempt ends the one that runs now."""

    def find(self: Any, attempt: str) -> Any:
        identity, _ = split_attempt_id(attempt) or (b"", 0)
        execution = self.active.get(identity)
        assigned = execution is not None and execution.state is ExecutionState.ASSIGNED
        return execution if assigned else None

    return [(Dispatcher, "_find", find)]


def gap_after_failover_passed_over() -> list[Patch]:
    """What fell due while nobody led is neither caught up nor recorded."""

    def catch_up(self: Any, placement: Any) -> int:
        return int(self._now_ms)

    return [(fires.Turn, "catch_up", catch_up)]


def heard_revocation_ignored() -> list[Patch]:
    """An executor starts what it has heard to be revoked."""
    stop = Agent.stop_attempt

    def stopped(self: Any, message: Any) -> None:
        if message.reason != Reason.REVOKED:
            stop(self, message)

    return [(Agent, "stop_attempt", stopped)]


def lease_counted_from_the_answer() -> list[Patch]:
    """An executor's lease begins when it reads that its heartbeat was answered."""
    heard = Uplink.heard

    def hearing(self: Any, reading: Any, asked_ns: int) -> None:
        heard(self, reading, self.clock.monotonic_ns())

    return [(Uplink, "heard", hearing)]


def any_answer_confirms_the_inventory() -> list[Patch]:
    """An executor's lease goes on by an answer that was under way before its inventory."""
    read = Stream._heard_reply

    def replied(self: Any, reply: Any) -> None:
        if self._confirms_ns is None:
            self._confirms_ns = 0
        read(self, reply)

    return [(Stream, "_heard_reply", replied)]


def inventory_answered_before_the_loss_is_decided() -> list[Patch]:
    """A leader goes on with an executor while what that has lost is only proposed."""
    inventory = Dispatcher.inventory

    async def compared(self: Any, link: Any, message: Any) -> None:
        self._losing.clear()
        await inventory(self, link, message)

    return [(Dispatcher, "inventory", compared)]


def run_again_what_is_not_found_again() -> list[Patch]:
    """An executor that was restarted takes what it cannot find for what has not begun."""

    async def was_due(self: Any, order: Any) -> bool:
        return False

    return [(Agent, "was_due", was_due)]


def due_by_the_executors_own_clock() -> list[Patch]:
    """An executor that was restarted decides by its own clock what it may have started."""

    async def was_due(self: Any, order: Any) -> bool:
        return bool(order.start_at_ns <= self.clock.now_ns())

    return [(Agent, "was_due", was_due)]


def backup_of_a_replaced_leader() -> list[Patch]:
    """A backup is of what a replica has that believes that it leads."""
    make = Operations._make_backup

    async def made(self: Any, destination: Any) -> Any:
        async def read_barrier() -> None: ...

        kept = self._replica
        self._replica = SimpleNamespace(
            read_barrier=read_barrier, checkpoint=kept.checkpoint, config=kept.config
        )
        try:
            return await make(self, destination)
        finally:
            self._replica = kept

    return [(Operations, "_make_backup", made)]


def backup_named_for_an_earlier_entry() -> list[Patch]:
    """How far the state has come is looked at before it is flushed, and then it is copied."""
    checkpoint = Replica.checkpoint

    async def copied(self: Any, directory: Any) -> Any:
        applied = self._state.applied
        await checkpoint(self, directory)
        return applied

    return [(Replica, "checkpoint", copied)]


def instant_decided_twice() -> list[Patch]:
    """An instant that was taken back and comes up again gets a second row."""
    decide = fires.Turn.decide

    def decided(self: Any, nominal_ms: int, outcome: Any, placement: Any, missed: int = 0) -> None:
        again = self._has_execution(nominal_ms)
        decide(self, nominal_ms, outcome, placement, missed)
        if again:
            self.note(outcome, nominal_ms)

    return [(fires.Turn, "decide", decided)]


def at_most_once_retried_after_a_start() -> list[Patch]:
    """Whether an attempt has started is not looked at before the next."""
    retry = executions._retry_after_ms

    def retried(view: Any, execution: Any, attempt: Any) -> int:
        lost = attempt.reason is Reason.EXECUTOR_LOST
        reason = Reason.INFRASTRUCTURE if lost else attempt.reason
        return retry(view, execution, replace(attempt, started_ns=0, reason=reason))

    return [(executions, "_retry_after_ms", retried)]


def history_dropped_under_what_is_active() -> list[Patch]:
    """A period is dropped though something that was due in it has not ended."""
    return [(StoreView, "active_before", lambda self, due_ms: False)]


def forgotten_and_not_told() -> list[Patch]:
    """Executions that the customer does not keep are forgotten, and no ledger says so."""
    return [(history, "instant_of", lambda schedule, execution: 0)]


def forgotten_before_its_end() -> list[Patch]:
    """Whatever is listed after those that the customer keeps is forgotten, ended or not."""

    def always(*_: Any, **__: Any) -> bool:
        return True

    return [(history, "may_go", always), (retention, "may_go", always)]


def watch_resumed_one_entry_too_late() -> list[Patch]:
    """A watch that goes on from its cursor misses the next entry."""
    read = ShardService._cursor
    return [(ShardService, "_cursor", lambda self, cursor: read(self, cursor) + 1)]


def time_runs_backwards_in_the_log() -> list[Patch]:
    """A new leader's entries have its own clock's time, even if the log is ahead of it."""
    propose = Proposals._propose

    async def proposed(self: Any, batch: Any) -> None:
        kept = self._state
        meta = SimpleNamespace(time_ms=0, entry_version=kept.meta.entry_version)
        self._state = SimpleNamespace(meta=meta)
        try:
            await propose(self, batch)
        finally:
            self._state = kept

    return [(Proposals, "_propose", proposed)]


def list_in_force_when_committed() -> list[Patch]:
    """A list of replicas decides from its commit on, not from its append on."""
    follow, tick = Member.follow_list, Member.tick

    def follow_list(self: Any) -> None:
        lists = self.journal._lists
        committed = [each for each in lists if each[0] <= self.commit_index]
        self.journal._lists = committed or lists[:1]
        try:
            follow(self)
        finally:
            self.journal._lists = lists

    def ticked(self: Any) -> None:
        follow_list(self)
        tick(self)

    return [(Member, "follow_list", follow_list), (Member, "tick", ticked)]


def two_lists_at_once() -> list[Patch]:
    """A list is appended while the one before it is not committed."""
    may_change = property(lambda self: self.leads_with_own_entry)
    return [
        (Member, "may_change_members", may_change),
        (Replica, "_check_changeable", lambda self: self._check_leading()),
    ]


def list_before_an_own_entry() -> list[Patch]:
    """A new leader appends a list before anything of its own term is committed."""

    def may_change(self: Any) -> bool:
        return bool(self.is_leader and self.journal.members_index <= self.commit_index)

    return [(Member, "may_change_members", property(may_change))]


def removed_replica_counted() -> list[Patch]:
    """A leader goes on to send to whom it has removed, and counts its acknowledgements."""
    follow, tick = Member.follow_list, RaftLibrary.library_tick

    def follow_list(self: Any) -> None:
        others, progress = self.others, dict(self._progress)
        follow(self)
        gone = [peer for peer in others if peer not in self.others]
        if self.is_leader and gone:
            self.others = (*self.others, *gone)
            self._progress.update({peer: progress[peer] for peer in gone})

    def ticked(self: Any) -> None:
        gone = [peer for peer in self._progress if peer not in self.members.ids]
        if not self.is_leader or not gone or not self.voting:
            tick(self)
            return
        matches = self._SyncObj__raftMatchIndex
        weakest = min(sorted(self.voting), key=self.match_index)
        kept = self.match_index(weakest)
        matches[self._nodes[weakest]] = max(kept, *map(self.match_index, gone))
        tick(self)
        matches[self._nodes[weakest]] = kept

    return [(Member, "follow_list", follow_list), (RaftLibrary, "library_tick", ticked)]


def list_forgotten_in_a_snapshot() -> list[Patch]:
    """Who installs a snapshot keeps the list that it had."""
    begin = Journal.begin_install
    return [(Journal, "begin_install", lambda self, position, members=None: begin(self, position))]


def timer_not_moved_by_a_calendar() -> list[Patch]:
    """A schedule that follows a changed calendar keeps the timer that it had."""
    follow_pins, resume = calendars.follow_pins, fires.Turn.resume

    def followed(view: Any, schedule: Any, now_ms: int) -> bool:
        def kept(self: Any, *, paused: bool) -> Any:
            stood = {"state": schedule.state, "due_ms": schedule.due_ms}
            return self.finish(redefined=True, next_ms=schedule.next_ms, **stood)

        fires.Turn.resume = kept  # type: ignore[method-assign]
        try:
            return follow_pins(view, schedule, now_ms)
        finally:
            fires.Turn.resume = resume  # type: ignore[method-assign]

    return [(calendars, "follow_pins", followed)]


def zones_from_each_replicas_package() -> list[Patch]:
    """An upgrade of zones brings what each replica's own package has."""
    learn = zones.learn

    def learned(view: Any, command: Any) -> Any:
        if command.upgrade:
            files = tuple((name, recurrence.read_zone_file(name)) for name, _ in command.zones)
            command = replace(command, zones=files)
        return learn(view, command)

    return [(zones, "learn", learned)]


MUTATIONS: dict[str, Callable[[], list[Patch]]] = {
    mutation.__name__: mutation
    for mutation in (
        vote_not_flushed,
        everything_sent_ahead,
        acknowledged_before_flush,
        applied_index_in_a_batch_of_its_own,
        end_acknowledged_before_its_commit,
        timers_before_the_new_leader_forgotten,
        request_id_ignored,
        read_without_barrier,
        attempt_number_ignored,
        gap_after_failover_passed_over,
        heard_revocation_ignored,
        lease_counted_from_the_answer,
        any_answer_confirms_the_inventory,
        inventory_answered_before_the_loss_is_decided,
        run_again_what_is_not_found_again,
        due_by_the_executors_own_clock,
        backup_of_a_replaced_leader,
        backup_named_for_an_earlier_entry,
        instant_decided_twice,
        at_most_once_retried_after_a_start,
        history_dropped_under_what_is_active,
        forgotten_and_not_told,
        forgotten_before_its_end,
        watch_resumed_one_entry_too_late,
        time_runs_backwards_in_the_log,
        list_in_force_when_committed,
        two_lists_at_once,
        list_before_an_own_entry,
        removed_replica_counted,
        list_forgotten_in_a_snapshot,
        timer_not_moved_by_a_calendar,
        zones_from_each_replicas_package,
    )
}


OF_BACKUPS = frozenset({"backup_of_a_replaced_leader", "backup_named_for_an_earlier_entry"})
"""Those that only show where backups are made."""

OF_STOPS = frozenset(
    {
        "lease_counted_from_the_answer",
        "any_answer_confirms_the_inventory",
        "inventory_answered_before_the_loss_is_decided",
    }
)
"""Those that only show where processes are stopped for a while."""

OF_CLOCKS = frozenset({"due_by_the_executors_own_clock"})
"""Those that only show where executors' clocks are set."""

OF_MEMBERS = frozenset(
    {
        "list_in_force_when_committed",
        "two_lists_at_once",
        "list_before_an_own_entry",
        "removed_replica_counted",
        "list_forgotten_in_a_snapshot",
    }
)
"""Those that only show where replicas come and go."""


@contextlib.contextmanager
def mutated(name: str) -> Iterator[None]:
    """With the named bug; without any for an empty name."""
    patches = MUTATIONS[name]() if name else []
    kept = [(owner, attribute, owner.__dict__[attribute]) for owner, attribute, _ in patches]
    for owner, attribute, value in patches:
        setattr(owner, attribute, value)
    try:
        yield
    finally:
        for owner, attribute, value in kept:
            setattr(owner, attribute, value)
