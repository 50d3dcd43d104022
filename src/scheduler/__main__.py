"""`python -m tickmesh.scheduler --config FILE [--restore WHERE]`."""

from ..mesh.process import run
from .server import restore, serve

run("scheduler", serve, restore)
