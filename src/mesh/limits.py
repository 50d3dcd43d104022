"""Every limit that more than one service knows, with its unit and the reason for its value.

Limits that one service alone needs stand in that service, beside what they limit.
"""

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""A public request or response: gRPC's own default, so that no client needs a setting."""

INTERNAL_MESSAGE_BYTES_MAX = 32 * 1024 * 1024
"""A message between services: carries batches of public ones, of which one alone may have 4 MiB."""

BATCH_ITEMS_MAX = 1_000
"""Items of a Batch... call: one commit applies them in about 10 ms, which others then wait."""

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
"""Items of a listing's page: keeps a response within MESSAGE_BYTES_MAX for usual sizes."""

PAYLOAD_BYTES_MAX = 64 * 1024
"""A payload: it is replicated and stored with every execution; larger data belongs elsewhere."""

IMAGE_BYTES_MAX = 1024 * 1024 * 1024
"""An image, compressed and unpacked: the plan's size; larger ones cannot start on time."""

CALL_TIMEOUT_MAX_S = 300.0
"""A unary call's deadline, whatever the client asks: nothing here takes longer."""

STREAM_SECONDS_MAX = 3600.0
"""A server stream's life: then the client goes on from its cursor, perhaps on another gateway."""

OUTPUT_BYTES_MAX = 1024 * 1024
"""What is kept of an attempt's stdout, and of its stderr."""

STATUS_MESSAGE_CHARACTERS_MAX = 1024
"""The text of an attempt's end: it is replicated."""
