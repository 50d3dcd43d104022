"""Pure: a policy as one nftables table, in pyroute2's terms (which are the kernel's own).

    chain spoofed    prerouting, before connections are tracked: only IPv4, only the own address
    chain host       input: nothing on this host is reached, whatever its address or port
    chain egress     forward: the policy
    chain masquerade postrouting: sandboxes go out under the host's address
    chain others     forward, only where forwarding was off before: the host stays no router

A sandbox is known by the interface that its packets come from, which it cannot choose. What is
refused by TCP is reset, so that a program learns at once; the rest is dropped.
"""

import hashlib
import ipaddress
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.nfnetlink.nftsocket import Cmp, Meta, Regs
from pyroute2.nftables.expressions import genex

from .policy import DNS_PORT, Policy

INTERFACE_PREFIX = "tm"
"""Of every executor's interfaces on a host; one executor's go on with six digits and a dash."""

TABLE_PREFIX = "tickmesh-"
OTHERS = "others"
CONNECTIONS_SET = "connections"
RATES_SET = "rates"
SANDBOXES_MAX = 65_536  # elements of a set: one for each address that is in use
RATE_TIMEOUT_MS = 10_000  # of an element: after so long a silence the burst is full again
ADDRESS_TYPE = 7  # what nft calls ipv4_addr
ADDRESS_BYTES = 4

_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SOURCE_OFFSET, _DESTINATION_OFFSET = 12, 16
_INVALID, _ESTABLISHED, _RELATED = 1, 2, 4  # ct state
_DESTINATION_TRANSLATED = 1 << 5  # ct status
_CT_STATE, _CT_STATUS, _CT_MARK = 0, 2, 3
_DROP, _ACCEPT, _JUMP = 0, 1, -3
_TCP_RESET = 1
_FIB_SOURCE, _FIB_INTERFACE = 1, 8
_ADD, _UPDATE = 0, 1
_LIMIT_OVER = 1
_PREROUTING, _INPUT, _FORWARD, _POSTROUTING = 0, 1, 2, 4
_BEFORE_TRACKING, _FILTER, _SOURCE_NAT = -300, 0, 100

Expression = dict[str, Any]
Rule = list[Expression]


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain with its rules. Without a hook others jump to it."""

    name: str
    rules: tuple[Rule, ...]
    hook: int | None = None
    priority: int = _FILTER
    kind: str = "filter"


@dataclass(frozen=True, slots=True)
class Table:
    """One executor's table."""

    name: str
    chains: tuple[Chain, ...]
    """Each after those that it jumps to."""


def owner_digits(owner: str) -> str:
    """Six digits that stand for an executor where a name may be 15 characters long."""
    return hashlib.sha256(owner.encode()).hexdigest()[:6]


def interface_prefix(owner: str) -> str:
    """What the names of an executor's interfaces begin with."""
    return f"{INTERFACE_PREFIX}{owner_digits(owner)}-"


def table_prefix(owner: str) -> str:
    """What the names of an executor's tables begin with; the rest is the rules' own digest."""
    return f"{TABLE_PREFIX}{owner}."


def table(owner: str, policy: Policy, guarded: bool) -> Table:
    """`guarded`: forwarding was off before, so what is nobody's egress is not forwarded."""
    prefix = interface_prefix(owner)
    chains = (_refuse(), *_base_chains(prefix, policy), *((_others(),) if guarded else ()))
    digest = hashlib.sha256(repr(chains).encode()).hexdigest()[:8]
    return Table(table_prefix(owner) + digest, chains)


def _base_chains(prefix: str, policy: Policy) -> tuple[Chain, ...]:
    out, back = _interface(Meta.NFT_META_IIFNAME, prefix), _interface(Meta.NFT_META_OIFNAME, prefix)
    # IPv6 is off in a sandbox. Its address has one route, through its interface: one that comes
    # from there with another address, or from another interface with this one, has none.
    spoofed = (
        [*out, *_is_ipv4(Cmp.NFT_CMP_NEQ), _verdict(_DROP)],
        [*out, _fib(), _compare(_u32(0)), _verdict(_DROP)],
    )
    host: tuple[Rule, ...] = ([*out, _jump("refuse")],)
    egress: list[Rule] = [
        [*out, *back, _jump("refuse")],  # neighbours
        [*back, *_ct(_CT_STATE, _ESTABLISHED | _RELATED), _verdict(_ACCEPT)],
        [*back, _verdict(_DROP)],
        [*out, *_ct(_CT_STATE, _ESTABLISHED), _verdict(_ACCEPT)],
        [*out, *_ct(_CT_STATE, _INVALID), _verdict(_DROP)],
        # The host's own published ports, which would lead to a private address of its choice.
        [*out, *_ct(_CT_STATUS, _DESTINATION_TRANSLATED), _jump("refuse")],
        [*out, *_dynamic(RATES_SET, _UPDATE, _rate(policy)), _verdict(_DROP)],
        [*out, *_dynamic(CONNECTIONS_SET, _ADD, _count(policy)), _jump("refuse")],
        # Its connections carry its address, by which all of them can be forgotten at once.
        [*out, _address(_SOURCE_OFFSET), _set_mark()],
    ]
    for resolver in policy.excepted:
        for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
            to = [_address(_DESTINATION_OFFSET), _compare(resolver.packed)]
            port = [_port(), _compare(struct.pack(">H", DNS_PORT))]
            egress.append([*out, *to, *_protocol(protocol), *port, _verdict(_ACCEPT)])
    egress += [
        [*out, *_in_network(_DESTINATION_OFFSET, network), _jump("refuse")]
        for network in policy.denied
    ]
    egress += [
        [*out, *_protocol(protocol), _verdict(_ACCEPT)]
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP)
    ]
    egress.append([*out, _verdict(_DROP)])
    masquerade: Rule = [
        *_is_ipv4(),
        *_in_network(_SOURCE_OFFSET, policy.network),
        *_interface(Meta.NFT_META_OIFNAME, prefix, Cmp.NFT_CMP_NEQ),
        genex("masq", {}),
    ]
    return (
        Chain("spoofed", spoofed, _PREROUTING, _BEFORE_TRACKING),
        Chain("host", host, _INPUT),
        Chain("egress", tuple(egress), _FORWARD),
        Chain("masquerade", (masquerade,), _POSTROUTING, _SOURCE_NAT, "nat"),
    )


