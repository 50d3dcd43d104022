"""Lengths of time, sizes and instants as people write them."""

from datetime import UTC, datetime, timedelta

import pytest

from tickmesh.sdk.cli import parameters


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("90s", 90, "1m30s"),
        ("1h30m", 5_400, "1h30m"),
        ("1.5h", 5_400, "1h30m"),
        ("500ms", 0.5, "500ms"),
        ("2d", 172_800, "2d"),
        ("7", 7, "7s"),
        ("1.25s", 1.25, "1.25s"),
        ("0", 0, "0s"),
    ],
)
def test_lengths_of_time(text: str, seconds: float, shown: str) -> None:
    length = timedelta(seconds=seconds)
    assert parameters.parse_duration(text) == length
    assert parameters.show_duration(length) == shown
    assert parameters.parse_duration(shown) == length


@pytest.mark.parametrize("text", ["", "s", "5 m", "1x", "-5s", "soon", "1h30", "5mm"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(ValueError, match="length of time"):
        parameters.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size", "shown"),
    [
        ("64Mi", 64 * 2**20, "64Mi"),
        ("1Gi", 2**30, "1Gi"),
        ("1GiB", 2**30, "1Gi"),
        ("500M", 500_000_000, "477Mi"),
        ("1.5Ki", 1_536, "1.5Ki"),
        ("1000Ki", 1_024_000, "1000Ki"),
        ("17", 17, "17"),
    ],
)
def test_sizes(text: str, size: int, shown: str) -> None:
    assert parameters.parse_size(text) == size
    assert parameters.show_size(size) == shown


@pytest.mark.parametrize(("text", "millis"), [("0.5", 500), ("2", 2_000), ("250m", 250)])
def test_cores(text: str, millis: int) -> None:
    assert parameters.parse_cpu(text) == millis


def test_instants() -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    assert parameters.parse_instant("2030-01-01T12:00:00Z") == noon
    assert parameters.parse_instant("2030-01-01T13:00+01:00") == noon
    before = datetime.now(UTC)
    assert before + timedelta(seconds=90) <= parameters.parse_instant("+90s")
    assert parameters.parse_instant("-90s") <= datetime.now(UTC) - timedelta(seconds=90)
    for text in ("2030-01-01T12:00:00", "noon", "+soon", "-soon"):
        with pytest.raises(ValueError, match=r"2030|noon|soon"):
            parameters.parse_instant(text)


def test_stretches_of_time() -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    window = parameters.parse_window("2030-01-01T12:00Z/2030-01-01T13:00Z")
    assert window == (noon, noon + timedelta(hours=1))
    for text in ("2030-01-01T12:00Z", "2030-01-01T12:00Z/soon", "/"):
        with pytest.raises(ValueError, match=r"START/END|instant"):
            parameters.parse_window(text)
