"""Where a read is to be made: the extents of written entries, and which segments stay loaded.

Used by the owner of the log alone. What it gives away is frozen: extents, and ``Load`` steps for
segments whose records are not located yet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from ._files import open_files
from ._segment import Extent, Segment

__all__ = ["Options", "Reads"]


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes, in bytes, that a log is opened with."""

    segment_size: int = 8 << 20
    max_entry_size: int = 64 << 20
    #: how much memory the newest entries may take
    cache_bytes: int = 4 << 20
    #: an append is written when it is accepted, into the page cache; else by the plan that syncs
    is_buffered: bool = False
    #: terms never fall, votes never go back, a commit lies within the log
    checks_raft: bool = False
    #: segments are filled with zeros ahead, where that saves time
    fills_ahead: bool = True
    #: how many segments are kept open for reading; more, where those that were closed are read
    #: again, as long as the process has no more files of stores open than that
    open_segments: int = 64
    most_open_files: int = 512


class Reads:
    """See the module. The lists of segments and first ids are the log's own."""

    def __init__(self, options: Options, segments: list[Segment], first_ids: list[int]) -> None:
        self._options = options
        self._segments = segments
        self._first_ids = first_ids
        # lately read, the oldest first; the tail is not among them, it is always loaded
        self._loaded: OrderedDict[Segment, None] = OrderedDict()
        # those that were closed, and how many may be open: a scan needs no more than a few
        self._closed: set[Segment] = set()
        self._capacity = options.open_segments

    def segment_of(self, index: int) -> Segment:
        return self._segments[bisect_right(self._first_ids, index) - 1]

    def extents(
        self, start: int, stop: int, max_entries: int, max_bytes: int
    ) -> list[Extent] | Segment:
        """Where to read the first of the written entries ``[start, stop)``, at least one.

        At most ``max_entries`` and, beyond the first group, ``max_bytes`` of records. What lies
        in segments that are not loaded is left out; where the first does, its segment is
        returned, to be loaded first.
        """
        stop = min(stop, start + max_entries)
        result: list[Extent] = []
        position = bisect_right(self._first_ids, start) - 1
        while start < stop:
            segment = self._segments[position]
            end = min(stop, segment.next_id)
            if not segment.is_loaded:
                return result or segment
            self.touch(segment)
            extent = segment.extent(start, end)
            if extent.end - extent.start > max_bytes:
                stop = end = min(end, segment.fitting(start, extent.start + max_bytes))
                extent = segment.extent(start, end)
                if result and extent.end - extent.start > max_bytes:
                    break
            max_bytes = max(max_bytes - (extent.end - extent.start), 0)
            result.append(extent)
            start = end
            position += 1
        return result

    def near(self, start: int, stop: int, max_entries: int, max_bytes: int) -> Extent | None:
        """The short way, for a modest number of entries in one loaded segment; else None."""
        position = bisect_right(self._first_ids, start) - 1
        segment = self._segments[position]
        if (
            stop - start > max_entries
            or stop > segment.next_id
            or segment.file is None
            or segment.places is None
        ):
            return None
        extent = segment.extent(start, stop)
        if extent.end - extent.start > max_bytes:
            return None
        if segment in self._loaded:
            self._loaded.move_to_end(segment)
        else:
            self.touch(segment)
        return extent

    def touch(self, segment: Segment) -> None:
        """Notes that a loaded segment was read, so that the oldest others may be closed. The tail
        stays open anyway.
        """
        if segment is self._segments[-1]:
            return
        loaded = self._loaded
        if segment in loaded:
            loaded.move_to_end(segment)
            return
        loaded[segment] = None
        if segment in self._closed:
            self._closed.remove(segment)
            if open_files() <= self._options.most_open_files:
                self._capacity += 1
        while len(loaded) > self._capacity:
            oldest = next(iter(loaded))
            if oldest is segment or not oldest.is_sealed:
                break  # one that is not sealed yet has its seal still to come
            del loaded[oldest]
            oldest.release()
            self._closed.add(oldest)

    def forget(self, segments: Iterable[Segment]) -> None:
        """For segments that are no longer the log's, or are its tail again."""
        for segment in segments:
            self._loaded.pop(segment, None)
            self._closed.discard(segment)
