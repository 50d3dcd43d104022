"""Every limit and deadline of the executor's runtime layer, with its unit and its reason."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# Images. One GiB is what the product promises; compressed and unpacked are limited alike, so that a
# small archive cannot fill the disk.
IMAGE_BYTES_MAX = 1 * GIB
IMAGE_LAYERS_MAX = 127  # overlayfs takes 128 lower directories in one mount; one is ours
IMAGE_ENTRIES_MAX = 300_000  # files cost inodes, not only bytes
ARCHIVE_ENTRIES_MAX = 1024  # an archive of one image: its layers and a few more
MANIFEST_BYTES_MAX = 4 * MIB  # what registries accept by the distribution specification
CONFIG_BYTES_MAX = 4 * MIB
TAR_HEADER_BYTES_MAX = 1 * MIB  # one long name or one set of extended attributes
PASSWD_BYTES_MAX = 1 * MIB
COPY_CHUNK_BYTES = 1 * MIB  # a message's size towards containerd, which takes 16 MiB
ZSTD_WINDOW_BYTES_MAX = 128 * MIB  # memory that one layer's decompression may need
IMAGE_CACHE_ENTRIES_MAX = 4096  # parsed configurations kept in memory

# User and group ids of a sandbox: 0 to 65,535, which is what images use, and what a user namespace
# is given of the host's. 30,000 x 65,536 is above what systemd gives to containers (up to
# 1,879,048,191) and below 2^31.
IDS = 65_536
ID_BASE = 30_000 * IDS

# What all sandboxes together weigh beside one other process of the host that wants a processor, on
# each. The kernel's own default is one for a whole group, however many are in it: fifty due at one
# instant would have as much of a processor as one thread of containerd. Beside four, that still has
# a fifth.
SANDBOXES_WEIGHT = 4

# The gate's message is one write into one pipe, and the kernel's own limits on execve are near:
# 128 KiB for one string.
MESSAGE_BYTES_MAX = 1 * MIB
STRING_BYTES_MAX = 128 * KIB - 1
STRINGS_MAX = 1 << 14
PAYLOAD_BYTES_MAX = 1 * MIB  # the API promises less; this is the runtime's own guard

# Of a layer on its way in.
PULL_CHUNK_BYTES = 64 * KIB

# Deadlines, in seconds. A call that only touches containerd's database answers in milliseconds; ten
# seconds is a machine that is lost in other work.
CALL_DEADLINE_S = 10.0
# The runtime's create forks several processes: slow on a machine that starts fifty at once.
TASK_DEADLINE_S = 30.0
# Unpacking a layer is bound by its size.
APPLY_DEADLINE_S = 300.0
# From the message's write to the exec's answer: about 1 ms, unless the sandbox's cpu limit is tiny.
GATE_DEADLINE_S = 10.0
# After a sandbox's last process ended, until its output is whole on disk.
OUTPUT_DEADLINE_S = 5.0
DAEMON_START_DEADLINE_S = 20.0
# Sandboxes go on without containerd: their ends are waited for while it is replaced.
DAEMON_AWAY_DEADLINE_S = 300.0
DAEMON_STOP_DEADLINE_S = 10.0
REGISTRY_CONNECT_DEADLINE_S = 10.0
REGISTRY_READ_DEADLINE_S = 30.0  # silence on a transfer, not its whole length
PULL_DEADLINE_S = 600.0
REGISTRY_ATTEMPTS_MAX = 3  # in a row without a byte of progress
REGISTRY_BACKOFF_S = 0.2  # before the second attempt; doubled before each further one
REGISTRY_REDIRECTS_MAX = 5  # a registry sends on to its storage, which may send on once
REGISTRY_TOKEN_BYTES_MAX = 64 * KIB
LEASE_SECONDS = 3600  # an import that takes longer has failed; what it left is collected

# A sandbox that could not be made whole is removed at once, or, while containerd hangs, later.
UNDO_WAIT_S = 2.0
REMOVAL_RETRY_S = 15.0
CLEANED_UP_POLL_S = 0.05  # containerd cleans up after a dead shim in about 0.1 s
REMOVALS_MAX = 40  # ten minutes; then the next start's sweep finds it

# Concurrency. Creates are bound by cpu: more at once only makes each slower. Deletes yield to them.
CREATES_AT_ONCE_MAX = 8
DELETES_AT_ONCE_MAX = 2
PULLS_AT_ONCE_MAX = 8
PULLS_OF_HOST_MAX = 2
LAYERS_AT_ONCE = 3  # of one image: one connection seldom fills a line, many fill memory
LAYERS_AT_ONCE_MAX = 16

# A tag of the mesh's own registry is asked about again after so long, while what is here is used:
# who pushes tells the executors, so this is for those that were not there.
OWN_TAG_FRESH_S = 60.0

# Retries of a call that containerd did not answer.
RECONNECT_BACKOFF_MS_MIN = 20
RECONNECT_BACKOFF_MS_MAX = 500
CONNECT_DEADLINE_MS = 2000  # of one attempt: a daemon on a busy host is slow, not away
DAEMON_RESTARTS_MAX = 20  # in a row without living for a minute: then it is broken, not unlucky
