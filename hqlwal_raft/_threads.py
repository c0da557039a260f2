"""Workers, which carry out jobs in order, and how the owner of the log hears of it.

A worker is no thread: those of all stores share a few (``_pool``), and each is run by one at a
time. Neither holds the store, so that one that is dropped unclosed goes. Knows the event loop, but
nothing of logs.

*An outcome is kept until it was applied.* An interrupt (KeyboardInterrupt, MemoryError) can come
at the first instruction of the very call that would apply it; then it is delivered once more. So
it may be applied twice, and whoever takes outcomes knows them by what they are the outcome of.

*A thread goes on where it was*: a job stays the first of its worker's until it is done with, for
MemoryError may come wherever memory is taken, and nobody would start the thread again.
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

from ._environment import Bell, Environment, Loop
from ._pool import Pool, Strand, pool_of

__all__ = ["Done", "Mailbox", "Outcomes", "Worker"]

#: called on the loop with how a job ended: its result, or the error that it raised
Done = Callable[[Any, "BaseException | None"], None]

_Item = tuple[Callable[[], Any] | None, Done | None, bool]


def _nothing() -> None:
    pass


#: ends a worker
_STOP: _Item = (None, None, False)
#: has a worker look at its alarms; told from the other by being another tuple
_LOOK: _Item = (_nothing, None, False)


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
        """Applies those that are there. What one lets out stops it; the rest is for the next time,
        and so is what is added meanwhile: a quick disk must not keep the loop to itself.
        """
        left = self._left
        for _ in range(len(left)):
            if not left:
                break
            outcome = left[0]
            if outcome is self._begun:
                left.popleft()  # the second time: it is not kept for a third
                outcome()
            else:
                self._begun = outcome
                outcome()
                left.popleft()
            self._begun = None


class Mailbox:
    """The way of the outcomes to the loop, of all workers whose loop it is. The loop may hold it, so
    it holds no store.
    """

    def __init__(self, environment: Environment, loop: Loop) -> None:
        self.outcomes = Outcomes()
        self._post = loop.post
        self._has_ended = loop.has_ended
        self._users = 0
        # Rung, and not heard yet: once is enough for all that was added meanwhile.
        self._is_rung = False
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

    @classmethod
    def of(cls, environment: Environment, loop: Loop) -> Mailbox:
        """The loop's; called on it. One that has no bell is its worker's alone."""
        key = (id(environment), id(loop.identity))
        found = _mailboxes.get(key) if loop.watch is not None else None
        if found is None or not found.has_bell:
            found = cls(environment, loop)
            if found.has_bell:
                _mailboxes[key] = found
        found._users += 1
        return found

    @property
    def has_bell(self) -> bool:
        return self._bell is not None

    def send(self, *, is_again: bool = False) -> None:
        """From a thread: has what was added delivered. Raises RuntimeError without a loop."""
        bell = self._bell
        if bell is not None and not self._has_ended():
            if is_again or not self._is_rung:
                self._is_rung = True  # before: it may be heard at once
                bell.ring()
        else:
            self._post(self.outcomes.deliver)

    def _rung(self) -> None:
        """On the loop."""
        bell = self._bell
        if bell is not None:
            bell.hush()
        # In this order: what is added before is among what is delivered now, and what is added
        # later rings.
        self._is_rung = False
        try:
            self.outcomes.deliver()
        except BaseException:
            if self._bell is not None and self.outcomes:
                self._bell.ring()
            raise

    def send_end(self) -> None:
        """From a thread, as the last thing of a worker's."""
        # Not among the outcomes: where nobody takes those any more, it would hold itself.
        if self._bell is not None:
            with contextlib.suppress(RuntimeError):
                self._post(self.end)

    def end(self) -> None:
        """On the loop, for one worker. What was sent before may not have been delivered yet."""
        self._users -= 1
        if not self._users:
            # The bell is not closed but let go of: a thread may be about to ring it, and by then
            # its descriptor could be another file's.
            bell, self._bell = self._bell, None
            if bell is not None and self._end_watch is not None:
                self._end_watch()
        self.outcomes.deliver()


# By the environment and the loop, both of which the mailbox keeps.
_mailboxes: weakref.WeakValueDictionary[tuple[int, int], Mailbox] = weakref.WeakValueDictionary()


