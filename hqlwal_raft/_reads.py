"""What a log keeps at hand for reading: its newest entries and the segments lately read.

Knows where entries lie, and nothing of how they got there. All of it is used by the thread
that owns the log, but for ``read`` and ``load``, which wait for the disk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ._files import Files
from ._format import record_bytes
from ._segment import Segment
from ._types import Entry

__all__ = ["Options", "Piece", "Reads"]


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes, in bytes, that a log is opened with."""

    segment_size: int = 8 << 20
    max_entry_size: int = 64 << 20
    #: how much memory the newest entries may take
    cache_bytes: int = 4 << 20
    #: whether many appends come between two syncs: then small ones are stored through the map,
    #: which is cheaper; but a page fault beside a sync can take as long as the sync
    is_buffered: bool = False
    #: how many loaded segments are kept open for reading, and how many of their offsets
    open_segments: int = 64
    loaded_offsets: int = 2_000_000


class Piece(NamedTuple):
    """A part of a read: the entries ``[first, stop)`` of one segment."""

    segment: Segment
    first: int
    stop: int

    def size_is_modest(self, limit: int) -> bool:
        """Whether the records, of a loaded segment, are at most ``limit`` bytes."""
        start, end = self.segment.span(self.first, self.stop)
        return end - start <= limit


#: what an entry's objects take beyond its record's bytes, about
_OBJECTS_BYTES = 160


def _memory_bytes(entry: Entry) -> int:
    return record_bytes(len(entry.payload)) + _OBJECTS_BYTES


class Reads:
    """See the module. The lists of segments and first ids are the log's own."""

    def __init__(
        self, files: Files, options: Options, segments: list[Segment], first_ids: list[int]
    ) -> None:
        self._files = files
        self._options = options
        self._segments = segments
        self._first_ids = first_ids
        #: the log's last entry, if entries were added since it was opened or cut
        self.newest: Entry | None = None
        # the newest entries, without a gap up to the end of the log; as batches: how many
        # entries, and the memory that they take
        self._recent: list[Entry] = []
        self._batches: deque[tuple[int, int]] = deque()
        self._recent_bytes = 0
        self._cache_bytes = options.cache_bytes
        # lately read, the oldest first; the tail is not among them, it is always loaded
        self._loaded: OrderedDict[Segment, None] = OrderedDict()

    # --- the newest entries ----------------------------------------------------------------

    @property
    def cached(self) -> tuple[int, int]:
        """How many entries are kept, and about how many bytes of memory that takes."""
        return len(self._recent), self._recent_bytes

    def add(self, entries: Sequence[Entry], size: int) -> None:
        count = len(entries)
        size += _OBJECTS_BYTES * count
        self.newest = entries[-1]
        self._recent += entries
        self._batches.append((count, size))
        self._recent_bytes += size
        if self._recent_bytes > self._cache_bytes:
            self._trim()

    def _trim(self) -> None:
        """Forgets the oldest entries, batch by batch; a good many at once, so it is seldom."""
        goal = self._cache_bytes - self._cache_bytes // 32
        count = 0
        while self._recent_bytes > goal:
            entries, size = self._batches.popleft()
            count += entries
            self._recent_bytes -= size
        del self._recent[:count]

    def forget_entries(self, index: int) -> None:
        """Forgets the entries from ``index`` on."""
        recent, batches = self._recent, self._batches
        kept = max(index - recent[0].index, 0) if recent else 0
        surplus = len(recent) - kept
        while surplus > 0:
            entries, size = batches.pop()
            self._recent_bytes -= size
            surplus -= entries
        if surplus < 0:  # the last of them is kept in part
            size = sum(map(_memory_bytes, recent[kept + surplus : kept]))
            batches.append((-surplus, size))
            self._recent_bytes += size
        del recent[kept:]
        self.newest = recent[-1] if recent else None

    def read_recent(self, start: int, stop: int) -> list[Entry] | None:
        """Entries ``[start, stop)``, which the log holds, if all are in the cache."""
        recent = self._recent
        if not recent:
            return None
        first = recent[0].index
        return recent[start - first : stop - first] if start >= first else None

    # --- segments ---------------------------------------------------------------------------

    def pieces(self, start: int, stop: int, max_entries: int, max_bytes: int) -> list[Piece]:
        """Where to read the first of the entries ``[start, stop)``, which the log holds.

        At most ``max_entries`` and, beyond the first entry, ``max_bytes`` of records. What lies
        in segments that are not loaded is left out; but where the first is not, it alone is
        returned.
        """
        stop = min(stop, start + max_entries)
        result: list[Piece] = []
        position = bisect_right(self._first_ids, start) - 1
        while start < stop:
            segment = self._segments[position]
            end = min(stop, segment.next_id)
            if segment.offsets is None:
                return result or [Piece(segment, start, end)]
            first_byte, last_byte = segment.span(start, end)
            if last_byte - first_byte > max_bytes:
                fitting = bisect_right(segment.offsets, first_byte + max_bytes) - 1
                stop = end = min(end, segment.first_id + fitting)
                if start == end:
                    if not result:
                        result.append(Piece(segment, start, start + 1))
                    break
                first_byte, last_byte = segment.span(start, end)
            max_bytes -= last_byte - first_byte
            result.append(Piece(segment, start, end))
            start = end
            position += 1
        return result

    def read_loaded(
        self, start: int, stop: int, max_entries: int, max_bytes: int
    ) -> list[Entry] | None:
        """Entries ``[start, stop)``, which the log holds: the short way, for a modest number in
        one loaded segment whose bytes are in memory. None where it is not that simple.
        """
        position = bisect_right(self._first_ids, start) - 1
        segment = self._segments[position]
        if stop - start > max_entries or stop > segment.next_id or segment.offsets is None:
            return None
        first_byte, last_byte = segment.span(start, stop)
        if last_byte - first_byte > max_bytes:
            return None
        self.touch(segment)
        return segment.read_cached(start, stop)

    def read_cached(self, pieces: Sequence[Piece]) -> list[Entry] | None:
        """Reads without waiting for the disk; None where that cannot be."""
        result: list[Entry] = []
        for segment, first, stop in pieces:
            entries = segment.read_cached(first, stop)
            if entries is None:
                return None
            result += entries
        return result

    def read(self, pieces: Sequence[Piece]) -> list[Entry]:
        """Reads, waiting for the disk where need be: for another thread."""
        result: list[Entry] = []
        for segment, first, stop in pieces:
            result += segment.read(self._files, first, stop)
        return result

    def load(self, segment: Segment) -> None:
        """Makes a segment ready for reading: for another thread."""
        segment.load(self._files)

    def touch(self, segment: Segment) -> None:
        """Notes that a loaded segment was read, so that the oldest others may be closed."""
        if segment is self._segments[-1]:
            return
        loaded = self._loaded
        if segment in loaded:
            loaded.move_to_end(segment)
            return
        loaded[segment] = None
        offsets = sum(s.count for s in loaded)
        while len(loaded) > self._options.open_segments or offsets > self._options.loaded_offsets:
            oldest = next(iter(loaded))
            if oldest is segment or not oldest.is_sealed:
                break  # one that is not sealed yet has its last sync still to come
            del loaded[oldest]
            offsets -= oldest.count
            oldest.release()

    def forget_segments(self, segments: Iterable[Segment]) -> None:
        """For segments that are no longer the log's, or are its tail again."""
        for segment in segments:
            self._loaded.pop(segment, None)
