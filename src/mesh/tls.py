"""Mutual TLS between services: credentials, roles in certificates, and a development authority.

A service's certificate carries its role and name as a URI: `tickmesh://{role}/{name}`, with role
one of gateway, scheduler, executor; and the DNS name SERVICE_NAME, which every client checks, so
that addresses need not be in certificates.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .config import Tls
from .errors import PermissionDenied

SERVICE_NAME = "mesh.tickmesh.internal"
DEVELOPMENT_DAYS = 30
"""A development certificate's life: long enough to leave `tickmesh dev` running over holidays."""

CHANNEL_OPTIONS = (
    ("grpc.ssl_target_name_override", SERVICE_NAME),
    ("grpc.default_authority", SERVICE_NAME),
)


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Credentials for a port that admits only certificates of our authority."""
    return grpc.ssl_server_credentials(
        [(Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes())],
        root_certificates=Path(tls.authority).read_bytes(),
        require_client_auth=True,
    )


def channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Credentials for calls to other services; use with CHANNEL_OPTIONS."""
    return grpc.ssl_channel_credentials(
        root_certificates=Path(tls.authority).read_bytes(),
        private_key=Path(tls.key).read_bytes(),
        certificate_chain=Path(tls.certificate).read_bytes(),
    )


def accepting(tls: Tls) -> ssl.SSLContext:
    """For connections without gRPC: as server_credentials."""
    return _context(tls, ssl.PROTOCOL_TLS_SERVER)


def dialling(tls: Tls) -> ssl.SSLContext:
    """For connections without gRPC: as channel_credentials; the name to check is SERVICE_NAME."""
    return _context(tls, ssl.PROTOCOL_TLS_CLIENT)


def _context(tls: Tls, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tls.authority)
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def peer_role(context: grpc.aio.ServicerContext[object, object]) -> tuple[str, str]:
    """(role, name) of the caller's certificate; ("", "") if it has none of ours."""
    for value in context.auth_context().get("x509_subject_alternative_name", ()):
        if said := _said(bytes(value).decode("utf-8", "replace")):
            return said
    return "", ""


def certificate_role(certificate: Mapping[str, Any] | None) -> tuple[str, str]:
    """The same of what ssl's getpeercert() gives."""
    for kind, value in (certificate or {}).get("subjectAltName", ()):
        if kind == "URI" and (said := _said(value)):
            return said
    return "", ""


def _said(name: str) -> tuple[str, str] | None:
    try:
        uri = urlsplit(name)
    except ValueError:
        return None
    return (uri.netloc, uri.path.lstrip("/")) if uri.scheme == "tickmesh" else None


def require_role(context: grpc.aio.ServicerContext[object, object], *roles: str) -> str:
    """The caller's name, if its certificate carries one of the roles. Raises PermissionDenied."""
    role, name = peer_role(context)
    if role not in roles:
        raise PermissionDenied(
            f"this call admits {' and '.join(roles)}, not "
            f"{f'role {role!r}' if role else 'a certificate without a role'}"
        )
    return name


class DevelopmentAuthority:
    """A certificate authority in a directory, made at first use. For `tickmesh dev` and tests."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tickmesh development")])
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.authority = directory / "authority.pem"
        self.authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        issuer: x509.Name | None = None,
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=DEVELOPMENT_DAYS))
        )

    def issue(self, role: str, name: str) -> Tls:
        """A new certificate for a service; its key is readable by its owner only."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(subject, key)
            .add_extension(
                x509.SubjectAlternativeName(
                    [
                        x509.DNSName(SERVICE_NAME),
                        x509.UniformResourceIdentifier(f"tickmesh://{role}/{name}"),
                    ]
                ),
                critical=False,
            )
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return self._written(name, certificate, key)

    def issue_for_tokens(self, name: str) -> Tls:
        """A certificate, signed by itself, of a key that signs tokens and serves nothing."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(subject, key, subject)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        return self._written(name, certificate, key)

    def _written(
        self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> Tls:
        certificate_path = self._directory / f"{name}.pem"
        key_path = self._directory / f"{name}.key"
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.touch(mode=0o600)
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return Tls(str(self.authority), str(certificate_path), str(key_path))
