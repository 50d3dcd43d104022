"""ShardService: the adapter between gRPC and the shard, and which role may call what."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ..mesh import names, telemetry
from ..mesh.clock import Clock
from ..mesh.errors import (
    AlreadyExists,
    CursorExpired,
    FailedPrecondition,
    InternalError,
    MessageTooLarge,
    NoLeader,
    NotBuilt,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    TickmeshError,
    Unavailable,
    invalid,
    refuse,
    to_status,
)
from ..mesh.limits import INTERNAL_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX
from ..mesh.tls import require_role
from ..proto.tickmesh.internal.v1 import shard_pb2, shard_pb2_grpc
from ..proto.tickmesh.v1 import cluster_pb2, execution_pb2
from . import convert
from .calls import Calls, Write
from .core.ids import attempt_id
from .core.model import ACTIVE_STATES, Execution
from .dispatch import Dispatcher, Link
from .operations import Operations
from .raft.errors import AlreadyMember, ChangeRefused, NoSuchMember, NotLeader, RaftError
from .raft.errors import OutcomeUnknown as RaftOutcomeUnknown
from .shard import Shard
from .watch import RESIGNED, Change, pieces
from .zones import Zones

CALLS_MAX = 1_024
"""Calls in one CallRequest: as the gateway sends them."""

ANSWERS_BYTES_MAX = INTERNAL_MESSAGE_BYTES_MAX - 1024 * 1024
"""Answers in one CallResponse: what it takes less what stands around them."""

CATCH_UP_CHUNK = 1_000
"""Stored changes looked at before others have a turn: about 10 ms. Of all streams that catch up one
does so a turn: five hundred with old cursors would take five seconds."""

log = telemetry.logger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


def explain(error: Exception) -> TickmeshError:
    """An exception as what the client is told."""
    match error:
        case TickmeshError():
            return error
        case NotLeader():
            return NoLeader("the shard has no leader now; nothing was changed")
        case AlreadyMember():
            return AlreadyExists(str(error))
        case NoSuchMember():
            return NotFound(str(error))
        case ChangeRefused():
            return FailedPrecondition(str(error))
        case RaftOutcomeUnknown():
            return OutcomeUnknown(
                "the shard lost its leader before the commit was known: repeat with the same "
                "request_id, or read"
            )
        case RaftError():
            return Unavailable(f"the shard's replica cannot go on: {error}")
        case DecodeError():
            return invalid("request", "is not a message of its type")
    log.error("a call failed", exc_info=error)
    return InternalError(f"a bug of ours: {type(error).__name__}")


class ShardService(shard_pb2_grpc.ShardServiceServicer):
    """See shard.proto."""

    def __init__(
        self,
        shard: Shard,
        clock: Clock,
        shard_id: str,
        replica_id: str,
        draw: Callable[[int], bytes] = os.urandom,
        operations: Operations | None = None,
    ) -> None:
        """draw: so many bytes that nobody can guess, for new ids."""
        self._shard = shard
        self._calls = Calls(shard, draw)
        self._steps = {
            **self._calls.methods.steps,
            **Zones(shard).steps,
            **(operations.steps if operations else {}),
        }
        self._clock = clock
        self._shard_id = shard_id
        self._replica_id = replica_id
        self._catching_up = asyncio.Lock()
        self._attached: dict[Link, None] = {}  # in the order that they came
        shard.on_leadership(self._announce)
        shard.replica.on_members(self._announce_members)

    # -- gateways ------------------------------------------------------------------------------

    async def Call(
        self, request: shard_pb2.CallRequest, context: Context
    ) -> shard_pb2.CallResponse:
        """See shard.proto."""
        await self._admit(context, "gateway")
        if len(request.calls) > CALLS_MAX:
            await refuse(context, invalid("calls", f"are more than {CALLS_MAX}"))
        replica = self._shard.replica
        if self._shard.leading is None or not replica.is_leader:
            return shard_pb2.CallResponse(not_leader=True, leader_id=replica.leader_id or "")
        replies = await self._answer(request.calls, self._shard.leading)
        return shard_pb2.CallResponse(replies=replies)

    async def _answer(self, calls: Any, leading: Dispatcher) -> list[shard_pb2.Reply]:
        """Submit every write, then read, then take the writes' outcomes. What is refused at once is
        refused as a read is answered: by who still leads."""
        answers: list[Any] = [None] * len(calls)
        reads: list[tuple[int, Any, Any]] = []
        steps: list[tuple[int, asyncio.Task[Any]]] = []
        for index, call in enumerate(calls):
            try:
                if call.method in self._calls.methods.writes:
                    kind, write = self._calls.methods.writes[call.method]
                    request = kind.FromString(call.request)
                    try:
                        answers[index] = submitted = write(request)
                        _release_later(submitted, leading)
                    except Overloaded:
                        raise
                    except TickmeshError as error:
                        # By the state here, which may be behind: as true as what is read there.
                        reads.append((index, _refusing(error), request))
                elif call.method in self._calls.methods.reads:
                    kind, read = self._calls.methods.reads[call.method]
                    reads.append((index, read, kind.FromString(call.request)))
                elif call.method in self._steps:
                    kind, step = self._steps[call.method]
                    coroutine: Any = step(kind.FromString(call.request))
                    steps.append((index, asyncio.create_task(coroutine)))
                else:
                    raise NotBuilt(
                        f"this replica does not know {call.method}: is it an older version?"
                    )
            except Exception as error:
                answers[index] = explain(error)
        if reads:
            await self._read(reads, answers)
        for index, task in steps:
            try:
                answers[index] = await task
            except Exception as error:
                answers[index] = explain(error)
        for index, answer in enumerate(answers):
            if isinstance(answer, Write):
                answers[index] = await self._written(answer)
        replies = [self._reply(answer) for answer in answers]
        _leave_out(replies, [call.method in self._calls.methods.reads for call in calls])
        return replies

    async def _read(self, reads: list[tuple[int, Any, Any]], answers: list[Any]) -> None:
        try:
            await self._shard.replica.read_barrier()
        except Exception as error:
            for index, _, _ in reads:
                answers[index] = explain(error)
            return
        for index, read, request in reads:
            try:
                answers[index] = read(request)
            except Exception as error:
                answers[index] = explain(error)
            if hasattr(request, "page_size") or hasattr(request, "count"):
                # Many records, or instants: up to 0.1 s. Timers and commits are not to wait for all
                # of a message's.
                await asyncio.sleep(0)

    @staticmethod
    async def _written(write: Write) -> Any:
        try:
            return write.respond(await write.outcome)
        except Exception as error:
            return explain(error)

    @staticmethod
    def _reply(answer: Any) -> shard_pb2.Reply:
        if isinstance(answer, TickmeshError):
            return _refusal(answer)
        response = answer.SerializeToString()
        if len(response) > MESSAGE_BYTES_MAX:
            return _refusal(
                MessageTooLarge(
                    f"the answer has {len(response):,} bytes, more than the limit of "
                    f"{MESSAGE_BYTES_MAX:,}: ask for less, as by page_size; what was to be done is "
                    "done",
                    metadata={"limit_bytes": str(MESSAGE_BYTES_MAX), "bytes": str(len(response))},
                )
            )
        return shard_pb2.Reply(response=response)

    async def Watch(
        self, request: shard_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[shard_pb2.WatchResponse]:
        """See shard.proto."""
        await self._admit(context, "gateway")
        try:
            asked = execution_pb2.WatchExecutionsRequest.FromString(request.request)
            await self._shard.replica.read_barrier()
            async for response in self._watch(asked):
                yield shard_pb2.WatchResponse(response=response.SerializeToString())
        except Exception as error:
            await refuse(context, explain(error))

    async def _watch(
        self, asked: execution_pb2.WatchExecutionsRequest
    ) -> AsyncIterator[execution_pb2.WatchExecutionsResponse]:
        changes = self._shard.changes
        one: Execution | None = None
        if "/executions/" in asked.parent:
            one = self._calls.executions.find(asked.parent)
            customer, job_id = one.customer, one.job_id
        else:
            customer, job_id = names.parse_job(asked.parent, "parent")
        schedule_id = ""
        if asked.schedule:
            parts = names.parse_schedule(asked.schedule, "schedule")
            if parts.customer != customer or job_id not in (parts.job, names.ANY_JOB):
                raise invalid("schedule", f"is not a schedule of {asked.parent}")
            schedule_id, job_id = parts.schedule, parts.job

        def wanted(execution: Execution) -> bool:
            if one is not None:
                return execution.id == one.id
            return (
                execution.customer == customer
                and job_id in (execution.job_id, names.ANY_JOB)
                and (not schedule_id or execution.schedule_id == schedule_id)
            )

        told = False
        if asked.cursor:
            async for response in self._catch_up(self._cursor(asked.cursor), wanted):
                told = True
                yield response
        # Between the end of catching up and this there is no await: nothing falls in between.
        if self._shard.leading is None:
            raise Unavailable(RESIGNED)
        stream = changes.open(wanted, customer)
        try:
            if not told:
                # The first message comes at once: it carries the cursor to go on from.
                index = self._shard.state.meta.index
                first = [] if one is None else [Change(index, one)]
                yield self._batch(first, index)
            while True:
                if one is not None:
                    one = self._shard.queries.execution(one.job_uid, one.id) or one
                    if self._is_over(one) and not stream.queue:
                        return
                for batch, cursor in pieces(await stream.take()):
                    yield self._batch(batch, cursor)
        finally:
            changes.forget(stream)

    async def _catch_up(
        self, after: int, wanted: Any
    ) -> AsyncIterator[execution_pb2.WatchExecutionsResponse]:
        """What changed after a cursor and is stored: each execution as it is now."""
        queries = self._shard.queries
        while True:
            # One chunk a turn, however many readers there are. At the end nothing is waited for.
            async with self._catching_up:
                stored = queries.changes(after, CATCH_UP_CHUNK)
                if not stored:
                    return
                after = stored[-1][0]
                found = [
                    Change(after, execution)
                    for job_uid, identity in dict.fromkeys(key[1:] for key in stored)
                    if (execution := queries.execution(job_uid, identity)) and wanted(execution)
                ]
                await asyncio.sleep(0)
            for batch, _ in pieces(found):
                yield self._batch(batch, after if batch[-1] is found[-1] else stored[0][0] - 1)

    def _cursor(self, cursor: str) -> int:
        if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
            raise CursorExpired("the cursor is not one that was given out")
        after, meta = int(cursor), self._shard.state.meta
        if after > meta.index:
            raise CursorExpired("the cursor is from the future: list, then watch without a cursor")
        if after + 1 < meta.changes_from:
            raise CursorExpired("the cursor is too old: list, then watch without a cursor")
        return after

    @staticmethod
    def _is_over(execution: Execution) -> bool:
        return execution.state not in ACTIVE_STATES

    def _batch(self, changes: list[Change], index: int) -> execution_pb2.WatchExecutionsResponse:
        return execution_pb2.WatchExecutionsResponse(
            executions=[
                convert.execution_message(
                    change.execution,
                    self._shard.soft(change.execution),
                    self._shard.pending_reason(change.execution),
                )
                for change in changes
            ],
            cursor=str(index),
        )

    async def GetStatus(
        self, request: shard_pb2.GetStatusRequest, context: Context
    ) -> shard_pb2.GetStatusResponse:
        """See shard.proto."""
        await self._admit(context, "gateway")
        status = self._shard.replica.status()
        meta = self._shard.state.meta
        replica = cluster_pb2.Replica(
            replica_id=self._replica_id,
            reachable=True,
            leader=status.is_leader,
            term=status.term,
            applied_index=status.applied_index,
            commit_index=status.commit_index,
            schedule_count=meta.schedule_count,
            active_execution_count=meta.active_count,
            resident_memory_bytes=resident_memory_bytes(),
            peer_clocks=[
                cluster_pb2.PeerClock(
                    replica_id=clock.peer,
                    offset_ns=clock.offset_ns,
                    uncertainty_ns=clock.uncertainty_ns,
                )
                for clock in status.peer_clocks
            ],
            clock_step_count=status.clock_step_count,
            last_clock_step_ns=status.last_clock_step_ns,
            clock_fault=status.clock_fault,
            learner=self._replica_id not in status.members.voters,
        )
        leading = self._shard.leading
        executors = []
        if leading is not None:
            for link in leading.links.values():
                host = leading.hosts[link.executor_id]
                executor = cluster_pb2.Executor(
                    executor_id=link.executor_id,
                    address=link.address,
                    slot_count=link.slot_count,
                    used_slot_count=host.slots_used,
                    draining=host.draining,
                    memory_bytes=host.memory_bytes,
                    used_memory_bytes=host.memory_used,
                    cpu_millis=host.cpu_millis,
                    used_cpu_millis=host.cpu_used,
                    labels=dict(host.labels),
                    egress=host.egress,
                    runtime=link.runtime,
                    runtimes=link.hello.runtimes,
                    capabilities=link.hello.capabilities,
                    clock_offset_ns=link.clock_offset_ns,
                    clock_uncertainty_ns=link.clock_uncertainty_ns,
                )
                executors.append(executor.SerializeToString())
        return shard_pb2.GetStatusResponse(
            replica=replica.SerializeToString(), executors=executors, members=self._members()
        )

    async def LocateExecution(
        self, request: shard_pb2.LocateExecutionRequest, context: Context
    ) -> shard_pb2.LocateExecutionResponse:
        """See shard.proto."""
        await self._admit(context, "gateway")
        response = shard_pb2.LocateExecutionResponse()
        try:
            await self._shard.replica.read_barrier()
            execution = self._calls.executions.find(request.name)
            response.final = execution.state not in ACTIVE_STATES
            number = request.attempt or len(execution.attempts)
            if number > len(execution.attempts):
                raise invalid("attempt", f"there have been {len(execution.attempts)} attempts")
            if number:
                attempt = execution.attempts[number - 1]
                response.attempt_id = attempt_id(execution.id, number)
                response.executor_id = attempt.executor
                response.assign_ms = attempt.assign_ms
                response.silent = convert.is_silent(attempt)
                leading = self._shard.leading
                link = None if leading is None else leading.links.get(attempt.executor)
                response.address = "" if link is None else link.address
        except Exception as error:
            await refuse(context, explain(error))
        return response

    async def FindKey(
        self, request: shard_pb2.FindKeyRequest, context: Context
    ) -> shard_pb2.FindKeyResponse:
        """See shard.proto."""
        await self._admit(context, "gateway")
        try:
            await self._shard.replica.read_barrier()
            return self._calls.customers.find_key(request)
        except Exception as error:
            await refuse(context, explain(error))
            raise

    # -- executors -----------------------------------------------------------------------------

    async def Attach(
        self, request_iterator: AsyncIterator[shard_pb2.ExecutorMessage], context: Context
    ) -> AsyncIterator[shard_pb2.ShardMessage]:
        """See shard.proto."""
        name = await self._admit(context, "executor")
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("hello") or first.hello.executor_id != name:
            await refuse(context, invalid("hello", f"must come first, from {name} itself"))
            return
        link = Link(first.hello)
        self._attached[link] = None
        reader = asyncio.create_task(self._hear(link, request_iterator))
        reader.add_done_callback(lambda _: link.close())
        try:
            if self._shard.leading is not None:
                self._shard.leading.attach(link)
            link.send(self._leadership())
            while not link.closed:
                await link.ready.wait()
                link.ready.clear()
                while link.outbox:
                    yield link.outbox.popleft()
        finally:
            reader.cancel()
            self._attached.pop(link, None)
            if self._shard.leading is not None:
                self._shard.leading.detach(link)

    async def _hear(self, link: Link, messages: AsyncIterator[shard_pb2.ExecutorMessage]) -> None:
        async for message in messages:
            if link.closed:
                return  # no lease goes on by a stream that was given up
            leading = self._shard.leading
            if leading is not None:
                leading.heard(link)
            if message.HasField("heartbeat"):
                reply = shard_pb2.HeartbeatReply(
                    sent_ns=message.heartbeat.sent_ns, replied_ns=self._clock.now_ns()
                )
                link.send(shard_pb2.ShardMessage(heartbeat_reply=reply))
                link.clock_offset_ns = message.heartbeat.clock_offset_ns
                link.clock_uncertainty_ns = message.heartbeat.clock_uncertainty_ns
            elif message.HasField("offer"):
                # Kept by every replica: whoever leads next knows it.
                link.hello.offer.CopyFrom(message.offer)
                if leading is not None:
                    leading.offered(link)
            elif leading is None:
                continue
            elif message.HasField("inventory"):
                await leading.inventory(link, message.inventory)
            elif message.HasField("reports"):
                leading.reports(link, message.reports.reports)

    def _leadership(self) -> shard_pb2.ShardMessage:
        leading = self._shard.leading
        return shard_pb2.ShardMessage(
            leadership=shard_pb2.Leadership(
                leader=leading is not None,
                term=self._shard.replica.term if leading is None else leading.term,
                shard_id=self._shard_id,
                lease_ms=self._shard.lease_ms,
                members=self._members(),
            )
        )

    def _members(self) -> shard_pb2.ShardMembers:
        members = self._shard.replica.committed_members
        return shard_pb2.ShardMembers(
            number=members.number,
            replicas=[
                shard_pb2.ShardMember(replica_id=each.id, address=each.address, voter=each.voter)
                for each in members.replicas
            ],
        )

    def _announce(self) -> None:
        """Leadership has changed: tell every executor that is attached."""
        for link in list(self._attached):
            if self._shard.leading is not None and not link.closed:
                self._shard.leading.attach(link)
            link.send(self._leadership())

    def _announce_members(self) -> None:
        """The list of replicas has changed: the same."""
        for link in list(self._attached):
            link.send(self._leadership())

    async def _admit(self, context: Context, role: str) -> str:
        try:
            return require_role(context, role)
        except TickmeshError as error:
            await refuse(context, error)
            raise


def _refusal(error: TickmeshError) -> shard_pb2.Reply:
    return shard_pb2.Reply(status=to_status(error).SerializeToString())


def _leave_out(replies: list[shard_pb2.Reply], read: list[bool]) -> None:
    """Of answers that are too much for one message those are left out that can be asked for again:
    reads first, and the largest of them. read: which are answers of reads."""
    sizes = [reply.ByteSize() for reply in replies]
    too_much = sum(sizes) - ANSWERS_BYTES_MAX
    if too_much <= 0:
        return
    left_out = _refusal(
        MessageTooLarge(
            "the answer does not fit beside those of other calls; what was to be done is done: "
            "read what became of it",
            metadata={MessageTooLarge.TOGETHER: "true"},
        )
    )
    for index in sorted(range(len(replies)), key=lambda n: (read[n], sizes[n]), reverse=True):
        too_much -= sizes[index] - left_out.ByteSize()
        replies[index] = left_out
        if too_much <= 0:
            return


def _refusing(error: TickmeshError) -> Callable[[Any], Any]:
    def refuse(_request: Any) -> Any:
        raise error

    return refuse


def _release_later(write: Write, leading: Dispatcher) -> None:
    """Give its places back once it is decided, wait the callers for it or have they gone."""
    if write.placements:
        write.outcome.add_done_callback(lambda _: leading.release(write.placements))


def resident_memory_bytes() -> int:
    """Of this process, from /proc."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
