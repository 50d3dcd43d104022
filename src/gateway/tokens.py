"""Tokens for the mesh's own registry: who gets which, by the token authentication specification of
CNCF Distribution. No I/O.

A customer gets tokens for repositories of its own, as far as its API key's scopes go; an executor
gets one to pull what it asks for; nobody gets the catalog. A token is good for minutes, so a key
that is revoked opens nothing for longer than that.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)
from joserfc import jwk, jws, jwt
from joserfc.errors import JoseError

from ..mesh.errors import KeyInvalid
from ..mesh.registries import (
    ASSERTION_AUDIENCE,
    ASSERTION_SECONDS,
    TOKEN_ISSUER,
    TOKEN_SERVICE,
)
from .access import Principal, Scope
from .repositories import Access

TOKEN_SECONDS = 300
"""How long a token is good: who pushes for longer asks for another."""

CLOCK_SKEW_S = 30
"""Between the clocks of those who make a statement and those who check it."""

SCOPES_MAX = 16
"""Asked for in one question: a push mounts from some repositories."""

CHAIN_MAX = 4
"""Certificates that come with an executor's statement."""

ASSERTION_CHARACTERS_MAX = 16 * 1024

_ALGORITHMS = ["ES256", "RS256"]


class _Registry(jws.JWSRegistry):
    """A header with certificates in it is longer than most."""

    max_header_length = ASSERTION_CHARACTERS_MAX


class Tokens:
    """What signs tokens, and tells whom to give them to."""

    def __init__(
        self, key: bytes, certificate: bytes, authority: bytes, now: Callable[[], float]
    ) -> None:
        """key, certificate: PEM; the registry has the certificate in its rootcertbundle. authority:
        PEM of who signs the mesh's certificates. Raises ValueError, JoseError."""
        self._certificate = x509.load_pem_x509_certificate(certificate)
        kind = _kind(self._certificate)
        self._key = kind.import_key(key)
        der = self._certificate.public_bytes(Encoding.DER)
        self._header = {
            "typ": "JWT",
            "alg": "ES256" if kind is jwk.ECKey else "RS256",
            "x5c": [base64.b64encode(der).decode()],
        }
        self._now = now
        basic = ExtensionPolicy.permit_all()
        self._verifier = (
            PolicyBuilder()
            .store(Store(x509.load_pem_x509_certificates(authority)))
            .extension_policies(
                ca_policy=basic.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None),
                ee_policy=basic.require_present(
                    x509.SubjectAlternativeName, Criticality.AGNOSTIC, None
                ),
            )
        )

    def make(self, subject: str, access: Iterable[Access]) -> str:
        """A token that grants so much, and nothing else."""
        now_s = int(self._now())
        claims = {
            "iss": TOKEN_ISSUER,
            "sub": subject,
            "aud": TOKEN_SERVICE,
            "exp": now_s + TOKEN_SECONDS,
            "nbf": now_s - CLOCK_SKEW_S,
            "iat": now_s,
            "jti": uuid.uuid4().hex,
            "access": [
                {"type": kind, "name": name, "actions": list(actions)}
                for kind, name, actions in access
            ],
        }
        return jwt.encode(self._header, claims, self._key, _ALGORITHMS)

    def executor(self, assertion: str) -> str:
        """The id of the executor that made a statement of who it is. Raises KeyInvalid."""
        if len(assertion) > ASSERTION_CHARACTERS_MAX:
            raise KeyInvalid("the statement of an executor is too long")
        try:
            header = base64.urlsafe_b64decode(assertion.partition(".")[0] + "===")
            chain = json.loads(header)["x5c"]
            if not isinstance(chain, list) or not 1 <= len(chain) <= CHAIN_MAX:
                raise KeyInvalid("the statement of an executor carries no certificate")
            certificates = [x509.load_der_x509_certificate(base64.b64decode(c)) for c in chain]
            verified = self._verifier.build_client_verifier().verify(
                certificates[0], certificates[1:]
            )
            key = _kind(certificates[0]).import_key(_pem(certificates[0]))
            claims = jwt.decode(assertion, key, registry=_Registry(algorithms=_ALGORITHMS)).claims
            jwt.JWTClaimsRegistry(
                now=int(self._now()),
                leeway=CLOCK_SKEW_S,
                aud={"essential": True, "value": ASSERTION_AUDIENCE},
                exp={"essential": True},
                iat={"essential": True},
            ).validate(claims)
        except (
            JoseError,
            VerificationError,
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
        ) as error:
            raise KeyInvalid("the statement of an executor is not one of this mesh") from error
        if claims["exp"] > int(self._now()) + ASSERTION_SECONDS + CLOCK_SKEW_S:
            raise KeyInvalid("the statement of an executor is good for too long")
        for subject in verified.subjects or ():
            uri = str(subject.value)
            if isinstance(subject, x509.UniformResourceIdentifier) and uri.startswith(
                "tickmesh://executor/"
            ):
                return uri.removeprefix("tickmesh://executor/")
        raise KeyInvalid("the certificate of the statement is no executor's")


def granted_to_customer(principal: Principal, asked: Sequence[str]) -> list[Access]:
    """What a customer gets of what it asks for: of its own repositories, by its scopes."""
    may = set()
    if principal.scopes & Scope.READ:
        may.add("pull")
    if principal.scopes & Scope.ADMIN:
        may |= {"push", "delete"}
    return [
        (kind, name, kept)
        for kind, name, actions in map(parse_scope, asked[:SCOPES_MAX])
        if kind == "repository"
        and principal.customer
        and name.startswith(f"{principal.customer}/")
        and (kept := tuple(action for action in actions if action in may))
    ]


def granted_to_executor(asked: Sequence[str]) -> list[Access]:
    """What an executor gets: to pull."""
    return [
        (kind, name, ("pull",))
        for kind, name, actions in map(parse_scope, asked[:SCOPES_MAX])
        if kind == "repository" and "pull" in actions
    ]


def parse_scope(text: str) -> Access:
    """As "repository:acme/report:pull,push"."""
    kind, _, rest = text.partition(":")
    name, _, actions = rest.rpartition(":")
    return kind, name, tuple(actions.split(","))


def _kind(certificate: x509.Certificate) -> type[jwk.ECKey | jwk.RSAKey]:
    elliptic = isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    return jwk.ECKey if elliptic else jwk.RSAKey


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
