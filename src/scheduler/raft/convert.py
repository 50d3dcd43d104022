"""Messages and snapshot parts to protobuf and back. Nothing else here touches raft_pb2's fields.

What arrives is checked for shape; whether it makes sense is for the member to judge.
"""

from __future__ import annotations

import msgspec

from ...proto.tickmesh.internal.v1 import raft_pb2
from .members import Members, decode, encode
from .messages import (
    Append,
    AppendReply,
    Entry,
    Introduction,
    Message,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotHeader,
    SnapshotPart,
    SnapshotReply,
    Transfer,
    Vote,
    VoteReply,
)
from .transport import TransportError


def message_out(message: Message) -> raft_pb2.RaftMessage:
    """For the wire."""
    match message:
        case Append():
            return raft_pb2.RaftMessage(append=_append_out(message))
        case AppendReply():
            return raft_pb2.RaftMessage(
                append_reply=raft_pb2.RaftAppendReply(
                    term=message.term,
                    next_index=message.next_index,
                    success=message.success,
                    reset=message.reset,
                    round=message.round,
                    incarnation=message.incarnation,
                    learner=message.learner,
                    asked_ns=message.asked_ns,
                    clock_ns=message.clock_ns,
                    entry_version=message.entry_version,
                )
            )
        case Vote():
            return raft_pb2.RaftMessage(
                vote=raft_pb2.RaftVote(
                    term=message.term,
                    last_index=message.last_index,
                    last_term=message.last_term,
                    pre=message.pre,
                    transfer=message.transfer,
                )
            )
        case VoteReply():
            return raft_pb2.RaftMessage(
                vote_reply=raft_pb2.RaftVoteReply(
                    term=message.term,
                    request_term=message.request_term,
                    granted=message.granted,
                    pre=message.pre,
                    incarnation=message.incarnation,
                )
            )
        case Transfer():
            return raft_pb2.RaftMessage(transfer=raft_pb2.RaftTransfer(term=message.term))


def _append_out(message: Append) -> raft_pb2.RaftAppend:
    return raft_pb2.RaftAppend(
        term=message.term,
        previous_index=message.previous_index,
        previous_term=message.previous_term,
        commit_index=message.commit_index,
        round=message.round,
        promote=message.promote,
        asked_ns=message.asked_ns,
        entries=[
            raft_pb2.RaftEntry(term=entry.term, command=entry.command) for entry in message.entries
        ],
    )


def message_in(wire: raft_pb2.RaftMessage) -> Message:
    """From the wire. Raises TransportError for what this version does not know."""
    match wire.WhichOneof("message"):
        case "append":
            return _append_in(wire.append)
        case "append_reply":
            reply = wire.append_reply
            return AppendReply(
                reply.term,
                reply.next_index,
                reply.success,
                reply.reset,
                reply.round,
                reply.incarnation,
                reply.learner,
                reply.asked_ns,
                reply.clock_ns,
                reply.entry_version,
            )
        case "vote":
            vote = wire.vote
            return Vote(vote.term, vote.last_index, vote.last_term, vote.pre, vote.transfer)
        case "vote_reply":
            answer = wire.vote_reply
            return VoteReply(
                answer.term, answer.request_term, answer.granted, answer.pre, answer.incarnation
            )
        case "transfer":
            return Transfer(wire.transfer.term)
    raise TransportError("a message is of a kind that this version does not know")


def _append_in(append: raft_pb2.RaftAppend) -> Append:
    first = append.previous_index + 1
    entries = tuple(
        Entry(entry.command, first + offset, entry.term)
        for offset, entry in enumerate(append.entries)
    )
    if not all(entry.command for entry in entries):
        raise TransportError("an entry lacks its kind")
    return Append(
        append.term,
        append.previous_index,
        append.previous_term,
        append.commit_index,
        append.round,
        entries,
        append.promote,
        append.asked_ns,
    )


def part_out(part: SnapshotPart) -> raft_pb2.InstallSnapshotRequest:
    """For the wire."""
    match part:
        case SnapshotHeader():
            return raft_pb2.InstallSnapshotRequest(
                header=raft_pb2.SnapshotHeader(
                    group_id=part.group_id,
                    sender_id=part.sender_id,
                    recipient_id=part.recipient_id,
                    term=part.term,
                    index=part.index,
                    index_term=part.index_term,
                    members=b"" if part.members is None else encode(part.members),
                )
            )
        case SnapshotChunk():
            return raft_pb2.InstallSnapshotRequest(
                chunk=raft_pb2.SnapshotChunk(
                    name=part.name, offset=part.offset, data=part.data, checksum=part.checksum
                )
            )
        case SnapshotEnd():
            return raft_pb2.InstallSnapshotRequest(
                end=raft_pb2.SnapshotEnd(files=part.files, size_bytes=part.size_bytes)
            )


def part_in(wire: raft_pb2.InstallSnapshotRequest) -> SnapshotPart:
    """From the wire. Raises TransportError for what this version does not know."""
    match wire.WhichOneof("part"):
        case "header":
            header = wire.header
            return SnapshotHeader(
                header.group_id,
                header.sender_id,
                header.recipient_id,
                header.term,
                header.index,
                header.index_term,
                _members_in(header.members),
            )
        case "chunk":
            chunk = wire.chunk
            return SnapshotChunk(chunk.name, chunk.offset, chunk.data, chunk.checksum)
        case "end":
            return SnapshotEnd(wire.end.files, wire.end.size_bytes)
    raise TransportError("a part of a snapshot is of a kind that this version does not know")


def _members_in(data: bytes) -> Members | None:
    try:
        return decode(data) if data else None
    except msgspec.DecodeError as error:
        raise TransportError(f"a snapshot's list of replicas is none: {error}") from error


def introduction_out(introduction: Introduction, frames_port: int) -> raft_pb2.IntroduceResponse:
    """For the wire."""
    return raft_pb2.IntroduceResponse(
        group_id=introduction.group_id,
        replica_id=introduction.replica_id,
        last_index=introduction.last_index,
        voter=introduction.voter,
        entry_version=introduction.entry_version,
        incarnation=introduction.incarnation,
        frames_port=frames_port,
    )


def introduction_in(wire: raft_pb2.IntroduceResponse) -> Introduction:
    """From the wire."""
    return Introduction(
        wire.group_id,
        wire.replica_id,
        wire.last_index,
        wire.voter,
        wire.entry_version,
        wire.incarnation,
    )


def reply_out(reply: SnapshotReply) -> raft_pb2.InstallSnapshotResponse:
    """For the wire."""
    return raft_pb2.InstallSnapshotResponse(accepted=reply.accepted, reason=reply.reason)


def reply_in(wire: raft_pb2.InstallSnapshotResponse) -> SnapshotReply:
    """From the wire."""
    return SnapshotReply(wire.accepted, wire.reason)
