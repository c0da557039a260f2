"""What of the log pysyncobj sees, and what is only hidden from it.

It must not know the node, nor what must be durable when.

Positions in the list are pysyncobj's, indexes are Raft's: the entry at position 0 has the index
``_first``. The visible entries are ``[_first, _last]``; what the storage holds after ``_last``
is hidden: no longer in pysyncobj's list, but not removed either, because pysyncobj deletes and
adds again what it already has. Adding a hidden entry again brings it back; only an entry that
differs truncates the log, as Raft has it.
"""

from __future__ import annotations

import abc
import contextlib
import enum
from collections.abc import Iterator
from functools import partial
from typing import NoReturn

from pysyncobj.pickle import to_bytes

from .._types import LogId
from ..errors import EntryTooLargeError, LogGapError, WalClosedError, WalError
from ._entries import PlainEntry, read_entries, to_batch
from ._opening import Opened
from ._reading import ReadLog
from ._view import ENTRY_OVERHEAD_BYTES, View

__all__ = ["ShownLog"]

#: queued entries are handed over at every poll, and when there are so many
_HAND_OVER_ENTRIES = 1024
#: so much may wait to be written, besides what is kept anyway
_WAITING_BYTES = 64 << 20


class _Clearing(enum.Enum):
    """How far ``clear(); add(prev); add(last)``, the loading of a dump, has come."""

    NO = 0
    CLEARED = 1
    #: the first entry added was found in the log
    FIRST_FOUND = 2


