"""One replica of a Raft group, driven in rounds on one event loop: take what arrived, decide, make
the journal durable, then send, then apply, then answer.

Nothing is sent, applied or answered before the flush that covers it. A round's flush runs in a
worker thread; what arrives meanwhile waits for the next round and shares its flush. What decides
nothing, as most heartbeats and their answers, is taken between rounds and wakes none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from .alarm import Alarm
from .changes import Changes
from .clocks import PeerClock
from .config import ReplicaConfig
from .environment import Environment
from .errors import (
    ChangeRefused,
    JournalError,
    NotLeader,
    OutcomeUnknown,
    ReplicaBusy,
    ReplicaFailed,
)
from .handover import HandOver
from .installation import Installation
from .journal import Journal
from .limits import (
    CLOCK_RETIREMENT_S,
    COMPACTION_INTERVAL_S,
    HAND_OVER_S,
    INBOX_MESSAGES_MAX,
    PAYLOAD_BYTES_MAX,
    PROPOSALS_PENDING_MAX,
    ROUND_APPLY_MAX,
    ROUND_APPLY_S,
    ROUND_MESSAGES_MAX,
    SOUND_WAIT_S,
)
from .member import Member
from .members import Members
from .messages import (
    KIND_COMMAND,
    KIND_MEMBERS,
    KIND_NOTHING,
    Append,
    Entry,
    Exclusion,
    Greeting,
    Introduction,
    Message,
    SnapshotHeader,
    SnapshotPart,
    SnapshotReply,
)
from .reads import Reads
from .shipping import Shipping
from .standing import Standing
from .state_machine import StateMachine
from .status import ReplicaStatus
from .transport import RaftTransport
from .verdict import Verdict

logger = logging.getLogger(__name__)


class Replica:
    """See the module. All methods are for the event loop that `start` ran on."""

    def __init__(
        self,
        config: ReplicaConfig,
        state: StateMachine,
        transport: RaftTransport,
        environment: Environment | None = None,
    ) -> None:
        self.config = config
        self.failed = asyncio.Event()
        self.failure: ReplicaFailed | None = None
        self._state = state
        self._transport = transport
        self._environment = environment or Environment()
        self._journal_worker = self._environment.worker("raft-journal")
        self._state_worker = self._environment.worker("raft-state")
        self._work = asyncio.Event()
        self._rests = False
        """Between two rounds, nothing is under way."""
        self._inbox: deque[tuple[str, Message | bool]] = deque()
        self._proposals: deque[tuple[bytes, asyncio.Future[object]]] = deque()
        self._pending: dict[int, tuple[int, asyncio.Future[object]]] = {}
        self.apply_s = 0.0  # how long applying the last entry took
        self._list_watchers: list[Callable[[], None]] = []
        self.removed = asyncio.Event()
        """The group has removed this replica: it does nothing any more, and should end."""
        self._hand_over: HandOver | None = None
        self._watchers: list[Callable[[int | None], None]] = []
        self._told_term: int | None = None
        # Flushes run beside the event loop; the state must not be replaced under them.
        self._state_lock = asyncio.Lock()
        self._compact_to = 0
        self._compaction_due_s = -math.inf
        self._stopping = False
        self._driver: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the journal, finishes an interrupted installation, and takes part in the group.

        Raises WrongJournal, JournalError or SafetyViolation when the disk does not fit.
        """
        config = self.config
        config.directory.mkdir(parents=True, exist_ok=True)
        storage = self._environment.storage(config.directory / "journal")
        try:
            self._journal = Journal(
                storage,
                config.group_id,
                config.replica_id,
                config.members,
                bootstrap=config.bootstrap,
                incarnation=self._environment.incarnation,
            )
            self._installation = Installation(
                config, self._state, self._state_lock, self._state_worker, self._journal
            )
            self._installation.finish()
            self._check_state()
            self._member = Member(
                config,
                self._journal,
                self._environment.clock,
                self._environment.random,
                self._environment.wall_ns,
            )
        except BaseException:
            storage.close()
            raise
        self._member.jump_to(self._state.applied[0])
        clock = self._environment.clock
        self._alarm = Alarm(clock, self._member.next_deadline, self._work.set)
        self._reads = Reads(self._member)
        self._changes = Changes(self._member)
        self._verdict = Verdict(config, self._member, clock)
        self._shipping = Shipping(
            config,
            self._state,
            self._state_lock,
            self._member,
            self._transport,
            self._state_worker,
        )
        self._standing = Standing(
            config, self._member, self._transport, self.removed, self._list_watchers
        )
        await self._persist()
        if self._journal.members.number == 0 and config.members.ids != self._journal.members.ids:
            logger.warning(
                "%s is configured with the replicas %s, but its group consists of %s: the"
                " configuration only says what a new group begins with; see AddReplica and"
                " RemoveReplica",
                config.replica_id,
                config.members.ids,
                self._journal.members.ids,
            )
        self._standing.follow()
        self._driver = asyncio.create_task(self._drive(), name=f"raft {config.replica_id}")
        await self._transport.start(self)

    async def stop(self) -> None:
        """Takes no more part. Proposals that wait end with OutcomeUnknown."""
        self._stopping = True
        self._work.set()
        await self._transport.stop()
        for task in list(self._tasks):
            task.cancel()
        if self._driver is not None:
            await asyncio.gather(self._driver, *self._tasks, return_exceptions=True)
            # A cancelled task leaves its call to the thread: the caller closes the state next.
            await self._state_worker.run(lambda: None)
            self._abandon()
            self._journal.close()
        self._journal_worker.close()
        self._state_worker.close()

    def _check_state(self) -> None:
        index, term = self._state.applied
        base, last = self._journal.base, self._journal.last_index
        held = self._journal.at(index)
        if index == 0 and base.index == 1:
            return
        if held is None or held.term != term:
            raise JournalError(
                f"the state holds ({index}, {term}), the journal"
                f" {held.term if held else 'nothing'} there, entries {base.index} to {last}: they"
                " do not belong together. Wipe both and start this replica without bootstrap"
            )

    # -- what callers see ----------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        return self._running and self._member.is_leader

    @property
    def leader_id(self) -> str | None:
        return self._member.leader_id

    @property
    def term(self) -> int:
        return self._member.term

    @property
    def applied_index(self) -> int:
        return self._member.applied_index

    @property
    def commit_index(self) -> int:
        return self._member.commit_index

    @property
    def committed_members(self) -> Members:
        """The last list of replicas that is known to be committed."""
        return self._member.committed_members

    @property
    def votes(self) -> bool:
        """Whether it counts: its disk is complete, and its list has it as a voter."""
        return self._running and self._standing.votes

    def on_members(self, callback: Callable[[], None]) -> None:
        """`callback()` when another list is committed, and when this replica begins or ceases to
        vote. On the event loop; it must not raise."""
        self._list_watchers.append(callback)

    @property
    def entry_version(self) -> int:
        """The highest version of payloads that may be proposed: every replica can apply it."""
        return self._member.entry_version

    @property
    def _running(self) -> bool:
        return self._driver is not None and not self._stopping and self.failure is None

    def status(self) -> ReplicaStatus:
        """A consistent picture of now."""
        member, journal = self._member, self._journal
        return ReplicaStatus(
            self.config.group_id,
            self.config.replica_id,
            member.leader_id,
            self.is_leader,
            journal.voter,
            member.term,
            member.applied_index,
            member.commit_index,
            journal.base.index,
            journal.last_index,
            journal.size_bytes,
            tuple(sorted(member.connected)),
            None if self.failure is None else str(self.failure),
            member.clocks.known if self.is_leader else (),
            member.clocks.step_count,
            member.clocks.last_step_ns,
            self._verdict.fault,
            member.members,
            journal.members_index <= member.commit_index,
        )

    def subscribe(self, callback: Callable[[int | None], None]) -> None:
        """`callback(term)` when this replica leads and has applied everything committed before its
        term; `callback(None)` when it leads no more. On the event loop; it must not raise."""
        self._watchers.append(callback)
        if self._told_term is not None:
            callback(self._told_term)

    async def propose(self, payload: bytes) -> object:
        """What `apply` returned here, once the payload is committed and applied.

        Raises NotLeader, ReplicaBusy (nothing was proposed), OutcomeUnknown, ReplicaFailed.
        """
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"a payload of {len(payload)} bytes exceeds {PAYLOAD_BYTES_MAX}")
        self._check_leading()
        if len(self._proposals) + len(self._pending) >= PROPOSALS_PENDING_MAX:
            raise ReplicaBusy(f"{PROPOSALS_PENDING_MAX} proposals are waiting already")
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._proposals.append((payload, future))
        self._work.set()
        return await future

    async def read_barrier(self) -> None:
        """After it, this replica's state holds everything that was acknowledged before the call.

        Raises NotLeader, ReplicaBusy, ReplicaFailed.
        """
        self._check_leading()
        future = self._reads.add()
        self._work.set()
        await future

    async def hand_over(self, to: str = "", timeout_s: float = HAND_OVER_S) -> str | None:
        """Makes `to`, or any peer that holds the whole log, lead. Who leads then; None if that is
        still this replica, or not known in time. Proposals wait meanwhile; if it succeeds they end
        with NotLeader. Raises NotLeader, ReplicaFailed.
        """
        self._check_leading()
        voting = tuple(sorted(self._member.voting))
        if to and to not in voting:
            raise ValueError(f"{to!r} is no other voter: {voting!r}")
        if self._hand_over is None:
            until_s = self._environment.clock() + timeout_s
            off = {clock.peer for clock in self._member.clocks.off}
            sound = tuple(peer for peer in voting if peer not in off)
            peers = (to,) if to else sound or voting
            self._hand_over = HandOver(self._member, peers, until_s)
            self._work.set()
        return await asyncio.shield(self._hand_over.done)

    async def add_replica(self, replica_id: str, address: str, incarnation: int = 0) -> Members:
        """Commits a list with one replica more. It counts for nothing at first; whoever leads makes
        it a voter when it has caught up. incarnation: of its disk, which alone counts; 0: any.

        Raises ChangeRefused (nothing was changed), NotLeader, OutcomeUnknown, ReplicaFailed.
        """
        self._check_changeable()
        members = self._member.members.with_learner(replica_id, address, incarnation)
        return await self._commit_list(members)

    async def remove_replica(self, replica_id: str) -> Members:
        """Commits a list without a replica. Hands leadership over first if it is this one, and ends
        with NotLeader then: the next leader removes it.

        Raises ChangeRefused (nothing was changed), NotLeader, OutcomeUnknown, ReplicaFailed.
        """
        self._check_changeable()
        members = self._member.members.without(replica_id)
        await self._wait_until_sound(replica_id, members)
        self._check_changeable()
        if replica_id != self.config.replica_id:
            return await self._commit_list(members)
        if await self.hand_over() is None:
            raise ChangeRefused(
                f"{replica_id!r} leads, and no other replica could take over: nothing was changed"
            )
        raise NotLeader(self._member.leader_id)

    async def _wait_until_sound(self, replica_id: str, without: Members) -> None:
        """Who leads since a moment ago has not heard of all yet."""
        until_s = self._environment.clock() + SOUND_WAIT_S
        while True:
            try:
                self._changes.check_sound(replica_id, without)
            except ChangeRefused:
                if self._environment.clock() >= until_s:
                    raise
            else:
                return
            await asyncio.sleep(self.config.heartbeat_interval_s)
            self._check_leading()

    def _check_changeable(self) -> None:
        self._check_leading()
        self._changes.check()

    async def _commit_list(self, members: Members) -> Members:
        future = self._changes.ask(members)
        self._work.set()
        await future
        return members

    async def checkpoint(self, directory: Path) -> tuple[int, int]:
        """Copies the state as it is now into `directory`, which is made anew, by links where that
        is possible; the (index, term) that the copy holds. Commits go on meanwhile."""
        if not self._running:
            raise ReplicaFailed("this replica does not run")
        async with self._state_lock:
            await self._state_worker.run(self._state.flush)
            return self._state.checkpoint(directory)

    def transfer_leadership(self, peer: str) -> bool:
        """Asks `peer` to lead, at once and whatever is open; False when it does not hold the whole
        log or this does not lead. For tests: `hand_over` is the orderly way."""
        asked = self.is_leader and self._member.transfer_to(peer)
        self._work.set()
        return asked

    def _check_leading(self) -> None:
        if self.failure is not None:
            raise ReplicaFailed(f"this replica has failed: {self.failure}")
        if not self._running or not self._member.is_leader:
            raise NotLeader(self._member.leader_id if self._driver is not None else None)

    # -- what the transport calls --------------------------------------------------------------

    @property
    def introduction(self) -> Introduction:
        return Introduction(
            self.config.group_id,
            self.config.replica_id,
            self._journal.last_index,
            self._journal.voter,
            self.config.entry_version,
            self._journal.identity.incarnation,
        )

    @property
    def greeting(self) -> Greeting:
        return self._standing.greeting

    def excludes(self, peer: str, greeting: Greeting) -> Exclusion | None:
        return self._standing.excludes(peer, greeting)

    def on_excluded(self, peer: str, exclusion: Exclusion) -> None:
        if self._running:
            self._standing.on_excluded(peer, exclusion)

    def on_message(self, peer: str, message: Message) -> None:
        if not self._running:
            return
        try:
            taken = self._take_sign(peer, message)
        except Exception as error:  # as in a round
            self._fail(error)
            return
        if not taken and len(self._inbox) < INBOX_MESSAGES_MAX:
            self._inbox.append((peer, message))
            self._work.set()

    def on_connected(self, peer: str) -> None:
        self._inbox.append((peer, True))
        self._work.set()

    def on_disconnected(self, peer: str) -> None:
        self._inbox.append((peer, False))
        self._work.set()

    async def on_snapshot(
        self, peer: str, header: SnapshotHeader, parts: AsyncIterator[SnapshotPart]
    ) -> SnapshotReply:
        if not self._running:
            return SnapshotReply(False, "busy")
        return await self._installation.receive(self._member, header, parts, self._work.set)

    # -- rounds --------------------------------------------------------------------------------

    async def _drive(self) -> None:
        try:
            while not self._stopping:
                await self._wait()
                await self._round()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._fail(error)
        finally:
            self._alarm.cancel()

    async def _wait(self) -> None:
        if self._work.is_set():
            await asyncio.sleep(0)  # the loop breathes even when there is always work
        else:
            self._alarm.set()
            self._rests = True
            await self._work.wait()
            self._rests = False
        self._work.clear()

    async def _round(self) -> None:
        member = self._member
        self._receive()
        await self._installation.install(member, self._persist)
        self._take_proposals()
        self._change_members()
        member.tick()
        if (leader := member.suspect()) is not None:
            self._spawn(self._look_for(leader))
        self._notice_stand_down()
        if against := self._verdict.watch():
            self._retire(against)
        self._advance_hand_over()
        self._reads.ask()
        if self._compact_to:
            self._journal.compact(self._compact_to)
            self._compact_to = 0
        member.replicate()
        outbox = self._send_ahead()
        await self._persist()
        self._standing.follow()
        if self.failure is not None:
            return  # something beside the rounds failed meanwhile: not a word more
        for peer, message in outbox:
            self._transport.send(peer, message)
        self._apply()
        self._notice_leadership()
        if self._reads.answer() or self._inbox or member.commit_index > member.applied_index:
            self._work.set()
        self._keep_house()

    def _take_sign(self, peer: str, message: Message) -> bool:
        """Between rounds: a message that decides nothing needs no round of its own, and most are
        such. What a round does with time is done by the leader's, which come with its heartbeats.
        """
        member = self._member
        if (
            not self._rests
            or self._work.is_set()
            or (member.is_leader and not self._is_settled)
            or self._compaction_is_due()
            or not member.receive_sign(peer, message)
        ):
            return False
        if not member.is_leader:
            self._verdict.watch()
            self._alarm.set()
        outbox, member.outbox = member.outbox, []
        for recipient, answer in outbox:
            self._transport.send(recipient, answer)
        return True

    @property
    def _is_settled(self) -> bool:
        """A leader: nobody waits for an answer of the others."""
        return (
            self._told_term == self._member.term
            and self._hand_over is None
            and not self._reads.wait
        )

    async def _look_for(self, leader: str) -> None:
        self._member.judge(leader, await self._transport.answers(leader))
        self._work.set()

    def _receive(self) -> None:
        for _ in range(min(len(self._inbox), ROUND_MESSAGES_MAX)):
            peer, message = self._inbox.popleft()
            if isinstance(message, bool):
                self._member.set_connected(peer, message)
            else:
                self._member.receive(peer, message)

    def _take_proposals(self) -> None:
        member = self._member
        if self._hand_over is not None and member.is_leader:
            return  # they wait: either for the next leader's name, or for this one to go on
        while self._proposals:
            payload, future = self._proposals.popleft()
            if future.done():
                continue  # its caller has gone
            if member.is_leader:
                position = member.propose(payload)
                self._pending[position.index] = (position.term, future)
            else:
                future.set_exception(NotLeader(member.leader_id))

    def _change_members(self) -> None:
        if self._hand_over is not None and self._member.is_leader:
            return
        if (made := self._changes.make()) is not None:
            position, future = made
            self._pending[position.index] = (position.term, future)

    def _send_ahead(self) -> list[tuple[str, Message]]:
        """Sends what may leave before our own disk has it; answers the rest.

        A leader's new entries may: so its followers sync while it does. It counts itself in the
        next round, when it has them: what is committed is always durable here (library.py). One
        that loses them with its power is not elected for their term again; so no other entry ever
        has their index and term.
        """
        member, journal = self._member, self._journal
        outbox, member.outbox = member.outbox, []
        if not (member.is_leader and journal.dirty and journal.appending) or self.failure:
            return outbox
        rest: list[tuple[str, Message]] = []
        for peer, message in outbox:
            if isinstance(message, Append):
                self._transport.send(peer, message)
            else:
                rest.append((peer, message))
        return rest

    async def _persist(self) -> None:
        """Until it returns, nothing else that this round decided may be seen by anybody else."""
        journal = self._journal
        if journal.dirty:
            written = journal.write()
            await self._journal_worker.run(journal.flush)
            journal.flushed(written)

    def _apply(self) -> None:
        member, journal = self._member, self._journal
        if member.commit_index <= member.applied_index:
            return
        first = member.applied_index + 1
        now_s = self._environment.clock()
        until_s = now_s + ROUND_APPLY_S
        for index in range(first, min(member.commit_index, first + ROUND_APPLY_MAX - 1) + 1):
            entry = journal.at(index)
            assert entry is not None, "the journal holds everything that is not applied"
            began_s, result = now_s, self._apply_entry(entry)
            now_s = self._environment.clock()
            self.apply_s = now_s - began_s
            member.applied_index = index
            term, future = self._pending.pop(index, (0, None))
            if future is not None and not future.done():
                if term == entry.term:
                    future.set_result(result)
                else:
                    future.set_exception(OutcomeUnknown(f"entry {index} is another leader's"))
            if now_s >= until_s:
                return

    def _apply_entry(self, entry: Entry) -> object:
        kind = entry.command[:1]
        if kind == KIND_COMMAND:
            return self._state.apply(entry.index, entry.term, entry.command[1:])
        if kind == KIND_MEMBERS:
            committed = self._journal.lists_from(entry.index)[0]  # later ones may be in force
            logger.info("list %d of the replicas is committed", committed.number)
            return None
        if kind != KIND_NOTHING:
            raise JournalError(f"entry {entry.index} is of the unknown kind {kind!r}")
        return None

    # -- leadership ----------------------------------------------------------------------------

    def _notice_stand_down(self) -> None:
        member = self._member
        if member.stood_down:
            member.stood_down = False
            self._verdict.forget()
            self._tell(None)
            for _, future in self._pending.values():
                if not future.done():
                    future.set_exception(OutcomeUnknown("leadership was lost before the commit"))
            self._pending.clear()
        if not member.is_leader:
            self._reads.refuse()

    def _advance_hand_over(self) -> None:
        over = self._hand_over
        if over is not None and over.advance(self._environment.clock()):
            self._hand_over = None
            if over.retires:
                self._member.retire(CLOCK_RETIREMENT_S)
                self._notice_stand_down()
            self._work.set()  # for the proposals that have waited

    def _notice_leadership(self) -> None:
        member = self._member
        first = member.first_index_of_term
        if (
            member.is_leader
            and first is not None
            and member.applied_index >= first
            and (self._told_term == member.term or self._verdict.is_given)
        ):
            self._tell(member.term)

    def _retire(self, against: tuple[PeerClock, ...]) -> None:
        """A leader whose clock is wrong lets another lead, by one whose clock is right if that is
        possible."""
        member = self._member
        self._verdict.condemn(against, told=self._hand_over is not None)
        if self._told_term is None:
            # It has decided nothing yet in this term.
            member.retire(CLOCK_RETIREMENT_S)
            self._notice_stand_down()
        elif self._hand_over is None:
            until_s = self._environment.clock() + HAND_OVER_S
            peers = tuple(clock.peer for clock in against)
            self._hand_over = HandOver(member, peers, until_s, retires=True)

    def _tell(self, term: int | None) -> None:
        if term != self._told_term:
            self._told_term = term
            for watcher in self._watchers:
                watcher(term)

    # -- snapshots and compaction --------------------------------------------------------------

    def _keep_house(self) -> None:
        self._shipping.expire(self._environment.clock())
        for peer in self._member.snapshots_wanted:
            if self._shipping.claim(peer, self._environment.clock()):
                self._spawn(self._ship(peer))
        if self._compaction_is_due():
            self._compaction_due_s = self._environment.clock() + COMPACTION_INTERVAL_S
            self._spawn(self._compact())

    async def _ship(self, peer: str) -> None:
        await self._shipping.ship(peer, self._environment.clock)
        self._work.set()

    def _compaction_is_due(self) -> bool:
        config, journal = self.config, self._journal
        return (
            len(journal.entries) > config.retain_entries + config.retain_entries // 8 + 1
            or journal.size_bytes > config.retain_bytes + config.retain_bytes // 8
        ) and self._environment.clock() >= self._compaction_due_s

    async def _compact(self) -> None:
        """Only what is durable in the state may leave the journal."""
        async with self._state_lock:
            applied, _ = self._state.applied
            await self._state_worker.run(self._state.flush_wal)
        self._compact_to = self._shipping.compaction_index(self._journal, applied)
        self._work.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    # -- the end -------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Fail-stop: this replica says nothing more. The process is expected to exit."""
        if self.failure is not None or self._stopping:
            return
        if isinstance(error, ReplicaFailed):
            self.failure = error
        else:
            self.failure = ReplicaFailed(f"{type(error).__name__}: {error}")
            self.failure.__cause__ = error
        logger.critical(
            "replica %s of %s has failed",
            self.config.replica_id,
            self.config.group_id,
            exc_info=error,
        )
        self._abandon()
        self._stopping = True
        self._work.set()
        self.failed.set()

    def _abandon(self) -> None:
        for _, future in self._proposals:
            if not future.done():
                future.set_exception(NotLeader(None))
        for _, future in self._pending.values():
            if not future.done():
                future.set_exception(OutcomeUnknown("this replica has stopped"))
        self._installation.abandon()
        if self._hand_over is not None:
            self._hand_over.end(None)
            self._hand_over = None
        self._changes.abandon(None)
        self._proposals.clear()
        self._pending.clear()
        self._reads.fail(NotLeader(None))
        with contextlib.suppress(Exception):
            self._tell(None)
