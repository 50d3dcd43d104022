"""The methods of ExecutionService, as the shard's leader answers them."""

from __future__ import annotations

from google.protobuf.message import Message

from ...mesh import names
from ...mesh.errors import AlreadyExists, NotFound, invalid
from ...proto.tickmesh.v1 import execution_pb2
from .. import convert, pages
from ..core import commands
from ..core.ids import EXECUTION_ID_BYTES, UID_BYTES, unspell
from ..core.model import Execution, ExecutionState
from ..shard import Shard
from . import found
from .writes import Methods, Write, Writes, request_hash

FILTER_LOOKED_AT_MAX = 10_000
"""Executions that a filtered listing looks at a page: about 0.1 s."""


def _asked(made: list[Execution], job_ids: list[str]) -> list[Execution]:
    """What was made for a request, now or earlier. Raises AlreadyExists if that was another one:
    its answer would be taken for that of these jobs, which were not executed."""
    if [execution.job_id for execution in made] != job_ids:
        raise AlreadyExists(
            "the request_id has executed other jobs already, and nothing was executed now: use a "
            "request_id once in all calls of a customer",
            fields=(("request_id", "has executed other jobs"),),
        )
    return made


class Executions:
    """See the module."""

    def __init__(self, shard: Shard, writes: Writes) -> None:
        self._shard = shard
        self._writes = writes
        service = "tickmesh.v1.ExecutionService"
        self.methods = Methods(
            writes={
                f"{service}/ExecuteJob": (execution_pb2.ExecuteJobRequest, self.execute),
                f"{service}/BatchExecuteJobs": (
                    execution_pb2.BatchExecuteJobsRequest,
                    self.batch_execute,
                ),
            },
            reads={
                f"{service}/GetExecution": (execution_pb2.GetExecutionRequest, self.get),
                f"{service}/ListExecutions": (execution_pb2.ListExecutionsRequest, self.list),
            },
            steps={
                f"{service}/CancelExecution": (execution_pb2.CancelExecutionRequest, self.cancel)
            },
        )

    def execute(self, request: execution_pb2.ExecuteJobRequest) -> Write:
        """See the proto."""
        customer, job_id = names.parse_job(request.name)
        if request.validate_only:
            found.job(self._shard.queries, customer, job_id)
            return self._writes.checked(execution_pb2.Execution())
        placement = self._shard.place(self._shard.queries.job(customer, job_id))
        new = commands.NewExecution(
            job_id,
            self._writes.draw(UID_BYTES),
            request.payload,
            placement,
            request.active_key.encode(),
        )
        return self._writes.submit(
            commands.ExecuteJobs(customer, [new], request_hash(request.request_id)),
            lambda made: self.message(_asked(made, [job_id])[0]),
            placements=[placement],
        )

    def batch_execute(self, request: execution_pb2.BatchExecuteJobsRequest) -> Write:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        job_ids = []
        for index, item in enumerate(request.executions):
            field = f"executions[{index}].name"
            parts = names.parse_job(item.name, field)
            if parts.customer != customer:
                raise invalid(field, f"is not a job of {request.parent}")
            job_ids.append(parts.job)
        jobs = {job_id: self._shard.queries.job(customer, job_id) for job_id in set(job_ids)}
        new = [
            commands.NewExecution(
                job_id,
                self._writes.draw(UID_BYTES),
                item.payload,
                self._shard.place(jobs[job_id]),
                item.active_key.encode(),
            )
            for job_id, item in zip(job_ids, request.executions, strict=True)
        ]
        return self._writes.submit(
            commands.ExecuteJobs(customer, new, request_hash(request.request_id)),
            lambda made: execution_pb2.BatchExecuteJobsResponse(
                executions=[self.message(execution) for execution in _asked(made, job_ids)]
            ),
            weight=len(new),
            placements=[item.placement for item in new],
        )

    def message(self, execution: Execution) -> execution_pb2.Execution:
        """The public message of an execution, with what only the leader knows."""
        return convert.execution_message(
            execution, self._shard.soft(execution), self._shard.pending_reason(execution)
        )

    def find(self, name: str) -> Execution:
        """The execution of a name. Raises NotFound."""
        parts = names.parse_execution(name)
        identity = unspell(parts.execution, EXECUTION_ID_BYTES)
        job = self._shard.queries.job(parts.customer, parts.job)
        execution = None
        if identity is not None:
            job_uid = self._shard.queries.owner(parts.customer, identity)
            if job_uid is not None:
                execution = self._shard.queries.execution(job_uid, identity)
            if execution is not None and execution.job_id != parts.job:
                execution = None
        if execution is None:
            there = "" if job else " (nor a job of that name)"
            raise NotFound(f"there is no {name}{there}; ended executions are kept for a time only")
        return execution

    def get(self, request: execution_pb2.GetExecutionRequest) -> Message:
        """See the proto."""
        return self.message(self.find(request.name))

    def list(self, request: execution_pb2.ListExecutionsRequest) -> Message:
        """See the proto."""
        customer, job_id = names.parse_job(request.parent, "parent")
        job_uid = (
            None
            if job_id == names.ANY_JOB
            else found.job(self._shard.queries, customer, job_id).uid
        )
        states = sorted(set(request.states))
        listing = ("executions", request.parent, request.schedule, str(states))
        schedule_id = ""
        if request.schedule:
            parts = names.parse_schedule(request.schedule, "schedule")
            if parts.customer != customer or job_id not in (parts.job, names.ANY_JOB):
                raise invalid("schedule", f"is not a schedule of {request.parent}")
            schedule_id, wanted_job = parts.schedule, parts.job

        def keep(execution: Execution) -> bool:
            if schedule_id and (execution.schedule_id, execution.job_id) != (
                schedule_id,
                wanted_job,
            ):
                return False
            if not states:
                return True
            state = execution.state
            if state is ExecutionState.ASSIGNED:
                soft = self._shard.soft(execution)
                if soft is not None and soft.started_ns:
                    state = ExecutionState.RUNNING
            return state.value in states

        executions, following = self._shard.queries.executions(
            customer,
            job_uid,
            pages.start(request.page_token, *listing),
            pages.size(request.page_size),
            keep,
            FILTER_LOOKED_AT_MAX,
        )
        return execution_pb2.ListExecutionsResponse(
            executions=[self.message(execution) for execution in executions],
            next_page_token=pages.token(following, *listing),
        )

    async def cancel(self, request: execution_pb2.CancelExecutionRequest) -> Message:
        """See the proto."""
        await self._shard.replica.read_barrier()
        execution = self.find(request.name)
        made = await self._writes.do(commands.Cancel([(execution.job_uid, execution.id)]))
        return self.message(made[0] if made else execution)  # it had ended, and is forgotten by now
