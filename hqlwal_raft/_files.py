"""Files: create and allocate, map, read, sync, lock. Every system call goes through an
:class:`~._environment.Environment`.

It must not know what the bytes mean. Everything above goes through :class:`Files` and
:class:`File`, so no other module needs to know in which order the system is to be called.
Linux only: allocation, coherent maps and ``RWF_NOWAIT`` are relied on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import weakref
from collections.abc import Iterator

from ._environment import LOCK_EX, LOCK_NB, LOCK_UN, Environment, Map
from ._format import LOCK_NAME, TEMPORARY_SUFFIX

__all__ = [
    "File",
    "Files",
    "Lock",
    "LockedError",
    "SyncError",
]


class SyncError(OSError):
    """A sync, or a write that cannot be taken back, failed. Never retried: after a failed sync
    the kernel may have dropped what was not written.
    """


def _noted(error: OSError, path: str, doing: str) -> OSError:
    """The error with the path and what was being done as a note, once."""
    note = f"while {doing} {path}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    return error


@contextlib.contextmanager
def _noting(path: str, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _noted(error, path, doing) from None


class File:
    """An open file. Reading may be done from any thread; writing and syncing from one each."""

    def __init__(
        self, environment: Environment, path: str, descriptor: int, *, writable: bool
    ) -> None:
        self.path = path
        self._environment = environment
        self._descriptor = descriptor
        self._map: Map | None = None
        try:
            self.size = self._environment.fstat(descriptor).st_size
            if writable and self.size:
                self._map = self._environment.mmap(descriptor, self.size)
        except BaseException:
            self._environment.close(descriptor)
            self._descriptor = -1
            raise

    def write(self, offset: int, data: bytes) -> None:
        """Stores ``data``. Not durable before :meth:`sync`; does not block on the device.

        The file was opened writable and ``offset + len(data)`` lies within its size. Raises
        SyncError where that fails, and then any part of it may have been stored.
        """
        assert self._map is not None, f"{self.path} is not open for writing"
        try:
            while data:
                written = self._environment.pwrite(self._descriptor, data, offset)
                offset += written
                data = data[written:]
        except OSError as error:
            raise _noted(
                SyncError(error.errno, error.strerror, self.path), self.path, "writing"
            ) from error

    def store(self, offset: int, data: bytes) -> None:
        """As ``write``, through the map: cheaper where little is stored, and into pages that
        were stored into since the last sync. The first store into any other page takes a fault,
        which costs more than the system call of ``write``.
        """
        assert self._map is not None, f"{self.path} is not open for writing"
        self._map[offset : offset + len(data)] = data

    def read(self, offset: int, length: int) -> bytes:
        """The bytes; fewer where the file ends. May wait for the device: not for a loop."""
        try:
            data = self._environment.pread(self._descriptor, length, offset)
            # the kernel gives at most 2 GiB a call
            while len(data) < length and offset + len(data) < self.size:
                more = self._environment.pread(
                    self._descriptor, length - len(data), offset + len(data)
                )
                if not more:
                    break
                data += more
        except OSError as error:
            raise _noted(error, self.path, "reading") from None
        return data

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """The bytes if they are in memory, else None; never waits for the device."""
        buffer = bytearray(length)
        try:
            count = self._environment.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return None  # this file system cannot say; let a thread read
            raise _noted(error, self.path, "reading") from None
        if count < length and offset + count < self.size:
            return None
        return bytes(memoryview(buffer)[:count]) if count < length else bytes(buffer)

    def sync(self) -> None:
        """Everything written is durable on return. Raises SyncError. Releases the GIL."""
        # Not mmap.flush(): it holds the GIL for the whole msync. fdatasync writes back the
        # pages dirtied through the map as well.
        try:
            self._environment.fdatasync(self._descriptor)
        except OSError as error:
            raise _noted(
                SyncError(error.errno, error.strerror, self.path), self.path, "syncing"
            ) from error

    def is_removed(self) -> bool:
        """Whether somebody took the file away: what is written to it would not be found again."""
        # Not by fstat: where timestamps are multigrain (Linux 6.13), having asked for them
        # makes the next write change the inode, and the next sync half as slow again.
        return not self._environment.access(self.path, os.F_OK)

    def reload(self) -> None:
        """What is read from now on comes from the disk, not from memory. Raises SyncError.

        After a failed sync the kernel may show bytes that it never wrote and never will.
        """
        self.sync()  # only clean pages are dropped
        with _noting(self.path, "reloading"):
            self._environment.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def freeze(self) -> None:
        """Gives up writing; reading goes on."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def close(self) -> None:
        """Idempotent."""
        self.freeze()
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._environment.close(descriptor)

    def __del__(self) -> None:
        # A reader in another thread may hold the last reference to a segment that was
        # purged: the descriptor goes when the reader lets go, never under its hands.
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()


