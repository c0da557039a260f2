"""What a disk may hold of one file, page by page, and how names change. Knows no file system."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Content", "Inode", "Operation"]


@dataclass(frozen=True, slots=True)
class Content:
    """What the disk may hold of one file: certain bytes, and pages in several versions."""

    certain: bytes
    #: page number → what may be there, oldest first, at least two
    versions: Mapping[int, tuple[bytes, ...]]
    is_synced: bool


class Inode:
    """One file's bytes, whatever its name."""

    def __init__(self, size: int, page_bytes: int) -> None:
        self.page_bytes = page_bytes
        self.current = bytearray(size)
        self.certain = bytearray(size)
        self.versions: dict[int, list[bytes]] = {}
        self.dirty: set[int] = set()
        self.in_flight: set[int] = set()
        self.is_synced = False
        self.sync_lock = threading.Lock()
        self._content: Content | None = None

    @classmethod
    def of(cls, content: bytes, page_bytes: int) -> Inode:
        inode = cls(0, page_bytes)
        inode.current = bytearray(content)
        inode.certain = bytearray(content)
        inode.is_synced = True
        return inode

    def _page(self, buffer: bytearray, page: int) -> bytes:
        return bytes(buffer[page * self.page_bytes : (page + 1) * self.page_bytes])

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        assert 0 <= offset <= end <= len(self.current), "a store outside the file"
        if not data:
            return
        self.current[offset:end] = data
        for page in range(offset // self.page_bytes, (end - 1) // self.page_bytes + 1):
            if page not in self.versions:
                self.versions[page] = [self._page(self.certain, page)]
            self.versions[page].append(self._page(self.current, page))
            self.dirty.add(page)
        self._content = None

    def begin_sync(self) -> dict[int, int]:
        """The pages that the sync covers, and which version of each."""
        covered = {page: len(self.versions[page]) - 1 for page in self.dirty}
        self.in_flight, self.dirty = self.dirty, set()
        return covered

    def fail_sync(self) -> None:
        self.begin_sync()
        self.in_flight = set()

    def finish_sync(self, covered: dict[int, int]) -> None:
        for page, version in covered.items():
            del self.versions[page][:version]
            start = page * self.page_bytes
            kept = self.versions[page][0]
            self.certain[start : start + len(kept)] = kept
            if len(self.versions[page]) == 1:
                del self.versions[page]
        self.in_flight = set()
        self.is_synced = True
        self._content = None

    def reload(self, rng: random.Random) -> None:
        """Drops what is only in memory: pages that a failed sync passed for written."""
        for page in sorted(self.versions.keys() - self.dirty - self.in_flight):
            start = page * self.page_bytes
            kept = rng.choice(self.versions.pop(page))
            self.certain[start : start + len(kept)] = kept
            self.current[start : start + len(kept)] = kept
        self._content = None

    def content(self) -> Content:
        if self._content is None:
            versions = {page: tuple(versions) for page, versions in self.versions.items()}
            self._content = Content(bytes(self.certain), versions, self.is_synced)
        return self._content

    def replace(self, data: bytes) -> None:
        """What a truncation followed by a write does; nothing of it is durable."""
        self.current = bytearray(len(data))
        self.certain = bytearray(len(data))
        self.versions.clear()
        self.dirty.clear()
        self.is_synced = False
        self._content = None
        self.write(0, data)

    def twin(self) -> Inode:
        twin = Inode(0, self.page_bytes)
        twin.current = bytearray(self.current)
        twin.certain = bytearray(self.certain)
        twin.versions = {page: list(versions) for page, versions in self.versions.items()}
        # a sync that another process had begun is waited for by the next one
        twin.dirty = self.dirty | self.in_flight
        twin.is_synced = self.is_synced
        return twin


class Operation(NamedTuple):
    """A change of the name table: a creation (number), a rename (target) or an unlink."""

    path: str
    target: str | None = None
    number: int | None = None

    def apply(self, table: dict[str, int]) -> None:
        if self.number is not None:
            table[self.path] = self.number
        elif self.target is None:
            del table[self.path]
        else:
            table[self.target] = table.pop(self.path)
