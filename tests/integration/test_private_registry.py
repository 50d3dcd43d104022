"""A private registry (htpasswd): a customer's login pulls, and is nowhere in clear."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
import pytest

from tickmesh.executor import archive
from tickmesh.mesh.errors import NotFound
from tickmesh.mesh.local import LocalMesh, LocalOptions
from tickmesh.sdk import AsyncClient, Execution, ExecutionReason, ExecutionState, pushing
from tickmesh.sdk.layouts import Layout

from .executor.conftest import STAMP
from .executor.registries import registry

pytestmark = pytest.mark.integration

WAIT_S = 60.0
USER, SECRET = "robot", "open sesame"
HTPASSWD = "$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW"


async def ran(client: AsyncClient) -> Execution:
    handle = await client.execute("private")
    async with asyncio.timeout(WAIT_S):
        return await handle.wait()


async def test_a_login_pulls_for_its_customer_alone(tmp_path: Path) -> None:
    image = tmp_path / "image.tar"
    files = {"/stamp": archive.File(STAMP, archive.EXECUTABLE)}
    archive.files_image(image, files, archive.Process(entrypoint=("/stamp",)))
    users = tmp_path / "htpasswd"
    users.write_text(f"{USER}:{HTPASSWD}\n")
    auth = f"auth:\n  htpasswd:\n    realm: tests\n    path: {users}\n"
    async with registry(tmp_path / "registry", auth) as host:
        target = pushing.Registry(host, True, "", USER, SECRET)
        await asyncio.to_thread(
            lambda: pushing.push(Layout(image), target, "team/private", "1", deadline_s=WAIT_S)
        )
        async with httpx2.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"http://{host}/v2/")).status_code == httpx2.codes.UNAUTHORIZED
        options = LocalOptions(executor=(("insecure_registries", (host,)),))
        async with (
            LocalMesh(tmp_path / "mesh", options) as mesh,
            AsyncClient(mesh.address, "acme") as acme,
            AsyncClient(mesh.address, "evil") as evil,
        ):
            for client in (acme, evil):
                await client.jobs.create("private", image=f"{host}/team/private:1")
            assert (await ran(acme)).reason is ExecutionReason.REGISTRY_UNAVAILABLE
            made = await acme.images.create_credential(host, USER, SECRET)
            assert made.host == host and made.username == USER
            assert await acme.images.credentials() == [made]
            assert SECRET not in repr(made)
            ended = await ran(acme)
            assert ended.state is ExecutionState.SUCCEEDED, ended.message
            # It is here now, and still not for anybody else.
            assert (await ran(evil)).reason is ExecutionReason.REGISTRY_UNAVAILABLE
            assert await evil.images.credentials() == []
            await evil.images.create_credential(host, USER, "wrong")
            assert (await ran(evil)).reason is ExecutionReason.REGISTRY_UNAVAILABLE
            with pytest.raises(NotFound):
                await evil.images.delete_credential("other.example")
            await acme.images.delete_credential(host)
            assert await acme.images.credentials() == []
    for path in (tmp_path / "mesh").rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert SECRET.encode() not in path.read_bytes(), path
