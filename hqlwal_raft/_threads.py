"""Threads that carry out jobs in order, and how the owner of the log hears of it.

A worker's thread holds its worker and nothing else: never the store, so that one that is dropped
unclosed goes. Knows the event loop, but nothing of logs.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from ._environment import Empty, Environment, Loop

__all__ = ["Done", "Worker", "start_thread"]

#: called on the loop with how a job ended: its result, or the error that it raised
Done = Callable[[Any, "BaseException | None"], None]


def start_thread(environment: Environment, run: Callable[[], Any], name: str) -> None:
    """Runs ``run`` in a daemon thread. Raises RuntimeError, with advice, where there is none."""
    try:
        environment.start_thread(run, name)
    except RuntimeError as error:
        error.add_note(
            f"while starting the thread {name} of a log: this process may have no more threads, or "
            "no memory for one: raise its limits (ulimit -u, pids.max of its cgroup)"
        )
        raise


class Worker:
    """A long-lived thread. A fresh or pooled one per sync would cost more than the sync."""

    def __init__(self, name: str, loop: Loop, environment: Environment) -> None:
        self._post = loop.post
        self._monotonic = environment.monotonic
        self._jobs = environment.queue()
        # When to ring, the order of equal times, whom: touched by the thread alone.
        self._alarms: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        start_thread(environment, self._run, name)

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
            timeout = None
            if self._alarms:
                timeout = max(0.0, self._alarms[0][0] - self._monotonic())
            try:
                item = self._jobs.get(timeout=timeout)
            except Empty:
                self._report(heapq.heappop(self._alarms)[2])
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

    def _report(self, call: Callable[[], Any]) -> None:
        # without an event loop there is nobody left who could be told
        with contextlib.suppress(RuntimeError):
            self._post(call)
