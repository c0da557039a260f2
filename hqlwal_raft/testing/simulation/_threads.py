"""The threads of a simulated process: none of them is real, and one runs at a time.

A process has one thread that its node runs in, and others in the background: workers with their
jobs, and loops over a queue. Each has a time of its own. What is in the background runs when the
clock has come to its time, or earlier, where the node's thread has to wait for it: that one's time
is then put on. Where nothing is left that could end the waiting, :class:`Deadlock` is raised.

A loop over a queue is ended where it waits and begun anew when the queue has something again, so
it may keep nothing from one ``get`` to the next. It must not know files, nodes or networks.
"""

from __future__ import annotations

import heapq
import queue
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from ..._environment import Loop
from ..._threads import Done, Worker

__all__ = ["Blocked", "Deadlock", "Threads", "Waited"]


#: a worker's; a loop over a queue; a loop whose time to wait is over, which waits for nobody
_JOB, _LOOP, _WATCH = range(3)
#: when, the order of equal times, the kind, what
_Planned = tuple[float, int, int, Callable[[], Any]]
#: alarms that set themselves again go on for ever
_MOST_STEPS = 10_000


class Deadlock(Exception):
    """A thread waits for something that no other thread can bring about."""


class Blocked(BaseException):
    """Ends a loop over a queue that is empty."""


class Threads:
    """The threads of one process; to be derived from by its environment.

    ``now`` is the time of the thread that runs.
    """

    def __init__(self) -> None:
        self.now = 0.0
        #: nothing runs any more, and nobody is told
        self.is_dead = False
        self._background: list[_Planned] = []
        self._count = 0

    def advance(self, seconds: float) -> None:
        """The running thread takes so long; to be extended by who knows when it ends."""
        self.now += seconds

    def later(self, when: float, call: Callable[[], Any], *, kind: int = _JOB) -> None:
        """Has a call made in the background at ``when``."""
        if not self.is_dead:
            self._count += 1
            heapq.heappush(self._background, (when, self._count, kind, call))

    @property
    def next_background(self) -> float | None:
        """When something in the background wants to run next."""
        return self._background[0][0] if self._background else None

    def run_background(self, until: float) -> None:
        """Runs what is in the background, as far as its time has come."""
        while not self.is_dead and self._background and self._background[0][0] <= until:
            self._run(heapq.heappop(self._background))

    def _run(self, planned: _Planned) -> float:
        """Makes a call in the background: when it began."""
        before, self.now = self.now, planned[0]
        try:
            planned[3]()
        finally:
            self.now = before
        return planned[0]

    def wait_until(
        self, is_over: Callable[[], bool], what: str, *, for_loops: bool = False
    ) -> None:
        """The running thread waits for others.

        Those are workers: a loop that came to wait in its turn could not be left alone.
        """
        for _ in range(_MOST_STEPS):
            if is_over():
                return
            planned = None if self.is_dead else self._next_to_run(for_loops=for_loops)
            if planned is None:
                break
            began = self._run(planned)
            if began > self.now:
                self.advance(began - self.now)
        raise Deadlock(f"a thread waits for {what}, and nothing else runs")

    def run_watches(self, until: float) -> None:
        """While the running thread waits for a device: others look at it."""
        for each in sorted(each for each in self._background if each[2] == _WATCH):
            if each[0] <= until and each in self._background:
                self._background.remove(each)
                heapq.heapify(self._background)
                self._run(each)

    def future(self) -> Waited:
        return Waited(self)

    def _next_to_run(self, *, for_loops: bool) -> _Planned | None:
        wanted = (each for each in self._background if for_loops or each[2] != _LOOP)
        found = min(wanted, default=None)
        if found is not None:
            self._background.remove(found)
            heapq.heapify(self._background)
        return found

    # --- what an environment is asked for ------------------------------------------------

    def lock(self) -> _Lock:
        return _Lock(self)

    def queue(self) -> _Queue:
        return _Queue(self)

    def get_ident(self) -> int:
        return 1

    def is_main_thread(self) -> bool:
        return False

    def start_thread(self, run: Callable[[], None], name: str) -> None:
        self.later(self.now, partial(self._run_loop, run), kind=_LOOP)

    def _run_loop(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Blocked as blocked:
            place, timeout = blocked.args
            place.wait_here(partial(self._run_loop, run), timeout)

    def start_worker(self, name: str, loop: Loop) -> Worker:
        return _Worker(self, loop)


class _Lock:
    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._is_held = False

    def _is_free(self) -> bool:
        return not self._is_held

    def acquire(self, blocking: bool = True) -> bool:  # noqa: FBT001, FBT002
        if self._is_held:
            if not blocking:
                return False
            self._threads.wait_until(self._is_free, "a lock")
        self._is_held = True
        return True

    def release(self) -> None:
        if not self._is_held:
            raise RuntimeError("release unlocked lock")
        self._is_held = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *arguments: object) -> None:
        self.release()


