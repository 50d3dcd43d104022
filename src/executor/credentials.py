"""With what this executor logs in to registries. Nothing of it is ever written down or shown.

Customers' logins come from their shards with the work that needs them, and are forgotten after a
while. In the mesh's own registry an executor says who it is by a statement that it signs with its
mesh certificate's key; the gateway gives it a token for pulling what it asks for.
"""

import time
from dataclasses import dataclass

from ..mesh.clock import Clock
from ..mesh.config import Tls
from ..mesh.registries import EXECUTOR_USER
from .references import DOCKER_HUB, DOCKER_HUB_HOST, Login

LOGINS_MAX = 10_000
"""Customers' logins kept: those that came longest ago go first."""

LOGIN_SECONDS = 900.0
"""A login is used for so long after it came: it comes again with the next work that needs it."""


@dataclass(frozen=True, slots=True)
class _Kept:
    login: Login
    until_s: float


class Credentials:
    """See the module."""

    def __init__(self, clock: Clock, tls: Tls | None = None) -> None:
        """`tls`: of this executor; None where nobody asks who it is."""
        self._clock = clock
        self._tls = tls
        self._kept: dict[tuple[str, str], _Kept] = {}

    def learn(self, customer: str, host: str, user: str, secret: str) -> None:
        """A shard tells a customer's login. Without a secret: there is none any more."""
        host = DOCKER_HUB_HOST if host == DOCKER_HUB else host
        self._kept.pop((customer, host), None)
        if not secret:
            return
        while len(self._kept) >= LOGINS_MAX:
            self._kept.pop(next(iter(self._kept)))
        until_s = time.monotonic() + LOGIN_SECONDS
        self._kept[customer, host] = _Kept(Login(user, secret), until_s)

    def find(self, customer: str, host: str) -> Login | None:
        """A customer's login for a registry, if it has one that was told lately."""
        kept = self._kept.get((customer, host))
        if kept is None or kept.until_s < time.monotonic():
            return None
        return kept.login

    def own_login(self) -> Login:
        """For the mesh's registry: who this executor is, signed, good for a minute. Not for an
        event loop: it reads files, and the first one imports what it signs with."""
        if self._tls is None:
            return Login(EXECUTOR_USER, "")
        from .statement import signed  # only this needs it, and each start would wait for it

        return Login(EXECUTOR_USER, signed(self._tls, self._clock.now_ns() // 1_000_000_000))
