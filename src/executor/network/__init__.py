"""Network of sandboxes whose jobs ask for egress: the internet's public addresses, nothing else.

policy (pure: what is allowed) → rules (pure: as nftables expressions) → wiring (the kernel, one
thread) → pool (asyncio: namespaces wired ahead). A sandbox without egress meets none of this: it
has an empty namespace of its own.
"""
