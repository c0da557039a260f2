"""What a store and its readers share, and in which process, thread and loop it may be used.

For the owner; what ``Core`` says to others stands at its methods. It must not know how reads and
writes are made.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from ._commit import Committer
from ._environment import Environment, Loop
from ._log import Log
from ._phases import Phase
from ._types import Vote
from .errors import LeaderChangedError, WalClosedError, WrongLoopError

__all__ = ["Core", "open_cores"]


class Core:
    """What a store and its readers share."""

    __slots__ = (
        "__weakref__",
        "abandon",
        "committer",
        "identity",
        "is_abandoned",
        "is_closed",
        "log",
        "loop",
        "origin",
        "path",
        "pid",
        "running",
        "thread",
        "why_closed",
    )

    def __init__(self, path: str, log: Log, committer: Committer, loop: Loop) -> None:
        self.path = path
        self.log = log
        self.committer = committer
        self.loop = loop
        #: as the loop has them, near at hand: each call asks whether it is made there
        self.running, self.identity = loop.running, loop.identity
        #: what is called where it is dropped unclosed, in whatever thread; must not hold it
        self.abandon: Callable[[], None] = committer.drop
        self.is_closed = False
        self.is_abandoned = False
        self.why_closed = ""
        self.pid = log.directory.environment.getpid()
        #: tracemalloc knows where it was made
        self.origin = object()
        #: the one that opened it
        self.thread = log.directory.environment.get_ident()

    def check_open(self) -> None:
        """Raises where the store is closed, or not this event loop's."""
        if self.is_closed:
            raise WalClosedError(self.why_closed, path=self.path)
        if self.running is not None and self.running() is not self.identity:
            raise self.wrong_loop()

    @property
    def is_here(self) -> bool:
        """Whether the caller may call: on the loop that opened it, in the same process."""
        return not self.is_forked and (self.running is None or self.running() is self.identity)

    @property
    def is_forked(self) -> bool:
        """Whether it is the parent process's: this one has neither the threads nor the lock."""
        return self.pid != self.log.directory.environment.getpid()

    def wrong_loop(self) -> WrongLoopError:
        environment = self.log.directory.environment
        if self.is_forked:
            why = "is open in the parent process: a forked child cannot use it"
        elif self._has_loop_ended():
            why = "was opened by an event loop that has ended: abandon() it, and open it again"
        elif environment.get_ident() != self.thread:
            why = (
                f"was opened by an event loop in thread {self.thread} and is called in thread "
                f"{environment.get_ident()}: make the call on that loop"
            )
        else:
            why = "is called outside of the event loop that opened it: make the call on that one"
        return WrongLoopError(f"{self.path} {why}", path=self.path)

    def _has_loop_ended(self) -> bool:
        if self.running is None:  # a lane: never, and posting to it takes its lock
            return False
        try:
            self.loop.post(_nothing)
        except RuntimeError:
            return True
        return False

    def close(self, why: str) -> None:
        self.is_closed = True
        self.why_closed = why
        open_cores.discard(self)

    def end(self, begin: Callable[[], Any]) -> None:
        """Ends it without waiting for the disk: by ``begin``, once."""
        if self.is_forked or self.is_abandoned or self.committer.phase is Phase.CLOSED:
            return
        self.close(f"{self.path} was abandoned")
        begin()
        self.is_abandoned = True

    def check_leader(self, vote: Vote) -> None:
        saved = self.log.meta.state.vote
        if saved != vote or not vote.committed:
            raise LeaderChangedError(
                f"the read was bound to {vote}, the saved vote is {saved}: ask the present leader",
                vote=vote,
                saved=saved,
            )

    def __del__(self) -> None:
        if not hasattr(self, "thread") or self.committer.phase is Phase.CLOSED:
            return
        if self.is_forked or self.is_abandoned:
            return
        if self.committer.is_closing:
            if not self._has_loop_ended():
                return  # it goes on
        else:
            message = f"{self.path} was never closed"
            # Not `source=self`: who collects warnings would hold what is to go.
            warnings.warn(message, ResourceWarning, stacklevel=1, source=self.origin)
        with contextlib.suppress(Exception):
            self.abandon()


def _nothing() -> None:
    pass


open_cores: weakref.WeakSet[Core] = weakref.WeakSet()


def _close_in_forked_child() -> None:
    # The child shares the maps but has neither the threads nor the lock.
    for core in list(open_cores):
        core.close(f"{core.path} is open in the parent process: a forked child cannot use it")


Environment().call_in_forked_child(_close_in_forked_child)
