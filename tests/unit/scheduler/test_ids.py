"""Ids are spelled as RFC 4648 says, and read back."""

from __future__ import annotations

import base64
import random

import pytest

from tickmesh.scheduler.core.ids import attempt_id, spell, split_attempt_id, unspell


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 10, 12, 16])
def test_it_is_base32hex_in_lower_case_without_padding(length: int) -> None:
    chance = random.Random(length)
    for _ in range(50):
        raw = chance.randbytes(length)
        assert spell(raw) == base64.b32hexencode(raw).decode().rstrip("=").lower()
        assert unspell(spell(raw), length) == raw


def test_an_attempts_id_is_taken_apart_again() -> None:
    raw = bytes(range(16))
    assert split_attempt_id(attempt_id(raw, 12)) == (raw, 12)


@pytest.mark.parametrize("text", ["", "-1", "abc-1", "zzzz", attempt_id(bytes(16), 1)[:-2] + "-x"])
def test_what_is_no_attempts_id_is_none(text: str) -> None:
    assert split_attempt_id(text) is None
