"""A whole shard in one process and one thread, driven by one seed.

    loop        time that jumps, a shuffled ready queue, processes that die at once
    machine     what a process takes from its machine: clocks, disks, workers
    network     Raft messages, calls and streams between machines, with faults
    ledger      what must be true of everything that is replicated
    fires       what must be true of every due instant
    executors   worker hosts: real agents on simulated sandboxes
    clients     callers of the public methods, and what they may be told
    versions    what callers are told of things that have versions
    watches     readers of WatchExecutions, and what they must have been told
    keepers     a caller that changes how much history is kept
    backups     an operator who has backups made, and what must be in them
    almanacs    a caller that changes what schedules follow: calendars, and zones' files
    pace        how fast things happen
    limits      limits that are small, and history that is short, in some simulations
    faults      what goes wrong, and when
    world       all of it together: run(seed, minutes)
    mutations   bugs put back in, one at a time, to see that they are found

Real: core, store, Raft (pysyncobj), shard, dispatcher, service; an executor's agent, uplink,
attempts, clockwork and ledger (SQLite). Simulated: the rest of the world.
"""
