"""A writer without an event loop: in the place of the loop there is a lock, the turn.

Whoever holds the turn, in whatever thread, may do what otherwise only the loop's thread may. A
change of threads costs a good part of what a sync does, so the thread that has to wait for the
disk may also do the disk thread's work itself (:meth:`Disk.do_here`). Knows nothing of logs.
"""

from __future__ import annotations

import logging
import selectors
import threading
from asyncio import SelectorEventLoop
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal

from .._environment import Environment, Loop
from .._worker import Done, Ticket, Worker

__all__ = ["Disk", "Portal", "Told", "Turn"]

_NAP_SECONDS = 20e-6

logger = logging.getLogger("hqlwal_raft.pysyncobj")


class Turn:
    """The turn, as an event loop that makes each call at once, in whatever thread it is made."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        #: Whoever holds it has the turn, and may take it again. To be used with ``with`` itself:
        #: then no signal can raise between the taking and the block that gives it back.
        self.lock = threading.RLock()
        #: what a Writer takes for its event loop
        self.loop = Loop(self._call, self._call, partial(_Event, environment))

    def _call(self, call: Callable[[], Any]) -> None:
        with self.lock:
            try:
                call()
            except Exception:  # as an event loop does it: the thread goes on
                logger.exception("a call by the threads of a log failed")


class _Event:
    """For the few who use the storage as a RaftLogStorage, on the event loop of the portal."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._event = threading.Event()
        self.set = self._event.set

    async def wait(self) -> None:
        await self._environment.run_in_thread(self._event.wait)


class Told(Ticket):
    """A ticket that nobody waits for: a callable is told of the result or the error."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Done) -> None:
        self._tell = tell

    def settle(self, result: Any, error: BaseException | None = None) -> None:
        self._tell(result, error)


class Disk(Worker):
    """A worker whose jobs another thread may do, if it has nothing else to do until then."""

    def __init__(self, name: str, turn: Turn, environment: Environment) -> None:
        super().__init__(name, turn.loop, environment)
        self._turn = turn
        # Set and read by whoever holds the turn.
        self._lent: deque[tuple[Callable[[], Any], Done]] | None = None

    def submit(self, job: Callable[[], Any], done: Done) -> None:
        if self._lent is None:
            super().submit(job, done)
        else:
            self._lent.append((job, done))

    def do_here(self, call: Callable[[], Any]) -> None:
        """Calls in this thread, which takes the turn, and does the jobs that come of it.

        They cannot run beside one of the disk thread's: the Writer submits one at a time.
        """
        jobs: deque[tuple[Callable[[], Any], Done]] = deque()
        self._call_lent(call, jobs)
        while jobs:
            job, done = jobs.popleft()
            try:
                outcome = partial(done, job(), None)
            except BaseException as error:
                outcome = partial(done, None, error)
            self._call_lent(outcome, jobs)

    def _call_lent(
        self, call: Callable[[], Any], jobs: deque[tuple[Callable[[], Any], Done]]
    ) -> None:
        with self._turn.lock:
            self._lent = jobs
            try:
                self._turn.loop.post(call)
            finally:
                self._lent = None


# --- an event loop for those who have one --------------------------------------------------


class _Selector(selectors.DefaultSelector):
    """Gives the turn away while its event loop has nothing to do."""

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self._turn = turn

    def select(self, timeout: float | None = None) -> Any:
        self._turn.lock.release()
        try:
            if timeout == 0:  # never idle: it could take the turn again before others wake up
                self._turn.environment.sleep(_NAP_SECONDS)
            return super().select(timeout)
        finally:
            self._turn.lock.acquire()


class Portal:
    """An event loop in a thread of its own, which has the turn whenever it runs."""

    def __init__(self, turn: Turn, name: str) -> None:
        self._turn = turn
        self._started: Future[BlockingPortal] = Future()
        self._ended: Future[None] = Future()
        # A daemon: a program that ends does not wait for it.
        turn.environment.start_thread(self._run, name)
        self.portal = self._started.result()

    def close(self) -> None:
        self.portal.call(self.portal.stop, True)  # cancels what still runs
        self._ended.result()

    def _run(self) -> None:
        factory = partial(SelectorEventLoop, _Selector(self._turn))
        try:
            with self._turn.lock:
                anyio.run(self._serve, backend_options={"loop_factory": factory})
        finally:
            self._ended.set_result(None)

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()
