"""Deletes of jobs: what is refused changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tickmesh.mesh.errors import EtagMismatch
from tickmesh.proto.tickmesh.v1 import job_pb2, schedule_pb2

from .test_creates import HELLO, Leader, create_schedule


async def test_a_forced_delete_with_a_stale_etag_deletes_no_schedule() -> None:
    """It deleted all of them, and then refused to delete the job."""
    leader = Leader()
    await leader.call("ScheduleService/CreateSchedule", create_schedule("first", "mine"))
    stored: Any = await leader.call("JobService/GetJob", job_pb2.GetJobRequest(name=HELLO))
    update = job_pb2.UpdateJobRequest(job=job_pb2.Job(name=HELLO, display_name="other"))
    update.update_mask.paths.append("display_name")
    await leader.call("JobService/UpdateJob", update)
    before = leader.stored()
    stale = job_pb2.DeleteJobRequest(name=HELLO, etag=stored.etag, force=True)
    with pytest.raises(EtagMismatch):
        await leader.call("JobService/DeleteJob", stale)
    assert leader.stored() == before
    await leader.call("JobService/DeleteJob", job_pb2.DeleteJobRequest(name=HELLO, force=True))
    gone = schedule_pb2.GetScheduleRequest(name=f"{HELLO}/schedules/mine")
    with pytest.raises(Exception, match="there is no"):
        await leader.call("ScheduleService/GetSchedule", gone)
