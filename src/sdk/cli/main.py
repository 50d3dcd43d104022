"""The `tickmesh` command: global options, the list of verbs, errors and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ...mesh import errors
from .groups import LazyGroup
from .parameters import DURATION
from .settings import Settings

# 0 is success. `run --wait` ends with the container's own code.
EXIT_GENERIC = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_CONFLICT = 4
EXIT_DENIED = 5
EXIT_UNAVAILABLE = 6
EXIT_DEADLINE = 7
EXIT_INTERRUPTED = 130

# `tickmesh` alone: click prints the help itself before 8.2, and raises this since.
NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())

EXIT_CODES: tuple[tuple[type[errors.TickmeshError], int], ...] = (
    (errors.InvalidRequest, EXIT_USAGE),
    (errors.NotFound, EXIT_NOT_FOUND),
    (errors.AlreadyExists, EXIT_CONFLICT),
    (errors.EtagMismatch, EXIT_CONFLICT),
    (errors.FailedPrecondition, EXIT_CONFLICT),
    (errors.PermissionDenied, EXIT_DENIED),
    (errors.Unauthenticated, EXIT_DENIED),
    (errors.Unavailable, EXIT_UNAVAILABLE),
    (errors.DeadlineExceeded, EXIT_DEADLINE),
)

COMMANDS = {
    "dev": ("dev:dev", "Run a whole mesh on this machine."),
    "job": ("jobs:group", "What to run: create, get, list, delete."),
    "run": ("run:run", "Execute a job once, now."),
    "schedule": (
        "schedules:group",
        "When jobs fire: create, list, pause, trigger, fires, ...",
    ),
    "calendar": ("calendars:group", "When schedules do not fire: create, update, list, delete."),
    "execution": ("executions:group", "Runs of jobs: list, get, watch, cancel."),
    "audit": ("audit:group", "Whether ledgers tell the truth: verify."),
    "logs": ("executions:logs", "Print what an execution wrote."),
    "image": ("images:group", "Images that are in no registry: import, list, delete."),
    "customer": ("customers:group", "What is kept of your history: get, update."),
    "key": ("keys:group", "API keys: create, list, revoke."),
    "cluster": ("cluster:cluster", "The mesh: shards, replicas, executors; drain."),
    "tzdata": ("tzdata:group", "Releases of the time zones: preview, upgrade."),
    "completion": ("completion:completion", "Print the completion script of a shell."),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    package=__package__,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="A gateway. Default: $TICKMESH_ADDRESS, else that of `tickmesh dev` in this directory, "
    "else 127.0.0.1:7300.",
)
@click.option(
    "--customer",
    help='On whose behalf. Default: $TICKMESH_CUSTOMER, else that of the key, else "default".',
)
@click.option(
    "--timeout",
    type=DURATION,
    default="10s",
    show_default=True,
    help="How long one call may take.",
)
@click.option("--tls/--no-tls", default=None, help="Encrypt. Default: if there is a --ca-file.")
@click.option(
    "--ca-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PEM of the authority to trust. Default: $TICKMESH_CA_FILE, else the system's.",
)
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Holds the API key to show, where the mesh wants one. Default: $TICKMESH_API_KEY.",
)
@click.version_option(package_name="tickmesh", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, /, **given: Any) -> None:
    """tickmesh runs anybody's container, once or on a schedule, on time.

    \b
    Names:  a job        JOB
            a schedule   JOB/SCHEDULE
            an execution JOB/EXECUTION, or EXECUTION alone for a recent one
    or the full resource name of each.

    \b
    Exit codes: 0 ok, 1 generic, 2 usage, 3 not found, 4 conflict, 5 denied, 6 unavailable,
    7 deadline passed. `run --wait` and `run --follow` end with the container's exit code, or with
    125 if the platform failed.
    """
    context.obj = Settings(**given)
    context.call_on_close(context.obj.close)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code. Errors are printed to stderr."""
    try:
        result = cli.main(args=arguments, prog_name="tickmesh", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except NO_ARGUMENTS as error:
        print(error.format_message())
        return EXIT_USAGE
    except click.UsageError as error:
        _complain(error.format_message())
        if error.ctx is not None:
            print(f"see `{error.ctx.command_path} --help`", file=sys.stderr)
        return EXIT_USAGE
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except errors.TickmeshError as error:
        _complain(describe(error))
        return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), EXIT_GENERIC)
    except UnicodeEncodeError as error:
        _complain(f"{error.object!r} is not UTF-8")
        return EXIT_USAGE
    except BrokenPipeError:  # `tickmesh ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_GENERIC
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return EXIT_GENERIC


def describe(error: errors.TickmeshError) -> str:
    """An error for people: what was wrong, with which field, and what to do."""
    lines = [error.message]
    lines += [f"{path}: {what}" for path, what in error.fields if what not in error.message]
    if error.retry_after_ms is not None:
        lines.append(f"try again in {error.retry_after_ms} ms")
    if isinstance(error, errors.OutcomeUnknown):
        lines.append("look whether it was done before you do it again")
    return "\n".join(lines)


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it: the exit code says it too
        print(f"error: {message}", file=sys.stderr)


def _open_streams() -> None:
    """Have all three standard streams. Of those that the shell closed (`>&-`) nothing can be read,
    and what is written is nobody's; and no socket gets their numbers, to which libraries write."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def main() -> None:
    """The console script."""
    _open_streams()
    raise SystemExit(run())
