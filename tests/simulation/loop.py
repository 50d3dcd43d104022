"""An event loop whose time jumps to the next timer and which shuffles what is ready, by a seed.

It also knows processes. What a dead process has left to do is dropped, `finally` included: that is
what SIGKILL does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

CANCELLED_MAX = 50
"""Timers that are kept though they were cancelled."""


class Deadlock(Exception):
    """Nothing is ready and no timer is set: everybody waits for somebody else."""


class Crashed(BaseException):
    """This process is dead. Raised through it where it was killed in the middle of a call."""


class Process:
    """One life of a simulated process: everything that runs in its context ends with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as part of this process."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function as part of this process, soon."""
        asyncio.get_running_loop().call_soon(function, *arguments, context=self.context.copy())


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
OUTSIDE = Context()
"""Nobody's context: what happens in it happens whoever dies."""


def outside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in nobody's context: the timers that it sets outlive the caller."""
    return OUTSIDE.copy().run(function, *arguments)


_serial = itertools.count()


class _Task(asyncio.Task[Any]):
    """Its hash is its number, so that sets of tasks have the same order in every run."""

    _serial: int
    _process: Process | None

    def __hash__(self) -> int:
        return self._serial


class _Future(asyncio.Future[Any]):
    _serial: int

    def __hash__(self) -> int:
        return self._serial


def _make_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> _Task:
    # The number must be there before the task registers itself in a set, within __init__.
    task = _Task.__new__(_Task)
    task._serial = next(_serial)
    task._process = (options.get("context") or copy_context()).get(PROCESS)
    task.__init__(work, loop=loop, **options)  # type: ignore[misc]
    return task


class SimulatedLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._now_s = 1000.0
        self._ready: deque[Any]
        self._scheduled: list[Any]
        self._timer_cancelled_count = 0
        self.steps = 0
        self.errors: list[str] = []
        self.set_task_factory(_make_task)  # type: ignore[arg-type]
        self.set_exception_handler(self._note_error)

    def _note_error(self, _loop: Any, context: dict[str, Any]) -> None:
        error, task = context.get("exception"), context.get("task") or context.get("future")
        dead = isinstance(task, _Task) and task._process is not None and not task._process.alive
        if not dead and not isinstance(error, Crashed):
            self.errors.append(f"{context['message']}: {error!r} of {task!r}")

    def time(self) -> float:
        return self._now_s

    def create_future(self) -> _Future:
        future = _Future.__new__(_Future)
        future._serial = next(_serial)
        future.__init__(loop=self)  # type: ignore[misc]
        return future

    def _run_once(self) -> None:
        if self._timer_cancelled_count > CANCELLED_MAX:
            self._drop_cancelled()
        if not self._ready:
            while self._scheduled and self._scheduled[0]._cancelled:
                heapq.heappop(self._scheduled)._scheduled = False
            if not self._scheduled:
                raise Deadlock
            self._now_s = max(self._now_s, self._scheduled[0]._when)
        while self._scheduled and self._scheduled[0]._when <= self._now_s:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            self._ready.append(handle)
        batch = list(self._ready)
        self._ready.clear()
        if len(batch) > 1:
            self._random.shuffle(batch)
        self.steps += len(batch)
        for handle in batch:
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is None or process.alive:
                handle._run()

    def _drop_cancelled(self) -> None:
        """Most timers are timeouts that did not come true."""
        kept = []
        for handle in self._scheduled:
            if handle._cancelled:
                handle._scheduled = False
            else:
                kept.append(handle)
        heapq.heapify(kept)
        self._scheduled = kept
        self._timer_cancelled_count = 0

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """Forgotten generators are those of dead processes: they do nothing more."""

    def _process_events(self, event_list: Any) -> None:
        """There are none: no sockets."""

    def _write_to_self(self) -> None:
        """There is nobody to wake: one thread."""

    def dispose(self) -> None:
        """End what is left: nobody listens to it any more, nor to what it complains about."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            self.set_exception_handler(lambda _loop, _context: None)
            for task in asyncio.all_tasks(self):
                with contextlib.suppress(BaseException):
                    task.get_coro().close()  # type: ignore[union-attr]
            self._ready.clear()
            self._scheduled.clear()
            gc.collect()
            self.close()
        finally:
            sys.unraisablehook = hook


def simulate(seed: int, main: Callable[[SimulatedLoop], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine on a loop of its own; what it returns."""
    global _serial
    _serial = itertools.count()
    loop = SimulatedLoop(seed)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.dispose()
