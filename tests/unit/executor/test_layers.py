"""Layers as they stream by: in any pieces, in any compression, damaged in any place."""

import gzip
import io
import random
import tarfile
from collections.abc import Iterator

import pytest
import zstandard

from tickmesh.executor.errors import ImageError, ImageReason
from tickmesh.executor.layers import Budget, LayerInspector
from tickmesh.executor.manifest import sha256

TAR = "application/vnd.oci.image.layer.v1.tar"
COMPRESSIONS = {
    TAR: lambda data: data,
    f"{TAR}+gzip": gzip.compress,
    f"{TAR}+zstd": zstandard.compress,
}


def tar(*names: str, size: int = 700, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(bytes(size)))
    return buffer.getvalue()


def pieces(data: bytes, generator: random.Random) -> Iterator[bytes]:
    while data:
        step = generator.choice((1, 7, 511, 512, 513, 5000))
        yield data[:step]
        data = data[step:]


def inspect(data: bytes, media_type: str, diff_id: str, seed: int = 0) -> LayerInspector:
    inspector = LayerInspector(sha256(data), media_type, diff_id, Budget(1 << 20, 100))
    for piece in pieces(data, random.Random(seed)):
        inspector.feed(piece)
    inspector.finish()
    return inspector


@pytest.mark.parametrize("media_type", COMPRESSIONS)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_good_layer_passes_in_any_pieces(media_type: str, form: int) -> None:
    plain = tar("a", "b/c", "d" * 98, form=form)
    for seed in range(5):
        inspector = inspect(COMPRESSIONS[media_type](plain), media_type, sha256(plain), seed)
        assert inspector.unpacked_bytes == len(plain)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_is_read_whole(form: int) -> None:
    good, bad = tar("x/" * 200 + "y", form=form), tar("x/" * 200 + "../y", form=form)
    inspect(good, TAR, sha256(good))
    with pytest.raises(ImageError, match="outside of its root"):
        inspect(bad, TAR, sha256(bad))


@pytest.mark.parametrize("media_type", [f"{TAR}+gzip", f"{TAR}+zstd"])
def test_several_members_are_one_layer(media_type: str) -> None:
    plain = tar("a", "b")
    compress = COMPRESSIONS[media_type]
    inspect(compress(plain[:1000]) + compress(plain[1000:]), media_type, sha256(plain))


@pytest.mark.parametrize("media_type", [f"{TAR}+gzip", f"{TAR}+zstd"])
def test_a_compressed_layer_cut_anywhere_is_corrupt(media_type: str) -> None:
    plain = tar("a", size=3000)
    data = COMPRESSIONS[media_type](plain)
    for length in range(0, len(data), 7):
        with pytest.raises(ImageError) as caught:
            inspect(data[:length], media_type, sha256(plain))
        assert caught.value.reason is ImageReason.CORRUPT


def test_a_plain_layer_cut_in_an_entry_is_corrupt() -> None:
    plain = tar("a", size=3000)
    for length in (100, 512 + 1, 512 + 2999):
        with pytest.raises(ImageError, match="ends in the middle of an entry"):
            inspect(plain[:length], TAR, sha256(plain[:length]))


def test_a_flipped_bit_anywhere_is_noticed() -> None:
    plain = tar("a", size=900)
    data = gzip.compress(plain)
    digest = sha256(data)
    for position in range(0, len(data), 5):
        changed = bytearray(data)
        changed[position] ^= 4
        inspector = LayerInspector(digest, f"{TAR}+gzip", sha256(plain), Budget(1 << 20, 100))
        with pytest.raises(ImageError) as caught:  # noqa: PT012
            inspector.feed(bytes(changed))
            inspector.finish()
        assert caught.value.reason is ImageReason.CORRUPT


@pytest.mark.parametrize("media_type", COMPRESSIONS)
def test_a_bomb_is_noticed_before_it_is_unpacked(media_type: str) -> None:
    plain = tar("zeros", size=8 << 20)
    inspector = LayerInspector("sha256:x", media_type, "sha256:y", Budget(1 << 20))
    with pytest.raises(ImageError, match="unpacks to more than 1048576 bytes") as caught:
        inspector.feed(COMPRESSIONS[media_type](plain))
    assert caught.value.reason is ImageReason.TOO_LARGE


def test_too_many_entries_are_too_large() -> None:
    plain = tar(*map(str, range(101)), size=0)
    with pytest.raises(ImageError, match="more than 100 files"):
        inspect(plain, TAR, sha256(plain))


def test_a_sparse_file_is_refused() -> None:
    block = bytearray(tar("hole", size=0, form=tarfile.GNU_FORMAT))
    block[156] = ord("S")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    with pytest.raises(ImageError, match="sparse file"):
        inspect(bytes(block), TAR, sha256(bytes(block)))


@pytest.mark.parametrize("value", ["-1", "9" * 5000, "x", ""])
def test_an_impossible_size_is_corrupt(value: str) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {"size": value}
    data = info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    with pytest.raises(ImageError, match="an impossible size"):
        inspect(data, TAR, sha256(data))


def test_the_budget_is_one_for_all_layers() -> None:
    budget = Budget(10_000)
    budget.spend(9_000)
    with pytest.raises(ImageError, match="unpacks to more"):
        budget.spend(1_001)
