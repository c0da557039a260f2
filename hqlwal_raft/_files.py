"""A store's directory and its files: pinned, locked, allocated, synced, told apart.

Knows nothing of what bytes mean. All system calls go through the :class:`Environment`; every
name is resolved through the directory's descriptor, so a directory that is moved or replaced
while a store is open is still the one that was locked, and :meth:`Directory.check` tells.

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
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from ._environment import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, Environment, Map
from ._format import (
    LOCK_BYTES,
    LOCK_NAME,
    META_NAME,
    TEMPORARY_SUFFIX,
    pack_lock,
    unpack_lock,
)

__all__ = ["Directory", "File", "IrregularFileError", "LockedError", "TornWriteError"]

#: which file it is, whatever its name: device and inode
Identity = tuple[int, int]

_IOV_MAX = 1024
_JOIN_BYTES = 256 << 10
_WRITE_BYTES_MAX = 1 << 30  # the kernel takes 2 GiB less a page at a time
_ZEROS = bytes(1 << 20)
# elsewhere than on Linux some are missing, and no file is opened
_SAFE_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
_READ_FLAGS = os.O_RDONLY | _SAFE_FLAGS
_WRITE_FLAGS = os.O_RDWR | _SAFE_FLAGS
# <linux/fs.h>: the ioctls of chattr(1), and its flag +C
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_NOCOW_FL = 0x80086601, 0x40086602, 0x00800000

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


class LockedError(Exception):
    """The lock is held by another; ``pid`` where the holder said who it is."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(pid)
        self.pid = pid


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
def _noting(path: str, doing: str) -> Iterator[None]:
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
            with _noting(path, "looking at"):
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
            for batch in _batches(parts):
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
                    parts = _behind(parts, written)
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
            for offset in range(first, last, len(_ZEROS)):
                length = min(len(_ZEROS), last - offset)
                if self.read(offset, length).strip(b"\0"):
                    self.write(offset, (_ZEROS[:length],))
                    is_changed = True
        return is_changed

    def allocate(self, length: int) -> None:
        """Has blocks for ``length`` bytes, so that no write into them lacks space."""
        with _noting(self.path, "allocating"):
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
        with _noting(self.path, "reading"):
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
            count = self._environment.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
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
        with _noting(self.path, "reloading"):
            self._environment.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def is_lockable(self) -> bool:
        """Whether nobody holds the file's lock."""
        return _is_lockable(self._environment, self._descriptor)

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