class Lock:
    """An exclusive lock on a store's directory, held until released."""

    def __init__(self, environment: Environment, path: str, descriptor: int) -> None:
        self._environment = environment
        self._path = path
        self._descriptor = descriptor
        _held_locks.add(self)

    def announce(self) -> None:
        """Writes this process's id into the lock file, for whom the lock keeps out."""
        with _noting(self._path, "writing"):
            self._environment.ftruncate(self._descriptor, 0)
            with contextlib.suppress(OSError):  # on a full disk the pid is not known: no harm
                self._environment.pwrite(self._descriptor, b"%d\n" % self._environment.getpid(), 0)

    def release(self, *, remove: bool) -> None:
        """Gives the lock up; ``remove`` says that the store was closed cleanly."""
        if self._descriptor < 0:
            return
        try:
            if remove:  # while it is still held, so that nobody's new lock is removed
                with contextlib.suppress(FileNotFoundError):
                    self._environment.unlink(self._path)
            self._environment.flock(self._descriptor, LOCK_UN)
        finally:
            self.forget()  # whatever failed: a lock that nobody can release keeps everybody out

    def forget(self) -> None:
        """Closes the descriptor, which releases the lock unless a forked twin has it too."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._environment.close(descriptor)


# A forked child must not keep the lock: flock belongs to the open file, which the child
# inherits, and so would outlive a killed parent and keep its restart out.
_held_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forget_locks_in_child() -> None:
    for lock in list(_held_locks):
        lock.forget()


Environment().call_in_forked_child(_forget_locks_in_child)


class LockedError(Exception):
    """The lock is held by another; ``pid`` where the holder announced itself."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(pid)
        self.pid = pid


class Files:
    """What a store needs of the file system. Errors are OSErrors with the path as a note."""

    def __init__(self, environment: Environment | None = None) -> None:
        self.environment = environment or Environment()

    def make_directory(self, path: str) -> None:
        """Makes the directory (0700) and its parents where missing, durably."""
        path = os.path.abspath(path)
        parent = os.path.dirname(path)
        if self.is_directory(path):
            # its maker may have been killed, or told of an error, before the name was durable
            with (
                contextlib.suppress(PermissionError),  # then it was made by somebody else
                _noting(path, "making durable the name of"),
            ):
                self.sync_directory(parent)
            return
        with _noting(path, "making the directory"):
            self.make_directory(parent)
            with contextlib.suppress(FileExistsError):
                self.environment.mkdir(path, 0o700)
            if not self.is_directory(path):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        self.sync_directory(parent)

    def is_directory(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(self.environment.stat(path).st_mode)
        except (OSError, ValueError):
            return False

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        with _noting(path, "listing"):
            return sorted(self.environment.listdir(path))

    def open(self, path: str, *, writable: bool = False) -> File:
        """Opens a file as long as it is; ``writable`` maps it."""
        with _noting(path, "opening"):
            flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
            return File(
                self.environment, path, self.environment.open(path, flags), writable=writable
            )

    def create(self, path: str, size: int) -> File:
        """A new file, writable, of ``size`` bytes allocated on disk and reading as zeros.

        Replaces a file of that name. Leaves none behind where it fails (``ENOSPC``).
        """
        with _noting(path, "creating"):
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            descriptor = self.environment.open(path, flags, 0o600)
            try:
                # Allocate, never leave a hole: a store through the map into a hole on a
                # full disk would kill the process (SIGBUS).
                self.environment.posix_fallocate(descriptor, 0, size)
            except BaseException:
                self.environment.close(descriptor)
                with contextlib.suppress(OSError):
                    self.environment.unlink(path)
                raise
            try:
                return File(self.environment, path, descriptor, writable=True)
            except BaseException:
                with contextlib.suppress(OSError):
                    self.environment.unlink(path)
                raise

    def rename(self, source: str, target: str) -> None:
        with _noting(target, "renaming to"):
            self.environment.rename(source, target)

    def unlink(self, path: str) -> None:
        """Removes a file; a missing one is no error."""
        with _noting(path, "removing"), contextlib.suppress(FileNotFoundError):
            self.environment.unlink(path)

    def sync_directory(self, path: str) -> None:
        """Renames and unlinks in the directory are durable on return. Raises SyncError."""
        with _noting(path, "opening"):
            descriptor = self.environment.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.environment.fsync(descriptor)
        except OSError as error:
            raise _noted(
                SyncError(error.errno, error.strerror, path), path, "syncing the directory"
            ) from error
        finally:
            self.environment.close(descriptor)

    def lock(self, directory: str) -> Lock:
        """Takes the directory's lock or raises LockedError. Changes no existing file."""
        path = os.path.join(directory, LOCK_NAME)
        while True:
            with _noting(path, "locking"):
                descriptor = self.environment.open(
                    path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
                )
                try:
                    self.environment.flock(descriptor, LOCK_EX | LOCK_NB)
                    # a holder may have removed the file between our open and our lock
                    if self._is_same_file(descriptor, path):
                        return Lock(self.environment, path, descriptor)
                except BlockingIOError:
                    pid = self.environment.pread(descriptor, 32, 0).strip()
                    self.environment.close(descriptor)
                    raise LockedError(int(pid) if pid.isdigit() else None) from None
                except BaseException:
                    self.environment.close(descriptor)
                    raise
                self.environment.close(descriptor)

    def _is_same_file(self, descriptor: int, path: str) -> bool:
        try:
            return os.path.samestat(self.environment.fstat(descriptor), self.environment.stat(path))
        except FileNotFoundError:
            return False

    # --- made of the above ---------------------------------------------------------------

    def publish(self, path: str, size: int, head: bytes) -> File:
        """Creates a file that appears under its name only when it is whole on disk.

        The order is temporary name, allocate, head, sync, rename, sync directory.
        """
        temporary = path + TEMPORARY_SUFFIX
        file = self.create(temporary, size)
        try:
            file.write(0, head)
            file.sync()
            self.rename(temporary, path)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                self.unlink(temporary)
            raise
        try:
            self.sync_directory(os.path.dirname(path))
        except BaseException:
            file.close()
            raise
        file.path = path
        return file

    def copy(self, source: str, target: str) -> None:
        """A durable copy of a file under a new name."""
        original = self.open(source)
        try:
            data = original.read(0, original.size)
        finally:
            original.close()
        if data:
            self.publish(target, len(data), data).close()
