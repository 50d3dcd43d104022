"""The pool: namespaces wired ahead, so that a sandbox with egress starts as fast as one without."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ...mesh import telemetry
from ...mesh.config import Egress
from ..errors import SandboxError
from .policy import policy
from .wiring import Link, Wiring

Result = TypeVar("Result")

log = telemetry.logger(__name__)

RESOLV_CONFS = ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf")
"""The first that is there: the other may name systemd's resolver, on loopback."""


class EgressPool:
    """Gives each sandbox a namespace of its own, once. Belongs to one event loop."""

    def __init__(self, owner: str, settings: Egress) -> None:
        """`owner`: the executor's id; what is made in the kernel carries it."""
        self._owner = owner
        self._settings = settings
        # One thread: it moves between namespaces, and the kernel takes one such change at a time.
        self._thread = ThreadPoolExecutor(1, "network")
        self._ready: deque[Link] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._wiring: Wiring | None = None
        self.resolv_conf = b""
        """What a sandbox with egress has at /etc/resolv.conf."""

    async def start(self) -> None:
        """Takes over what an earlier process left, and fills. Raises HostUnfit."""
        try:
            allowed = policy(self._settings, await asyncio.to_thread(_host_resolv_conf))
            self.resolv_conf = allowed.resolv_conf
            self._wiring = await self._do(Wiring, self._owner, allowed, self._settings.namespace)
        except BaseException:
            await self.close(remove=False)
            raise
        self._fill()

    async def close(self, remove: bool) -> None:
        """Lets go of everything. `remove`: no sandbox is left that needs the rules."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        while self._ready:
            self._ready.popleft().close()
        try:
            if self._wiring is not None:
                await self._do(self._wiring.close, remove)
        finally:
            self._thread.shutdown(wait=False)

    @contextlib.asynccontextmanager
    async def namespace(self) -> AsyncIterator[str]:
        """The path of a namespace that nobody else has had or will have. Raises SandboxError.

        Once a process is in it, it lives as long as that does; without one it goes at the end.
        """
        link = self._ready.popleft() if self._ready else await self._wire()
        try:
            yield link.path
        finally:
            link.close()
            self._fill()  # not before: it would take the processor from what was being made

    async def _wire(self) -> Link:
        assert self._wiring is not None, "the pool is started"
        return await self._do(self._wiring.wire)

    def _fill(self) -> None:
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._refill())

    async def _refill(self) -> None:
        try:
            while len(self._ready) < self._settings.pool_size:
                self._ready.append(await self._wire())
        except SandboxError as error:
            # Whoever asks next tries again, and is told.
            log.warning("no namespace wired ahead", error=str(error))

    async def _do(self, function: Callable[..., Result], *arguments: object) -> Result:
        """In the pool's thread. A caller that goes away leaves no namespace behind."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, function, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_drop)
            raise


def _drop(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        result = future.result()
        if isinstance(result, Link):
            result.close()


def _host_resolv_conf() -> str:
    for name in RESOLV_CONFS:
        with contextlib.suppress(OSError):
            return Path(name).read_text()
    return ""
