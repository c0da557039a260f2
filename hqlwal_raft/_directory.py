"""A store's directory: pinned, locked, told apart; its files are made and opened here.

Every name is resolved through the directory's descriptor, so a directory that is moved or
replaced while a store is open is still the one that was locked, and :meth:`Directory.check`
tells. Knows the names of ``_format`` that are temporary, and nothing of what bytes mean.

For plans, and for whoever opens or judges a directory: in any thread that may wait for the disk,
one plan at a time. Errors are OSErrors with the path, and advice where there is some, as notes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Iterable, Iterator
from functools import partial

from ._environment import Environment
from ._files import (
    READ_FLAGS,
    WRITE_FLAGS,
    ZEROS,
    File,
    Identity,
    identify_at,
    noting,
    open_at,
)
from ._format import META_NAME, TEMPORARY_SUFFIX
from ._lock import DirectoryLock, unlock_and_close
from ._paths import file_system_of, make_directories, sync_directory_at

__all__ = ["Directory"]

# <linux/fs.h>: the flag +C of chattr(1)
_FS_NOCOW_FL = 0x00800000


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
        with noting(path, "opening"):
            self._descriptor = environment.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.lock = DirectoryLock(environment, self._descriptor, path)
        _open_directories.add(self)
        try:
            with noting(path, "looking at"):
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
            make_directories(environment, path, made)
            directory = cls(environment, path)
            # Its own name as well: whoever made it before may not have made it durable. Nor those
            # above it, if that one was killed before there was a store.
            parents = [os.path.dirname(each) for each in (path, *made)]
            ours = set(parents[1:])
            if directory.identify(META_NAME) is None:
                parents += directory.above()
            for parent in dict.fromkeys(parents):
                sync_directory_at(environment, parent, must=parent in ours)
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
        with noting(self.path, "listing"):
            return sorted(self.environment.listdir(self._descriptor))

    def open_file(self, name: str, *, is_writable: bool = False) -> File:
        """Opens a regular file, without following a link or waiting for a pipe.

        Raises IrregularFileError where it is something else.
        """
        path = self.path_of(name)
        flags = WRITE_FLAGS if is_writable else READ_FLAGS
        with noting(path, "opening"):
            descriptor = open_at(self.environment, name, flags, self._descriptor, path)
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
        descriptor = self._open_temporary(temporary, path)
        file: File | None = None
        try:
            file = File(self.environment, descriptor, name, path)
            self._forbid_copies(file)
            file.allocate(length)
            if is_filled:
                for offset in range(0, length, len(ZEROS)):
                    file.write(offset, (ZEROS[: length - offset],))
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

    def make_temporary(self, name: str) -> File:
        """An empty file of a temporary name, for who gives it another once it is durable."""
        path = self.path_of(name)
        descriptor = self._open_temporary(name, path)
        try:
            return File(self.environment, descriptor, name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.unlink(name)
            raise

    def _open_temporary(self, name: str, path: str) -> int:
        """An empty file, in the place of what an attempt that was killed left behind."""
        self.unlink(name)
        with noting(path, "creating"):
            return self.environment.open(
                name, WRITE_FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._descriptor
            )

    def _rename(self, source: str, target: str) -> None:
        with noting(self.path_of(target), "renaming to"):
            self.environment.rename(
                source, target, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor
            )

    def copy(self, file: File, target: str) -> None:
        """A copy of what the file holds, durable but for its name. Holes stay holes."""
        temporary = target + TEMPORARY_SUFFIX
        path = self.path_of(target)
        descriptor = self._open_temporary(temporary, path)
        made: File | None = None
        try:
            made = File(self.environment, descriptor, target, path)
            with noting(path, "writing"):
                self.environment.ftruncate(descriptor, file.size)
            for first, last in file.data_regions(0, file.size):
                for offset in range(first, last, len(ZEROS)):
                    data = file.read(offset, min(len(ZEROS), last - offset))
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
        """Renames a file; ``target`` must be free."""
        if self.identify(target) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path_of(target))
        self._rename(name, target)

    def unlink(self, name: str) -> None:
        """Removes a file; a missing one is no error."""
        with noting(self.path_of(name), "removing"), contextlib.suppress(FileNotFoundError):
            self.environment.unlink(name, dir_fd=self._descriptor)

    def sync(self) -> None:
        """Names made, renamed and removed are durable on return."""
        with noting(self.path, "syncing the directory"):
            self.environment.fsync(self._descriptor)

    # --- identity --------------------------------------------------------------------------

    def identify(self, name: str) -> Identity | None:
        """Which file has the name; None where none has. Never follows a link."""
        return identify_at(self.environment, name, self._descriptor, self.path_of(name))

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
            self._file_system = file_system_of(self.environment, self._descriptor)
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
        with noting(self.path, "looking at"):
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

    def say_clean(self) -> None:
        """Writes in the lock file that the store was closed cleanly."""
        self.lock.say_clean()

    # --- letting go ------------------------------------------------------------------------

    def close(self) -> None:
        """Gives up the lock and the directory. Idempotent."""
        try:
            self.lock.release()
        finally:
            if self._descriptor >= 0:
                self._descriptor = unlock_and_close(self.environment, self._descriptor)

    def forget_in_child(self) -> None:
        """In a forked child: lets go of the descriptors, and leaves the lock to the parent."""
        self.lock.forget_in_child()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                self.environment.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


# A forked child must not keep the lock: flock belongs to the open file, which the child
# inherits, and so would outlive a killed parent and keep its restart out.
_open_directories: weakref.WeakSet[Directory] = weakref.WeakSet()


def _forget_in_child() -> None:
    for directory in list(_open_directories):
        directory.forget_in_child()


Environment().call_in_forked_child(_forget_in_child)
