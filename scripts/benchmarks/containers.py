"""bench containers: containers a second, sustained, through the mesh and by other programs.

At each concurrency so many callers run a program that ends at once, one container after the other:
ours by Execute and waiting for the end; `ctr run --rm` (in a containerd of its own), `podman run
--rm` and `docker run --rm` (with a daemon of its own) as a shell loop. They take turns, so that the
machine's mood is the same for all. What was left to remove afterwards counts: the time ends when
nothing of it is there any more. Shorter windows measure the machine's other work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import bed
from bed import CALL_DEADLINE_S, Api, say
from fire import STAMP_PROGRAM, stamp_archive, stamp_job

from tickmesh.executor.containerd import launch
from tickmesh.executor.containerd.daemon import Daemon
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.proto.tickmesh.v1 import execution_pb2

CONCURRENCY = (1, 2, 4, 8, 16)
WINDOW_S_MIN = 3.0
"""Of load for one of them at one concurrency; --seconds is for all five together."""

DRAIN_S_MAX = 60.0
DAEMON_START_S_MAX = 60.0
NAMES = ("tickmesh", "ctr", "podman", "docker")


class Peer(Protocol):
    """Something that runs containers."""

    async def measure(self, callers: int, seconds: float) -> float:
        """Containers a second."""
        ...


class Mesh:
    """Ours, from the public API."""

    def __init__(self, local: LocalMesh, api: Api, job: str) -> None:
        self._sandboxes = local.directory / local.executors[0].name / "sandboxes"
        self._api = api
        self._job = job

    async def measure(self, callers: int, seconds: float) -> float:
        """See Peer."""
        # Spares that were ready before are not of this time; those that it leaves ready are.
        done = -self._left()["spares"]
        until = time.monotonic() + seconds

        async def caller() -> None:
            nonlocal done
            while time.monotonic() < until:
                await self._run()
                done += 1

        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
        async with asyncio.timeout(DRAIN_S_MAX):
            while self._left()["attempts"]:  # noqa: ASYNC110 - another process removes them
                await asyncio.sleep(0.01)
        return (done + self._left()["spares"]) / (time.monotonic() - began)

    def _left(self) -> dict[str, int]:
        names = [path.name for path in self._sandboxes.iterdir()]
        spares = sum(name.startswith("spare-") for name in names)
        return {"spares": spares, "attempts": len(names) - spares}

    async def _run(self) -> None:
        made = await self._api.executions.ExecuteJob(
            execution_pb2.ExecuteJobRequest(name=self._job), timeout=CALL_DEADLINE_S
        )
        watch = self._api.executions.WatchExecutions(
            execution_pb2.WatchExecutionsRequest(parent=made.name), timeout=CALL_DEADLINE_S
        )
        async for message in watch:
            made = message.executions[-1] if message.executions else made
        if made.state != execution_pb2.EXECUTION_STATE_SUCCEEDED:
            raise SystemExit(f"{made.name} ended in state {made.state}: {made.message}")


class Command:
    """A program's command, as a loop of so many shells at once."""

    def __init__(self, directory: Path, command: str, alone: bool = False) -> None:
        """alone: in a mount namespace without the second version of cgroups, as crun asks."""
        self._directory = directory
        self._command = command
        self._prefix = (sys.executable, "-I", "-S", launch.__file__) if alone else ()

    async def once(self, command: str) -> bytes:
        """Run one command; its output. Raises SystemExit when it fails."""
        process = await asyncio.create_subprocess_exec(
            *(*self._prefix, "/bin/sh", "-c", command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, trouble = await process.communicate()
        if process.returncode:
            raise SystemExit(f"{command}: {trouble.decode()[-400:]}")
        return out

    async def measure(self, callers: int, seconds: float) -> float:
        """See Peer."""
        stop = self._directory / "stop"
        stop.unlink(missing_ok=True)
        loop = (
            f"caller() {{ n=0; while [ ! -e {stop} ]; do {self._command} || exit 1; n=$((n+1)); "
            f"done; }}; for c in $(seq {callers}); do caller $c & done; wait"
        )
        ending = asyncio.get_running_loop().call_later(seconds, stop.touch)
        began = time.monotonic()
        # A container is one line of output: what it prints.
        done = len((await self.once(loop)).splitlines())
        elapsed = time.monotonic() - began
        ending.cancel()
        if elapsed < seconds:
            raise SystemExit(f"{self._command} failed")
        return done / elapsed


async def ctr(directory: Path, archive: Path, socket: str) -> Command:
    """`ctr run --rm` with its own defaults."""
    ctr = f"ctr -a {socket} -n bench"
    name = "docker.io/bench/stamp:1"
    made = Command(directory, f"{ctr} run --rm {name} c-$1-$(date +%s%N)")
    await made.once(f"{ctr} images import --index-name {name} {shlex.quote(str(archive))}")
    return made


async def podman(directory: Path, archive: Path) -> Command:
    """`podman run --rm` with its own defaults, but for a network, which ours have not either."""
    podman = (
        f"podman --root {directory}/root --runroot {directory}/run --cgroup-manager cgroupfs "
        "--events-backend none"
    )
    probe = Command(directory, "", alone=True)
    await probe.once(f"{podman} load -q -i {shlex.quote(str(archive))}")
    image = (await probe.once(f"{podman} images -q")).decode().split()[0]
    # Without CAP_SYS_RESOURCE its default limits cannot be set.
    limits = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024"
    return Command(directory, f"{podman} run --rm --network none {limits} {image}", alone=True)


@contextlib.asynccontextmanager
async def docker(directory: Path) -> AsyncIterator[Command]:
    """`docker run --rm` with its own defaults, but for a network, which ours have not either."""
    socket = f"unix://{directory}/socket"
    docker = f"docker -H {socket}"
    with (directory / "log").open("wb") as log:
        daemon = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", launch.__file__, shutil.which("dockerd") or "dockerd"),
            *("--data-root", directory / "root", "--exec-root", directory / "exec"),
            *("--pidfile", directory / "pid", "-H", socket),
            *("--bridge=none", "--iptables=false", "--ip6tables=false"),
            stdout=log,
            stderr=log,
        )
    try:
        made = Command(directory, f"{docker} run --rm --network none bench:1")
        await made.once(
            f"n=0; until {docker} info > {directory}/info 2>&1; do n=$((n+1)); "
            f"[ $n -lt {DAEMON_START_S_MAX * 5:.0f} ] || "
            f"{{ tail -c 400 {directory}/log >&2; exit 1; }}; sleep 0.2; done"
        )
        # This release's `docker load` takes no OCI archive.
        await made.once(
            f"tar -c -C {STAMP_PROGRAM.parent} {STAMP_PROGRAM.name} | "
            f"{docker} import --change 'ENTRYPOINT [\"/{STAMP_PROGRAM.name}\"]' - bench:1"
        )
        yield made
    finally:
        if daemon.returncode is None:
            daemon.terminate()
        await daemon.wait()


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """See main.py for the arguments."""
    window_s = max(WINDOW_S_MIN, arguments.seconds / len(CONCURRENCY))
    noise = await bed.noise()
    load = os.getloadavg()
    options = LocalOptions(replicas=arguments.replicas)
    async with contextlib.AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tickmesh-peers-")))
        archive = stamp_archive(scratch)
        local, api = await stack.enter_async_context(bed.mesh(options, arguments.keep))
        peers: dict[str, Peer] = {"tickmesh": Mesh(local, api, await stamp_job(api))}
        if shutil.which("ctr"):
            daemon = Daemon(scratch / "containerd")
            await daemon.start()
            stack.push_async_callback(daemon.close)
            peers["ctr"] = await ctr(scratch, archive, daemon.socket)
        if shutil.which("podman"):
            peers["podman"] = await podman(scratch, archive)
        if shutil.which("dockerd") and shutil.which("docker"):
            (scratch / "docker").mkdir()
            peers["docker"] = await stack.enter_async_context(docker(scratch / "docker"))
        rates = await _rates(peers, window_s)
        cluster = await api.cluster.GetCluster(
            bed.cluster_pb2.GetClusterRequest(), timeout=CALL_DEADLINE_S
        )
    best = {name: max(rates[name].values()) for name in rates}
    others = [best[name] for name in best if name != "tickmesh"]
    return {
        "benchmark": "containers",
        "containers_per_s": rates,
        "best": best,
        "ratio_of_bests": round(best["tickmesh"] / max(others), 2) if others else None,
        "absent": [name for name in NAMES if name not in rates],
        "window_s": window_s,
        "replicas": arguments.replicas,
        "noise_ms": noise,
        "load": load,
        "machine": bed.machine(),
        "versions": bed.versions(cluster.executors[0].runtime),
    }


async def _rates(peers: dict[str, Peer], window_s: float) -> dict[str, dict[str, float]]:
    rates: dict[str, dict[str, float]] = {name: {} for name in peers}
    for peer in peers.values():
        await peer.measure(1, 1.0)  # what is loaded at the first use is
    for callers in CONCURRENCY:
        for name, peer in peers.items():
            rates[name][str(callers)] = round(await peer.measure(callers, window_s), 1)
        say(f"{callers} at once: " + ", ".join(f"{n} {r[str(callers)]}" for n, r in rates.items()))
    return rates
