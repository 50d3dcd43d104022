"""What an image says of itself, right and wrong."""

import json
from typing import Any

import pytest

from tickmesh.executor import limits, manifest
from tickmesh.executor.errors import ImageError, ImageReason

DIGEST = "sha256:" + "ab" * 32
ENTRY = {"digest": DIGEST, "size": 10, "mediaType": "x"}


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_manifest_of_docker_and_one_of_oci_are_read_alike() -> None:
    for extra in ({}, {"mediaType": manifest.DOCKER_MANIFEST, "annotations": {"a": "b"}}):
        data = encode({"schemaVersion": 2, "config": ENTRY, "layers": [ENTRY], **extra})
        parsed = manifest.parse_manifest("m", data)
        assert parsed.config.digest == parsed.layers[0].digest == DIGEST


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        ({}, ImageReason.CORRUPT, "missing required field `config`"),
        ({"config": ENTRY, "layers": {}}, ImageReason.CORRUPT, r"at `\$.layers`"),
        ({"config": ENTRY, "layers": []}, ImageReason.UNSUPPORTED, "has 0 layers"),
        ({"config": ENTRY, "layers": [ENTRY] * 127}, ImageReason.UNSUPPORTED, "has 127 layers"),
        (
            {"config": ENTRY, "layers": [{**ENTRY, "size": -1}]},
            ImageReason.CORRUPT,
            "negative size",
        ),
        (
            {"config": {**ENTRY, "digest": "sha256:AB"}, "layers": [ENTRY]},
            ImageReason.CORRUPT,
            "'sha256:AB' is not a sha256 digest",
        ),
        (
            {"config": {**ENTRY, "size": limits.CONFIG_BYTES_MAX + 1}, "layers": [ENTRY]},
            ImageReason.TOO_LARGE,
            "configuration",
        ),
        (
            {"config": {**ENTRY, "digest": DIGEST + "\n"}, "layers": [ENTRY]},
            ImageReason.CORRUPT,
            "is not a sha256 digest",
        ),
    ],
)
def test_a_bad_manifest_is_refused_by_its_part(
    value: dict[str, Any], reason: ImageReason, words: str
) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        manifest.parse_manifest("m", encode(value))
    assert caught.value.reason is reason


DEEP = b'{"other":' + b"[" * 100_000


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b"{" * 10_000, b"null", DEEP, b'{"config":{"digest":"\xff"}}']
)
def test_bytes_that_are_no_manifest_are_corrupt(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        manifest.parse_manifest("m", data)
    assert caught.value.reason is ImageReason.CORRUPT


def test_the_size_is_the_sum_that_the_manifest_says() -> None:
    parsed = manifest.parse_manifest("m", encode({"config": ENTRY, "layers": [ENTRY, ENTRY]}))
    manifest.check_size("m", parsed, 30)
    with pytest.raises(ImageError, match="has 30 bytes"):
        manifest.check_size("m", parsed, 29)


def test_a_configuration_gives_the_process() -> None:
    data = encode(
        {
            "architecture": manifest.architecture(),
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
            "config": {
                "Env": ["A=1", "B=x=y", "nonsense"],
                "Entrypoint": ["/e"],
                "Cmd": None,
                "User": "app:staff",
                "WorkingDir": "/w",
            },
            "history": [{}],
        }
    )
    config = manifest.parse_config("c", data, 1)
    assert config.environment == (("A", "1"), ("B", "x=y"))
    assert (config.entrypoint, config.command) == (("/e",), ())
    assert (config.user, config.working_directory) == ("app:staff", "/w")


def test_the_platform_is_chosen_or_said() -> None:
    mine = manifest.architecture()
    others = [
        {**ENTRY, "platform": {"os": "linux", "architecture": "s390x"}},
        {**ENTRY, "platform": {"os": "windows", "architecture": mine}},
    ]
    right = {
        "digest": "sha256:" + "cd" * 32,
        "size": 1,
        "platform": {"os": "linux", "architecture": mine},
    }
    index = manifest.parse_index("i", encode({"manifests": [*others, right]}))
    assert manifest.choose("i", index).digest == right["digest"]
    index = manifest.parse_index("i", encode({"manifests": others}))
    with pytest.raises(ImageError, match=f"only for linux/s390x, windows/{mine}"):
        manifest.choose("i", index)
    index = manifest.parse_index("i", encode({"manifests": [ENTRY]}))
    assert manifest.choose("i", index).digest == DIGEST


def test_chain_ids_are_those_of_the_specification() -> None:
    one, two = "sha256:" + "11" * 32, "sha256:" + "22" * 32
    chain = manifest.chain_ids((one, two))
    assert chain[0] == one
    assert chain[1] == manifest.sha256(f"{one} {two}".encode())
