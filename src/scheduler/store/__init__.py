"""Where a replica keeps its state: keys and records over a small ordered key-value interface.

keys      what is stored under which key (pure)
backend   the interface, and the in-memory implementation
rocksdb   the implementation that lasts
view      core.View over a backend: reads through, collects writes
state     the replicated state machine: decode an entry, apply it, write one batch
queries   what the service reads: records, listings, timers
"""