def _batches(parts: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The parts in lists that one system call takes."""
    if len(parts) > 1 and sum(map(len, parts)) <= _JOIN_BYTES:
        # The kernel takes longer over a hundred small buffers than it takes to copy them.
        parts = (b"".join(parts),)
    batch: list[bytes] = []
    size = 0
    for part in parts:
        if batch and (len(batch) == _IOV_MAX or size + len(part) > _WRITE_BYTES_MAX):
            yield batch
            batch, size = [], 0
        if part:
            batch.append(part)
            size += len(part)
    if batch:
        yield batch


def _behind(parts: list[bytes], written: int) -> list[bytes]:
    """What is left of the parts behind the first ``written`` bytes."""
    for place, part in enumerate(parts):
        if written < len(part):
            return [part[written:], *parts[place + 1 :]]
        written -= len(part)
    return []


def _torn(error: OSError) -> TornWriteError:
    torn = TornWriteError(*error.args)
    for note in getattr(error, "__notes__", ()):
        torn.add_note(note)
    return torn


class Directory:
    """A store's directory, opened, pinned and locked once by its descriptor.

    | state  | descriptor | lock |
    |--------|------------|------|
    | open   | pinned     | none |
    | locked | pinned     | held on the directory, and on ``lock.hql`` where that exists |
    | closed | none       | none |
    """

    def __init__(self, environment: Environment, path: str) -> None:
        self.environment = environment
        self.path = path
        self._lock_descriptor = -1
        #: what the lock file said before it was ours; None where there was none
        self.lock_before: bytes | None = None
        with _noting(path, "opening"):
            self._descriptor = environment.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _open_directories.add(self)
        try:
            with _noting(path, "looking at"):
                status = environment.fstat(self._descriptor)
        except BaseException:
            self.close()
            raise
        self.identity: Identity = (status.st_dev, status.st_ino)
        self._file_system: str | None = None
        #: what :meth:`measure` found
        self.free_bytes_seen: int | None = None

    @classmethod
    def make(cls, environment: Environment, path: str) -> Directory:
        """Makes the directory (0700) and its parents where missing, durably, and opens it."""
        path = os.path.abspath(path)
        made: list[str] = []
        directory = None
        try:
            _make_directories(environment, path, made)
            directory = cls(environment, path)
            # Its own name as well: whoever made it before may not have made it durable. Nor those
            # above it, if that one was killed before there was a store.
            parents = [os.path.dirname(each) for each in (path, *made)]
            ours = set(parents[1:])
            if directory.identify(META_NAME) is None:
                parents += directory.above()
            for parent in dict.fromkeys(parents):
                _sync_directory_at(environment, parent, must=parent in ours)
        except BaseException:
            if directory is not None:
                directory.close()
            # A name whose sync failed may never be written any more: the next try makes it anew.
            for each in reversed(made):
                with contextlib.suppress(OSError):
                    environment.rmdir(each)
            raise
        return directory

    def above(self) -> Iterator[str]:
        """The directories above it on the same file system, the nearest first."""
        path = self.path
        with contextlib.suppress(OSError):
            while path != (path := os.path.dirname(path)):
                if self.environment.stat(path).st_dev != self.identity[0]:
                    return
                yield path

    # --- names -----------------------------------------------------------------------------

    def path_of(self, name: str) -> str:
        return os.path.join(self.path, name)

    def names(self) -> list[str]:
        with _noting(self.path, "listing"):
            return sorted(self.environment.listdir(self._descriptor))

    def open_file(self, name: str, *, is_writable: bool = False) -> File:
        """Opens a regular file, without following a link or waiting for a pipe.

        Raises IrregularFileError where it is something else.
        """
        path = self.path_of(name)
        flags = _WRITE_FLAGS if is_writable else _READ_FLAGS
        with _noting(path, "opening"):
            try:
                descriptor = self.environment.open(name, flags, dir_fd=self._descriptor)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                    raise IrregularFileError(
                        error.errno, "this is no regular file", path
                    ) from error
                raise
        return File(self.environment, descriptor, name, path)

    def create(self, name: str, length: int, head: bytes, *, is_filled: bool = False) -> File:
        """A new file that appears under its name only when it is whole on disk.

        The order is temporary name, allocate, head, sync, rename; the caller then syncs the
        directory, before anything depends on the name. ``is_filled`` writes zeros over all of
        it, so that a later sync need not convert unwritten extents. Leaves nothing behind where
        it fails. Raises FileExistsError where the name is taken: nothing is ever replaced.
        """
        temporary = name + TEMPORARY_SUFFIX
        path = self.path_of(name)
        self.unlink(temporary)
        with _noting(path, "creating"):
            descriptor = self.environment.open(
                temporary, _WRITE_FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._descriptor
            )
        file: File | None = None
        try:
            file = File(self.environment, descriptor, name, path)
            self._forbid_copies(file)
            file.allocate(length)
            if is_filled:
                for offset in range(0, length, len(_ZEROS)):
                    file.write(offset, (_ZEROS[: length - offset],))
            file.write(0, (head,))
            file.sync()
            if self.identify(name) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            self._rename(temporary, name)
        except BaseException:
            if file is not None:
                file.close()
            with contextlib.suppress(OSError):
                self.unlink(temporary)
            raise
        return file

    def _rename(self, source: str, target: str) -> None:
        with _noting(self.path_of(target), "renaming to"):
            self.environment.rename(
                source, target, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor
            )

    def copy(self, file: File, target: str) -> None:
        """A copy of what the file holds, durable but for its name. Holes stay holes."""
        temporary = target + TEMPORARY_SUFFIX
        path = self.path_of(target)
        self.unlink(temporary)
        with _noting(path, "creating"):
            descriptor = self.environment.open(
                temporary, _WRITE_FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._descriptor
            )
        made: File | None = None
        try:
            made = File(self.environment, descriptor, target, path)
            with _noting(path, "writing"):
                self.environment.ftruncate(descriptor, file.size)
            for first, last in file.data_regions(0, file.size):
                for offset in range(first, last, len(_ZEROS)):
                    data = file.read(offset, min(len(_ZEROS), last - offset))
                    if data.strip(b"\0"):
                        made.write(offset, (data,))
            made.sync()
            self.set_aside(temporary, target)
        except BaseException:
            if made is not None:
                made.close()
            with contextlib.suppress(OSError):
                self.unlink(temporary)
            raise

    def set_aside(self, name: str, target: str) -> None:
        """Renames a file that is used no more; ``target`` must be free."""
        if self.identify(target) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path_of(target))
        self._rename(name, target)

    def unlink(self, name: str) -> None:
        """Removes a file; a missing one is no error."""
        with _noting(self.path_of(name), "removing"), contextlib.suppress(FileNotFoundError):
            self.environment.unlink(name, dir_fd=self._descriptor)

    def sync(self) -> None:
        """Names made, renamed and removed are durable on return."""
        with _noting(self.path, "syncing the directory"):
            self.environment.fsync(self._descriptor)

    # --- identity --------------------------------------------------------------------------

    def identify(self, name: str) -> Identity | None:
        """Which file has the name; None where none has. Never follows a link."""
        try:
            status = self.environment.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise noted(error, self.path_of(name), "looking at") from None
        return (status.st_dev, status.st_ino)

    def check(self, files: Iterable[File]) -> None:
        """Raises OSError (ESTALE) where the directory, or a file, is no longer at its path.

        Only a missing name or another identity counts: a look that failed is no removal.
        """
        look = self.environment.stat
        self._compare(partial(look, self.path), self.identity, self.path)
        for file in files:
            here = partial(look, file.name, dir_fd=self._descriptor, follow_symlinks=False)
            self._compare(here, file.identity, file.path)

    def _compare(self, look: partial[os.stat_result], identity: Identity, path: str) -> None:
        try:
            status = look()
        except (FileNotFoundError, NotADirectoryError):
            status = None
        except OSError:
            return
        if status is None or (status.st_dev, status.st_ino) != identity:
            raise OSError(
                errno.ESTALE, "it was moved, removed or replaced while the store was open", path
            )

    # --- the file system -------------------------------------------------------------------

    @property
    def file_system(self) -> str:
        """The kind of file system (``ext4``, ``btrfs`` …); ``""`` where it cannot be found."""
        if self._file_system is None:
            self._file_system = _file_system(self.environment, self._descriptor)
        return self._file_system

    @property
    def allows_maps(self) -> bool:
        """Whether a map of a file here may be stored into.

        Elsewhere a copy made while the store is open can come to share its blocks (reflinks),
        or blocks are copied on write: a full disk would then kill the process (SIGBUS).
        """
        return self.file_system in ("ext4", "tmpfs")

    @property
    def allows_filling(self) -> bool:
        """Whether blocks that were filled with zeros take later writes without being moved."""
        return self.file_system in ("ext4", "xfs")

    @property
    def copies_on_write(self) -> bool:
        return self.file_system == "btrfs"

    @property
    def free_bytes(self) -> int:
        """What an unprivileged process may still allocate."""
        with _noting(self.path, "looking at"):
            status = self.environment.fstatvfs(self._descriptor)
        return int(status.f_bavail * status.f_frsize)

    def measure(self) -> None:
        """Looks how much is free. Waits for the file system: not for a loop."""
        with contextlib.suppress(OSError):
            self.free_bytes_seen = self.free_bytes

    def is_copied_on_write(self, file: File) -> bool:
        """Whether a write over what the file has may need blocks that nobody has set aside.

        So on btrfs, where the file could not be made no-copy, or lost that by being copied.
        """
        if not self.copies_on_write:
            return False
        try:
            return not file.attributes() & _FS_NOCOW_FL
        except OSError:
            return True

    def _forbid_copies(self, file: File) -> None:
        """Makes an empty file no-copy (chattr +C), so that what is allocated stays so."""
        if self.copies_on_write:
            with contextlib.suppress(OSError):  # said once, when the store opens
                file.set_attributes(file.attributes() | _FS_NOCOW_FL)

    # --- the lock --------------------------------------------------------------------------

    def lock(self) -> None:
        """Takes the lock, or raises LockedError. Changes nothing.

        It is taken on the directory itself, whose name cannot be unlinked under it; and on the
        lock file, so that programs which know only that one are kept out. Without a free inode
        there may be no lock file; the directory's lock suffices.
        """
        with _noting(self.path, "locking"):
            try:
                self.environment.flock(self._descriptor, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                raise LockedError(self._holder()) from None
        try:
            self._lock_file()
        except BaseException:
            self.environment.flock(self._descriptor, LOCK_UN)
            raise

    def _lock_file(self) -> None:
        path = self.path_of(LOCK_NAME)
        has_file = self.identify(LOCK_NAME) is not None
        with _noting(path, "locking"):
            try:
                descriptor = self.environment.open(
                    LOCK_NAME, _WRITE_FLAGS | os.O_CREAT, 0o600, dir_fd=self._descriptor
                )
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT) and not has_file:
                    return
                if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                    raise IrregularFileError(
                        error.errno, "this is no regular file", path
                    ) from error
                raise
            try:
                if not stat.S_ISREG(self.environment.fstat(descriptor).st_mode):
                    raise IrregularFileError(errno.EINVAL, "this is no regular file", path)
                self.lock_before = self.environment.pread(descriptor, 4096, 0) if has_file else None
                self.environment.flock(descriptor, LOCK_EX | LOCK_NB)
            except BaseException as error:
                self.environment.close(descriptor)
                if isinstance(error, BlockingIOError):
                    raise LockedError(self._holder()) from None
                if not has_file:  # nobody else can have made it meanwhile: the directory is ours
                    with contextlib.suppress(OSError):
                        self.unlink(LOCK_NAME)
                raise
        self._lock_descriptor = descriptor

    def is_lockable(self) -> bool:
        """Whether nobody holds the directory's lock; for a directory that is not locked."""
        return _is_lockable(self.environment, self._descriptor)

    def _holder(self) -> int | None:
        with contextlib.suppress(OSError):
            file = self.open_file(LOCK_NAME)
            said = unpack_lock(file.read(0, LOCK_BYTES))
            file.close()
            if said is not True and said is not False:
                return said
        return None

    def say_held(self) -> None:
        """Writes who holds the lock: a hint, so a full disk is no obstacle."""
        self._say(pack_lock(self.environment.getpid()))

    def say_clean(self) -> None:
        """Writes that the store was closed cleanly."""
        self._say(pack_lock(None))

    def say_as_before(self) -> None:
        """Takes back what :meth:`say_held` wrote, where the store was not opened after all."""
        if self.lock_before is not None:
            self._say(self.lock_before)
        elif self._lock_descriptor >= 0:
            with contextlib.suppress(OSError):
                self.unlink(LOCK_NAME)

    def _say(self, data: bytes) -> None:
        if self._lock_descriptor >= 0:
            with contextlib.suppress(OSError):
                self.environment.pwrite(self._lock_descriptor, data, 0)
                if self.environment.fstat(self._lock_descriptor).st_size != len(data):
                    self.environment.ftruncate(self._lock_descriptor, len(data))

    # --- letting go ------------------------------------------------------------------------

    def close(self) -> None:
        """Gives up the lock and the directory. Idempotent."""
        try:
            if self._lock_descriptor >= 0:
                self._lock_descriptor = self._closed(self._lock_descriptor)
        finally:
            if self._descriptor >= 0:
                self._descriptor = self._closed(self._descriptor)

    def _closed(self, descriptor: int) -> int:
        """Closes it; gives what stands for none. One that was not closed is not forgotten."""
        try:
            # An flock belongs to the open file, which a child forked meanwhile has too.
            with contextlib.suppress(OSError):
                self.environment.flock(descriptor, LOCK_UN)
        finally:
            try:  # noqa: SIM105 - between the closing and the end nothing takes memory
                self.environment.close(descriptor)
            except OSError:
                pass
        return -1

    def forget_in_child(self) -> None:
        """In a forked child: lets go of the descriptors, and leaves the lock to the parent."""
        for attribute in ("_lock_descriptor", "_descriptor"):
            descriptor = getattr(self, attribute)
            setattr(self, attribute, -1)
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    self.environment.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


# A forked child must not keep the lock: flock belongs to the open file, which the child
# inherits, and so would outlive a killed parent and keep its restart out.
_open_directories: weakref.WeakSet[Directory] = weakref.WeakSet()
_open_files: weakref.WeakSet[File] = weakref.WeakSet()


def _forget_in_child() -> None:
    for directory in list(_open_directories):
        directory.forget_in_child()
    for file in list(_open_files):
        with contextlib.suppress(Exception):
            file.close()


Environment().call_in_forked_child(_forget_in_child)


def _is_lockable(environment: Environment, descriptor: int) -> bool:
    try:
        # shared, for an instant, so that two who ask do not take each other for a holder
        environment.flock(descriptor, LOCK_SH | LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    environment.flock(descriptor, LOCK_UN)
    return True


def _make_directories(environment: Environment, path: str, made: list[str]) -> None:
    """Makes what is missing of the path, and adds each to ``made``, the highest first."""
    missing: list[str] = []
    place = path
    while True:
        try:
            status = environment.stat(place)
        except FileNotFoundError:
            missing.append(place)
            place = os.path.dirname(place)
            continue
        except OSError as error:
            raise noted(error, path, "making the directory") from None
        if not stat.S_ISDIR(status.st_mode):
            no_directory = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)
            raise noted(no_directory, path, "making the directory")
        break
    for each in reversed(missing):
        made.append(each)  # first: a call that says it failed may have made it
        try:
            with _noting(each, "making the directory"):
                environment.mkdir(each, 0o700)
        except FileExistsError:
            made.remove(each)  # another process was faster


def _sync_directory_at(environment: Environment, path: str, *, must: bool) -> None:
    try:
        descriptor = environment.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if isinstance(error, PermissionError) and not must:
            return  # not ours to open: the name in it was made durable by who made it
        raise noted(error, path, "opening") from None
    try:
        with _noting(path, "syncing the directory"):
            environment.fsync(descriptor)
    finally:
        environment.close(descriptor)


def _file_system(environment: Environment, descriptor: int) -> str:
    """The kind of file system a descriptor is on, by its mount's number."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _read_text(environment, f"/proc/self/fdinfo/{descriptor}").splitlines():
            if line.startswith("mnt_id:"):
                number = line.split()[1]
                break
        else:
            return ""
        for line in _read_text(environment, "/proc/self/mountinfo").splitlines():
            if line.split(" ", 1)[0] == number:
                return line.partition(" - ")[2].split()[0]
    return ""


def _read_text(environment: Environment, path: str) -> str:
    descriptor = environment.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while piece := environment.pread(descriptor, 1 << 16, len(data)):
            data += piece
        return data.decode(errors="replace")
    finally:
        environment.close(descriptor)
