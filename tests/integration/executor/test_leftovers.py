"""What stays behind: nothing after many executions, nothing of a crash, no image over the budget.

`pytest tests/integration/executor/test_leftovers.py -s` prints the counts and slopes;
TICKMESH_EXECUTIONS says how many executions.
"""

import asyncio
import os
import random
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tickmesh.executor import accounting, archive, limits
from tickmesh.executor.containerd.client import ContainerdClient
from tickmesh.executor.containerd.images import LABEL_LEASE_OWNER
from tickmesh.executor.containerd.runtime import NAMESPACE, ContainerdRuntime
from tickmesh.executor.sandbox import Work

from .conftest import STAMP, STAMP_IMAGE, nothing_left
from .registries import push, registry

pytestmark = pytest.mark.integration

EXECUTIONS = int(os.environ.get("TICKMESH_EXECUTIONS", "200"))
AT_ONCE = 4
WARM_UP = 40  # executions until caches and thread pools have their size
MIB = limits.MIB
OWN_GROWTH_BYTES_MAX = 64 * 1024  # of memory, an execution
DAEMON_GROWTH_BYTES_MAX = 256 * 1024  # its database and its collector's heap swing


def rss_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return entries(f"proc/{pid}/fd/*")


def entries(pattern: str, root: Path = Path("/")) -> int:
    return sum(1 for _ in root.glob(pattern))


async def state(runtime: ContainerdRuntime, owner: str) -> dict[str, int]:
    """Counts of all that an execution makes; equal before and after."""
    client, directory = runtime._client, runtime._data_directory
    assert runtime.daemon is not None
    daemon, tasks = runtime.daemon.pid, "state/io.containerd.runtime.v2.task/*/*"
    mounts = Path(f"/proc/{daemon}/mountinfo")
    return {
        "containers": len(await client.list_containers("tickmesh.io/owner", owner)),
        "snapshots": len(await client.list_snapshots()),
        "leases": len(await client.list_leases()),
        "ingests": len(await client.list_ingests()),
        "cgroups": len(accounting.children(f"/tickmesh-{owner}")),
        "mounts": len((await asyncio.to_thread(mounts.read_text)).splitlines()),
        "sandboxes": entries("sandboxes/*", directory),
        "runtime state": entries("runtime/*/*", Path(runtime.daemon.socket).parent),
        "bundles": entries(tasks, Path(runtime.daemon.socket).parent),
        "own descriptors": descriptors(os.getpid()),
        "daemon's descriptors": descriptors(daemon),
    }  # fmt: skip


async def test_many_executions_leave_the_host_as_it_was(
    stamp: ContainerdRuntime, tmp_path: Path
) -> None:
    owner = stamp._owner
    assert stamp.daemon is not None

    async def execute(number: int) -> None:
        work = Work(f"row-{number}", "tests", STAMP_IMAGE)
        sandbox = await stamp.prepare(work)
        await sandbox.start()
        assert (await sandbox.wait()).exit_code == 0
        await sandbox.delete()
        await stamp.discard_output(work.attempt_id)

    async def several(numbers: range) -> None:
        waiting = list(numbers)

        async def worker() -> None:
            while waiting:
                await execute(waiting.pop())

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    await several(range(WARM_UP))
    before = await state(stamp, owner)
    own, daemon = rss_bytes(os.getpid()), rss_bytes(stamp.daemon.pid)
    await several(range(WARM_UP, WARM_UP + EXECUTIONS))
    after = await state(stamp, owner)
    own_slope = (rss_bytes(os.getpid()) - own) / EXECUTIONS
    daemon_slope = (rss_bytes(stamp.daemon.pid) - daemon) / EXECUTIONS
    print(f"\n  {EXECUTIONS} executions: {after}")
    print(f"  bytes of memory an execution: own {own_slope:.0f}, containerd {daemon_slope:.0f}")
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    changed.pop("daemon's descriptors", None)  # its connections to shims close a moment later
    assert not changed
    assert after["daemon's descriptors"] <= before["daemon's descriptors"] + 2 * AT_ONCE
    assert own_slope < OWN_GROWTH_BYTES_MAX and daemon_slope < DAEMON_GROWTH_BYTES_MAX