class Worker(Strand):
    """Carries out jobs in order, in a thread of its pool."""

    #: called once, in the thread, where it finds that the loop has ended
    orphaned: Callable[[], None] | None = None
    #: None where it has no thread: a double's
    _pool: Pool | None = None

    def __init__(self, name: str, loop: Loop, environment: Environment) -> None:
        self.mailbox = Mailbox.of(environment, loop)
        self._monotonic = environment.monotonic
        self.jobs: deque[_Item] = deque()
        # For the thread that runs it: how the first job ended, with that job, and the alarms, each
        # as when to ring, the order of equal times, whom.
        self._ended: tuple[_Item, Callable[[], Any]] | None = None
        self._alarms: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._is_over = False
        try:
            self._pool = pool_of(environment, name, self, has_bells=self.mailbox.has_bell)
        except BaseException:
            self.mailbox.end()
            raise

    def submit(self, job: Callable[[], Any], done: Done, *, can_wait: bool = False) -> None:
        """Runs the job in a thread, and then ``done`` on the loop. From any thread.

        ``can_wait``: while many do the like, jobs of other workers go first.
        """
        self.jobs.append((job, done, can_wait))
        self._pool.wake(self)  # type: ignore[union-attr]  # it has one

    def set_alarm(self, seconds: float, ring: Callable[[], None]) -> None:
        """Rings on the event loop once ``seconds`` are over and the jobs before are done."""
        alarm = (self._monotonic() + seconds, next(self._numbers), ring)
        self.jobs.append((partial(self._set, alarm), None, False))
        self._wake()

    def stop(self) -> None:
        """Ends it when the jobs before are done."""
        self.jobs.append(_STOP)
        self._wake()

    def _wake(self) -> None:
        assert self._pool is not None
        self._pool.wake(self)

    def make_way(self) -> None:
        """Its job does not come back from the disk: the others get another thread meanwhile."""
        if self._pool is not None:
            self._pool.replace(self)

    # --- for the thread that runs it -----------------------------------------------------------

    @property
    def can_wait(self) -> bool:
        try:
            return self.jobs[0][2]
        except IndexError:  # a thread has done it meanwhile
            return False

    def run(self) -> None:
        """Does the first job. It is not begun twice: an interrupt in it is how it ended. ``deliver``
        says so.
        """
        jobs = self.jobs
        item = jobs[0]
        job, done, _ = item
        if item is _STOP:
            self._end()
        elif item is _LOOK:
            self._ring()
        elif done is None:
            job()  # type: ignore[misc]
        else:
            ended = self._ended
            if ended is None or ended[0] is not item:
                try:
                    outcome = partial(done, job(), None)  # type: ignore[misc]
                except BaseException as error:
                    outcome = partial(done, None, error)
                ended = self._ended = (item, outcome)
            self.mailbox.outcomes.add(ended[1])
        # nothing of a finished job, such as a purged segment, is kept alive until the next
        jobs.popleft()
        self._ended = None

    def _set(self, alarm: tuple[float, int, Callable[[], None]]) -> None:
        heapq.heappush(self._alarms, alarm)
        assert self._pool is not None
        self._pool.call_at(alarm[0], self)

    def look_at_alarms(self) -> None:
        """The time of one has come: its ring goes behind the jobs before it."""
        if not self._is_over:
            self.jobs.append(_LOOK)
            self._wake()

    def _ring(self) -> None:
        """Whatever the clock says now: it need not be the queue's."""
        if self._alarms:
            self.mailbox.outcomes.add(self._alarms[0][2])
            heapq.heappop(self._alarms)

    def deliver(self, *, is_again: bool = False) -> None:
        """Has sent what was not applied yet."""
        if not self.mailbox.outcomes:
            return
        try:
            self.mailbox.send(is_again=is_again)
        except RuntimeError:  # without an event loop there is nobody left who could be told
            self.mailbox.outcomes.clear()
            orphaned, self.orphaned = self.orphaned, None
            if orphaned is not None:
                orphaned()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self.mailbox.send_end()
            # Both hold whoever holds this worker, and so would its descriptors be held.
            self.orphaned = None
            self._alarms.clear()
            assert self._pool is not None
            self._pool.leave(self)
