"""`python -m tickmesh.scheduler --config FILE [--restore DIRECTORY]`."""

from ..mesh.process import run
from .server import restore, serve

run("scheduler", serve, restore)
