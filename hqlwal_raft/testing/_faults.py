"""Failing calls: an environment that passes everything on, and fails those that it is asked to fail.

It must not know what the bytes mean, nor which environment lies below.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from .._environment import Environment
from ._passing import PassingEnvironment

__all__ = ["CALLS", "FailingEnvironment"]

T = TypeVar("T")

#: the calls that can be made to fail, by the names of the environment's methods
CALLS = (
    "close",
    "fdatasync",
    "flock",
    "fstat",
    "fstatvfs",
    "fsync",
    "ftruncate",
    "ioctl",
    "link",
    "listdir",
    "lseek",
    "mkdir",
    "mmap",
    "open",
    "posix_fadvise",
    "posix_fallocate",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "rename",
    "rmdir",
    "stat",
    "unlink",
)

#: given an open file, the system does not say which one an error is about
_ON_PATHS = ("link", "listdir", "mkdir", "open", "rename", "rmdir", "stat", "unlink")


@dataclass(slots=True)
class _Fault:
    call: str
    errno: int
    skip: int
    times: int
    where: Callable[[str], bool]


class FailingEnvironment(PassingEnvironment):
    """Passes every call on to ``environment``, those that :meth:`fail` names excepted.

    A failed ``fdatasync`` of a ``MemoryKernel`` forgets what it should have written, as a kernel
    may. A failed ``fsync``, of a directory, forgets nothing: names are the file system's own, which
    either writes them later or takes no more.
    """

    def __init__(self, environment: Environment | None = None) -> None:
        super().__init__(environment)
        #: how often each call was made, failed ones included
        self.calls: Counter[str] = Counter()
        #: how many calls were made to fail
        self.failed = 0
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()

    def fail(
        self,
        call: str,
        errno: int,
        *,
        nth: int = 1,
        times: int = 1,
        where: Callable[[str], bool] = lambda _path: True,
    ) -> None:
        """Makes the ``nth`` next call of a kind, and those after it, fail ``times`` times.

        ``call`` is one of :data:`CALLS`; only calls on paths that ``where`` accepts count. A
        file that was renamed has its new path.
        """
        if call not in CALLS:
            raise ValueError(f"no call {call!r}: give one of {', '.join(CALLS)}")
        with self._lock:
            self._faults.append(_Fault(call, errno, nth - 1, times, where))

    def heal(self) -> None:
        """Forgets every fault: the disk works again."""
        with self._lock:
            self._faults.clear()

    def due(self, call: str, path: str) -> int | None:
        """Counts a call; the errno it must fail with, or None."""
        with self._lock:
            self.calls[call] += 1
            found = None
            for fault in self._faults:
                if fault.call != call or fault.times == 0 or not fault.where(path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                elif found is None:
                    fault.times -= 1
                    found = fault.errno
            if found is not None:
                self.failed += 1
            return found

    def pass_on(self, call: str, path: str, perform: Callable[[], T]) -> T:
        number = self.due(call, path)
        if number is None:
            return perform()
        if call == "close":  # the descriptor is gone all the same
            perform()
        if call in _ON_PATHS:
            raise OSError(number, os.strerror(number), path)
        raise OSError(number, os.strerror(number))

    def fdatasync(self, descriptor: int, /) -> None:
        number = self.due("fdatasync", self.path_of(descriptor))
        if number is not None:
            self.forget_sync(descriptor)
            raise OSError(number, os.strerror(number))
        self.environment.fdatasync(descriptor)
