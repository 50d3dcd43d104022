"""`python -m tickmesh.executor --config FILE`."""

from ..mesh.process import run
from .server import serve

run("executor", serve)
