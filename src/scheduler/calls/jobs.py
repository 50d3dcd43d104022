"""The methods of JobService, as the shard's leader answers them."""

from __future__ import annotations

from google.protobuf import empty_pb2
from google.protobuf.message import Message

from ...mesh import names
from ...mesh.errors import FailedPrecondition
from ...mesh.limits import BATCH_ITEMS_MAX
from ...proto.tickmesh.v1 import job_pb2
from .. import convert, pages
from ..core import commands
from ..shard import Shard
from . import found
from .updates import check_given, merge, update
from .writes import Making, Methods, Write, Writes, check_answer_size, labels

JOB_FIELDS = frozenset(
    {
        *("display_name", "labels", "container", "resources", "timeout", "grace_period"),
        *("retry_policy", "at_most_once", "total_timeout", "executor_labels"),
    }
)
"""What an update may name."""


class Jobs:
    """See the module."""

    def __init__(self, shard: Shard, writes: Writes) -> None:
        self._shard = shard
        self._writes = writes
        service = "tickmesh.v1.JobService"
        self.methods = Methods(
            writes={
                f"{service}/CreateJob": (job_pb2.CreateJobRequest, self.create),
                f"{service}/BatchCreateJobs": (job_pb2.BatchCreateJobsRequest, self.batch_create),
            },
            reads={
                f"{service}/GetJob": (job_pb2.GetJobRequest, self.get),
                f"{service}/ListJobs": (job_pb2.ListJobsRequest, self.list),
            },
            steps={
                f"{service}/UpdateJob": (job_pb2.UpdateJobRequest, self.update),
                f"{service}/DeleteJob": (job_pb2.DeleteJobRequest, self.delete),
            },
        )

    def create(self, request: job_pb2.CreateJobRequest) -> Write:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        making = self._writes.making(request.request_id)
        new = self._new(request.job, request.job_id, customer, making, 0, "job")
        command = commands.CreateJobs(customer, [new], making.request)
        return self._writes.create(request, request.job, command, convert.job_message, "job_id")

    def batch_create(self, request: job_pb2.BatchCreateJobsRequest) -> Write:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        check_answer_size(request, len(request.jobs))
        making = self._writes.making(request.request_id)
        new = [
            self._new(item.job, item.job_id, customer, making, index, f"jobs[{index}].job")
            for index, item in enumerate(request.jobs)
        ]
        return self._writes.submit(
            commands.CreateJobs(customer, new, making.request),
            lambda made: job_pb2.BatchCreateJobsResponse(
                jobs=[convert.job_message(job) for job in made]
            ),
            weight=len(new),
            field="jobs[].job_id",
        )

    def _new(
        self, job: job_pb2.Job, job_id: str, customer: str, making: Making, index: int, field: str
    ) -> commands.NewJob:
        self._check_labels(job, field)
        spec = convert.job_spec(job, customer, field, self._shard.plans.of(customer))
        named, uid = making.item("job", job_id, index)
        return commands.NewJob(named, uid, job.display_name, labels(job), spec)

    def _check_labels(self, job: job_pb2.Job, field: str) -> None:
        """An older replica would forget them, and give the job to any executor."""
        if job.executor_labels and self._shard.proposals.version < commands.PLACEMENT_SINCE:
            raise FailedPrecondition(
                f"{field}.executor_labels needs a newer version of the scheduler on every replica "
                "of the shard: upgrade those that run an older one"
            )

    def get(self, request: job_pb2.GetJobRequest) -> Message:
        """See the proto."""
        customer, job_id = names.parse_job(request.name)
        return convert.job_message(found.job(self._shard.queries, customer, job_id))

    def list(self, request: job_pb2.ListJobsRequest) -> Message:
        """See the proto."""
        customer = names.parse_customer(request.parent)
        after = pages.start(request.page_token, "jobs", request.parent)
        jobs, following = self._shard.queries.jobs(customer, after, pages.size(request.page_size))
        return job_pb2.ListJobsResponse(
            jobs=[convert.job_message(job) for job in jobs],
            next_page_token=pages.token(following, "jobs", request.parent),
        )

    async def update(self, request: job_pb2.UpdateJobRequest) -> Message:
        """See the proto."""
        customer, job_id = names.parse_job(request.job.name, "job.name")

        async def once(given: int) -> Message:
            job = found.job(self._shard.queries, customer, job_id)
            check_given(given, job.version, job_id)
            message = convert.job_message(job)
            merge(request.job, message, request.update_mask, JOB_FIELDS)
            plan = self._shard.plans.of(customer)
            spec = convert.job_spec(message, customer, "job", plan, job.spec)
            self._check_labels(message, "job")
            if request.validate_only:
                return message
            command = commands.UpdateJob(
                customer, job_id, job.version, message.display_name, labels(message), spec
            )
            return convert.job_message((await self._writes.do(command))[0])

        return await update(self._shard.replica, request.job.name, request.job.etag, once)

    async def delete(self, request: job_pb2.DeleteJobRequest) -> Message:
        """See the proto."""
        customer, job_id = names.parse_job(request.name)
        version = convert.version_of(request.etag)
        while request.force:
            await self._shard.replica.read_barrier()
            job = found.job(self._shard.queries, customer, job_id)
            check_given(version, job.version, job_id)
            some = self._shard.queries.schedule_ids(job.uid, BATCH_ITEMS_MAX)
            if not some:
                break
            command = commands.DeleteSchedules(customer, job_id, some, 0, True)
            await self._writes.do(command, weight=len(some))
        await self._writes.do(commands.DeleteJob(customer, job_id, version))
        return empty_pb2.Empty()
