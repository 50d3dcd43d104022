"""What must be true of what is replicated, checked at every step of every replica.

The first replica that applies an entry writes it down here; every other one, and every later life
of the same one, must apply the same entry to the same state and come to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from tickmesh.scheduler.core import audit, history, pins
from tickmesh.scheduler.core import ledger as rows
from tickmesh.scheduler.core.commands import (
    DeleteSchedules,
    Entry,
    ExecuteJobs,
    PurgeExecutions,
)
from tickmesh.scheduler.core.executions import RETURNS_MAX
from tickmesh.scheduler.core.ids import UID_BYTES, execution_id
from tickmesh.scheduler.core.model import (
    ACTIVE_STATES,
    Customer,
    Execution,
    ExecutionState,
    JobSpec,
    Reason,
    Schedule,
)
from tickmesh.scheduler.raft.journal import Ballot, Identity, Journal
from tickmesh.scheduler.raft.members import Members, decode
from tickmesh.scheduler.raft.messages import (
    KIND_MEMBERS,
    Append,
    AppendReply,
    Message,
    Vote,
    VoteReply,
)
from tickmesh.scheduler.raft.replica import Replica
from tickmesh.scheduler.store import keys
from tickmesh.scheduler.store.backend import MemoryBackend
from tickmesh.scheduler.store.queries import Queries
from tickmesh.scheduler.store.state import State
from tickmesh.scheduler.store.view import decode_schedule

from .fires import Fires
from .machine import Machine, digest_of

AUDIT_ENTRIES = 300
"""Every ledger is audited each so many entries, before its schedule is deleted, and at the end."""

_ENTRY = msgspec.msgpack.Decoder(Entry)


Stage = tuple[int, int, bool]
"""(state, attempts, whether the last one has ended): what a watch can tell apart."""

FIRED = (rows.Outcome.FIRED, rows.Outcome.CAUGHT_UP)


def stage(execution: Execution) -> Stage:
    """Of an execution, as it is stored."""
    attempts = execution.attempts
    return int(execution.state), len(attempts), bool(attempts and attempts[-1].ended_ns)


def _is_majority(some: set[str], members: Members) -> bool:
    return 2 * len(some & members.voters) > len(members.voters)


class _Reference(MemoryBackend):
    """A backend that knows its digest."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = 0

    def write(self, changes):  # type: ignore[no-untyped-def]
        for key, value in changes.items():
            earlier = self._values.get(key)
            if earlier is not None:
                self.digest ^= digest_of(key, earlier)
            if value is not None:
                self.digest ^= digest_of(key, value)
        super().write(changes)


