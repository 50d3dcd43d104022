"""`tickmesh run`: execute a job once, now."""

from __future__ import annotations

import os
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import output_option, print_one, spinner
from .parameters import DURATION
from .settings import Settings, pass_settings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from ..types import Execution, LogChunk

EXIT_PLATFORM = 125
"""As docker's: what was asked for did not run, or nobody knows how it ended."""

NO_TIME = "(time not known)         "
"""In place of a line's time: as wide."""

_LINE = re.compile(rb"[^\n]*\n|[^\n]+")


@click.command()
@click.argument("job")
@click.option("-w", "--wait", is_flag=True, help="Wait for its end; exit with its exit code.")
@click.option("-f", "--follow", is_flag=True, help="Print what it writes, too.")
@click.option("-p", "--payload", help="For the file named by TICKMESH_PAYLOAD_FILE.")
@click.option(
    "--payload-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="The same from a file (- is stdin).",
)
@click.option("--active-key", default="", help="Take the one with this key that has not ended.")
@click.option("--wait-timeout", type=DURATION, help="Wait at most so long; it goes on then.")
@output_option
@click.pass_context
@pass_settings
def run(
    settings: Settings,
    /,
    context: click.Context,
    job: str,
    wait: bool,
    follow: bool,
    payload: str | None,
    payload_file: Path | None,
    active_key: str,
    wait_timeout: timedelta | None,
    output: str,
) -> int:
    """Execute a job once, now.

    Without --wait or --follow it prints the execution's name and returns when the execution is
    durable. With them it ends with the container's exit code, or 125 if the platform failed.
    """
    from ..errors import DeadlineExceeded
    from ..transport import Deadline
    from . import tables

    if payload is not None and payload_file is not None:
        raise click.UsageError("--payload and --payload-file exclude one another")
    content = os.fsencode(payload or "")  # the bytes that were typed, be they text or not
    if payload_file is not None:
        content = sys.stdin.buffer.read() if str(payload_file) == "-" else payload_file.read_bytes()
    handle = settings.client.execute(job, content, active_key=active_key)
    name = tables.short_name(handle.execution)
    if not wait and not follow:
        if output == "table":
            print(name)
        else:
            print_one(output, tables.EXECUTIONS, handle.execution)
        return 0
    until = Deadline(None if wait_timeout is None else wait_timeout.total_seconds())
    try:
        if follow:
            write_logs(handle.logs(follow=True, deadline_s=until.rest_s()))
        with spinner(f"{name}: waiting") as say:
            for each in handle.changes(deadline_s=until.rest_s()):
                say(f"{name}: {each.pending_reason or each.state.lower()}")
        execution = handle.wait(deadline_s=until.rest_s())
    except DeadlineExceeded:
        if not until.passed:
            raise
        raise DeadlineExceeded(
            f"{name} has not ended after {until.seconds:g} s, and goes on; end it with "
            f"`tickmesh execution cancel {name}`"
        ) from None
    except KeyboardInterrupt:
        print(f"\n{name} goes on; end it with `tickmesh execution cancel {name}`", file=sys.stderr)
        raise
    if not follow or output != "table":
        print_one(output, tables.EXECUTIONS, execution)
    code = exit_code_of(execution)
    if code == EXIT_PLATFORM:
        print(f"error: {name} {_how(execution)}", file=sys.stderr)
    return code


def exit_code_of(execution: Execution) -> int:
    """What the command ends with, for an execution that has ended."""
    if execution.exit_code is None:
        return EXIT_PLATFORM
    if execution.exit_code == 0 and execution.state != "SUCCEEDED":
        return 1  # as when it was ended for its timeout, and took that for a success
    return execution.exit_code


def _how(execution: Execution) -> str:
    reason = f" ({execution.reason})" if execution.reason else ""
    message = f": {execution.message}" if execution.message else ""
    return f"ended {execution.state.lower()}{reason}{message}"


def write_logs(chunks: Iterable[LogChunk], timestamps: bool = False) -> None:
    """Output to where it was written: stdout to stdout, stderr to stderr; with timestamps, each
    line after the time at which its beginning was read."""
    within = {"STDOUT": False, "STDERR": False}  # a line that has begun
    for chunk in chunks:
        stream = sys.stderr if chunk.stream == "STDERR" else sys.stdout
        if chunk.truncated:
            dropped = f"{chunk.dropped_bytes:,} bytes of output were" * bool(chunk.dropped_bytes)
            print(f"[{dropped or 'output was'} dropped here: over the limit]", file=sys.stderr)
        data = chunk.data
        if timestamps and data:
            data = _stamped(data, chunk.time, within[chunk.stream])
            within[chunk.stream] = not data.endswith(b"\n")
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()


def _stamped(data: bytes, time: datetime | None, within: bool) -> bytes:
    """Each line that begins in some output, after a time in UTC as wide as every other."""
    stamp = NO_TIME
    if time is not None:
        stamp = f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1_000:03d}Z "
    lines: list[bytes] = _LINE.findall(data)
    return b"".join(
        line if within and not index else stamp.encode() + line for index, line in enumerate(lines)
    )
