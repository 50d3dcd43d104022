"""What an executor says of itself to the mesh's own registry, signed with its certificate's key."""

import base64
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwk, jwt

from ..mesh.config import Tls
from ..mesh.registries import ASSERTION_AUDIENCE, ASSERTION_SECONDS


def signed(tls: Tls, now_s: int) -> str:
    """A statement that is good for ASSERTION_SECONDS: a JWT with the certificate's chain."""
    chain = x509.load_pem_x509_certificates(Path(tls.certificate).read_bytes())
    elliptic = isinstance(chain[0].public_key(), ec.EllipticCurvePublicKey)
    kind: type[jwk.ECKey | jwk.RSAKey] = jwk.ECKey if elliptic else jwk.RSAKey
    key = kind.import_key(Path(tls.key).read_bytes())
    header = {
        "alg": "ES256" if elliptic else "RS256",
        "x5c": [
            base64.b64encode(each.public_bytes(serialization.Encoding.DER)).decode()
            for each in chain
        ],
    }
    claims = {"aud": ASSERTION_AUDIENCE, "iat": now_s, "exp": now_s + ASSERTION_SECONDS}
    return jwt.encode(header, claims, key)
