"""Hosts on a network that a test can cut: network namespaces, joined by a bridge in one more.

Made with `ip` alone. A cut is a rule of the recipient that drops, silently, what comes from the
sender; a host that vanishes has its link taken down.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

NETWORK = "10.9.0"
FIRST_HOST = 2
CUT_PREFERENCE = 10
"""Rules of cuts come before the one that delivers what is for this host."""


def unavailable() -> str:
    """Why there can be no namespaces here; "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "nsenter") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} is not installed"
    name = f"tickmesh-{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "this system lets nobody make network namespaces"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


def _ip(namespace: str, command: str) -> None:
    subprocess.run(["ip", "-n", namespace, *command.split()], check=True)


class Namespaces:
    """So many hosts, and the hub, from where all of them can be reached."""

    def __init__(self, prefix: str, count: int) -> None:
        self._prefix = prefix
        self.hosts = range(count)

    @property
    def hub(self) -> str:
        """The name of the namespace with the bridge."""
        return f"{self._prefix}-hub"

    def name(self, host: int) -> str:
        """Of a host's namespace."""
        return f"{self._prefix}-{host}"

    def address(self, host: int) -> str:
        """Of a host."""
        return f"{NETWORK}.{FIRST_HOST + host}"

    def within(self, name: str) -> tuple[str, ...]:
        """What makes a program run in a namespace."""
        nsenter = shutil.which("nsenter")
        assert nsenter is not None
        return (nsenter, f"--net=/run/netns/{name}")

    @contextmanager
    def made(self) -> Iterator[None]:
        """They are there, and gone afterwards."""
        names = [self.hub, *map(self.name, self.hosts)]
        try:
            for name in names:
                subprocess.run(["ip", "netns", "add", name], check=True)
                _ip(name, "link set lo up")
            _ip(self.hub, "link add bridge type bridge")
            _ip(self.hub, f"address add {NETWORK}.1/24 dev bridge")
            _ip(self.hub, "link set bridge up")
            for host in self.hosts:
                self._join(host)
            yield
        finally:
            for name in names:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def _join(self, host: int) -> None:
        name, link = self.name(host), f"host-{host}"
        _ip(self.hub, f"link add {link} type veth peer name eth0 netns {name}")
        _ip(self.hub, f"link set {link} master bridge up")
        _ip(name, f"address add {self.address(host)}/24 dev eth0")
        _ip(name, "link set eth0 up")
        # By default nothing comes before it.
        _ip(name, "rule add preference 100 lookup local")
        _ip(name, "rule delete preference 0")

    def cut(self, sender: int, recipient: int) -> None:
        """Nothing gets from one host to another any more, and neither is told."""
        _ip(self.name(recipient), f"rule add {self._rule(sender)}")

    def mend(self, sender: int, recipient: int) -> None:
        """The end of a cut."""
        _ip(self.name(recipient), f"rule delete {self._rule(sender)}")

    def _rule(self, sender: int) -> str:
        return f"preference {CUT_PREFERENCE} from {self.address(sender)} blackhole"

    def vanish(self, host: int) -> None:
        """A host is gone for everybody, and closes nothing."""
        _ip(self.hub, f"link set host-{host} down")

    def appear(self, host: int) -> None:
        """It is there again."""
        _ip(self.hub, f"link set host-{host} up")
