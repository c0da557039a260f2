"""The inodes of a :class:`MemoryKernel`: what a process sees of them and what the disk may hold.

For the other modules of the kernel only. Knows no descriptors and no paths. Everything that a
snapshot or a clone shares is never changed in place: pages, versions and tables are replaced.
"""

from __future__ import annotations

import random
import stat
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "SIZE",
    "Content",
    "Directory",
    "Fifo",
    "FileData",
    "FileNode",
    "Names",
    "Node",
    "Operation",
    "Symlink",
    "apply",
]

#: stands in the place of a page number where the versions are those of the file's size
SIZE = -1

#: name → inode number
Names = Mapping[str, int]

#: one change of a directory: the names that it sets, or removes (None), all at once
Operation = tuple[tuple[str, "int | None"], ...]


def apply(operations: tuple[Operation, ...], names: Names) -> dict[str, int]:
    changed = dict(names)
    for operation in operations:
        for name, number in operation:
            if number is None:
                changed.pop(name, None)
            else:
                changed[name] = number
    return changed


class FileData(NamedTuple):
    """A file's bytes. Each page is whole, zeros beyond the end of the file; None is a hole."""

    size: int
    pages: tuple[bytes | None, ...]

    def to_bytes(self, page_bytes: int) -> bytes:
        zeros = bytes(page_bytes)
        return b"".join([zeros if page is None else page for page in self.pages])[: self.size]

    @classmethod
    def of(cls, data: bytes, page_bytes: int) -> FileData:
        padded = data + bytes(-len(data) % page_bytes)
        starts = range(0, len(padded), page_bytes)
        return cls(len(data), tuple([padded[start : start + page_bytes] for start in starts]))


class Content(NamedTuple):
    """What the disk may hold of one file."""

    #: as a process sees it
    data: FileData
    #: page number (or SIZE) → what may be there, oldest first
    versions: Mapping[int, tuple[Any, ...]]
    is_synced: bool

    def versions_of(self, page: int) -> tuple[bytes | None, ...]:
        versions = self.versions.get(page)
        if versions is not None:
            return versions
        return (self.data.pages[page] if page < len(self.data.pages) else None,)

    def sizes(self) -> tuple[int, ...]:
        return self.versions.get(SIZE, (self.data.size,))


class Node:
    """An inode: a file, a directory, a symbolic link or a fifo."""

    __slots__ = ("attributes", "links", "locks", "mode", "number", "opens")

    format = 0

    def __init__(self, number: int, mode: int = 0o600) -> None:
        self.number = number
        self.mode = self.format | mode
        #: how many names lead here
        self.links = 0
        #: how many open file descriptions
        self.opens = 0
        #: who holds the flock: description → whether exclusive
        self.locks: dict[Any, bool] = {}
        #: what FS_IOC_GETFLAGS says
        self.attributes = 0

    def twin(self) -> Node:
        twin = type(self)(self.number)
        twin.mode, twin.links, twin.attributes = self.mode, self.links, self.attributes
        return twin

    @property
    def size(self) -> int:
        return 0


class Fifo(Node):
    __slots__ = ()
    format = stat.S_IFIFO


class Symlink(Node):
    __slots__ = ("target",)
    format = stat.S_IFLNK

    def __init__(self, number: int, mode: int = 0o777, target: str = "") -> None:
        super().__init__(number, mode)
        self.target = target

    def twin(self) -> Node:
        twin = super().twin()
        assert isinstance(twin, Symlink)
        twin.target = self.target
        return twin

    @property
    def size(self) -> int:
        return len(self.target.encode())


class Directory(Node):
    """Its names as processes see them, as the disk has them, and what lies between."""

    __slots__ = ("durable", "forgotten", "is_removed", "names", "parent", "pending", "sync_lock")
    format = stat.S_IFDIR

    def __init__(self, number: int, mode: int = 0o700, parent: int = 0) -> None:
        super().__init__(number, mode)
        self.parent = parent or number
        self.names: Names = {}
        self.durable: Names = {}
        self.pending: tuple[Operation, ...] = ()
        #: how many of the pending operations a failed sync passed for written
        self.forgotten = 0
        self.is_removed = False
        self.sync_lock = threading.Lock()

    def twin(self) -> Node:
        twin = super().twin()
        assert isinstance(twin, Directory)
        twin.parent, twin.is_removed = self.parent, self.is_removed
        twin.names, twin.durable = self.names, self.durable
        twin.pending, twin.forgotten = self.pending, self.forgotten
        return twin

    @property
    def size(self) -> int:
        return 4096

    def do(self, *changes: tuple[str, int | None]) -> None:
        self.names = apply((changes,), self.names)
        self.pending = (*self.pending, changes)

    def begin_sync(self) -> int:
        """How many operations the sync covers: none that an earlier one passed for written."""
        return len(self.pending) if len(self.pending) > self.forgotten else 0

    def finish_sync(self, covered: int) -> None:
        if covered:
            self.durable = apply(self.pending[:covered], self.durable)
            self.pending = self.pending[covered:]
            self.forgotten = 0

    def forget_sync(self) -> None:
        self.forgotten = len(self.pending)


