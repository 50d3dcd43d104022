"""`tickmesh job`: what to run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TextIO

import click

from .groups import NounGroup
from .output import output_option, print_list, print_one
from .parameters import CPU, DURATION, PAIR, SIZE
from .settings import Settings, pass_settings


@click.group(cls=NounGroup)
def group() -> None:
    """What to run: a container image with its command, environment and limits."""


@group.command("create")
@click.argument("name", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--image", help="As registry.example/team/report@sha256:..., or imported: report:1.")
@click.option("-e", "--env", type=PAIR, multiple=True, metavar="KEY=VALUE", help="Environment.")
@click.option("--arg", "args", multiple=True, help="Replaces the image's arguments only.")
@click.option("--working-dir", default="", help="Where the process starts.")
@click.option(
    "--network", type=click.Choice(["none", "egress"]), help="What it reaches. [server: none]"
)
@click.option("--memory", type=SIZE, default=0, help="As 64Mi; at most 1Gi. [server: 256Mi]")
@click.option("--cpu", type=CPU, default=0, help="Cores, as 0.5. [server: 1]")
@click.option("--scratch", type=SIZE, default=0, help="Size of /tmp. [server: 64Mi]")
@click.option("--pids", type=int, default=0, help="Processes and threads. [server: 128]")
@click.option("--timeout", type=DURATION, help="Of one attempt, as 90s; at most 24h. [server: 1h]")
@click.option("--total-timeout", type=DURATION, help="Of all attempts; at most 24h.")
@click.option("--grace-period", type=DURATION, help="From SIGTERM to SIGKILL. [server: 10s]")
@click.option("--max-attempts", type=int, default=0, help="At most 20. [server: 1]")
@click.option("--backoff", type=DURATION, help="Before the second attempt. [server: 1s]")
@click.option("--backoff-max", type=DURATION, help="Doubled up to this. [server: 10m]")
@click.option("--retry-exit-code", type=int, multiple=True, help="Only these. Default: all.")
@click.option("--at-most-once", is_flag=True, help="Never start again what may have started.")
@click.option("-l", "--label", type=PAIR, multiple=True, metavar="KEY=VALUE", help="For filters.")
@click.option(
    "--executor-label",
    type=PAIR,
    multiple=True,
    metavar="KEY=VALUE",
    help="Only executors with this label run it.",
)
@click.option("--display-name", default="", help="For people.")
@click.option("--validate-only", is_flag=True, help="Check everything, create nothing.")
@click.option(
    "-f",
    "--file",
    type=click.File("r", encoding="utf-8"),
    help="Create the job or jobs that a YAML file (- is stdin) describes, as `get -o yaml` does.",
)
@output_option
@pass_settings
def create(
    settings: Settings, /, name: str | None, file: TextIO | None, output: str, **given: Any
) -> None:
    """Create a job.

    \b
    tickmesh job create hello --image hello:1
    tickmesh job create report --image report:1 --memory 64Mi -- python -m report --daily
    tickmesh job create -f job.yaml
    """
    from .. import types
    from . import tables

    if file is not None:
        if name or given["image"]:
            raise click.UsageError("--file describes the job: give no NAME or --image with it")
        _create_from_file(settings, file, given["validate_only"], output)
        return
    if not name or not given["image"]:
        raise click.UsageError("a NAME and --image IMAGE are needed, or --file FILE")
    job = types.Job(
        container=types.Container(
            image=given["image"],
            command=given["command"],
            args=given["args"],
            env=dict(given["env"]),
            working_dir=given["working_dir"],
            network=types.Network(given["network"].upper()) if given["network"] else None,
        ),
        resources=types.Resources(
            memory_bytes=given["memory"],
            cpu_millis=given["cpu"],
            scratch_bytes=given["scratch"],
            pids=given["pids"],
        ),
        timeout=_length(given["timeout"]),
        total_timeout=_length(given["total_timeout"]),
        retry_policy=_retry_policy(given),
        grace_period=_length(given["grace_period"]),
        at_most_once=given["at_most_once"],
        display_name=given["display_name"],
        labels=dict(given["label"]),
        executor_labels=dict(given["executor_label"]),
    )
    made = settings.client.jobs.add(job, name, validate_only=given["validate_only"])
    _created(output, [made], tables.JOBS, given["validate_only"])


def _retry_policy(given: dict[str, Any]) -> Any:
    from .. import types

    asked = ("max_attempts", "backoff", "backoff_max", "retry_exit_code")
    if not any(given[each] for each in asked):
        return None
    return types.RetryPolicy(
        max_attempts=given["max_attempts"],
        backoff=_length(given["backoff"]),
        backoff_max=_length(given["backoff_max"]),
        exit_codes=given["retry_exit_code"],
    )


def _length(given: Any) -> timedelta | None:
    return given if isinstance(given, timedelta) else None


def _create_from_file(settings: Settings, file: TextIO, validate_only: bool, output: str) -> None:
    import yaml

    from ...mesh.errors import invalid
    from .. import types
    from . import documents, tables

    try:
        found = [document for document in yaml.safe_load_all(file) if document is not None]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise invalid(file.name, f"is not YAML: {error}") from None
    documents_found = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    if not documents_found:
        raise invalid(file.name, "describes no job")
    jobs = []
    for number, document in enumerate(documents_found):
        path = "job" if len(documents_found) == 1 else f"jobs[{number}]"
        job = documents.from_plain(types.Job, document, path)
        jobs.append(types.NewJob(job=job, job_id=job.id or job.name))
    if validate_only or len(jobs) == 1:
        client = settings.client
        made = [
            client.jobs.add(each.job, each.job_id, validate_only=validate_only) for each in jobs
        ]
    else:  # all of them or none
        made = list(settings.client.jobs.add_batch(jobs))
    _created(output, made, tables.JOBS, validate_only)


def _created(output: str, made: list[Any], columns: Any, validate_only: bool) -> None:
    if output != "table":
        for each in made:
            print_one(output, columns, each)
        return
    for each in made:
        done = "is valid; nothing was created" if validate_only else "created"
        print(f"job {each.id} {done}")


@group.command("get")
@click.argument("job")
@output_option
@pass_settings
def get(settings: Settings, /, job: str, output: str) -> None:
    """Show a job."""
    from . import tables

    print_one(output, tables.JOBS, settings.client.jobs.get(job))


@group.command("list")
@output_option
@pass_settings
def list_(settings: Settings, /, output: str) -> None:
    """List the jobs."""
    from . import tables

    client = settings.client
    nothing = f"customer {client.customer} has no jobs: make one with `tickmesh job create`"
    print_list(output, tables.JOBS, client.jobs.list(page_size=1_000), nothing)


@group.command("delete")
@click.argument("jobs", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Delete its schedules, too.")
@pass_settings
def delete(settings: Settings, /, jobs: tuple[str, ...], force: bool) -> None:
    """Delete jobs. What runs goes on."""
    for job in jobs:
        settings.client.jobs.delete(job, force=force)
        print(f"job {job} deleted", flush=True)
