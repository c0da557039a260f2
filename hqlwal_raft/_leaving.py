"""Letting go of a directory: by the two threads of a store, when they are done with it.

The functions hold neither a committer nor a log, so that a store that nobody holds any more goes.
"""

from __future__ import annotations

from functools import partial

from ._directory import Directory
from ._threads import Worker
from ._watchdog import Watch

__all__ = ["Leaving", "leave", "let_go", "nothing"]


def _ignore(_value: object, _error: BaseException | None) -> None:
    pass


def nothing() -> None:
    pass


class Leaving:
    """Lets go of a directory once both threads are done with it: who has the lock after us must
    not meet a chore that was begun under it.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._lock = directory.environment.lock()
        self._left = {"disk", "housekeeping"}

    def leave(self, thread: str) -> None:
        with self._lock:
            self._left.discard(thread)
            is_last = not self._left
        if is_last:
            self._directory.close()


def leave(leaving: Leaving, disk: Worker, housekeeping: Worker, watch: Watch) -> None:
    disk.submit(partial(leaving.leave, "disk"), _ignore)
    disk.stop()
    housekeeping.submit(partial(leaving.leave, "housekeeping"), _ignore)
    housekeeping.stop()
    watch.end()


def let_go(directory: Directory, *, is_clean: bool) -> None:
    try:
        if is_clean:
            directory.say_clean()
    finally:
        try:
            directory.close()
        except BaseException:  # an interrupt: nobody comes again
            directory.close()
            raise
