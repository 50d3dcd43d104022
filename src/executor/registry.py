"""Images from any OCI registry, by the distribution API, with or without a login.

An ImageSource (containerd/images.py): it fetches and verifies, and knows nothing of containerd.
What a registry says is not trusted: sizes are the manifest's, digests are computed, redirects are
few, and no address is spoken to that is not public (see CheckedTransport).
"""

import asyncio
import hashlib
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import msgspec

from ..mesh.config import OwnRegistry
from . import limits
from .errors import ImageError, ImageReason
from .layers import check_digest
from .manifest import INDEXES, MANIFESTS, UNREADABLE, Descriptor, sha256
from .references import Login, Reference

_CHALLENGE = re.compile(r'([a-z]+)="([^"]*)"')
_ACCEPT = ", ".join((*MANIFESTS, *INDEXES))
_SCHEME_PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_USER_AGENT = "tickmesh"
_UNUSABLE = (httpx2.TooManyRedirects, httpx2.InvalidURL, UnicodeError)  # an address or a token

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


def is_public(address: Address) -> bool:
    """Whether an address is on the Internet, and nobody's own network, host or metadata service."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Sends requests to public addresses only, by TLS; to `insecure` registries plainly.

    The address that was checked is the one that is connected to, whatever its name means a moment
    later. Every redirect passes here too.
    """

    def __init__(
        self,
        insecure: frozenset[str],
        permitted: Callable[[Address], bool] = is_public,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """`insecure`: host:port each. `context`: whose certificates are believed."""
        self._insecure = insecure
        self._permitted = permitted
        self._context = context or ssl.create_default_context()
        # One a host: a connection must not be used again for another name at the same address.
        self._inner: dict[str, httpx2.AsyncHTTPTransport] = {}

    async def aclose(self) -> None:
        """Closes every connection."""
        for inner in self._inner.values():
            await inner.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises ImageError(REGISTRY_DENIED) for a host that must not be spoken to."""
        url = request.url
        port = url.port or _SCHEME_PORTS.get(url.scheme, 0)
        authority = f"{url.host}:{port}"
        inner = self._inner.get(authority)
        if inner is None:
            inner = httpx2.AsyncHTTPTransport(verify=self._context, trust_env=False)
            self._inner[authority] = inner
        if authority in self._insecure:
            return await inner.handle_async_request(request)
        if url.scheme != "https":
            raise ImageError(
                ImageReason.REGISTRY_DENIED, f"registry {authority} is spoken to by https only"
            )
        trouble: httpx2.TransportError | None = None
        for address in await self._addresses(url.host, port):
            checked = httpx2.Request(
                request.method,
                url.copy_with(host=str(address)),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": url.host},
            )
            try:
                return await inner.handle_async_request(checked)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                trouble = error  # nothing was sent: its next address may answer
        assert trouble is not None, "a name has at least one address"
        raise trouble

    async def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            async with asyncio.timeout(limits.REGISTRY_CONNECT_DEADLINE_S):
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, port, type=socket.SOCK_STREAM
                )
        except (OSError, UnicodeError, TimeoutError) as error:
            raise httpx2.ConnectError(f"the host's name cannot be resolved ({error})") from error
        addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        for address in addresses:
            if not self._permitted(address):
                raise ImageError(
                    ImageReason.REGISTRY_DENIED,
                    f"registry {host} has the address {address}, which is not public",
                )
        return addresses


class RegistrySource:
    """An ImageSource: one image of one registry. Use it as an asynchronous context."""

    def __init__(
        self,
        reference: Reference,
        transport: httpx2.AsyncBaseTransport,
        insecure: frozenset[str],
        read_deadline_s: float = limits.REGISTRY_READ_DEADLINE_S,
        login: Callable[[], Login] | None = None,
    ) -> None:
        """`insecure`: host:port of registries that speak plain HTTP. `login`: asked, in a thread,
        when the registry wants one; None: what it gives to anybody."""
        self._reference = reference
        host, _, port = reference.host.partition(":")
        plain = f"{host}:{port or _SCHEME_PORTS['http']}" in insecure
        self._base = f"{'http' if plain else 'https'}://{reference.host}/v2/{reference.path}"
        self._authorization = ""
        self._login = login
        self._client = httpx2.AsyncClient(
            transport=transport,
            timeout=httpx2.Timeout(read_deadline_s, connect=limits.REGISTRY_CONNECT_DEADLINE_S),
            follow_redirects=True,
            max_redirects=limits.REGISTRY_REDIRECTS_MAX,
            trust_env=False,
            # What a digest stands for is what is stored: no compression by the way.
            headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"},
        )

    async def __aenter__(self) -> "RegistrySource":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def root(self) -> tuple[str, str, bytes]:
        """Media type, digest and bytes of the index or manifest that the reference names."""
        wanted = self._reference.digest
        media_type, data = await self._manifest(wanted or self._reference.tag)
        if wanted:
            check_digest("manifest", wanted, hashlib.sha256(data).hexdigest())
        return media_type, sha256(data), data

    async def blob(self, descriptor: Descriptor, bytes_max: int) -> bytes:
        """A small blob, or a manifest of an index; verified."""
        if descriptor.size > bytes_max:
            raise self._error(
                ImageReason.TOO_LARGE,
                f"{descriptor.digest} has {descriptor.size} bytes, at most {bytes_max}",
            )
        if descriptor.media_type in (*MANIFESTS, *INDEXES):
            _, data = await self._manifest(descriptor.digest)
        else:
            url = f"{self._base}/blobs/{descriptor.digest}"
            _, data = await self._whole(url, {}, bytes_max, f"blob {descriptor.digest}")
        check_digest("blob", descriptor.digest, hashlib.sha256(data).hexdigest())
        return data

    async def chunks(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """A layer, in pieces. A broken transfer goes on where it broke."""
        url, what = f"{self._base}/blobs/{descriptor.digest}", f"layer {descriptor.digest}"
        offset, failures = 0, 0
        while offset < descriptor.size:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            try:
                async with self._answer(url, headers, what) as response:
                    skip = self._skipped(response, offset, what)
                    async for piece in response.aiter_raw(limits.COPY_CHUNK_BYTES):
                        rest = piece[skip:]
                        skip -= len(piece) - len(rest)
                        if rest:
                            offset += len(rest)
                            failures = 0
                            yield rest
            except httpx2.TransportError as error:
                failures += 1
                if failures >= limits.REGISTRY_ATTEMPTS_MAX:
                    raise self._unavailable(what, error) from error
                await asyncio.sleep(_backoff_s(failures))
                continue
            if offset < descriptor.size:  # it ended early, and thinks that this was all
                raise self._error(
                    ImageReason.CORRUPT,
                    f"{what} has {offset} bytes, its manifest says {descriptor.size}",
                )

    def _skipped(self, response: httpx2.Response, offset: int, what: str) -> int:
        """How much of an answer is known already: a registry need not understand ranges."""
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            return offset
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        if unit != "bytes" or rest.partition("-")[0] != str(offset):
            raise self._error(
                ImageReason.REGISTRY_UNAVAILABLE, f"{what}: another range came than was asked for"
            )
        return 0

    async def _manifest(self, name: str) -> tuple[str, bytes]:
        url = f"{self._base}/manifests/{name}"
        return await self._whole(
            url, {"Accept": _ACCEPT}, limits.MANIFEST_BYTES_MAX, f"manifest {name}"
        )

    async def _whole(
        self, url: str, headers: dict[str, str], bytes_max: int, what: str
    ) -> tuple[str, bytes]:
        """A small answer's media type and bytes, asked for again when the transfer breaks."""
        failures = 0
        while True:
            try:
                async with self._answer(url, headers, what) as response:
                    data = await self._limited(response, bytes_max, what)
                    media_type, _, _ = response.headers.get("Content-Type", "").partition(";")
                    return media_type.strip(), data
            except httpx2.TransportError as error:
                failures += 1
                if failures >= limits.REGISTRY_ATTEMPTS_MAX:
                    raise self._unavailable(what, error) from error
                await asyncio.sleep(_backoff_s(failures))

    async def _limited(self, response: httpx2.Response, bytes_max: int, what: str) -> bytes:
        data = bytearray()
        async for piece in response.aiter_raw(limits.PULL_CHUNK_BYTES):
            data += piece
            if len(data) > bytes_max:
                raise self._error(ImageReason.CORRUPT, f"{what} has more than {bytes_max} bytes")
        return bytes(data)

    @asynccontextmanager
    async def _answer(
        self, url: str, headers: dict[str, str], what: str
    ) -> AsyncIterator[httpx2.Response]:
        """A successful answer whose body is not read yet; gets a token where one is wanted."""
        asked = False
        while True:
            if self._authorization:
                headers = {**headers, "Authorization": self._authorization}
            try:
                async with self._client.stream("GET", url, headers=headers) as response:
                    challenge = response.headers.get("WWW-Authenticate", "")
                    if response.status_code != httpx2.codes.UNAUTHORIZED or asked or not challenge:
                        self._check(response, what)
                        yield response
                        return
            except _UNUSABLE as error:
                raise self._unavailable(what, error) from error
            asked = True
            await self._authorize(challenge, what)

    def _check(self, response: httpx2.Response, what: str) -> None:
        """Raises ImageError, or TransportError when asking again may help."""
        status = response.status_code
        if status in (httpx2.codes.OK, httpx2.codes.PARTIAL_CONTENT):
            return
        if status == httpx2.codes.NOT_FOUND:
            raise self._error(ImageReason.NOT_FOUND, f"the registry has no {what}")
        if status in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
            raise self._error(
                ImageReason.REGISTRY_DENIED,
                f"{what}: the registry answers {status}: the image is not there, or not "
                f"{'for this login' if self._login else 'public'}",
            )
        if status >= httpx2.codes.INTERNAL_SERVER_ERROR or status == httpx2.codes.TOO_MANY_REQUESTS:
            raise httpx2.ReadError(f"the registry answers {status}")
        raise self._error(
            ImageReason.REGISTRY_UNAVAILABLE, f"{what}: the registry answers {status}"
        )

    async def _authorize(self, challenge: str, what: str) -> None:
        """Logs in as the registry's challenge says: by itself, or for a token."""
        scheme, _, rest = challenge.partition(" ")
        values = dict(_CHALLENGE.findall(rest))
        headers = {}
        if self._login is not None:
            headers["Authorization"] = (await asyncio.to_thread(self._login)).header
        if scheme.lower() == "basic" and headers:
            self._authorization = headers["Authorization"]
            return
        if scheme.lower() != "bearer" or "realm" not in values:
            raise self._error(
                ImageReason.REGISTRY_DENIED, f"{what}: the registry wants a login ({scheme[:32]!r})"
            )
        scope = values.get("scope", f"repository:{self._reference.path}:pull")
        query = {"service": values.get("service", ""), "scope": scope}
        try:
            async with self._client.stream(
                "GET", values["realm"], params=query, headers=headers
            ) as response:
                if response.status_code != httpx2.codes.OK:
                    raise self._error(
                        ImageReason.REGISTRY_DENIED,
                        f"{what}: the registry's token service answers {response.status_code}",
                    )
                data = await self._limited(response, limits.REGISTRY_TOKEN_BYTES_MAX, "the token")
        except _UNUSABLE as error:
            raise self._unavailable(what, error) from error
        try:
            token = msgspec.json.decode(data, type=_Token)
        except UNREADABLE as error:
            raise self._error(
                ImageReason.REGISTRY_UNAVAILABLE, f"{what}: the registry's token: {error}"
            ) from error
        self._authorization = f"Bearer {token.token or token.access_token}"

    def _unavailable(self, what: str, error: Exception) -> ImageError:
        detail = str(error) or type(error).__name__
        return self._error(ImageReason.REGISTRY_UNAVAILABLE, f"{what}: {detail}")

    def _error(self, reason: ImageReason, message: str) -> ImageError:
        place = f"{self._reference.host}/{self._reference.path}"
        return ImageError(reason, f"image {place}: {message}")


def public_source(
    wanted: Reference, insecure: frozenset[str], login: Login | None
) -> RegistrySource:
    """Anybody's registry: see CheckedTransport."""
    return RegistrySource(
        wanted,
        CheckedTransport(insecure),
        insecure,
        login=None if login is None else lambda: login,
    )


def own_source(own: OwnRegistry, wanted: Reference, login: Callable[[], Login]) -> RegistrySource:
    """The mesh's registry: its address is the operator's word, and may be private."""
    context = ssl.create_default_context()
    if own.authority:
        context.load_verify_locations(Path(own.authority))
    return RegistrySource(
        wanted,
        httpx2.AsyncHTTPTransport(verify=context, trust_env=False),
        frozenset([own.address]) if own.plain else frozenset(),
        login=login,
    )


def _backoff_s(failures: int) -> float:
    return limits.REGISTRY_BACKOFF_S * 2.0 ** (failures - 1)
