"""`python -m tickmesh.scheduler --config FILE [--restore WHERE]`."""

from ..mesh.haste import hurry

hurry()

from ..mesh.process import run  # noqa: E402
from .server import restore, serve  # noqa: E402

run("scheduler", serve, restore)
