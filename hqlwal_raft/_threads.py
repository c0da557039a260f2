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
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from ._environment import Empty, Environment, Loop, Queue

__all__ = ["Done", "Outcomes", "Worker"]

#: called on the loop with how a job ended: its result, or the error that it raised
Done = Callable[[Any, "BaseException | None"], None]

#: what was not applied by then is delivered again
_AGAIN_SECONDS = 0.1


class _Bell:
    """An eventfd: it says that there is something, whatever that is.

    A thread that waits for one is woken on the core of the thread that rings. A futex (a lock,
    a queue) would wake it on another core, which was halted.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.descriptor = environment.eventfd()
        _bells.add(self)

    def ring(self) -> None:
        with contextlib.suppress(OSError):  # closed meanwhile, or rung often enough
            self._environment.eventfd_write(self.descriptor, 1)

    def hush(self) -> None:
        with contextlib.suppress(OSError):
            self._environment.eventfd_read(self.descriptor)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            self._environment.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


# A forked child closes its copies before anything else: it must not ring its parent's bells. It
# leaves its loop alone: removing a reader there would unregister it in the parent's epoll.
_bells: weakref.WeakSet[_Bell] = weakref.WeakSet()


def _close_in_forked_child() -> None:
    for bell in list(_bells):
        with contextlib.suppress(Exception):
            bell.close()


Environment().call_in_forked_child(_close_in_forked_child)


class _Jobs:
    """A queue of one thread's jobs, with a bell."""

    def __init__(self, environment: Environment) -> None:
        self._items: deque[Any] = deque()
        self._bell = _Bell(environment)
        self._wait = environment.poller(self._bell.descriptor)

    def put(self, item: Any, /) -> None:
        self._items.append(item)
        self._bell.ring()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002
        items = self._items
        while not items:
            if not self._wait(timeout):
                raise Empty
            self._bell.hush()  # it may have been rung for an item that was taken already
        return items.popleft()


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


class _Mailbox:
    """The way of the outcomes to the loop. The loop may hold it, so it holds no store."""

    def __init__(self, environment: Environment, loop: Loop) -> None:
        self.outcomes = Outcomes()
        self._post = loop.post
        self._is_closed = loop.is_closed
        self._bell: _Bell | None = None
        self._end_watch: Callable[[], Any] | None = None
        if loop.watch is not None:
            bell = _Bell(environment)
            try:
                self._end_watch = loop.watch(bell.descriptor, self._rung)
            except NotImplementedError:
                bell.close()
            else:
                self._bell = bell

    @property
    def has_bell(self) -> bool:
        return self._bell is not None

    def send(self) -> bool:
        """From the thread: has what was added delivered; False where the loop has ended."""
        if self._bell is not None:
            self._bell.ring()
            return not self._is_closed()
        try:
            self._post(self.outcomes.deliver)
        except RuntimeError:
            return False
        return True

    def _rung(self) -> None:
        """On the loop."""
        bell = self._bell
        if bell is not None:
            bell.hush()
        try:
            self.outcomes.deliver()
        except BaseException:
            if bell is not None and self.outcomes:
                bell.ring()
            raise

    def end(self) -> None:
        """On the loop, as the last outcome of all."""
        bell, self._bell = self._bell, None
        if bell is not None and self._end_watch is not None:
            self._end_watch()
            bell.close()


class Worker:
    """A long-lived thread. A fresh or pooled one per sync would cost more than the sync."""

    #: called once, in the thread, where it finds that the loop has ended
    orphaned: Callable[[], None] | None = None

    def __init__(self, name: str, loop: Loop, environment: Environment) -> None:
        self._mailbox = mailbox = _Mailbox(environment, loop)
        self._monotonic = environment.monotonic
        self._jobs: Queue[Any] = _Jobs(environment) if mailbox.has_bell else environment.queue()
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
                elif self._mailbox.outcomes:
                    self._mailbox.send()
                continue
            if item is None:
                self._report(self._mailbox.end)
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
        timeout = _AGAIN_SECONDS if self._mailbox.outcomes else None
        if self._alarms:
            until = max(0.0, self._alarms[0][0] - self._monotonic())
            timeout = until if timeout is None else min(timeout, until)
        return timeout

    def _report(self, call: Callable[[], Any]) -> None:
        self._mailbox.outcomes.add(call)
        if not self._mailbox.send():
            orphaned, self.orphaned = self.orphaned, None
            if orphaned is not None:
                orphaned()
