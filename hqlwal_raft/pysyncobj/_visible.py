"""What of the log pysyncobj sees, and what is only hidden from it.

Positions in the list are pysyncobj's, indexes are Raft's: the entry at position 0 has the index
``first``. The visible entries are ``[first, last]``; what the storage holds after ``last`` is
hidden: no longer in pysyncobj's list, but not removed either, because pysyncobj deletes and adds
again what it already has. Adding a hidden entry again brings it back; only an entry that differs
truncates the log, as Raft has it.

Changed by the thread that ticks the node, the ends read by any. It must not know the node, nor
what must be durable when.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from pysyncobj.pickle import to_bytes

from ..errors import EntryTooLargeError, LogGapError, WalError
from ._background import Background
from ._entries import PlainEntry
from ._health import Health
from ._opening import Opened
from ._view import ENTRY_OVERHEAD_BYTES, LIST_ENTRIES, LazyEntries
from ._writing import LogWriter

__all__ = ["VisibleLog"]

#: queued entries are handed over at every poll, and when there are so many
_HAND_OVER_ENTRIES = 1024
#: a bounded answer longer than this is not fetched from the storage in one piece
_WHOLE_ENTRIES = 4096


class _Clearing(enum.Enum):
    """How far ``clear(); add(prev); add(last)``, the loading of a dump, has come."""

    NO = 0
    CLEARED = 1
    #: the first entry added was found in the log
    FIRST_FOUND = 2


class VisibleLog:
    """The list that pysyncobj sees. A leader reads some twenty times per command, in the thread
    that ticks: the ends and the recent entries are answered from plain attributes.
    """

    def __init__(
        self,
        opened: Opened,
        writer: LogWriter,
        health: Health,
        background: Background,
        max_entry_bytes: int,
    ) -> None:
        self.writer = writer
        self.view = writer.view
        self._health = health
        self.background = background
        self._max_entry_bytes = max_entry_bytes
        #: whether a node holds its answers back, so that ``add`` need not wait
        self.is_attached = False
        #: whether the dump that is being loaded is the node's own, at its start
        self.is_starting: Callable[[], bool] = _yes
        #: called with what is visible again without an ``add``
        self.on_visible_again: Callable[[Callable[[], list[PlainEntry]]], None] = _nothing
        #: both ends; None where there is none, and where the log failed
        self.head = opened.head
        self.tail = opened.tail
        if opened.head is not None and opened.tail is not None:
            self.first, self.last = opened.head[1], opened.tail[1]
        else:
            self.first, self.last = opened.frontier + 1, opened.frontier
        #: nothing at or below it can be added any more; -1 where nothing was ever purged
        self.frontier = opened.frontier
        #: the first entry of the storage that is not purged, or about to be
        self.stored_first = self.first
        #: the last entry of the storage, hidden or not
        self.stored_tail = opened.tail
        #: visible, but not in the storage: what pysyncobj puts into an empty journal while its
        #: dump is not loaded yet
        self.placeholder: PlainEntry | None = None
        #: raised by every cut of the log
        self.epoch = 0
        #: the index that ``add`` takes the short way with; -1 where it must look closer
        self._next = -1
        self._clearing = _Clearing.NO
        health.call_on_failure(self.forget_ends)

    def forget_ends(self) -> None:
        """From here on no short way is open: every one of the long ways checks the health."""
        self._next = -1
        self.head = self.tail = None

    # --- reading --------------------------------------------------------------------------

    def part(self, item: slice) -> Sequence[PlainEntry]:
        start, stop = item.start, item.stop
        if start is not None and start >= 0 and item.step is None and self.tail:
            view = self.view
            recent_first = view.recent_first
            shift = self.first - recent_first
            begin = shift + start
            end = self.last + 1 - recent_first
            if 0 <= begin < end:
                if stop is None:
                    if end - begin <= LIST_ENTRIES:
                        return view.recent[begin:end]
                elif stop >= start:
                    bound = shift + stop
                    return view.recent[begin : bound if bound < end else end]  # noqa: FURB136 - slower
        return self._part(item)

    def _part(self, item: slice) -> Sequence[PlainEntry]:
        if self._health.failure is not None:
            self._health.raise_failure()
        start, stop, step = item.indices(self.last - self.first + 1)
        if step != 1:
            return [self.item(i) for i in range(start, stop, step)]
        if start >= stop:
            return []
        if self.placeholder is not None:
            return [self.placeholder]
        view, start, stop = self.view, start + self.first, stop + self.first
        is_list = stop - start <= LIST_ENTRIES or item.stop is not None
        if is_list and (start >= view.recent_first or stop - start <= _WHOLE_ENTRIES):
            return view.entries(start, stop)
        return LazyEntries(view, start, stop)

    def item(self, item: int) -> PlainEntry:
        if self._health.failure is not None:
            self._health.raise_failure()
        length = self.last - self.first + 1
        position = item + length if item < 0 else item
        if not 0 <= position < length:
            raise IndexError("journal index out of range")
        if self.placeholder is not None:
            return self.placeholder
        return self.view.entry(self.first + position)

    # --- adding ---------------------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        if command.__class__ is not bytes:
            command = to_bytes(command)
        size = len(command)
        if size > self._max_entry_bytes:
            raise EntryTooLargeError(
                f"a command of {size} bytes is larger than max_entry_size "
                f"({self._max_entry_bytes}); nothing was written"
            )
        entry = (command, idx, term)
        if idx != self._next:
            self._add_with_care(entry)
            return
        view = self.view
        view.recent.append(entry)
        view.recent_bytes += size + ENTRY_OVERHEAD_BYTES
        self.last = idx
        self.tail = self.stored_tail = entry
        self._next = idx + 1
        if idx - self.writer.handed >= _HAND_OVER_ENTRIES:
            self.writer.hand_over()
            self.writer.trim()

    def _add_with_care(self, entry: PlainEntry) -> None:
        self._health.check()
        if self._clearing is not _Clearing.NO:
            self._add_after_clear(entry)
        elif self.placeholder is not None:
            self._fail(self.background.missing_dump(self.frontier))
        elif entry[1] <= self.frontier and self.view.end == self.stored_first:
            self.placeholder = self.head = self.tail = entry
            self.first = self.last = entry[1]
        else:
            if self.frontier < 0 and self.view.end == self.stored_first:
                self._begin_at(entry[1])  # an empty log takes its first entry's index
            if entry[1] != self.last + 1:
                self._refuse_gap(entry[1])
            if entry[1] < self.view.end:
                if self.view.entry(entry[1]) == entry:
                    self._append_to_list(entry)
                    self._wait_if_bare()
                    return
                self.cut(entry[1])
            self._append(entry)
        self.allow_short_way()

    def _append(self, entry: PlainEntry) -> None:
        # the short way in ``add`` does the same
        view = self.view
        view.recent.append(entry)
        view.recent_bytes += len(entry[0]) + ENTRY_OVERHEAD_BYTES
        self.stored_tail = entry
        self._append_to_list(entry)
        self._wait_if_bare()

    def _wait_if_bare(self) -> None:
        if not self.is_attached:
            self.writer.make_durable(self.last)
            self.writer.trim()

    def _append_to_list(self, entry: PlainEntry) -> None:
        if self.first > self.last:
            self.head = entry
            self.first = entry[1]
        self.last = entry[1]
        self.tail = entry
        self.allow_short_way()

    def _begin_at(self, index: int) -> None:
        self.writer.begin_at(index)
        self.first, self.last = index, index - 1
        self.stored_first = index
        self.stored_tail = None

    def cut(self, index: int) -> None:
        """``[index, ∞)`` is gone for good, hidden or not."""
        try:
            self.writer.cut(index)
        finally:
            self.epoch += 1
            is_empty = index <= self.stored_first
            self.stored_tail = None if is_empty else self.view.entry(index - 1)

    def allow_short_way(self) -> None:
        is_plain = (
            self.is_attached
            and self._health.failure is None
            and not self._health.is_closed
            and self._clearing is _Clearing.NO
            and self.placeholder is None
            and self.first <= self.last
            and self.last + 1 == self.view.end
        )
        self._next = self.last + 1 if is_plain else -1

    # --- deleting -------------------------------------------------------------------------

    def clear(self) -> None:
        """Empties the list, as pysyncobj does before it adds the two entries of a dump.

        Raft's rule for an installed snapshot (InstallSnapshot, rule 6): where the log has the
        snapshot's last entry, what follows it is kept. So nothing is removed until the two
        entries are known.
        """
        self._health.check()
        self.writer.hand_over()
        self._clearing = _Clearing.CLEARED
        self.placeholder = self.head = self.tail = None
        self.first, self.last = 0, -1
        self._next = -1

    def _add_after_clear(self, entry: PlainEntry) -> None:
        index = entry[1]
        view, lowest = self.view, self.stored_first
        is_found = lowest <= index < view.end and view.entry(index) == entry
        if self._clearing is _Clearing.CLEARED:
            if index < lowest and (self.frontier >= 0 or self.stored_tail is not None):
                self._fail(self.background.older_dump(index + 1, lowest))
            self.first, self.last = index, index - 1
            if is_found:
                self._clearing = _Clearing.FIRST_FOUND
                self._append_to_list(entry)
            else:
                # The dump replaces the log: none of it is the dump's past.
                self._clearing = _Clearing.NO
                self.restart_at(index, entry[2])
                self.epoch += 1
                self.frontier = index - 1
                self._begin_at(index)
                self._append(entry)
            return
        if index != self.last + 1:
            self._refuse_gap(index)
        self._end_clearing()
        if is_found:
            self._append_to_list(entry)
            # At start the log goes on where it was. Later a leader sends the dump, and what
            # follows is that leader's if it is added again, or by its term.
            if self.is_starting():
                self._show_hidden()
        else:
            if index < view.end:
                self.cut(index)
            self._append(entry)

    def restart_at(self, index: int, term: int) -> None:
        """The dump replaces the log. It is made durable first."""
        with self.writer.at_disk():
            self.background.sync_dump()
        self.writer.restart_at(index, term)

    def _end_clearing(self) -> None:
        self._clearing = _Clearing.NO
        self._purge_to(self.first - 1)  # what lies before the dump's first entry goes

    def delete_from(self, position: int) -> None:
        """Removes the positions ``[position, ∞)`` from the list; the log keeps them hidden."""
        self._health.check()
        self.settle_clearing()
        index = self.first + max(position, 0)
        if index > self.last:
            return
        if self.placeholder is not None:
            self.placeholder = None
            self.first, self.last = self.frontier + 1, self.frontier
        else:
            self.last = index - 1
        if self.first <= self.last:
            self.tail = self.view.entry(self.last)
        else:
            self.tail = self.head = None
        self._next = -1

    def delete_to(self, position: int) -> None:
        """Removes the positions ``[0, position)``; the space is freed in the background."""
        self._health.check()
        self.settle_clearing()
        if position <= 0 or self.placeholder is not None or self.first > self.last:
            return
        index = self.first + position
        if index > self.last:
            index = self.last + 1
            if index < self.view.end:
                self.cut(index)
        self.writer.hand_over()
        if index <= self.last:
            self.head = self.view.entry(index)
        else:
            self.head = self.tail = None
        self.first = index
        self._purge_to(index - 1)
        self.allow_short_way()

    def _purge_to(self, index: int) -> None:
        if index >= self.stored_first:
            self.frontier = index
            self.stored_first = index + 1
            if index + 1 >= self.view.end:
                self.stored_tail = None
            self.background.purge(index)

    def settle_clearing(self) -> None:
        """Something other than the loading of a dump follows a ``clear``."""
        if self._clearing is _Clearing.CLEARED:
            self._clearing = _Clearing.NO
            self.first = self.stored_first
            self.last = self.first - 1
        elif self._clearing is _Clearing.FIRST_FOUND:
            self._end_clearing()

    # --- what is hidden -------------------------------------------------------------------

    def hides_something(self) -> bool:
        return (
            self._clearing is _Clearing.NO
            and self.placeholder is None
            and self.last + 1 < self.view.end
        )

    def show_hidden(self) -> None:
        """Everything that the storage holds is visible again."""
        start = self._show_hidden()
        if start <= self.last:
            self.on_visible_again(partial(self.view.entries, start, self.last + 1))

    def _show_hidden(self) -> int:
        start = self.last + 1
        if self._clearing is _Clearing.NO and self.stored_tail is not None:
            if self.first > self.last:
                start = self.first = self.stored_first
                self.head = self.view.entry(self.first)
            self.last = self.view.end - 1
            self.tail = self.stored_tail
            self.allow_short_way()
        return start

    def _refuse_gap(self, index: int) -> NoReturn:
        raise LogGapError(
            f"entry {index} does not follow entry {self.last} of {self._health.path}; "
            "nothing was written"
        )

    def _fail(self, error: WalError) -> NoReturn:
        self._health.fail(error)
        self._health.raise_failure()


def _yes() -> bool:
    return True


def _nothing(_entries: Callable[[], list[PlainEntry]]) -> None:
    return None
