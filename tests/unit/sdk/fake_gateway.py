"""A gateway in memory: the public services over real gRPC, with the answers and errors of the real
one, a clock that stands still, and ids that count. Executions do what the test says.

Deterministic, so that what the command line prints can be compared word for word. The real mesh is
run in tests/integration/sdk.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_status import rpc_status

from tickmesh.mesh import api_keys, errors
from tickmesh.proto.tickmesh.v1 import (
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

NOW_MS = 1_800_000_000_000  # 2027-01-15T08:00:00Z
FINAL = (
    execution_pb2.EXECUTION_STATE_SUCCEEDED,
    execution_pb2.EXECUTION_STATE_FAILED,
    execution_pb2.EXECUTION_STATE_CANCELLED,
)


def stamp(ms: float) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(round(ms * 1_000))
    return made


class FakeGateway(
    job_pb2_grpc.JobServiceServicer,
    schedule_pb2_grpc.ScheduleServiceServicer,
    calendar_pb2_grpc.CalendarServiceServicer,
    zone_pb2_grpc.ZoneServiceServicer,
    execution_pb2_grpc.ExecutionServiceServicer,
    image_pb2_grpc.ImageServiceServicer,
    customer_pb2_grpc.CustomerServiceServicer,
    cluster_pb2_grpc.ClusterServiceServicer,
):
    """See the module."""

    def __init__(self) -> None:
        self.jobs: dict[str, job_pb2.Job] = {}
        self.schedules: dict[str, schedule_pb2.Schedule] = {}
        self.calendars: dict[str, calendar_pb2.Calendar] = {}
        self.executions: dict[str, execution_pb2.Execution] = {}
        self.payloads: dict[str, bytes] = {}
        self.backfills: dict[str, int] = {}
        self.backups: list[str] = []
        self.replicas = {f"shard-0-{number}": f"127.0.0.1:730{number + 1}" for number in range(3)}
        self.drains: list[cluster_pb2.DrainExecutorRequest] = []
        self.images: dict[str, image_pb2.Image] = {}
        self.keys: dict[str, customer_pb2.ApiKey] = {}
        self.customers: dict[str, customer_pb2.Customer] = {}
        self.shown: list[str] = []
        """Keys that calls of CustomerService showed; "" for none."""
        self.logs: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
        self.by_request_id: dict[str, Any] = {}
        self.history: list[execution_pb2.Execution] = []
        """Every change of an execution: a cursor is an index into it."""
        self.calls: list[str] = []
        """Names of the methods called, refused calls included."""
        self.failures: dict[str, list[errors.TickmeshError]] = defaultdict(list)
        """What the next calls of a method raise."""
        self.break_streams_after: list[int] = []
        """After how many messages each next stream breaks with UNAVAILABLE."""
        self.lose_answers: dict[str, int] = defaultdict(int)
        """How many next calls of a method are done, and then answered with OUTCOME_UNKNOWN."""
        self.run: Callable[[execution_pb2.Execution], None] = self.succeed
        """What becomes of an execution that is executed."""
        self.page_size_max = 1_000
        self.last_deadline_s = 0.0
        self._number = 0
        self._changed = threading.Condition()

    # What executions do ---------------------------------------------------------------------------

    def succeed(self, execution: execution_pb2.Execution) -> None:
        """Runs at once, says hello, exits with 0."""
        self.started(execution)
        self.logs[execution.name].append((b"hello world\n", execution_pb2.LOG_STREAM_STDOUT))
        self.ended(execution, 0)

    def fail(self, execution: execution_pb2.Execution) -> None:
        """Runs at once, complains, exits with 3."""
        self.started(execution)
        self.logs[execution.name].append((b"oh no\n", execution_pb2.LOG_STREAM_STDERR))
        self.ended(execution, 3)

    def flood(self, execution: execution_pb2.Execution) -> None:
        """Runs at once, and writes more than is kept."""
        self.started(execution)
        out = execution_pb2.LOG_STREAM_STDOUT
        self.logs[execution.name] += [(b"begun\nha", out), (b"lf\n", out), (b"flood\nend", out)]
        self.ended(execution, 0)
        execution.attempts[-1].output_bytes += 12_345
        execution.attempts[-1].dropped_output_bytes = 12_345

    def retry(self, execution: execution_pb2.Execution) -> None:
        """Runs at once, fails, and waits for another attempt."""
        self.started(execution)
        execution.attempts[-1].reason = execution_pb2.EXECUTION_REASON_EXIT_CODE
        execution.state = execution_pb2.EXECUTION_STATE_PENDING
        execution.next_attempt_time.CopyFrom(stamp(NOW_MS + 60_000))
        self.changed(execution)

    def break_down(self, execution: execution_pb2.Execution) -> None:
        """Never starts: the platform's fault."""
        execution.state = execution_pb2.EXECUTION_STATE_FAILED
        execution.reason = execution_pb2.EXECUTION_REASON_INFRASTRUCTURE
        execution.message = "containerd does not answer"
        execution.end_time.CopyFrom(stamp(NOW_MS + 5))
        self.changed(execution)

    def started(self, execution: execution_pb2.Execution) -> None:
        execution.state = execution_pb2.EXECUTION_STATE_RUNNING
        execution.start_time.CopyFrom(stamp(NOW_MS + 1.5))
        execution.lateness.FromMicroseconds(1_500)
        execution.attempts.add(number=1, executor="executor-0", start_time=execution.start_time)
        self.changed(execution)

    def ended(self, execution: execution_pb2.Execution, exit_code: int) -> None:
        execution.exit_code = exit_code
        execution.state = execution_pb2.EXECUTION_STATE_SUCCEEDED
        if exit_code:
            execution.state = execution_pb2.EXECUTION_STATE_FAILED
            execution.reason = execution_pb2.EXECUTION_REASON_EXIT_CODE
        execution.end_time.CopyFrom(stamp(NOW_MS + 251.5))
        attempt = execution.attempts[-1]
        attempt.exit_code = exit_code
        attempt.reason = execution.reason
        attempt.end_time.CopyFrom(execution.end_time)
        attempt.peak_memory_bytes = 3_500_000
        attempt.cpu_time.FromMilliseconds(40)
        attempt.output_bytes = sum(len(data) for data, _ in self.logs[execution.name])
        self.changed(execution)

    def changed(self, execution: execution_pb2.Execution) -> None:
        with self._changed:
            kept = execution_pb2.Execution()
            kept.CopyFrom(execution)
            self.history.append(kept)
            self._changed.notify_all()

    # Serving --------------------------------------------------------------------------------------

    @contextmanager
    def serving(self, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
        """Serve on a free port, without TLS or with it; the address."""
        server = grpc.server(
            ThreadPoolExecutor(8), interceptors=[_Refuse(self)], options=[("grpc.so_reuseport", 0)]
        )
        job_pb2_grpc.add_JobServiceServicer_to_server(self, server)
        schedule_pb2_grpc.add_ScheduleServiceServicer_to_server(self, server)
        calendar_pb2_grpc.add_CalendarServiceServicer_to_server(self, server)
        zone_pb2_grpc.add_ZoneServiceServicer_to_server(self, server)
        execution_pb2_grpc.add_ExecutionServiceServicer_to_server(self, server)
        image_pb2_grpc.add_ImageServiceServicer_to_server(self, server)
        customer_pb2_grpc.add_CustomerServiceServicer_to_server(self, server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(self, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            with self._changed:
                self._changed.notify_all()
            server.stop(None).wait()

    def refused(self, method: str, context: grpc.ServicerContext) -> None:
        """Note a call; abort it if the test says so, or if it has no deadline."""
        self.calls.append(method)
        left_s = context.time_remaining()
        if left_s is None or left_s > 1e6:
            abort(context, errors.DeadlineRequired("the call carries no deadline"))
        self.last_deadline_s = float(left_s or 0)
        if self.failures[method]:
            abort(context, self.failures[method].pop(0))

    def _answer(self, method: str, context: grpc.ServicerContext, answer: Any) -> Any:
        if self.lose_answers[method]:
            self.lose_answers[method] -= 1
            abort(context, errors.OutcomeUnknown("the leader was lost before it answered"))
        return answer

    def _id(self) -> str:
        self._number += 1
        return f"{self._number:04d}"

    def _found(self, things: dict[str, Any], name: str, context: grpc.ServicerContext) -> Any:
        if name not in things:
            abort(context, errors.NotFound(f"{name}: there is none"))
        return things[name]

    def _page(self, found: list[Any], request: Any) -> tuple[list[Any], str]:
        size = min(request.page_size or 100, self.page_size_max)
        start = int(request.page_token or 0)
        return found[start : start + size], str(start + size) if start + size < len(found) else ""

    # Jobs -----------------------------------------------------------------------------------------

    def CreateJob(self, request: Any, context: Any) -> Any:
        if request.request_id in self.by_request_id:
            return self.by_request_id[request.request_id]
        job = request.job
        job.name = f"{request.parent}/jobs/{request.job_id or 'job-' + self._id()}"
        if job.name in self.jobs:
            abort(context, errors.AlreadyExists(f"{job.name}: the id is taken"))
        if job.container.image == "BAD IMAGE":
            abort(
                context,
                errors.invalid("job.container.image", "does not match the pattern of an image"),
            )
        job.uid, job.revision, job.etag = "0" * 16, 1, "1"
        job.resources.memory_bytes = job.resources.memory_bytes or 256 * 2**20
        job.resources.cpu_millis = job.resources.cpu_millis or 1_000
        if not job.HasField("timeout"):
            job.timeout.FromSeconds(3_600)
        job.create_time.CopyFrom(stamp(NOW_MS))
        job.update_time.CopyFrom(stamp(NOW_MS))
        if not request.validate_only:
            self.jobs[job.name] = job
            self.by_request_id[request.request_id] = job
        return self._answer("CreateJob", context, job)

    def BatchCreateJobs(self, request: Any, context: Any) -> Any:
        made = [
            self.CreateJob(
                job_pb2.CreateJobRequest(
                    parent=request.parent,
                    job_id=each.job_id,
                    job=each.job,
                    request_id=f"{request.request_id}-{number}",
                ),
                context,
            )
            for number, each in enumerate(request.jobs)
        ]
        return job_pb2.BatchCreateJobsResponse(jobs=made)

    def GetJob(self, request: Any, context: Any) -> Any:
        return self._found(self.jobs, request.name, context)

    def ListJobs(self, request: Any, context: Any) -> Any:
        found = [j for n, j in sorted(self.jobs.items()) if n.startswith(request.parent + "/")]
        page, token = self._page(found, request)
        return job_pb2.ListJobsResponse(jobs=page, next_page_token=token)

    def UpdateJob(self, request: Any, context: Any) -> Any:
        job = self._found(self.jobs, request.job.name, context)
        if request.job.etag not in ("", job.etag):
            abort(context, errors.EtagMismatch(f"{job.name}: was changed by somebody else"))
        request.update_mask.MergeMessage(request.job, job, True, True)
        job.revision += 1
        job.etag = str(job.revision)
        return job

    def DeleteJob(self, request: Any, context: Any) -> Any:
        self._found(self.jobs, request.name, context)
        if not request.force and any(n.startswith(request.name + "/") for n in self.schedules):
            abort(context, errors.JobHasSchedules(f"{request.name}: still has schedules"))
        del self.jobs[request.name]
        return Empty()

    # Schedules ------------------------------------------------------------------------------------

    def CreateSchedule(self, request: Any, context: Any) -> Any:
        if request.request_id in self.by_request_id:
            return self.by_request_id[request.request_id]
        self._found(self.jobs, request.parent, context)
        schedule = request.schedule
        if schedule.recurrence.time_zone == "Mars/Olympus":
            abort(
                context,
                errors.invalid(
                    "schedule.recurrence.time_zone", "'Mars/Olympus' is not an IANA time zone"
                ),
            )
        schedule_id = request.schedule_id or "schedule-" + self._id()
        schedule.name = f"{request.parent}/schedules/{schedule_id}"
        if schedule.name in self.schedules:
            abort(context, errors.AlreadyExists(f"{schedule.name}: the id is taken"))
        schedule.uid, schedule.etag = "1" * 16, "1"
        schedule.state = schedule_pb2.SCHEDULE_STATE_ACTIVE
        schedule.next_fire_time.CopyFrom(stamp(NOW_MS + 60_000))
        schedule.create_time.CopyFrom(stamp(NOW_MS))
        schedule.update_time.CopyFrom(stamp(NOW_MS))
        if not request.validate_only:
            self.schedules[schedule.name] = schedule
            self.by_request_id[request.request_id] = schedule
        return self._answer("CreateSchedule", context, schedule)

    def BatchCreateSchedules(self, request: Any, context: Any) -> Any:
        made = [
            self.CreateSchedule(
                schedule_pb2.CreateScheduleRequest(
                    parent=request.parent,
                    schedule_id=each.schedule_id,
                    schedule=each.schedule,
                    request_id=f"{request.request_id}-{number}",
                ),
                context,
            )
            for number, each in enumerate(request.schedules)
        ]
        return schedule_pb2.BatchCreateSchedulesResponse(schedules=made)

    def GetSchedule(self, request: Any, context: Any) -> Any:
        return self._found(self.schedules, request.name, context)

    def ListSchedules(self, request: Any, context: Any) -> Any:
        found = [s for n, s in sorted(self.schedules.items()) if n.startswith(request.parent + "/")]
        page, token = self._page(found, request)
        return schedule_pb2.ListSchedulesResponse(schedules=page, next_page_token=token)

    def UpdateSchedule(self, request: Any, context: Any) -> Any:
        schedule = self._found(self.schedules, request.schedule.name, context)
        request.update_mask.MergeMessage(request.schedule, schedule, True, True)
        schedule.etag = str(int(schedule.etag) + 1)
        return schedule

    def DeleteSchedule(self, request: Any, context: Any) -> Any:
        self._found(self.schedules, request.name, context)
        del self.schedules[request.name]
        return Empty()

    def PauseSchedule(self, request: Any, context: Any) -> Any:
        schedule = self._found(self.schedules, request.name, context)
        schedule.state = schedule_pb2.SCHEDULE_STATE_PAUSED
        schedule.pause_reason = request.reason
        schedule.ClearField("next_fire_time")
        return schedule

    def ResumeSchedule(self, request: Any, context: Any) -> Any:
        schedule = self._found(self.schedules, request.name, context)
        if schedule.state != schedule_pb2.SCHEDULE_STATE_PAUSED:
            abort(context, errors.NotPaused(f"{schedule.name}: is not paused"))
        schedule.state = schedule_pb2.SCHEDULE_STATE_ACTIVE
        schedule.pause_reason = ""
        schedule.next_fire_time.CopyFrom(stamp(NOW_MS + 60_000))
        return schedule

    def PreviewSchedule(self, request: Any, context: Any) -> Any:
        answer = schedule_pb2.PreviewScheduleResponse()
        for number in range(request.count or 10):
            answer.fires.add(
                due_time=stamp(NOW_MS + number * 60_000),
                local_time=f"2027-01-15T09:{number:02d}:00+01:00",
                note="the clocks go forward: 02:30 does not exist" if number == 1 else "",
            )
        for name in request.recurrence.excluded_calendars:
            answer.skipped.add(
                due_time=stamp(NOW_MS + 30_000),
                local_time="2027-01-15T09:00:30+01:00",
                note=f"excluded by calendar {name.rpartition('/')[2]}",
            )
        return answer

    def TriggerSchedule(self, request: Any, context: Any) -> Any:
        schedule = self._found(self.schedules, request.name, context)
        asked = execution_pb2.ExecuteJobRequest(
            name=request.name.partition("/schedules/")[0],
            payload=schedule.payload,
            request_id=request.request_id,
        )
        execution = self.ExecuteJob(asked, context)
        execution.schedule = request.name
        return execution

    def BackfillSchedule(self, request: Any, context: Any) -> Any:
        self._found(self.schedules, request.name, context)
        count = (request.end_time.seconds - request.start_time.seconds) // 60
        if count >= 1_000:
            abort(
                context,
                errors.invalid("end_time", "the range has 1,000 instants or more: make it smaller"),
            )
        self.backfills[f"{len(self.backfills):020d}"] = count
        return schedule_pb2.BackfillScheduleResponse(
            fire_count=count, backfill=list(self.backfills)[-1]
        )

    def CancelBackfill(self, request: Any, context: Any) -> Any:
        count = self._found(self.backfills, request.backfill, context)
        self.backfills[request.backfill] = 0
        return schedule_pb2.CancelBackfillResponse(cancelled_count=count)

    def ListFires(self, request: Any, context: Any) -> Any:
        """Created an hour ago; fired each minute but one; paused for a time."""
        schedule = self._found(self.schedules, request.parent, context)
        rows = []
        for number, outcome in enumerate(schedule_pb2.FireOutcome.values()[1:]):
            at_ms = NOW_MS - 3_600_000 + number * 60_000
            row = schedule_pb2.LedgerRow(
                number=number,
                outcome=outcome,
                decide_time=stamp(at_ms),
                first_time=stamp(at_ms),
                last_time=stamp(at_ms),
                count=1,
                hash=f"{number:032x}",
            )
            if outcome == schedule_pb2.FIRE_OUTCOME_DEFINED:
                row.definition.CopyFrom(schedule)
            elif outcome in (schedule_pb2.FIRE_OUTCOME_FIRED, schedule_pb2.FIRE_OUTCOME_CAUGHT_UP):
                job = request.parent.partition("/schedules/")[0]
                row.execution = f"{job}/executions/{number:04d}"
            elif outcome == schedule_pb2.FIRE_OUTCOME_EXCLUDED:
                row.calendar = "customers/default/calendars/holidays"
            elif outcome == schedule_pb2.FIRE_OUTCOME_PAUSED:
                row.last_time.CopyFrom(stamp(at_ms + 120_000))
                row.count = 0
            rows.append(row)
        if request.newest_first:
            rows.reverse()
        page, token = self._page(rows, request)
        return schedule_pb2.ListFiresResponse(rows=page, next_page_token=token)

    def GetScheduleStatistics(self, request: Any, context: Any) -> Any:
        self._found(self.schedules, request.name, context)
        answer = schedule_pb2.ScheduleStatistics(
            start_time=stamp(NOW_MS - 86_400_000),
            end_time=stamp(NOW_MS),
            complete=True,
            fired_count=1_400,
            caught_up_count=1,
            missed_count=9,
            failed_count=2,
            late_count=3,
            started_count=1_400,
        )
        answer.skipped.add(outcome=schedule_pb2.FIRE_OUTCOME_OVERLAP, count=12)
        answer.skipped.add(outcome=schedule_pb2.FIRE_OUTCOME_CLOCK, count=1)
        answer.lateness_p50.FromMicroseconds(1_500)
        answer.lateness_p99.FromMicroseconds(20_250)
        return answer

    def VerifySchedule(self, request: Any, context: Any) -> Any:
        """Finds something wrong with what is called forged, and forgets what is called old."""
        self._found(self.schedules, request.name, context)
        answer = schedule_pb2.VerifyScheduleResponse(
            instant_count=60, row_count=61, complete=not request.name.endswith("/old")
        )
        if request.name.endswith("/forged"):
            answer.problems.add(
                kind=schedule_pb2.LEDGER_PROBLEM_KIND_MISSING,
                time=stamp(NOW_MS - 60_000),
                text="nothing says what became of this instant",
            )
        return answer

    # Zones ----------------------------------------------------------------------------------------

    def PreviewZones(self, request: Any, context: Any) -> Any:
        """Whatever the files, the second release moves two schedules; a page has one."""
        if request.days == 1:
            return zone_pb2.PreviewZonesResponse()
        number = int(request.page_token or 0)
        answer = zone_pb2.PreviewZonesResponse(changed_zones=["Europe/Berlin"])
        answer.schedules.add(
            name=f"customers/acme/jobs/hello/schedules/s-{number}",
            time_zone="Europe/Berlin",
            old_times=[stamp(NOW_MS), stamp(NOW_MS + 86_400_000)],
            new_times=[stamp(NOW_MS + 3_600_000)],
            more=bool(number),
        )
        answer.next_page_token = "" if number else "1"
        return answer

    def UpgradeZones(self, request: Any, context: Any) -> Any:
        self.zone_files = {file.name: file.content for file in request.files}
        return zone_pb2.UpgradeZonesResponse(
            changed_zones=["Europe/Berlin"], changed_schedule_count=2
        )

    # Calendars ------------------------------------------------------------------------------------

    def CreateCalendar(self, request: Any, context: Any) -> Any:
        if request.request_id in self.by_request_id:
            return self.by_request_id[request.request_id]
        calendar = request.calendar
        calendar.name = f"{request.parent}/calendars/{request.calendar_id or 'calendar-0001'}"
        if calendar.name in self.calendars:
            abort(context, errors.AlreadyExists(f"{calendar.name}: the id is taken"))
        if "02-30" in calendar.dates:
            abort(context, errors.invalid("calendar.dates[0]", "'02-30' is not a date"))
        calendar.uid, calendar.etag = "2" * 16, "1"
        calendar.create_time.CopyFrom(stamp(NOW_MS))
        calendar.update_time.CopyFrom(stamp(NOW_MS))
        if not request.validate_only:
            self.calendars[calendar.name] = calendar
            self.by_request_id[request.request_id] = calendar
        return self._answer("CreateCalendar", context, calendar)

    def GetCalendar(self, request: Any, context: Any) -> Any:
        return self._found(self.calendars, request.name, context)

    def ListCalendars(self, request: Any, context: Any) -> Any:
        found = [c for n, c in sorted(self.calendars.items()) if n.startswith(request.parent + "/")]
        page, token = self._page(found, request)
        return calendar_pb2.ListCalendarsResponse(calendars=page, next_page_token=token)

    def UpdateCalendar(self, request: Any, context: Any) -> Any:
        calendar = self._found(self.calendars, request.calendar.name, context)
        if request.calendar.etag not in ("", calendar.etag):
            abort(context, errors.EtagMismatch(f"{calendar.name}: was changed by somebody else"))
        request.update_mask.MergeMessage(request.calendar, calendar, True, True)
        calendar.etag = str(int(calendar.etag) + 1)
        return calendar

    def DeleteCalendar(self, request: Any, context: Any) -> Any:
        self._found(self.calendars, request.name, context)
        users = [
            "/".join(name.split("/")[3::2])
            for name, schedule in self.schedules.items()
            if request.name in schedule.recurrence.excluded_calendars
        ]
        if users:
            abort(context, errors.CalendarInUse(f"schedules use it: {', '.join(users)}"))
        del self.calendars[request.name]
        return Empty()

    # Executions -----------------------------------------------------------------------------------

    def ExecuteJob(self, request: Any, context: Any) -> Any:
        if request.request_id in self.by_request_id:
            return self.by_request_id[request.request_id]
        self._found(self.jobs, request.name, context)
        for other in self.executions.values():
            same = request.active_key and other.active_key == request.active_key
            if same and other.state not in FINAL:
                return other
        execution = execution_pb2.Execution(
            active_key=request.active_key,
            name=f"{request.name}/executions/{self._id()}",
            job_revision=1,
            job_uid="0" * 16,
            state=execution_pb2.EXECUTION_STATE_PENDING,
            due_time=stamp(NOW_MS),
            create_time=stamp(NOW_MS),
        )
        self.executions[execution.name] = execution
        self.by_request_id[request.request_id] = execution
        self.payloads[execution.name] = request.payload
        self.changed(execution)
        answer = execution_pb2.Execution()
        answer.CopyFrom(execution)
        self.run(execution)
        return self._answer("ExecuteJob", context, answer)

    def BatchExecuteJobs(self, request: Any, context: Any) -> Any:
        made = [
            self.ExecuteJob(
                execution_pb2.ExecuteJobRequest(
                    name=each.name,
                    payload=each.payload,
                    active_key=each.active_key,
                    request_id=f"{request.request_id}-{number}",
                ),
                context,
            )
            for number, each in enumerate(request.executions)
        ]
        return execution_pb2.BatchExecuteJobsResponse(executions=made)

    def GetExecution(self, request: Any, context: Any) -> Any:
        return self._found(self.executions, request.name, context)

    def ListExecutions(self, request: Any, context: Any) -> Any:
        parent = request.parent.removesuffix("/-")
        found = [
            execution
            for name, execution in reversed(self.executions.items())
            if name.startswith(parent + "/")
            and (not request.states or execution.state in request.states)
            and request.schedule in ("", execution.schedule)
        ]
        page, token = self._page(found, request)
        return execution_pb2.ListExecutionsResponse(executions=page, next_page_token=token)

    def CancelExecution(self, request: Any, context: Any) -> Any:
        execution = self._found(self.executions, request.name, context)
        if execution.state not in FINAL:
            execution.state = execution_pb2.EXECUTION_STATE_CANCELLED
            execution.reason = execution_pb2.EXECUTION_REASON_CANCELLED
            execution.end_time.CopyFrom(stamp(NOW_MS + 300))
            self.changed(execution)
        return execution

    def WatchExecutions(self, request: Any, context: Any) -> Iterator[Any]:
        breaks_after = self.break_streams_after.pop(0) if self.break_streams_after else None
        of_one = "/executions/" in request.parent
        parent = request.parent.removesuffix("/-")
        position = int(request.cursor) if request.cursor else len(self.history)
        first = [self._found(self.executions, request.parent, context)] if of_one else []
        sent = 0
        while context.is_active():
            if sent == breaks_after:
                abort(context, errors.NoLeader("the shard has another leader"))
            yield execution_pb2.WatchExecutionsResponse(executions=first, cursor=str(position))
            sent += 1
            if of_one and first and first[-1].state in FINAL:
                return
            with self._changed:
                while len(self.history) <= position and context.is_active():
                    self._changed.wait(timeout=1)
                first = [self.history[position]] if position < len(self.history) else []
                position += len(first)
            if first and not (first[0].name + "/").startswith(parent + "/"):
                first = []

    def StreamLogs(self, request: Any, context: Any) -> Iterator[Any]:
        breaks_after = self.break_streams_after.pop(0) if self.break_streams_after else None
        execution = self._found(self.executions, request.name, context)
        position, sent = int(request.cursor or 0), 0
        while True:
            while position < len(self.logs[request.name]):
                if sent == breaks_after:
                    abort(context, errors.NoExecutor("executor-0 is not reachable"))
                data, stream = self.logs[request.name][position]
                position += 1
                sent += 1
                message = execution_pb2.StreamLogsResponse(
                    data=data, stream=stream, cursor=str(position)
                )
                # Each of its lines was read half a second after the one before.
                ends = [at + 1 for at, byte in enumerate(data[:-1]) if byte == ord("\n")]
                for line, offset in enumerate([0, *ends]):
                    message.times.add(offset=offset, time=stamp(NOW_MS + 500 * line))
                if b"flood" in data:
                    message.truncated, message.dropped_bytes = True, 12_345
                yield message
            if not request.follow or execution.state in FINAL:
                return
            with self._changed:
                self._changed.wait(timeout=1)

    # Images and the mesh --------------------------------------------------------------------------

    def ImportImage(self, requests: Any, context: Any) -> Any:
        first = next(requests)
        size = len(first.data) + sum(len(each.data) for each in requests)
        if size == 0:
            abort(context, errors.ImageCorrupt("the archive is empty: it has no index.json"))
        tail = first.name.rpartition("/")[2]
        name = first.name if ":" in tail else f"{first.name}:latest"
        image = image_pb2.Image(name=name, digest="sha256:" + "ab" * 32, size_bytes=size)
        self.images[name] = image
        return image

    def GetImage(self, request: Any, context: Any) -> Any:
        return self._found(self.images, request.name, context)

    def ListImages(self, request: Any, context: Any) -> Any:
        return image_pb2.ListImagesResponse(images=[i for _, i in sorted(self.images.items())])

    def DeleteImage(self, request: Any, context: Any) -> Any:
        self._found(self.images, request.name, context)
        del self.images[request.name]
        return Empty()

    # Keys -----------------------------------------------------------------------------------------

    def _customer(self, name: str) -> customer_pb2.Customer:
        stored = self.customers.setdefault(name, customer_pb2.Customer(name=name, etag="v1"))
        stored.history_max_age.FromSeconds(7 * 86_400)
        stored.plan = stored.plan or "standard"
        effective = stored.effective_plan
        effective.name = "standard" if stored.plan == "gone" else stored.plan
        effective.weight, effective.memory_bytes_max, effective.cpu_millis_max = 1, 1 << 30, 4_000
        effective.timeout_max.FromSeconds(86_400)
        effective.interval_min.FromSeconds(1)
        return stored

    def GetCustomer(self, request: Any, context: Any) -> Any:
        return self._customer(request.name)

    def UpdateCustomer(self, request: Any, context: Any) -> Any:
        (path,) = request.update_mask.paths
        assert path in ("retention", "plan")
        stored = self._customer(request.customer.name)
        if request.customer.etag not in ("", stored.etag):
            abort(context, errors.EtagMismatch(f"{stored.name} was changed by somebody else"))
        if path == "plan" and request.customer.plan not in ("standard", "gold", "gone"):
            there = f"there is no plan {request.customer.plan!r}; there are: gold, standard"
            abort(context, errors.invalid("customer.plan", there))
        if path == "plan":
            stored.plan = request.customer.plan
        else:
            stored.retention.CopyFrom(request.customer.retention)
        stored.etag = f"v{int(stored.etag[1:]) + 1}"
        return self._customer(stored.name)

    def _show(self, context: Any) -> None:
        shown = dict(context.invocation_metadata()).get("authorization", "")
        self.shown.append(shown.removeprefix("Bearer "))

    def CreateApiKey(self, request: Any, context: Any) -> Any:
        self._show(context)
        customer = request.parent.removeprefix("customers/")
        key_id = f"{len(self.keys) + 1:016d}"
        key = customer_pb2.ApiKey()
        key.CopyFrom(request.api_key)
        key.name = f"{request.parent}/keys/{key_id}"
        key.create_time.CopyFrom(stamp(NOW_MS))
        self.keys[key.name] = key
        text = api_keys.make(customer, key_id, bytes(32))
        return customer_pb2.CreateApiKeyResponse(api_key=key, text=text)

    def ListApiKeys(self, request: Any, context: Any) -> Any:
        self._show(context)
        found = [key for name, key in sorted(self.keys.items()) if name > request.page_token]
        size = min(request.page_size or self.page_size_max, self.page_size_max)
        more = found[size - 1].name if len(found) > size else ""
        return customer_pb2.ListApiKeysResponse(api_keys=found[:size], next_page_token=more)

    def RevokeApiKey(self, request: Any, context: Any) -> Any:
        self._show(context)
        self._found(self.keys, request.name, context)
        del self.keys[request.name]
        return Empty()

    def GetCluster(self, request: Any, context: Any) -> Any:
        answer = cluster_pb2.Cluster(version="0.1.0")
        shard = answer.shards.add(shard_id="shard-0")
        for number, (name, address) in enumerate(self.replicas.items()):
            shard.replicas.add(
                replica_id=name,
                address=address,
                reachable=number != 2,
                leader=number == 1,
                term=7,
                applied_index=120 + number,
                commit_index=123,
                schedule_count=1_000,
                active_execution_count=2,
                resident_memory_bytes=80 * 2**20,
            )
        answer.executors.add(
            executor_id="executor-0",
            address="127.0.0.1:7401",
            slot_count=64,
            used_slot_count=3,
            runtime="containerd 1.6.20, crun 1.8.1",
            memory_bytes=16 * 2**30,
            used_memory_bytes=768 * 2**20,
            cpu_millis=64_000,
            used_cpu_millis=3_000,
            labels={"region": "eu"},
            egress=True,
        )
        return answer

    def BackupShard(
        self, request: cluster_pb2.BackupShardRequest, context: Any
    ) -> cluster_pb2.BackupShardResponse:
        if request.directory in self.backups:
            abort(context, errors.AlreadyExists(f"s3://backups/{request.directory} is there"))
        self.backups.append(request.directory)
        return cluster_pb2.BackupShardResponse(
            replica_id="shard-0-1",
            path=f"s3://backups/{request.directory}",
            applied_index=4_711,
            file_count=9,
            size_bytes=102_752,
        )

    def AddReplica(self, request: Any, context: Any) -> cluster_pb2.Shard:
        """It has caught up at the next look."""
        if request.address in self.replicas.values():
            text = f"{request.address!r} is where somebody listens: nothing to add"
            abort(context, errors.AlreadyExists(text))
        made = self._members(1)
        made.replicas.add(replica_id="shard-0-3", address=request.address, learner=True)
        self.replicas["shard-0-3"] = request.address
        return made

    def RemoveReplica(self, request: Any, context: Any) -> cluster_pb2.Shard:
        if request.replica_id not in self.replicas:
            text = f"there is no replica {request.replica_id!r}; there are: shard-0-0"
            abort(context, errors.NotFound(text))
        del self.replicas[request.replica_id]
        return self._members(3)

    def _members(self, number: int) -> cluster_pb2.Shard:
        made = cluster_pb2.Shard(shard_id="shard-0", members_number=number)
        for name, address in self.replicas.items():
            made.replicas.add(replica_id=name, address=address)
        return made

    def DrainExecutor(
        self, request: cluster_pb2.DrainExecutorRequest, context: Any
    ) -> cluster_pb2.Executor:
        if request.executor_id != "executor-0":
            error = f"no executor {request.executor_id!r} is attached to the mesh"
            abort(context, errors.NotFound(error))
        self.drains.append(request)
        return cluster_pb2.Executor(
            executor_id="executor-0", used_slot_count=3, draining=not request.undo
        )


class _Refuse(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets the gateway refuse a call before it is made."""

    def __init__(self, gateway: FakeGateway) -> None:
        self._gateway = gateway

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        method = details.method.rpartition("/")[2]
        for kind in ("unary_unary", "unary_stream", "stream_unary"):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                make = getattr(grpc, f"{kind}_rpc_method_handler")
                return make(
                    self._checked(method, behaviour, kind.endswith("stream")),
                    handler.request_deserializer,
                    handler.response_serializer,
                )
        return handler

    def _checked(self, method: str, behaviour: Any, streams: bool) -> Any:
        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            self._gateway.refused(method, context)
            return behaviour(request, context)

        def stream(request: Any, context: grpc.ServicerContext) -> Any:
            self._gateway.refused(method, context)
            yield from behaviour(request, context)

        return stream if streams else unary


def abort(context: grpc.ServicerContext, error: errors.TickmeshError) -> None:
    context.abort_with_status(rpc_status.to_status(errors.to_status(error)))