class FileNode(Node):
    """A file's pages as processes see them, and the versions of them that the disk may have."""

    __slots__ = (
        "_content",
        "_data",
        "_page_bytes",
        "_pages",
        "_size",
        "allocated",
        "dirty",
        "in_flight",
        "is_synced",
        "sync_lock",
        "versions",
    )
    format = stat.S_IFREG

    def __init__(self, number: int, mode: int = 0o600, page_bytes: int = 4096) -> None:
        super().__init__(number, mode)
        self._page_bytes = page_bytes
        self._size = 0
        # a tuple is shared with snapshots and clones, a list is ours
        self._pages: list[bytes | None] | tuple[bytes | None, ...] = ()
        #: how many pages take up space
        self.allocated = 0
        #: page number (or SIZE) → versions, the durable one first, the present one last
        self.versions: dict[int, tuple[Any, ...]] = {}
        self.dirty: set[int] = set()
        self.in_flight: set[int] = set()
        self.is_synced = False
        self.sync_lock = threading.Lock()
        self._content: Content | None = None
        self._data: FileData | None = None

    @classmethod
    def of(cls, number: int, data: FileData, page_bytes: int) -> FileNode:
        """A file that holds ``data``, all of it durable."""
        node = cls(number, 0o600, page_bytes)
        node._size, node._pages = data
        node.allocated = len(data.pages) - data.pages.count(None)
        node.is_synced = True
        node._data = data
        return node

    def twin(self) -> Node:
        twin = FileNode(self.number, 0, self._page_bytes)
        twin.mode, twin.links, twin.attributes = self.mode, self.links, self.attributes
        twin._size, twin._pages = self.data()
        twin.allocated = self.allocated
        twin.versions = dict(self.versions)
        # a sync that another process had begun is waited for by the next one
        twin.dirty = self.dirty | self.in_flight
        twin.is_synced = self.is_synced
        twin._content, twin._data = self._content, self._data
        return twin

    # --- what processes see --------------------------------------------------------------

    @property
    def size(self) -> int:
        return self._size

    def data(self) -> FileData:
        if self._data is None:
            self._pages = tuple(self._pages)
            self._data = FileData(self._size, self._pages)
        return self._data

    def is_hole(self, page: int) -> bool:
        return page >= len(self._pages) or self._pages[page] is None

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        if offset >= end:
            return b""
        first, last = offset // self._page_bytes, (end - 1) // self._page_bytes
        zeros = bytes(self._page_bytes)
        pages = [zeros if page is None else page for page in self._pages[first : last + 1]]
        start = first * self._page_bytes
        return (pages[0] if first == last else b"".join(pages))[offset - start : end - start]

    def write(self, offset: int, data: bytes) -> None:
        """Stores the bytes, which are some; the file grows where they end beyond it."""
        end = offset + len(data)
        if end > self._size:
            self.resize(end)
        zeros = bytes(self._page_bytes)
        for page in range(offset // self._page_bytes, (end - 1) // self._page_bytes + 1):
            start = page * self._page_bytes
            old = self._pages[page] or zeros
            kept = data[max(start - offset, 0) : start + self._page_bytes - offset]
            if len(kept) < self._page_bytes:
                at = max(offset - start, 0)
                kept = old[:at] + kept + old[at + len(kept) :]
            self._store(page, kept)

    def allocate(self, page: int) -> None:
        """A page in the place of a hole. It lies within the file's size."""
        self._store(page, bytes(self._page_bytes))

    def resize(self, size: int) -> None:
        """Sets the size; what a smaller one cuts off reads as zeros should it come back."""
        count = -(-size // self._page_bytes)
        for page in range(count, len(self._pages)):
            if self._pages[page] is not None:
                self._store(page, None)
        pages = self._own()
        del pages[count:]
        pages.extend([None] * (count - len(pages)))
        kept = size % self._page_bytes
        if size < self._size and kept and (last := pages[-1]) is not None:
            self._store(count - 1, last[:kept] + bytes(self._page_bytes - kept))
        if size != self._size:
            self._change(SIZE, self._size, size)
            self._size = size

    def _store(self, page: int, data: bytes | None) -> None:
        pages = self._own()
        old = pages[page]
        self.allocated += (old is None) - (data is None)
        self._change(page, old, data)
        pages[page] = data

    def _own(self) -> list[bytes | None]:
        self._data = self._content = None
        if isinstance(self._pages, tuple):
            self._pages = list(self._pages)
        return self._pages

    def _change(self, page: int, old: Any, new: Any) -> None:
        versions = self.versions.get(page, (old,))
        # one that equals the last is not kept twice, but has to be synced all the same
        self.versions[page] = versions if versions[-1] == new else (*versions, new)
        self.dirty.add(page)

    # --- what the disk may hold ----------------------------------------------------------

    def content(self) -> Content:
        if self._content is None:
            self._content = Content(self.data(), dict(self.versions), self.is_synced)
        return self._content

    def begin_sync(self) -> dict[int, int]:
        """The pages that the sync covers, and which version of each."""
        covered = {page: len(self.versions[page]) - 1 for page in self.dirty}
        self.in_flight, self.dirty = self.dirty, set()
        return covered

    def finish_sync(self, covered: dict[int, int]) -> None:
        for page, version in covered.items():
            left = self.versions[page][version:]
            # a store of the same bytes since then still waits for a sync of its own
            if len(left) == 1 and page not in self.dirty:
                del self.versions[page]
            else:
                self.versions[page] = left
        self.in_flight = set()
        self.is_synced = True
        self._content = None

    def forget_sync(self) -> None:
        self.begin_sync()
        self.in_flight = set()

    def reload(self, rng: random.Random, first: int, end: int | None) -> None:
        """Drops clean pages: of those that a failed sync passed for written, chance decides."""
        for page in sorted(self.versions.keys() - self.dirty - self.in_flight - {SIZE}):
            if page >= first and (end is None or page < end) and page < len(self._pages):
                kept = rng.choice(self.versions.pop(page))
                pages = self._own()
                tail = self._size - page * self._page_bytes
                if kept is not None and tail < self._page_bytes:
                    kept = kept[:tail] + bytes(self._page_bytes - tail)
                self.allocated += (pages[page] is None) - (kept is None)
                pages[page] = kept
