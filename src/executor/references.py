"""What an image's reference says, and what a registry is told of who asks. Pure.

Apart from `registry`, which speaks HTTP: that takes a process long to import, and an executor reads
references from its start on.
"""

import base64
import re
from dataclasses import dataclass, field

# A host has a dot or a port: a name without either is a customer's imported image.
_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+(?::[0-9]{1,5})?|[A-Za-z0-9-]+:[0-9]{1,5})"
    r"/(?P<path>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
DOCKER_HUB = "docker.io"  # a name that its registry does not have itself
DOCKER_HUB_HOST = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry."""

    host: str
    """With its port, if the reference has one."""
    path: str
    tag: str
    digest: str
    """Empty, or "sha256:..."; then it counts, and not the tag."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a registry, or its token service, is told of who asks. Never shown."""

    user: str
    secret: str = field(repr=False)

    @property
    def header(self) -> str:
        """As HTTP wants it."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.secret}'.encode()).decode()}"


def parse(reference: str) -> Reference | None:
    """A reference that names a registry's host; None for one that does not."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return None
    host, path = match["host"], match["path"]
    if host == DOCKER_HUB:
        host = DOCKER_HUB_HOST
        path = path if "/" in path else f"library/{path}"
    return Reference(host, path, match["tag"] or "latest", match["digest"] or "")
