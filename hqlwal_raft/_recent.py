"""The newest entries in memory, without a gap up to the end of the log.

Entries that are not written yet are pinned: the disk has them not. Beyond those as many are kept
as the options allow. Used by the owner of the log alone; knows nothing of files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ._format import record_bytes
from ._types import Entry

__all__ = ["Recent"]

#: what an entry's objects take beyond its record's bytes, about
_OBJECTS_BYTES = 160


def _memory_bytes(entry: Entry) -> int:
    return record_bytes(len(entry.payload)) + _OBJECTS_BYTES


class Recent:
    """See the module."""

    __slots__ = ("_batches", "_capacity", "_entries", "bytes", "newest")

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._entries: list[Entry] = []
        # As batches: how many entries, and the memory that they take.
        self._batches: deque[tuple[int, int]] = deque()
        #: about what they take, in bytes
        self.bytes = 0
        #: the log's last entry, if entries were added since it was opened or cut
        self.newest: Entry | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entries: Sequence[Entry], record_bytes: int, written: int) -> None:
        """Entries were appended; those below the index ``written`` need not be kept."""
        count = len(entries)
        size = record_bytes + _OBJECTS_BYTES * count
        self.newest = entries[-1]
        self._entries += entries
        self._batches.append((count, size))
        self.bytes += size
        if self.bytes > self._capacity:
            self.trim(written)

    def trim(self, written: int) -> None:
        """Forgets the oldest entries, batch by batch; a good many at once, so it is seldom."""
        if self.bytes <= self._capacity or not self._entries:
            return
        goal = self._capacity - self._capacity // 32
        surplus = written - self._entries[0][1]
        count = 0
        while self.bytes > goal and self._batches and count + self._batches[0][0] <= surplus:
            entries, size = self._batches.popleft()
            count += entries
            self.bytes -= size
        if count:
            del self._entries[:count]

    def cut(self, index: int) -> None:
        """Forgets the entries from ``index`` on."""
        recent, batches = self._entries, self._batches
        kept = max(index - recent[0].index, 0) if recent else 0
        surplus = len(recent) - kept
        while surplus > 0:
            entries, size = batches.pop()
            self.bytes -= size
            surplus -= entries
        if surplus < 0:  # the last of them is kept in part
            size = sum(map(_memory_bytes, recent[kept + surplus : kept]))
            batches.append((-surplus, size))
            self.bytes += size
        del recent[kept:]
        self.newest = recent[-1] if recent else None

    def clear(self) -> None:
        self._entries = []
        self._batches.clear()
        self.bytes = 0
        self.newest = None

    @property
    def first_index(self) -> int | None:
        """Where the entries kept begin; None where there are none."""
        return self._entries[0][1] if self._entries else None

    def read(self, start: int, stop: int) -> list[Entry] | None:
        """Entries ``[start, stop)``, which the log holds, if all are kept."""
        recent = self._entries
        if not recent:
            return None
        first = recent[0][1]
        return recent[start - first : stop - first] if start >= first else None
