"""`python -m tickmesh.executor --config FILE`."""

from .haste import hurry

hurry()

from ..mesh.process import run  # noqa: E402
from .server import serve  # noqa: E402

run("executor", serve)