class Waited:
    """What is used of a ``concurrent.futures.Future``."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._outcome: tuple[Any, BaseException | None] | None = None

    def set_result(self, value: Any) -> None:
        self._outcome = (value, None)

    def set_exception(self, error: BaseException | None) -> None:
        self._outcome = (None, error)

    def result(self) -> Any:
        self._threads.wait_until(lambda: self._outcome is not None, "a result", for_loops=True)
        assert self._outcome is not None
        value, error = self._outcome
        if error is not None:
            raise error
        return value


class _Queue:
    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._items: deque[Any] = deque()
        #: the loop that was ended here
        self._waiting: Callable[[], Any] | None = None
        self._is_planned = False
        #: which of its waits it is, so that a timeout that comes late ends none of the others
        self._wait = 0
        self._is_timed_out = False

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._wake(self._threads.now)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002
        if self._items:
            return self._items.popleft()
        is_over = self._threads.is_dead and timeout is not None
        if not block or self._is_timed_out or is_over:
            self._is_timed_out = False
            raise queue.Empty
        raise Blocked(self, timeout)

    def wait_here(self, loop: Callable[[], Any], timeout: float | None) -> None:
        """A loop was ended here; it goes on when there is something, or the time is over."""
        self._waiting = loop
        self._wait += 1
        now = self._threads.now
        if timeout is not None:
            self._threads.later(now + timeout, partial(self._time_out, self._wait), kind=_WATCH)
        self._wake(now)

    def _wake(self, when: float) -> None:
        if self._items and self._waiting is not None and not self._is_planned:
            self._is_planned = True
            self._threads.later(when, self._go_on, kind=_LOOP)

    def _time_out(self, wait: int) -> None:
        if wait == self._wait and not self._is_planned and self._waiting is not None:
            self._is_timed_out = True
            self._go_on()

    def _go_on(self) -> None:
        waiting, self._waiting, self._is_planned = self._waiting, None, False
        assert waiting is not None
        waiting()


class _Worker(Worker):
    """Carries out one job at a time; whoever asked hears of it when the job's time is over."""

    def __init__(self, threads: Threads, loop: Loop) -> None:
        self._threads = threads
        self._report_to = loop.post
        self._left: deque[tuple[Callable[[], Any], Done]] = deque()
        self._is_busy = False
        self._is_stopped = False

    def submit(self, job: Callable[[], Any], done: Done, *, can_wait: bool = False) -> None:
        self._left.append((job, done))
        self._begin()

    def _begin(self) -> None:
        if self._left and not self._is_busy:
            self._is_busy = True
            self._threads.later(self._threads.now, self._carry_out)

    def _carry_out(self) -> None:
        job, done = self._left.popleft()
        try:
            outcome = partial(done, job(), None)
        except BaseException as error:
            outcome = partial(done, None, error)
        self._threads.later(self._threads.now, partial(self._went, outcome))

    def _went(self, outcome: Callable[[], Any]) -> None:
        self._report_to(outcome)
        self._is_busy = False
        self._begin()

    def set_alarm(self, seconds: float, ring: Callable[[], None]) -> None:
        self._threads.later(self._threads.now + seconds, partial(self._sound, ring))

    def _sound(self, ring: Callable[[], None]) -> None:
        if not self._is_stopped:
            self._report_to(ring)

    def stop(self) -> None:
        self._is_stopped = True
