"""Our own shim between containerd and crun or runc: a static program, one process a sandbox.

It is built by `scripts/build-gate` and committed; main.c says what it does.
"""

import platform
from pathlib import Path

from ..errors import HostUnfit

_NAME = "containerd-shim-tickmesh"  # by its beginning a shim is known among the host's processes


def program() -> Path:
    """Its path on this machine. Raises HostUnfit on one that it is not built for."""
    path = Path(__file__).with_name(f"{_NAME}-{platform.machine()}")
    if not path.exists():
        raise HostUnfit(
            [f'no {path.name}: containerd_runtime = "io.containerd.runc.v2" does without']
        )
    return path
