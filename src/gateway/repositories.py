"""The mesh's own registry, as gateways see it: what a customer has pushed, looked up and deleted.

It speaks the OCI distribution API, with tokens that this gateway makes for itself. Nothing of a
layer passes here.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx2
import msgspec

from ..mesh.config import OwnRegistry
from ..mesh.errors import DeadlineExceeded, NotFound, TickmeshError, Unavailable
from ..mesh.limits import PAGE_SIZE_MAX

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))

MANIFEST_BYTES_MAX = 4 * 1024 * 1024
"""What registries take, by the distribution specification."""

CATALOG_PAGE = 1_000
"""Repositories in one answer of the registry: its own default limit."""

AT_ONCE_MAX = 8
"""Manifests that one listing reads at one time."""

SIZE_BYTES_MAX = (1 << 63) - 1
"""Of an image, as it is told: sizes in its manifest are the customer's to write, and may add up to
more than a message can carry."""

DIGEST_PATTERN = r"^[a-z0-9]+([+._-][a-z0-9]+)*:[A-Za-z0-9=_-]+\Z"
"""By the image specification: a digest becomes part of what the registry is asked."""

ANNOTATION_DELETED = "tickmesh.io/deleted"

Access = tuple[str, str, tuple[str, ...]]
"""Type, name and actions, as a token grants them."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image in the registry."""

    reference: str
    """As "acme/report:1"."""
    digest: str
    size_bytes: int


class _Descriptor(msgspec.Struct, frozen=True):
    digest: Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
    size: Annotated[int, msgspec.Meta(ge=0)] = 0


class _Manifest(msgspec.Struct, frozen=True):
    """A manifest, or an index."""

    config: _Descriptor | None = None
    layers: list[_Descriptor] = []
    manifests: list[_Descriptor] = []


class _Catalog(msgspec.Struct, frozen=True):
    repositories: list[str] | None = None


class _Tags(msgspec.Struct, frozen=True):
    tags: list[str] | None = None


class Repositories:
    """See the module."""

    def __init__(self, registry: OwnRegistry, token: Callable[[Access], str] | None) -> None:
        """`token`: makes one for an access; None: the registry asks nobody who they are."""
        self._token = token
        context = ssl.create_default_context()
        if registry.authority:
            context.load_verify_locations(Path(registry.authority))
        self._address = registry.address
        self._client = httpx2.AsyncClient(
            base_url=f"{'http' if registry.plain else 'https'}://{registry.address}",
            verify=context,
            trust_env=False,
            timeout=None,  # each question has the caller's
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def get(self, reference: str, timeout_s: float) -> Pushed:
        """One image. Raises NotFound, Unavailable."""
        repository, _, tag = reference.rpartition(":")
        answer = await self._manifest(repository, tag, timeout_s)
        found = _decode(answer.content, _Manifest)
        size = len(answer.content)
        if found.manifests and found.config is None:
            # An index: what one machine pulls of it, as they hardly differ.
            inner = await self._manifest(repository, found.manifests[0].digest, timeout_s)
            size += len(inner.content)
            found = _decode(inner.content, _Manifest)
        if found.config is not None:
            size += found.config.size
        size += sum(layer.size for layer in found.layers)
        digest = answer.headers.get("Docker-Content-Digest", "")
        return Pushed(reference, digest, min(size, SIZE_BYTES_MAX))

    async def of_customer(self, customer: str, timeout_s: float) -> list[Pushed]:
        """A customer's images, ordered by reference; at most PAGE_SIZE_MAX. Raises Unavailable."""
        references: list[str] = []
        for repository in await self._repositories(f"{customer}/", timeout_s):
            try:
                answer = await self._ask(
                    "GET",
                    f"/v2/{repository}/tags/list",
                    ("repository", repository, ("pull",)),
                    timeout_s,
                )
            except NotFound:  # nothing of it is left but its name
                continue
            tags = sorted(_decode(answer.content, _Tags).tags or ())
            references.extend(f"{repository}:{tag}" for tag in tags)
            if len(references) >= PAGE_SIZE_MAX:
                break
        at_once = asyncio.Semaphore(AT_ONCE_MAX)

        async def one(reference: str) -> Pushed | None:
            async with at_once:
                try:
                    return await self.get(reference, timeout_s)
                except NotFound:  # deleted meanwhile
                    return None

        found = await asyncio.gather(*map(one, references[:PAGE_SIZE_MAX]))
        return [pushed for pushed in found if pushed is not None]

    async def delete(self, reference: str, timeout_s: float) -> None:
        """Removes a name. Raises NotFound, Unavailable.

        A registry deletes manifests, and with one all of its tags. So the tag is moved to a
        manifest that differs by an annotation, and that is deleted: other tags of the image stay.
        """
        repository, _, tag = reference.rpartition(":")
        answer = await self._manifest(repository, tag, timeout_s)
        manifest = json.loads(answer.content)
        manifest["annotations"] = {ANNOTATION_DELETED: os.urandom(16).hex()}
        access = ("repository", repository, ("pull", "push", "delete"))
        moved = await self._ask(
            "PUT",
            f"/v2/{repository}/manifests/{tag}",
            access,
            timeout_s,
            content=json.dumps(manifest).encode(),
            headers={"Content-Type": answer.headers.get("Content-Type", OCI_MANIFEST)},
        )
        digest = moved.headers.get("Docker-Content-Digest", "")
        await self._ask("DELETE", f"/v2/{repository}/manifests/{digest}", access, timeout_s)

    async def _repositories(self, prefix: str, timeout_s: float) -> list[str]:
        """In the registry's order "/" comes before all else: what begins alike is together."""
        found: list[str] = []
        last = prefix.rstrip("/")
        while True:
            answer = await self._ask(
                "GET",
                "/v2/_catalog",
                ("registry", "catalog", ("*",)),
                timeout_s,
                params={"n": str(CATALOG_PAGE), "last": last},
            )
            page = _decode(answer.content, _Catalog).repositories or []
            found.extend(name for name in page if name.startswith(prefix))
            if len(page) < CATALOG_PAGE or not page[-1].startswith(prefix):
                return found
            if len(found) >= PAGE_SIZE_MAX:
                return found
            last = page[-1]

    async def _manifest(self, repository: str, name: str, timeout_s: float) -> httpx2.Response:
        return await self._ask(
            "GET",
            f"/v2/{repository}/manifests/{name}",
            ("repository", repository, ("pull",)),
            timeout_s,
            headers={"Accept": ACCEPT},
        )

    async def _ask(
        self,
        method: str,
        path: str,
        access: Access,
        timeout_s: float,
        *,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> httpx2.Response:
        """A successful answer. Raises NotFound, Unavailable, DeadlineExceeded."""
        headers = dict(headers or {})
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token(access)}"
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._client.request(method, path, headers=headers, **more)
        except TimeoutError as error:
            raise DeadlineExceeded("the mesh's registry did not answer in time") from error
        except httpx2.HTTPError as error:
            raise self._unavailable(str(error) or type(error).__name__) from error
        if answer.status_code == httpx2.codes.NOT_FOUND:
            raise NotFound("the mesh's registry has no such image")
        if not answer.is_success:
            raise self._unavailable(f"it answers {answer.status_code}")
        if len(answer.content) > MANIFEST_BYTES_MAX:
            raise self._unavailable(f"it answers {len(answer.content)} bytes")
        return answer

    def _unavailable(self, why: str) -> TickmeshError:
        return Unavailable(f"the mesh's registry at {self._address} is of no use: {why}")


def _decode(data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise Unavailable(f"the mesh's registry gives something else: {error}") from error
