"""Logs of every process: one JSON line to stderr for each event, with what belongs to it.

    log = telemetry.logger(__name__)
    log.warning("what happened", attempt=attempt_id, exc_info=error)

No library does it: this is all that would be used of one, and they take long to import, which
every start of a process waits for: a fifth of its processor time, measured with structlog.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator

import grpc.aio

SECRET_WORDS = ("authorization", "api_key", "password", "secret", "token", "payload")
"""Keys with one of these in them never reach a log line."""

Event = dict[str, object]


class Logger:
    """Of one module."""

    __slots__ = ("_module",)

    def __init__(self, module: str) -> None:
        self._module = module

    def info(self, event: str, *, exc_info: BaseException | None = None, **values: object) -> None:
        """Something to know."""
        self._tell("info", event, exc_info, values)

    def warning(
        self, event: str, *, exc_info: BaseException | None = None, **values: object
    ) -> None:
        """Something is not as it should be, and the process goes on as if it were."""
        self._tell("warning", event, exc_info, values)

    def error(self, event: str, *, exc_info: BaseException | None = None, **values: object) -> None:
        """Something that somebody should look at."""
        self._tell("error", event, exc_info, values)

    def _tell(self, level: str, event: str, error: BaseException | None, values: Event) -> None:
        shown = {key: _hidden(key, value) for key, value in values.items()}
        told: Event = {"module": self._module, **shown, "event": event, **_process}
        told["level"] = level
        told["timestamp"] = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        if error is not None:
            told["exception"] = "".join(traceback.format_exception(error)).rstrip("\n")
        _sink(told)


def _hidden(key: str, value: object) -> object:
    return "[hidden]" if any(word in key.lower() for word in SECRET_WORDS) else value


def _to_stderr(event: Event) -> None:
    # In one piece, so that lines of several threads stay whole.
    sys.stderr.write(json.dumps(event, default=repr) + "\n")


_process: dict[str, str] = {}
"""Which process this is."""
_sink: Callable[[Event], object] = _to_stderr


class _Undelivered(logging.Filter):
    """gRPC tells with a traceback of a client that goes away while it is sent something, as any
    client may: one line is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError):
            record.msg = f"not all was sent, the client must be gone: {record.getMessage()}"
            record.args = record.exc_info = record.exc_text = None
        return True


def start(service: str, instance: str) -> None:
    """Say in each line which process it is from; libraries tell from warnings on. Call once,
    first."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s %(message)s")
    logging.getLogger("grpc._cython.cygrpc").addFilter(_Undelivered())
    _process.update(service=service, instance=instance)


def logger(name: str) -> Logger:
    """A module's logger: see this one."""
    return Logger(name)


@contextlib.contextmanager
def diverted(sink: Callable[[Event], object]) -> Iterator[None]:
    """Events go there meanwhile, and not to stderr: for tests."""
    global _sink
    before, _sink = _sink, sink
    try:
        yield
    finally:
        _sink = before
