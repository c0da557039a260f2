"""Threads and an event loop that move only when they are told: one step at a time, in any order.

``Turns`` is mixed into an environment. Its threads are real, but each stands still until it is
given its turn, and stops again at its next primitive call of the operating system, or where it
waits for a job. ``OrderedLoop`` is an asyncio event loop without a selector, whose time is the
environment's. Both ask a chooser what goes next; without one, threads run at once to where they
wait (*lockstep*) and the loop is first in, first out, so that a run is the same every time.

For the proofs. It must not know what the store does.
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio.lowlevel
import trio

from hqlwal_raft._environment import Environment, Queue

__all__ = [
    "CALLS",
    "Chooser",
    "Deadlock",
    "OrderedLoop",
    "Spins",
    "SteppedQueue",
    "SteppedThread",
    "Thing",
    "Turns",
    "here",
]

T = TypeVar("T")

#: where a thread stops
CALLS = [
    "open",
    "close",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "fdatasync",
    "fsync",
    "posix_fallocate",
    "ftruncate",
    "posix_fadvise",
    "fstat",
    "flock",
    "ioctl",
    "mmap",
    "stat",
    "access",
    "listdir",
    "mkdir",
    "rename",
    "link",
    "unlink",
]


class Deadlock(BaseException):
    """Somebody waits, and nothing can move any more."""


class Spins(BaseException):
    """Something runs and never ends."""


class _Dropped(BaseException):
    """Ends a thread that stands still when its history is over."""


class Thing(Protocol):
    """What can go next: a thread, a task, the calls that wait for the loop, a timer."""

    @property
    def name(self) -> str: ...
    def go(self) -> None: ...


#: which of these goes next; they are given in the order in which they came to be
Chooser = Callable[[list[Thing]], Thing]


class SteppedThread:
    """A real thread that moves only within :meth:`go`."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self.name = name
        #: the call that it will make when it goes on
        self.at = "start"
        #: something with ``items``: it may go on when there are any
        self.waits_for: Any = None
        #: the next lock is taken in the same step as what was done before
        self.is_bound = False
        #: when it will have waited long enough
        self.deadline: float | None = None
        self.is_over = False
        self._is_dropped = False
        self._turn, self._back = threading.Lock(), threading.Lock()
        self._turn.acquire()
        self._back.acquire()
        self._thread = threading.Thread(target=self._main, args=(run,), name=name, daemon=True)
        self._thread.start()

    @property
    def is_runnable(self) -> bool:
        return not self.is_over and (self.waits_for is None or bool(self.waits_for.items))

    def go(self) -> None:
        """Has the thread run to the next place where it stops."""
        self._turn.release()
        self._back.acquire()

    def stop_at(self, at: str) -> None:
        """Called by the thread itself."""
        self.at = at
        self._back.release()
        self._turn.acquire()
        if self._is_dropped:
            raise _Dropped

    def drop(self) -> None:
        """Ends it where it stands; what it would have done is not done."""
        self._is_dropped = True
        while not self.is_over:
            self.go()
        self._thread.join()

    def _main(self, run: Callable[[], None]) -> None:
        _here.thread = self
        self._turn.acquire()
        try:
            if not self._is_dropped:
                run()
        except _Dropped:
            pass
        finally:
            del run
            self.is_over = True
            self._back.release()


_here = threading.local()


def here() -> SteppedThread | None:
    """The stepped thread that asks; None for the one that steps them."""
    thread: SteppedThread | None = getattr(_here, "thread", None)
    return thread


