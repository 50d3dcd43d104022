"""Jobs: create, update, delete."""

from __future__ import annotations

from msgspec.structs import replace

from .commands import CreateJobs, DeleteJob, Refused, UpdateJob, Why
from .model import Job
from .view import View


def existing(view: View, customer: str, job_id: str, index: int = 0) -> Job:
    """The job; Refused if there is none."""
    job = view.job(customer, job_id)
    if job is None:
        raise Refused(Why.NOT_FOUND, f"customers/{customer}/jobs/{job_id}", index)
    return job


def check_version(stored: int, given: int, what: str) -> None:
    """Refused unless the change was made from what is stored (0: from anything)."""
    if given not in (0, stored):
        raise Refused(Why.VERSION_MISMATCH, what)


def create(view: View, command: CreateJobs, now_ms: int) -> list[Job]:
    """All or none; the same request again answers what it made the first time."""
    made: list[Job] = []
    fresh = 0
    seen: set[str] = set()
    for index, new in enumerate(command.jobs):
        stored = view.job(command.customer, new.job_id)
        same = stored is not None and command.request and stored.request == command.request
        if new.job_id in seen or (stored is not None and not same):
            raise Refused(Why.ALREADY_EXISTS, new.job_id, index)
        seen.add(new.job_id)
        if stored is not None:
            made.append(stored)
            continue
        fresh += 1
        made.append(
            Job(
                customer=command.customer,
                job_id=new.job_id,
                uid=new.uid,
                display_name=new.display_name,
                labels=new.labels,
                spec=new.spec,
                revision=1,
                create_ms=now_ms,
                update_ms=now_ms,
                version=1,
                request=command.request,
            )
        )
    if fresh:
        for job in made:
            view.put_job(job)
    return made


def update(view: View, command: UpdateJob, now_ms: int) -> list[Job]:
    """A changed spec makes a new revision and keeps the old one for executions that refer to it."""
    job = existing(view, command.customer, command.job_id)
    check_version(job.version, command.version, command.job_id)
    revision = job.revision
    if command.spec != job.spec:
        view.put_spec(job.uid, job.revision, job.spec)
        revision += 1
    changed = replace(
        job,
        display_name=command.display_name,
        labels=command.labels,
        spec=command.spec,
        revision=revision,
        update_ms=now_ms,
        version=job.version + 1,
    )
    view.put_job(changed)
    return [changed]


def delete(view: View, command: DeleteJob) -> list[Job]:
    """Its last revision is kept for executions that refer to it."""
    job = existing(view, command.customer, command.job_id)
    check_version(job.version, command.version, command.job_id)
    if view.schedule_count(job.uid):
        raise Refused(Why.HAS_SCHEDULES, command.job_id)
    view.put_spec(job.uid, job.revision, job.spec)
    view.delete_job(job)
    return [job]
