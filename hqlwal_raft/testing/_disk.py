"""A disk that forgets: files in memory that know what a power cut could leave of them.

It must not know what the bytes mean; it stands in for ``OsFiles`` below the whole engine.

What it assumes of a disk is little, so that what holds here holds on a real one:

- A page (``page_bytes``, 4096 or 512) reaches the disk whole, at any moment after a store into
  it and at the latest when a sync that began after the store has returned. Until then each page
  for itself is as it was or as after any of the stores since.
- Creations, renames and unlinks reach the disk in their order, at the latest when a sync of the
  directory that began after them has returned. The sync of a file makes no name durable.
- Before its first sync a new file may be empty, short, or full of zeros.
- After a failed sync the pages it covered count as written, though they may not be: later syncs
  pass over them until they are stored into again.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from .._files import File, Files, Lock, LockedError, SyncError
from .._format import LOCK_NAME
from ._pages import Content, Inode, Operation

__all__ = ["ForgetfulDisk", "ForgetfulFile", "Snapshot"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The disk at one moment: every state that a power cut at this moment could leave."""

    page_bytes: int
    directories: frozenset[str]
    #: name → file, as the last directory sync left it
    table: Mapping[str, int]
    #: by directory, what happened to the names since, in order
    pending: Mapping[str, tuple[Operation, ...]]
    contents: Mapping[int, Content]

    def image(self, rng: random.Random) -> ForgetfulDisk:
        """One of the states, drawn by ``rng``."""
        table = dict(self.table)
        for operations in self.pending.values():
            extreme = rng.choice((0, len(operations), None))
            count = rng.randint(0, len(operations)) if extreme is None else extreme
            for operation in operations[:count]:
                operation.apply(table)
        # In turn: everything old, everything new, mixed, and one page unlike all others,
        # which is what finds a wrong order of two writes soonest.
        uncertain = [
            (number, page)
            for number in sorted(set(table.values()))
            for page in sorted(self.contents[number].versions)
        ]
        style = rng.choice(("old", "new", "mixed", "mixed", "odd old", "odd new"))
        odd = rng.choice(uncertain) if uncertain else None

        def version(number: int, page: int, count: int) -> int:
            if style == "mixed":
                return rng.choice((0, count - 1, rng.randrange(count)))
            is_odd = (number, page) == odd
            return count - 1 if (style in ("new", "odd new")) != is_odd else 0

        return self._image(
            table, {number: self._bytes(number, version, rng) for number in set(table.values())}
        )

    def images(self, rng: random.Random, at_most: int) -> Iterator[ForgetfulDisk]:
        """Up to ``at_most`` different states: all of them where there are so few."""
        seen: set[int] = set()
        for _ in range(2 * at_most):
            image = self.image(rng)
            fingerprint = image.fingerprint()
            if fingerprint not in seen:
                seen.add(fingerprint)
                yield image
                if len(seen) == at_most:
                    return

    def _bytes(
        self, number: int, version: Callable[[int, int, int], int], rng: random.Random
    ) -> bytes:
        content = self.contents[number]
        data = bytearray(content.certain)
        for page, versions in content.versions.items():
            start = page * self.page_bytes
            kept = versions[version(number, page, len(versions))]
            data[start : start + len(kept)] = kept
        if not content.is_synced:
            match rng.choice(("empty", "zeros", "short", "whole", "whole")):
                case "empty":
                    return b""
                case "zeros":
                    return bytes(len(data))
                case "short":
                    return bytes(data[: rng.randint(0, len(data) // 512) * 512])
        return bytes(data)

    def _image(self, table: Mapping[str, int], data: Mapping[int, bytes]) -> ForgetfulDisk:
        files = {path: data[number] for path, number in table.items()}
        return ForgetfulDisk.of(files, self.directories, page_bytes=self.page_bytes)


class ForgetfulDisk(Files):
    """Files in memory, and at every moment the states a power cut could leave of them.

    ``on_point`` is called with a word and a path, in the thread that does the work and
    with nothing locked: ``"writing"`` and ``"written"``, ``"syncing"`` and ``"synced"``,
    ``"syncing directory"`` and ``"synced directory"``, ``"renamed"``, ``"unlinked"``,
    ``"created"``. It may take a :meth:`snapshot`, or wait.
    """

    def __init__(self, *, page_bytes: int = 4096, capacity_bytes: int | None = None) -> None:
        self.page_bytes = page_bytes
        #: the sum of file sizes past which a creation fails with ENOSPC
        self.capacity_bytes = capacity_bytes
        self.on_point: Callable[[str, str], object] | None = None
        #: decides which pages a failed sync did write, once they are read back
        self.rng = random.Random(0)  # noqa: S311 - no secret
        self._lock = threading.RLock()
        self._directories: set[str] = {"/"}
        self._current: dict[str, int] = {}
        self._durable: dict[str, int] = {}
        self._pending: dict[str, list[Operation]] = {}
        self._inodes: dict[int, Inode] = {}
        self._numbers = itertools.count(1)
        self._locked: set[str] = set()

    @classmethod
    def of(
        cls,
        files: Mapping[str, bytes],
        directories: Iterable[str] = (),
        *,
        page_bytes: int = 4096,
    ) -> ForgetfulDisk:
        """A disk that holds ``files`` (path → content), all of it durable."""
        disk = cls(page_bytes=page_bytes)
        disk._directories.update(directories)
        for path, content in files.items():
            disk._directories.add(os.path.dirname(path))
            number = next(disk._numbers)
            disk._inodes[number] = Inode.of(content, page_bytes)
            disk._current[path] = disk._durable[path] = number
        return disk

    # --- looking at it -------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        with self._lock:
            numbers = {*self._durable.values()}
            pending = {path: tuple(operations) for path, operations in self._pending.items()}
            for operations in pending.values():
                numbers.update(each.number for each in operations if each.number is not None)
            return Snapshot(
                self.page_bytes,
                frozenset(self._directories),
                dict(self._durable),
                pending,
                {number: self._inodes[number].content() for number in numbers},
            )

    def after_kill(self) -> ForgetfulDisk:
        """The disk as another process finds it after this one died.

        No lock is held, nothing is lost, and nothing is more durable than it was.
        """
        with self._lock:
            disk = ForgetfulDisk(page_bytes=self.page_bytes, capacity_bytes=self.capacity_bytes)
            disk._directories = set(self._directories)
            disk._current = dict(self._current)
            disk._durable = dict(self._durable)
            disk._pending = {path: list(pending) for path, pending in self._pending.items()}
            disk._inodes = {number: inode.twin() for number, inode in self._inodes.items()}
            disk._numbers = itertools.count(max(self._inodes, default=0) + 1)
            return disk

    def contents(self) -> dict[str, bytes]:
        """Path → content of every file, as a process sees them now."""
        with self._lock:
            return {
                path: bytes(self._inodes[number].current)
                for path, number in sorted(self._current.items())
            }

    def fingerprint(self) -> int:
        return hash(tuple(self.contents().items()))

    def write_to(self, directory: str) -> None:
        """Copies every file into a real directory, under its last name."""
        os.makedirs(directory, exist_ok=True)
        for path, content in self.contents().items():
            with open(os.path.join(directory, os.path.basename(path)), "wb") as file:
                file.write(content)

    def _point(self, what: str, path: str) -> None:
        if self.on_point is not None:
            self.on_point(what, path)

    # --- Files ---------------------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        with self._lock:
            if path in self._current:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            while path not in self._directories:
                self._directories.add(path)
                path = os.path.dirname(path)

    def is_directory(self, path: str) -> bool:
        return path in self._directories

    def names(self, path: str) -> list[str]:
        with self._lock:
            self._require_directory(path)
            return sorted(
                os.path.basename(each) for each in self._current if os.path.dirname(each) == path
            )

    def open(self, path: str, *, writable: bool = False) -> ForgetfulFile:
        with self._lock:
            return ForgetfulFile(self, path, self._inode(path), is_writable=writable)

    def create(self, path: str, size: int) -> ForgetfulFile:
        with self._lock:
            self._require_directory(os.path.dirname(path))
            if self.capacity_bytes is not None:
                used = sum(
                    len(self._inodes[number].current)
                    for each, number in self._current.items()
                    if each != path
                )
                if used + size > self.capacity_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            if path in self._current:
                inode = self._inode(path)
                inode.replace(bytes(size))
            else:
                inode = self._add(path, size)
            file = ForgetfulFile(self, path, inode, is_writable=True)
        self._point("created", path)
        return file

    def rename(self, source: str, target: str) -> None:
        with self._lock:
            self._inode(source)
            self._do(Operation(source, target))
        self._point("renamed", target)

    def unlink(self, path: str) -> None:
        with self._lock:
            self._require_directory(os.path.dirname(path))
            if path not in self._current:
                return
            self._do(Operation(path))
        self._point("unlinked", path)

    def sync_directory(self, path: str) -> None:
        self._point("syncing directory", path)
        with self._lock:
            self._require_directory(path)
            operations = self._pending.pop(path, [])
            for operation in operations:
                operation.apply(self._durable)
            used = {*self._current.values(), *self._durable.values()}
            for pending in self._pending.values():
                used.update(each.number for each in pending if each.number is not None)
            self._inodes = {number: self._inodes[number] for number in used}
        self._point("synced directory", path)

    def lock(self, directory: str) -> Lock:
        path = os.path.join(directory, LOCK_NAME)
        with self._lock:
            self._require_directory(directory)
            if path in self._locked:
                text = bytes(self._inode(path).current).strip()
                raise LockedError(int(text) if text.isdigit() else None)
            if path not in self._current:
                self._add(path, 0)
            self._locked.add(path)
        return _ForgetfulLock(self, path)

    def has(self, inode: Inode) -> bool:
        """Whether a name leads to the file."""
        with self._lock:
            return any(self._inodes[number] is inode for number in self._current.values())

    # --- within --------------------------------------------------------------------------

    def _require_directory(self, path: str) -> None:
        if path not in self._directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _inode(self, path: str) -> Inode:
        if path not in self._current:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._inodes[self._current[path]]

    def _add(self, path: str, size: int) -> Inode:
        number = next(self._numbers)
        self._inodes[number] = Inode(size, self.page_bytes)
        self._do(Operation(path, number=number))
        return self._inodes[number]

    def _do(self, operation: Operation) -> None:
        operation.apply(self._current)
        self._pending.setdefault(os.path.dirname(operation.path), []).append(operation)


class ForgetfulFile(File):
    """An open file of a :class:`ForgetfulDisk`; outlives its name as an open file does."""

    def __init__(self, disk: ForgetfulDisk, path: str, inode: Inode, *, is_writable: bool) -> None:
        self.path = path
        self.size = len(inode.current)
        self._disk = disk
        self._inode = inode
        self._is_writable = is_writable
        self._is_open = True

    def write(self, offset: int, data: bytes) -> None:
        assert self._is_writable, f"{self.path} is not open for writing"
        self._disk._point("writing", self.path)
        with self._disk._lock:
            self._inode.write(offset, data)
        self._disk._point("written", self.path)

    def read(self, offset: int, length: int) -> bytes:
        if not self._is_open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        return bytes(self._inode.current[offset : offset + length])

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self.read(offset, length)

    def sync(self) -> None:
        with self._inode.sync_lock:
            with self._disk._lock:
                covered = self._inode.begin_sync()
            self._disk._point("syncing", self.path)
            with self._disk._lock:
                self._inode.finish_sync(covered)
        self._disk._point("synced", self.path)

    def fail_sync(self, number: int = errno.EIO) -> None:
        """A sync that fails: what it should have written may be lost, and is not retried."""
        with self._inode.sync_lock, self._disk._lock:
            self._inode.fail_sync()
        raise SyncError(number, os.strerror(number), self.path)

    def is_removed(self) -> bool:
        return not self._disk.has(self._inode)

    def reload(self) -> None:
        with self._disk._lock:
            self._inode.reload(self._disk.rng)

    def freeze(self) -> None:
        self._is_writable = False

    def close(self) -> None:
        self._is_writable = False
        self._is_open = False


class _ForgetfulLock(Lock):
    def __init__(self, disk: ForgetfulDisk, path: str) -> None:
        self._disk = disk
        self._path = path

    def announce(self) -> None:
        with self._disk._lock:
            self._disk._inode(self._path).replace(b"%d\n" % os.getpid())

    def release(self, *, remove: bool) -> None:
        with self._disk._lock:
            if self._path not in self._disk._locked:
                return
            if remove and self._path in self._disk._current:
                self._disk._do(Operation(self._path))
            self._disk._locked.discard(self._path)
