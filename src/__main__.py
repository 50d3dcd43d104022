"""`python -m tickmesh`: the command line."""

from .sdk.cli.main import main

main()
