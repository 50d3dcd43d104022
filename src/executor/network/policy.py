"""Pure: what sandboxes with egress may reach, and how much of it."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from ...mesh.config import Egress
from ..errors import HostUnfit

DENIED = (
    "0.0.0.0/8",  # "this network"
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # carriers' NAT, and many clouds' own services
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local: the clouds' metadata services
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # protocol assignments; one cloud's metadata
    "192.88.99.0/24",  # 6to4 relays: a way into IPv6
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarks, and so the sandboxes themselves: see config.Egress.network
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and the broadcast address
)
"""Never reached, whatever the configuration says. The documentation's networks (192.0.2.0/24,
198.51.100.0/24, 203.0.113.0/24) are not here: nobody has them, and tests need public addresses.
One more address may be anything: a host's own public ones, which the kernel knows (rules.py)."""

RESOLVERS_DEFAULT = ("1.1.1.1", "9.9.9.9")
"""Asked where neither the configuration nor the host names a resolver that may be reached."""

RESOLVERS_MAX = 3  # the C library reads no more
DNS_PORT = 53
NETWORK_BITS_MAX = 24  # 256 addresses: less would soon be used twice within a connection's life


@dataclass(frozen=True, slots=True)
class Policy:
    """What the rules are made from. All networks are IPv4."""

    network: ipaddress.IPv4Network
    """Sandboxes' own addresses."""
    denied: tuple[ipaddress.IPv4Network, ...]
    resolvers: tuple[ipaddress.IPv4Address, ...]
    connections_max: int
    """Tracked at one time, each sandbox."""
    connections_per_second: int
    """New ones, each sandbox."""
    bytes_per_second: int
    """Each way, each sandbox."""

    def denies(self, address: ipaddress.IPv4Address) -> bool:
        """Whether an address may not be reached (but for DNS, when it is a resolver)."""
        return any(address in network for network in self.denied)

    @property
    def excepted(self) -> tuple[ipaddress.IPv4Address, ...]:
        """Resolvers in denied networks: the operator named them, so their port 53 is open."""
        return tuple(address for address in self.resolvers if self.denies(address))

    @property
    def resolv_conf(self) -> bytes:
        """What sandboxes find at /etc/resolv.conf."""
        return "".join(f"nameserver {address}\n" for address in self.resolvers).encode()


def policy(settings: Egress, host_resolv_conf: str) -> Policy:
    """Raises HostUnfit for a configuration that makes no sense, with all that is wrong in it."""
    wrong: list[str] = []
    try:
        network = ipaddress.IPv4Network(settings.network)
        if network.prefixlen > NETWORK_BITS_MAX:
            wrong.append(f"egress.network {network} is smaller than a /{NETWORK_BITS_MAX}")
    except ValueError as error:
        network = ipaddress.IPv4Network(Egress.network)
        wrong.append(f"egress.network: {error}")
    denied = [ipaddress.IPv4Network(text) for text in DENIED]
    for text in settings.denied:
        try:
            denied.append(ipaddress.IPv4Network(text))
        except ValueError as error:
            wrong.append(f"egress.denied: {error}")
    denied.append(network)
    wrong += [
        f"egress.{name} must be positive"
        for name in ("connections_max", "connections_per_second", "bytes_per_second", "pool_size")
        if getattr(settings, name) <= 0
    ]
    resolvers: list[ipaddress.IPv4Address] = []
    for text in settings.resolvers:
        try:
            resolvers.append(ipaddress.IPv4Address(text))
        except ValueError as error:
            wrong.append(f"egress.resolvers: {error}")
    if wrong:
        raise HostUnfit(wrong)
    if not resolvers:
        # The host's private resolvers know the names of what sandboxes must not see: only public.
        named = _nameservers(host_resolv_conf)
        resolvers = [address for address in named if not _within(address, denied)]
    if not resolvers:
        resolvers = [ipaddress.IPv4Address(text) for text in RESOLVERS_DEFAULT]
    return Policy(
        network=network,
        denied=tuple(dict.fromkeys(denied)),
        resolvers=tuple(resolvers[:RESOLVERS_MAX]),
        connections_max=settings.connections_max,
        connections_per_second=settings.connections_per_second,
        bytes_per_second=settings.bytes_per_second,
    )


def _nameservers(resolv_conf: str) -> list[ipaddress.IPv4Address]:
    found = []
    for line in resolv_conf.splitlines():
        match line.split():
            case ["nameserver", text, *_]:
                try:
                    found.append(ipaddress.IPv4Address(text))
                except ValueError:
                    continue  # IPv6
    return found


def _within(address: ipaddress.IPv4Address, networks: Iterable[ipaddress.IPv4Network]) -> bool:
    return any(address in network for network in networks)
