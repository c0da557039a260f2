"""What a test leaves behind in its process: threads of stores, descriptors, locks.

It must not test anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import threading
import time
from collections import Counter
from pathlib import Path

from tests._support import PATIENCE_SECONDS

__all__ = ["Holdings", "is_locked", "store_threads"]


def store_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("hqlwal")}


def descriptors() -> Counter[str]:
    """The files and directories that are open; pipes and the like are the event loops'."""
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the listing
            target = os.readlink(f"/proc/self/fd/{number}")
            if target.startswith("/") and not target.startswith(("/proc/", "/dev/")):
                found[target] += 1
    return found


def is_locked(directory: Path) -> bool:
    """Whether somebody holds the directory's lock."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


#: of an earlier test, and did not end
_staying: set[threading.Thread] = set()


def _join(but: set[threading.Thread]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while (threads := store_threads() - but) and time.monotonic() < end:
        for thread in threads:
            if thread.ident is None:  # another thread is about to start it
                time.sleep(0.001)
            else:
                thread.join(PATIENCE_SECONDS)


class Holdings:
    """What the process holds at one moment, when no store is open.

    Threads of the tests before may be about to end. A store that is opened before they have
    shares them: it would be one of theirs that closes its files, and nobody would wait for it.
    """

    def __init__(self) -> None:
        if store_threads() - _staying:
            gc.collect()
            _join(_staying)
            _staying.update(store_threads())
        self._threads = store_threads()
        self._descriptors = descriptors()

    def join_threads(self) -> None:
        """Waits for threads that are about to end."""
        _join(self._threads)

    def assert_nothing_new(self) -> None:
        if descriptors() - self._descriptors or store_threads() - self._threads:
            gc.collect()
            self.join_threads()
            gc.collect()
        assert not [each.name for each in store_threads() - self._threads]
        assert descriptors() - self._descriptors == Counter()
