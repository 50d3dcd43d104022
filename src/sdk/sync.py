"""The blocking client, for any thread: made from aio.py, the asyncio one, which is
the one to change (see tests/unit/sdk/test_clients_are_alike.py).

Every method takes `deadline_s`, seconds for the call (default: the client's), and raises the errors
of errors.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.field_mask_pb2 import FieldMask

from ..proto.tickmesh.v1 import (
    calendar_pb2,
    calendar_pb2_grpc,
    cluster_pb2,
    cluster_pb2_grpc,
    customer_pb2,
    customer_pb2_grpc,
    execution_pb2,
    execution_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    schedule_pb2,
    schedule_pb2_grpc,
    zone_pb2,
    zone_pb2_grpc,
)
from . import convert, limits, names, pushing
from .errors import DeadlineExceeded, ExecutionFailed, InvalidRequest, NotFound, Unavailable
from .layouts import Layout
from .target import resolve
from .transport import Deadline, Patience, Transport
from .types import (
    ApiKey,
    ApiScope,
    Backfill,
    Backup,
    Calendar,
    Cluster,
    Container,
    Customer,
    Execution,
    ExecutionState,
    Executor,
    Fire,
    FoldPolicy,
    GapPolicy,
    Image,
    Interval,
    Job,
    LedgerRow,
    LogChunk,
    MisfirePolicy,
    MovedSchedule,
    Network,
    NewApiKey,
    NewExecution,
    NewJob,
    NewSchedule,
    OverlapPolicy,
    PushedImage,
    Recurrence,
    RegistryCredential,
    Resources,
    Retention,
    RetryPolicy,
    Schedule,
    ScheduleStatistics,
    Shard,
    TimeWindow,
    Verification,
    ZonesUpgrade,
)


class Client:
    """A customer's view of a mesh: `jobs`, `schedules`, `calendars`, `executions`, `images`,
    `keys`, and execute().

    Use it as a context manager, or close it.
    """

    def __init__(
        self,
        address: str | None = None,
        customer: str | None = None,
        *,
        tls: bool | None = None,
        ca_file: str | Path | None = None,
        api_key: str | None = None,
        deadline_s: float = limits.DEADLINE_S,
    ) -> None:
        """address: of a gateway; default $TICKMESH_ADDRESS, else that of the `tickmesh dev` below
        this directory, else 127.0.0.1:7300.
        customer: default $TICKMESH_CUSTOMER, else that of the API key, else "default".
        tls: whether to encrypt; default: if there is a ca_file.
        ca_file: PEM of the authority to trust; default $TICKMESH_CA_FILE, else the system's.
        api_key: shown with each call; default $TICKMESH_API_KEY. Refused where it would leave this
        machine in plain text.
        deadline_s: of each call that does not say otherwise.
        """
        target = resolve(address, customer, tls=tls, ca_file=ca_file, api_key=api_key)
        self._transport = Transport(target, deadline_s)
        self._cluster = cluster_pb2_grpc.ClusterServiceStub(self._transport.channel)
        self.jobs = Jobs(self._transport)
        self.schedules = Schedules(self._transport)
        self.calendars = Calendars(self._transport)
        self.zones = Zones(self._transport)
        self.executions = Executions(self._transport)
        self.images = Images(self._transport)
        self.keys = Keys(self._transport)
        self._customers = customer_pb2_grpc.CustomerServiceStub(self._transport.channel)

    @property
    def address(self) -> str:
        """Where it calls."""
        return self._transport.target.address

    @property
    def customer(self) -> str:
        """On whose behalf."""
        return self._transport.target.customer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way fail."""
        self._transport.close()

    def execute(
        self,
        job: str,
        payload: bytes | str = b"",
        *,
        active_key: str = "",
        request_id: str = "",
        validate_only: bool = False,
        deadline_s: float | None = None,
    ) -> ExecutionHandle:
        """Run a job once, now: returns when the execution is durable, not when it runs.

        payload: at most 64 KiB, for the file named by TICKMESH_PAYLOAD_FILE; text as UTF-8.
        active_key: if an execution of the job with this key has not ended, that one is returned.
        request_id: makes it safe to repeat by hand; one is made for gRPC's own retries.
        """
        request = execution_pb2.ExecuteJobRequest(
            name=names.job(self.customer, job),
            payload=convert.payload_bytes(payload),
            active_key=active_key,
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        stub = self.executions._stub
        answer = self._transport.unary(stub.ExecuteJob, request, deadline_s)
        return ExecutionHandle(self.executions, convert.from_execution(answer))

    def execute_batch(
        self,
        executions: Sequence[NewExecution],
        *,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> Sequence[ExecutionHandle]:
        """Run up to 1,000 jobs in one commit: all or none."""
        request = execution_pb2.BatchExecuteJobsRequest(
            parent=names.customer(self.customer),
            executions=[
                execution_pb2.NewExecution(
                    name=names.job(self.customer, each.job),
                    payload=each.payload,
                    active_key=each.active_key,
                )
                for each in executions
            ],
            request_id=request_id or str(uuid.uuid4()),
        )
        stub = self.executions._stub
        answer = self._transport.unary(stub.BatchExecuteJobs, request, deadline_s)
        return [
            ExecutionHandle(self.executions, convert.from_execution(each))
            for each in answer.executions
        ]

    def get_customer(self, *, deadline_s: float | None = None) -> Customer:
        """The customer itself: what is kept of its history, and its plan."""
        request = customer_pb2.GetCustomerRequest(name=names.customer(self.customer))
        answer = self._transport.unary(self._customers.GetCustomer, request, deadline_s)
        return convert.from_customer(answer)

    def set_retention(
        self, retention: Retention, *, etag: str = "", deadline_s: float | None = None
    ) -> Customer:
        """Change what is kept of ended executions. What was forgotten does not come back.

        etag: of the customer as it was read; raises EtagMismatch if it was changed since.
        """
        request = customer_pb2.UpdateCustomerRequest(
            customer=customer_pb2.Customer(
                name=names.customer(self.customer),
                etag=etag,
                retention=convert.to_retention(retention),
            ),
            update_mask=FieldMask(paths=["retention"]),
        )
        answer = self._transport.unary(self._customers.UpdateCustomer, request, deadline_s)
        return convert.from_customer(answer)

    def set_plan(self, plan: str, *, etag: str = "", deadline_s: float | None = None) -> Customer:
        """Put the customer on another plan; needs an operator's key.

        plan: a name in the mesh's configuration. etag: as in set_retention.
        """
        request = customer_pb2.UpdateCustomerRequest(
            customer=customer_pb2.Customer(
                name=names.customer(self.customer), etag=etag, plan=plan
            ),
            update_mask=FieldMask(paths=["plan"]),
        )
        answer = self._transport.unary(self._customers.UpdateCustomer, request, deadline_s)
        return convert.from_customer(answer)

    def cluster(self, *, deadline_s: float | None = None) -> Cluster:
        """The mesh as the gateway sees it now."""
        request = cluster_pb2.GetClusterRequest()
        answer = self._transport.unary(self._cluster.GetCluster, request, deadline_s)
        return convert.from_cluster(answer)

    def drain_executor(
        self,
        executor_id: str,
        *,
        undo: bool = False,
        end_after: timedelta | float | None = None,
        deadline_s: float | None = None,
    ) -> Executor:
        """Give an executor nothing new, until it is undone; what runs there goes on.

        end_after: what still runs then is ended, and tried again elsewhere as its job says.
        """
        request = cluster_pb2.DrainExecutorRequest(
            executor_id=executor_id,
            undo=undo,
            end_after=convert.to_duration(convert.length(end_after)),
        )
        answer = self._transport.unary(self._cluster.DrainExecutor, request, deadline_s)
        return convert.from_executor(answer)

    def backup_shard(
        self,
        shard_id: str,
        directory: str,
        *,
        deadline_s: float | None = limits.BACKUP_DEADLINE_S,
    ) -> Backup:
        """Copy a shard as of now to where its configuration keeps backups, under a new name.

        A deadline that passes does not end it: asked for again, the same backup is waited for.
        """
        request = cluster_pb2.BackupShardRequest(shard_id=shard_id, directory=directory)
        answer = self._transport.unary(self._cluster.BackupShard, request, deadline_s)
        return convert.from_backup(answer)

    def add_replica(self, shard_id: str, address: str, *, deadline_s: float | None = None) -> Shard:
        """Add the replica that listens at `address` to a shard: for operators. It is in the list
        when this returns, and a voter when it has caught up: see `cluster`."""
        request = cluster_pb2.AddReplicaRequest(shard_id=shard_id, address=address)
        answer = self._transport.unary(self._cluster.AddReplica, request, deadline_s)
        return convert.from_shard(answer)

    def remove_replica(
        self, shard_id: str, replica_id: str, *, deadline_s: float | None = None
    ) -> Shard:
        """Remove a replica from a shard, for good: for operators. Its process ends."""
        request = cluster_pb2.RemoveReplicaRequest(shard_id=shard_id, replica_id=replica_id)
        answer = self._transport.unary(self._cluster.RemoveReplica, request, deadline_s)
        return convert.from_shard(answer)


class Jobs:
    """What to run: `client.jobs`. A job is named by its id or its resource name."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._customer = transport.target.customer
        self._stub = job_pb2_grpc.JobServiceStub(transport.channel)

    def create(
        self,
        job_id: str = "",
        *,
        image: str,
        command: Sequence[str] = (),
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        working_dir: str = "",
        network: Network | None = None,
        memory_bytes: int = 0,
        cpu_millis: int = 0,
        scratch_bytes: int = 0,
        pids: int = 0,
        timeout: timedelta | float | None = None,
        total_timeout: timedelta | float | None = None,
        grace_period: timedelta | float | None = None,
        retry_policy: RetryPolicy | None = None,
        at_most_once: bool = False,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        executor_labels: Mapping[str, str] | None = None,
        request_id: str = "",
        validate_only: bool = False,
        deadline_s: float | None = None,
    ) -> Job:
        """Create a job from its parts; see Job, Container and Resources for each.

        timeout: how long one attempt may run (a timedelta, or seconds). total_timeout: from the
        due time to the end of the last attempt.
        """
        job = Job(
            container=Container(
                image=image,
                command=tuple(command),
                args=tuple(args),
                env=env or {},
                working_dir=working_dir,
                network=network,
            ),
            resources=Resources(
                memory_bytes=memory_bytes,
                cpu_millis=cpu_millis,
                scratch_bytes=scratch_bytes,
                pids=pids,
            ),
            timeout=convert.length(timeout),
            total_timeout=convert.length(total_timeout),
            grace_period=convert.length(grace_period),
            retry_policy=retry_policy,
            at_most_once=at_most_once,
            display_name=display_name,
            labels=labels or {},
            executor_labels=executor_labels or {},
        )
        return self.add(
            job,
            job_id,
            request_id=request_id,
            validate_only=validate_only,
            deadline_s=deadline_s,
        )

    def add(
        self,
        job: Job,
        job_id: str = "",
        *,
        request_id: str = "",
        validate_only: bool = False,
        deadline_s: float | None = None,
    ) -> Job:
        """Create a job. job_id: default made by the server."""
        request = job_pb2.CreateJobRequest(
            parent=names.customer(self._customer),
            job_id=job_id,
            job=convert.to_job(job),
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        answer = self._transport.unary(self._stub.CreateJob, request, deadline_s)
        return convert.from_job(answer)

    def add_batch(
        self, jobs: Sequence[NewJob], *, request_id: str = "", deadline_s: float | None = None
    ) -> Sequence[Job]:
        """Create up to 1,000 jobs in one commit: all or none."""
        request = job_pb2.BatchCreateJobsRequest(
            parent=names.customer(self._customer),
            jobs=[
                job_pb2.NewJob(job_id=each.job_id, job=convert.to_job(each.job)) for each in jobs
            ],
            request_id=request_id or str(uuid.uuid4()),
        )
        answer = self._transport.unary(self._stub.BatchCreateJobs, request, deadline_s)
        return [convert.from_job(each) for each in answer.jobs]

    def get(self, job: str, *, deadline_s: float | None = None) -> Job:
        """One job. Raises NotFound."""
        request = job_pb2.GetJobRequest(name=names.job(self._customer, job))
        answer = self._transport.unary(self._stub.GetJob, request, deadline_s)
        return convert.from_job(answer)

    def list(self, *, page_size: int = 0, deadline_s: float | None = None) -> Iterator[Job]:
        """All jobs, ordered by id; pages are fetched as they are needed."""
        token = ""
        while True:
            request = job_pb2.ListJobsRequest(
                parent=names.customer(self._customer), page_size=page_size, page_token=token
            )
            answer = self._transport.unary(self._stub.ListJobs, request, deadline_s)
            for each in answer.jobs:
                yield convert.from_job(each)
            token = answer.next_page_token
            if not token:
                return

    def update(
        self,
        job: Job,
        update_mask: Sequence[str],
        *,
        validate_only: bool = False,
        deadline_s: float | None = None,
    ) -> Job:
        """Change a job, as from dataclasses.replace(): later executions use the new revision.

        update_mask: which fields, as "container.image", "timeout"; "*" is all. If job.etag is set,
        EtagMismatch is raised when somebody else changed it since.
        """
        request = job_pb2.UpdateJobRequest(
            job=convert.to_job(job),
            update_mask=FieldMask(paths=update_mask),
            validate_only=validate_only,
        )
        answer = self._transport.unary(self._stub.UpdateJob, request, deadline_s)
        return convert.from_job(answer)

    def delete(
        self, job: str, *, force: bool = False, etag: str = "", deadline_s: float | None = None
    ) -> None:
        """Delete a job; with force, its schedules too. What runs goes on."""
        request = job_pb2.DeleteJobRequest(
            name=names.job(self._customer, job), etag=etag, force=force
        )
        self._transport.unary(self._stub.DeleteJob, request, deadline_s)


class Schedules:
    """When jobs fire: `client.schedules`. A schedule is named "job/schedule", or by its resource
    name."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._customer = transport.target.customer
        self._stub = schedule_pb2_grpc.ScheduleServiceStub(transport.channel)

    def create(
        self,
        job: str,
        schedule_id: str = "",
        *,
        cron: str | Sequence[str] = (),
        every: timedelta | float | Interval | None = None,
        at: datetime | Sequence[datetime] = (),
        time_zone: str = "",
        gap_policy: GapPolicy | None = None,
        fold_policy: FoldPolicy | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        jitter: timedelta | float | None = None,
        max_fires: int = 0,
        excluded_dates: Sequence[str | date] = (),
        excluded_windows: Sequence[TimeWindow] = (),
        excluded_calendars: Sequence[str] = (),
        payload: bytes | str = b"",
        overlap_policy: OverlapPolicy | None = None,
        overlap_queue_max: int = 0,
        misfire_policy: MisfirePolicy | None = None,
        misfire_window: timedelta | float | None = None,
        misfire_max: int = 0,
        start_deadline: timedelta | float | None = None,
        pause_after_failures: int = 0,
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        validate_only: bool = False,
        deadline_s: float | None = None,
    ) -> Schedule:
        """Create a schedule of a job from its parts; see Schedule and Recurrence for each.

        cron: "*/5 * * * *" (six fields: seconds first), or several. every: an interval. at: one
        instant, or several. Together they are a union.
        """
        schedule = Schedule(
            recurrence=convert.recurrence_of(
                cron=cron,
                every=every,
                at=at,
                time_zone=time_zone,
                gap_policy=gap_policy,
                fold_policy=fold_policy,
                start_time=start_time,
                end_time=end_time,
                jitter=jitter,
                max_fires=max_fires,
                excluded_dates=excluded_dates,
                excluded_windows=excluded_windows,
                excluded_calendars=excluded_calendars,
            ),
            payload=convert.payload_bytes(payload),
            overlap_policy=overlap_policy,
            overlap_queue_max=overlap_queue_max,
            misfire_policy=misfire_policy,
            misfire_window=convert.length(misfire_window),
            misfire_max=misfire_max,
            start_deadline=convert.length(start_deadline),
            pause_after_failures=pause_after_failures,
            labels=labels or {},
        )
        return self.add(
            job,
            schedule,
            schedule_id,
            request_id=request_id,
            validate_only=validate_only,
            deadline_s=deadline_s,
        )

    def add(
        self,
        job: str,
        schedule: Schedule,
        schedule_id: str = "",
        *,
        request_id: str = "",
        validate_only: bool = False,
        deadline_s: float | None = None,
    ) -> Schedule:
        """Create a schedule of a job. schedule_id: default made by the server."""
        request = schedule_pb2.CreateScheduleRequest(
            parent=names.job(self._customer, job),
            schedule_id=schedule_id,
            schedule=convert.to_schedule(schedule, self._customer),
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        answer = self._transport.unary(self._stub.CreateSchedule, request, deadline_s)
        return convert.from_schedule(answer)

    def add_batch(
        self,
        job: str,
        schedules: Sequence[NewSchedule],
        *,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> Sequence[Schedule]:
        """Create up to 1,000 schedules of one job in one commit: all or none."""
        request = schedule_pb2.BatchCreateSchedulesRequest(
            parent=names.job(self._customer, job),
            schedules=[
                schedule_pb2.NewSchedule(
                    schedule_id=each.schedule_id,
                    schedule=convert.to_schedule(each.schedule, self._customer),
                )
                for each in schedules
            ],
            request_id=request_id or str(uuid.uuid4()),
        )
        answer = self._transport.unary(self._stub.BatchCreateSchedules, request, deadline_s)
        return [convert.from_schedule(each) for each in answer.schedules]

    def get(self, schedule: str, *, deadline_s: float | None = None) -> Schedule:
        """One schedule. Raises NotFound."""
        request = schedule_pb2.GetScheduleRequest(name=names.schedule(self._customer, schedule))
        answer = self._transport.unary(self._stub.GetSchedule, request, deadline_s)
        return convert.from_schedule(answer)

    def list(
        self, job: str, *, page_size: int = 0, deadline_s: float | None = None
    ) -> Iterator[Schedule]:
        """All schedules of a job, ordered by id; pages are fetched as they are needed."""
        token = ""
        while True:
            request = schedule_pb2.ListSchedulesRequest(
                parent=names.job(self._customer, job), page_size=page_size, page_token=token
            )
            answer = self._transport.unary(self._stub.ListSchedules, request, deadline_s)
            for each in answer.schedules:
                yield convert.from_schedule(each)
            token = answer.next_page_token
            if not token:
                return

    def update(
        self,
        schedule: Schedule,
        update_mask: Sequence[str],
        *,
        validate_only: bool = False,
        deadline_s: float | None = None,
    ) -> Schedule:
        """Change a schedule, as from dataclasses.replace().

        update_mask: which fields, as "recurrence", "payload", "overlap_policy", "misfire_max"; "*"
        is all. If schedule.etag is set, EtagMismatch is raised when somebody was faster.
        """
        request = schedule_pb2.UpdateScheduleRequest(
            schedule=convert.to_schedule(schedule, self._customer),
            update_mask=FieldMask(paths=update_mask),
            validate_only=validate_only,
        )
        answer = self._transport.unary(self._stub.UpdateSchedule, request, deadline_s)
        return convert.from_schedule(answer)

    def pause(
        self, schedule: str, reason: str = "", *, deadline_s: float | None = None
    ) -> Schedule:
        """Stop it from firing until it is resumed."""
        request = schedule_pb2.PauseScheduleRequest(
            name=names.schedule(self._customer, schedule), reason=reason
        )
        answer = self._transport.unary(self._stub.PauseSchedule, request, deadline_s)
        return convert.from_schedule(answer)

    def resume(self, schedule: str, *, deadline_s: float | None = None) -> Schedule:
        """Let it fire again, from its next instant. Raises NotPaused."""
        request = schedule_pb2.ResumeScheduleRequest(name=names.schedule(self._customer, schedule))
        answer = self._transport.unary(self._stub.ResumeSchedule, request, deadline_s)
        return convert.from_schedule(answer)

    def trigger(
        self, schedule: str, *, request_id: str = "", deadline_s: float | None = None
    ) -> Execution:
        """Fire it now, besides its instants and whatever its policies and state."""
        request = schedule_pb2.TriggerScheduleRequest(
            name=names.schedule(self._customer, schedule),
            request_id=request_id or str(uuid.uuid4()),
        )
        answer = self._transport.unary(self._stub.TriggerSchedule, request, deadline_s)
        return convert.from_execution(answer)

    def backfill(
        self,
        schedule: str,
        start_time: datetime,
        end_time: datetime,
        *,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> Backfill:
        """Fire every instant of a past range (its end excluded), at most 999, now."""
        request = schedule_pb2.BackfillScheduleRequest(
            name=names.schedule(self._customer, schedule),
            start_time=convert.to_timestamp(start_time, "start_time"),
            end_time=convert.to_timestamp(end_time, "end_time"),
            request_id=request_id or str(uuid.uuid4()),
        )
        answer = self._transport.unary(self._stub.BackfillSchedule, request, deadline_s)
        return Backfill(id=answer.backfill, fire_count=answer.fire_count)

    def cancel_backfill(
        self, schedule: str, backfill: str, *, deadline_s: float | None = None
    ) -> int:
        """Ask those executions of a backfill to end that have not; how many they are."""
        request = schedule_pb2.CancelBackfillRequest(
            name=names.schedule(self._customer, schedule), backfill=backfill
        )
        answer = self._transport.unary(self._stub.CancelBackfill, request, deadline_s)
        return int(answer.cancelled_count)

    def fires(
        self,
        schedule: str,
        *,
        newest_first: bool = False,
        uid: str = "",
        page_size: int = 0,
        deadline_s: float | None = None,
    ) -> Iterator[LedgerRow]:
        """What became of each of its instants; pages are fetched as they are needed.

        uid: of the schedule that is meant, if others had its name. Deleted ones are found, too.
        """
        token = ""
        while True:
            request = schedule_pb2.ListFiresRequest(
                parent=names.schedule(self._customer, schedule),
                page_size=page_size,
                page_token=token,
                newest_first=newest_first,
                uid=uid,
            )
            answer = self._transport.unary(self._stub.ListFires, request, deadline_s)
            for each in answer.rows:
                yield convert.from_row(each)
            token = answer.next_page_token
            if not token:
                return

    def statistics(self, schedule: str, *, deadline_s: float | None = None) -> ScheduleStatistics:
        """How it did in the last day."""
        request = schedule_pb2.GetScheduleStatisticsRequest(
            name=names.schedule(self._customer, schedule)
        )
        answer = self._transport.unary(self._stub.GetScheduleStatistics, request, deadline_s)
        return convert.from_statistics(answer)

    def verify(
        self,
        schedule: str,
        *,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        uid: str = "",
        deadline_s: float | None = None,
    ) -> Verification:
        """Check that its ledger tells the truth about the instants of a range (default: all).

        uid: as for fires().
        """
        request = schedule_pb2.VerifyScheduleRequest(
            name=names.schedule(self._customer, schedule),
            start_time=convert.to_timestamp(start_time, "start_time"),
            end_time=convert.to_timestamp(end_time, "end_time"),
            uid=uid,
        )
        answer = self._transport.unary(self._stub.VerifySchedule, request, deadline_s)
        return convert.from_verification(answer)

    def delete(self, schedule: str, *, etag: str = "", deadline_s: float | None = None) -> None:
        """Delete a schedule. What runs goes on."""
        request = schedule_pb2.DeleteScheduleRequest(
            name=names.schedule(self._customer, schedule), etag=etag
        )
        self._transport.unary(self._stub.DeleteSchedule, request, deadline_s)

    def preview(
        self,
        recurrence: Recurrence | None = None,
        *,
        cron: str | Sequence[str] = (),
        every: timedelta | float | Interval | None = None,
        at: datetime | Sequence[datetime] = (),
        time_zone: str = "",
        gap_policy: GapPolicy | None = None,
        fold_policy: FoldPolicy | None = None,
        schedule: str = "",
        after: datetime | None = None,
        count: int = 0,
        with_skipped: bool = False,
        deadline_s: float | None = None,
    ) -> Sequence[Fire]:
        """The next fires of a recurrence, and what daylight saving does to each; stores nothing.

        recurrence: or its parts, as in create(). schedule: one that has it or may get it: H, jitter
        and max_fires are then as for that. after: default now. count: default 10.
        with_skipped: also the instants among them that do not fire, with the reason.
        """
        wanted = recurrence or convert.recurrence_of(
            cron=cron,
            every=every,
            at=at,
            time_zone=time_zone,
            gap_policy=gap_policy,
            fold_policy=fold_policy,
        )
        request = schedule_pb2.PreviewScheduleRequest(
            parent=names.customer(self._customer),
            recurrence=convert.to_recurrence(wanted, "recurrence", self._customer),
            after_time=convert.to_timestamp(after, "after_time"),
            count=count,
            schedule=names.schedule(self._customer, schedule) if schedule else "",
        )
        answer = self._transport.unary(self._stub.PreviewSchedule, request, deadline_s)
        fires = [convert.from_fire(each) for each in answer.fires]
        if with_skipped:
            fires += [convert.from_fire(each, skipped=True) for each in answer.skipped]
            fires.sort(key=lambda fire: fire.due_time)
        return fires


class Calendars:
    """When schedules do not fire: `client.calendars`. A calendar is named by its id or its resource
    name."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._customer = transport.target.customer
        self._stub = calendar_pb2_grpc.CalendarServiceStub(transport.channel)

    def create(
        self,
        calendar_id: str = "",
        *,
        dates: Sequence[str | date] = (),
        windows: Sequence[TimeWindow] = (),
        time_zone: str = "",
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        validate_only: bool = False,
        deadline_s: float | None = None,
    ) -> Calendar:
        """Create a calendar from its parts; see Calendar for each."""
        calendar = Calendar(
            dates=tuple(str(each) for each in dates),
            windows=tuple(windows),
            time_zone=time_zone,
            display_name=display_name,
            labels=labels or {},
        )
        return self.add(
            calendar,
            calendar_id,
            request_id=request_id,
            validate_only=validate_only,
            deadline_s=deadline_s,
        )

    def add(
        self,
        calendar: Calendar,
        calendar_id: str = "",
        *,
        request_id: str = "",
        validate_only: bool = False,
        deadline_s: float | None = None,
    ) -> Calendar:
        """Create a calendar. calendar_id: default made by the server."""
        request = calendar_pb2.CreateCalendarRequest(
            parent=names.customer(self._customer),
            calendar_id=calendar_id,
            calendar=convert.to_calendar(calendar),
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        answer = self._transport.unary(self._stub.CreateCalendar, request, deadline_s)
        return convert.from_calendar(answer)

    def get(self, calendar: str, *, deadline_s: float | None = None) -> Calendar:
        """One calendar. Raises NotFound."""
        request = calendar_pb2.GetCalendarRequest(name=names.calendar(self._customer, calendar))
        answer = self._transport.unary(self._stub.GetCalendar, request, deadline_s)
        return convert.from_calendar(answer)

    def list(self, *, page_size: int = 0, deadline_s: float | None = None) -> Iterator[Calendar]:
        """All calendars, ordered by id; pages are fetched as they are needed."""
        token = ""
        while True:
            request = calendar_pb2.ListCalendarsRequest(
                parent=names.customer(self._customer), page_size=page_size, page_token=token
            )
            answer = self._transport.unary(self._stub.ListCalendars, request, deadline_s)
            for each in answer.calendars:
                yield convert.from_calendar(each)
            token = answer.next_page_token
            if not token:
                return

    def update(
        self,
        calendar: Calendar,
        update_mask: Sequence[str],
        *,
        validate_only: bool = False,
        deadline_s: float | None = None,
    ) -> Calendar:
        """Change a calendar, as from dataclasses.replace(), and the schedules that use it.

        update_mask: which fields, as "dates"; "*" is all. If calendar.etag is set, EtagMismatch is
        raised when somebody was faster. Raises CalendarInUse if it left a schedule nothing to fire.
        """
        request = calendar_pb2.UpdateCalendarRequest(
            calendar=convert.to_calendar(calendar),
            update_mask=FieldMask(paths=update_mask),
            validate_only=validate_only,
        )
        answer = self._transport.unary(self._stub.UpdateCalendar, request, deadline_s)
        return convert.from_calendar(answer)

    def delete(self, calendar: str, *, etag: str = "", deadline_s: float | None = None) -> None:
        """Delete a calendar. Raises CalendarInUse, with the schedules that use it."""
        request = calendar_pb2.DeleteCalendarRequest(
            name=names.calendar(self._customer, calendar), etag=etag
        )
        self._transport.unary(self._stub.DeleteCalendar, request, deadline_s)


class Zones:
    """Time zones of a shard, for operators: `client.zones`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = zone_pb2_grpc.ZoneServiceStub(transport.channel)

    def preview(
        self,
        shard_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        days: int = 0,
        page_size: int = 0,
        deadline_s: float | None = None,
    ) -> Iterator[MovedSchedule]:
        """Schedules whose fires another release of tzdata would move; changes nothing.

        files: its zone files by zone name; default those beside the replica that leads. days: how
        far ahead; default 366.
        """
        token = ""
        while True:
            request = zone_pb2.PreviewZonesRequest(
                shard_id=shard_id,
                files=convert.to_zone_files(files or {}),
                days=days,
                page_size=page_size,
                page_token=token,
            )
            answer = self._transport.unary(self._stub.PreviewZones, request, deadline_s)
            for each in answer.schedules:
                yield convert.from_moved(each)
            token = answer.next_page_token
            if not token:
                return

    def upgrade(
        self,
        shard_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        release: str = "",
        deadline_s: float | None = None,
    ) -> ZonesUpgrade:
        """Take another release of tzdata over: schedules in zones that changed follow.

        files: as for preview(). release: its name, as "2026a", for people.
        """
        request = zone_pb2.UpgradeZonesRequest(
            shard_id=shard_id, files=convert.to_zone_files(files or {}), release=release
        )
        answer = self._transport.unary(self._stub.UpgradeZones, request, deadline_s)
        return ZonesUpgrade(
            changed_zones=tuple(answer.changed_zones),
            changed_schedule_count=answer.changed_schedule_count,
        )


class Executions:
    """Runs of jobs: `client.executions`. An execution is named by its resource name, as
    "job/execution", or by its id alone if it is among the latest 10,000."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._customer = transport.target.customer
        self._stub = execution_pb2_grpc.ExecutionServiceStub(transport.channel)

    def get(self, execution: str, *, deadline_s: float | None = None) -> Execution:
        """One execution. Raises NotFound."""
        request = execution_pb2.GetExecutionRequest(name=self._name(execution))
        answer = self._transport.unary(self._stub.GetExecution, request, deadline_s)
        return convert.from_execution(answer)

    def handle(self, execution: str, *, deadline_s: float | None = None) -> ExecutionHandle:
        """A handle on an execution. Raises NotFound."""
        return ExecutionHandle(self, self.get(execution, deadline_s=deadline_s))

    def list(
        self,
        job: str = "",
        *,
        schedule: str = "",
        states: Sequence[ExecutionState] = (),
        page_size: int = 0,
        deadline_s: float | None = None,
    ) -> Iterator[Execution]:
        """Executions of a job (default: of all), newest first; pages are fetched as needed."""
        token = ""
        while True:
            request = execution_pb2.ListExecutionsRequest(
                parent=names.jobs_of(self._customer, job),
                page_size=page_size,
                page_token=token,
                schedule=names.schedule(self._customer, schedule) if schedule else "",
                states=convert.to_states(states),
            )
            answer = self._transport.unary(self._stub.ListExecutions, request, deadline_s)
            for each in answer.executions:
                yield convert.from_execution(each)
            token = answer.next_page_token
            if not token:
                return

    def watch(self, job: str = "", *, schedule: str = "", cursor: str = "") -> Watch:
        """Executions of a job (default: of all) as they change, from now on or from a cursor."""
        return Watch(
            self._transport,
            self._stub,
            names.jobs_of(self._customer, job),
            names.schedule(self._customer, schedule) if schedule else "",
            cursor,
        )

    def cancel(self, execution: str, *, deadline_s: float | None = None) -> Execution:
        """Ask it to end. Cancelling what has ended changes nothing."""
        request = execution_pb2.CancelExecutionRequest(name=self._name(execution))
        answer = self._transport.unary(self._stub.CancelExecution, request, deadline_s)
        return convert.from_execution(answer)

    def changes(self, execution: str, *, deadline_s: float | None = None) -> Iterator[Execution]:
        """One execution: as it is, then as it changes, until it has ended."""
        watch = Watch(self._transport, self._stub, self._name(execution), "", "", deadline_s)
        for each in watch:
            yield each
            if each.state.final:
                return

    def logs(
        self,
        execution: str,
        *,
        follow: bool = False,
        attempt: int = 0,
        deadline_s: float | None = None,
    ) -> Iterator[LogChunk]:
        """What it wrote, in the order of each stream, with the time at which it was read from it.
        follow: go on until it has ended.

        attempt: from 1; default the last. A broken stream is opened again where it broke.
        """
        name = self._name(execution)
        deadline, patience, cursor = Deadline(deadline_s), Patience(), ""
        most_s = limits.STREAM_DEADLINE_S if follow else self._transport.deadline_s
        while True:
            request = execution_pb2.StreamLogsRequest(
                name=name, cursor=cursor, follow=follow, attempt=attempt
            )
            try:
                for answer in self._transport.stream(
                    self._stub.StreamLogs, request, deadline.left_s(most_s)
                ):
                    patience.heard()
                    cursor = answer.cursor
                    for chunk in convert.from_log(answer):
                        if chunk.data or chunk.truncated:
                            yield chunk
                return
            except (Unavailable, DeadlineExceeded) as error:
                if deadline.passed or not (follow or cursor):
                    raise
                self._transport.sleep(patience.delay_s(error))

    def _name(self, execution: str) -> str:
        """The resource name; an id alone is looked for among the latest."""
        name = names.execution(self._customer, execution)
        if name is not None:
            return name
        if not execution:
            raise InvalidRequest("execution: is empty")
        seen = 0
        for each in self.list(page_size=1_000):
            if each.id == execution:
                return each.name
            seen += 1
            if seen == limits.LOOKUP_EXECUTIONS_MAX:
                break
        raise NotFound(
            f"execution {execution}: not among the latest {seen:,} of customer "
            f"{self._customer}; an older one is found as JOB/{execution}"
        )


class Watch:
    """Executions as they change: iterate over it. A broken stream goes on where it broke."""

    def __init__(
        self,
        transport: Transport,
        stub: execution_pb2_grpc.ExecutionServiceStub,
        parent: str,
        schedule: str,
        cursor: str,
        deadline_s: float | None = None,
    ) -> None:
        self._transport = transport
        self._stub = stub
        self._parent = parent
        self._schedule = schedule
        self._deadline = Deadline(deadline_s)
        self.cursor = cursor
        """Where to go on later, in another watch, after what has been seen of this one."""

    def __iter__(self) -> Iterator[Execution]:
        # One execution's stream begins with its present state, and ends when it has ended.
        of_one = "/executions/" in self._parent
        patience = Patience()
        while True:
            request = execution_pb2.WatchExecutionsRequest(
                parent=self._parent,
                cursor="" if of_one else self.cursor,
                schedule=self._schedule,
            )
            try:
                for answer in self._transport.stream(
                    self._stub.WatchExecutions,
                    request,
                    self._deadline.left_s(limits.STREAM_DEADLINE_S),
                ):
                    patience.heard()
                    for each in answer.executions:
                        yield convert.from_execution(each)
                    self.cursor = answer.cursor
                if of_one:
                    return
                error: Unavailable | DeadlineExceeded = Unavailable("the watch ended")
            except (Unavailable, DeadlineExceeded) as broken:
                error = broken
            if self._deadline.passed:
                raise DeadlineExceeded(
                    f"{self._parent}: not ended after {self._deadline.seconds:g} s"
                )
            self._transport.sleep(patience.delay_s(error))


class ExecutionHandle:
    """An execution that can be waited for."""

    def __init__(self, executions: Executions, execution: Execution) -> None:
        self._executions = executions
        self.execution = execution
        """As it was last seen."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.execution.state}>"

    @property
    def name(self) -> str:
        """The resource name."""
        return self.execution.name

    @property
    def id(self) -> str:
        """The last part of the name."""
        return self.execution.id

    def get(self, *, deadline_s: float | None = None) -> Execution:
        """As it is now."""
        self.execution = self._executions.get(self.name, deadline_s=deadline_s)
        return self.execution

    def changes(self, *, deadline_s: float | None = None) -> Iterator[Execution]:
        """As it is, then as it changes, until it has ended."""
        for each in self._executions.changes(self.name, deadline_s=deadline_s):
            self.execution = each
            yield each

    def wait(self, *, deadline_s: float | None = None) -> Execution:
        """Wait until it has ended, however. Raises DeadlineExceeded; it goes on then."""
        if not self.execution.state.final:
            for _ in self.changes(deadline_s=deadline_s):
                pass
        if not self.execution.state.final:
            self.get()
        return self.execution

    def result(self, *, deadline_s: float | None = None) -> Execution:
        """Wait until it has ended. Raises ExecutionFailed if it did not succeed."""
        execution = self.wait(deadline_s=deadline_s)
        if execution.state is not ExecutionState.SUCCEEDED:
            raise ExecutionFailed(execution)
        return execution

    def logs(
        self, *, follow: bool = False, attempt: int = 0, deadline_s: float | None = None
    ) -> Iterator[LogChunk]:
        """What it wrote; see Executions.logs."""
        return self._executions.logs(
            self.name, follow=follow, attempt=attempt, deadline_s=deadline_s
        )

    def cancel(self, *, deadline_s: float | None = None) -> Execution:
        """Ask it to end."""
        self.execution = self._executions.cancel(self.name, deadline_s=deadline_s)
        return self.execution


class Images:
    """A customer's own images, pushed or imported: `client.images`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._customer = transport.target.customer
        self._stub = image_pb2_grpc.ImageServiceStub(transport.channel)

    def import_archive(
        self,
        image: str,
        archive: str | Path,
        *,
        progress: Callable[[int, int], None] | None = None,
        deadline_s: float = limits.IMPORT_DEADLINE_S,
    ) -> Image:
        """Import an OCI archive (a tar with index.json) as an image, "report:1".

        progress: called with (bytes sent, bytes in all). Raises ImageCorrupt, ImageTooLarge, and
        OSError for the file.
        """
        path = Path(archive)
        requests = _archive_messages(names.image(self._customer, image), path, progress)
        answer = self._transport.upload(self._stub.ImportImage, requests, deadline_s)
        return convert.from_image(answer)

    def push(
        self,
        image: str,
        source: str | Path,
        *,
        architecture: str = "",
        on_root_file_system: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        deadline_s: float = limits.IMPORT_DEADLINE_S,
    ) -> PushedImage:
        """Push an image, "report:1", into the mesh's own registry, and have executors pull it.

        source: an OCI image layout, as a directory or a tar file, or what `docker save` writes; any
        other directory or tar (plain or with gzip) is a root file system, and becomes an image of
        one layer, its files root's. architecture: of a root file system, "amd64" or "arm64";
        default: this machine's. on_root_file_system: called when the source is one, before it is
        pushed. progress: called with (bytes that the registry has, bytes in all).
        Raises ImageCorrupt, ImageTooLarge, PermissionDenied, FailedPrecondition (this mesh has no
        registry), and OSError for the source.
        """
        deadline = Deadline(deadline_s)
        repository, tag = names.image_repository(self._customer, image)
        registry = self.registry()
        layout = self._transport.blocking(
            lambda: Layout(Path(source), architecture, on_root_file_system)
        )
        others = {each.name.split("/")[3].partition(":")[0] for each in self.list()}

        def work() -> str:
            return pushing.push(
                layout,
                registry,
                repository,
                tag,
                deadline_s=deadline.left_s(deadline_s),
                others=[f"{repository.partition('/')[0]}/{other}" for other in sorted(others)],
                progress=progress,
            )

        self._transport.blocking(work)
        request = image_pb2.PullImageRequest(name=names.image(self._customer, image))
        left_s = max(limits.PULL_DEADLINE_MIN_S, deadline.left_s(limits.PULL_DEADLINE_S))
        answer = self._transport.unary(self._stub.PullImage, request, left_s)
        return convert.from_pull(answer)

    def create_credential(
        self, host: str, username: str, secret: str, *, deadline_s: float | None = None
    ) -> RegistryCredential:
        """Keep a login to another registry, "registry.example:5000", for pulling this customer's
        images there; it takes an earlier one's place. The secret cannot be read again."""
        request = image_pb2.CreateRegistryCredentialRequest(
            parent=names.customer(self._customer), host=host, username=username, secret=secret
        )
        return convert.from_registry_credential(
            self._transport.unary(self._stub.CreateRegistryCredential, request, deadline_s)
        )

    def credentials(self, *, deadline_s: float | None = None) -> Sequence[RegistryCredential]:
        """All logins to registries, ordered by host."""
        request = image_pb2.ListRegistryCredentialsRequest(parent=names.customer(self._customer))
        answer = self._transport.unary(self._stub.ListRegistryCredentials, request, deadline_s)
        return [convert.from_registry_credential(each) for each in answer.registry_credentials]

    def delete_credential(self, host: str, *, deadline_s: float | None = None) -> None:
        """Forget a login to a registry."""
        parent = names.customer(self._customer)
        request = image_pb2.DeleteRegistryCredentialRequest(
            name=f"{parent}/registryCredentials/{host}"
        )
        self._transport.unary(self._stub.DeleteRegistryCredential, request, deadline_s)

    def registry(self, *, deadline_s: float | None = None) -> pushing.Registry:
        """The mesh's own registry, for other programs too. Raises FailedPrecondition: no such."""
        request = image_pb2.GetRegistryRequest(name=f"{names.customer(self._customer)}/registry")
        answer = self._transport.unary(self._stub.GetRegistry, request, deadline_s)
        return pushing.Registry(
            answer.address,
            answer.plain,
            answer.authority,
            self._customer,
            self._transport.target.api_key,
        )

    def get(self, image: str, *, deadline_s: float | None = None) -> Image:
        """One pushed or imported image. Raises NotFound."""
        request = image_pb2.GetImageRequest(name=names.image(self._customer, image))
        return convert.from_image(self._transport.unary(self._stub.GetImage, request, deadline_s))

    def list(self, *, deadline_s: float | None = None) -> Sequence[Image]:
        """All pushed and imported images, ordered by name."""
        request = image_pb2.ListImagesRequest(parent=names.customer(self._customer))
        answer = self._transport.unary(self._stub.ListImages, request, deadline_s)
        return [convert.from_image(each) for each in answer.images]

    def delete(self, image: str, *, deadline_s: float | None = None) -> None:
        """Delete a pushed or imported image. What runs keeps its own."""
        request = image_pb2.DeleteImageRequest(name=names.image(self._customer, image))
        self._transport.unary(self._stub.DeleteImage, request, deadline_s)


class Keys:
    """The API keys of the customer: `client.keys`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._customer = transport.target.customer
        self._stub = customer_pb2_grpc.CustomerServiceStub(transport.channel)

    def create(
        self,
        scopes: Sequence[ApiScope],
        *,
        display_name: str = "",
        expire_time: datetime | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> NewApiKey:
        """Create a key. Its text is in the answer, and nowhere else.

        request_id: the same one again makes no other key, but gives this one a new secret.
        """
        request = customer_pb2.CreateApiKeyRequest(
            parent=names.customer(self._customer),
            api_key=customer_pb2.ApiKey(
                display_name=display_name,
                scopes=convert.to_scopes(scopes),
                expire_time=convert.to_timestamp(expire_time, "expire_time"),
            ),
            request_id=request_id or str(uuid.uuid4()),
        )
        answer = self._transport.unary(self._stub.CreateApiKey, request, deadline_s)
        return NewApiKey(key=convert.from_api_key(answer.api_key), text=answer.text)

    def list(self, *, page_size: int = 0, deadline_s: float | None = None) -> Iterator[ApiKey]:
        """All keys, expired ones too, ordered by id; pages are fetched as they are needed."""
        token = ""
        while True:
            request = customer_pb2.ListApiKeysRequest(
                parent=names.customer(self._customer), page_size=page_size, page_token=token
            )
            answer = self._transport.unary(self._stub.ListApiKeys, request, deadline_s)
            for each in answer.api_keys:
                yield convert.from_api_key(each)
            token = answer.next_page_token
            if not token:
                return

    def revoke(self, key: str, *, deadline_s: float | None = None) -> None:
        """End a key for good: it is refused everywhere within 10 seconds. Raises NotFound."""
        request = customer_pb2.RevokeApiKeyRequest(name=names.key(self._customer, key))
        self._transport.unary(self._stub.RevokeApiKey, request, deadline_s)


def _archive_messages(
    name: str, path: Path, progress: Callable[[int, int], None] | None
) -> Iterator[image_pb2.ImportImageRequest]:
    """The file in messages, the first with the name. Opened at once, so that its errors are the
    caller's, not lost in gRPC's thread."""
    file = path.open("rb")

    def each() -> Iterator[image_pb2.ImportImageRequest]:
        with file:
            total, sent = path.stat().st_size, 0
            yield image_pb2.ImportImageRequest(name=name)
            while data := file.read(limits.UPLOAD_CHUNK_BYTES):
                yield image_pb2.ImportImageRequest(data=data)
                sent += len(data)
                if progress is not None:
                    progress(sent, total)

    return each()
