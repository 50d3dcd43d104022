"""The quick start, as a newcomer runs it: it works, twice, and leaves the machine as it was."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
NOBODY = 65534
DEADLINE_S = 200


async def quickstart(**options: object) -> tuple[int, str, str]:
    """Exit code and output."""
    process = await asyncio.create_subprocess_exec(
        ROOT / "scripts" / "quickstart",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[arg-type]
    )
    async with asyncio.timeout(DEADLINE_S):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


def left_behind() -> dict[str, set[str]]:
    """What of ours this host has now."""
    commands = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    temporary = Path(os.environ.get("TMPDIR", "/tmp"))
    return {
        "processes": {c for c in commands if "tickmesh-quickstart" in c},
        "mounts": {m for m in mounts if "tickmesh-quickstart" in m},
        "cgroups": {str(p) for p in Path("/sys/fs/cgroup").glob("**/tickmesh-*")},
        "namespaces": {str(p) for p in Path("/run/netns").glob("*")},
        "files": {str(p) for p in temporary.glob("tickmesh-quickstart-*")},
    }


async def test_it_works_twice_and_leaves_nothing_behind() -> None:
    before = left_behind()
    for _ in range(2):
        code, output, errors = await quickstart()
        assert code == 0, output + errors
        assert output.count("hello world") >= 11
        late = re.findall(r"Z {2,}(\d+\.\d) +SUCCEEDED +0 .*hello world", output)
        assert len(late) == 10, output
        for kind, things in left_behind().items():
            assert things <= before[kind], kind


async def test_without_root_it_says_so_and_exits_with_2() -> None:
    code, _, errors = await quickstart(user=NOBODY, group=NOBODY, extra_groups=[])
    assert code == 2
    assert "root" in errors
