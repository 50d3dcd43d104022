"""Bugs put back in, one at a time, to see that the simulator finds each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

Patch = tuple[Any, str, Any]
MUTATIONS: dict[str, Callable[[], list[Patch]]] = {}


@contextlib.contextmanager
def mutated(name: str) -> Iterator[None]:
    """With the named bug; with none for an empty name."""
    patches = MUTATIONS[name]() if name else []
    kept = [(owner, attribute, owner.__dict__[attribute]) for owner, attribute, _ in patches]
    for owner, attribute, value in patches:
        setattr(owner, attribute, value)
    try:
        yield
    finally:
        for owner, attribute, value in kept:
            setattr(owner, attribute, value)
