"""Failing files: a ``Files`` that passes everything on, and fails the calls it was told to.

It must not know what the bytes mean, nor which ``Files`` lies below.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .._files import File, Files, Lock, OsFiles, SyncError
from ._disk import ForgetfulFile

__all__ = ["CALLS", "FailingFiles"]

#: the kinds of calls that can be told to fail
CALLS = (
    "create",
    "lock",
    "make_directory",
    "names",
    "open",
    "read",
    "rename",
    "sync",
    "sync_directory",
    "unlink",
    "write",
)


@dataclass(slots=True)
class _Fault:
    call: str
    errno: int
    skip: int
    times: int
    where: Callable[[str], bool]


class FailingFiles(Files):
    """Passes every call on to ``files``, those that :meth:`fail` names excepted.

    A failed sync of a ``ForgetfulDisk`` forgets what it should have written, as a kernel may.
    """

    def __init__(self, files: Files | None = None) -> None:
        self.files = OsFiles() if files is None else files
        #: how often each kind of call was made, failed ones included
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

        ``call`` is one of :data:`CALLS`; only calls on paths that ``where`` accepts count.
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

    def _check(self, call: str, path: str) -> None:
        number = self.due(call, path)
        if number is not None:
            raise OSError(number, os.strerror(number), path)

    def make_directory(self, path: str) -> None:
        self._check("make_directory", path)
        self.files.make_directory(path)

    def is_directory(self, path: str) -> bool:
        return self.files.is_directory(path)

    def names(self, path: str) -> list[str]:
        self._check("names", path)
        return self.files.names(path)

    def open(self, path: str, *, writable: bool = False) -> File:
        self._check("open", path)
        return _FailingFile(self, self.files.open(path, writable=writable))

    def create(self, path: str, size: int) -> File:
        self._check("create", path)
        return _FailingFile(self, self.files.create(path, size))

    def rename(self, source: str, target: str) -> None:
        self._check("rename", target)
        self.files.rename(source, target)

    def unlink(self, path: str) -> None:
        self._check("unlink", path)
        self.files.unlink(path)

    def sync_directory(self, path: str) -> None:
        number = self.due("sync_directory", path)
        if number is not None:
            raise SyncError(number, os.strerror(number), path)
        self.files.sync_directory(path)

    def lock(self, directory: str) -> Lock:
        self._check("lock", directory)
        return self.files.lock(directory)


class _FailingFile(File):
    def __init__(self, files: FailingFiles, file: File) -> None:
        self._files = files
        self._file = file
        self.size = file.size

    @property
    def path(self) -> str:
        return self._file.path

    @path.setter
    def path(self, path: str) -> None:
        self._file.path = path

    def _check(self, call: str) -> None:
        number = self._files.due(call, self.path)
        if number is not None:
            raise OSError(number, os.strerror(number), self.path)

    def write(self, offset: int, data: bytes) -> None:
        number = self._files.due("write", self.path)
        if number is not None:
            raise SyncError(number, os.strerror(number), self.path)
        self._file.write(offset, data)

    def read(self, offset: int, length: int) -> bytes:
        self._check("read")
        return self._file.read(offset, length)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self._file.read_cached(offset, length)

    def sync(self) -> None:
        number = self._files.due("sync", self.path)
        if number is None:
            self._file.sync()
        elif isinstance(self._file, ForgetfulFile):
            self._file.fail_sync(number)
        else:
            raise SyncError(number, os.strerror(number), self.path)

    def is_removed(self) -> bool:
        return self._file.is_removed()

    def reload(self) -> None:
        self._file.reload()

    def freeze(self) -> None:
        self._file.freeze()

    def close(self) -> None:
        self._file.close()
