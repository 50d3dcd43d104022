"""Logs and traces of every process: structlog to stderr as JSON lines, OpenTelemetry for traces.

Traces are exported only where OTEL_EXPORTER_OTLP_ENDPOINT is set and an exporter is installed; the
trace id of a call is in its log lines either way.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import grpc.aio
import structlog
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

SECRET_WORDS = ("authorization", "api_key", "password", "secret", "token", "payload")
"""Keys with one of these in them never reach a log line."""


def _hide_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key in event:
        if any(word in key.lower() for word in SECRET_WORDS):
            event[key] = "[hidden]"
    return event


class _Undelivered(logging.Filter):
    """gRPC tells with a traceback of a client that goes away while it is sent something, as any
    client may: one line is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError):
            record.msg = f"not all was sent, the client must be gone: {record.getMessage()}"
            record.args = record.exc_info = record.exc_text = None
        return True


def start(service: str, instance: str) -> None:
    """Set up logging and tracing for this process. Call once, first."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s %(message)s")
    logging.getLogger("grpc._cython.cygrpc").addFilter(_Undelivered())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _hide_secrets,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service, instance=instance)
    resource = Resource.create(
        {"service.name": f"tickmesh-{service}", "service.instance.id": instance}
    )
    trace.set_tracer_provider(TracerProvider(resource=resource))


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger: `logger(__name__).info("what happened", key=value)`."""
    bound: structlog.stdlib.BoundLogger = structlog.get_logger(module=name)
    return bound
