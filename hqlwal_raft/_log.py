"""The log's memory: the ordered segments, ``meta.hql``, what is newest, what is not durable yet.

It belongs to its owner: the thread of the event loop, or who holds the lock of a blocking store.
The owner never touches a device (under a buffered policy appends go into the page cache): what
needs the disk is a :class:`Plan`, carried out elsewhere. What is done to a log lives in modules
of functions: ``_appending``, ``_commits``, ``_truncating``, ``_operations``. Between an
operation's first step and its last no other runs, appends excepted while a commit is under way,
and reads.

Every change of memory lies between ``is_changing = True`` and ``= False``: an exception that
comes from outside in between (KeyboardInterrupt, MemoryError) leaves it set, and whoever enters
next finds memory torn. Then, as after any poison, ``stand_on_view`` puts the durable view in the
place of memory: one immutable value, swapped by each outcome, is all that readers get.

It must not know the event loop, threads, or who waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ._directory import Directory
from ._files import File
from ._filling import Filling
from ._meta import Meta
from ._plans import Plan, carry_out, lacks_space
from ._reads import Options, Reads
from ._recent import Recent
from ._segment import Known, Segment
from ._types import Entry, LogId, LogState
from ._unsynced import Unsynced
from ._view import Cut, View

__all__ = ["Log", "PoisonError"]


class PoisonError(Exception):
    """A write on the owner's own thread failed behind its point of no return."""


