"""What sandboxes with egress may reach, out of a configuration and the host's own resolvers."""

import ipaddress

import pytest

from tickmesh.executor.errors import HostUnfit
from tickmesh.executor.network import policy, rules
from tickmesh.mesh.config import Egress


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.0.0.1", "10.255.255.255", "100.64.0.1", "127.0.0.1", "169.254.169.254",
        "172.16.0.1", "172.31.255.255", "192.168.0.1", "198.18.0.1", "198.19.255.255",
        "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_what_is_not_public_is_denied(address: str) -> None:
    assert policy.policy(Egress(), "").denies(ipaddress.IPv4Address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "100.128.0.1", "172.32.0.1", "198.20.0.1"])
def test_what_is_public_is_not(address: str) -> None:
    assert not policy.policy(Egress(), "").denies(ipaddress.IPv4Address(address))


def test_the_operator_denies_more_and_the_sandboxes_own_network_always_is() -> None:
    made = policy.policy(Egress(denied=("8.8.8.0/24",), network="203.0.113.0/24"), "")
    assert made.denies(ipaddress.IPv4Address("8.8.8.8"))
    assert made.denies(ipaddress.IPv4Address("203.0.113.9"))


@pytest.mark.parametrize(
    ("configured", "host", "expected"),
    [
        (("10.0.0.2",), "nameserver 8.8.8.8", ("10.0.0.2",)),
        ((), "nameserver 10.0.0.2\nnameserver 8.8.8.8 # x\noptions a", ("8.8.8.8",)),
        ((), "nameserver 127.0.0.53\nnameserver fe80::1", policy.RESOLVERS_DEFAULT),
        ((), "", policy.RESOLVERS_DEFAULT),
        (("1.0.0.1", "1.0.0.2", "1.0.0.3", "1.0.0.4"), "", ("1.0.0.1", "1.0.0.2", "1.0.0.3")),
    ],
)
def test_resolvers_are_the_configured_or_the_hosts_public_ones(
    configured: tuple[str, ...], host: str, expected: tuple[str, ...]
) -> None:
    made = policy.policy(Egress(resolvers=configured), host)
    assert tuple(map(str, made.resolvers)) == expected
    assert made.resolv_conf == "".join(f"nameserver {one}\n" for one in expected).encode()


def test_only_a_private_resolver_is_an_exception_to_what_is_denied() -> None:
    made = policy.policy(Egress(resolvers=("10.0.0.2", "8.8.8.8")), "")
    assert tuple(map(str, made.excepted)) == ("10.0.0.2",)


def test_all_that_is_wrong_is_told() -> None:
    wrong = Egress(
        resolvers=("resolver.example",),
        denied=("10.0.0.1/8",),
        network="198.18.0.0/30",
        pool_size=0,
        connections_max=-1,
    )
    with pytest.raises(HostUnfit) as refused:
        policy.policy(wrong, "")
    for name in ("resolvers", "denied", "network", "pool_size", "connections_max"):
        assert any(f"egress.{name}" in line for line in refused.value.missing), name


def test_a_table_is_named_for_its_executor_and_its_rules() -> None:
    some = rules.table("executor-0", policy.policy(Egress(), ""), guarded=False)
    assert some == rules.table("executor-0", policy.policy(Egress(), ""), guarded=False)
    others = [
        rules.table("executor-0", policy.policy(Egress(), ""), guarded=True),
        rules.table("executor-0", policy.policy(Egress(denied=("8.8.8.8/32",)), ""), False),
        rules.table("executor-1", policy.policy(Egress(), ""), guarded=False),
    ]
    assert len({table.name for table in (some, *others)}) == 4
    assert some.name.startswith(rules.table_prefix("executor-0"))
    # "executor-1" must never take "executor-10" for its own.
    assert not rules.table_prefix("executor-10").startswith(rules.table_prefix("executor-1"))


def test_an_interfaces_name_fits() -> None:
    largest = (1 << 17) - 1  # of a /15
    assert len(f"{rules.interface_prefix('x' * 60)}{largest:x}") <= 15
