"""A whole mesh of real processes, and what happens to such: they are killed, stopped and started.

    mesh        run(): a mesh, its callers, its faults, and what is checked at the end
    callers     who uses it, through the SDK, and what they were told
    faults      what goes wrong, drawn from a seed
    witnesses   what containers wrote: which attempts really started

The simulator (tests/simulation) repeats a course exactly and has every fault; here is everything
else: gRPC, gateways, the SDK, RocksDB, files, signals. `scripts/chaos` runs it for long.
"""
