"""Builds hello.tar, an OCI image archive with a real Python in it, without any registry or daemon.

    python examples/hello/build.py hello.tar
    tickmesh image import hello:1 hello.tar
    tickmesh job create hello --image hello:1
    tickmesh run hello --follow

It takes the interpreter that runs this script, its standard library and what those need: 20 MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tickmesh.executor.archive import File, python_image

PROGRAM = b'print("hello world")\n'


def main() -> None:
    """Writes the archive that the first argument names, and prints the image's digest."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: build.py ARCHIVE.tar")
    digest = python_image(
        Path(sys.argv[1]),
        {"/hello.py": File(PROGRAM)},
        command=("python3", "/hello.py"),
    )
    print(digest)


if __name__ == "__main__":
    main()
