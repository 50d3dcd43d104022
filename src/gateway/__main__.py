"""`python -m tickmesh.gateway --config FILE`."""

from ..mesh.process import run
from .server import serve

run("gateway", serve)
