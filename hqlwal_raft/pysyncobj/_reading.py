"""How the visible entries are read: pysyncobj's list, from plain attributes where it can be.

A leader reads some twenty times per command, in the thread that ticks: the ends and the recent
entries are answered without a lock and without asking another thread.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NoReturn, overload

from pysyncobj.journal import Journal

from ._entries import PlainEntry
from ._view import LIST_ENTRIES, LazyEntries, View

__all__ = ["ReadLog"]

#: a bounded answer longer than this is not fetched from the storage in one piece
_WHOLE_ENTRIES = 4096


class ReadLog(Journal, abc.ABC):
    """The visible entries ``[_first, _last]``; ``ShownLog`` changes them."""

    _view: View
    _first: int
    _last: int
    _head: PlainEntry | None
    _tail: PlainEntry | None
    #: visible, but not in the storage: what pysyncobj puts into an empty journal while its dump
    #: is not loaded yet
    _placeholder: PlainEntry | None
    #: set once a write failed; every method raises from then on
    failure: BaseException | None

    @abc.abstractmethod
    def raise_failure(self) -> NoReturn:
        """Says that the log failed, and why."""

    def __len__(self) -> int:
        if self.failure is not None:
            self.raise_failure()
        return self._last - self._first + 1

    @overload
    def __getitem__(self, item: int) -> PlainEntry: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[PlainEntry]: ...
    def __getitem__(self, item: int | slice) -> Any:
        # This runs some twenty times per command, so the short ways come first. A failure takes
        # the ends away, and ends in one of the long ways.
        if not isinstance(item, slice):
            if item == -1:
                if (tail := self._tail) is not None:
                    return tail
            elif item == 0 and (head := self._head) is not None:
                return head
            return self._item(item)
        start, stop = item.start, item.stop
        if start is not None and start >= 0 and item.step is None and self._tail:
            view = self._view
            recent_first = view.recent_first
            shift = self._first - recent_first
            begin = shift + start
            end = self._last + 1 - recent_first
            if 0 <= begin < end:
                if stop is None:
                    if end - begin <= LIST_ENTRIES:
                        return view.recent[begin:end]
                elif stop >= start:
                    bound = shift + stop
                    return view.recent[begin : bound if bound < end else end]  # noqa: FURB136 - slower
        return self._slice(item)

    def _slice(self, item: slice) -> Sequence[PlainEntry]:
        if self.failure is not None:
            self.raise_failure()
        start, stop, step = item.indices(self._last - self._first + 1)
        if step != 1:
            return [self[i] for i in range(start, stop, step)]
        if start >= stop:
            return []
        if self._placeholder is not None:
            return [self._placeholder]
        view, start, stop = self._view, start + self._first, stop + self._first
        is_list = stop - start <= LIST_ENTRIES or item.stop is not None
        if is_list and (start >= view.recent_first or stop - start <= _WHOLE_ENTRIES):
            return view.entries(start, stop)
        return LazyEntries(view, start, stop)

    def _item(self, item: int) -> PlainEntry:
        if self.failure is not None:
            self.raise_failure()
        length = self._last - self._first + 1
        position = item + length if item < 0 else item
        if not 0 <= position < length:
            raise IndexError("journal index out of range")
        if self._placeholder is not None:
            return self._placeholder
        return self._view.entry(self._first + position)