class ShownLog(ReadLog):
    """The list that pysyncobj sees; :class:`WalJournal` is the rest of the journal."""

    path: str
    is_closed: bool

    def __init__(
        self, opened: Opened, cache_bytes: int, max_entry_bytes: int, *, is_durable_when_done: bool
    ) -> None:
        self.failure = None
        #: whether a node holds its answers back, so that ``add`` need not wait
        self._is_attached = False
        self._store = store = opened.store
        self._background = opened.background
        #: whether an entry counts as durable when it is; else when it is written
        self._is_durable_when_done = is_durable_when_done
        self._cache_bytes = cache_bytes
        self._max_entry_bytes = max_entry_bytes
        head, tail = opened.head, opened.tail
        self._head = head
        self._tail = tail
        if head is not None and tail is not None:
            self._first, self._last = head[1], tail[1]
        else:
            self._first, self._last = opened.frontier + 1, opened.frontier
        #: nothing at or below it can be added any more; -1 where nothing was ever purged
        self._frontier = opened.frontier
        #: the first entry of the storage that is not purged, or about to be
        self._stored_first = self._first
        #: the last entry of the storage, hidden or not
        self._stored_tail = tail
        self._view = View(partial(read_entries, store), cache_bytes, self._last + 1)
        #: entries below it are handed over to the store
        self._handed = self._last + 1
        #: set while the store is changed: who finds it set was interrupted, and asks the store
        self._is_unsure = False
        #: entries below it are known to be durable
        self._durable_end = self._last + 1
        #: the index that ``add`` takes the short way with; -1 where it must look closer
        self._next = -1
        #: raised by every cut of the log
        self._epoch = 0
        self._clearing = _Clearing.NO
        self._placeholder = None

    @abc.abstractmethod
    def _check(self) -> None:
        """Raises where nothing may be changed any more."""

    @abc.abstractmethod
    def _fail(self, error: BaseException) -> None:
        """The log failed: from here on every method raises."""

    @abc.abstractmethod
    def _is_starting(self) -> bool:
        """Whether the dump that is being loaded is the node's own, at its start."""

    @abc.abstractmethod
    def _fail_for_older_dump(self, index: int) -> NoReturn: ...

    @abc.abstractmethod
    def _fail_for_missing_dump(self) -> NoReturn: ...

    # --- adding ---------------------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Appends an entry. Used bare: durable on return; attached: only queued.

        Raises EntryTooLargeError, LogGapError, WalPoisonedError, WalClosedError.
        """
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
        view = self._view
        view.recent.append(entry)
        view.recent_bytes += size + ENTRY_OVERHEAD_BYTES
        self._last = idx
        self._tail = self._stored_tail = entry
        self._next = idx + 1
        if idx - self._handed >= _HAND_OVER_ENTRIES:
            self.hand_over()
            self._trim()

    def _add_with_care(self, entry: PlainEntry) -> None:
        self._check()
        if self._clearing is not _Clearing.NO:
            self._add_after_clear(entry)
        elif self._placeholder is not None:
            self._fail_for_missing_dump()
        elif entry[1] <= self._frontier and self._view.end == self._stored_first:
            self._placeholder = self._head = self._tail = entry
            self._first = self._last = entry[1]
        else:
            if self._frontier < 0 and self._view.end == self._stored_first:
                self._begin_at(entry[1])  # an empty log takes its first entry's index
            if entry[1] != self._last + 1:
                raise LogGapError(
                    f"entry {entry[1]} does not follow entry {self._last} of {self.path}; "
                    "nothing was written"
                )
            if entry[1] < self._view.end:
                if self._view.entry(entry[1]) == entry:
                    self._show(entry)
                    self._wait_if_bare()
                    return
                self._cut(entry[1])
            self._append(entry)
        self._allow_short_way()

    def _append(self, entry: PlainEntry) -> None:
        """Appends to the storage's end; the short way in ``add`` does the same."""
        view = self._view
        view.recent.append(entry)
        view.recent_bytes += len(entry[0]) + ENTRY_OVERHEAD_BYTES
        self._stored_tail = entry
        self._show(entry)
        self._wait_if_bare()

    def _wait_if_bare(self) -> None:
        if not self._is_attached:
            self._make_durable(self._last)
            self._trim()

    def _show(self, entry: PlainEntry) -> None:
        """The entry after the last visible one becomes visible."""
        if self._first > self._last:
            self._head = entry
            self._first = entry[1]
        self._last = entry[1]
        self._tail = entry
        self._allow_short_way()

    def _begin_at(self, index: int) -> None:
        self._view.restart(index)
        self._first, self._last = index, index - 1
        self._handed = self._durable_end = self._stored_first = index
        self._stored_tail = None

    def _cut(self, index: int) -> None:
        """The storage is truncated: ``[index, ∞)`` is gone for good."""
        self.hand_over()
        self._is_unsure = True
        self._handed = min(self._handed, index)
        self._durable_end = min(self._durable_end, index)
        try:
            with self._failing():
                self._store.truncate(LogId(0, index))
                self._is_unsure = False
        finally:  # whoever interrupts the waiting does not stop the truncation
            self._epoch += 1
            self._view.cut(index)
            is_empty = index <= self._stored_first
            self._stored_tail = None if is_empty else self._view.entry(index - 1)

    def _allow_short_way(self) -> None:
        is_plain = (
            self._is_attached
            and self.failure is None
            and not self.is_closed
            and self._clearing is _Clearing.NO
            and self._placeholder is None
            and self._first <= self._last
            and self._last + 1 == self._view.end
        )
        self._next = self._last + 1 if is_plain else -1

    # --- deleting -------------------------------------------------------------------------

    def clear(self) -> None:
        """Empties the list, as pysyncobj does before it adds the two entries of a dump.

        Raft's rule for an installed snapshot (InstallSnapshot, rule 6): where the log has the
        snapshot's last entry, what follows it is kept. So nothing is removed until the two
        entries are known.
        """
        self._check()
        self.hand_over()
        self._clearing = _Clearing.CLEARED
        self._placeholder = self._head = self._tail = None
        self._first, self._last = 0, -1
        self._next = -1

    def _add_after_clear(self, entry: PlainEntry) -> None:
        index = entry[1]
        view, lowest = self._view, self._stored_first
        is_found = lowest <= index < view.end and view.entry(index) == entry
        if self._clearing is _Clearing.CLEARED:
            if index < lowest and (self._frontier >= 0 or self._stored_tail is not None):
                self._fail_for_older_dump(index)
            self._first, self._last = index, index - 1
            if is_found:
                self._clearing = _Clearing.FIRST_FOUND
                self._show(entry)
            else:
                # The dump replaces the log: none of it is the dump's past.
                self._clearing = _Clearing.NO
                self._restart_at(index, entry[2])
                self._epoch += 1
                self._frontier = index - 1
                self._begin_at(index)
                self._append(entry)
            return
        if index != self._last + 1:
            raise LogGapError(f"entry {index} does not follow entry {self._last} of {self.path}")
        self._end_clearing()
        if is_found:
            self._show(entry)
            # At start the log goes on where it was. Later, a leader sends the dump, and whether
            # what follows is that leader's too shows when it is added again, or by its term.
            if self._is_starting():
                self.show_hidden()
        else:
            if index < view.end:
                self._cut(index)
            self._append(entry)

    def _restart_at(self, index: int, term: int) -> None:
        """Everything goes, so that ``index`` can be appended next.

        The dump file, which replaces it, is made durable first.
        """
        store = self._store
        with self._failing():
            self._background.sync_dump()
            store.truncate(LogId(0, index))
            if index > 0:
                store.purge(store.log_id_at(index - 1) or LogId(term, index - 1))

    def _end_clearing(self) -> None:
        """What lies before the first entry of the dump goes."""
        self._clearing = _Clearing.NO
        self._purge_to(self._first - 1)

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Removes the positions ``[entryFrom, ∞)`` from the list; the log keeps them hidden."""
        self._check()
        self._settle_clearing()
        index = self._first + max(entryFrom, 0)
        if index > self._last:
            return
        if self._placeholder is not None:
            self._placeholder = None
            self._first, self._last = self._frontier + 1, self._frontier
        else:
            self._last = index - 1
        if self._first <= self._last:
            self._tail = self._view.entry(self._last)
        else:
            self._tail = self._head = None
        self._next = -1

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Removes the positions ``[0, entryTo)``: the dump has what they did.

        The dump file and its directory are synced before the space is freed, in the
        background: until then it is the only other copy.
        """
        self._check()
        self._settle_clearing()
        if entryTo <= 0 or self._placeholder is not None or self._first > self._last:
            return
        index = self._first + entryTo
        if index > self._last:
            index = self._last + 1
            if index < self._view.end:
                self._cut(index)
        self.hand_over()
        if index <= self._last:
            self._head = self._view.entry(index)
        else:
            self._head = self._tail = None
        self._first = index
        self._purge_to(index - 1)
        self._allow_short_way()

    def _purge_to(self, index: int) -> None:
        if index >= self._stored_first:
            self._frontier = index
            self._stored_first = index + 1
            if index + 1 >= self._view.end:
                self._stored_tail = None
            self._background.purge(index)

    def _settle_clearing(self) -> None:
        """Something other than the loading of a dump follows a ``clear``."""
        if self._clearing is _Clearing.CLEARED:
            self._clearing = _Clearing.NO
            self._first = self._stored_first
            self._last = self._first - 1
        elif self._clearing is _Clearing.FIRST_FOUND:
            self._end_clearing()

    def show_hidden(self) -> None:
        """Everything that the storage holds is visible again."""
        if self._clearing is _Clearing.NO and self._stored_tail is not None:
            if self._first > self._last:
                self._first = self._stored_first
                self._head = self._view.entry(self._first)
            self._last = self._view.end - 1
            self._tail = self._stored_tail
            self._allow_short_way()

    # --- handing over ---------------------------------------------------------------------

    def hand_over(self, *, waits: bool = False) -> None:
        """Has written what was added; the node's thread does it itself if it waits for it."""
        view = self._view
        end = view.recent_first + len(view.recent)
        store = self._store
        if (poison := store.poison) is not None:
            self._fail(poison)
            self.raise_failure()
        if self._handed == end and not self._is_unsure:
            return
        try:
            if self._is_unsure:
                self._ask_the_store()
            entries = view.recent[self._handed - view.recent_first :]
            if self.is_closed or not entries:
                return
            self._is_unsure = True
            self._handed = end
            store.append(to_batch(entries), wait=waits)
            self._is_unsure = False
            if waits:
                self._durable_end = end
        except (WalError, OSError) as error:
            self._give_up(error)

    def _ask_the_store(self) -> None:
        """How far a change came that an exception from outside interrupted.

        The store makes the calls of a thread in their order, and a flush comes after them.
        """
        self._store.flush()
        last = self._store.get_log_state().last_log_id
        end = self._view.recent_first if last is None else last.index + 1
        if end > self._handed:  # a truncation that was not begun
            self._store.truncate(LogId(0, self._handed))
        self._handed = min(self._handed, end)
        self._is_unsure = False

    def _make_durable(self, index: int) -> None:
        """Returns once the entries up to ``index`` are durable: they count as it then."""
        if index < self._durable_end:
            return
        if index >= self._handed or self._is_unsure:
            self.hand_over(waits=True)
        if index >= self._durable_end and self._is_durable_when_done:
            entry = self._view.entry(index)
            try:
                self._store.wait_durable(LogId(entry[2], index))
            except (WalError, OSError) as error:
                self._give_up(error)
        self._durable_end = max(self._durable_end, index + 1)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """An error of the store in the block is the log's failure."""
        try:
            yield
        except (WalError, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: WalError | OSError) -> NoReturn:
        """Where an error of the store was caught: from here on every method raises."""
        if isinstance(error, WalClosedError):
            raise error
        if isinstance(error, OSError) and error.errno is None:
            raise error  # of a signal's handler, a TimeoutError say
        self._fail(error)
        self.raise_failure()

    def _trim(self) -> None:
        """Keeps no more in memory than allowed, waiting for the disk where it must."""
        view = self._view
        if view.recent_bytes > self._cache_bytes:
            if view.recent_bytes > self._cache_bytes + _WAITING_BYTES:
                self._make_durable(view.end - 1)
            view.trim(self._handed)

    def _hides_something(self) -> bool:
        return (
            self._clearing is _Clearing.NO
            and self._placeholder is None
            and self._last + 1 < self._view.end
        )
