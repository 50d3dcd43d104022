"""Every rule in the protos yields a violation that names its field and says what is right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tickmesh.gateway import descriptors
from tickmesh.gateway.methods import METHODS
from tickmesh.gateway.validation import (
    PATTERN_FORMS,
    VIOLATIONS_REPORTED_MAX,
    check,
    check_message,
)
from tickmesh.mesh.errors import InvalidRequest, MessageTooLarge
from tickmesh.mesh.limits import MESSAGE_BYTES_MAX
from tickmesh.proto.tickmesh.v1 import execution_pb2, job_pb2, schedule_pb2

OPTIONS = descriptors.message_type("google.protobuf.FieldOptions")
RULES = descriptors.POOL.FindExtensionByName("buf.validate.field")


def rules(field: FieldDescriptor) -> Any:
    """The field's rules, or None."""
    options: Any = OPTIONS.FromString(field.GetOptions().SerializeToString())
    return options.Extensions[RULES] if options.HasExtension(RULES) else None


def public_messages() -> Iterator[Descriptor]:
    for file in descriptors.FILES.values():
        if file.package == descriptors.PUBLIC_PACKAGE:
            for message in file.message_type:
                yield descriptors.POOL.FindMessageTypeByName(f"{file.package}.{message.name}")


ANNOTATED = [
    field for message in public_messages() for field in message.fields if rules(field) is not None
]


def patterns(rule: Any) -> Iterator[str]:
    """The patterns anywhere in a field's rules."""
    for string in (rule.string, rule.map.keys.string, rule.repeated.items.string):
        if string.pattern:
            yield string.pattern


def break_rule(message: Any, field: FieldDescriptor, rule: Any) -> None:
    """Give the field a value that its rules refuse."""
    name = field.name
    match rule.WhichOneof("type"):
        case "string":
            long = "x" * (rule.string.max_len + 1) if rule.string.max_len else ""
            setattr(message, name, "!" if rule.string.pattern else long)
        case "bytes":
            setattr(message, name, b"x" * (rule.bytes.max_len + 1))
        case "int32" | "int64":
            setattr(message, name, -1)
        case "duration":
            getattr(message, name).seconds = rule.duration.lte.seconds + 1
        case "enum":
            setattr(message, name, 99)
        case "map":
            for index in range(rule.map.max_pairs + 1):
                getattr(message, name)[f"k{index}"] = "v"
        case "repeated" if rule.repeated.max_items and not rule.repeated.min_items:
            for _ in range(rule.repeated.max_items + 1):
                values = getattr(message, name)
                if field.message_type is not None:
                    values.add()
                else:
                    values.append("" if field.type == FieldDescriptor.TYPE_STRING else 1)
        case "repeated" | None:
            pass  # Absent: required, or at least one.
        case other:
            raise AssertionError(f"{field.full_name}: no way to break {other}")


@pytest.mark.parametrize("field", ANNOTATED, ids=lambda field: field.full_name)
def test_every_annotated_field_is_checked_and_named(field: FieldDescriptor) -> None:
    message = descriptors.message_type(field.containing_type.full_name)()
    break_rule(message, field, rules(field))
    with pytest.raises(InvalidRequest) as refused:
        check_message(message)
    told = dict(refused.value.fields)
    assert field.name in told, told
    assert told[field.name]


def test_there_are_annotated_fields() -> None:
    assert len(ANNOTATED) > 60


def test_every_pattern_is_put_in_words() -> None:
    used = {pattern for field in ANNOTATED for pattern in patterns(rules(field))}
    assert used == set(PATTERN_FORMS)


def refusal(method: str, request: Any) -> dict[str, str]:
    """The violations by path."""
    with pytest.raises(InvalidRequest) as refused:
        check(METHODS[f"tickmesh.v1.{method}"], request.SerializeToString())
    return dict(refused.value.fields)


def job_request(**container: Any) -> job_pb2.CreateJobRequest:
    return job_pb2.CreateJobRequest(
        parent="customers/acme",
        job=job_pb2.Job(container=job_pb2.Container(**{"image": "hello:1", **container})),
    )


def test_a_good_request_is_returned_parsed() -> None:
    request = job_request(env={"A": "1"})
    parsed = check(METHODS["tickmesh.v1.JobService/CreateJob"], request.SerializeToString())
    assert parsed.job.container.env["A"] == "1"


@pytest.mark.parametrize("parent", ["", "acme", "customers/", "customers/A", "customers/a/jobs/b"])
def test_a_name_with_bad_characters_is_refused_with_the_form_that_is_right(parent: str) -> None:
    request = job_request()
    request.parent = parent
    told = refusal("JobService/CreateJob", request)
    assert "customers/{customer}" in told["parent"]


def test_paths_go_into_maps_and_lists() -> None:
    told = refusal("JobService/CreateJob", job_request(env={"A B": "x"}))
    assert list(told) == ['job.container.env["A B"]']
    batch = execution_pb2.BatchExecuteJobsRequest(parent="customers/acme")
    batch.executions.add(name="customers/acme/jobs/hello")
    batch.executions.add(name="nonsense")
    assert list(refusal("ExecutionService/BatchExecuteJobs", batch)) == ["executions[1].name"]


def test_a_payload_that_is_too_large_is_told_with_both_sizes() -> None:
    request = execution_pb2.ExecuteJobRequest(
        name="customers/acme/jobs/hello", payload=bytes(65_537)
    )
    told = refusal("ExecutionService/ExecuteJob", request)
    assert told["payload"] == "has 65,537 bytes, at most 65,536 are allowed"


def test_several_violations_are_all_named_and_the_rest_counted() -> None:
    request = job_pb2.BatchCreateJobsRequest(parent="nonsense")
    for _ in range(100):
        request.jobs.add(job_id="!")
    with pytest.raises(InvalidRequest) as refused:
        check(METHODS["tickmesh.v1.JobService/BatchCreateJobs"], request.SerializeToString())
    assert len(refused.value.fields) == VIOLATIONS_REPORTED_MAX
    assert refused.value.metadata["violation_count"] == "201"


@pytest.mark.parametrize("name", ["", "customers/acme", "customers/acme/jobs/A", "x" * 200])
def test_an_update_needs_the_name_of_what_it_changes(name: str) -> None:
    request = job_pb2.UpdateJobRequest(job=job_request().job)
    request.job.name = name
    request.update_mask.paths.append("timeout")
    assert "customers/{customer}/jobs/{job}" in refusal("JobService/UpdateJob", request)["job.name"]


def test_a_name_in_a_create_is_the_servers_and_ignored() -> None:
    request = schedule_pb2.CreateScheduleRequest(parent="customers/acme/jobs/hello")
    request.schedule.name = "whatever"
    request.schedule.recurrence.crons.append("* * * * *")
    check(METHODS["tickmesh.v1.ScheduleService/CreateSchedule"], request.SerializeToString())


def test_bytes_that_are_no_message_are_refused() -> None:
    for data in (b"\xff\xff", b"\x0a\x02\xff\xff", json.dumps({"parent": "x"}).encode()):
        with pytest.raises(InvalidRequest, match="CreateJobRequest"):
            check(METHODS["tickmesh.v1.JobService/CreateJob"], data)


def test_a_message_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(MessageTooLarge, match=f"{MESSAGE_BYTES_MAX:,}"):
        check(METHODS["tickmesh.v1.JobService/CreateJob"], bytes(MESSAGE_BYTES_MAX + 1))
