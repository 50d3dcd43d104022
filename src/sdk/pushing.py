"""Pushes an image into a registry, by the OCI distribution API: blob by blob, and what is there is
not sent again.

Of the registry it knows no more than that API: it logs in where it is asked to, by a token or a
password. A blob is uploaded in chunks; when the connection breaks, it goes on after the last chunk
that arrived, or, where the registry has dropped the whole upload, from the blob's beginning.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..mesh.addresses import is_loopback
from ..mesh.errors import (
    DeadlineExceeded,
    ImageCorrupt,
    PermissionDenied,
    TickmeshError,
    Unavailable,
    invalid,
)
from . import limits
from .layouts import Blob, Document, Layout

Progress = Callable[[int, int], None]

_CHALLENGE = re.compile(r'([a-z]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Registry:
    """Where to push to, and who pushes."""

    address: str
    plain: bool = False
    authority: str = ""
    """PEM of who signed its certificate; "" is the system's own."""
    user: str = ""
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def header(self, name: str) -> str:
        return str(self.headers.get(name, ""))


class _Session:
    """Questions to one registry, with a token for one repository, and for looking into others."""

    def __init__(
        self, registry: Registry, repository: str, others: Sequence[str], until_s: float
    ) -> None:
        self._registry = registry
        self._scopes = [
            ("scope", f"repository:{repository}:pull,push"),
            *(("scope", f"repository:{other}:pull") for other in others),
        ]
        self._until_s = until_s
        self._context = ssl.create_default_context(cadata=registry.authority or None)
        self._connection: http.client.HTTPConnection | None = None
        self._authorization = ""
        self.base = f"{'http' if registry.plain else 'https'}://{registry.address}"

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(
        self, method: str, url: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> _Answer:
        """An answer, after a login where one is wanted. Raises OSError and HTTPException too."""
        for attempt in range(2):
            told = {**(headers or {})}
            if self._authorization:
                told["Authorization"] = self._authorization
            answer = self._once(method, url, body, told)
            if answer.status != http.client.UNAUTHORIZED or attempt:
                return answer
            self._login(answer.header("WWW-Authenticate"))
        return answer

    def _once(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> _Answer:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the image was not pushed in time: push it again to go on")
        where = urllib.parse.urlsplit(urllib.parse.urljoin(self.base + "/", url))
        if f"{where.scheme}://{where.netloc}" != self.base:
            raise self.refused(f"it sends on to {where.scheme}://{where.netloc}")
        if self._connection is None:
            timeout_s = min(left_s, limits.PUSH_SILENCE_S)
            self._connection = _connect(where.scheme, where.netloc, timeout_s, self._context)
        path = f"{where.path}?{where.query}" if where.query else where.path
        try:
            self._connection.request(method, path, body or None, headers)
            response = self._connection.getresponse()
            data = response.read(limits.MANIFEST_BYTES_MAX)
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if response.status >= http.client.INTERNAL_SERVER_ERROR:  # asking again may help
            raise http.client.HTTPException(f"it answers {response.status}")
        if not response.isclosed():  # it says more than anybody reads
            self.close()
        return _Answer(response.status, response.headers, data)

    def _login(self, challenge: str) -> None:
        scheme, _, rest = challenge.partition(" ")
        registry = self._registry
        basic = ""
        if registry.secret:
            pair = f"{registry.user}:{registry.secret}".encode()
            basic = f"Basic {base64.b64encode(pair).decode()}"
        if scheme.lower() == "basic" and basic:
            self._authorization = basic
            return
        values = dict(_CHALLENGE.findall(rest))
        if scheme.lower() != "bearer" or not values.get("realm"):
            raise PermissionDenied(
                f"the registry at {registry.address} wants a login: an API key is needed"
            )
        query = urllib.parse.urlencode([("service", values.get("service", "")), *self._scopes])
        realm = urllib.parse.urlsplit(values["realm"])
        if realm.scheme != "https" and not registry.plain:
            raise self.refused(f"its tokens are given out at {values['realm']}, without TLS")
        connection = _connect(realm.scheme, realm.netloc, limits.PUSH_SILENCE_S, self._context)
        try:
            headers = {"Authorization": basic} if basic else {}
            connection.request("GET", f"{realm.path}?{query}", headers=headers)
            response = connection.getresponse()
            data = response.read(limits.MANIFEST_BYTES_MAX)
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise PermissionDenied(
                f"the registry at {registry.address} does not accept the API key of "
                f"{registry.user or 'nobody'} ({response.status})"
            )
        try:
            told = json.loads(data)
            self._authorization = f"Bearer {told.get('token') or told['access_token']}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.refused("it gives out something else than a token") from error

    def refused(self, why: str) -> TickmeshError:
        return Unavailable(f"the registry at {self._registry.address}: {why}")


def push(
    layout: Layout,
    registry: Registry,
    repository: str,
    tag: str,
    *,
    deadline_s: float,
    others: Sequence[str] = (),
    progress: Progress | None = None,
) -> str:
    """Push an image; blocks. Answers the digest that the tag stands for now.

    others: repositories of the same registry that may have some of its blobs.
    progress: called with (bytes that the registry has, bytes in all).
    Raises ImageCorrupt, ImageTooLarge, PermissionDenied, Unavailable, DeadlineExceeded.
    """
    if registry.plain and registry.secret and not is_loopback(registry.address.rpartition(":")[0]):
        raise invalid(
            "api_key",
            f"would be sent to {registry.address} in plain text: the registry needs a certificate",
        )
    plan = layout.plan()
    assert plan.top is not None, "a plan has a top"
    others = [other for other in others if other != repository][: limits.PUSH_MOUNTS_MAX]
    session = _Session(registry, repository, others, time.monotonic() + deadline_s)
    try:
        done = 0
        for blob in plan.blobs.values():
            _Upload(session, layout, repository, others, blob).run(
                lambda sent, done=done: progress and progress(done + sent, plan.size)  # type: ignore[misc]
            )
            done += blob.size
            if progress is not None:
                progress(done, plan.size)
        for document in plan.manifests:
            _put(session, repository, document.digest, document)
        _put(session, repository, tag, plan.top)
    finally:
        session.close()
    return plan.top.digest


class _Upload:
    """One blob's way into a registry."""

    def __init__(
        self,
        session: _Session,
        layout: Layout,
        repository: str,
        others: Sequence[str],
        blob: Blob,
    ) -> None:
        self._session = session
        self._layout = layout
        self._others = others
        self._path = f"/v2/{repository}/blobs"
        self._blob = blob
        self._where = ""
        """The address of the upload that is under way."""
        self._offset = 0
        self._hash = hashlib.sha256()

    def run(self, sent: Callable[[int], object]) -> None:
        """Has the blob in the registry: it is there, or it is uploaded."""
        failures = 0
        while True:
            before = self._offset
            try:
                if self._offset or not (self._is_there(self._path) or self._is_mounted()):
                    self._send(sent)
                return
            except (OSError, http.client.HTTPException) as error:
                failures = failures + 1 if self._offset <= before else 1
                if failures >= limits.PUSH_ATTEMPTS_MAX:
                    detail = str(error) or type(error).__name__
                    raise self._session.refused(f"blob {self._blob.digest}: {detail}") from error
                time.sleep(limits.PUSH_BACKOFF_S * 2.0 ** (failures - 1))

    def _is_there(self, path: str) -> bool:
        answer = self._session.ask("HEAD", f"{path}/{self._blob.digest}")
        if answer.status in (http.client.OK, http.client.NOT_FOUND):
            return answer.status == http.client.OK
        raise self._unexpected(answer)

    def _is_mounted(self) -> bool:
        """Whether another repository has it, and gave it to this one."""
        if self._blob.size < limits.PUSH_MOUNT_BYTES_MIN:
            return False
        for other in self._others:
            if self._is_there(f"/v2/{other}/blobs"):
                query = urllib.parse.urlencode({"mount": self._blob.digest, "from": other})
                answer = self._session.ask("POST", f"{self._path}/uploads/?{query}")
                if answer.status == http.client.ACCEPTED:  # it would not, and begins an upload
                    self._session.ask("DELETE", answer.header("Location"))
                return answer.status == http.client.CREATED
        return False

    def _send(self, sent: Callable[[int], object]) -> None:
        self._find_place()
        chunk = bytearray()
        for piece in self._layout.pieces(self._blob, self._offset):
            chunk += piece
            if len(chunk) >= limits.PUSH_CHUNK_BYTES:
                self._patch(bytes(chunk))
                chunk.clear()
                sent(self._offset)
        if chunk:
            self._patch(bytes(chunk))
            sent(self._offset)
        digest = f"sha256:{self._hash.hexdigest()}"
        if digest != self._blob.digest:
            self._session.ask("DELETE", self._where)
            raise ImageCorrupt(f"blob {self._blob.digest} does not match its digest: {digest}")
        separator = "&" if "?" in self._where else "?"
        answer = self._session.ask("PUT", f"{self._where}{separator}digest={digest}")
        if answer.status != http.client.CREATED:
            self._restart()
            raise self._unexpected(answer)

    def _find_place(self) -> None:
        """Where to send to, and from which byte on."""
        if self._where:
            answer = self._session.ask("GET", self._where)
            _, _, last = answer.header("Range").partition("-")
            if answer.status == http.client.NO_CONTENT and last.isdigit():
                there = int(last) + 1 if int(last) else 0
                if there == self._offset:  # the last chunk that was acknowledged is the last there
                    self._where = answer.header("Location") or self._where
                    return
            self._restart()
        answer = self._session.ask("POST", f"{self._path}/uploads/")
        if answer.status != http.client.ACCEPTED:
            raise self._unexpected(answer)
        self._where = answer.header("Location")

    def _restart(self) -> None:
        self._where, self._offset, self._hash = "", 0, hashlib.sha256()

    def _patch(self, chunk: bytes) -> None:
        answer = self._session.ask(
            "PATCH",
            self._where,
            chunk,
            {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{self._offset}-{self._offset + len(chunk) - 1}",
            },
        )
        if answer.status not in (http.client.ACCEPTED, http.client.NO_CONTENT):
            raise self._unexpected(answer)
        self._hash.update(chunk)
        self._offset += len(chunk)
        self._where = answer.header("Location") or self._where

    def _unexpected(self, answer: _Answer) -> TickmeshError:
        return _unexpected(self._session, f"blob {self._blob.digest}", answer)


def _put(session: _Session, repository: str, name: str, document: Document) -> None:
    failures = 0
    while True:
        try:
            answer = session.ask(
                "PUT",
                f"/v2/{repository}/manifests/{name}",
                document.data,
                {"Content-Type": document.media_type},
            )
            break
        except (OSError, http.client.HTTPException) as error:
            failures += 1
            if failures >= limits.PUSH_ATTEMPTS_MAX:
                raise session.refused(f"manifest {name}: {error}") from error
            time.sleep(limits.PUSH_BACKOFF_S * 2.0 ** (failures - 1))
    if answer.status != http.client.CREATED:
        raise _unexpected(session, f"manifest {name}", answer)


def _unexpected(session: _Session, what: str, answer: _Answer) -> TickmeshError:
    told = answer.body[:200].decode("utf-8", "replace").strip()
    if answer.status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        return PermissionDenied(f"{what}: this API key may not push here")
    return session.refused(f"{what}: it answers {answer.status} {told}")


def _connect(
    scheme: str, place: str, timeout_s: float, context: ssl.SSLContext
) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(place, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(place, timeout=timeout_s)
