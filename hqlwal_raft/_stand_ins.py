"""Threads that make calls for others: for the main thread, and for those who gave a callback.

Signals' handlers run in the main thread: one may raise between any two instructions, or call the
store itself in the middle of a call. So the main thread never is the owner of a blocking store;
a stand-in makes its call, and a handler that raises ends its waiting and nothing else.

It must not know what is called.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from ._answers import call_back
from ._environment import Environment, Lock, Queue
from ._lane import Lane
from ._pool import start_thread
from .errors import WalClosedError, WalError
from .protocols import AppendCallback

__all__ = ["Callbacks", "StandIns", "end_store"]

logger = logging.getLogger("hqlwal_raft")

_NAME = "hqlwal-calls"


class _Beginning:
    """The part of a call that must keep its place in the order of the main thread's calls.

    One that was interrupted may not have come to it when the next one is made: so whichever
    stand-in is the first to be the owner makes all that are left.
    """

    __slots__ = ("_begin", "_error", "_left", "_value")

    def __init__(self, left: deque[_Beginning], begin: Callable[[], Any]) -> None:
        self._left = left
        self._begin = begin
        self._value: Any = None
        self._error: BaseException | None = None

    def __call__(self) -> Any:
        left = self._left
        while left:
            left.popleft()._make()
        if self._error is not None:
            raise self._error
        return self._value

    def _make(self) -> None:
        try:
            self._value = self._begin()
        except BaseException as error:
            self._error = error


class _Made:
    """A call that is made for the main thread, by one of the others."""

    __slots__ = ("_lock", "_make", "_under_way", "error", "is_answered", "value")

    def __init__(self, lock: Lock, make: Callable[[], Any], under_way: set[_Made]) -> None:
        self._lock = lock
        lock.acquire()
        self._make: Callable[[], Any] | None = make
        self._under_way = under_way
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_answered = False
        under_way.add(self)

    def __call__(self) -> None:
        """Makes it. Called once more after an interrupt, which then is the answer."""
        make, self._make = self._make, None
        if make is None:
            self.give(None, MemoryError("an exception from outside came while the call was made"))
        else:
            try:
                value = make()
            except BaseException as error:
                self.give(None, error)
            else:
                self.give(value, None)
        self._under_way.discard(self)

    def give(self, value: Any, error: BaseException | None) -> None:
        """The first answer counts: one that is abandoned may still come to its end."""
        if not self.is_answered:
            lock = self._lock
            self.value, self.error, self.is_answered = value, error, True
            try:  # noqa: SIM105 - between the answer and the waking nothing takes memory
                lock.release()
            except RuntimeError:
                pass  # two at the same time

    def wait(self) -> Any:
        self._lock.acquire()
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


class StandIns:
    """Threads that make the calls of the main thread, and whatever must not wait for a lock.

    A handler that raises ends the waiting of the main thread, and a disk may never answer: so
    there is always one more of them than there are calls under way. They start each other: in
    the main thread a handler can break the starting of a thread in two.
    """

    def __init__(self, environment: Environment, path: str) -> None:
        self._environment = environment
        self._path = path
        self._calls: Queue[Callable[[], Any]] = environment.queue()
        self._beginnings: deque[_Beginning] = deque()
        #: what the main thread waits for; more than one where handlers make calls
        self._under_way: set[_Made] = set()
        #: those that wait for a call; the main thread never touches it
        self._idle: set[object] = set()
        #: nothing that is submitted from then on is made
        self.is_stopped = False
        self._start()

    def call(
        self, lane: Lane, begin: Callable[[], Any], finish: Callable[[Any], Any] | None = None
    ) -> Any:
        """As ``finish(lane.call(begin))``, in another thread. For the main thread."""
        beginning = self.in_order(begin)

        def make() -> Any:
            result = lane.call(beginning)
            return result if finish is None else finish(result)

        return self.run(make)

    def in_order(self, begin: Callable[[], Any]) -> Callable[[], Any]:
        """A call for the owner that keeps its place among those of the main thread."""
        beginning = _Beginning(self._beginnings, begin)
        self._beginnings.append(beginning)
        return beginning

    def run(self, make: Callable[[], Any]) -> Any:
        """Makes a call in another thread. For the main thread."""
        made = _Made(self._environment.lock(), make, self._under_way)
        self._calls.put(made)
        if self.is_stopped:  # perhaps before it was put there
            made.give(None, WalClosedError(f"{self._path} was closed", path=self._path))
        return made.wait()

    def submit(self, call: Callable[[], Any]) -> None:
        """Makes a call in another thread, and waits for nothing: right in ``__del__`` as well.

        It is made again where MemoryError came out of it.
        """
        self._calls.put(call)

    def answer_all(self, error: BaseException) -> None:
        """Answers the main thread, whatever its calls are waiting for."""
        for made in list(self._under_way):
            made.give(None, error)

    def stop(self) -> None:
        """Ends the threads when what they make is made. The store is closed."""
        self.is_stopped = True
        self._calls.put(_end)

    def _run(self, me: object) -> None:
        # Whatever is interrupted by MemoryError is done again: nobody would start the thread
        # again, or ask for the call.
        call: Callable[[], Any] | None = None
        while True:
            try:
                while call is not _end:
                    if call is not None:
                        self._idle.discard(me)
                        if not self._idle:
                            self._start_another()
                        _make(call, "a call by the threads of a log failed")
                    self._idle.add(me)
                    call = None
                    call = self._calls.get()
                self._calls.put(_end)  # for the next of them
            except MemoryError:
                continue
            return

    def _start_another(self) -> None:
        with contextlib.suppress(RuntimeError):  # the interpreter ends, or there are too many
            self._start()

    def _start(self) -> None:
        other = object()
        self._idle.add(other)
        try:
            start_thread(self._environment, partial(self._run, other), _NAME)
        except BaseException:
            self._idle.discard(other)
            raise


def _make(call: Callable[[], Any], failure: str) -> None:
    try:
        call()
    except MemoryError:
        raise  # it is made again
    except BaseException:
        logger.exception(failure)


def _end() -> None:
    """The last call that a thread here takes."""


class Callbacks:
    """Calls the callbacks of appends, one after the other, in a thread of its own.

    Not in a thread that happens to carry out the disk's work: that one may hold what the
    callback waits for.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._calls: Queue[Callable[[], Any]] | None = None
        self._thread = 0
        self._is_stopped = False

    def start(self) -> None:
        """Starts the thread, unless it runs: before anything is promised. As the owner."""
        if self._calls is None:
            calls = self._environment.queue()
            start_thread(self._environment, partial(self._run, calls), "hqlwal-callbacks")
            self._calls = calls

    def submit(self, callback: AppendCallback, error: BaseException | None) -> None:
        """Has one called. As the owner."""
        self.start()
        calls = self._calls
        assert calls is not None
        calls.put(partial(call_back, callback, error))
        if self._is_stopped:
            calls.put(_end)

    def stop(self, *, is_waiting: bool) -> None:
        """Ends the thread once those that it was given are called. Not as the owner."""
        calls, self._calls, self._is_stopped = self._calls, None, True
        if calls is None:
            return
        if is_waiting and self._environment.get_ident() != self._thread:
            called = self._environment.lock()
            called.acquire()
            calls.put(called.release)
            called.acquire()
        calls.put(_end)

    def _run(self, calls: Queue[Callable[[], Any]]) -> None:
        call: Callable[[], Any] | None = None
        while True:
            try:
                self._thread = self._environment.get_ident()
                while call is not _end:
                    if call is not None:
                        # KeyboardInterrupt and SystemExit have no meaning here
                        _make(call, "the callback of an append raised")
                    call = None
                    call = calls.get()
            except MemoryError:
                continue  # the call was not begun: what a callback raises does not come here
            return


def end_store(
    lane: Lane,
    begin: Callable[[], Any],
    again: Callable[[], Any],
    callbacks: Callbacks,
    stand_ins: StandIns,
    *,
    is_waiting: bool,
) -> None:
    """Ends a store. Must not hold it: also called for one that was dropped unclosed."""
    try:
        lane.call(begin)
    except (WalError, OSError):
        raise
    except BaseException:  # an interrupt: nobody comes again
        lane.call(again)
        raise
    finally:
        try:
            callbacks.stop(is_waiting=is_waiting)
        finally:
            stand_ins.stop()
