"""The public API through a real door: what works, and what bad input gets."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.gateway.conftest import TIMEOUT_S, User, new_schedule, refusal
from tickmesh.executor.archive import Process, files_image
from tickmesh.gateway.methods import METHODS
from tickmesh.mesh.limits import MESSAGE_BYTES_MAX
from tickmesh.proto.tickmesh.v1 import (
    cluster_pb2,
    execution_pb2,
    image_pb2,
    job_pb2,
    schedule_pb2,
)

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

GRPCURL = Path(sys.executable).with_name("grpcurl")


async def ended(user: User, name: str) -> Any:
    """The execution, once it is final."""
    request = execution_pb2.WatchExecutionsRequest(parent=name)
    answers = [a async for a in user.executions.WatchExecutions(request, timeout=TIMEOUT_S)]
    return [execution for answer in answers for execution in answer.executions][-1]


class TestWhatWorks:
    async def test_a_job_is_made_read_changed_listed_and_deleted(self, user: User) -> None:
        name = await user.job("jobs", "hello")
        job = await user.jobs.GetJob(job_pb2.GetJobRequest(name=name), timeout=TIMEOUT_S)
        job.timeout.FromSeconds(60)
        changed = await user.jobs.UpdateJob(
            job_pb2.UpdateJobRequest(job=job, update_mask=FieldMask(paths=["timeout"])),
            timeout=TIMEOUT_S,
        )
        assert (changed.revision, changed.timeout.seconds) == (2, 60)
        listed = await user.jobs.ListJobs(
            job_pb2.ListJobsRequest(parent="customers/jobs"), timeout=TIMEOUT_S
        )
        assert list(listed.jobs) == [changed]
        await user.jobs.DeleteJob(job_pb2.DeleteJobRequest(name=name), timeout=TIMEOUT_S)
        get = user.jobs.GetJob(job_pb2.GetJobRequest(name=name), timeout=TIMEOUT_S)
        assert (await refusal(get)).reason == "NOT_FOUND"

    async def test_a_schedule_is_made_paused_resumed_listed_and_deleted(self, user: User) -> None:
        job = await user.job("schedules", "hello")
        made = await user.schedule(job, "nightly")
        calls = user.schedules
        paused = await calls.PauseSchedule(
            schedule_pb2.PauseScheduleRequest(name=made.name, reason="holidays"), timeout=TIMEOUT_S
        )
        assert paused.state == schedule_pb2.SCHEDULE_STATE_PAUSED
        resumed = await calls.ResumeSchedule(
            schedule_pb2.ResumeScheduleRequest(name=made.name), timeout=TIMEOUT_S
        )
        assert resumed.state == schedule_pb2.SCHEDULE_STATE_ACTIVE
        listed = await calls.ListSchedules(
            schedule_pb2.ListSchedulesRequest(parent=job), timeout=TIMEOUT_S
        )
        assert [each.name for each in listed.schedules] == [made.name]
        await calls.DeleteSchedule(
            schedule_pb2.DeleteScheduleRequest(name=made.name), timeout=TIMEOUT_S
        )
        get = calls.GetSchedule(schedule_pb2.GetScheduleRequest(name=made.name), timeout=TIMEOUT_S)
        assert (await refusal(get)).reason == "NOT_FOUND"

    async def test_a_batch_is_made_in_one_call(self, user: User) -> None:
        job = await user.job("batches", "hello")
        request = schedule_pb2.BatchCreateSchedulesRequest(parent=job)
        for _ in range(1_000):
            request.schedules.add().schedule.recurrence.crons.append("0 3 * * *")
        made = await user.schedules.BatchCreateSchedules(request, timeout=TIMEOUT_S)
        assert len({each.name for each in made.schedules}) == 1_000
        listed = await user.schedules.ListSchedules(
            schedule_pb2.ListSchedulesRequest(parent=job, page_size=1_000), timeout=TIMEOUT_S
        )
        assert len(listed.schedules) == 1_000

    async def test_a_preview_tells_what_daylight_saving_does(self, user: User) -> None:
        request = schedule_pb2.PreviewScheduleRequest(parent="customers/preview", count=3)
        request.recurrence.crons.append("30 2 * * *")
        request.recurrence.time_zone = "Europe/Berlin"
        request.after_time.FromJsonString("2027-03-27T12:00:00Z")
        preview = await user.schedules.PreviewSchedule(request, timeout=TIMEOUT_S)
        assert [fire.local_time for fire in preview.fires] == [
            "2027-03-28T03:00:00+02:00",
            "2027-03-29T02:30:00+02:00",
            "2027-03-30T02:30:00+02:00",
        ]
        assert preview.fires[0].note and not preview.fires[1].note

    async def test_the_same_request_id_makes_one_thing(self, user: User) -> None:
        job = await user.job("again", "hello")
        request = new_schedule(job)
        request.request_id = "d6f1"
        made = [await user.schedules.CreateSchedule(request, timeout=TIMEOUT_S) for _ in range(2)]
        assert made[0] == made[1]

    async def test_what_an_execution_writes_is_streamed_from_any_cursor(self, user: User) -> None:
        job = await user.job("logs", "hello", "print", "one", ";", "error", "two")
        execution = await user.executions.ExecuteJob(
            execution_pb2.ExecuteJobRequest(name=job), timeout=TIMEOUT_S
        )
        follow = execution_pb2.StreamLogsRequest(name=execution.name, follow=True)
        parts = [part async for part in user.executions.StreamLogs(follow, timeout=TIMEOUT_S)]
        written = {
            stream: b"".join(part.data for part in parts if part.stream == stream)
            for stream in (execution_pb2.LOG_STREAM_STDOUT, execution_pb2.LOG_STREAM_STDERR)
        }
        assert list(written.values()) == [b"one\n", b"two\n"]
        done = await ended(user, execution.name)
        assert done.state == execution_pb2.EXECUTION_STATE_SUCCEEDED
        assert (done.attempts[0].output_bytes, done.attempts[0].dropped_output_bytes) == (8, 0)
        for part in parts:
            assert [time.offset for time in part.times] == [0]
            read_ns = part.times[0].time.ToNanoseconds()
            assert done.start_time.ToNanoseconds() <= read_ns <= done.end_time.ToNanoseconds()
        for index, part in enumerate(parts):
            again = execution_pb2.StreamLogsRequest(name=execution.name, cursor=part.cursor)
            rest = [more async for more in user.executions.StreamLogs(again, timeout=TIMEOUT_S)]
            assert rest == parts[index + 1 :]

    async def test_logs_are_followed_from_before_there_is_an_attempt(self, user: User) -> None:
        job = await user.job("early", "hello", "print", "at last")
        made = await user.schedule(job, "soon", cron="* * * * * *")
        watched = execution_pb2.WatchExecutionsRequest(parent=job)
        async for answer in user.executions.WatchExecutions(watched, timeout=TIMEOUT_S):
            if answer.executions:
                name = answer.executions[0].name
                break
        await user.schedules.DeleteSchedule(
            schedule_pb2.DeleteScheduleRequest(name=made.name), timeout=TIMEOUT_S
        )
        follow = execution_pb2.StreamLogsRequest(name=name, follow=True)
        parts = [part async for part in user.executions.StreamLogs(follow, timeout=TIMEOUT_S)]
        final = await ended(user, name)
        succeeded = final.state == execution_pb2.EXECUTION_STATE_SUCCEEDED
        assert b"".join(p.data for p in parts) == (b"at last\n" if succeeded else b"")

    async def test_an_image_is_imported_listed_and_deleted(
        self, user: User, tmp_path: Path
    ) -> None:
        archive = tmp_path / "image.tar"
        files_image(archive, {}, Process(command=("/nothing",)))
        name = "customers/images/images/report"

        async def messages() -> Any:
            yield image_pb2.ImportImageRequest(name=name)
            yield image_pb2.ImportImageRequest(data=archive.read_bytes())

        image = await user.images.ImportImage(messages(), timeout=TIMEOUT_S)
        assert image.name == f"{name}:latest" and re.fullmatch("sha256:[0-9a-f]{64}", image.digest)
        get = image_pb2.GetImageRequest(name=name)
        assert await user.images.GetImage(get, timeout=TIMEOUT_S) == image
        for parent, images in (("customers/images", [image]), ("customers/others", [])):
            listed = await user.images.ListImages(
                image_pb2.ListImagesRequest(parent=parent), timeout=TIMEOUT_S
            )
            assert list(listed.images) == images
        delete = image_pb2.DeleteImageRequest(name=name)
        await user.images.DeleteImage(delete, timeout=TIMEOUT_S)
        for call in (
            user.images.GetImage(get, timeout=TIMEOUT_S),
            user.images.DeleteImage(delete, timeout=TIMEOUT_S),
        ):
            assert (await refusal(call)).reason == "NOT_FOUND"

    async def test_the_cluster_is_seen_whole(self, user: User) -> None:
        cluster = await user.cluster.GetCluster(cluster_pb2.GetClusterRequest(), timeout=TIMEOUT_S)
        (shard,) = cluster.shards
        assert [(r.replica_id, r.reachable) for r in shard.replicas] == [
            (f"shard-0-{number}", True) for number in range(3)
        ]
        assert sum(replica.leader for replica in shard.replicas) == 1
        assert [executor.executor_id for executor in cluster.executors] == ["executor-0"]
        assert cluster.version

    async def test_health_needs_no_deadline(self, user: User) -> None:
        health: Any = health_pb2_grpc.HealthStub(user.channel)
        for service in ("", "tickmesh.v1.JobService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    async def test_grpcurl_knows_everything_through_reflection(self, user: User) -> None:
        async def grpcurl(*words: str) -> str:
            process = await asyncio.create_subprocess_exec(
                *(GRPCURL, "-plaintext", "-max-time", "10", *words),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
            return output.decode()

        services = (await grpcurl(user.address, "list")).split()
        assert {method.partition("/")[0] for method in METHODS} < set(services)
        assert "never fires" in await grpcurl(
            *("-d", json.dumps({"parent": "customers/c", "recurrence": {"crons": ["0 0 31 2 *"]}})),
            *(user.address, "tickmesh.v1.ScheduleService/PreviewSchedule"),
        )
        # The details of an error are described too: a client can print them.
        told = await grpcurl("-d", "{}", user.address, "tickmesh.v1.JobService/GetJob")
        assert "FIELD_INVALID" in told, told


class TestBadInput:
    @pytest.mark.parametrize(
        ("cron", "zone", "field"),
        [
            ("0 0 31 2 *", "UTC", "schedule.recurrence.crons[0]"),
            ("61 * * * *", "UTC", "schedule.recurrence.crons[0]"),
            ("0 3 * * *", "Mars/Olympus", "schedule.recurrence.time_zone"),
        ],
    )
    async def test_a_recurrence_that_cannot_be_names_its_field(
        self, user: User, cron: str, zone: str, field: str
    ) -> None:
        job = f"customers/bad/jobs/{await self._job(user)}"
        call = user.schedules.CreateSchedule(new_schedule(job, "", cron, zone), timeout=TIMEOUT_S)
        error = await refusal(call)
        assert (error.reason, [path for path, _ in error.fields]) == ("FIELD_INVALID", [field])
        listed = await user.schedules.ListSchedules(
            schedule_pb2.ListSchedulesRequest(parent=job), timeout=TIMEOUT_S
        )
        assert not listed.schedules, "nothing was changed"

    async def _job(self, user: User) -> str:
        job_id = f"j{time.monotonic_ns()}"
        await user.job("bad", job_id)
        return job_id

    async def test_a_time_in_the_past_is_refused(self, user: User) -> None:
        request = schedule_pb2.CreateScheduleRequest(
            parent=f"customers/bad/jobs/{await self._job(user)}"
        )
        request.schedule.recurrence.times.add(seconds=1_000_000_000)
        error = await refusal(user.schedules.CreateSchedule(request, timeout=TIMEOUT_S))
        assert error.reason == "FIELD_INVALID"
        assert error.fields[0][0].startswith("schedule.recurrence.times")

    async def test_a_job_that_does_not_exist_is_not_found(self, user: User) -> None:
        request = new_schedule("customers/bad/jobs/none")
        error = await refusal(user.schedules.CreateSchedule(request, timeout=TIMEOUT_S))
        assert error.reason == "NOT_FOUND" and "none" in error.message

    async def test_a_name_with_bad_characters_is_refused_by_its_field(self, user: User) -> None:
        request = job_pb2.GetJobRequest(name="customers/bad/jobs/Hello World")
        error = await refusal(user.jobs.GetJob(request, timeout=TIMEOUT_S))
        assert [path for path, _ in error.fields] == ["name"]

    async def test_a_payload_that_is_too_large_is_refused_by_its_field(self, user: User) -> None:
        request = execution_pb2.ExecuteJobRequest(
            name="customers/bad/jobs/hello", payload=bytes(65_537)
        )
        error = await refusal(user.executions.ExecuteJob(request, timeout=TIMEOUT_S))
        assert error.fields == (("payload", "has 65,537 bytes, at most 65,536 are allowed"),)

    @pytest.mark.parametrize("over", [1_000, 1_000_000])
    async def test_a_message_that_is_too_large_is_refused(self, user: User, over: int) -> None:
        raw = user.channel.unary_unary("/tickmesh.v1.JobService/CreateJob")
        error = await refusal(raw(bytes(MESSAGE_BYTES_MAX + over), timeout=TIMEOUT_S))
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        if over == 1_000:
            # Far above the limit gRPC itself refuses, without our reason.
            assert error.reason == "MESSAGE_TOO_LARGE"

    async def test_bytes_that_are_no_message_are_refused(self, user: User) -> None:
        raw = user.channel.unary_unary("/tickmesh.v1.JobService/CreateJob")
        assert (await refusal(raw(b"\xff\xff\xff", timeout=TIMEOUT_S))).reason == "FIELD_INVALID"

    async def test_a_page_token_of_another_listing_is_refused(self, user: User) -> None:
        for number in range(2):
            await user.job("pages", f"j{number}")
        first = await user.jobs.ListJobs(
            job_pb2.ListJobsRequest(parent="customers/pages", page_size=1), timeout=TIMEOUT_S
        )
        for parent, token in (
            ("customers/bad", first.next_page_token),
            ("customers/pages", base64.b64encode(b"nonsense").decode()),
        ):
            request = job_pb2.ListJobsRequest(parent=parent, page_token=token)
            error = await refusal(user.jobs.ListJobs(request, timeout=TIMEOUT_S))
            assert error.reason == "PAGE_TOKEN_INVALID"

    async def test_a_call_without_a_deadline_is_refused(self, user: User) -> None:
        error = await refusal(user.jobs.GetJob(job_pb2.GetJobRequest(name="customers/a/jobs/b")))
        assert error.reason == "DEADLINE_REQUIRED"
        watch = user.executions.WatchExecutions(
            execution_pb2.WatchExecutionsRequest(parent="customers/a/jobs/-")
        )
        assert (await refusal(watch.read())).reason == "DEADLINE_REQUIRED"

    async def test_an_import_without_a_name_or_of_no_archive_is_refused(self, user: User) -> None:
        async def messages(*all_of_them: image_pb2.ImportImageRequest) -> Any:
            for message in all_of_them:
                yield message

        name = "customers/bad/images/nothing:1"
        nameless = messages(image_pb2.ImportImageRequest(data=b"x"))
        error = await refusal(user.images.ImportImage(nameless, timeout=TIMEOUT_S))
        assert [path for path, _ in error.fields] == ["name"]
        renamed = messages(*[image_pb2.ImportImageRequest(name=name, data=b"x")] * 2)
        error = await refusal(user.images.ImportImage(renamed, timeout=TIMEOUT_S))
        assert [path for path, _ in error.fields] == ["name"]
        corrupt = messages(image_pb2.ImportImageRequest(name=name, data=bytes(10_000)))
        error = await refusal(user.images.ImportImage(corrupt, timeout=TIMEOUT_S))
        assert error.reason == "IMAGE_CORRUPT"

    async def test_logs_of_nothing_and_cursors_of_nobody_are_refused(self, user: User) -> None:
        name = f"customers/bad/jobs/hello/executions/{'0' * 32}"
        for follow in (False, True):
            request = execution_pb2.StreamLogsRequest(name=name, follow=follow)
            stream = user.executions.StreamLogs(request, timeout=TIMEOUT_S)
            assert (await refusal(stream.read())).reason == "NOT_FOUND"
        request = execution_pb2.StreamLogsRequest(name=name, cursor="nonsense")
        error = await refusal(user.executions.StreamLogs(request, timeout=TIMEOUT_S).read())
        assert [path for path, _ in error.fields] == ["cursor"]
