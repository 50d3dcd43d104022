"""Pulls from a real registry, through doors that break, change and hold what passes."""

import asyncio
import io
import json
import random
import ssl
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from tickmesh.executor import archive
from tickmesh.executor.containerd.images import LABEL_DIFF_ID, LABEL_UNPACKED
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.errors import ImageError, ImageReason
from tickmesh.executor.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, sha256
from tickmesh.executor.references import parse
from tickmesh.executor.registry import CheckedTransport, RegistrySource
from tickmesh.executor.sandbox import Work

from .registries import Door, TokenService, push, push_blob, push_manifest, registry

pytestmark = pytest.mark.integration

LAYER_BYTES = 8 * 1024 * 1024


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[str]:
    async with registry(tmp_path / "registry") as address:
        yield address


@pytest.fixture
async def door(host: str) -> AsyncIterator[Door]:
    async with Door(host) as opened:
        yield opened


@pytest.fixture
async def puller(tmp_path: Path, door: Door) -> AsyncIterator[ContainerdRuntime]:
    """A runtime that may speak to the door, plainly, and to no other private address."""
    runtime = ContainerdRuntime("pull", tmp_path / "executor", insecure_registries=(door.host,))
    await runtime.start()
    yield runtime
    await runtime.close()


def big_archive(path: Path) -> Path:
    """An image whose one layer does not compress."""
    data = random.Random(7).randbytes(LAYER_BYTES)
    process = archive.Process(entrypoint=("/stamp",))
    archive.files_image(path, {"/data": archive.File(data)}, process)
    return path


async def refused(runtime: ContainerdRuntime, reference: str) -> ImageError:
    """Why a pull fails; nothing of it may stay."""
    with pytest.raises(ImageError) as caught:
        await runtime.ensure_image(reference)
    assert await runtime.list_images() == []
    client = runtime._client
    assert await client.list_ingests() == []
    assert await client.list_leases() == []
    return caught.value


async def test_a_tag_and_a_digest_are_pulled_and_run(
    puller: ContainerdRuntime, host: str, door: Door, stamp_archive: Path
) -> None:
    digest = await push(host, "team/stamp", "1", stamp_archive)
    tagged = await puller.ensure_image(f"{door.host}/team/stamp:1")
    assert tagged.digest == digest
    exact = await puller.ensure_image(f"{door.host}/team/stamp@{digest}")
    assert exact.digest == digest
    assert sum("/blobs/" in request for request in door.requests) == 3  # config twice, layer once
    sandbox = await puller.prepare(Work("pulled", "tests", f"{door.host}/team/stamp@{digest}"))
    await sandbox.start()
    assert (await sandbox.wait()).exit_code == 0
    await sandbox.delete()


async def test_what_is_here_needs_no_network(
    tmp_path: Path, puller: ContainerdRuntime, host: str, door: Door, stamp_archive: Path
) -> None:
    digest = await push(host, "team/stamp", "1", stamp_archive)
    reference = f"{door.host}/team/stamp@{digest}"
    await puller.ensure_image(reference)
    door.requests.clear()
    puller._images.forget()  # as after a restart
    assert (await puller.ensure_image(reference)).digest == digest
    assert door.requests == []


async def test_many_who_ask_at_once_share_one_pull(
    puller: ContainerdRuntime, host: str, door: Door, stamp_archive: Path
) -> None:
    await push(host, "team/stamp", "1", stamp_archive)
    reference = f"{door.host}/team/stamp:1"
    await asyncio.gather(*(puller.ensure_image(reference) for _ in range(20)))
    assert sum("/manifests/" in request for request in door.requests) == 1


async def test_a_registry_that_hangs_holds_up_no_other(
    tmp_path: Path, host: str, door: Door, stamp_archive: Path
) -> None:
    await push(host, "team/stamp", "1", stamp_archive)
    door.silent = True
    insecure = (door.host, host)
    runtime = ContainerdRuntime("hang", tmp_path / "executor", insecure_registries=insecure)
    await runtime.start()
    hanging = [
        asyncio.create_task(runtime.ensure_image(f"{door.host}/team/stamp:{tag}"))
        for tag in range(20)
    ]
    while not door.requests:
        await asyncio.wait(hanging, timeout=0.01)
    assert (await runtime.ensure_image(f"{host}/team/stamp:1")).size_bytes > 0
    assert not any(task.done() for task in hanging)
    await runtime.close()
    await asyncio.gather(*hanging, return_exceptions=True)
    assert len(door.requests) <= 2


