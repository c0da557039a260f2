"""Threads that carry out jobs in order, and how the owner of the log hears of it.

A worker's thread holds its worker and nothing else: never the store, so that one that is dropped
unclosed goes. Knows the event loop, but nothing of logs.

*An outcome is kept until it was applied.* An interrupt (KeyboardInterrupt, MemoryError) can come
at the first instruction of the very call that would apply it; then it is delivered once more. So
it may be applied twice, and whoever takes outcomes knows them by what they are the outcome of.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from ._environment import Empty, Environment, Loop

__all__ = ["Done", "Outcomes", "Worker"]

#: called on the loop with how a job ended: its result, or the error that it raised
Done = Callable[[Any, "BaseException | None"], None]

#: what was not applied by then is delivered again
_AGAIN_SECONDS = 0.1


class Outcomes:
    """How jobs ended, in order, until it was applied. Threads add, the owner delivers."""

    def __init__(self) -> None:
        self._left: deque[Callable[[], Any]] = deque()
        # The outcome whose application was begun, so that one that fails twice stops nobody.
        self._begun: Callable[[], Any] | None = None

    def __bool__(self) -> bool:
        return bool(self._left)

    def add(self, outcome: Callable[[], Any]) -> None:
        self._left.append(outcome)

    def deliver(self) -> None:
        """Applies them. What one lets out stops it; the rest is for the next time."""
        left = self._left
        while left:
            outcome = left[0]
            if outcome is self._begun:
                left.popleft()  # the second time: it is not kept for a third
                outcome()
            else:
                self._begun = outcome
                outcome()
                left.popleft()
            self._begun = None


class Worker:
    """A long-lived thread. A fresh or pooled one per sync would cost more than the sync."""

    def __init__(self, name: str, loop: Loop, environment: Environment) -> None:
        self._post = loop.post
        self._outcomes = Outcomes()
        self._monotonic = environment.monotonic
        self._jobs = environment.queue()
        # When to ring, the order of equal times, whom: touched by the thread alone.
        self._alarms: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        environment.start_thread(self._run, name)

    def submit(self, job: Callable[[], Any], done: Done) -> None:
        """Runs the job in the thread, and then ``done`` on the loop. From any thread."""
        self._jobs.put((job, done))

    def set_alarm(self, seconds: float, ring: Callable[[], None]) -> None:
        """Rings on the event loop once ``seconds`` are over and the jobs before are done."""
        alarm = (self._monotonic() + seconds, next(self._numbers), ring)
        self._jobs.put((partial(heapq.heappush, self._alarms, alarm), None))

    def stop(self) -> None:
        """Ends the thread when the jobs before are done."""
        self._jobs.put(None)

    def _run(self) -> None:
        while True:
            try:
                item = self._jobs.get(timeout=self._timeout())
            except Empty:
                if self._alarms and self._alarms[0][0] <= self._monotonic() + 0.001:
                    self._report(heapq.heappop(self._alarms)[2])
                elif self._outcomes:
                    self._deliver()
                continue
            if item is None:
                return
            job, done = item
            try:
                outcome = None if done is None else partial(done, job(), None)
                if done is None:
                    job()
            except BaseException as error:
                outcome = partial(done, None, error)
            if outcome is not None:
                self._report(outcome)
            # nothing of a finished job, such as a purged segment, is kept alive until the next
            del item, job, done, outcome

    def _timeout(self) -> float | None:
        """How long to wait for a job."""
        timeout = _AGAIN_SECONDS if self._outcomes else None
        if self._alarms:
            until = max(0.0, self._alarms[0][0] - self._monotonic())
            timeout = until if timeout is None else min(timeout, until)
        return timeout

    def _report(self, call: Callable[[], Any]) -> None:
        self._outcomes.add(call)
        self._deliver()

    def _deliver(self) -> None:
        # without an event loop there is nobody left who could be told
        with contextlib.suppress(RuntimeError):
            self._post(self._outcomes.deliver)
