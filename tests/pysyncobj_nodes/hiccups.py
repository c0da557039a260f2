"""A disk that hiccups: now and then, for a while, nothing that is to be written is answered.

When it does so is a matter of a seed and of the machine's clock alone. A forked child, which writes
a dump, sees the same disk as the process that forked it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pysyncobj import journal, serializer

from hqlwal_raft.testing import PassingEnvironment

T = TypeVar("T")

#: calls that wait for the disk; a write does so once too much of the memory is dirty
_WAITING = frozenset(
    ("fdatasync", "fsync", "ftruncate", "posix_fallocate", "pwrite", "pwritev", "rename", "unlink")
)


class Hiccups:
    """Times at which the disk does not answer: so many seconds long, so many apart, until then by
    the machine's monotonic clock.
    """

    def __init__(self, seed: str, seconds: float, apart: list[float], until: float) -> None:
        self._chance = random.Random(seed)
        self._seconds = seconds
        self._apart = apart
        self._until = until
        self._lock = threading.Lock()
        self._begin = time.monotonic() + self._chance.uniform(*apart)

    def wait(self) -> None:
        """Returns once the disk answers."""
        now = time.monotonic()
        if now >= self._until:
            return
        with self._lock:
            while now >= self._begin + self._seconds:
                self._begin += self._seconds + self._chance.uniform(*self._apart)
            left = self._begin + self._seconds - now if now >= self._begin else 0.0
        if left:
            time.sleep(left)


class HiccupingEnvironment(PassingEnvironment):
    """The real system, on a disk that hiccups."""

    def __init__(self, hiccups: Hiccups) -> None:
        super().__init__()
        self._hiccups = hiccups

    def pass_on(self, call: str, path: str, perform: Callable[[], T]) -> T:
        if call in _WAITING:
            self._hiccups.wait()
        return perform()


def hold_up_stock(hiccups: Hiccups) -> None:
    """Has the disk of pysyncobj's own journal and of its dumps hiccup in this process."""
    for place, name in (
        (journal.ResizableFile, "write"),
        (journal.MetaStorer, "storeMeta"),
        (serializer, "atomicReplace"),
    ):
        setattr(place, name, _held_up(getattr(place, name), hiccups))


def _held_up(original: Callable[..., Any], hiccups: Hiccups) -> Callable[..., Any]:
    def held_up(*arguments: Any) -> Any:
        hiccups.wait()
        return original(*arguments)

    return held_up
