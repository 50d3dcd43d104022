from collections.abc import Iterator

import pytest

from tests.unit.sdk.fake_gateway import FakeGateway
from tickmesh.sdk import Client, limits


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried at once: nothing here is helped by waiting."""
    monkeypatch.setattr(limits, "RETRY_DELAY_S", 0.01)
    monkeypatch.setattr(limits, "RETRY_DELAY_MAX_S", 0.01)
    monkeypatch.setattr(limits, "RECONNECT_DELAY_S", 0.01)


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
