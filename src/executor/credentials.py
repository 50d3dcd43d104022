"""With what this executor logs in to registries. Nothing of it is ever written down or shown.

Customers' logins come from their shards with the work that needs them, and are forgotten after a
while. In the mesh's own registry an executor says who it is by a statement that it signs with its
mesh certificate's key; the gateway gives it a token for pulling what it asks for.
"""

import base64
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwk, jwt

from ..mesh.clock import Clock
from ..mesh.config import Tls
from ..mesh.registries import ASSERTION_AUDIENCE, ASSERTION_SECONDS, EXECUTOR_USER
from .registry import DOCKER_HUB, DOCKER_HUB_HOST, Login

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
        """For the mesh's registry: who this executor is, signed, good for a minute."""
        if self._tls is None:
            return Login(EXECUTOR_USER, "")
        chain = x509.load_pem_x509_certificates(Path(self._tls.certificate).read_bytes())
        now_s = self._clock.now_ns() // 1_000_000_000
        elliptic = isinstance(chain[0].public_key(), ec.EllipticCurvePublicKey)
        kind: type[jwk.ECKey | jwk.RSAKey] = jwk.ECKey if elliptic else jwk.RSAKey
        key = kind.import_key(Path(self._tls.key).read_bytes())
        header = {
            "alg": "ES256" if elliptic else "RS256",
            "x5c": [
                base64.b64encode(each.public_bytes(serialization.Encoding.DER)).decode()
                for each in chain
            ],
        }
        claims = {"aud": ASSERTION_AUDIENCE, "iat": now_s, "exp": now_s + ASSERTION_SECONDS}
        return Login(EXECUTOR_USER, jwt.encode(header, claims, key))
