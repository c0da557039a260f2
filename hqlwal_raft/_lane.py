"""A lock in the place of the event loop: whoever holds it is the owner of the log.

A :class:`Lane` is what a committer takes for its loop and for its disk thread. A change of
threads costs a good part of what a sync does, so a thread that has to wait carries out the
lane's jobs itself (the leader); the others that wait (the followers) wait each on a lock of its
own. Where nobody waits the disk thread does it. It knows answers, jobs and threads; it must not
know what a log is.

- *Jobs are carried out one at a time, in the order in which they were submitted*, whoever does
  it: ``_under_way`` is that one. So two plans never run beside each other, and the
  directory's lock goes only after the last of them.
- *Who carried out a job applies its outcome itself*: an outcome is never handed to a thread that
  would need the lock which one that is awake may hold (on the interpreter's own lock that costs
  5 ms each time).
- *A job is always in one place*: among those that are left, or the one under way, which its carrier
  has in hand until the outcome is added. What an interrupt (MemoryError) breaks off is taken up
  before the lock is given back, or by ``_let_go`` where a thread is about to leave: nobody else
  would come for it.
- *Nobody waits, or carries out a job, with the lock held*, and no code of a user's runs under it.
- *What the committer puts off (``soon``) runs right before the lock is given back*: never in the
  middle of a change, always before anybody else is the owner.
- *The main thread never takes the lock.* A signal's handler may raise in it between any two
  instructions, or call the store itself: others make its calls (``_stand_ins``), and it waits.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from ._answers import Answer
from ._environment import Environment, Lock, Loop
from ._threads import Done, Outcomes, Worker

__all__ = ["Lane"]

logger = logging.getLogger("hqlwal_raft")

_Job = tuple[Callable[[], Any], Done]


class _Waiter:
    """A thread that waits: on a lock that it took once already, until somebody frees it."""

    __slots__ = ("job", "lock")

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        lock.acquire()
        #: what it is woken up for, if it is not for its answer; its until the outcome is added
        self.job: _Job | None = None


class _Event:
    """An answer's event. Set by the owner."""

    __slots__ = ("_lane", "is_set", "waiters")

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.is_set = False
        self.waiters: list[_Waiter] = []

    def set(self) -> None:
        self.is_set = True
        for waiter in self.waiters:
            self._lane.wake(waiter)

    async def wait(self) -> None:
        raise NotImplementedError("a blocking store's answers are waited for by its lane")


