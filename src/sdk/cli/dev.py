"""`tickmesh dev`: a whole mesh of real processes on this machine, for as long as it runs.

The processes, their certificates and their data are mesh/local.py's. Here is what a person sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..target import DEFAULT_ADDRESS, DEVELOPMENT_FILE
from .output import spinner

if TYPE_CHECKING:
    from ...mesh.local import LocalMesh, LocalOptions

DEFAULT_PORT = int(DEFAULT_ADDRESS.rpartition(":")[2])

SLOW_AFTER_S = 5.0
"""When to say what keeps us waiting, where there is no spinner: later looks like a hang."""


@click.command()
@click.option(
    "--replicas",
    type=click.Choice(["1", "3", "5"]),
    default="1",
    show_default=True,
    help="Scheduler processes; 3 survive the loss of one. Fixed with the data.",
)
@click.option(
    "--executors",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Executor processes.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=None,
    help=f"Of the gateway; 0: any. Default: {DEFAULT_PORT}, else any that is free.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEVELOPMENT_FILE.parent,
    show_default=True,
    help="Where everything is kept, from one start to the next.",
)
@click.option(
    "--runtime",
    type=click.Choice(["containerd", "inprocess"]),
    default="containerd",
    show_default=True,
    help="What runs containers; inprocess only pretends to.",
)
@click.option(
    "--registry",
    "registries",
    multiple=True,
    metavar="HOST:PORT",
    help="An image registry to speak to without TLS.",
)
@click.option(
    "--egress",
    is_flag=True,
    help="Give jobs the network that they ask for: public addresses, through this machine.",
)
@click.option(
    "--authentication",
    type=click.Choice(["none", "api_keys"]),
    default="none",
    show_default=True,
    help="Whether callers must show an API key; the operator's is made in the data directory.",
)
def dev(
    replicas: str,
    executors: int,
    port: int | None,
    data: Path,
    runtime: str,
    registries: tuple[str, ...],
    egress: bool,
    authentication: Literal["none", "api_keys"],
) -> int:
    """Run a whole mesh on this machine: gateway, scheduler and executor, as real processes.

    It needs containerd and runc installed, and root to run containers. With docker-registry
    installed it has an image registry of its own, for `tickmesh image push`. Ctrl-C ends
    everything; jobs, schedules and images are kept in the data directory.
    """
    try:
        from ...mesh import local
        from ...mesh.config import Archive, Egress
        from ...mesh.registries import PROGRAM
    except ImportError as error:
        raise click.ClickException(
            f"the mesh itself is not installed ({error.name} is missing): "
            "pip install 'tickmesh[server]'"
        ) from None
    executor: dict[str, Any] = {"insecure_registries": registries} if registries else {}
    if egress:
        executor["egress"] = Egress()
    try:
        options = local.LocalOptions(
            replicas=int(replicas),
            executors=executors,
            port=_port(port, local.is_free),
            runtime=runtime,
            executor=tuple(executor.items()),
            authentication=authentication,
            archive=Archive(url="archive"),
            registry=shutil.which(PROGRAM) is not None and runtime == "containerd",
        )
        asyncio.run(_run(data, options))
    except local.MeshFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except PermissionError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    return 0


def _port(asked: int | None, is_free: Callable[[int], bool]) -> int:
    """The gateway's port; 0 lets the mesh choose."""
    if asked is None:
        return DEFAULT_PORT if is_free(DEFAULT_PORT) else 0
    if asked and not is_free(asked):
        raise click.ClickException(
            f"--port {asked}: somebody listens there already; name another, or 0 for any free one"
        )
    return asked


async def _run(data: Path, options: LocalOptions) -> None:
    """Until a signal, or a process's unasked end (MeshFailed)."""
    from ...mesh.local import LocalMesh

    mesh = LocalMesh(data, options)
    running = asyncio.create_task(_serve(mesh))
    loop = asyncio.get_running_loop()
    asked = 0

    def end() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            running.cancel()
        else:  # somebody is in a hurry
            for child in mesh.children:
                child.signal(signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    try:
        await running
    except asyncio.CancelledError:
        if not asked:
            raise


async def _serve(mesh: LocalMesh) -> None:
    await _start(mesh)
    description = mesh.directory / DEVELOPMENT_FILE.name
    try:
        _describe(mesh, description)
        _banner(mesh, description)
        await mesh.ended_unasked()
    finally:
        description.unlink(missing_ok=True)
        with spinner("ending everything"):
            await mesh.stop()


async def _start(mesh: LocalMesh) -> None:
    """Start it, and say what is waited for."""
    waiting = "starting"
    with spinner("starting") as say:

        def progress(text: str) -> None:
            nonlocal waiting
            waiting = text
            say(text)

        async def tell_when_slow() -> None:
            while not sys.stderr.isatty():
                await asyncio.sleep(SLOW_AFTER_S)
                print(waiting, file=sys.stderr, flush=True)

        telling = asyncio.create_task(tell_when_slow())
        try:
            await mesh.start(progress)
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling


def _describe(mesh: LocalMesh, path: Path) -> None:
    """Tell clients below this directory where the mesh is."""
    from ...mesh.local import write_whole

    write_whole(
        path,
        {
            "address": mesh.address,
            "pid": os.getpid(),
            "version": importlib.metadata.version("tickmesh"),
            "processes": [
                {"name": child.name, "pid": child.pid, "log": str(child.log)}
                for child in mesh.children
            ],
        },
    )


def _banner(mesh: LocalMesh, description: Path) -> None:
    options = mesh.options
    found = description == DEVELOPMENT_FILE.resolve() or mesh.address == DEFAULT_ADDRESS
    says = "print" if options.runtime == "inprocess" else "echo"
    lines = [
        f"tickmesh serves at {mesh.address}: {_count(options.replicas, 'scheduler replica')}, "
        f"{_count(options.executors, 'executor')} ({options.runtime})",
        *(
            [f"its image registry is {mesh.registry_address}, which {_asks(options)}"]
            if mesh.registry_address
            else []
        ),
        f"data and logs are in {mesh.directory}; Ctrl-C ends it",
        *_about_keys(mesh),
        "",
        "try, in another terminal:" if found else "try, in another terminal, after",
        *([] if found else [f"  export TICKMESH_ADDRESS={mesh.address}"]),
        *(["  tickmesh cluster"] if options.authentication == "none" else []),
        f"  tickmesh job create hello --image docker.io/library/busybox:1.36 -- {says} hello",
        "  tickmesh run hello --follow",
    ]
    print("\n".join(lines), flush=True)


def _about_keys(mesh: LocalMesh) -> list[str]:
    """Where the operator's key is, and how a customer gets one."""
    if mesh.options.authentication == "none":
        return []
    key = mesh.operator_key_file
    return [
        f"callers must show an API key; the operator's is in {key}",
        f"  tickmesh --api-key-file {key} key create --scope admin --file default.key",
        "  export TICKMESH_API_KEY=$(cat default.key)",
    ]


def _asks(options: LocalOptions) -> str:
    """Who may use the registry."""
    if options.authentication == "none":
        return "asks nobody who they are"
    return "wants a customer's id, and an API key as the password"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
