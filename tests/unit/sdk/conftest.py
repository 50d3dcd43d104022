from collections.abc import Iterator

import pytest

from tests.unit.sdk.fake_gateway import FakeGateway
from tickmesh.sdk import Client


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def address(gateway: FakeGateway) -> Iterator[str]:
    with gateway.serving() as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, "acme") as client:
        yield client