async def test_an_index_gives_the_image_for_this_machine(
    puller: ContainerdRuntime, host: str, door: Door, stamp_archive: Path
) -> None:
    digest = await push(host, "team/stamp", "1", stamp_archive)
    entries = [
        {
            "digest": digest,
            "size": 1,
            "mediaType": OCI_MANIFEST,
            "platform": {"os": os, "architecture": machine},
        }
        for os, machine in (("windows", "amd64"), ("linux", "amd64"), ("linux", "arm64"))
    ]
    for entry in entries:
        entry["size"] = 400
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    await push_manifest(host, "team/stamp", "all", index, OCI_INDEX)
    assert (await puller.ensure_image(f"{door.host}/team/stamp:all")).digest == digest
    only = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries[:1]}
    ).encode()
    await push_manifest(host, "team/stamp", "other", only, OCI_INDEX)
    with pytest.raises(ImageError, match="only for windows/amd64") as caught:
        await puller.ensure_image(f"{door.host}/team/stamp:other")
    assert caught.value.reason is ImageReason.UNSUPPORTED


async def test_an_image_that_is_not_there_is_not_found(
    puller: ContainerdRuntime, door: Door
) -> None:
    error = await refused(puller, f"{door.host}/team/none:1")
    assert error.reason is ImageReason.NOT_FOUND
    assert "manifest 1" in str(error) and "team/none" in str(error)


async def test_an_imported_name_that_is_not_there_asks_nobody(
    puller: ContainerdRuntime, door: Door
) -> None:
    for reference in ("localhost/app:1", "tests/app:1"):
        assert (await refused(puller, reference)).reason is ImageReason.NOT_FOUND
    assert door.requests == []


async def test_a_broken_transfer_goes_on_where_it_broke(
    tmp_path: Path, puller: ContainerdRuntime, host: str, door: Door
) -> None:
    await push(host, "team/big", "1", big_archive(tmp_path / "big.tar"))
    door.cut_after_bytes = [3 * 1024 * 1024, 2 * 1024 * 1024]
    await puller.ensure_image(f"{door.host}/team/big:1")
    resumed = [request for request in door.requests if "bytes=" in request]
    assert len(resumed) == 2
    offsets = [int(request.partition("bytes=")[2].rstrip("-")) for request in resumed]
    assert 2 * 1024 * 1024 <= offsets[0] < offsets[1] < 5 * 1024 * 1024


async def test_a_transfer_that_always_breaks_is_given_up(
    tmp_path: Path, puller: ContainerdRuntime, host: str, door: Door
) -> None:
    await push(host, "team/big", "1", big_archive(tmp_path / "big.tar"))
    door.cut_after_bytes = [100_000] * 20
    error = await refused(puller, f"{door.host}/team/big:1")
    assert error.reason is ImageReason.REGISTRY_UNAVAILABLE
    assert "layer sha256:" in str(error)


@pytest.mark.parametrize(
    ("part", "before", "after"),
    [
        ("manifest", b'"schemaVersion":2', b'"schemaVersion":3'),
        ("blob", b'"architecture":"', b'"Architecture":"'),
    ],
)
async def test_a_changed_answer_does_not_match_its_digest(
    puller: ContainerdRuntime, host: str, door: Door, stamp_archive: Path,
    part: str, before: bytes, after: bytes,
) -> None:  # fmt: skip
    digest = await push(host, "team/stamp", "1", stamp_archive)
    door.change = lambda data: data.replace(before, after)
    error = await refused(puller, f"{door.host}/team/stamp@{digest}")
    assert error.reason is ImageReason.CORRUPT
    assert f"{part} sha256:" in str(error) and "does not match its digest" in str(error)


async def test_a_changed_layer_does_not_match_its_digest(
    tmp_path: Path, puller: ContainerdRuntime, host: str, door: Door
) -> None:
    await push(host, "team/big", "1", big_archive(tmp_path / "big.tar"))
    middle = random.Random(7).randbytes(LAYER_BYTES)[LAYER_BYTES // 2 :][:64]
    door.change = lambda data: data.replace(middle, bytes(64))
    error = await refused(puller, f"{door.host}/team/big:1")
    assert error.reason is ImageReason.CORRUPT
    assert "layer sha256:" in str(error)


async def test_too_large_is_known_from_the_manifest_before_a_layer_moves(
    puller: ContainerdRuntime, host: str, door: Door
) -> None:
    config, blob = b'{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}', b"small"
    for data in (config, blob):
        await push_blob(host, "team/huge", sha256(data), data)
    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": sha256(config), "size": len(config)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": sha256(blob), "size": 1 << 31}],
    }).encode()  # fmt: skip
    await push_manifest(host, "team/huge", "1", manifest, OCI_MANIFEST)
    error = await refused(puller, f"{door.host}/team/huge:1")
    assert error.reason is ImageReason.TOO_LARGE
    assert str(1 << 31) in str(error) or "bytes (compressed), at most 1073741824" in str(error)
    assert not any("/blobs/" in request for request in door.requests)