class Lane(Worker):
    """See the module."""

    def __init__(self, name: str, environment: Environment) -> None:
        self.lock = environment.lock()
        self._environment = environment
        # All of it belongs to whoever holds the lock.
        self._soon: deque[Callable[[], Any]] = deque()
        self._left: deque[_Job] = deque()
        self._outcomes = Outcomes()
        self._under_way: _Job | None = None
        self._is_stopped = False
        #: threads that wait for an answer or a job, in their order
        self._waiters: dict[_Waiter, None] = {}
        self.loop = Loop(self.post, self._soon.append, partial(_Event, self), self._gather)
        self._worker = environment.start_worker(name, self.loop)

    # --- for the owner (a committer) -------------------------------------------------------

    def submit(self, job: Callable[[], Any], done: Done, *, can_wait: bool = False) -> None:
        """Has a job carried out, once the lock is given back."""
        self._left.append((job, done))

    def set_alarm(self, seconds: float, ring: Callable[[], None]) -> None:
        self._worker.set_alarm(seconds, ring)

    def make_way(self) -> None:
        self._worker.make_way()

    def stop(self) -> None:
        """Ends the disk thread when the jobs before are done."""
        self._is_stopped = True

    def _gather(self, call: Callable[[], Any]) -> None:
        """Makes the call when threads that were just answered had a chance to ask again: they
        all came with one sync, and are to share the next one as well.
        """
        # Not longer than the interpreter takes to go round: on a fast disk a nap costs a sync.
        self.submit(partial(self._environment.sleep, 0.0), lambda _value, _error: call())

    def wake(self, waiter: _Waiter) -> None:
        # One that is no longer among them was woken up for a job, and looks at its answer then.
        if waiter in self._waiters:
            del self._waiters[waiter]
            waiter.lock.release()

    # --- for every thread but the main one -------------------------------------------------

    def post(self, call: Callable[[], Any]) -> None:
        """Makes a call as the owner, and waits for nothing."""
        with self.lock:
            try:
                call()
            except BaseException:  # as an event loop does it: the thread goes on
                logger.exception("a call by the threads of a log failed")
            self._settle()

    def call(self, begin: Callable[[], Any]) -> Any:
        """Makes a call as the owner; where it gives an Answer, waits for that: its value."""
        with self.lock:
            try:
                result = begin()
                self._run_soon()
                if result.__class__ is not Answer:
                    self._pass_on()
                    return result
                waiter = _Waiter(self._environment.lock())
                job = self._next_job(result, waiter)
            except BaseException:
                self._settle()
                raise
        try:
            while True:
                if job is not None:
                    job = self._carry_out(job, result, waiter)
                    continue
                # In this order, since no lock is held: once it is answered no job is given.
                is_answered = result.event.is_set
                if is_answered and waiter.job is None:
                    break
                waiter.lock.acquire()
                job = waiter.job
        except BaseException as error:
            self._let_go(waiter, error)
            raise
        return result.result()

    def wait(self, answer: Answer) -> Any:
        """Waits for an answer: its value, or raises its error."""
        return self.call(lambda: answer)

    def _carry_out(self, job: _Job, answer: Answer, waiter: _Waiter) -> _Job | None:
        """Carries out a job, applies the outcome, and gives the next job, if it is ours."""
        value, failure = None, None
        try:
            value = job[0]()
        except BaseException as error:
            failure = error
        with self.lock:
            self._outcomes.add(partial(self._carried, job, value, failure))
            waiter.job = None
            self._run_soon()
            return self._next_job(answer, waiter)

    def _let_go(self, waiter: _Waiter, error: BaseException) -> None:
        """For a thread that leaves without its answer, interrupted: it waits no more, and of the
        job in hand nobody knows how far it came.
        """
        with self.lock:
            self._waiters.pop(waiter, None)
            if waiter.job is not None:
                self._outcomes.add(partial(self._carried, waiter.job, None, error))
                waiter.job = None
            self._settle()

    # --- with the lock held ----------------------------------------------------------------

    def _settle(self) -> None:
        """Before the lock is given back."""
        try:
            self._run_soon()
            self._pass_on()
        except BaseException:  # an interrupt: perhaps no later call makes up for it
            self._run_soon()
            self._pass_on()
            raise

    def _run_soon(self) -> None:
        while self._outcomes or self._soon:
            try:
                if self._outcomes:
                    self._outcomes.deliver()
                else:
                    self._soon.popleft()()
            except BaseException:
                logger.exception("a call by the threads of a log failed")

    def _carried(self, job: _Job, value: Any, error: BaseException | None) -> None:
        if self._under_way is job:  # else it is applied once more
            self._under_way = None
        job[1](value, error)

    def _next_job(self, answer: Answer, waiter: _Waiter) -> _Job | None:
        """The next job, for a thread that still waits for its answer; if there is none it is
        to wait on its lock. What it leaves is passed on.
        """
        if answer.event.is_set:
            self._pass_on()
            return None
        if self._left and self._under_way is None:
            job = waiter.job = self._under_way = self._left.popleft()
            return job
        if waiter not in answer.event.waiters:
            answer.event.waiters.append(waiter)
        self._waiters[waiter] = None
        return None

    def _pass_on(self) -> None:
        """Gives the next job to a thread that waits, else to the disk thread."""
        if self._under_way is not None:
            return
        if self._left:
            if self._waiters:
                waiter = next(iter(self._waiters))
                waiter.job = self._under_way = self._left.popleft()
                del self._waiters[waiter]
                waiter.lock.release()
            else:
                self._submit(self._left[0])
        elif self._is_stopped:
            self._is_stopped = False
            self._worker.stop()

    def _submit(self, job: _Job) -> None:
        done = partial(self._carried, job)
        self._under_way = self._left.popleft()
        try:
            self._worker.submit(job[0], done)
        except BaseException:
            self._left.appendleft(job)
            self._under_way = None
            raise
