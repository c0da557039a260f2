"""An open file: written, synced, read, allocated; and how an error of the system is worded.

Knows nothing of what bytes mean, nor how a file came by its name: ``_directory`` opens and makes
files. All system calls go through the :class:`Environment`.

A :class:`File` is leased by holding it: plans and readers keep a reference, and the descriptor
is closed when the last holder lets go, never before and never used again for another file under
somebody's hands. Reading is for any thread; one plan at a time writes a file.

Errors are OSErrors with the path, and advice where there is some, as notes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import weakref
from collections.abc import Iterator, Sequence

from ._environment import LOCK_NB, LOCK_SH, LOCK_UN, Environment, Map
from ._gathering import batches, behind

__all__ = ["File", "Identity", "IrregularFileError", "TornWriteError"]

#: which file it is, whatever its name: device and inode
Identity = tuple[int, int]

ZEROS = bytes(1 << 20)
# elsewhere than on Linux some are missing, and no file is opened
_SAFE_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
READ_FLAGS = os.O_RDONLY | _SAFE_FLAGS
WRITE_FLAGS = os.O_RDWR | _SAFE_FLAGS
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)
# <linux/fs.h>: the ioctls of chattr(1)
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602

_ADVICE = {
    errno.ENOSPC: "the file system has no free block or inode left: make room",
    errno.EDQUOT: "the disk quota is used up: raise it, or make room",
    errno.EMFILE: "this process has too many files open: raise its limit (ulimit -n)",
    errno.ENFILE: "the system has too many files open: raise fs.file-max",
    errno.EROFS: "the file system is mounted read-only",
    errno.ENOLCK: "the file system cannot lock a directory (some NFS mounts): use a local one",
    errno.EFBIG: "the file system, or the limit of file sizes (ulimit -f), allows no such length",
    errno.EIO: "the device failed: check the disk and the kernel's log",
    errno.ESTALE: "the network file system lost the file: use a local one",
    errno.EOPNOTSUPP: "the file system lacks this operation: use ext4, XFS, btrfs or tmpfs",
    errno.ENODEV: "the file system lacks this operation: use ext4, XFS, btrfs or tmpfs",
    errno.EINVAL: "the file system may lack this operation: use ext4, XFS, btrfs or tmpfs",
}

#: how file systems say that a directory cannot be locked: NFS wants a descriptor for writing
_NO_LOCK = (errno.EBADF, errno.EISDIR, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class TornWriteError(OSError):
    """A write failed after a part of it was stored."""


class IrregularFileError(OSError):
    """Where a file of the store should be, there is a directory, a link, a pipe or a device."""


def noted(error: OSError, path: str, doing: str) -> OSError:
    """The error with path, deed and advice as a note, once."""
    note = f"while {doing} {path}"
    advice = _ADVICE.get(error.errno or 0)
    if doing == "locking" and error.errno in _NO_LOCK:
        advice = _ADVICE[errno.ENOLCK]
    if advice:
        note += f": {advice}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    return error


@contextlib.contextmanager
def noting(path: str, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise noted(error, path, doing) from None


class File:
    """An open, regular file."""

    __slots__ = (
        "__weakref__",
        "_descriptor",
        "_environment",
        "_map",
        "identity",
        "name",
        "path",
        "size",
    )

    def __init__(self, environment: Environment, descriptor: int, name: str, path: str) -> None:
        self._environment = environment
        self._descriptor = descriptor
        self._map: Map | None = None
        self.name = name
        self.path = path
        _open_files.add(self)
        try:
            with noting(path, "looking at"):
                status = environment.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise IrregularFileError(errno.EINVAL, "this is no regular file", path)
        except BaseException:
            self.close()
            raise
        self.identity: Identity = (status.st_dev, status.st_ino)
        self.size = status.st_size

    # --- writing ---------------------------------------------------------------------------

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        """Stores ``parts`` one after the other. May wait for the device.

        Raises OSError where nothing was stored, TornWriteError where a part was.
        """
        start = offset
        try:
            if len(parts) == 1:  # as most writes are
                written = self._environment.pwrite(self._descriptor, parts[0], offset)
                if written == len(parts[0]):
                    return
                offset += written
                parts = (parts[0][written:],)
            for batch in batches(parts):
                offset = self._write_all(offset, batch)
        except OSError as error:
            error = noted(error, self.path, "writing")
            if offset == start and not isinstance(error, TornWriteError):
                raise
            raise _torn(error) from error

    def _write_all(self, offset: int, parts: list[bytes]) -> int:
        """Writes parts that one call may take; returns where they end."""
        environment, descriptor = self._environment, self._descriptor
        start = offset
        left = sum(map(len, parts))
        try:
            while left:
                if len(parts) == 1:
                    written = environment.pwrite(descriptor, parts[0], offset)
                else:
                    written = environment.pwritev(descriptor, parts, offset)
                offset += written
                left -= written
                if left:  # a short write; the next try says why
                    parts = behind(parts, written)
        except OSError as error:
            if offset != start:
                raise _torn(error) from error
            raise
        return offset

    def store(self, offset: int, data: bytes) -> bool:
        """As ``write``, through the map; False, and nothing is done, where there is none.

        Cheaper where little is stored, and into pages that were stored into since the last
        sync. Elsewhere a page fault is dearer.
        """
        if self._map is None:
            return False
        self._map[offset : offset + len(data)] = data
        return True

    def map(self) -> None:
        """From now on ``store`` goes through a map, where the file system has maps.

        Only for a file whose whole length is allocated and shared with no other: a store into
        a hole, on a full disk, kills the process (SIGBUS).
        """
        if self._map is None and self.size:
            with contextlib.suppress(OSError):  # ENODEV: there are none; writing works as well
                self._map = self._environment.mmap(self._descriptor, self.size)

    def zero(self, start: int, stop: int) -> bool:
        """Zeroes what is not yet zero in ``[start, stop)``; says whether anything was written."""
        is_changed = False
        for first, last in self.data_regions(start, stop):
            for offset in range(first, last, len(ZEROS)):
                length = min(len(ZEROS), last - offset)
                if self.read(offset, length).strip(b"\0"):
                    self.write(offset, (ZEROS[:length],))
                    is_changed = True
        return is_changed

    def allocate(self, length: int) -> None:
        """Has blocks for ``length`` bytes, so that no write into them lacks space."""
        with noting(self.path, "allocating"):
            self._environment.posix_fallocate(self._descriptor, 0, length)
        self.size = max(self.size, length)

    def attributes(self) -> int:
        """The flags of chattr(1). Raises OSError where the file system has none."""
        flags = bytearray(8)
        self._environment.ioctl(self._descriptor, _FS_IOC_GETFLAGS, flags)
        return int.from_bytes(flags, "little")

    def set_attributes(self, flags: int) -> None:
        """Sets them. Raises OSError where the file system does not allow these."""
        data = flags.to_bytes(8, "little")
        self._environment.ioctl(self._descriptor, _FS_IOC_SETFLAGS, data)

    def sync(self) -> None:
        """Everything written is durable on return. Never retried: the kernel may have dropped
        what it could not write. Releases the GIL, which mmap.flush() would not.
        """
        try:
            self._environment.fdatasync(self._descriptor)
        except OSError as error:
            raise noted(error, self.path, "syncing") from None

    # --- reading ---------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """The bytes; fewer where the file ends. May wait for the device: not for a loop."""
        pread, descriptor = self._environment.pread, self._descriptor
        with noting(self.path, "reading"):
            data = pread(descriptor, length, offset)
            while len(data) < length:  # at most 2 GiB a call; else the file ends here
                more = pread(descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        return data

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """The bytes if all are in memory, else None; never waits for the device."""
        buffer = bytearray(length)
        try:
            count = self._environment.preadv(self._descriptor, [buffer], offset, _NO_WAIT)
        except OSError:
            return None  # not in memory, or this file system cannot say: let a thread read
        return bytes(buffer) if count == length else None

    def data_regions(self, start: int, stop: int) -> tuple[tuple[int, int], ...]:
        """The parts of ``[start, stop)`` that were ever written, where the system knows.

        All are asked for before any is read: a page that was read, or read ahead, counts as
        written on ext4 and XFS, so that one region after the other would lead through all of it.
        """
        regions = []
        offset = start
        while offset < stop:
            try:
                first = self._environment.lseek(self._descriptor, offset, os.SEEK_DATA)
                last = self._environment.lseek(self._descriptor, first, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break  # nothing but a hole
                first, last = offset, min(stop, self.size)
            if first >= stop or first >= last:
                break
            regions.append((max(first, start), min(last, stop)))
            offset = last
        return tuple(regions)

    def reload(self) -> None:
        """What is read from now on comes from the disk, not from memory.

        After a failed sync the kernel may show bytes that it never wrote and never will.
        """
        self.sync()  # only clean pages are dropped
        with noting(self.path, "reloading"):
            self._environment.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def is_lockable(self) -> bool:
        """Whether nobody holds the file's lock."""
        return is_descriptor_lockable(self._environment, self._descriptor)

    # --- letting go ------------------------------------------------------------------------

    def freeze(self) -> None:
        """Gives up the map; reading goes on."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def close(self) -> None:
        """For a file that nobody else holds; others are closed by letting go. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(BufferError):
                self.freeze()
            with contextlib.suppress(OSError):  # what counts was synced; it is closed all the same
                self._environment.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


