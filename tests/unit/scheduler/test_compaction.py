"""Compaction goes after what is due: it can take a processor for seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
from pathlib import Path
from tickmesh.scheduler.store.rocksdb import RocksBackend

backend = RocksBackend(Path(sys.argv[1]))
for number in range(2):
    backend.write({b"\\x01%d" % key: b"%d" % number for key in range(1_000)})
    backend.flush()
backend._db.compact_range(None, None)
for thread in Path("/proc/self/task").iterdir():
    name = (thread / "comm").read_text().strip()
    print(name[:11], os.getpriority(os.PRIO_PROCESS, int(thread.name)))
backend.close()
"""


def test_compaction_has_the_lowest_priority_and_flushes_have_not(tmp_path: Path) -> None:
    # In a process of its own: the threads are the process's, whatever it opened before.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    found = set(done.stdout.splitlines())
    assert {line for line in found if line.startswith("rocksdb")} == {
        "rocksdb:low 19",
        f"rocksdb:hig {usual}",
    }
