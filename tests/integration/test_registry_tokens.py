"""The mesh's registry where callers are authenticated: who may push, pull and see what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from tickmesh.executor import archive
from tickmesh.mesh.errors import PermissionDenied
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.sdk import ApiScope, AsyncClient, ExecutionState, pushing
from tickmesh.sdk.layouts import OCI_MANIFEST, Layout

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

WAIT_S = 60.0
EXECUTE_EVERY_S = 1.0  # what runs meanwhile must not hold up the pull that is waited for
EVERYTHING = (ApiScope.READ, ApiScope.EXECUTE, ApiScope.ADMIN)


class Bed:
    """A mesh, and the keys of its customers."""

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh
        self.keys: dict[str, str] = {}

    async def make_key(self, name: str, customer: str, *scopes: ApiScope) -> None:
        operator = self.mesh.operator_key_file.read_text()
        async with AsyncClient(self.mesh.address, customer, api_key=operator) as client:
            self.keys[name] = (await client.keys.create(scopes)).text

    def client(self, name: str) -> AsyncClient:
        return AsyncClient(self.mesh.address, api_key=self.keys[name])

    def registry(self, user: str, name: str) -> pushing.Registry:
        secret = self.keys.get(name, name)
        return pushing.Registry(self.mesh.registry_address, True, "", user, secret)

    async def push(self, image: Path, registry: pushing.Registry, repository: str) -> str:
        """As docker does: the gateway hears of it from the registry alone."""
        layout = Layout(image)
        return await asyncio.to_thread(
            lambda: pushing.push(layout, registry, repository, "1", deadline_s=WAIT_S)
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    options = LocalOptions(authentication="api_keys", registry=True)
    async with LocalMesh(tmp_path_factory.mktemp("mesh"), options) as mesh:
        bed = Bed(mesh)
        await bed.make_key("acme", "acme", *EVERYTHING)
        await bed.make_key("reader", "acme", ApiScope.READ)
        await bed.make_key("evil", "evil", *EVERYTHING)
        yield bed


def says(path: Path, words: bytes) -> Path:
    program = archive.File(b"print(%r)\n" % words.decode())
    archive.python_image(path, {"/h.py": program}, command=("python3", "/h.py"))
    return path


async def printed(client: AsyncClient) -> bytes:
    handle = await client.execute("hello")
    async with asyncio.timeout(WAIT_S):
        ended = await handle.wait()
    assert ended.state is ExecutionState.SUCCEEDED, ended.message
    return b"".join([chunk.data async for chunk in handle.logs()])


async def test_a_customer_pushes_and_its_executions_run(bed: Bed, tmp_path: Path) -> None:
    image = says(tmp_path / "image.tar", b"one")
    async with bed.client("acme") as client:
        pushed = await client.images.push("hello:1", image)
        assert pushed.executors == ("executor-0",) and not pushed.failures
        await client.jobs.create("hello", image="hello:1")
        assert await printed(client) == b"one\n"
        # Another client than ours moves the name: executors hear of it from the registry.
        await bed.push(
            says(tmp_path / "image.tar", b"two"), bed.registry("acme", "acme"), "acme/hello"
        )
        async with asyncio.timeout(WAIT_S):
            while await printed(client) != b"two\n":  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(EXECUTE_EVERY_S)
        assert [each.id for each in await client.images.list()] == ["hello:1"]
        await bed.make_key("other", "other", *EVERYTHING)
        async with bed.client("other") as other:
            assert await other.images.list() == []
        await client.images.delete("hello:1")
        assert await client.images.list() == []


@pytest.mark.parametrize(
    ("user", "key", "repository"),
    [
        ("evil", "evil", "acme/hello"),
        ("acme", "reader", "acme/hello"),
        ("acme", "evil", "acme/hello"),
        ("acme", "evil", "evil/hello"),
        ("acme", "no key at all", "acme/hello"),
        ("acme", "", "acme/hello"),
        ("evil", "evil", "hello"),
        ("tickmesh/executor", "evil", "evil/hello"),
    ],
)
async def test_nobody_else_pushes(
    bed: Bed, tmp_path: Path, user: str, key: str, repository: str
) -> None:
    image = tmp_path / "x.tar"
    archive.files_image(image, {"/x": archive.File(b"x")}, archive.Process())
    with pytest.raises(PermissionDenied):
        await bed.push(image, bed.registry(user, key), repository)


async def test_a_login_sees_its_own_alone(bed: Bed, tmp_path: Path) -> None:
    """By plain HTTP, as any client does it."""
    image = tmp_path / "x.tar"
    archive.files_image(image, {"/x": archive.File(b"x")}, archive.Process())
    digest = await bed.push(image, bed.registry("acme", "acme"), "acme/seen")
    async with httpx2.AsyncClient(trust_env=False, timeout=WAIT_S) as http:
        base = f"http://{bed.mesh.registry_address}/v2"

        async def get(path: str, user: str, key: str) -> httpx2.Response:
            first = await http.get(f"{base}{path}")
            assert first.status_code == httpx2.codes.UNAUTHORIZED
            scheme, _, rest = first.headers["WWW-Authenticate"].partition(" ")
            assert scheme == "Bearer"
            told = dict(part.split("=", 1) for part in rest.replace('"', "").split(",", 3))
            realm = told.pop("realm")
            answer = await http.get(realm, params=told, auth=(user, bed.keys.get(key, key)))
            if answer.status_code != httpx2.codes.OK:
                return answer
            token = answer.json()["token"]
            headers = {"Authorization": f"Bearer {token}", "Accept": OCI_MANIFEST}
            return await http.get(f"{base}{path}", headers=headers)

        for key in ("acme", "reader"):
            found = await get("/acme/seen/manifests/1", "acme", key)
            assert found.headers["Docker-Content-Digest"] == digest
            assert (await get("/", "acme", key)).status_code == httpx2.codes.OK, "docker login"
        for path in ("/acme/seen/manifests/1", "/acme/seen/tags/list", "/_catalog"):
            refused = await get(path, "evil", "evil")
            assert refused.status_code == httpx2.codes.UNAUTHORIZED
            absent = await get(path.replace("seen", "none"), "evil", "evil")
            assert absent.content == refused.content.replace(b"seen", b"none")
        assert (await get("/_catalog", "acme", "acme")).status_code == httpx2.codes.UNAUTHORIZED
        assert (await get("/", "acme", "wrong")).status_code == httpx2.codes.UNAUTHORIZED


async def test_events_are_the_registrys_alone(bed: Bed) -> None:
    door = bed.mesh.gateways[0].settings.gateway
    assert door is not None and door.registry_door is not None
    async with httpx2.AsyncClient(trust_env=False, timeout=WAIT_S) as http:
        url = f"http://{door.registry_door.listen}/events"
        for headers in ({}, {"Authorization": "Bearer x"}):
            answer = await http.post(url, content=b'{"events": []}', headers=headers)
            assert answer.status_code == httpx2.codes.FORBIDDEN
