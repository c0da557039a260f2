"""What is answered of the log: recent entries from memory, older ones from the storage in chunks.

Everything is in raft indexes. Knows neither what is visible of the log nor how it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from ..errors import LogRangeError
from ._entries import PlainEntry

__all__ = ["LazyEntries", "View"]

#: what an entry costs in memory besides its command: a tuple, two integers, a bytes head
ENTRY_OVERHEAD_BYTES = 170
#: answers up to this length are plain lists
LIST_ENTRIES = 256
#: what a lazy answer fetches at a time from memory, in entries, and from the storage, in bytes
_RECENT_CHUNK = 512
_COLD_CHUNK_BYTES = 1 << 20
#: chunks kept, so that several followers can be behind at different places
_COLD_CHUNKS = 4

#: reads the first entries of ``[start, stop)``, as many as fit in the bytes, at least one
Read = Callable[[int, int, int], list[PlainEntry]]


class View:
    """The entries ``[.., end)`` of the storage, the newest of them in memory.

    ``recent`` is only ever appended to; where entries leave it, it is another list: whoever
    holds one keeps a consistent answer.
    """

    def __init__(self, read: Read, cache_bytes: int, end: int) -> None:
        self.recent: list[PlainEntry] = []
        #: the index of ``recent[0]``
        self.recent_first = end
        #: its size, kept up to date by whoever appends
        self.recent_bytes = 0
        self._read = read
        self._cache_bytes = cache_bytes
        self._chunks: list[tuple[int, list[PlainEntry]]] = []

    @property
    def end(self) -> int:
        """One past the last entry."""
        return self.recent_first + len(self.recent)

    def trim(self, settled_end: int) -> None:
        """Drops the oldest quarter from memory where it is too much.

        What lies at or after ``settled_end`` cannot be read from the storage yet and stays.
        """
        length = len(self.recent)
        goal = self.recent_bytes - self._cache_bytes * 3 // 4
        # as many as reach the goal if they are of the usual size
        count = goal * length // self.recent_bytes + 1
        count = min(count, settled_end - self.recent_first, length - 1)
        if count >= max(1, length // 8):  # else it would be copied for too little
            freed = sum([len(entry[0]) for entry in self.recent[:count]])
            self.recent = self.recent[count:]
            self.recent_first += count
            self.recent_bytes -= freed + ENTRY_OVERHEAD_BYTES * count

    def cut(self, end: int) -> None:
        """The entries from ``end`` on are gone."""
        if end < self.recent_first:
            self.recent, self.recent_first, self.recent_bytes = [], end, 0
        else:
            self.recent = self.recent[: end - self.recent_first]
            self.recent_bytes = sum(len(e[0]) for e in self.recent) + (
                ENTRY_OVERHEAD_BYTES * len(self.recent)
            )
        self._chunks = [chunk for chunk in self._chunks if chunk[0] + len(chunk[1]) <= end]

    def restart(self, first: int) -> None:
        """All entries are gone and the next one is ``first``."""
        self.recent, self.recent_first, self.recent_bytes = [], first, 0
        self._chunks = []

    def entry(self, index: int) -> PlainEntry:
        position = index - self.recent_first
        if position >= 0:
            return self.recent[position]
        first, chunk = self._chunk(index)
        return chunk[index - first]

    def entries(self, start: int, stop: int) -> list[PlainEntry]:
        """``[start, stop)`` as a list of plain tuples."""
        first = self.recent_first
        if start >= first:
            return self.recent[start - first : stop - first]
        recent, result = self.recent, []
        while start < min(stop, first):
            part = self.some(start, min(stop, first), recent, first)
            result += part
            start += len(part)
        if start < stop:
            result += recent[start - first : stop - first]
        return result

    def some(
        self, start: int, stop: int, recent: list[PlainEntry], recent_first: int
    ) -> list[PlainEntry]:
        """The first few of ``[start, stop)``, at least one; ``recent`` as it was once."""
        if start >= recent_first:
            stop = min(stop, start + _RECENT_CHUNK)
            return recent[start - recent_first : stop - recent_first]
        first, chunk = self._chunk(start)
        return chunk[start - first : stop - first]

    def _chunk(self, index: int) -> tuple[int, list[PlainEntry]]:
        for position, found in enumerate(self._chunks):
            if found[0] <= index < found[0] + len(found[1]):
                if position:
                    self._chunks.insert(0, self._chunks.pop(position))
                return found
        entries = self._read(index, self.recent_first, _COLD_CHUNK_BYTES)
        if not entries or entries[0][1] != index:
            raise LogRangeError(f"entry {index} is not in the log any more")
        self._chunks.insert(0, (index, entries))
        del self._chunks[_COLD_CHUNKS:]
        return index, entries


class LazyEntries(Sequence[PlainEntry]):
    """The answer to ``[d:]`` on a long log: ``[start, stop)``, fetched as it is looked at.

    pysyncobj asks for the whole rest of the log and uses the first few entries of it. A short
    slice is a list of plain tuples, as pysyncobj pickles it.
    """

    __slots__ = ("_recent", "_recent_first", "_start", "_stop", "_view")

    def __init__(self, view: View, start: int, stop: int) -> None:
        self._view = view
        self._start = start
        self._stop = stop
        self._recent = view.recent
        self._recent_first = view.recent_first

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[PlainEntry]:
        start, stop = self._start, self._stop
        while start < stop:
            part = self._view.some(start, stop, self._recent, self._recent_first)
            yield from part
            start += len(part)

    @overload
    def __getitem__(self, item: int) -> PlainEntry: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[PlainEntry]: ...
    def __getitem__(self, item: int | slice) -> Any:
        if isinstance(item, slice):
            start, stop, step = item.indices(self._stop - self._start)
            if step != 1:
                return [self[i] for i in range(start, stop, step)]
            start, stop = self._start + start, self._start + max(start, stop)
            if item.stop is not None or stop - start <= LIST_ENTRIES:
                return self._list(start, stop)
            rest = LazyEntries(self._view, start, stop)
            rest._recent, rest._recent_first = self._recent, self._recent_first
            return rest
        if item < 0:
            item += self._stop - self._start
        if not 0 <= item < self._stop - self._start:
            raise IndexError("journal index out of range")
        return self._at(self._start + item)

    def _at(self, index: int) -> PlainEntry:
        if index >= self._recent_first:
            return self._recent[index - self._recent_first]
        return self._view.entry(index)

    def _list(self, start: int, stop: int) -> list[PlainEntry]:
        first = self._recent_first
        if start >= first:
            return self._recent[start - first : stop - first]
        result: list[PlainEntry] = []
        while start < stop:
            part = self._view.some(start, stop, self._recent, first)
            result += part
            start += len(part)
        return result

    def __reduce__(self) -> tuple[type[list[PlainEntry]], tuple[list[PlainEntry]]]:
        # were one ever sent, the other nodes must not need this package to read it
        return list, (list(self),)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, LazyEntries)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<entries {self._start} to {self._stop - 1}>"
