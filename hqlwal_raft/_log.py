"""The log: the ordered segments and ``meta.hql``. Calls become plans, outcomes become state.

It belongs to its owner: the thread of the event loop, or who holds the lock of a blocking store.
The owner never touches a device (under a buffered policy appends go into the page cache): what
needs the disk is a :class:`Plan`, carried out elsewhere. An operation is a generator that yields
plans and is sent their outcomes, where they succeeded; where one failed it is closed, and what
that means the plan says: refused, nothing was changed, or poison. Between an operation's first
step and its last no other runs, appends excepted while a commit is under way, and reads.

Every change of memory lies between ``is_changing = True`` and ``= False``: an exception that
comes from outside in between (KeyboardInterrupt, MemoryError) leaves it set, and whoever enters
next finds memory torn. Then, as after any poison, ``stand_on_view`` puts the durable view in the
place of memory: one immutable value, swapped by each outcome, is all that readers get.

It must not know the event loop, threads, or who waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from ._directory import Directory
from ._entry_rules import NotPlainError, record_sizes
from ._format import DATA_START, U64_MAX, SegmentHeader
from ._meta import Meta
from ._places import Places
from ._plans import (
    CheckIdentity,
    Outcome,
    Plan,
    Step,
    Sync,
    Write,
    carry_out,
)
from ._raft_rules import check_committed
from ._reads import Options, Reads
from ._recent import Recent
from ._records import encode, encode_one
from ._segment import Known, Segment
from ._types import Entry, LogId, LogState

__all__ = ["Cut", "Log", "Need", "Options", "PoisonError", "View", "Work", "drive"]

T = TypeVar("T")
#: an operation: yields plans, is sent their outcomes, returns its result
Work = Generator[Plan, Outcome, T]

#: the header's durable mark is written with a sync if the last one is older than this
MARK_SECONDS = 0.010
#: the files are looked at under their names at least as often as this while entries come
IDENTITY_SECONDS = 1.0
#: so many segments may wait for their seal before a roll-over waits: they are scanned at open
SEALS_WAITING = 4
# A sync into blocks that were never written costs a journal commit on top. Writing zeros ahead
# costs some 13 ms for 8 MiB, beside the commits: it pays where so many syncs meet a segment that
# is large enough for them.
_FILL_FROM_SYNCS = 180
_FILL_FROM_BYTES = 1 << 20
# Smaller pieces of a dirty tail are stored through the map: no system call. Larger ones would
# take a page fault for each page.
_THROUGH_THE_MAP_BYTES = 4096


class PoisonError(Exception):
    """A write on the owner's own thread failed behind its point of no return."""


class Need(NamedTuple):
    """What an append lacks. At most one of these at a time."""

    #: segments to be prepared, by their lengths, behind the first ``keeps`` prepared ones
    lengths: tuple[int, ...] = ()
    keeps: int = 0
    #: ``meta.hql`` must name this segment as the first; 0: none
    name: int = 0
    #: blocks for the whole of a segment
    room: Segment | None = None
    #: a segment that waits for its seal
    is_seal: bool = False


class View(NamedTuple):
    """What is durable: all that a poisoned log shows."""

    first_index: int
    next_index: int | None
    last_log_id: LogId | None
    left: tuple[Known, ...]
    tail: Known | None


class Cut(NamedTuple):
    """What a truncation under way leaves, whether it succeeds or poisons."""

    #: entries from here on go
    first: int
    #: where the records end in the segment that stays, if one does
    end: int
    #: the last log id, the frontier's if no entry is left
    last_log_id: LogId | None


class _Unwritten(NamedTuple):
    """Records of one segment that the next commit writes."""

    segment: Segment
    offset: int
    parts: list[bytes]
    is_first: bool


class _Goal(NamedTuple):
    """What a commit makes durable of one segment."""

    segment: Segment
    end: int
    next_id: int
    #: the header that it writes, and the place of that step; None where it writes none
    header: SegmentHeader | None
    place: int


class _Commit(NamedTuple):
    """A commit under way."""

    goals: list[_Goal]
    last_log_id: LogId | None
    next_index: int | None
    entries: int
    bytes: int
    seconds: float
    committed: tuple[LogId | None] | None