async def test_the_next_start_collects_what_a_crash_left_and_only_that(
    tmp_path: Path, stamp_archive: Path
) -> None:
    owner = f"crash-{uuid.uuid4().hex[:8]}"
    first = ContainerdRuntime(owner, tmp_path / "executor")
    await first.start()
    await first.import_image(STAMP_IMAGE, stamp_archive)
    await first.prepare(Work("left", "tests", STAMP_IMAGE))
    client = first._client
    # An installation cut off half-way, ours and another executor's; a cgroup without a container.
    for name, whose in (("tickmesh-install-1", owner), ("tickmesh-install-2", "other")):
        await client.create_lease(name, {LABEL_LEASE_OWNER: whose})
        await client.leased(name).prepare_snapshot(f"{name}-half", "", {})
    parents = [parent for parent in accounting.ROOT.glob(f"*/tickmesh-{owner}") if parent.is_dir()]
    for parent in parents or [accounting.ROOT / f"tickmesh-{owner}"]:
        (parent / "lost").mkdir()
    directory = first._data_directory
    (directory / "sandboxes" / "half-made").mkdir()
    await first.detach()

    second = ContainerdRuntime(owner, tmp_path / "executor")
    await second.start()
    try:
        assert await second.sweep(frozenset()) == 2
        client = second._client
        assert [lease.id for lease in await client.list_leases()] == ["tickmesh-install-2"]
        half = [info.name for info in await client.list_snapshots() if "half" in info.name]
        assert half == ["tickmesh-install-2-half"]
        assert await client.list_containers("tickmesh.io/owner", owner) == []
        assert accounting.children(f"/tickmesh-{owner}") == set()
        assert entries("sandboxes/*", directory) == 0
        assert await second.list_images() == [STAMP_IMAGE]
    finally:
        await second.close()
    await asyncio.to_thread(nothing_left, tmp_path, owner)


def image_of(size: int, directory: Path) -> Callable[[int], Path]:
    """Makes images of that size, no two alike, each with the stamp program."""

    def make(seed: int) -> Path:
        path = directory / f"{seed}.tar"
        files = {
            "/data": archive.File(random.Random(seed).randbytes(size)),
            "/stamp": archive.File(STAMP, archive.EXECUTABLE),
        }
        archive.files_image(path, files, archive.Process(entrypoint=("/stamp",)))
        return path

    return make


async def test_images_over_the_budget_go_the_least_recently_used_first(
    tmp_path: Path, stamp_archive: Path
) -> None:
    async with registry(tmp_path / "registry") as host:
        runtime = ContainerdRuntime(
            "lru",
            tmp_path / "executor",
            insecure_registries=(host,),
            image_cache_bytes=14 * MIB,  # three of 2 MiB, each compressed and unpacked
        )
        await runtime.start()
        try:
            make = image_of(2 * MIB, tmp_path)
            names = []
            for seed in range(6):
                await push(host, f"team/image-{seed}", "1", make(seed))
                names.append(f"{host}/team/image-{seed}:1")
            await runtime.import_image("tests/imported:1", stamp_archive)  # nobody has it again
            for name in names[:3]:
                await runtime.ensure_image(name)
            running = await runtime.prepare(Work("uses-0", "tests", names[0]))
            await runtime.ensure_image(names[1])  # younger than 2 now
            await runtime.ensure_image(names[3])
            kept = {*names[:2], names[3], "tests/imported:1"}
            assert set(await runtime.list_images()) == kept
            for name in (names[4], names[5]):
                await runtime.ensure_image(name)
            # 0 is the oldest, but runs.
            assert set(await runtime.list_images()) == {
                names[0], names[4], names[5], "tests/imported:1",
            }  # fmt: skip
            await running.start()
            assert (await running.wait()).exit_code == 0
            await running.delete()
            await runtime.ensure_image(names[2])  # it comes again, and 0 goes
            assert names[0] not in await runtime.list_images()
            content = len(await runtime._client.list_content())
            assert content <= 5 * 3 + 3  # three blobs an image, ours once: nothing else is kept
        finally:
            await runtime.close()


async def test_what_was_unpacked_for_other_ids_is_unpacked_again_and_not_fetched(
    tmp_path: Path, stamp_archive: Path
) -> None:
    mapped = ContainerdRuntime("remapped", tmp_path / "executor", user_namespaces="required")
    await mapped.start()
    await mapped.import_image(STAMP_IMAGE, stamp_archive)
    socket = mapped._socket
    plain = ContainerdRuntime("plain-ids", tmp_path / "plain", socket, user_namespaces="off")
    await plain.start()
    try:
        for runtime, base in ((mapped, limits.ID_BASE), (plain, 0), (mapped, limits.ID_BASE)):
            runtime._images.forget()
            image = await runtime.ensure_image(STAMP_IMAGE)
            assert image.view.endswith(f"-{base}")
            sandbox = await runtime.prepare(Work(f"as-{base}", "tests", STAMP_IMAGE))
            await sandbox.start()
            assert (await sandbox.wait()).exit_code == 0
            await sandbox.delete()
            await runtime.discard_output(f"as-{base}")
        client = ContainerdClient(socket, NAMESPACE)
        assert await client.list_leases() == []
        await client.close()
    finally:
        await plain.close()
        await mapped.close()
    await asyncio.to_thread(nothing_left, tmp_path, "remapped")