def _refuse() -> Chain:
    reset = [*_protocol(socket.IPPROTO_TCP), genex("reject", {"type": _TCP_RESET})]
    return Chain("refuse", (reset, [_verdict(_DROP)]))


def _others() -> Chain:
    """Lets every executor's packets pass to its own rules, and nothing else."""
    keys = (Meta.NFT_META_IIFNAME, Meta.NFT_META_OIFNAME)
    own = [[*_interface(key, INTERFACE_PREFIX), _verdict(_ACCEPT)] for key in keys]
    return Chain(OTHERS, (*own, [_verdict(_DROP)]), _FORWARD)


def _u32(value: int) -> bytes:
    """As the kernel holds it in a register: in the machine's own order."""
    return value.to_bytes(4, sys.byteorder)


def _data(value: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _load(name: str, **arguments: Any) -> Expression:
    return dict(genex(name, {"dreg": Regs.NFT_REG_1, **arguments}))


def _compare(value: bytes, operator: Cmp = Cmp.NFT_CMP_EQ) -> Expression:
    return dict(genex("cmp", {"sreg": Regs.NFT_REG_1, "op": operator, "data": _data(value)}))


def _mask(mask: bytes) -> Expression:
    register = Regs.NFT_REG_1
    nothing = _data(bytes(len(mask)))
    return dict(
        genex(
            "bitwise",
            {
                "sreg": register,
                "dreg": register,
                "len": len(mask),
                "mask": _data(mask),
                "xor": nothing,
            },
        )
    )


def _interface(key: Meta, prefix: str, operator: Cmp = Cmp.NFT_CMP_EQ) -> Rule:
    return [_load("meta", key=key), _compare(prefix.encode(), operator)]


def _is_ipv4(operator: Cmp = Cmp.NFT_CMP_EQ) -> Rule:
    family = bytes([socket.AF_INET])
    return [_load("meta", key=Meta.NFT_META_NFPROTO), _compare(family, operator)]


def _protocol(number: int) -> Rule:
    return [_load("meta", key=Meta.NFT_META_L4PROTO), _compare(bytes([number]))]


def _address(offset: int) -> Expression:
    return _load("payload", base=_NETWORK_HEADER, offset=offset, len=ADDRESS_BYTES)


def _port() -> Expression:
    return _load("payload", base=_TRANSPORT_HEADER, offset=2, len=2)


def _in_network(offset: int, network: ipaddress.IPv4Network) -> Rule:
    masked = _mask(network.netmask.packed)
    return [_address(offset), masked, _compare(network.network_address.packed)]


def _ct(key: int, bits: int) -> Rule:
    return [
        _load("ct", key=key),
        _mask(_u32(bits)),
        _compare(_u32(0), Cmp.NFT_CMP_NEQ),
    ]


def _set_mark() -> Expression:
    return dict(genex("ct", {"key": _CT_MARK, "sreg": Regs.NFT_REG_1}))


def _fib() -> Expression:
    """The interface that a packet's source has its route through, 0 unless it came from there."""
    # pyroute2 0.9 takes the result's number for a bit's, so that this name means 1: the interface.
    return _load("fib", result={"NFT_FIB_RESULT_UNSPEC"}, flags=_FIB_SOURCE | _FIB_INTERFACE)


def _dynamic(name: str, operation: int, limit: Expression) -> Rule:
    """Goes on to the rule's end when this sandbox is over a limit that each has for itself."""
    arguments = {"set_name": name, "op": operation, "sreg_key": Regs.NFT_REG_1, "expr": limit}
    return [_address(_SOURCE_OFFSET), dict(genex("dynset", arguments))]


def _rate(policy: Policy) -> Expression:
    arguments = {
        "rate": policy.connections_per_second,
        "unit": 1,
        "burst": policy.connections_per_second,
        "type": 0,
        "flags": _LIMIT_OVER,
    }
    return dict(genex("limit", arguments))


def _count(policy: Policy) -> Expression:
    # The name is of a bit that means "over".
    return dict(genex("connlimit", {"count": policy.connections_max, "flags": {"NFT_LIMIT_F_INV"}}))


def _verdict(code: int, chain: str = "") -> Expression:
    verdict: list[tuple[str, Any]] = [("NFTA_VERDICT_CODE", code)]
    if chain:
        verdict.append(("NFTA_VERDICT_CHAIN", chain))
    data = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": verdict})]}
    return dict(genex("immediate", {"dreg": Regs.NFT_REG_VERDICT, "data": data}))


def _jump(chain: str) -> Expression:
    return _verdict(_JUMP, chain)