async def test_a_registry_that_hangs_is_given_up(door: Door) -> None:
    door.silent = True
    reference = parse(f"{door.host}/team/stamp:1")
    assert reference is not None
    insecure = frozenset([door.host])
    async with RegistrySource(reference, CheckedTransport(insecure), insecure, 0.1) as source:
        with pytest.raises(ImageError) as caught:
            await source.root()
    assert caught.value.reason is ImageReason.REGISTRY_UNAVAILABLE
    assert "ReadTimeout" in str(caught.value)


async def test_a_registry_that_is_down_is_unavailable(
    puller: ContainerdRuntime, door: Door
) -> None:
    host = door.host
    await door.__aexit__()
    error = await refused(puller, f"{host}/team/stamp:1")
    assert error.reason is ImageReason.REGISTRY_UNAVAILABLE
    assert "connection" in str(error).lower()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:5000", "169.254.169.254:80", "10.1.2.3:443", "localhost:5000", "0.0.0.0:443"],
)
async def test_a_private_address_is_denied(
    puller: ContainerdRuntime, door: Door, host: str
) -> None:
    error = await refused(puller, f"{host}/team/stamp:1")
    assert error.reason is ImageReason.REGISTRY_DENIED
    assert "not public" in str(error)
    assert door.requests == []


async def test_a_redirect_to_a_private_address_is_denied(
    puller: ContainerdRuntime, host: str, door: Door, stamp_archive: Path
) -> None:
    await push(host, "team/stamp", "1", stamp_archive)
    location = f"http://{host}/v2/team/stamp/manifests/1"

    def redirected(data: bytes) -> bytes:
        head = (
            f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        )
        return head.encode()

    door.change = redirected
    error = await refused(puller, f"{door.host}/team/stamp:1")
    assert error.reason is ImageReason.REGISTRY_DENIED
    assert "https only" in str(error)


async def test_redirects_without_end_are_given_up(
    puller: ContainerdRuntime, host: str, door: Door
) -> None:
    location = f"http://{door.host}/v2/team/stamp/manifests/1"
    door.change = lambda data: (
        f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    ).encode()
    error = await refused(puller, f"{door.host}/team/stamp:1")
    assert error.reason is ImageReason.REGISTRY_UNAVAILABLE
    assert len(door.requests) == 6


async def test_a_blob_that_says_one_size_and_has_another_is_corrupt(host: str) -> None:
    data = b"0123456789"
    await push_blob(host, "team/x", sha256(data), data)
    reference = parse(f"{host}/team/x:1")
    assert reference is not None
    insecure = frozenset([host])
    async with RegistrySource(reference, CheckedTransport(insecure), insecure) as source:
        with pytest.raises(ImageError, match="has 10 bytes, its manifest says 11"):
            async for _ in source.chunks(Descriptor(digest=sha256(data), size=11)):
                pass


async def test_a_public_image_behind_a_token_service_is_pulled(
    tmp_path: Path, stamp_archive: Path
) -> None:
    async with registry(tmp_path / "registry") as host:
        digest = await push(host, "team/stamp", "1", stamp_archive)
    async with (
        TokenService(tmp_path) as tokens,
        registry(tmp_path / "registry", tokens.configuration) as host,
    ):
        insecure = (host, tokens.host)
        runtime = ContainerdRuntime("token", tmp_path / "executor", insecure_registries=insecure)
        await runtime.start()
        try:
            image = await runtime.ensure_image(f"{host}/team/stamp:1")
            assert image.digest == digest
            assert len(tokens.questions) == 1  # one token for manifest, configuration and layer
            assert "service=tests" in tokens.questions[0]
            assert "scope=repository%3Ateam%2Fstamp%3Apull" in tokens.questions[0]
            tokens.actions = []
            with pytest.raises(ImageError, match="not there, or not public") as caught:
                await runtime.ensure_image(f"{host}/team/private:1")
            assert caught.value.reason is ImageReason.REGISTRY_DENIED
        finally:
            await runtime.close()


async def test_a_token_service_at_a_private_address_is_denied(tmp_path: Path) -> None:
    async with (
        TokenService(tmp_path) as tokens,
        registry(tmp_path / "registry", tokens.configuration) as host,
    ):
        reference = parse(f"{host}/team/stamp:1")
        assert reference is not None
        insecure = frozenset([host])
        async with RegistrySource(reference, CheckedTransport(insecure), insecure) as source:
            with pytest.raises(ImageError, match="https only") as caught:
                await source.root()
        assert caught.value.reason is ImageReason.REGISTRY_DENIED
        assert tokens.questions == []


