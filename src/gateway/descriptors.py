"""The public API's annotated descriptors, in a pool of their own.

The stubs in tickmesh.proto carry no validation rules (see scripts/generate); the message classes
here do, and are used to check requests and to answer reflection, and for nothing else. Both read
the same bytes.
"""

from __future__ import annotations

from importlib import resources

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

PUBLIC_PACKAGE = "tickmesh.v1"
_PUBLIC_DIRECTORY = "tickmesh/v1/"


def _load() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The public files and all that they import, imports first."""
    data = resources.files(__package__.rpartition(".")[0] + ".proto").joinpath("tickmesh.binpb")
    everything = descriptor_pb2.FileDescriptorSet.FromString(data.read_bytes())
    by_name = {file.name: file for file in everything.file}
    wanted: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(name: str) -> None:
        if name not in wanted:
            for dependency in by_name[name].dependency:
                add(dependency)
            wanted[name] = by_name[name]

    for name in by_name:
        if name.startswith(_PUBLIC_DIRECTORY):
            add(name)
    return wanted


FILES: dict[str, descriptor_pb2.FileDescriptorProto] = _load()
"""By file name; a file stands after those that it imports."""

POOL = descriptor_pool.DescriptorPool()
for _file in FILES.values():
    POOL.AddSerializedFile(_file.SerializeToString())


def services() -> list[ServiceDescriptor]:
    """The public services."""
    return [
        POOL.FindServiceByName(f"{file.package}.{service.name}")
        for file in FILES.values()
        for service in file.service
    ]


def method(name: str) -> MethodDescriptor:
    """The descriptor of "tickmesh.v1.JobService/CreateJob". KeyError if there is none."""
    service, _, short_name = name.partition("/")
    return POOL.FindServiceByName(service).methods_by_name[short_name]


def message_type(name: str) -> type[Message]:
    """The annotated class of a message, by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


def request_type(name: str) -> type[Message]:
    """The annotated class of a method's request."""
    return message_type(method(name).input_type.full_name)
