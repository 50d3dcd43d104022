"""Every limit of the Raft layer, with its unit and why it is what it is."""

from typing import Final

# A payload is one batch of commands; with its framing it must fit FRAME_BYTES_MAX.
PAYLOAD_BYTES_MAX: Final = 8 << 20
# What one append carries: enough to fill a disk's sync, small enough not to delay heartbeats.
APPEND_BYTES_MAX: Final = 1 << 20
APPEND_ENTRIES_MAX: Final = 1024
# Unanswered appends to one peer: pipelining for throughput, a bound on what a dead peer costs.
APPENDS_IN_FLIGHT_MAX: Final = 16
APPEND_BYTES_IN_FLIGHT_MAX: Final = 8 << 20
# The largest frame that either side accepts: an append with the largest entry in it, with room.
FRAME_BYTES_MAX: Final = 16 << 20
# What waits for one peer that takes nothing: what may be in flight, and the largest entry. Raft
# repeats what matters, so the rest is dropped.
WAITING_BYTES_MAX: Final = 16 << 20
# Messages that wait to be handled by one replica; beyond it the newest are dropped.
INBOX_MESSAGES_MAX: Final = 8192
# Messages handled in one round, so that one fsync acknowledges many and none waits for ever.
ROUND_MESSAGES_MAX: Final = 512
# Entries applied in one round: the event loop breathes between rounds.
ROUND_APPLY_MAX: Final = 64
# And for so long at most (one entry at least): a backlog of large entries, as after a restart, must
# not keep heartbeats and their answers waiting.
ROUND_APPLY_S: Final = 0.02
# Proposals that wait for their commit. One batch is in flight normally; this is pipelining.
PROPOSALS_PENDING_MAX: Final = 4096
# Readers that wait for a ReadIndex round.
READS_PENDING_MAX: Final = 65536
# A snapshot's chunk: four frames would fit, so heartbeats are never starved by one.
SNAPSHOT_CHUNK_BYTES: Final = 256 << 10
SNAPSHOT_FILES_MAX: Final = 100_000
SNAPSHOT_BYTES_MAX: Final = 1 << 40
# Shipping a terabyte at 100 MB/s takes three hours; a stream that hangs is found by silence.
SNAPSHOT_DEADLINE_S: Final = 4 * 3600.0
SNAPSHOT_SILENCE_S: Final = 30.0
# A follower that a snapshot was shipped to has this long to catch up while its log is pinned.
SNAPSHOT_PIN_S: Final = 120.0
# After a shipment failed: not a busy loop of checkpoints.
SNAPSHOT_RETRY_S: Final = 0.5
# How often the journal's head is looked at.
COMPACTION_INTERVAL_S: Final = 1.0
# A silent link between replicas is sent an empty frame, and is given up without any.
LINK_PING_S: Final = 0.5
LINK_SILENCE_S: Final = 2.0
# A kernel takes a connection at once, however busy the machine is; the probe looks so often
# meanwhile.
PROBE_S: Final = 0.2
PROBE_PULSES: Final = 4
# Between two dials of a peer that does not answer.
REDIAL_S: Final = 0.1
# Opening a link to a peer, until its hello.
DIAL_DEADLINE_S: Final = 2.0
# What is still on its way on a link that has ended, its farewell last, has so long to go.
FAREWELL_S: Final = 2.0
# Why a link ended is logged, and told: a sentence, though a peer may say what it likes.
REASON_CHARACTERS_MAX: Final = 1024
# Handing leadership over before a planned stop: an election by request takes a few milliseconds.
HAND_OVER_S: Final = 1.0
# A peer that was asked to lead and does not: another is asked.
HAND_OVER_RETRY_S: Final = 0.25
# A leader that was elected waits so long for clocks that are not measured yet, if one differs.
CLOCK_VERDICT_S: Final = 0.5
# A replica whose clock is wrong leaves elections to the others for so long.
CLOCK_RETIREMENT_S: Final = 10.0
# Fewer voters than this stop as soon as one is lost.
VOTERS_MIN: Final = 3
# A commit waits for a majority of them: more protect against losses that do not happen together.
REPLICAS_MAX: Final = 7
# Disks that a list remembers as removed, the latest: each is told so when it comes back, and one
# that was never complete could not know otherwise.
REMOVED_MAX: Final = 32
# A learner that is this close behind what is committed becomes a voter: far less than a second's.
CAUGHT_UP_ENTRIES: Final = 64
# A peer that should dial and does not is dialled after so long: it may know nothing of this one.
LATE_DIAL_S: Final = 1.0
# Before a replica is removed: whoever leads since a moment ago hears of the others meanwhile.
SOUND_WAIT_S: Final = 1.0