class SteppedQueue:
    """A queue whose taker is a stepped thread."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.items: deque[Any] = deque()

    def put(self, item: Any, /) -> None:
        self.items.append(item)
        self._turns.moved()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT002
        thread: SteppedThread = _here.thread
        deadline = None if timeout is None else self._turns.now + timeout
        while not self.items:
            if not block or (deadline is not None and self._turns.now >= deadline):
                raise queue.Empty
            thread.waits_for, thread.deadline = self, deadline
            thread.stop_at("get")
            thread.waits_for = thread.deadline = None
        return self.items.popleft()


class Turns(Environment):
    """To be mixed in before an environment that has the files.

    ``stops`` are the calls at which threads stop; without a chooser they run on.
    """

    chooser: Chooser | None = None
    stops: frozenset[str] = frozenset()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.now = 1000.0
        self.threads: list[SteppedThread] = []
        self._rng = random.Random(1)
        self._reads = 0
        for name in CALLS:
            setattr(self, name, partial(self._call, name, getattr(self, name)))

    def _call(self, name: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if name in self.stops:
            thread = here()
            if thread is not None:
                thread.stop_at(name)
        return call(*args, **options)

    def moved(self) -> None:
        """Something came for a thread; in lockstep all run at once to where they wait."""
        if self.chooser is None and here() is None:
            while runnable := self.runnable():
                runnable[0].go()

    def runnable(self) -> list[SteppedThread]:
        self.threads = [each for each in self.threads if not each.is_over]
        return [each for each in self.threads if each.is_runnable]

    def pass_time(self) -> bool:
        """Lets time pass to the first moment for which a thread waits; False where none does."""
        waiting = [each for each in self.threads if each.deadline is not None]
        if not waiting:
            return False
        first = min(waiting, key=lambda each: each.deadline or 0.0)
        self.now = max(self.now, first.deadline or 0.0)
        first.go()
        return True

    def drop_threads(self) -> None:
        """At the end of a history: nothing of it goes on."""
        for thread in self.threads:
            thread.drop()
        self.threads = []

    # --- the environment's ---------------------------------------------------------------

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        pass  # it lets other threads run, and these do when they are told

    def getrandbits(self, bits: int) -> int:
        return self._rng.getrandbits(bits)

    def start_thread(self, run: Callable[[], None], name: str) -> None:
        thread = SteppedThread(name, run)
        self.threads.append(thread)
        self.moved()

    def look_after(self, watch: Any) -> None:
        """Time jumps: each jump would be a disk that does not answer."""

    def queue(self) -> Queue[Any]:
        return SteppedQueue(self)

    def run_in_thread(self, job: Callable[[], T]) -> Awaitable[T]:
        return self._run(job)

    async def _run(self, job: Callable[[], T]) -> T:
        await anyio.lowlevel.checkpoint()  # as anyio's does
        event, post = _event_and_post()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(job())
            except _Dropped:
                return
            except BaseException as error:
                errors.append(error)
            post(event.set)

        self._reads += 1
        self.start_thread(run, f"read {self._reads}")
        await event.wait()
        if errors:
            raise errors.pop()
        return results.pop()


def _event_and_post() -> tuple[Any, Callable[[Callable[[], Any]], Any]]:
    """The running loop's, as anyio takes them: none of the code that is proven."""
    try:
        return asyncio.Event(), asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        return trio.Event(), trio.lowlevel.current_trio_token().run_sync_soon


# --- the loop ----------------------------------------------------------------------------


class _Ready:
    """A handle that the loop may run now."""

    def __init__(self, loop: OrderedLoop, name: str, handle: asyncio.Handle) -> None:
        self._loop = loop
        self.name = name
        self._handle = handle

    def go(self) -> None:
        self._loop.run_handle(self._handle)


class OrderedLoop(asyncio.BaseEventLoop):
    """See the module. Calls keep their order among each other, as asyncio and trio promise;
    a task's step may come before them or after, as under trio.
    """

    #: of the base class; typeshed leaves them out
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns
        #: other things that may be chosen: cancellations
        self.others: Callable[[], list[Thing]] = list
        #: what went where there was a chooser; of a thread also the call that it stood before
        self.steps: list[str] = []

    def time(self) -> float:
        return self._turns.now

    def _process_events(self, event_list: Any) -> None:
        """There are none: no selector."""

    def _write_to_self(self) -> None:
        """Nothing sleeps that would have to be woken."""

    def run_handle(self, handle: asyncio.Handle) -> None:
        self._ready.remove(handle)
        handle._run()

    def _things(self) -> list[Thing]:
        things: list[Thing] = []
        has_calls = False
        for handle in self._ready:
            task = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
            if isinstance(task, asyncio.Task):
                things.append(_Ready(self, f"task {task.get_name()}", handle))
            elif not has_calls:
                has_calls = True
                things.append(_Ready(self, "calls", handle))
        return [*things, *self._turns.runnable(), *self.others()]

    def _run_once(self) -> None:
        ready = self._ready
        while ready and ready[0].cancelled():
            ready.popleft()
        chooser = self._turns.chooser
        if chooser is None:
            self._turns.moved()  # what was begun before lockstep
            if ready:
                ready.popleft()._run()
                return
        else:
            for handle in [each for each in ready if each.cancelled()]:
                ready.remove(handle)
            things = self._things()
            if things:
                thing = chooser(things)
                at = f" ({thing.at})" if isinstance(thing, SteppedThread) else ""
                self.steps.append(thing.name + at)
                thing.go()
                return
        self._pass_time()

    def _pass_time(self) -> None:
        """Nothing is left to be done now."""
        while self._scheduled and self._scheduled[0].cancelled():
            self._scheduled.pop(0)._scheduled = False  # type: ignore[attr-defined]
            self._scheduled.sort()
        deadlines = [each.deadline for each in self._turns.threads if each.deadline is not None]
        if self._scheduled and self._scheduled[0].when() <= min(deadlines, default=float("inf")):
            timer = min(self._scheduled)
            self._scheduled.remove(timer)
            self._scheduled.sort()  # a sorted list is a heap
            timer._scheduled = False  # type: ignore[attr-defined]
            self._turns.now = max(self._turns.now, timer.when())
            self._ready.append(timer)
        elif not self._turns.pass_time():
            raise Deadlock
