"""Limits of the client, each with its unit and the reason for its value."""

DEADLINE_S = 10.0
"""A call, unless it says otherwise: covers a change of leader (under 1 s) many times over."""

IMPORT_DEADLINE_S = 600.0
"""Importing an image: 1 GiB over 20 Mbit/s, and its unpacking."""

STREAM_DEADLINE_S = 3700.0
"""A watch's or log's stream: the server ends it after an hour, then it is opened again."""

RECONNECT_S = 60.0
"""How long a stream that broke is opened again without an answer before that is an error: a
gateway's restart and an election fit in it."""

RECONNECT_DELAY_S = 0.1
RECONNECT_DELAY_MAX_S = 2.0
"""Between tries to open a stream again; doubled each time."""

BACKUP_DEADLINE_S = 300.0
"""As long as a call may take; a second for 200 MB is usual."""

UPLOAD_CHUNK_BYTES = 256 * 1024
"""Data in one message of an image's import: large enough to be fast, small enough to show progress
on a slow line (the server takes up to 1 MiB)."""

LOOKUP_EXECUTIONS_MAX = 10_000
"""Executions looked at, newest first, to find one by its id alone: ten pages."""

RETRY_ATTEMPTS_MAX = 5
"""Tries of a call that is safe to repeat: with the waits below about 1.5 s; gRPC's own limit."""
RETRY_DELAY_S = 0.1
RETRY_DELAY_MAX_S = 1.0

ARCHIVE_MEMBERS_MAX = 4_096
"""Files in an image's archive: its layers and a few more, for each of its platforms."""

TREE_ENTRIES_MAX = 300_000
"""Files, directories and links of a root file system that is pushed: what executors take."""

MANIFEST_BYTES_MAX = 4 * 1024 * 1024
"""An image's manifest, index or configuration: what registries take."""

PUSH_PIECE_BYTES = 1024 * 1024
"""Read of a blob at one time."""

PUSH_CHUNK_BYTES = 8 * 1024 * 1024
"""Sent in one request: lost at most when a connection breaks, and held in memory."""

PUSH_SILENCE_S = 60.0
"""Without a byte from the registry, which syncs what it was sent."""

PUSH_ATTEMPTS_MAX = 4
"""In a row without progress."""

PUSH_BACKOFF_S = 0.2
"""Before the second attempt; doubled before each further one."""

PUSH_MOUNTS_MAX = 8
"""Other repositories that are asked for a blob before it is sent."""

PUSH_MOUNT_BYTES_MIN = 64 * 1024
"""A smaller blob is sent sooner than others are asked for it."""

PULL_DEADLINE_S = 300.0
"""Until every executor has pulled what was pushed: a call's longest."""

PULL_DEADLINE_MIN_S = 10.0
"""The same, when the push took all the time that there was: that it is pushed is the matter."""
