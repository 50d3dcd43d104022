"""`python -m tickmesh.scheduler --config FILE`."""

from ..mesh.process import run
from .server import serve

run("scheduler", serve)
