"""Whether the log still works: the one failure it may have, said once, and what every call then
raises.

The other modules of the adapter fail a log through its :class:`Health`, from any thread; it must
not know what a log is.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from .._answers import clear
from ..errors import WalClosedError, WalError, WalPoisonedError

__all__ = ["Health", "call_user"]

logger = logging.getLogger("hqlwal_raft.pysyncobj")


class Health:
    """``failure`` is set once and never taken back: a log that failed is opened anew."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.failure: BaseException | None = None
        self.is_closed = False
        #: methods called right after ``failure`` was set, by the thread that set it
        self._on_failure: list[weakref.WeakMethod[Callable[[], None]]] = []

    def call_on_failure(self, method: Callable[[], None]) -> None:
        """Has a method called then. Its object is held weakly: one that is forgotten may go."""
        self._on_failure.append(weakref.WeakMethod(method))

    def fail(self, error: BaseException) -> None:
        """From here on every method of the journal raises. Only the first call counts."""
        if isinstance(error, WalPoisonedError) and error.__cause__ is not None:
            error = error.__cause__
        if self.failure is not None:
            return
        if isinstance(error, (OSError, WalError)):  # of others the way matters
            clear(error)
        self.failure = error
        logger.critical(
            "the log in %s failed: %s. This node takes part in its cluster no more: mend the "
            "cause, then restart it",
            self.path,
            error,
        )
        for reference in self._on_failure:
            if (method := reference()) is not None:
                method()

    def give_up(self, error: WalError | OSError) -> NoReturn:
        """For who caught an error of the store: it fails the log, unless it says something else."""
        if isinstance(error, WalClosedError):
            raise error
        if isinstance(error, OSError) and error.errno is None:
            raise error  # of a signal's handler, a TimeoutError say
        self.fail(error)
        self.raise_failure()

    def raise_failure(self) -> NoReturn:
        """Raises what a call on a log that failed, or was closed, raises."""
        if self.failure is None:
            raise WalClosedError(f"the journal in {self.path} is closed", path=self.path)
        raise WalPoisonedError(
            f"the log in {self.path} failed ({self.failure}): this node takes part no more. "
            "What was acknowledged is safe; mend the cause and restart the node",
            path=self.path,
        ) from self.failure

    def check(self) -> None:
        """Raises where nothing may be changed any more."""
        if self.failure is not None or self.is_closed:
            self.raise_failure()


def call_user(call: Callable[[Any], object], argument: Any) -> None:
    """Calls a callable of the application's; what it raises is logged and stops nothing."""
    try:
        call(argument)
    except Exception:
        logger.exception("%r raised", call)
