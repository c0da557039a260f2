"""The threads that all stores of a process share: a few for each kind of work.

A *strand* has jobs that are done in order, one at a time; a pool's threads run whichever strands
have any. One store alone is run by one thread, that waits on a bell of its own: the hand-over is as
short as to a thread of its own. Many share at most ``_LIMITS``. A strand whose job hangs keeps its
thread, and the others get another one (:meth:`Pool.replace`).

Three things are shared without a lock, since the owner of a log must neither wait nor be caught
by an interrupt while it holds one: the strands that are ready, the threads that are idle, and which
thread runs a strand (``Strand.runner``). Each is changed by single operations of a deque or a dict,
which the interpreter makes whole. What makes them safe:

- a strand may be among the ready ones twice, or without a job: whoever runs it looks;
- a thread says that it is idle, and *then* looks whether a strand is ready; who has a job adds the
  strand, and *then* looks for an idle thread;
- a thread lets go of a strand, and *then* looks whether it got a job meanwhile.

The first of the idle threads, which is woken last, minds the time: alarms, and outcomes that were
not applied. It must not know what jobs do, nor any store.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import sys
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from ._environment import Empty, Environment, Queue

__all__ = ["Pool", "Strand", "pool_of", "start_thread"]

#: threads of a kind, while none hangs
_LIMITS = {"hqlwal-housekeeping": 3}
_LIMIT = 4
#: what was not applied by then is delivered again
_AGAIN_SECONDS = 0.1


def start_thread(environment: Environment, run: Callable[[], Any], name: str) -> None:
    """Runs ``run`` in a daemon thread. Raises RuntimeError, with advice, where there is none."""
    if (
        sys.is_finalizing()
    ):  # as Python 3.12 does; before that the start would be waited for, for ever
        raise RuntimeError("the interpreter ends: no thread can be started")
    try:
        environment.start_thread(run, name)
    except RuntimeError as error:
        error.add_note(
            f"while starting the thread {name} of a log: this process may have no more threads, or "
            "no memory for one: raise its limits (ulimit -u, pids.max of its cgroup)"
        )
        raise


class Strand:
    """What a pool runs."""

    #: the thread that runs it, as the only value; empty where none does
    runner: dict[int, Thread]

    #: the way of its outcomes, with those that were not applied yet as ``outcomes``
    mailbox: Any

    #: what it has to do
    jobs: deque[Any]

    @property
    def can_wait(self) -> bool:
        """Whether its first job may wait for those of others."""
        raise NotImplementedError

    def run(self) -> None:
        """Does the first job; ``deliver`` tells how it ended."""
        raise NotImplementedError

    def look_at_alarms(self) -> None:
        raise NotImplementedError

    def deliver(self, *, is_again: bool = False) -> None:
        """Has its outcomes applied that were not yet; ``is_again``: that was asked for before."""
        raise NotImplementedError


class _Calls:
    """A queue of one taker, with a bell."""

    def __init__(self, environment: Environment) -> None:
        self._items: deque[None] = deque()
        self._bell = environment.bell()

    def put(self, item: None, /) -> None:
        self._items.append(item)
        self._bell.ring()

    def get(self, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002
        items = self._items
        while not items:
            if not self._bell.wait(timeout):
                raise Empty
            # else it may have been rung for an item that was taken already
        items.popleft()


class Thread:
    """A thread of a pool: an object that its thread runs."""

    def __init__(self, pool: Pool, calls: Queue[None]) -> None:
        self._pool = pool
        self.calls = calls
        #: what it has in hand
        self.strand: Strand | None = None
        # Whose outcomes are to be sent. As late as can be: the owner that is woken needs the
        # interpreter, which this thread gives up only where it waits.
        self._untold: Strand | None = None
        #: its job hangs, and another thread has its place
        self.is_replaced = False

    def run(self) -> None:
        while True:
            try:
                while self._go_on():
                    pass
                return
            except MemoryError:
                pass

    def _go_on(self) -> bool:
        """The next step; False at the end."""
        pool, strand = self._pool, self.strand
        if strand is None:
            strand = self.strand = pool.first_ready(self)
            if strand is None:
                return self._rest()
        if self._untold is not None:
            self._tell()
        if self in pool.idle:
            self._is_up()
        if strand.runner.setdefault(0, self) is not self:
            pool.took(strand)
            if (
                strand.jobs
            ):  # it may have been let go meanwhile, and what was taken be its next call
                pool.wake(strand)
            self.strand = None
            return True
        pool.took(strand)
        jobs = strand.jobs
        if jobs:
            strand.run()
            self._untold = strand
        if self.is_replaced:
            pool.is_back(self)
        if not jobs:
            strand.runner.pop(0, None)
            if not jobs:
                self.strand = None
        return True

    def _rest(self) -> bool:
        """Nothing is ready: waits until something is; False where it is not needed any more."""
        pool = self._pool
        idle = pool.idle
        if pool.has_too_many:
            self._tell()
            self._is_up()
            if pool.may_go(self):
                return False
        if self not in idle:
            idle.append(self)
        if pool.first_ready(self) is not None:
            return True
        # Whoever is first stays so until it is given something to do.
        timeout, is_for_alarm = None, False
        try:
            if idle[0] is self:
                timeout, is_for_alarm = pool.until_next()
        except IndexError:
            pass
        if self._untold is not None:
            self._tell()
        try:
            self.calls.get(timeout=timeout)
        except Empty:
            pool.mind_the_time(is_for_alarm=is_for_alarm)
        return True

    def _tell(self) -> None:
        strand = self._untold
        if strand is not None:
            strand.deliver()
            self._untold = None

    def _is_up(self) -> None:
        """It is not idle any more, if it was and nobody woke it."""
        idle = self._pool.idle
        if self in idle:
            with contextlib.suppress(ValueError):
                idle.remove(self)
            with contextlib.suppress(IndexError):
                idle[0].calls.put(None)  # it minds the time now


class Pool:
    """The threads for one kind of work in one environment."""

    def __init__(self, environment: Environment, name: str, *, has_bells: bool) -> None:
        self.environment = environment
        self._name = name
        self._has_bells = has_bells
        self._limit = _LIMITS.get(name, _LIMIT)
        self.idle: deque[Thread] = deque()
        self._ready: deque[Strand] = deque()
        #: ready for what can wait
        self._later: deque[Strand] = deque()
        # From here on guarded by the lock, which no owner takes but to open a store, or to start a
        # thread.
        self._lock = environment.lock()
        self._threads: set[Thread] = set()
        self._strands: set[Strand] = set()
        #: one strand of each; replaced, never changed
        self._mailboxes: dict[Any, Strand] = {}
        self._is_over = False
        self._alarms: list[tuple[float, int, Strand]] = []
        self._numbers = itertools.count()
        _pools.add(self)

    # --- for owners, and any thread ----------------------------------------------------------

    @property
    def has_too_many(self) -> bool:
        return not self._strands or len(self._threads) > self._limit

    def join(self, strand: Strand) -> bool:
        """Runs it from now on; False where the pool is over."""
        with self._lock:
            if self._is_over:
                return False
            strand.runner = {}
            self._strands.add(strand)
            self._mailboxes = {strand.mailbox: strand, **self._mailboxes}
        try:
            if not self._threads:
                self._start()
        except BaseException:
            self.leave(strand)
            raise
        return True

    def wake(self, strand: Strand) -> None:
        """The strand has a job."""
        if strand.runner:
            return  # who runs it looks for more when it lets go
        (self._later if strand.can_wait else self._ready).append(strand)
        self._call_one()

    def _call_one(self) -> None:
        try:
            thread = self.idle.pop()
        except IndexError:
            if len(self._threads) < self._limit:
                with contextlib.suppress(RuntimeError):  # those that are there do it
                    self._start()
        else:
            thread.calls.put(None)

    def replace(self, strand: Strand) -> None:
        """A job of the strand hangs: its thread gives up its place."""
        with self._lock:
            thread = strand.runner.get(0)
            if thread is None or thread.is_replaced:
                return
            thread.is_replaced = True
            self._limit += 1
        self._call_one()  # also to mind the time

    def _start(self) -> None:
        calls: Queue[None] = (
            _Calls(self.environment) if self._has_bells else self.environment.queue()
        )
        thread = Thread(self, calls)
        with self._lock:
            self._threads.add(thread)
        try:
            start_thread(self.environment, thread.run, self._name)
        except BaseException:
            with self._lock:
                self._threads.discard(thread)
            raise

    # --- for its threads -----------------------------------------------------------------------

    def first_ready(self, thread: Thread) -> Strand | None:
        """A strand that may be run; it stays among the ready ones until it was taken."""
        ready = self._ready
        if ready:
            with contextlib.suppress(IndexError):  # another thread was quicker
                return ready[0]
        return self._first_later(thread) if self._later else None

    def _first_later(self, thread: Thread) -> Strand | None:
        """One thread stays free for what cannot wait."""
        others = [each.strand for each in list(self._threads) if each is not thread]
        if sum(1 for each in others if each is not None and each.can_wait) < self._limit - 1:
            with contextlib.suppress(IndexError):
                return self._later[0]
        return None

    def took(self, strand: Strand) -> None:
        """A thread has it in hand."""
        try:
            self._ready.remove(strand)
        except ValueError:
            with contextlib.suppress(ValueError):
                self._later.remove(strand)

    def may_go(self, thread: Thread) -> bool:
        """Whether a thread that has nothing to do is not needed any more; then it is none of ours."""
        with self._lock:
            if not self.has_too_many or (self._strands and self._ready):
                return False
            self._threads.discard(thread)
            return True

    def is_back(self, thread: Thread) -> None:
        """Its job does not hang any more."""
        with self._lock:
            if thread.is_replaced:
                thread.is_replaced = False
                self._limit -= 1

    def leave(self, strand: Strand) -> None:
        """A strand has ended; the threads end with the last one."""
        with self._lock:
            self._strands.discard(strand)
            self._alarms = [alarm for alarm in self._alarms if alarm[2] is not strand]
            heapq.heapify(self._alarms)
            self._mailboxes = {other.mailbox: other for other in self._strands}
            if not self._strands:
                self._is_over = True
                _forget(self)
            threads = list(self._threads)
        if self._is_over:
            for thread in threads:
                thread.calls.put(None)

    # --- time ----------------------------------------------------------------------------------

    def call_at(self, when: float, strand: Strand) -> None:
        """Has the strand look at its alarms at that time."""
        with self._lock:
            heapq.heappush(self._alarms, (when, next(self._numbers), strand))
            is_first = self._alarms[0][2] is strand
        if is_first:
            with contextlib.suppress(IndexError):
                self.idle[0].calls.put(None)  # it waits for a later time

    def until_next(self) -> tuple[float | None, bool]:
        """How long the thread that minds the time may wait, and whether an alarm is due then."""
        again: float | None = None
        for mailbox in self._mailboxes:
            if mailbox.outcomes:
                again = _AGAIN_SECONDS
        # Without the lock: an alarm that comes meanwhile is followed by a call.
        alarms = self._alarms
        try:
            when = alarms[0][0]
        except IndexError:
            return again, False
        until = max(0.0, when - self.environment.monotonic())
        return (until, True) if again is None or until <= again else (again, False)

    def mind_the_time(self, *, is_for_alarm: bool) -> None:
        """The time that was waited for is over."""
        due: list[Strand] = []
        with self._lock:
            # Whatever the clock says of the first one: it need not be the queue's.
            now = self.environment.monotonic()
            while self._alarms and (is_for_alarm or self._alarms[0][0] <= now):
                due.append(self._alarms[0][2])
                heapq.heappop(self._alarms)
                is_for_alarm = False
            late = [strand for mailbox, strand in self._mailboxes.items() if mailbox.outcomes]
        for strand in due:
            strand.look_at_alarms()
        for strand in late:
            strand.deliver(is_again=True)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _of(environment: Environment) -> dict[tuple[str, bool], Pool]:
    found: dict[tuple[str, bool], Pool] = vars(environment).setdefault("_pools", {})
    return found


def _forget(pool: Pool) -> None:
    pools = _of(pool.environment)
    for key, each in list(pools.items()):
        if each is pool:
            del pools[key]


def pool_of(environment: Environment, name: str, strand: Strand, *, has_bells: bool) -> Pool:
    """The pool that runs the strand from now on."""
    pools = _of(environment)
    while True:
        pool = pools.get((name, has_bells))
        if pool is None:
            pool = pools[name, has_bells] = Pool(environment, name, has_bells=has_bells)
        if pool.join(strand):
            return pool
        _forget(pool)


def _forget_in_forked_child() -> None:
    """The threads are the parent's."""
    for pool in list(_pools):
        with contextlib.suppress(Exception):
            vars(pool.environment).pop("_pools", None)


Environment().call_in_forked_child(_forget_in_forked_child)