def drive(work: Work[T], log: Log) -> T:
    """Runs an operation to its end in this thread. Raises the error of a plan that failed."""
    try:
        plan = next(work)
        while True:
            outcome = carry_out(log.directory, plan)
            if outcome.error is not None:
                work.close()
                raise outcome.error
            plan = work.send(outcome)
    except StopIteration as end:
        value: T = end.value
        return value


class Log:
    """See the module. Built by ``_recovery``."""

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
        self._is_buffered = options.is_buffered
        self._unwritten: list[_Unwritten] = []
        self._dirty: list[Segment] = []
        self._in_flight: _Commit | None = None
        #: the committed log id that the next commit saves, as a tuple of one
        self._committed: tuple[LogId | None] | None = None
        self._identity_seconds = 0.0
        # how many syncs the tail has met, and the one before it
        self._tail_syncs = self._syncs_before = 0
        self._first_index = 0
        self._next_index: int | None = None
        self._last_log_id: LogId | None = None
        self._durable_last: LogId | None = None
        #: entries below it are written, and may be read from the files
        self.written_next = 0
        # The tail, while entries can simply be added to it; None where an append has to look.
        self._tail: Segment | None = None
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
    def _least_term(self) -> int | None:
        """What the next entry's term must not be below; None where it may be any."""
        if not self.options.checks_raft:
            return None
        newest = self.recent.newest
        if newest is not None:
            return newest[0]
        return self._last_log_id.term if self._last_log_id is not None else 0

    @property
    def durable_next_index(self) -> int:
        """One past the last entry that no crash can take any more; 0 where there is none."""
        return 0 if self._durable_last is None else self._durable_last.index + 1

    @property
    def last_durable_log_id(self) -> LogId | None:
        """The last log id whose entry no crash can take any more."""
        return self._durable_last

    @property
    def state(self) -> LogState:
        return LogState(self.last_purged_log_id, self.last_log_id)

    @property
    def first_index(self) -> int:
        """The first entry's index; where there is none, the one that an append would have."""
        return self._first_index

    @property
    def next_index(self) -> int | None:
        """What the next entry's index must be; None where it may be any."""
        return self._next_index

    @property
    def count(self) -> int:
        """How many entries it holds."""
        return 0 if self._next_index is None else self._next_index - self._first_index

    @property
    def unsynced_bytes(self) -> int:
        """Record bytes that no sync has made durable yet."""
        return self.appended_bytes - self.durable_bytes

    @property
    def is_clean(self) -> bool:
        """Whether all that was accepted is durable."""
        return self.appended_entries == self.durable_entries and self._committed is None

    @property
    def segment_bytes(self) -> int:
        return sum(segment.length for segment in self.segments)

    @property
    def cut_from(self) -> int | None:
        """The index from which a truncation under way removes; None where none is."""
        return None if self.cut is None else self.cut.first

    def note_cut(self, index: int) -> None:
        """A truncation takes the entries from ``index`` on."""
        next_index = self._next_index or 0
        if self._cut_next == 0:
            self._cut_first = index
        self._cut_first = min(self._cut_first, index)
        self._cut_next = max(self._cut_next, next_index)

    def was_cut(self, index: int) -> bool:
        """Whether an entry with that index was truncated since it was opened."""
        return self._cut_first <= index < self._cut_next

    def clip(self, start: int, stop: int | None) -> tuple[int, int]:
        """The part of ``[start, stop)`` that the log holds."""
        next_index = self._next_index or 0
        stop = next_index if stop is None else min(stop, next_index)
        return max(start, self._first_index), stop

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
        self._first_index, self._next_index = first if next_ is not None else 0, next_
        is_empty = next_ is None or next_ == first
        self._last_log_id = self._durable_last = frontier if is_empty else last_log_id
        self.written_next = next_ or 0
        self.find_tail()

    def find_tail(self) -> None:
        tail = self._usable_tail(self._next_index)
        is_ready = tail is not None and tail.has_room and self.meta.state.first_segment
        self._tail = tail if is_ready else None

    def _usable_tail(self, index: int | None) -> Segment | None:
        """The tail, if records from ``index`` on can be added to it."""
        tail = self.segments[-1] if self.segments else None
        if tail is None or tail.is_sealed or tail.next_id != index or tail.places is None:
            return None
        return tail

    # --- the durable view ------------------------------------------------------------------

    def durable_view(self) -> View:
        if self.left is None:
            self.left = tuple(segment.known() for segment in self.segments[:-1])
        durable = self._durable_last
        frontier = self.last_purged_log_id
        is_empty = durable is None or durable == frontier
        next_ = self._first_index if is_empty else durable.index + 1  # type: ignore[union-attr]
        tail = self.segments[-1].known() if self.segments else None
        is_any = self._next_index is None or (frontier is None and is_empty)
        return View(self._first_index, None if is_any else next_, durable, self.left, tail)

    def stand_on_view(self) -> None:
        """Puts the durable view in the place of memory. Nothing is ever written afterwards."""
        view, cut = self.view, self.cut
        known = [*view.left, view.tail] if view.tail is not None else list(view.left)
        if cut is not None:
            # What a truncation was removing may be zeroed already, and was given up by its caller.
            view = view._replace(next_index=cut.first, last_log_id=cut.last_log_id)
            known = [each for each in known if each.first_id < cut.first]
            if known and known[-1].next_id > cut.first:
                known[-1] = known[-1]._replace(next_id=cut.first, end=cut.end, is_sealed=False)
        committed, last = self.meta.committed, view.last_log_id
        if committed is not None and (last is None or committed.index > last.index):
            self.meta.committed = last  # it was cut with the entries
        segments = [Segment.of(each) for each in known if each.next_id > each.first_id]
        next_index = view.next_index
        self.segments, self.prepared = segments, []
        self.first_ids = [segment.first_id for segment in segments]
        self.recent = Recent(0)
        self.reads = Reads(self.options, segments, self.first_ids)
        self._first_index, self._next_index = view.first_index, next_index
        self._last_log_id = self._durable_last = view.last_log_id
        self.written_next = next_index or 0
        self._unwritten, self._dirty, self._in_flight, self._committed = [], [], None, None
        self.to_seal.clear()
        self.to_unlink.clear()
        self._tail = None
        self.cut = None
        self.appended_bytes, self.appended_entries = self.durable_bytes, self.durable_entries
        self.epoch += 1
        self.is_changing = False

    # --- appending -------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> Need | None:
        """Accepts entries: they are readable at once, and durable after the next commit.

        Raises LogGapError, EntryTooLargeError, ValueError, TypeError, NotPlainError, OSError; or
        returns what is needed first: in each of these cases nothing is changed. Raises
        PoisonError where a write failed half-way (buffered policies only).
        """
        index = self._next_index
        if index is None:
            index = _first_index_of(entries)
        least_term = self._least_term
        tail = self._tail
        if tail is None:
            return self._append_across(entries, index)
        end = tail.end
        is_buffered = self._is_buffered
        if is_buffered:
            is_settled = self.appended_entries == self.durable_entries
        else:
            is_settled = not self._unwritten
        limit = self.options.max_entry_size
        if len(entries) == 1:
            data = encode_one(
                entries[0], index, tail.salt, limit, is_settled=is_settled, least_term=least_term
            )
            parts, offsets, stop = [data], [end], end + len(data)
        else:
            parts, offsets, stop = encode(
                entries, index, tail.salt, end, limit, is_settled=is_settled, least_term=least_term
            )
        if stop > tail.length:
            return self._append_across(entries, index)
        if is_buffered:
            self._write_now(tail, end, parts, stop - end)
        # As _add_to and _added do it, for the path that most appends take.
        count = len(offsets)
        next_index = index + count
        self.is_changing = True
        if is_buffered:
            if not self._dirty or self._dirty[-1] is not tail:
                self._dirty.append(tail)
            self.written_next = next_index
        elif self._unwritten and self._unwritten[-1].segment is tail:
            self._unwritten[-1].parts.extend(parts)
        else:
            self._unwritten.append(_Unwritten(tail, end, parts, is_first=False))
        tail.places.add(offsets, stop)  # type: ignore[union-attr]  # the tail is loaded
        tail.end = stop
        tail.next_id = self._next_index = next_index
        self.appended_entries += count
        self.appended_bytes += stop - end
        self.recent.add(entries, stop - end, self.written_next)
        self.is_changing = False
        return None

    @property
    def _is_settled(self) -> bool:
        """Whether all before what is appended now is durable when that is written."""
        if self._is_buffered:
            return self.appended_entries == self.durable_entries
        # A commit is planned only after the one before it was synced, and takes all that waits.
        return not self._unwritten

    def _add_to(self, segment: Segment, parts: list[bytes], offsets: list[int], stop: int) -> None:
        if self._is_buffered:
            if not (self._dirty and self._dirty[-1] is segment):
                self._dirty.append(segment)
        elif self._unwritten and self._unwritten[-1].segment is segment:
            self._unwritten[-1].parts.extend(parts)
        else:
            is_first = segment.header.is_unused and not segment.count
            self._unwritten.append(_Unwritten(segment, segment.end, parts, is_first))
        assert segment.places is not None
        segment.places.add(offsets, stop)
        segment.end = stop
        segment.next_id += len(offsets)

    def _added(self, entries: Sequence[Entry], index: int, size: int) -> None:
        if self._next_index is None:
            self._first_index = index
        self._next_index = index + len(entries)
        if self._is_buffered:
            self.written_next = self._next_index
        self.appended_entries += len(entries)
        self.appended_bytes += size
        self.recent.add(entries, size, self.written_next)

    def _write_now(self, segment: Segment, offset: int, parts: list[bytes], size: int) -> None:
        """Puts records into the page cache: an append that returned survives kill -9."""
        file = segment.file
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        assert file is not None
        # An interrupt that comes behind the storing finds it set: what was stored and is not in
        # memory would be read behind the next append.
        self.is_changing = True
        is_small = size < _THROUGH_THE_MAP_BYTES and self._dirty and self._dirty[-1] is segment
        if is_small and file.store(offset, data):
            return
        self._carry_out_here(Plan("append", (Write(file, offset, (data,)),), point=0))

    def _carry_out_here(self, plan: Plan) -> None:
        """Leaves ``is_changing`` set where it succeeds: the caller changes memory next."""
        self.is_changing = True
        outcome = carry_out(self.directory, plan)
        if outcome.error is None:
            return
        if outcome.is_refused:
            self.is_changing = False
            raise outcome.error
        raise PoisonError from outcome.error

    def _append_across(self, entries: Sequence[Entry], index: int) -> Need | None:
        """Appends what does not simply fit into the tail. Everything is planned first."""
        sizes = record_sizes(entries, index, self.options.max_entry_size, self._least_term)
        tail = self._usable_tail(index)
        parts, need = self._place(sizes, tail)
        if need is not None:
            is_first_too_small = need.keeps == 0 and self.prepared and not self.segments
            if is_first_too_small and self.meta.state.first_segment:
                # It is about to go, and `meta.hql` names it: no crash must find it missing.
                return Need(name=0)
            return need
        targets = [segment for segment, _, _ in parts if segment is not None]
        if len(targets) > (tail in targets) and len(self.to_seal) >= SEALS_WAITING:
            return Need(is_seal=True)
        if (lacking := next((s for s in targets if not s.has_room), None)) is not None:
            return Need(room=lacking)
        if self.meta.state.first_segment == 0:
            return Need(name=(self.segments or targets)[0].number)
        is_settled = self._is_settled
        encoded: list[tuple[Segment, list[bytes], list[int], int, Sequence[Entry]]] = []
        steps: list[Step] = []
        for segment, first, stop in parts:
            assert segment is not None
            some = entries[first:stop]
            offset = segment.end if segment is tail else DATA_START
            records, offsets, end = encode(
                some,
                index + first,
                segment.salt,
                offset,
                self.options.max_entry_size,
                is_settled=is_settled,
            )
            is_settled = False
            encoded.append((segment, records, offsets, end, some))
            if self._is_buffered:
                if segment is not tail:
                    steps.append(segment.header_step(segment.activated(index + first)))
                assert segment.file is not None
                steps.append(Write(segment.file, offset, tuple(records)))
        if steps:
            self._carry_out_here(Plan("append", tuple(steps), point=0))
        self.is_changing = True
        for segment, records, offsets, end, some in encoded:
            if segment is not tail:
                self._activate(segment, index)
            size = end - segment.end
            self._add_to(segment, records, offsets, end)
            self._added(some, index, size)
            index += len(some)
        self.find_tail()
        self.is_changing = False
        return None

    def _place(
        self, sizes: list[int], tail: Segment | None
    ) -> tuple[list[tuple[Segment | None, int, int]], Need | None]:
        """Which entries go to which segment; or the segments that have to be prepared."""
        parts: list[tuple[Segment | None, int, int]] = []
        lengths: list[int] = []
        keeps = start = place = 0
        target, room = tail, tail.length - tail.end if tail is not None else 0
        for position, size in enumerate(sizes):
            if size > room:
                if position > start:
                    parts.append((target, start, position))
                start = position
                length = max(DATA_START + size, self.options.segment_size)
                is_there = not lengths and place < len(self.prepared)
                if is_there and self.prepared[place].length >= DATA_START + size:
                    target = self.prepared[place]
                    length = target.length
                    keeps = place = place + 1
                else:
                    target = None
                    lengths.append(length)
                room = length - DATA_START
            room -= size
        if start < len(sizes):
            parts.append((target, start, len(sizes)))
        return parts, Need(tuple(lengths), keeps) if lengths else None

    def _activate(self, segment: Segment, first_id: int) -> None:
        assert segment is self.prepared[0]
        del self.prepared[0]
        segment.first_id = segment.next_id = segment.durable_next_id = first_id
        segment.end = segment.durable_end = DATA_START
        if self._is_buffered:
            segment.header = segment.activated(first_id)
        old = self.segments[-1] if self.segments else None
        self.segments.append(segment)
        self.first_ids.append(first_id)
        self.left = None
        self.rollovers += 1
        self._tail_syncs, self._syncs_before = 0, self._tail_syncs
        if old is not None:
            if not old.is_sealed:
                self.to_seal.append(old)
            if old.places is not None:
                old.places.settle(old.end)
            if old.is_loaded:
                self.reads.touch(old)

    def known_log_id(self, index: int) -> LogId | None:
        """The log id of an entry, if it is in memory, or is the purge frontier."""
        for log_id in (self.last_purged_log_id, self.last_log_id):
            if log_id is not None and log_id.index == index:
                return log_id
        if not self._first_index <= index < (self._next_index or 0):
            return None
        recent = self.recent.read(index, index + 1)
        return recent[0].log_id if recent else None

    # --- filling ahead ---------------------------------------------------------------------

    @property
    def is_filling(self) -> bool:
        """Whether segments that are prepared now are to be filled with zeros."""
        return (
            max(self._tail_syncs, self._syncs_before) >= _FILL_FROM_SYNCS
            and not self._is_buffered
            and self.options.fills_ahead
            and self.options.segment_size >= _FILL_FROM_BYTES
            and self.directory.allows_filling
        )

    @property
    def lacks_filling(self) -> bool:
        """Whether what is prepared should give way to a segment that is filled."""
        prepared = self.prepared
        return len(prepared) == 1 and not prepared[0].is_filled and self.is_filling

    # --- committing ------------------------------------------------------------------------

    @property
    def is_committing(self) -> bool:
        return self._in_flight is not None

    @property
    def in_flight_next(self) -> int:
        """The entries below it are durable once the commit under way is."""
        commit = self._in_flight
        return 0 if commit is None else commit.next_index or 0

    def may_be_committed(self, log_id: LogId | None) -> bool:
        """Raises RaftRuleError where it may not be; False where only the disk knows."""
        if log_id is None or not self.options.checks_raft:
            return True
        held = self.known_log_id(log_id.index)
        if held is None and self._first_index <= log_id.index < (self._next_index or 0):
            return False
        check_committed(log_id, held, self.last_log_id)
        return True

    def save_committed(self, log_id: LogId | None) -> None:
        """Has the next commit save the hint; a buffered log puts it into the page cache now."""
        if self._is_buffered:
            step = self.meta.committed_step(log_id)
            self._carry_out_here(Plan("save committed", (step,), point=0))
            self.is_changing = True
            self.meta.committed_saved(log_id)
            self.is_changing = False
        else:
            self._committed = (log_id,)

    def begin_commit(self, now: float) -> Plan | None:
        """The plan that makes durable what was accepted; None where there is nothing to do.

        Older segments come first: a record in a newer one counts only when they are durable.
        """
        if self.is_clean:
            return None
        steps: list[Step] = []
        goals: list[_Goal] = []
        if self._is_buffered:
            for segment in self._dirty:
                self._plan_goal(segment, (), now, steps, goals)
        else:
            for segment, offset, parts, is_first in self._unwritten:
                assert segment.file is not None
                write = Write(segment.file, offset, tuple(parts))
                if is_first:
                    header = segment.activated(segment.first_id)
                    goals.append(_Goal(segment, segment.end, segment.next_id, header, len(steps)))
                    steps += segment.header_step(header), write, Sync(segment.file)
                else:
                    self._plan_goal(segment, (write,), now, steps, goals)
        if self._committed is not None:
            steps.append(self.meta.committed_step(self._committed[0]))
        if goals and now - self._identity_seconds >= IDENTITY_SECONDS:
            files = [self.meta.file, *(goal.segment.file for goal in goals)]
            steps.append(CheckIdentity(tuple(file for file in files if file is not None)))
        # What a buffered log syncs was written before: there a failure cannot be refused.
        plan = Plan("commit", tuple(steps), point=-1 if self._is_buffered else 0)
        commit = _Commit(
            goals,
            self.last_log_id,
            self._next_index,
            self.appended_entries,
            self.appended_bytes,
            now,
            self._committed,
        )
        self.is_changing = True
        self._in_flight = commit
        self._unwritten, self._dirty, self._committed = [], [], None
        self.is_changing = False
        return plan

    def _plan_goal(
        self,
        segment: Segment,
        writes: tuple[Write, ...],
        now: float,
        steps: list[Step],
        goals: list[_Goal],
    ) -> None:
        assert segment.file is not None
        steps += writes
        header, place = None, len(steps)
        if not segment.is_marked and (
            self._is_buffered or segment.header.cut or now - segment.mark_seconds >= MARK_SECONDS
        ):
            # What earlier syncs made durable: it never claims more than is on disk, whatever
            # the order of pages.
            header = segment.marked(segment.durable_next_id, segment.durable_end, is_sealed=False)
            steps.append(replace(segment.header_step(header), is_optional=True))
        steps.append(Sync(segment.file))
        goals.append(_Goal(segment, segment.end, segment.next_id, header, place))

    def committed(self, outcome: Outcome) -> None:
        """The commit under way was carried out."""
        commit = self._in_flight
        assert commit is not None
        self.is_changing = True
        for segment, end, next_id, header, place in commit.goals:
            segment.durable_end, segment.durable_next_id = end, next_id
            if header is not None and outcome.values[place]:
                segment.header = header
                segment.mark_seconds = commit.seconds
        if commit.goals:
            self._tail_syncs += 1
            self.durable_entries, self.durable_bytes = commit.entries, commit.bytes
            self._durable_last = commit.last_log_id
            self.written_next = max(self.written_next, commit.next_index or 0)
            if commit.seconds - self._identity_seconds >= IDENTITY_SECONDS:
                self._identity_seconds = commit.seconds
            if len(commit.goals) > 1 or self.left is None:
                self.left = None
            self.recent.trim(self.written_next)
        if commit.committed is not None:
            self.meta.committed_saved(commit.committed[0])
        self._in_flight = None
        self.view = self.durable_view()
        self.is_changing = False

    def retreat(self) -> None:
        """The commit under way was refused, before a byte was stored: all that was accepted and
        is not durable goes, what was accepted after it too.
        """
        self.is_changing = True
        self._in_flight, self._unwritten, self._dirty, self._committed = None, [], [], None
        back: list[Segment] = []
        while self.segments and self.segments[-1].header.is_unused:
            segment = self.segments.pop()
            self.first_ids.pop()
            segment.first_id = segment.next_id = segment.durable_next_id = 0
            segment.end = segment.durable_end = DATA_START
            segment.places = Places()
            back.insert(0, segment)
        self.prepared[:0] = back
        if self.segments:
            tail = self.segments[-1]
            if tail.places is not None:
                tail.places.cut(tail.durable_next_id - tail.first_id)
            tail.end, tail.next_id = tail.durable_end, tail.durable_next_id
            back.append(tail)
        self.to_seal = deque(s for s in self.to_seal if s not in back)
        self.reads.forget(back)
        self.left = None
        self.appended_entries, self.appended_bytes = self.durable_entries, self.durable_bytes
        last = self._durable_last
        next_index = last.index + 1 if last is not None else None
        self.recent.cut(next_index or 0)
        self.set_ends(last)
        self.epoch += 1
        self.is_changing = False

    def release(self) -> None:
        """Lets go of every file."""
        for segment in [*self.segments, *self.prepared]:
            segment.release()
        self.meta.release()
        self.left = None
        self._unwritten, self._in_flight = [], None
        self.view = self.view._replace(left=(), tail=None)


def _first_index_of(entries: Sequence[Entry]) -> int:
    first = entries[0]
    if type(first) is not Entry or type(first.index) is not int or not 0 <= first.index <= U64_MAX:
        raise NotPlainError
    return first.index
