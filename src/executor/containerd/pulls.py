"""Brings images here when they are asked for: one pull for all who wait for the same.

An image of a registry is known by its reference. One that was pulled with a customer's login is
known by the reference and the customer, so that no other customer ever runs it by its name. An
image without a host is a customer's own: it was imported here, or the mesh's registry has it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ...mesh import telemetry
from ...mesh.config import OwnRegistry
from .. import limits
from ..credentials import Credentials
from ..errors import ContainerdError, ExecutorError, ImageError, ImageReason, SandboxError
from ..references import Login, Reference, parse
from .images import LABEL_PULLED, Image, ImageStore

if TYPE_CHECKING:
    from ..registry import RegistrySource

log = telemetry.logger(__name__)


class Puller:
    """The images of one store, and where they come from."""

    def __init__(
        self,
        images: ImageStore,
        insecure: frozenset[str],
        own: OwnRegistry | None,
        credentials: Credentials,
        pulled: Callable[[Image], Awaitable[None]],
    ) -> None:
        """`insecure`: see RegistrySource. `own`: the mesh's. `pulled`: called after each pull."""
        self._images = images
        self._insecure = insecure
        self._own = own
        self._credentials = credentials
        self._pulled = pulled
        self._fetching: dict[str, asyncio.Task[Image]] = {}
        self._at_once = asyncio.Semaphore(limits.PULLS_AT_ONCE_MAX)
        self._of_host: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._checked_s: dict[str, float] = {}
        """When the mesh's registry was last asked what a name stands for."""

    async def close(self) -> None:
        """Gives up what is under way."""
        for task in list(self._fetching.values()):
            task.cancel()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)

    async def image(self, reference: str, customer: str) -> Image:
        """An image for a customer: it is here, or it is pulled. Raises ImageError, SandboxError."""
        wanted = parse(reference)
        if wanted is None:
            return await self._own_image(reference)
        private = f"{reference}#{customer}"
        login = self._credentials.find(customer, wanted.host)
        name = reference if login is None else private
        found = await self._here(name)
        if found is None and login is None and customer:
            found = await self._here(private)  # from when there was a login
        if found is not None:
            return found
        return await self._shared(name, wanted, login)

    async def refresh(self, reference: str) -> Image:
        """Asks the mesh's registry what one of its names stands for now, and has that here."""
        wanted = self._of_own(reference)
        if wanted is None:
            raise ImageError(ImageReason.NOT_FOUND, f"image {reference} is in no registry")
        return await self._shared(reference, wanted, None)

    async def _own_image(self, reference: str) -> Image:
        found = await self._here(reference)
        wanted = self._of_own(reference)
        if wanted is None or (found is not None and not found.pulled):
            if found is None:
                raise ImageError(
                    ImageReason.NOT_FOUND, f"image {reference} is not on this executor"
                )
            return found
        if found is None:
            return await self._shared(reference, wanted, None)
        asked_s = self._checked_s.get(reference)
        if asked_s is None or time.monotonic() - asked_s > limits.OWN_TAG_FRESH_S:
            self._begin(reference, wanted, None)  # nobody waits for it
        return found

    def _of_own(self, reference: str) -> Reference | None:
        """Where the mesh's registry has it, if there is one."""
        path, _, tag = reference.rpartition(":")
        if self._own is None or path.count("/") != 1:
            return None
        return Reference(self._own.address, path, tag, "")

    async def _here(self, name: str) -> Image | None:
        try:
            return await self._images.get(name)
        except ContainerdError as error:
            raise SandboxError(f"image {name} cannot be looked up: {error}") from error
        except ImageError as error:
            if error.reason is not ImageReason.NOT_FOUND:
                raise
            return None

    async def _shared(self, name: str, wanted: Reference, login: Login | None) -> Image:
        # One waiter that gives up must not take the others' pull with it.
        return await asyncio.shield(self._begin(name, wanted, login))

    def _begin(self, name: str, wanted: Reference, login: Login | None) -> asyncio.Task[Image]:
        """The pull of this name that is under way, or a new one."""
        task = self._fetching.get(name)
        if task is None:
            # A registry that hangs must not hold what the others need.
            of_host = self._of_host.setdefault(
                wanted.host, asyncio.Semaphore(limits.PULLS_OF_HOST_MAX)
            )

            async def limited() -> Image:
                async with of_host, self._at_once:
                    return await self._pull(name, wanted, login)

            task = asyncio.create_task(limited())
            self._fetching[name] = task
            task.add_done_callback(lambda done: self._fetched(name, done))
        return task

    def _fetched(self, name: str, task: asyncio.Task[Image]) -> None:
        del self._fetching[name]
        if not task.cancelled() and isinstance(task.exception(), ExecutorError):
            log.info("a pull failed", image=name, error=str(task.exception()))

    async def _pull(self, name: str, wanted: Reference, login: Login | None) -> Image:
        own = parse(name.partition("#")[0]) is None
        if own:
            self._note_checked(name)
        async with await asyncio.to_thread(self._source, wanted, login, own) as source:
            try:
                async with asyncio.timeout(limits.PULL_DEADLINE_S):
                    image = await self._unchanged(name, source) if own else None
                    if image is not None:
                        return image
                    image = await self._images.install(name, source, {LABEL_PULLED: "true"})
            except TimeoutError:
                raise ImageError(
                    ImageReason.REGISTRY_UNAVAILABLE,
                    f"image {name} did not come within {limits.PULL_DEADLINE_S:.0f} s",
                ) from None
            except ContainerdError as error:
                raise SandboxError(f"image {name} cannot be stored: {error}") from error
        await self._pulled(image)
        return image

    async def _unchanged(self, name: str, source: "RegistrySource") -> Image | None:
        """What is here under a name of the mesh's registry, if it still stands for that."""
        found = await self._here(name)
        if found is None or not found.pulled:
            return None
        _, digest, _ = await source.root()
        return found if digest == found.root_digest else None

    def _note_checked(self, name: str) -> None:
        self._checked_s.pop(name, None)
        while len(self._checked_s) >= limits.IMAGE_CACHE_ENTRIES_MAX:
            self._checked_s.pop(next(iter(self._checked_s)))
        self._checked_s[name] = time.monotonic()

    def _source(self, wanted: Reference, login: Login | None, own: bool) -> "RegistrySource":
        """In a thread: it reads the authorities that are believed, and the first one imports what
        speaks HTTP, for which an executor's start does not wait."""
        from .. import registry

        if own:
            assert self._own is not None
            return registry.own_source(self._own, wanted, self._credentials.own_login)
        return registry.public_source(wanted, self._insecure, login)
