"""Where the records of a segment begin: a sparse index, in memory only.

Numbers alone: it knows no file and no bytes, so any thread may build one, and who owns the segment
keeps it. It is built while records are written, or from lengths by whoever reads a segment.

Records are in *groups*. Of a group of one size every record's place is known; of another only
where the group begins, and the lengths of its records lead further: such a group has at most
``GROUP_RECORDS`` records and ``GROUP_BYTES`` bytes, unless it is a single record. So the index of
a long log stays small, and one short read finds any record. The newest records have their places
one by one until there are enough of them to be grouped.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

__all__ = ["GROUP_BYTES", "GROUP_RECORDS", "Places"]

GROUP_RECORDS = 32
GROUP_BYTES = 32 << 10
#: so many records wait to be grouped
_FRESH_RECORDS = 1024


class Places:
    """See the module. Records are counted from the segment's first, which is 0.

    The end of the last record is the segment's to know, and is passed where it is needed.
    """

    __slots__ = ("_firsts", "_fresh", "_grouped", "_offsets", "_sizes")

    def __init__(self) -> None:
        # Of each group: its first record, where that begins, and the size of its records, 0
        # where they differ.
        self._firsts = array("I")
        self._offsets = array("I")
        self._sizes = array("I")
        #: how many records are in groups
        self._grouped = 0
        #: where each of the others begins
        self._fresh = array("I")

    def __len__(self) -> int:
        """How many records it knows."""
        return self._grouped + len(self._fresh)

    @property
    def memory_bytes(self) -> int:
        """What its numbers take."""
        return 4 * (3 * len(self._firsts) + len(self._fresh))

    # --- building --------------------------------------------------------------------------

    def add(self, offsets: Sequence[int], end: int) -> None:
        """Records that begin at ``offsets`` were added; the last of them ends at ``end``."""
        fresh = self._fresh
        fresh.extend(offsets)
        if len(fresh) > _FRESH_RECORDS:
            self.settle(end)

    def add_one(self, offset: int, end: int) -> None:
        """As ``add`` does, for one record."""
        fresh = self._fresh
        fresh.append(offset)
        if len(fresh) > _FRESH_RECORDS:
            self.settle(end)

    def settle(self, end: int) -> None:
        """Groups all records, the last of which ends at ``end``: for a while none is added."""
        fresh = self._fresh
        if not fresh:
            return
        count = len(fresh)
        fresh.append(end)  # so that each of them ends where the next begins
        if not self._add_alike(count):
            position = 0
            while position < count:
                stop = self._group_end(position, count)
                self._add_group(position, stop)
                position = stop
        self._grouped += count
        self._fresh = array("I")

    def _group_end(self, position: int, count: int) -> int:
        """Where the group ends that begins with the fresh record at ``position``."""
        fresh = self._fresh
        stop = min(position + GROUP_RECORDS, count)
        limit = fresh[position] + GROUP_BYTES
        if fresh[stop] > limit:
            stop = max(bisect_right(fresh, limit, position, stop) - 1, position + 1)
        return stop

    def _add_alike(self, count: int) -> bool:
        """Adds all fresh records as one group, if they are of one size; else False."""
        fresh = self._fresh
        start, end = fresh[0], fresh[count]
        size = fresh[1] - start
        if start + count * size != end or fresh != array("I", range(start, end + 1, size)):
            return False
        self._add_group(0, count, size)
        return True

    def _add_group(self, position: int, stop: int, size: int | None = None) -> None:
        """``size``: that of all its records, where that is known."""
        fresh = self._fresh
        start, end = fresh[position], fresh[stop]
        if size is None:
            size = fresh[position + 1] - start
            is_alike = start + (stop - position) * size == end
            of_size = array("I", range(start, end + 1, size)) if is_alike else None
            if fresh[position : stop + 1] != of_size:
                size = 0
        if size and self._sizes and self._sizes[-1] == size:
            group_bytes = (self._grouped + position - self._firsts[-1]) * size
            if self._offsets[-1] + group_bytes == start:
                return  # it goes on as the one before
        self._firsts.append(self._grouped + position)
        self._offsets.append(start)
        self._sizes.append(size)

    def cut(self, count: int) -> None:
        """Forgets all records but the first ``count``."""
        if count >= self._grouped:
            del self._fresh[count - self._grouped :]
            return
        place = bisect_left(self._firsts, count)
        del self._firsts[place:], self._offsets[place:], self._sizes[place:]
        self._grouped = count
        self._fresh = array("I")

    # --- finding ---------------------------------------------------------------------------

    def before(self, record: int) -> tuple[int, int]:
        """The nearest known place at or before the record: its offset, and how many records lie
        between.
        """
        if record >= self._grouped:
            return self._fresh[record - self._grouped], 0
        group = bisect_right(self._firsts, record) - 1
        further = record - self._firsts[group]
        size = self._sizes[group]
        if size:
            return self._offsets[group] + further * size, 0
        return self._offsets[group], further

    def behind(self, record: int, end: int) -> int:
        """The nearest known offset at or behind the record, the first excepted, or the end."""
        further = record - self._grouped
        if further >= 0:
            return self._fresh[further] if further < len(self._fresh) else end
        group = bisect_left(self._firsts, record)
        size = self._sizes[group - 1]
        if size:
            return self._offsets[group - 1] + (record - self._firsts[group - 1]) * size
        if group < len(self._firsts):
            return self._offsets[group]
        return self._fresh[0] if self._fresh else end

    def span(self, record: int, stop: int, end: int) -> tuple[int, int, int]:
        """``before(record)`` and ``behind(stop, end)``, in one where records are of one size."""
        if stop <= self._grouped:
            group = bisect_right(self._firsts, record) - 1
            first, size = self._firsts[group], self._sizes[group]
            if size and (group + 1 == len(self._firsts) or stop <= self._firsts[group + 1]):
                offset = self._offsets[group]
                return offset + (record - first) * size, 0, offset + (stop - first) * size
        return *self.before(record), self.behind(stop, end)

    def fitting(self, record: int, limit: int) -> int:
        """The furthest record whose place is known to be at or before the offset ``limit``.

        At least the nearest behind ``record`` whose place is known, or that comes next.
        """
        return max(self._reached(limit), self._next_known(record))

    def _reached(self, limit: int) -> int:
        fresh = self._fresh
        if fresh and fresh[0] <= limit:
            return self._grouped + bisect_right(fresh, limit) - 1
        group = bisect_right(self._offsets, limit) - 1
        if group < 0:
            return 0
        size = self._sizes[group]
        further = (limit - self._offsets[group]) // size if size else 0
        return min(self._firsts[group] + further, self._grouped)

    def _next_known(self, record: int) -> int:
        if record + 1 >= self._grouped:
            return record + 1
        group = bisect_right(self._firsts, record)
        if self._sizes[group - 1]:
            return record + 1
        return self._firsts[group] if group < len(self._firsts) else self._grouped
