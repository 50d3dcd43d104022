"""gRPC server reflection over the public API's own descriptors, with their rules."""

from __future__ import annotations

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from . import descriptors
from .methods import SERVICES

_METHOD = "ServerReflectionInfo"
_VERSIONS = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
"""The same messages under two names; grpcio-reflection has the older."""


def handlers() -> list[grpc.GenericRpcHandler]:
    """One a version, for grpc.aio's server."""
    names = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, *_VERSIONS)
    servicer = ReflectionServicer(names, pool=_pool())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(name, {_METHOD: handler}) for name in _VERSIONS]


def _pool() -> DescriptorPool:
    """The public files, those of health and reflection, and the details that errors carry."""
    pool = DescriptorPool()
    for file in descriptors.FILES.values():
        pool.AddSerializedFile(file.SerializeToString())
    for module in (health_pb2, reflection_pb2, error_details_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
