"""How late a fire is made on purpose: a number that depends on the schedule and the instant."""

import hashlib


def draw_ms(hash_key: str, nominal_ms: int, most_ms: int) -> int:
    """Returns a delay in [0, most_ms], the same for the same arguments on every machine."""
    content = f"jitter\0{nominal_ms}\0{hash_key}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big") % (most_ms + 1)
