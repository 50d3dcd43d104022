"""The stateless front door: validate, route, forward. Runs as `python -m tickmesh.gateway`."""