def open_files() -> int:
    """How many there are in this process."""
    return len(_open_files)


def _torn(error: OSError) -> TornWriteError:
    torn = TornWriteError(*error.args)
    for note in getattr(error, "__notes__", ()):
        torn.add_note(note)
    return torn


def open_at(
    environment: Environment, name: str, flags: int, directory_descriptor: int, path: str
) -> int:
    """Opens what has the name, or makes it (0600) where the flags say so.

    Raises IrregularFileError where a link, a directory or a pipe without a reader has it.
    """
    try:
        return environment.open(name, flags, 0o600, dir_fd=directory_descriptor)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise IrregularFileError(error.errno, "this is no regular file", path) from error
        raise


def identify_at(
    environment: Environment, name: str, directory_descriptor: int, path: str
) -> Identity | None:
    """Which file has the name; None where none has. Never follows a link."""
    try:
        status = environment.stat(name, dir_fd=directory_descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise noted(error, path, "looking at") from None
    return (status.st_dev, status.st_ino)


def is_descriptor_lockable(environment: Environment, descriptor: int) -> bool:
    """Whether nobody holds the lock of the open file."""
    try:
        # shared, for an instant, so that two who ask do not take each other for a holder
        environment.flock(descriptor, LOCK_SH | LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    environment.flock(descriptor, LOCK_UN)
    return True


# A forked child closes them: it would keep the blocks of those that the parent unlinks.
_open_files: weakref.WeakSet[File] = weakref.WeakSet()


def _close_in_child() -> None:
    for file in list(_open_files):
        with contextlib.suppress(Exception):
            file.close()


Environment().call_in_forked_child(_close_in_child)
