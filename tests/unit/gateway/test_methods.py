"""The table of methods is whole, and what it says of the messages is true."""

from __future__ import annotations

import pytest

from tickmesh.gateway import descriptors
from tickmesh.gateway.methods import METHODS, REQUEST_ID_CHARACTERS, Kind, Method, Repeat
from tickmesh.gateway.routing import SLOT_COUNT, shard_of, slot_of
from tickmesh.proto.tickmesh.v1 import execution_pb2, job_pb2, schedule_pb2

ALL = list(METHODS.values())


def test_every_public_method_has_a_row_and_every_row_a_method() -> None:
    public = {
        f"{service.full_name}/{method.name}"
        for service in descriptors.services()
        for method in service.methods
    }
    assert public == set(METHODS)


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_streams_are_what_the_descriptors_say(method: Method) -> None:
    descriptor = descriptors.method(method.name)
    assert descriptor.server_streaming == (method.kind in (Kind.WATCH, Kind.LOGS))
    assert descriptor.client_streaming == (method.kind is Kind.IMAGE_IMPORT)


@pytest.mark.parametrize("method", [m for m in ALL if m.routing_field], ids=lambda m: m.name)
def test_the_routing_field_is_read(method: Method) -> None:
    request = method.request_type()
    *outer, last = method.routing_field.split(".")
    target = request
    for part in outer:
        target = getattr(target, part)
    setattr(target, last, "customers/acme")
    assert method.read_name(request) == "customers/acme"


@pytest.mark.parametrize("method", [m for m in ALL if m.request_id_tag], ids=lambda m: m.name)
def test_a_request_id_can_be_added_to_serialised_bytes(method: Method) -> None:
    data = method.request_type().SerializeToString()
    made = "f" * REQUEST_ID_CHARACTERS
    request = method.request_type.FromString(data + method.request_id_tag + made.encode())
    assert request.request_id == made  # type: ignore[attr-defined]


def test_a_write_without_request_id_is_never_sent_twice() -> None:
    changes = ("Update", "Delete", "Pause", "Resume")
    for method in ALL:
        if method.name.rpartition("/")[2].startswith(changes) and method.kind is Kind.SHARD:
            assert method.repeat is Repeat.NEVER, method.name


def test_stubs_and_annotated_classes_read_the_same_bytes() -> None:
    request = schedule_pb2.CreateScheduleRequest(parent="customers/acme/jobs/hello")
    request.schedule.recurrence.crons.append("* * * * *")
    data = request.SerializeToString()
    annotated = METHODS["tickmesh.v1.ScheduleService/CreateSchedule"].request_type.FromString(data)
    assert annotated.SerializeToString() == data
    for message in (job_pb2.Job, execution_pb2.Execution):
        assert descriptors.message_type(message.DESCRIPTOR.full_name) is not message


def test_a_customers_slot_never_changes() -> None:
    # Values that are on disks: a change of the hash would lose every customer.
    assert [slot_of(name) for name in ("acme", "a", "customer-12345")] == [8833, 559, 11944]


@pytest.mark.parametrize("shard_count", [1, 2, 3, 1_000, SLOT_COUNT])
def test_slots_are_divided_evenly_and_in_order(shard_count: int) -> None:
    owners = [shard_of(slot, shard_count) for slot in range(SLOT_COUNT)]
    assert owners == sorted(owners)
    sizes = [owners.count(shard) for shard in range(min(shard_count, 10))]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0
    assert owners[-1] == shard_count - 1
