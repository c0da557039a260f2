"""Who may write in a directory: the lock on it and on its lock file.

For whoever opens and closes a directory, in one thread at a time. It must not know what else
lies there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from ._environment import LOCK_EX, LOCK_NB, LOCK_UN, Environment
from ._files import (
    READ_FLAGS,
    WRITE_FLAGS,
    File,
    IrregularFileError,
    identify_at,
    is_descriptor_lockable,
    noting,
    open_at,
)
from ._format import LOCK_BYTES, LOCK_NAME, pack_lock, unpack_lock
from .errors import WalLockedError

__all__ = ["DirectoryLock", "LockedError"]

# Who only asks whether the lock is held (``audit``) holds it for an instant itself.
_TRIES = 3
_PAUSE_SECONDS = 0.01


class LockedError(Exception):
    """The lock is held by another; ``pid`` where the holder said who it is."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(pid)
        self.pid = pid


class DirectoryLock:
    """The lock of one open directory, whose descriptor stays the directory's.

    | state    | on the directory            | on ``lock.hql``                              |
    |----------|-----------------------------|----------------------------------------------|
    | free     | none                        | none                                         |
    | held     | held                        | held, but where there was no inode to make it |
    | released | until its descriptor closes | none; it cannot be taken again               |
    """

    __slots__ = ("_directory_descriptor", "_environment", "_file_descriptor", "_path", "before")

    def __init__(self, environment: Environment, directory_descriptor: int, path: str) -> None:
        # Not the Directory itself: in a cycle of references one that is dropped unclosed would
        # keep its lock until the next collection.
        self._environment = environment
        self._directory_descriptor = directory_descriptor
        self._file_descriptor = -1
        self._path = os.path.join(path, LOCK_NAME)
        #: what the lock file said before it was ours; None where there was none
        self.before: bytes | None = None

    def take(self) -> None:
        """Takes the lock, or raises LockedError. Changes nothing.

        It is taken on the directory itself, whose name cannot be unlinked under it; and on the
        lock file, so that programs which know only that one are kept out. Without a free inode
        there may be no lock file; the directory's lock suffices.
        """
        with noting(os.path.dirname(self._path), "locking"):
            try:
                self._environment.flock(self._directory_descriptor, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                raise LockedError(self._holder()) from None
        try:
            self._take_file()
        except BaseException:
            self._environment.flock(self._directory_descriptor, LOCK_UN)
            raise

    def take_or_refuse(self, what: str) -> None:
        """As :meth:`take`, a few times; raises WalLockedError. ``what`` has one owner, it says."""
        for tries_left in range(_TRIES - 1, -1, -1):
            try:
                self.take()
                return
            except LockedError as error:
                if tries_left:
                    self._environment.sleep(_PAUSE_SECONDS)
                    continue
                path = os.path.dirname(self._path)
                holder = f"process {error.pid}" if error.pid else "another process, or this one,"
                raise WalLockedError(
                    f"{path} is in use: {holder} holds its lock. {what} has one owner; close "
                    "that store or choose another directory",
                    path=path,
                    pid=error.pid,
                ) from None

    def _take_file(self) -> None:
        environment, path = self._environment, self._path
        has_file = identify_at(environment, LOCK_NAME, self._directory_descriptor, path) is not None
        with noting(path, "locking"):
            try:
                descriptor = self._open(WRITE_FLAGS | os.O_CREAT)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT) and not has_file:
                    return
                raise
            try:
                if not stat.S_ISREG(environment.fstat(descriptor).st_mode):
                    raise IrregularFileError(errno.EINVAL, "this is no regular file", path)
                self.before = environment.pread(descriptor, 4096, 0) if has_file else None
                environment.flock(descriptor, LOCK_EX | LOCK_NB)
            except BaseException as error:
                environment.close(descriptor)
                if isinstance(error, BlockingIOError):
                    raise LockedError(self._holder()) from None
                if not has_file:  # nobody else can have made it meanwhile: the directory is ours
                    self._unlink()
                raise
        self._file_descriptor = descriptor

    def _open(self, flags: int) -> int:
        return open_at(self._environment, LOCK_NAME, flags, self._directory_descriptor, self._path)

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            self._environment.unlink(LOCK_NAME, dir_fd=self._directory_descriptor)

    def is_free(self) -> bool:
        """Whether nobody holds the directory's lock; for a directory that is not locked."""
        return is_descriptor_lockable(self._environment, self._directory_descriptor)

    def _holder(self) -> int | None:
        with contextlib.suppress(OSError):
            file = File(self._environment, self._open(READ_FLAGS), LOCK_NAME, self._path)
            said = unpack_lock(file.read(0, LOCK_BYTES))
            file.close()
            if said is not True and said is not False:
                return said
        return None

    # --- what the lock file says -----------------------------------------------------------

    def say_held(self) -> None:
        """Writes who holds the lock: a hint, so a full disk is no obstacle."""
        self._say(pack_lock(self._environment.getpid()))

    def say_clean(self) -> None:
        """Writes that the store was closed cleanly."""
        self._say(pack_lock(None))

    def say_as_before(self) -> None:
        """Takes back what :meth:`say_held` wrote, where the store was not opened after all."""
        if self.before is not None:
            self._say(self.before)
        elif self._file_descriptor >= 0:
            self._unlink()

    def _say(self, data: bytes) -> None:
        if self._file_descriptor >= 0:
            with contextlib.suppress(OSError):
                self._environment.pwrite(self._file_descriptor, data, 0)
                if self._environment.fstat(self._file_descriptor).st_size != len(data):
                    self._environment.ftruncate(self._file_descriptor, len(data))

    # --- letting go ------------------------------------------------------------------------

    def release(self) -> None:
        """Gives up the lock file; the directory's own lock goes with its descriptor. Idempotent."""
        if self._file_descriptor >= 0:
            self._file_descriptor = unlock_and_close(self._environment, self._file_descriptor)
        self._directory_descriptor = -1  # the number may soon be another file's

    def forget_in_child(self) -> None:
        """In a forked child: lets go of the lock file, and leaves the lock to the parent."""
        descriptor, self._file_descriptor = self._file_descriptor, -1
        self._directory_descriptor = -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                self._environment.close(descriptor)


def unlock_and_close(environment: Environment, descriptor: int) -> int:
    """Gives what stands for no descriptor. One that was not closed is not forgotten."""
    try:
        # An flock belongs to the open file, which a child forked meanwhile has too.
        with contextlib.suppress(OSError):
            environment.flock(descriptor, LOCK_UN)
    finally:
        try:  # noqa: SIM105 - between the closing and the end nothing takes memory
            environment.close(descriptor)
        except OSError:
            pass
    return -1
