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

from ._environment import Bell, Empty, Environment, Loop, Queue

__all__ = ["Done", "Outcomes", "Worker", "start_thread"]

#: called on the loop with how a job ended: its result, or the error that it raised
Done = Callable[[Any, "BaseException | None"], None]

_Item = tuple[Callable[[], Any] | None, Done | None]
#: ends a worker's thread
_STOP: _Item = (None, None)

#: what was not applied by then is delivered again
_AGAIN_SECONDS = 0.1


class _Jobs:
    """A queue of one thread's jobs, with a bell."""

    def __init__(self, environment: Environment) -> None:
        self._items: deque[Any] = deque()
        self._bell = environment.bell()

    def put(self, item: Any, /) -> None:
        self._items.append(item)
        self._bell.ring()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002
        items = self._items
        while not items:
            if not self._bell.wait(timeout):
                raise Empty
            # else it may have been rung for an item that was taken already
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

    def clear(self) -> None:
        self._left.clear()

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
        self._has_ended = loop.has_ended
        self._bell: Bell | None = None
        self._end_watch: Callable[[], Any] | None = None
        if loop.watch is not None:
            bell = environment.bell()
            try:
                self._end_watch = loop.watch(bell.descriptor, self._rung)
            except NotImplementedError:
                bell.close()
            else:
                self._bell = bell

    @property
    def has_bell(self) -> bool:
        return self._bell is not None

    def send(self) -> None:
        """From the thread: has what was added delivered. Raises RuntimeError without a loop."""
        bell = self._bell
        if bell is not None and not self._has_ended():
            bell.ring()
        else:
            self._post(self.outcomes.deliver)

    def _rung(self) -> None:
        """On the loop."""
        bell = self._bell
        if bell is not None:
            bell.hush()
        try:
            self.outcomes.deliver()
        except BaseException:
            if self._bell is not None and self.outcomes:
                self._bell.ring()
            raise

    def send_end(self) -> None:
        """From the thread, as the last thing of all."""
        # Not among the outcomes: where nobody takes those any more, it would hold itself.
        if self._bell is not None:
            with contextlib.suppress(RuntimeError):
                self._post(self._end)

    def _end(self) -> None:
        """On the loop. What was sent before may not have been delivered yet."""
        # The bell is not closed but let go of: the thread may be about to ring it, and by then
        # its descriptor could be another file's.
        bell, self._bell = self._bell, None
        if bell is not None and self._end_watch is not None:
            self._end_watch()
        self.outcomes.deliver()


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

    #: called once, in the thread, where it finds that the loop has ended
    orphaned: Callable[[], None] | None = None

    def __init__(self, name: str, loop: Loop, environment: Environment) -> None:
        self._mailbox = mailbox = _Mailbox(environment, loop)
        self._monotonic = environment.monotonic
        self._jobs: Queue[Any] = _Jobs(environment) if mailbox.has_bell else environment.queue()
        # The thread's own: the job in hand, how it ended, and the alarms, each as when to ring,
        # the order of equal times, whom.
        self._item: _Item | None = None
        self._ended: Callable[[], Any] | None = None
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
        self._jobs.put(_STOP)

    def _run(self) -> None:
        while True:
            try:
                while self._take():
                    self._do()
                self._mailbox.send_end()
                # Both hold whoever holds this worker, and so would its descriptors be held.
                self.orphaned = None
                self._alarms.clear()
                return
            except MemoryError:
                pass

    def _take(self) -> bool:
        """Takes a job in hand; False at the end."""
        while self._item is None:
            timeout, is_for_alarm = self._waiting()
            try:
                self._item = self._jobs.get(timeout=timeout)
            except Empty:
                if is_for_alarm:  # whatever the clock says now: it need not be the queue's
                    self._mailbox.outcomes.add(self._alarms[0][2])
                    heapq.heappop(self._alarms)
                self._deliver()
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
            self._mailbox.outcomes.add(self._ended)
        # nothing of a finished job, such as a purged segment, is kept alive until the next
        self._item = self._ended = None
        del job, done
        self._deliver()

    def _waiting(self) -> tuple[float | None, bool]:
        """How long to wait for a job, and whether an alarm rings then; else what was not applied
        is delivered again.
        """
        again = _AGAIN_SECONDS if self._mailbox.outcomes else None
        if self._alarms:
            until = max(0.0, self._alarms[0][0] - self._monotonic())
            if again is None or until <= again:
                return until, True
        return again, False

    def _deliver(self) -> None:
        if not self._mailbox.outcomes:
            return
        try:
            self._mailbox.send()
        except RuntimeError:  # without an event loop there is nobody left who could be told
            self._mailbox.outcomes.clear()
            orphaned, self.orphaned = self.orphaned, None
            if orphaned is not None:
                orphaned()
