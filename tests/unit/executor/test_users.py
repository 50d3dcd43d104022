"""Names of an image's own passwd and group files, made numbers."""

import os
from pathlib import Path

import pytest

from tickmesh.executor import limits, users
from tickmesh.executor.errors import ImageError, ImageReason

PASSWD = "root:x:0:0::/:/sh\n# a comment\nbroken\napp:x:1000:1001:App,,,:/:/sh\napp:x:7:7::/:\n"
GROUP = "root:x:0:\nstaff:x:50:app\nbad:x:y:\n"


def layer(directory: Path, passwd: str | None = PASSWD, group: str | None = GROUP) -> Path:
    (directory / "etc").mkdir(parents=True)
    if passwd is not None:
        (directory / "etc/passwd").write_text(passwd)
    if group is not None:
        (directory / "etc/group").write_text(group)
    return directory


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (65534, 65534)),
        ("app", (1000, 1001)),
        ("app:staff", (1000, 50)),
        ("app:7", (1000, 7)),
        ("1000", (1000, 1001)),
        ("1000:staff", (1000, 50)),
        ("4242", (4242, 0)),
        ("4242:4343", (4242, 4343)),
        ("0", (0, 0)),
    ],
)
def test_users_are_found(tmp_path: Path, user: str, expected: tuple[int, int]) -> None:
    assert users.resolve(user, [layer(tmp_path)]) == expected


@pytest.mark.parametrize(
    "user",
    ["nobody", "app:none", "app:bad", str(2**31), "1:" + "9" * 30, "-1", "app:-1", "²", "9" * 5000],
)
def test_unknown_and_impossible_users_are_refused(tmp_path: Path, user: str) -> None:
    with pytest.raises(ImageError) as caught:
        users.resolve(user, [layer(tmp_path)])
    assert caught.value.reason is ImageReason.USER_UNKNOWN


def test_numbers_need_no_files(tmp_path: Path) -> None:
    assert users.resolve("5:6", []) == (5, 6)
    assert users.resolve("5", [tmp_path]) == (5, 0)


def test_the_topmost_layer_that_has_the_file_counts(tmp_path: Path) -> None:
    top = layer(tmp_path / "top", passwd="app:x:1:2::/:\n", group=None)
    below = layer(tmp_path / "below")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert users.resolve("app:staff", [empty, top, below]) == (1, 50)


def test_links_are_not_followed(tmp_path: Path) -> None:
    real = layer(tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "etc").symlink_to(real / "etc")
    file_linked = tmp_path / "file"
    (file_linked / "etc").mkdir(parents=True)
    (file_linked / "etc/passwd").symlink_to(real / "etc/passwd")
    for evil in (linked, file_linked):
        with pytest.raises(ImageError):
            users.resolve("app", [evil])


def test_only_so_much_of_a_file_is_read(tmp_path: Path) -> None:
    long = "x" * limits.PASSWD_BYTES_MAX + "\napp:x:1:1::/:\n"
    with pytest.raises(ImageError):
        users.resolve("app", [layer(tmp_path, passwd=long)])


def test_what_is_no_file_is_passed_over_and_nothing_stays_open(tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    (evil / "etc/passwd").mkdir(parents=True)
    os.mkfifo(evil / "etc/group")
    below = layer(tmp_path / "below")
    before = sorted(Path("/proc/self/fd").iterdir())
    assert users.resolve("1000", [evil]) == (1000, 0)
    assert users.resolve("app:staff", [evil, below]) == (1000, 50)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
