"""`python -m tickmesh.gateway --config FILE`."""

from ..mesh.haste import hurry

hurry()

from ..mesh.process import run  # noqa: E402
from .server import serve  # noqa: E402

run("gateway", serve)
