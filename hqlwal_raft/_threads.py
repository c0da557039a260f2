"""Threads that carry out jobs in order, and how the owner of the log hears of it.

A worker's thread holds its worker and nothing else: never the store, so that one that is dropped
unclosed goes. Knows the event loop, but nothing of logs.

*An outcome is kept until it was applied.* An interrupt (KeyboardInterrupt, MemoryError) can come
at the first instruction of the very call that would apply it; then it is delivered once more. So
it may be applied twice, and whoever takes outcomes knows them by what they are the outcome of.

*A thread goes on where it was*: what it has in hand stands in an attribute until it is done with,
for MemoryError may come wherever memory is taken, and nobody would start the thread again.
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

_Item = tuple[Callable[[], Any] | None, Done | None]
#: ends a worker's thread
_STOP: _Item = (None, None)

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
        # The thread's own: the job in hand, how it ended, and the alarms, each as when to ring,
        # the order of equal times, whom.
        self._item: _Item | None = None
        self._ended: Callable[[], Any] | None = None
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
        self._jobs.put(_STOP)

    def _run(self) -> None:
        while True:
            try:
                while self._take():
                    self._do()
                return
            except MemoryError:
                pass

    def _take(self) -> bool:
        """Takes a job in hand; False at the end."""
        while self._item is None:
            try:
                self._item = self._jobs.get(timeout=self._timeout())
            except Empty:
                self._ring()
        return self._item is not _STOP

    def _do(self) -> None:
        """Does the job in hand. It is not begun twice: an interrupt in it is how it ended."""
        assert self._item is not None
        job, done = self._item
        assert job is not None
        if done is None:
            job()
        else:
            if self._ended is None:
                try:
                    self._ended = partial(done, job(), None)
                except BaseException as error:
                    self._ended = partial(done, None, error)
            self._outcomes.add(self._ended)
        # nothing of a finished job, such as a purged segment, is kept alive until the next
        self._item = self._ended = None
        del job, done
        self._deliver()

    def _ring(self) -> None:
        """The time is over: an alarm rings, or what was not applied is delivered again."""
        if self._alarms and self._alarms[0][0] <= self._monotonic() + 0.001:
            self._outcomes.add(self._alarms[0][2])
            heapq.heappop(self._alarms)
        self._deliver()

    def _timeout(self) -> float | None:
        """How long to wait for a job."""
        timeout = _AGAIN_SECONDS if self._outcomes else None
        if self._alarms:
            until = max(0.0, self._alarms[0][0] - self._monotonic())
            timeout = until if timeout is None else min(timeout, until)
        return timeout

    def _deliver(self) -> None:
        if self._outcomes:
            # without an event loop there is nobody left who could be told
            with contextlib.suppress(RuntimeError):
                self._post(self._outcomes.deliver)
