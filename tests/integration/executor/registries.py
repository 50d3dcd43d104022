"""A real registry (CNCF Distribution) on loopback, a push into it, and a door that misbehaves."""

import asyncio
import base64
import json
import os
import re
import signal
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

_CONFIGURATION = """\
version: 0.1
log: {{level: info, formatter: json}}
storage:
  filesystem: {{rootdirectory: {root}}}
http:
  addr: 127.0.0.1:0
{auth}"""
DEADLINE_S = 20.0
_READ_BYTES = 65536


@asynccontextmanager
async def registry(directory: Path, auth: str = "") -> AsyncIterator[str]:
    """Starts Debian's docker-registry, answers its host:port, ends it by its pid."""
    configuration = await asyncio.to_thread(_configure, directory, auth)
    process = await asyncio.create_subprocess_exec(
        "docker-registry",
        "serve",
        str(configuration),
        stderr=asyncio.subprocess.STDOUT,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
    )
    assert process.stdout is not None
    drain: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                line = (await process.stdout.readline()).decode()
                assert line, "the registry ended at its start"
                if found := re.search(r"listening on ([0-9.]+:[0-9]+)", line):
                    break
        drain = asyncio.create_task(process.stdout.read())
        yield found[1]
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
        if drain is not None:
            await drain


def _configure(directory: Path, auth: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "registry.yml"
    configuration.write_text(_CONFIGURATION.format(root=directory / "data", auth=auth))
    return configuration


async def push(host: str, path: str, tag: str, archive: Path) -> str:
    """Pushes the only image of an OCI archive. Answers its manifest's digest."""
    with tarfile.open(archive) as opened:
        blobs = {
            member.name.removeprefix("blobs/sha256/"): opened.extractfile(member).read()  # type: ignore[union-attr]
            for member in opened
            if member.isfile()
        }
    entry = json.loads(blobs["index.json"])["manifests"][0]
    manifest = blobs[entry["digest"].removeprefix("sha256:")]
    parts = json.loads(manifest)
    for part in (parts["config"], *parts["layers"]):
        await push_blob(host, path, part["digest"], blobs[part["digest"].removeprefix("sha256:")])
    await push_manifest(host, path, tag, manifest, entry["mediaType"])
    return str(entry["digest"])


async def push_blob(host: str, path: str, digest: str, data: bytes) -> None:
    """Uploads one blob."""
    async with httpx2.AsyncClient(trust_env=False, timeout=DEADLINE_S) as client:
        begun = await client.post(f"http://{host}/v2/{path}/blobs/uploads/")
        begun.raise_for_status()
        where = httpx2.URL(begun.headers["Location"]).copy_merge_params({"digest": digest})
        (await client.put(where, content=data)).raise_for_status()


async def push_manifest(host: str, path: str, tag: str, data: bytes, media_type: str) -> None:
    """Uploads a manifest or index under a tag."""
    async with httpx2.AsyncClient(trust_env=False, timeout=DEADLINE_S) as client:
        answer = await client.put(
            f"http://{host}/v2/{path}/manifests/{tag}",
            content=data,
            headers={"Content-Type": media_type},
        )
        answer.raise_for_status()


class Door:
    """A TCP door before a registry: it counts bytes, and may cut, hold or change what passes."""

    def __init__(self, host: str) -> None:
        self._target = host
        self.requests: list[str] = []
        """The first line and the Range of each request."""
        self.cut_after_bytes: list[int] = []
        """For each coming connection: how many bytes of answers pass before it is broken."""
        self.change: Callable[[bytes], bytes] = lambda data: data
        self.silent = False
        """Takes requests and never answers."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> "Door":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def host(self) -> str:
        """host:port of the door."""
        address, port = self._server.sockets[0].getsockname()
        return f"{address}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        limit = self.cut_after_bytes.pop(0) if self.cut_after_bytes else None
        host, _, port = self._target.partition(":")
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forth(reader, inner_writer))
                group.create_task(self._back(inner_reader, writer, limit))
        except* (OSError, Broken):
            pass
        finally:
            for closing in (writer, inner_writer):
                closing.transport.abort()

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_BYTES):
            for request in data.decode("latin-1").split("\r\n\r\n"):
                lines = request.split("\r\n")
                if lines[0]:
                    ranges = [line for line in lines if line.lower().startswith("range:")]
                    self.requests.append(" ".join([lines[0], *ranges]))
            if not self.silent:
                writer.write(data)
                await writer.drain()
        raise Broken

    async def _back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None
    ) -> None:
        while data := await reader.read(_READ_BYTES):
            data = self.change(data)
            if limit is not None:
                data, limit = data[:limit], limit - len(data)
            writer.write(data)
            await writer.drain()
            if limit is not None and limit <= 0:
                raise Broken
        raise Broken


class Broken(Exception):
    """This connection is over."""


class TokenService:
    """What gives out tokens for pulls, signed with a key that the registry trusts."""

    def __init__(self, directory: Path) -> None:
        self.certificate = directory / "token.pem"
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tokens")])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(self._key, hashes.SHA256())
        )
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self._chain = base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()
        self.questions: list[str] = []
        """The first line of each request."""
        self.actions = ["pull"]
        self._server: asyncio.Server

    async def __aenter__(self) -> "TokenService":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    @property
    def host(self) -> str:
        """host:port of the service."""
        address, port = self._server.sockets[0].getsockname()
        return f"{address}:{port}"

    @property
    def configuration(self) -> str:
        """The registry's configuration that trusts this service."""
        return (
            f"auth:\n  token:\n    realm: http://{self.host}/token\n    service: tests\n"
            f"    issuer: tokens\n    rootcertbundle: {self.certificate}\n"
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        question = head.partition("\r\n")[0]
        self.questions.append(question)
        query = httpx2.URL("http://x" + question.split()[1]).params
        kind, _, rest = query["scope"].partition(":")
        path, _, _ = rest.rpartition(":")
        body = json.dumps({"token": self._token(query["service"], kind, path)}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        writer.write(body)
        await writer.drain()
        writer.close()

    def _token(self, audience: str, kind: str, path: str) -> str:
        now = int(datetime.now(UTC).timestamp())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self._chain]}
        claims = {
            "iss": "tokens",
            "sub": "",
            "aud": audience,
            "exp": now + 300,
            "nbf": now - 300,
            "iat": now,
            "jti": "1",
            "access": [{"type": kind, "name": path, "actions": self.actions}],
        }
        signed = b".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        signature = self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return (signed + b"." + _base64(signature)).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
