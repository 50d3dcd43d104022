"""Namespaces, interfaces and rules in the kernel. Everything blocks, and belongs to one thread.

A sandbox's namespace has no name: its only reference is a descriptor of ours, until the sandbox's
processes are in it. So the kernel takes it away, with both ends of its link and its route, when
the sandbox has ended and we let go, or have died. What could be left is the table of rules, which
running sandboxes need; the next start takes it over, an orderly stop removes it.
"""

import contextlib
import ctypes
import errno
import ipaddress
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket
from pyroute2.nftables.main import NFTables

from ...mesh import telemetry
from ..errors import HostUnfit, SandboxError
from . import nftables, rules
from .policy import Policy

log = telemetry.logger(__name__)

GATEWAY = "169.254.1.1"
"""What a sandbox sends everything to: no host has it, as nobody needs to answer for it."""
GATEWAY_HARDWARE = "02:74:6d:00:00:01"
SANDBOX_HARDWARE = "02:74:6d:00:00:02"
SANDBOX_INTERFACE = "eth0"
LOOPBACK_INDEX = 1  # in every namespace
MTU_DEFAULT = 1_500
MTU_MIN, MTU_MAX = 1_280, 9_000

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
IPV6 = Path("/proc/sys/net/ipv6")  # not there: a kernel without
BURST_SECONDS = 0.05  # of the rate, which may pass at once
BURST_BYTES_MIN = 128 * 1024  # one segment of 64 KiB must fit, with room
QUEUE_LATENCY = "100ms"  # what waits longer for its turn is dropped

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Link:
    """One sandbox's namespace, wired."""

    name: str
    """The host's end of its link."""
    address: ipaddress.IPv4Address
    descriptor: int
    """Of the namespace."""

    @property
    def path(self) -> str:
        """Where a container runtime finds the namespace, while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def close(self) -> None:
        """Lets go of it: it lives on as long as a process is in it."""
        os.close(self.descriptor)


class Wiring:
    """Made, used and closed in one thread, which it moves between namespaces."""

    def __init__(self, owner: str, policy: Policy, host_namespace: str) -> None:
        """`host_namespace`: a path; "" for the one that this process is in.

        Raises HostUnfit when this host cannot do it; then nothing has changed.
        """
        self._owner = owner
        self._policy = policy
        self._prefix = rules.interface_prefix(owner)
        # Every process begins somewhere else, so that they seldom meet.
        self._next = secrets.randbelow(policy.network.num_addresses)
        with contextlib.ExitStack() as undo:
            try:
                self._host = os.open(
                    host_namespace or "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC
                )
                undo.callback(os.close, self._host)
                _enter(self._host)
                self._route = IPRoute()
                undo.callback(self._route.close)
                self._nft = NFTables(nfgen_family=1)
                undo.callback(self._nft.close)
                self._tracking = NFCTSocket()
                undo.callback(self._tracking.close)
                self._mtu = self._uplink_mtu()
                self._forward()
                undo.callback(self._unforward)
                self.wire().close()  # all that it takes is there
            except (OSError, NetlinkError, SandboxError) as error:
                raise HostUnfit(
                    [
                        f"sandboxes cannot be given egress ({error}): it takes root, nftables with"
                        " NAT and fib, connection tracking, veth and the tbf queue in the kernel"
                    ]
                ) from error
            undo.pop_all()

    def close(self, remove: bool) -> None:
        """`remove`: nothing of this executor runs any more, so its rules go too."""
        try:
            if remove:
                for link in self._route.get_links():
                    name = link.get_attr("IFLA_IFNAME")
                    if name.startswith(self._prefix):  # perhaps about to go by itself
                        self._cut(name)
                self._unforward()
        finally:
            self._tracking.close()
            self._nft.close()
            self._route.close()
            os.close(self._host)

    # Rules.

    def _forward(self) -> None:
        """Has the rules in place, and then lets the host forward."""
        there = nftables.tables(self._nft)
        off = FORWARDING.read_text().strip() == "0"
        guarded = off or any(rules.OTHERS in chains for chains in there.values())
        table = rules.table(self._owner, self._policy, guarded)
        if table.name not in there:
            nftables.create(self._nft, table)
        # Only now: sandboxes of an earlier process may be running.
        for name in self._own(there) - {table.name}:
            nftables.delete(self._nft, name)
        if off:
            FORWARDING.write_text("1")

    def _unforward(self) -> None:
        """Removes the rules, the last one's with what it changed."""
        there = nftables.tables(self._nft)
        own = self._own(there)
        guarded = any(rules.OTHERS in there[name] for name in own)
        if guarded and not there.keys() - own:
            FORWARDING.write_text("0")
        for name in own:
            nftables.delete(self._nft, name)

    def _own(self, there: dict[str, set[str]]) -> set[str]:
        return {name for name in there if name.startswith(rules.table_prefix(self._owner))}

    def _uplink_mtu(self) -> int:
        """Of the way out, so that nothing needs to be told to be smaller."""
        for route in self._route.get_default_routes(family=socket.AF_INET):
            index = route.get_attr("RTA_OIF")
            if index:
                mtu = self._route.get_links(index)[0].get_attr("IFLA_MTU")
                return max(MTU_MIN, min(MTU_MAX, int(mtu)))
        return MTU_DEFAULT

    # Namespaces.

    def wire(self) -> Link:
        """Raises SandboxError; then nothing is left."""
        try:
            for _ in range(self._policy.network.num_addresses):
                address = self._policy.network[self._next]
                self._next = (self._next + 1) % self._policy.network.num_addresses
                if address.packed[-1] in (0, 255):
                    continue  # some programs take these for a network's and a broadcast address
                try:
                    return self._wire(address)
                except NetlinkError as error:
                    if error.code != errno.EEXIST:
                        raise
                    # Another sandbox has it: of an earlier process, or another executor's.
        except (OSError, NetlinkError) as error:
            raise SandboxError(f"a network namespace cannot be wired: {error}") from error
        raise SandboxError(f"every address of {self._policy.network} is in use")

    def _cut(self, name: str) -> None:
        for index in self._route.link_lookup(ifname=name):
            # It may just have gone, with its namespace.
            with contextlib.suppress(NetlinkError):
                self._route.link("del", index=index)

    def _wire(self, address: ipaddress.IPv4Address) -> Link:
        offset = int(address) - int(self._policy.network.network_address)
        name = f"{self._prefix}{offset:x}"
        with contextlib.ExitStack() as undo:
            try:
                if _libc.unshare(CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "unshare")
                descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                undo.callback(os.close, descriptor)
                undo.callback(self._cut, name)
                self._furnish(name, address)
            finally:
                _enter(self._host)
            self._attach(name, address)
            undo.pop_all()
        return Link(name, address, descriptor)

    def _furnish(self, name: str, address: ipaddress.IPv4Address) -> None:
        """Makes the link, and the sandbox's own end whole; `name` is for the host's end."""
        if IPV6.exists():
            for which in ("all", "default"):
                (IPV6 / "conf" / which / "disable_ipv6").write_text("1")
        peer = {
            "ifname": name,
            "address": GATEWAY_HARDWARE,
            "mtu": self._mtu,
            "net_ns_fd": self._host,
        }
        with IPRoute() as inside:
            inside.link(
                "add",
                ifname=SANDBOX_INTERFACE,
                kind="veth",
                address=SANDBOX_HARDWARE,
                mtu=self._mtu,
                peer=peer,
            )
            index = inside.link_lookup(ifname=SANDBOX_INTERFACE)[0]
            self._shape(inside, index)
            inside.link("set", index=LOOPBACK_INDEX, state="up")
            inside.link("set", index=index, state="up")
            inside.addr("add", index=index, address=str(address), prefixlen=32)
            inside.neigh(
                "add", dst=GATEWAY, lladdr=GATEWAY_HARDWARE, ifindex=index, state="permanent"
            )
            inside.route("add", dst="default", gateway=GATEWAY, oif=index, flags=["onlink"])

    def _attach(self, name: str, address: ipaddress.IPv4Address) -> None:
        """The host's end, which gets the only route to the sandbox's address."""
        if IPV6.exists():
            (IPV6 / "conf" / name / "disable_ipv6").write_text("1")
        index = self._route.link_lookup(ifname=name)[0]
        self._shape(self._route, index)
        self._route.link("set", index=index, state="up")
        # Refused when another executor's sandbox has that address.
        self._route.route("add", dst=f"{address}/32", oif=index, scope="link")
        self._route.neigh(
            "add", dst=str(address), lladdr=SANDBOX_HARDWARE, ifindex=index, state="permanent"
        )
        # Whoever had it before may have left connections behind.
        mark = int.from_bytes(address.packed, sys.byteorder)
        self._tracking.flush(mark=mark, mark_mask=0xFFFF_FFFF)

    def _shape(self, route: IPRoute, index: int) -> None:
        """Limits what leaves an interface; a sandbox lacks the capability to undo it."""
        rate = self._policy.bytes_per_second
        burst = max(BURST_BYTES_MIN, int(rate * BURST_SECONDS))
        route.tc("add", "tbf", index, 0x10000, rate=rate, burst=burst, latency=QUEUE_LATENCY)


def _enter(descriptor: int) -> None:
    """Moves this thread into a network namespace."""
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
