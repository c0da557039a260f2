"""Threads that are none: their jobs run on the event loop, in order, and always in the same one.

For tests that want the same run twice. Knows the loop and a worker's protocol, but no files.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from .._environment import Environment, Loop
from .._threads import Done, Worker
from .._watchdog import Watch

__all__ = ["InlineThreads", "InlineWorker"]

T = TypeVar("T")


class InlineWorker(Worker):
    """Runs each job in a turn of the loop of its own, and reports it in a later one.

    An alarm rings as soon as no job is left before it: the clock is put on to its time.
    """

    def __init__(self, name: str, loop: Loop, environment: Environment) -> None:
        self._soon = loop.soon
        self._environment = environment
        self._left: deque[tuple[Callable[[], Any], Done]] = deque()
        self._bell: tuple[float, Callable[[], None]] | None = None
        self._is_called = False
        self._is_stopped = False

    def submit(self, job: Callable[[], Any], done: Done, *, can_wait: bool = False) -> None:
        if not self._is_stopped:
            self._left.append((job, done))
            self._call()

    def set_alarm(self, seconds: float, ring: Callable[[], None]) -> None:
        if not self._is_stopped:
            self._bell = (self._environment.monotonic() + seconds, ring)
            self._call()

    def stop(self) -> None:
        self._is_stopped = True

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            # a loop that is closed runs nothing more, as a thread whose process has ended
            with contextlib.suppress(RuntimeError):
                self._soon(self._run_next)

    def _run_next(self) -> None:
        self._is_called = False
        if self._left:
            job, done = self._left.popleft()
            try:
                outcome = partial(done, job(), None)
            except BaseException as error:
                outcome = partial(done, None, error)
            self._soon(outcome)
        elif self._bell is not None and not self._is_stopped:
            (when, ring), self._bell = self._bell, None
            self._environment.sleep(max(0.0, when - self._environment.monotonic()))
            ring()
        if self._left or (self._bell is not None and not self._is_stopped):
            self._call()


class InlineThreads(Environment):
    """A mixin: put it before an environment whose ``sleep`` does not wait."""

    def start_worker(self, name: str, loop: Loop) -> Worker:
        return InlineWorker(name, loop, self)

    def look_after(self, watch: Watch) -> None:
        """There is no thread that could notice."""

    def run_in_thread(self, job: Callable[[], T]) -> Awaitable[T]:
        return self._run_here(job)

    async def _run_here(self, job: Callable[[], T]) -> T:
        from anyio.lowlevel import checkpoint  # noqa: PLC0415 - the log below needs no event loop

        await checkpoint()
        return job()
