"""Keys as text: what is made is read back, and nothing else is taken for one."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tickmesh.gateway.authentication import address_of, token_of
from tickmesh.mesh import api_keys, names
from tickmesh.mesh.errors import KeyRequired

CUSTOMERS = st.from_regex(re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"), fullmatch=True)
KEY_IDS = st.from_regex(re.compile(r"[0-9a-v]{16}"), fullmatch=True)
SECRETS = st.binary(min_size=32, max_size=32)


@given(CUSTOMERS, KEY_IDS, SECRETS)
def test_what_is_made_is_read_back(customer: str, key_id: str, secret: bytes) -> None:
    text = api_keys.make(customer, key_id, secret)
    assert api_keys.name_of(text) == (customer, key_id)
    assert len(text) <= api_keys.CHARACTERS_MAX
    assert not api_keys.is_operators(text)
    assert names.is_id(customer)


@given(CUSTOMERS, KEY_IDS, SECRETS, SECRETS)
def test_another_secret_is_another_text_and_another_hash(
    customer: str, key_id: str, one: bytes, two: bytes
) -> None:
    texts = {api_keys.make(customer, key_id, each) for each in (one, two)}
    assert len(texts) == len({one, two}) == len({api_keys.digest(text) for text in texts})


@given(CUSTOMERS, KEY_IDS, SECRETS, st.data())
def test_a_damaged_key_names_no_other_customer(
    customer: str, key_id: str, secret: bytes, data: st.DataObject
) -> None:
    """Whatever one character becomes, the text is no key, or has another hash."""
    text = api_keys.make(customer, key_id, secret)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.characters()) + text[at + 1 :]
    if damaged != text and api_keys.name_of(damaged) is not None:
        assert api_keys.digest(damaged) != api_keys.digest(text)


@given(st.text() | st.from_regex(r"tm[ko]_.*") | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_nothing_else_is_a_key(text: str) -> None:
    name = api_keys.name_of(text)
    if name is not None:
        assert names.is_id(name.customer) and text.isascii() and "\n" not in text
    assert not (name is not None and api_keys.is_operators(text))
    api_keys.digest_from_hex(text)


@given(st.lists(st.tuples(st.sampled_from(["authorization", "other"]), st.text() | st.binary())))
def test_hostile_headers_are_refused_in_words(metadata: list[tuple[str, str | bytes]]) -> None:
    try:
        token = token_of(metadata)
    except KeyRequired:
        return
    assert api_keys.name_of(token) is None or len(token) <= api_keys.CHARACTERS_MAX


@given(st.text() | st.from_regex(r"ipv[46]:.*"))
def test_every_peer_has_an_address(peer: str) -> None:
    address_of(peer)
