"""An event loop whose time jumps to the next timer and which shuffles what is ready, by a seed.

It also knows processes. What a dead process has left to do is dropped, `finally` included: that is
what SIGKILL does. What one that is stopped has to do waits until it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import random
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from heapq import heapify, heappop, heappush
from typing import Any

CANCELLED_MAX = 50
"""Timers that are kept though they were cancelled."""

THREAD_S = 0.002
"""How long a thread takes at most, before and after it does what it is for."""


class Deadlock(Exception):
    """Nothing is ready and no timer is set: everybody waits for somebody else."""


class Crashed(BaseException):
    """This process is dead. Raised through it where it was killed in the middle of a call."""


class Process:
    """One life of a simulated process: everything that runs in its context ends with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped_until_s = 0.0
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as part of this process."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

    def stop(self, for_s: float) -> None:
        """It does nothing for a while, and notices nothing of that but by its clocks."""
        self.stopped_until_s = asyncio.get_running_loop().time() + for_s

    @property
    def is_stopped(self) -> bool:
        """Whether it does nothing now."""
        return self.stopped_until_s > asyncio.get_running_loop().time()

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function as part of this process, soon."""
        asyncio.get_running_loop().call_soon(function, *arguments, context=self.context.copy())


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
OUTSIDE = Context()
"""Nobody's context: what happens in it happens whoever dies. The loop's own `call_later` and
`call_at` take it as it is."""


def outside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in nobody's context: the timers that it sets outlive the caller."""
    return OUTSIDE.copy().run(function, *arguments)


_serial = itertools.count()


def _number(self: _Task | _Future) -> int:
    """A hash, given out on demand, by which sets of tasks have the same order in every run."""
    if self._serial < 0:
        self._serial = next(_serial)
    return self._serial


class _Task(asyncio.Task[Any]):
    _serial = -1
    _process: Process | None
    __hash__ = _number


class _Future(asyncio.Future[Any]):
    _serial = -1
    __hash__ = _number


def _make_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> _Task:
    task = _Task(work, loop=loop, **options)
    context = options.get("context")
    task._process = PROCESS.get() if context is None else context.get(PROCESS)
    return task


class _Handle:
    """What asyncio's handles are, without what is for debugging: there are millions."""

    __slots__ = ("_loop", "arguments", "callback", "context", "ended", "when_s")

    def __init__(
        self,
        loop: SimulatedLoop,
        when_s: float | None,
        callback: Callable[..., Any],
        arguments: tuple[Any, ...],
        context: Context | None,
    ) -> None:
        """when_s: None if it is not for a timer."""
        self._loop = loop
        self.when_s = when_s
        self.callback = callback
        self.arguments = arguments
        self.context = copy_context() if context is None else context
        self.ended = False
        """It has run, or never will."""

    def cancel(self) -> None:
        if not self.ended:
            self.ended = True
            self.callback, self.arguments = _nothing, ()
            self._loop.cancelled_count += self.when_s is not None

    def cancelled(self) -> bool:
        return self.callback is _nothing

    def when(self) -> float:
        assert self.when_s is not None
        return self.when_s


def _nothing() -> None:
    """What a cancelled handle calls."""


def _forget(handle: _Handle) -> None:
    """It never runs. What was begun stays as it is; what was not is no forgotten coroutine."""
    work = getattr(getattr(handle.callback, "__self__", None), "get_coro", None)
    if work is not None and inspect.getcoroutinestate(work()) == inspect.CORO_CREATED:
        work().close()


class SimulatedLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self.now_s = 1000.0
        self._soon: list[_Handle] = []
        self._timers: list[tuple[float, int, _Handle]] = []
        self._timers_made = itertools.count()
        self.cancelled_count = 0
        """Of timers that are kept though they were cancelled; about."""
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
        return self.now_s

    def create_future(self) -> _Future:
        return _Future(loop=self)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *arguments: Any, context: Context | None = None
    ) -> _Handle:
        handle = _Handle(self, None, callback, arguments, context)
        self._soon.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *arguments: Any,
        context: Context | None = None,
    ) -> _Handle:
        handle = _Handle(self, when, callback, arguments, context)
        heappush(self._timers, (when, next(self._timers_made), handle))
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *arguments: Any,
        context: Context | None = None,
    ) -> _Handle:
        when = self.now_s + delay
        handle = _Handle(self, when, callback, arguments, context)
        heappush(self._timers, (when, next(self._timers_made), handle))
        return handle

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, function: Callable[..., Any], *arguments: Any
    ) -> asyncio.Future[Any]:
        """There are no threads: it is done here, after a while, and known after another."""
        done = self.create_future()

        def decide(result: Any, error: Exception | None) -> None:
            if not done.cancelled():
                if error is None:
                    done.set_result(result)
                else:
                    done.set_exception(error)

        def act() -> None:
            result, failure = None, None
            try:
                result = function(*arguments)
            except Exception as error:
                failure = error
            self.call_later(self._random.uniform(0.0, THREAD_S), decide, result, failure)

        self.call_later(self._random.uniform(0.0, THREAD_S), act)
        return done

    def _run_once(self) -> None:
        """As often as there is more to do: this is what a simulation is made of."""
        while not self._stopping:
            if self.cancelled_count > CANCELLED_MAX:
                self._drop_cancelled()
            timers, batch = self._timers, self._soon
            self._soon = []
            if not batch:
                while timers and timers[0][2].ended:
                    heappop(timers)
                if not timers:
                    raise Deadlock
                if timers[0][0] > self.now_s:
                    self.now_s = timers[0][0]
            now_s = self.now_s
            while timers and timers[0][0] <= now_s:
                batch.append(heappop(timers)[2])
            if len(batch) > 1:
                self._random.shuffle(batch)
            self.steps += len(batch)
            for handle in batch:
                context = handle.context
                process = context.get(PROCESS)
                if handle.ended:
                    continue
                if process is not None and not process.alive:
                    _forget(handle)
                    continue
                if process is not None and process.stopped_until_s > now_s:
                    number = next(self._timers_made)
                    heappush(timers, (process.stopped_until_s, number, handle))
                    continue
                handle.ended = True
                try:
                    context.run(handle.callback, *handle.arguments)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    message = f"an error in {handle.callback}"
                    self.call_exception_handler({"message": message, "exception": error})

    def _drop_cancelled(self) -> None:
        """Most timers are timeouts that did not come true."""
        self._timers = [timer for timer in self._timers if not timer[2].ended]
        heapify(self._timers)
        self.cancelled_count = 0

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
            self._soon.clear()
            self._timers.clear()
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
