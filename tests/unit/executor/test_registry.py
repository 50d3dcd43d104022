"""References, and addresses that must not be spoken to."""

import ipaddress
from collections.abc import AsyncIterator

import httpx2
import pytest

from tickmesh.executor.errors import ImageError, ImageReason
from tickmesh.executor.references import Reference, parse
from tickmesh.executor.registry import RegistrySource, is_public

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("reg.example/a", Reference("reg.example", "a", "latest", "")),
        ("reg.example:5000/a/b_c:1.2", Reference("reg.example:5000", "a/b_c", "1.2", "")),
        ("localhost:5000/a", Reference("localhost:5000", "a", "latest", "")),
        ("127.0.0.1:5000/a", Reference("127.0.0.1:5000", "a", "latest", "")),
        (f"r.io/a@{DIGEST}", Reference("r.io", "a", "latest", DIGEST)),
        (f"r.io/a:1@{DIGEST}", Reference("r.io", "a", "1", DIGEST)),
        ("docker.io/python:3", Reference("registry-1.docker.io", "library/python", "3", "")),
        ("docker.io/a/b", Reference("registry-1.docker.io", "a/b", "latest", "")),
    ],
)
def test_a_reference_with_a_host_is_one_of_a_registry(reference: str, expected: Reference) -> None:
    assert parse(reference) == expected


@pytest.mark.parametrize(
    "reference",
    [
        "localhost/app:1",
        "customer/app:1",
        "app",
        "reg.example/",
        "reg.example/A",
        "reg.example/../a",
        "reg.example/a//b",
        "reg.example/a@sha256:12",
        "reg.example/a:1\n",
        "http://reg.example/a",
        "user:pw@reg.example/a",
        "reg.example:123456/a",
    ],
)
def test_others_are_not(reference: str) -> None:
    assert parse(reference) is None


def test_a_hostile_reference_is_refused_at_once() -> None:
    assert parse("a." * 5000 + "/" + "a-" * 5000 + "!") is None


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fd00::1",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
        "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fd00:ec2::254",
    ],
)  # fmt: skip
def test_no_address_of_a_private_network_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1"]
)
def test_addresses_of_the_internet_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Body(httpx2.AsyncByteStream):
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data


@pytest.mark.parametrize(
    "token", ['{"token": "\xe9"}'.encode(), b'{"token": "\xff"}', b'{"other": ' + b"[" * 50_000]
)
async def test_a_registrys_nonsense_is_an_error_of_its_image(token: bytes) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/t":
            return httpx2.Response(200, stream=Body(token))
        challenge = 'Bearer realm="https://t.example/t"'
        return httpx2.Response(401, headers={"WWW-Authenticate": challenge})

    wanted = parse("r.example/a:1")
    assert wanted is not None
    async with RegistrySource(wanted, httpx2.MockTransport(answer), frozenset()) as source:
        with pytest.raises(ImageError) as caught:
            await source.root()
    assert caught.value.reason is ImageReason.REGISTRY_UNAVAILABLE
