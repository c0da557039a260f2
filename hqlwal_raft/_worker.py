"""Threads that run blocking jobs in order, and those who wait for what they did.

Knows the event loop, but nothing of logs.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from ._environment import Empty, Environment, Loop, Queue
from .errors import WalPoisonedError
from .protocols import AppendCallback

__all__ = ["Done", "Group", "Ticket", "Worker", "poisoned", "tell"]

logger = logging.getLogger("hqlwal_raft")


#: told how a job ended: its result, or the error that it raised
Done = Callable[[Any, "BaseException | None"], None]


class Worker:
    """A long-lived thread that runs jobs in order and reports each to the event loop.

    A thread of our own, because a fresh or pooled one per sync costs more than the sync.
    """

    def __init__(self, name: str, loop: Loop, environment: Environment) -> None:
        self._monotonic = environment.monotonic
        self._post = loop.post
        self._jobs: Queue[tuple[Callable[[], Any], Done] | None] = environment.queue()
        self._alarm: tuple[float, Callable[[], None]] | None = None
        environment.start_thread(self._run, name)

    def submit(self, job: Callable[[], Any], done: Done) -> None:
        self._jobs.put((job, done))

    def set_alarm(self, seconds: float, ring: Callable[[], None]) -> None:
        """Rings on the event loop once ``seconds`` are over and the jobs before are done."""
        when = self._monotonic() + seconds
        self._jobs.put((partial(setattr, self, "_alarm", (when, ring)), _ignore))

    def stop(self) -> None:
        """Ends the thread when the jobs before are done."""
        self._jobs.put(None)

    def _run(self) -> None:
        while True:
            timeout = max(0.0, self._alarm[0] - self._monotonic()) if self._alarm else None
            try:
                item = self._jobs.get(timeout=timeout)
            except Empty:
                assert self._alarm is not None
                (_, ring), self._alarm = self._alarm, None
                self._report(ring)
                continue
            if item is None:
                return
            job, done = item
            try:
                outcome = partial(done, job(), None)
            except BaseException as error:
                outcome = partial(done, None, error)
            if done is not _ignore:
                self._report(outcome)
            # nothing of a finished job, such as a purged segment, is kept alive until the next
            del item, job, done, outcome

    def _report(self, call: Callable[[], Any]) -> None:
        # without an event loop there is nobody left who could be told
        with contextlib.suppress(RuntimeError):
            self._post(call)


def _ignore(_result: object, _error: BaseException | None) -> None:
    pass


class Ticket:
    """Something that will be settled; any number of tasks may wait for it."""

    __slots__ = ("_event", "error", "result")

    def __init__(self, loop: Loop) -> None:
        self._event = loop.event()
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self, result: Any, error: BaseException | None = None) -> None:
        self.result, self.error = result, error
        self._event.set()

    async def wait(self) -> Any:
        """The result, or raises the error. Being cancelled only ends the waiting."""
        await self._event.wait()
        if self.error is not None:
            raise self.error
        return self.result


class Group:
    """What the next sync makes durable: the tasks that wait for it and the callbacks."""

    __slots__ = ("_event", "callbacks", "error", "is_awaited")

    def __init__(self, loop: Loop) -> None:
        self._event = loop.event()
        self.callbacks: list[AppendCallback] = []
        self.is_awaited = False
        self.error: OSError | BaseException | None = None

    def settle(self, error: BaseException | None) -> None:
        self.error = error
        self._event.set()
        for callback in self.callbacks:
            tell(callback, None if error is None else poisoned(error))

    async def wait(self) -> None:
        self.is_awaited = True
        await self._event.wait()
        if self.error is not None:
            raise poisoned(self.error)


def tell(callback: AppendCallback, error: BaseException | None) -> None:
    """Calls a callback of the user's, whose own failure must stop nothing here."""
    try:
        callback(error)
    except Exception:
        logger.exception("the callback of an append raised")


def poisoned(cause: BaseException) -> WalPoisonedError:
    """A new error for each who is told: a shared one would collect their tracebacks."""
    error = WalPoisonedError(
        f"the log takes no more writes, since one failed ({cause}). What was acknowledged "
        "before is safe; close the store, see to the disk, and open it again"
    )
    error.__cause__ = cause
    return error
