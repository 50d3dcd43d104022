"""What an executor's start does not wait for: sandboxes run on without anybody meanwhile."""

import subprocess
import sys

PROGRAM = """
import sys
import tickmesh.executor.server
print(*sys.modules)
"""

LATER = {
    "httpx2",  # pulls alone speak HTTP
    "joserfc",  # only the mesh's own registry is told who an executor is
    "pyroute2",  # where there is egress
    "rich",
    "pygments",
}


def test_what_few_need_and_takes_long_is_not_imported_by_a_start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    imported = set(done.stdout.split())
    assert "tickmesh.executor.agent" in imported
    assert not LATER & imported