class Log:
    """See the module. Built by ``_recovery``."""

    __slots__ = (
        "_cut_first",
        "_cut_next",
        "_last_log_id",
        "appended_bytes",
        "appended_entries",
        "cut",
        "directory",
        "durable_bytes",
        "durable_entries",
        "epoch",
        "filling",
        "first_ids",
        "first_index",
        "is_changing",
        "last_durable_log_id",
        "last_number",
        "least_term",
        "left",
        "max_entry_size",
        "meta",
        "next_index",
        "options",
        "prepared",
        "reads",
        "recent",
        "rollovers",
        "segments",
        "stale",
        "tail",
        "to_seal",
        "to_unlink",
        "unsynced",
        "usual_term",
        "view",
        "written_next",
    )

    def __init__(
        self,
        directory: Directory,
        options: Options,
        meta: Meta,
        segments: list[Segment],
        prepared: list[Segment],
        last_log_id: LogId | None,
    ) -> None:
        self.directory = directory
        self.options = options
        self.meta = meta
        #: ascending; the last one is the tail, the only one that records are added to
        self.segments = segments
        #: published, without records, in the order in which they will be used
        self.prepared = prepared
        #: set while memory changes
        self.is_changing = False
        #: counts what takes entries away: a read that overlapped it must be repeated
        self.epoch = 0
        #: the truncation under way; None where none is
        self.cut: Cut | None = None
        # counted since it was opened
        self.appended_entries = self.durable_entries = 0
        self.appended_bytes = self.durable_bytes = 0
        self.rollovers = 0
        # the lowest and one past the highest index that truncations took since it was opened
        self._cut_first = self._cut_next = 0
        self.first_ids = [segment.first_id for segment in segments]
        self.recent = Recent(options.cache_bytes)
        self.reads = Reads(options, segments, self.first_ids)
        numbers = [segment.number for segment in (*segments, *prepared)]
        #: no higher number was ever in use
        self.last_number = max([*numbers, meta.state.first_segment - 1, 0])
        #: names that may exist and are not ours to use before they are unlinked, durably
        self.stale: list[int] = []
        #: purged, to be unlinked by housekeeping, oldest first
        self.to_unlink: deque[str] = deque()
        #: left, to be sealed by housekeeping, oldest first
        self.to_seal: deque[Segment] = deque()
        self.unsynced = Unsynced(is_buffered=options.is_buffered)
        self.filling = Filling(
            options.segment_size,
            is_wanted=(
                options.fills_ahead and not options.is_buffered and directory.allows_filling
            ),
        )
        self.max_entry_size = options.max_entry_size
        #: the first entry's index; where there is none, the one that an append would have
        self.first_index = 0
        #: what the next entry's index must be; None where it may be any
        self.next_index: int | None = None
        #: what the next entry's term must not be below; None where it may be any
        self.least_term: int | None = None
        #: the very object that is the last entry's term; None where a term must be judged first
        self.usual_term: int | None = None
        self._last_log_id: LogId | None = None
        #: the last log id whose entry no crash can take any more
        self.last_durable_log_id: LogId | None = None
        #: entries below it are written, and may be read from the files
        self.written_next = 0
        #: the tail, while entries can simply be added to it; None where an append has to look
        self.tail: Segment | None = None
        if options.is_buffered and directory.allows_maps:
            for segment in [*segments[-1:], *prepared]:
                if segment.file is not None and segment.has_room:
                    segment.file.map()
        self.set_ends(last_log_id)
        self.left: tuple[Known, ...] | None = None
        self.view = self.durable_view()

    # --- what the log holds ----------------------------------------------------------------

    @property
    def last_purged_log_id(self) -> LogId | None:
        return self.meta.state.last_purged

    @property
    def last_log_id(self) -> LogId | None:
        """The last entry's; the purge frontier where there is none."""
        newest = self.recent.newest
        return newest.log_id if newest is not None else self._last_log_id

    @property
    def durable_next_index(self) -> int:
        """One past the last entry that no crash can take any more; 0 where there is none."""
        return 0 if self.last_durable_log_id is None else self.last_durable_log_id.index + 1

    @property
    def state(self) -> LogState:
        return LogState(self.last_purged_log_id, self.last_log_id)

    @property
    def count(self) -> int:
        """How many entries it holds."""
        return 0 if self.next_index is None else self.next_index - self.first_index

    @property
    def unsynced_bytes(self) -> int:
        """Record bytes that no sync has made durable yet."""
        return self.appended_bytes - self.durable_bytes

    @property
    def is_clean(self) -> bool:
        """Whether all that was accepted is durable."""
        return self.appended_entries == self.durable_entries and self.unsynced.hint is None

    @property
    def segment_bytes(self) -> int:
        return sum(segment.length for segment in self.segments)

    @property
    def cut_from(self) -> int | None:
        """The index from which a truncation under way removes; None where none is."""
        return None if self.cut is None else self.cut.first

    def note_cut(self, index: int) -> None:
        """A truncation takes the entries from ``index`` on."""
        next_index = self.next_index or 0
        if self._cut_next == 0:
            self._cut_first = index
        self._cut_first = min(self._cut_first, index)
        self._cut_next = max(self._cut_next, next_index)

    def was_cut(self, index: int) -> bool:
        """Whether an entry with that index was truncated since it was opened."""
        return self._cut_first <= index < self._cut_next

    def clip(self, start: int, stop: int | None) -> tuple[int, int]:
        """The part of ``[start, stop)`` that the log holds."""
        next_index = self.next_index or 0
        if stop is None or stop > next_index:
            stop = next_index
        return max(start, self.first_index), stop

    def set_ends(self, last_log_id: LogId | None) -> None:
        """Finds both ends after anything but an append; the log is clean."""
        frontier = self.last_purged_log_id
        first = self.segments[0].first_id if self.segments else 0
        next_ = None
        if last_log_id is not None and (frontier is None or last_log_id.index > frontier.index):
            next_ = last_log_id.index + 1
        if frontier is not None:
            next_ = next_ or frontier.index + 1
            first = min(max(first, frontier.index + 1), next_)
        self.first_index, self.next_index = first if next_ is not None else 0, next_
        is_empty = next_ is None or next_ == first
        self._last_log_id = self.last_durable_log_id = frontier if is_empty else last_log_id
        if self.options.checks_raft:
            self.least_term = self._last_log_id.term if self._last_log_id is not None else 0
        self.usual_term = None
        self.written_next = next_ or 0
        self.find_tail()

    def find_tail(self) -> None:
        tail = self.usable_tail(self.next_index)
        is_ready = tail is not None and tail.has_room and self.meta.state.first_segment
        self.tail = tail if is_ready else None

    def usable_tail(self, index: int | None) -> Segment | None:
        """The tail, if records from ``index`` on can be added to it."""
        tail = self.segments[-1] if self.segments else None
        if tail is None or tail.is_sealed or tail.next_id != index or tail.places is None:
            return None
        return tail

    # --- the durable view ------------------------------------------------------------------

    def durable_view(self) -> View:
        if self.left is None:
            self.left = tuple(segment.known() for segment in self.segments[:-1])
        durable = self.last_durable_log_id
        frontier = self.meta.state.last_purged
        is_empty = durable is None or (frontier is not None and durable == frontier)
        next_ = self.first_index if is_empty else durable.index + 1  # type: ignore[union-attr]
        tail = self.segments[-1].known() if self.segments else None
        is_any = self.next_index is None or (frontier is None and is_empty)
        return View(self.first_index, None if is_any else next_, durable, self.left, tail)

    def stand_on_view(self) -> None:
        """Puts the durable view in the place of memory. Nothing is ever written afterwards."""
        # What a truncation was removing may be zeroed already, and was given up by its caller.
        view = self.view if self.cut is None else self.view.without(self.cut)
        committed, last = self.meta.committed, view.last_log_id
        if committed is not None and (last is None or committed.index > last.index):
            self.meta.committed = last  # it was cut with the entries
        segments = [Segment.of(each) for each in view.segments if each.next_id > each.first_id]
        next_index = view.next_index
        self.segments, self.prepared = segments, []
        self.first_ids = [segment.first_id for segment in segments]
        self.recent = Recent(0)
        self.reads = Reads(self.options, segments, self.first_ids)
        self.first_index, self.next_index = view.first_index, next_index
        self._last_log_id = self.last_durable_log_id = view.last_log_id
        self.written_next = next_index or 0
        self.unsynced.forget()
        self.to_seal.clear()
        self.to_unlink.clear()
        self.tail = None
        self.cut = None
        self.appended_bytes, self.appended_entries = self.durable_bytes, self.durable_entries
        self.epoch += 1
        self.is_changing = False

    # --- what is added ---------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether all before what is appended now is durable when that is written."""
        unsynced = self.unsynced
        if unsynced.is_buffered:
            return self.appended_entries == self.durable_entries
        # A commit is planned only after the one before it was synced, and takes all that waits.
        return not unsynced.unwritten

    def carry_out_here(self, plan: Plan) -> None:
        """Leaves ``is_changing`` set where it succeeds: the caller changes memory next. Raises
        PoisonError where it failed half-way; else, with nothing changed, what it failed with.
        """
        self.is_changing = True
        outcome = carry_out(self.directory, plan)
        if outcome.error is None:
            return
        try:
            if outcome.is_refused:
                self.is_changing = False
                raise outcome.error
            raise PoisonError from outcome.error
        finally:
            del outcome  # its error's traceback holds this frame, and that the plan's files

    def write_here(self, file: File, offset: int, parts: Sequence[bytes]) -> None:
        """As ``carry_out_here`` with nothing but this one write, for the half of the time."""
        self.is_changing = True
        try:
            file.write(offset, parts)
        except BaseException as error:
            if lacks_space(error):
                self.is_changing = False
                raise
            raise PoisonError from error

    def added(
        self,
        segment: Segment,
        entries: Sequence[Entry],
        parts: list[bytes],
        offsets: list[int],
        stop: int,
    ) -> None:
        """Entries were added to the last segment, as those records; ``is_changing`` is set."""
        is_first = segment.header.is_unused and not segment.count
        self.unsynced.add(segment, segment.end, parts, is_first=is_first)
        assert segment.places is not None
        segment.places.add(offsets, stop)
        size = stop - segment.end
        segment.end = stop
        index, count = segment.next_id, len(entries)
        segment.next_id += count
        if self.next_index is None:
            self.first_index = index
        self.next_index = segment.next_id
        self.usual_term = entries[-1].term
        if self.least_term is not None:
            self.least_term = self.usual_term
        if self.unsynced.is_buffered:
            self.written_next = self.next_index
        self.appended_entries += count
        self.appended_bytes += size
        self.recent.add(entries, size, self.written_next)

    def known_log_id(self, index: int) -> LogId | None:
        """The log id of an entry, if it is in memory, or is the purge frontier."""
        for log_id in (self.last_purged_log_id, self.last_log_id):
            if log_id is not None and log_id.index == index:
                return log_id
        if not self.first_index <= index < (self.next_index or 0):
            return None
        recent = self.recent.read(index, index + 1)
        return recent[0].log_id if recent else None

    # --- committing ------------------------------------------------------------------------

    @property
    def in_flight_next(self) -> int:
        """The entries below it are durable once the commit under way is."""
        commit = self.unsynced.in_flight
        return 0 if commit is None else commit.next_index or 0

    @property
    def lacks_filling(self) -> bool:
        """Whether what is prepared should give way to a segment that is filled."""
        prepared = self.prepared
        return len(prepared) == 1 and not prepared[0].is_filled and self.filling.pays

    def release(self) -> None:
        """Lets go of every file."""
        for segment in [*self.segments, *self.prepared]:
            segment.release()
        self.meta.release()
        self.left = None
        self.unsynced.forget()
        self.view = self.view._replace(left=(), tail=None)