class Ledger:
    """See the module."""

    def __init__(
        self,
        machines: list[Machine],
        arm_ahead_ms: int,
        violate: Callable[[str], None],
        members: Members,
        replicas: Callable[[], dict[str, Replica]],
    ) -> None:
        """members: the list that the group begins with; replicas: those that are up, by name."""
        self.machines = {machine.name: machine for machine in machines}
        self.lists: dict[int, Members] = {0: members}
        """Every list of replicas that was committed, by its index."""
        self._replicas = replicas
        self._violate = violate
        self._backend = _Reference()
        self.state = State(self._backend)  # type: ignore[arg-type]
        self.queries = Queries(self._backend)
        self.executions: dict[bytes, Execution] = {}
        """Every execution there ever was, as of its last change."""
        self.fires = Fires(
            arm_ahead_ms,
            violate,
            self.queries.execution,
            lambda key: self.executions.get(key),
            self.queries.schedule,
        )
        self.entries: dict[int, tuple[int, bytes]] = {}
        self.digests: dict[int, int] = {0: 0}
        self.audited = 0
        """Instants that were held against ledgers."""
        self.history: dict[bytes, list[tuple[int, Stage]]] = {}
        """Of every execution: the entries that changed it, and what it was then."""
        self.changes: list[tuple[int, bytes]] = []
        """(entry, execution) in order."""
        self.purged: set[bytes] = set()
        """Executions that were forgotten by the customer's retention."""
        self._of_schedule: dict[bytes, list[bytes]] = {}
        self._requests: dict[bytes, list[bytes]] = {}
        self._leaders: dict[int, str] = {}
        self._votes: dict[tuple[str, int, int], str] = {}
        """For whom, by voter, its disk and term: another disk of the same name is another voter."""
        self.on_change: Callable[[Execution], None] = lambda execution: None

    # -- entries -------------------------------------------------------------------------------

    def applying(self, name: str, index: int, term: int, payload: bytes) -> None:
        """A replica is about to apply an entry."""
        known = self.entries.get(index)
        if known is None:
            if index <= self.state.applied[0]:
                self._violate(f"{name} applied entry {index}, which others have passed over")
                return
            self._check_durable(index, term)
            self._extend(index, term, payload)
        elif known != (term, payload):
            self._violate(
                f"{name} applied another entry {index}: of term {term}, not of {known[0]}:"
                f" {_ENTRY.decode(payload)} instead of {_ENTRY.decode(known[1])}"
            )

    def applied(self, name: str, index: int, digest: int) -> None:
        """A replica has applied an entry and has come to this digest."""
        if self.digests.get(index) != digest:
            self._violate(f"{name} has another state after entry {index}")

    def holds(self, name: str, index: int, digest: int) -> None:
        """A replica has opened or installed a state."""
        if index and index not in self.digests:
            self._violate(f"{name} holds entry {index}, which nobody has applied")
        elif self.digests[index] != digest:
            self._violate(f"{name} holds another state as of entry {index}")

    def _extend(self, index: int, term: int, payload: bytes) -> None:
        self.entries[index] = (term, payload)
        entry = _ENTRY.decode(payload)
        if entry.time_ms < self.state.meta.time_ms:
            self._violate(f"time runs backwards in the log at entry {index}")
        for command in entry.commands:
            if isinstance(command, DeleteSchedules):
                self._audit_doomed(command)
        # A later command of the entry may have the customer keep more.
        doomed, customer = self._doomed(entry), self.queries.customer("acme")
        applied = self.state.apply(index, term, payload)
        self._check_purged(index, doomed, customer)
        self.digests[index] = self._backend.digest
        self.fires.observe(index, self.state.meta.time_ms, entry.commands, applied.outcomes)
        for execution in applied.executions:
            earlier = self.executions.get(execution.id)
            if earlier is None:
                self._of_schedule.setdefault(execution.id[-UID_BYTES:], []).append(execution.id)
            else:
                self._check_change(index, earlier, execution)
            self.executions[execution.id] = execution
            self.history.setdefault(execution.id, []).append((index, stage(execution)))
            self.changes.append((index, execution.id))
            self.on_change(execution)
        for command, outcome in zip(entry.commands, applied.outcomes, strict=True):
            if isinstance(command, ExecuteJobs) and isinstance(outcome, list) and command.request:
                made = [execution.id for execution in outcome]  # type: ignore[union-attr]
                if self._requests.setdefault(command.request, made) != made:
                    self._violate(f"a repeated request made other executions: {outcome}")
        if len(self.entries) % AUDIT_ENTRIES == 0:
            self.audit()

    def _doomed(self, entry: Entry) -> list[Execution]:
        """What an entry might forget, as it is before."""
        purges = [each for each in entry.commands if isinstance(each, PurgeExecutions)]
        found = [self.queries.execution(*key) for purge in purges for key in purge.executions]
        return [execution for execution in found if execution is not None]

    def _check_purged(self, index: int, doomed: list[Execution], customer: Customer | None) -> None:
        """What an entry forgot had ended a while ago, and is not kept by either limit."""
        now_ms = self.state.meta.time_ms
        for execution in doomed:
            if self.queries.execution(execution.job_uid, execution.id) is not None:
                continue
            self.purged.add(execution.id)
            what = f"entry {index} forgets {execution}"
            if execution.state in ACTIVE_STATES:
                self._violate(f"{what}, which has not ended")
            if now_ms - execution.end_ms < history.KEPT_MS_MIN or customer is None:
                self._violate(f"{what}, which has just ended")
                continue
            later = [
                each
                for each in self.executions.values()
                if each.job_uid == execution.job_uid
                and each.state not in ACTIVE_STATES
                and each.id[:6] >= execution.id[:6]
                and each.id not in self.purged
            ]
            old = 0 < customer.max_age_ms <= now_ms - execution.end_ms
            surplus = 0 < customer.executions_per_job_max <= len(later)
            if not old and not surplus:
                self._violate(f"{what}, which {customer} keeps: {len(later)} ended later")

    def _check_change(self, index: int, earlier: Execution, execution: Execution) -> None:
        revived = earlier.state is ExecutionState.REVOKED and earlier.schedule_id
        if earlier.state not in ACTIVE_STATES and not revived:
            self._violate(f"entry {index} changes {earlier}, which has ended, to {execution}")
        kept = len(earlier.attempts)
        if [a.number for a in execution.attempts[:kept]] != [a.number for a in earlier.attempts]:
            self._violate(f"entry {index} forgets attempts: {earlier} becomes {execution}")
        if len(execution.attempts) > kept:
            self._check_retry(index, execution)

    def _check_retry(self, index: int, execution: Execution) -> None:
        """A further attempt: it was worth one, and was allowed."""
        spec, earlier = self.spec(execution), execution.attempts[:-1]
        if not earlier:
            return
        last, retry = earlier[-1], spec.retry
        what = f"entry {index}: attempt {len(execution.attempts)} of {execution}"
        if not last.ended_ns:
            self._violate(f"{what}: the one before it has not ended")
        if spec.at_most_once and any(
            each.started_ns or each.reason is Reason.EXECUTOR_LOST for each in earlier
        ):
            self._violate(f"{what}: it may have started, and its job is at most once")
        # What was taken back or given back is no try; nor is it given out for ever.
        tries = [each for each in earlier if each.reason not in (Reason.REVOKED, Reason.RETURNED)]
        returns = sum(each.reason is Reason.RETURNED for each in earlier)
        if len(tries) >= max(1, retry.max_attempts) or returns >= RETURNS_MAX:
            self._violate(f"{what}: there are too many")
        if last.reason is Reason.EXIT_CODE and last.exit_code not in (
            retry.exit_codes or (last.exit_code,)
        ):
            self._violate(f"{what}: exit code {last.exit_code} is not worth it")

    def spec(self, execution: Execution) -> JobSpec:
        """What it runs."""
        job = self.queries.job(execution.customer, execution.job_id)
        spec = self.queries.spec(job, execution.job_uid, execution.revision)
        assert spec is not None
        return spec

    # -- the schedules' own ledgers ------------------------------------------------------------

    def audit(self) -> None:
        """Every schedule that there is."""
        for execution in self.active():
            if self.queries.execution(execution.job_uid, execution.id) is None:
                self._violate(f"{execution} has not ended, and is forgotten")
        prefix = keys.schedule(b"", "")
        for _, value in self._backend.scan(prefix, keys.after_prefix_of(prefix)):
            self._audit_one(decode_schedule(value))

    def _audit_doomed(self, command: DeleteSchedules) -> None:
        job = self.queries.job(command.customer, command.job_id)
        for schedule_id in command.schedule_ids:
            schedule = job and self.queries.schedule(job.uid, schedule_id)
            if schedule is not None:
                self._audit_one(schedule)

    def _audit_one(self, schedule: Schedule) -> None:
        meta, queries = self.state.meta, self.queries
        kept = queries.rows(schedule.uid, 0, 1 << 40)
        report = audit.verify(
            schedule,
            kept,
            lambda at_ms: queries.execution(schedule.job_uid, execution_id(at_ms, schedule.uid)),
            from_ms=0,
            until_ms=meta.time_ms + 1,
            kept_ms=meta.history_from * history.PERIOD_MS,
            ready=lambda spec: pins.ready(queries.view(), schedule.customer, spec),
        )
        self.audited += report.instants
        if report.problems:
            first = report.problems[0]
            self._violate(
                f"the audit of {schedule.schedule_id} finds {first.kind} at {first.at_ms}:"
                f" {first.text}. {schedule}; {kept[-12:]}"
            )
        fired = {row.first_ms for _, row in kept if row.outcome in FIRED}
        for identity in self._of_schedule.get(schedule.uid, []):
            nominal_ms = int.from_bytes(identity[:6], "big")
            if nominal_ms not in fired and report.complete:
                self._violate(f"{self.executions[identity]} has no row of its own")

    @property
    def is_pinning(self) -> bool:
        """Whether schedules have still to follow a calendar or a zone that has changed."""
        view = self.queries.view()
        return view.zones_pending() is not None or bool(view.calendars_pending(1))

    def check_pins(self) -> None:
        """When nothing is pending, every schedule follows what its calendars and zones are now."""
        view = self.queries.view()
        for schedule in view.schedules_after(b"", 1_000_000):
            now = pins.pinned(view, schedule.customer, schedule.spec)
            if not schedule.spec.zone_digest:
                # Made while a replica was not known to know pins: it follows the package.
                now = replace(now, zone_digest=b"")
            if now != schedule.spec:
                self._violate(f"{schedule} does not follow {now}")

    def _check_durable(self, index: int, term: int) -> None:
        """Whoever applies first knows that it is committed: a majority must hold it on disk."""
        key = b"e" + index.to_bytes(8, "big")
        holders: set[str] = set()
        for name, machine in self.machines.items():
            # An acknowledgement may be under way when the disk behind it is lost: it counts.
            values = (machine.journal.durable.get(key), machine.journal.lost.get(key))
            if any(v is not None and int.from_bytes(v[4:12], "big") == term for v in values):
                holders.add(name)
        # A leader counts by the last list that it has, which may be later than the entry.
        lists = [self.members_at(index)]
        for replica in self._replicas().values():
            lists += [members for at, members in replica._journal._lists if at > index]
        if not any(_is_majority(holders, members) for members in lists):
            self._violate(f"entry {index} was applied while only {holders} hold it: {lists}")

    # -- the list of replicas ------------------------------------------------------------------

    def members_at(self, index: int) -> Members:
        """The committed list in force there."""
        return self.lists[max(at for at in self.lists if at <= index)]

    def listed(self, name: str, index: int, term: int, command: bytes) -> None:
        """A replica has come to a committed list."""
        members, known = decode(command[1:]), self.lists.get(index)
        if known is not None:
            if known != members:
                self._violate(f"{name} has the list {members} at {index}, others {known}")
            return
        before = self.members_at(index)
        if index > max(self.lists):
            if members.number != before.number + 1 or len(members.voters ^ before.voters) > 1:
                self._violate(f"{members} follows {before}")
            self.lists[index] = members
            self._check_durable(index, term)

    def holds_list(self, name: str, journal: Journal) -> None:
        """A replica has opened its journal, or made it from a snapshot."""
        base, (_, members) = journal.base.index, journal._lists[0]
        expected = self.members_at(base)
        # Who joined without data begins with its configuration, and takes lists from the log: the
        # first list of the group is not in there, and nobody asks for it once there is another.
        joined = members.number == expected.number == 0 and journal.members.number > 0
        told = (members.number, members.voters) == (expected.number, expected.voters)
        if base > 1 and not told and not joined:
            self._violate(f"{name} begins at {base} with {members}, not with {expected}")

    def _list_below(self, journal: Journal, index: int) -> tuple[int, Members]:
        """By the entries alone: which list is in force before the one at `index`."""
        for entry in reversed(journal.entries):
            if entry.index < index and entry.command[:1] == KIND_MEMBERS:
                return entry.index, decode(entry.command[1:])
        return 0, self.members_at(journal.base.index)

    def _check_election(self, leader: str, term: int) -> None:
        """Whoever leads was voted for by a majority of the list that it had."""
        replica = self._replicas().get(leader)
        if replica is None or replica._member.first_index_of_term is None:
            return
        _, members = self._list_below(replica._journal, replica._member.first_index_of_term)
        backers = {
            voter
            for (voter, disk, at), candidate in self._votes.items()
            if at == term and candidate == leader and members.names(voter, disk)
        }
        if not _is_majority(backers | {leader}, members):
            self._violate(f"{leader} leads in term {term} by {backers}, with the list {members}")

    def changes_list(self, leader: str, journal: Journal, commit_index: int, term: int) -> None:
        """A leader has appended a list: after an entry of its own and the last list, committed."""
        index = journal.last_index
        committed = journal.at(commit_index)
        before, _ = self._list_below(journal, index)
        if before > commit_index:
            self._violate(f"{leader} makes a list at {index}; that at {before} is open")
        if committed is None or committed.term != term:
            self._violate(f"{leader} makes a list at {index} before an entry of its own is safe")

    # -- messages ------------------------------------------------------------------------------

    def sent(self, sender: str, recipient: str, message: Message) -> None:
        """A replica sends a message."""
        match message:
            case Append():
                if message.term not in self._leaders:
                    self._check_election(sender, message.term)
                leader = self._leaders.setdefault(message.term, sender)
                if leader != sender:
                    self._violate(f"{leader} and {sender} both lead in term {message.term}")
            case VoteReply(granted=True, pre=False):
                self._vote(sender, recipient, message.request_term)
            case Vote(pre=False):
                self._vote(sender, sender, message.term)
            case AppendReply(success=True):
                pass
            case _:
                pass

    def _vote(self, voter: str, candidate: str, term: int) -> None:
        sealed = self.machines[voter].journal.durable.get(b"m/ballot", b"")
        ballot = msgspec.msgpack.decode(sealed[4:], type=Ballot) if sealed else Ballot(0, None)
        if ballot.term < term:
            self._violate(f"{voter} votes in term {term}; its disk is in term {ballot.term}")
        sealed = self.machines[voter].journal.durable[b"m/identity"]
        disk = msgspec.msgpack.decode(sealed[4:], type=Identity).incarnation
        earlier = self._votes.setdefault((voter, disk, term), candidate)
        if earlier != candidate:
            self._violate(f"{voter} votes for {candidate} and {earlier} in term {term}")

    # -- executions ----------------------------------------------------------------------------

    def is_forgotten(self, identity: bytes) -> bool:
        """Whether an execution's history has been dropped, or the customer does not keep it."""
        if identity in self.purged:
            return True
        due = history.period(int.from_bytes(identity[:6], "big"))
        return due < self.state.meta.history_from

    def active(self) -> list[Execution]:
        """Executions that have not ended."""
        return [e for e in self.executions.values() if e.state in ACTIVE_STATES]