@pytest.mark.parametrize(("certified", "trusted"), [(True, True), (False, True), (True, False)])
async def test_a_registry_must_prove_its_name(certified: bool, trusted: bool) -> None:
    """By TLS, for the name in the reference, although its checked address is connected to."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    name = "localhost" if certified else "another.example"
    authority.issue_cert(name).configure_cert(context)
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    believed = ssl.create_default_context()
    if trusted:
        authority.configure_trust(believed)
    transport = CheckedTransport(frozenset(), lambda address: address.is_loopback, believed)
    reference = parse(f"localhost:{port}/team/stamp:1")
    assert reference is not None
    async with RegistrySource(reference, transport, frozenset()) as source:
        if certified and trusted:
            media_type, digest, data = await source.root()
            assert (media_type, digest, data) == (OCI_MANIFEST, sha256(b"{}"), b"{}")
            assert f"Host: localhost:{port}".encode() in asked[0]
        else:
            with pytest.raises(ImageError, match=r"(?i)certificate") as caught:
                await source.root()
            assert caught.value.reason is ImageReason.REGISTRY_UNAVAILABLE
            assert asked == []
    server.close()
    await server.wait_closed()


PLAIN = "application/vnd.oci.image.layer.v1.tar"


def layer_with(number: int) -> bytes:
    """A layer with one file of its own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        member = tarfile.TarInfo(f"file{number}")
        member.size = 100_000
        layer.addfile(member, io.BytesIO(random.Random(number).randbytes(member.size)))
    return buffer.getvalue()


async def push_layers(host: str, name: str, blobs: list[bytes], diff_ids: list[str]) -> None:
    """Push team/NAME:1, whose configuration says what its layers unpack to."""
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    for data in (config, *blobs):
        await push_blob(host, f"team/{name}", sha256(data), data)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "x", "digest": sha256(config), "size": len(config)},
        "layers": [{"mediaType": PLAIN, "digest": sha256(b), "size": len(b)} for b in blobs],
    }
    await push_manifest(host, f"team/{name}", "1", json.dumps(manifest).encode(), OCI_MANIFEST)


async def test_whose_configuration_says_what_another_image_unpacks_to_does_not_get_that(
    puller: ContainerdRuntime, host: str, door: Door
) -> None:
    """Its own layer is here already, and so are the other's, unpacked under the same names."""
    ours, theirs = layer_with(1), layer_with(2)
    await push_layers(host, "theirs", [theirs], [sha256(theirs)])
    await push_layers(host, "ours", [ours], [sha256(ours)])
    for name in ("theirs", "ours"):
        await puller.ensure_image(f"{door.host}/team/{name}:1")
    await push_layers(host, "wrong", [ours], [sha256(theirs)])
    with pytest.raises(ImageError, match="the image's configuration says") as caught:
        await puller.ensure_image(f"{door.host}/team/wrong:1")
    assert caught.value.reason is ImageReason.CORRUPT


async def test_a_layer_that_was_written_and_not_labelled_is_looked_at_anew(
    puller: ContainerdRuntime, host: str, door: Door
) -> None:
    """As a process leaves it that ends between the two."""
    layer = layer_with(1)
    await push_layers(host, "cut", [layer], [sha256(layer)])

    async def whole() -> AsyncIterator[bytes]:
        yield layer

    client = puller._client
    await client.write_content("before", sha256(layer), len(layer), whole(), 10.0)
    await puller.ensure_image(f"{door.host}/team/cut:1")
    labels = await client.content_labels(sha256(layer))
    assert labels[LABEL_UNPACKED] == str(len(layer))
    assert labels[LABEL_DIFF_ID] == sha256(layer)
    assert not [line for line in door.requests if sha256(layer) in line], "it was here"


async def test_layers_come_side_by_side_and_the_same_once(
    tmp_path: Path, host: str, door: Door
) -> None:
    """Five layers, of which two are one: four come, two of them at one time."""
    blobs = [layer_with(number) for number in (0, 1, 2, 3, 3)]
    await push_layers(host, "many", blobs, [sha256(blob) for blob in blobs])
    runtime = ContainerdRuntime(
        "many", tmp_path / "executor", insecure_registries=(door.host,), layers_at_once=2
    )
    await runtime.start()
    try:
        image = await runtime.ensure_image(f"{door.host}/team/many:1")
        layers = [sha256(blob) for blob in blobs]
        asked = [line for line in door.requests if any(digest in line for digest in layers)]
        assert len(asked) == 4
        records = await runtime._client.list_images()
        unpacked = {record.name: record.labels[LABEL_UNPACKED] for record in records}
        assert int(unpacked[image.reference]) == sum(map(len, blobs))
    finally:
        await runtime.close()
