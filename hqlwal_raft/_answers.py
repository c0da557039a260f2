"""Answers: something that will be answered once, by the owner of the log, and who waits for it.

On the event loop, or with a blocking store's lock held. It must not know what was asked.
"""

from __future__ import annotations

import copy
import logging
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from ._environment import Event, Loop
from .errors import WalError, WalPoisonedError
from .protocols import AppendCallback

__all__ = ["Answer", "Changes", "call_back", "clear", "describe", "own", "poisoned", "torn"]

logger = logging.getLogger("hqlwal_raft")


class Answer:
    """Something that will be answered once; any number of tasks may wait for it.

    A commit's answer serves all whose entries it makes durable: they are its group.
    """

    __slots__ = ("_event", "callbacks", "error", "followers", "is_awaited", "value")

    def __init__(self, event: Event) -> None:
        self._event = event
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_awaited = False
        #: called one by one, each by its own turn of the loop, with None or the error
        self.callbacks: deque[Callable[[BaseException | None], object]] = deque()
        #: answered with it, in the same way
        self.followers: list[Answer] = []

    def give(self, loop: Loop, value: Any, error: BaseException | None) -> None:
        """Answers. May be called again after an interrupt: nobody is answered twice."""
        if error is not None:
            clear(error)  # its traceback leads to whoever gives it, and so to this answer
        self.value, self.error = value, error
        self._event.set()
        if not self.callbacks:
            if self.followers:
                self._give_followers(loop)
            return
        # All at once: those of a later group, and who closed, must come after the last of them.
        for _ in self.callbacks:
            loop.soon(self._call_next)
        # Twice, for an interrupt at the first instruction of a call has it not made at all.
        for _ in range(2):
            loop.soon(partial(self._end_callbacks, loop))

    def _give_followers(self, loop: Loop) -> None:
        for follower in self.followers:
            follower.give(loop, None, self.error)

    def _call_next(self) -> None:
        """Calls one callback of the user's: what it raises stops nothing here."""
        if self.callbacks:
            call_back(self.callbacks.popleft(), own(self.error))

    def _end_callbacks(self, loop: Loop) -> None:
        while self.callbacks:
            self._call_next()
        self._give_followers(loop)

    async def wait(self) -> Any:
        """The value, or raises the error. Being cancelled only ends the waiting."""
        self.is_awaited = True
        await self._event.wait()
        return self.result()

    @property
    def event(self) -> Any:
        """What :meth:`wait` waits for; a loop's own."""
        return self._event

    def result(self) -> Any:
        """The value, or raises the error; once it was given."""
        if self.error is not None:
            raise own(self.error)  # type: ignore[misc]
        return self.value


class Changes:
    """Those who follow the log wait here: for what is readable, or for what is durable."""

    __slots__ = ("_durable", "_loop", "readable")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        #: whom an append answers
        self.readable: Answer | None = None
        self._durable: Answer | None = None

    def next(self, *, is_durable: bool) -> Answer:
        """Answered when more is readable (or durable), when entries went, or nothing comes any
        more. One answer for all who wait.
        """
        if is_durable:
            if self._durable is None:
                self._durable = Answer(self._loop.event())
            return self._durable
        if self.readable is None:
            self.readable = Answer(self._loop.event())
        return self.readable

    @property
    def are_awaited(self) -> bool:
        return self.readable is not None or self._durable is not None

    def tell_readers(self) -> None:
        """Entries were appended."""
        readable, self.readable = self.readable, None
        if readable is not None:
            readable.give(self._loop, None, None)

    def tell(self) -> None:
        durable, self._durable = self._durable, None
        self.tell_readers()
        if durable is not None:
            durable.give(self._loop, None, None)


def call_back(callback: AppendCallback, error: BaseException | None) -> None:
    try:
        callback(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        logger.exception("the callback of an append raised")


def own(error: BaseException | None) -> BaseException | None:
    """A new error for each who is answered: a shared one would collect their tracebacks."""
    if not isinstance(error, (OSError, WalError)):
        return error
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


# --- errors as answers -------------------------------------------------------------------


def clear(error: BaseException | None) -> None:
    """An error that is kept keeps no frame: neither a plan's, with its files, nor those of a
    caller who carried the plan out.
    """
    while error is not None:
        if error.__traceback__ is not None:
            traceback.clear_frames(error.__traceback__)
        if isinstance(error, Exception):  # who interrupts wants to see where
            error.__traceback__ = None
        error = error.__cause__ or error.__context__


def torn() -> WalError:
    return WalError("an exception from outside came while memory was changed")


def poisoned(cause: BaseException, path: str) -> WalPoisonedError:
    error = WalPoisonedError(
        f"the log in {path} takes no more writes, since one failed ({describe(cause)}). What was "
        "acknowledged before is safe; close the store, check the disk, then reopen it",
        path=path,
    )
    error.__cause__ = cause
    return error


def describe(error: BaseException) -> str:
    """What happened, to which file: an OSError has its path in a note."""
    notes = getattr(error, "__notes__", ())
    return ", ".join([str(error) or type(error).__name__, *notes])
