"""The log: the ordered segments and ``meta.hql``. Append, sync, read, truncate, purge.

Knows no event loop and no thread. Memory is changed only by the thread that calls; what may
block is never done here but handed out: an operation that needs the disk is a generator that
yields the blocking work, to be run in another thread, and goes on when that is done
(:func:`drive` runs one on the spot). Between an operation's first step and its last no other
operation may run, except appending during a sync or a preparation, and reading always.
"""

from __future__ import annotations

import contextlib
import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ._files import Files, SyncError
from ._format import (
    DATA_START,
    SegmentHeader,
    record_bytes,
    segment_name,
)
from ._meta import Meta
from ._reads import Options, Reads
from ._segment import (
    NotPlainError,
    PlainEntry,
    Segment,
    encode,
    encode_one,
    encode_plain,
    refusal,
    zero_on_disk,
)
from ._types import Entry, LogId, LogState, Vote
from .errors import LogRangeError

__all__ = ["Log", "Options", "Work", "drive"]

T = TypeVar("T")
#: an operation: what it yields blocks and is run elsewhere, its result is sent back
Work = Generator[Callable[[], Any], Any, T]


def drive(work: Work[T]) -> T:
    """Runs an operation to its end in this thread."""
    try:
        step = next(work)
        while True:
            try:
                result = step()
            except BaseException as error:
                step = work.throw(error)
            else:
                step = work.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


class Lacking(NamedTuple):
    """A segment that must be prepared before an append can be written."""

    #: its place among the prepared ones; a smaller one there is replaced
    place: int
    length: int


#: what a sync makes durable of one segment: up to where, the next id there, and whether another
#: segment follows
Goal = tuple[Segment, int, int, bool]


class Log:
    """See the module. Built by ``_recovery.open_log``."""

    def __init__(
        self,
        files: Files,
        directory: str,
        options: Options,
        meta: Meta,
        segments: list[Segment],
        prepared: list[Segment],
        last_log_id: LogId | None,
    ) -> None:
        self._files = files
        self.directory = directory
        self.options = options
        self.meta = meta
        #: ascending; the last one is the tail, the only one that records are added to
        self.segments = segments
        self._first_ids = [segment.first_id for segment in segments]
        #: published, without records, in the order in which they will be used
        self.prepared = prepared
        #: counts truncations: a read that overlapped one must be repeated
        self.epoch = 0
        # counted since it was opened
        self.appended_entries = self.synced_entries = 0
        self.appended_bytes = self.synced_bytes = 0
        self._max_entry_size = options.max_entry_size
        self._is_buffered = options.is_buffered
        # The tail, while entries can simply be added to it; None where an append has to see.
        self._tail: Segment | None = None
        self._dirty: list[Segment] = []
        #: what is kept at hand for reading
        self.reads = Reads(files, options, segments, self._first_ids)
        self._first_index: int | None = None
        self._next_index: int | None = None
        self._last_log_id: LogId | None = None
        # the last entry, or its log id, that is durable
        self._durable: Entry | LogId | None = None
        self._set_ends(last_log_id)
        self._durable = self._last_log_id

    # --- what the log holds ----------------------------------------------------------------

    @property
    def last_purged_log_id(self) -> LogId | None:
        return self.meta.state.last_purged

    @property
    def last_log_id(self) -> LogId | None:
        """The last entry's; the purge frontier where there is none."""
        newest = self.reads.newest
        return newest.log_id if newest is not None else self._last_log_id

    @property
    def last_durable_log_id(self) -> LogId | None:
        """The last log id whose entry no crash can take any more."""
        durable = self._durable
        return durable.log_id if isinstance(durable, Entry) else durable

    @property
    def state(self) -> LogState:
        return LogState(self.last_purged_log_id, self.last_log_id)

    @property
    def first_index(self) -> int:
        """The first entry's index; where there is none, the one that an append would have."""
        return self._first_index or 0

    @property
    def next_index(self) -> int | None:
        """What the next entry's index must be; None where it may be any."""
        return self._next_index

    @property
    def count(self) -> int:
        """How many entries it holds."""
        return 0 if self._next_index is None else self._next_index - self.first_index

    @property
    def unsynced_bytes(self) -> int:
        """Record bytes that no sync has made durable yet."""
        return self.appended_bytes - self.synced_bytes

    @property
    def segment_bytes(self) -> int:
        return sum(segment.length for segment in self.segments)

    def _set_ends(self, last_log_id: LogId | None) -> None:
        """Finds both ends anew after anything but an append."""
        frontier = self.last_purged_log_id
        first = self.segments[0].first_id if self.segments else None
        next_ = None
        if last_log_id is not None and (frontier is None or last_log_id.index > frontier.index):
            next_ = last_log_id.index + 1
        if frontier is not None:
            first = max(first or 0, frontier.index + 1)
            next_ = next_ or frontier.index + 1
            first = min(first, next_)
        if next_ is None:
            first = None
        self._first_index, self._next_index = first, next_
        self._tail = self._usable_tail(next_) if next_ is not None else None
        is_empty = next_ is None or next_ == first
        self._last_log_id = frontier if is_empty else last_log_id

    # --- appending -------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> Lacking | None:
        """Adds entries, which are readable at once and durable after the next sync.

        Raises LogGapError, EntryTooLargeError, ValueError, NotPlainError; or returns what has
        to be prepared first: in each of these cases nothing is changed. Raises SyncError where
        the write itself failed.
        """
        index = self._next_index
        if index is None:
            index = _first_index_of(entries)
        tail = self._tail
        if tail is not None:
            end = tail.end
            if len(entries) == 1:
                data = encode_one(entries[0], index, tail.salt, self._max_entry_size)
                offsets = [end]
            else:
                data, offsets = encode(entries, index, tail.salt, end, self._max_entry_size)
            size = len(data)
            if end + size <= tail.length:
                if not tail.is_dirty:
                    self._dirty.append(tail)
                tail.extend(data, offsets, is_through_map=self._is_buffered)
                # as _added does, for the path that most appends take
                count = len(offsets)
                self._next_index = index + count
                self.appended_entries += count
                self.appended_bytes += size
                self.reads.add(entries, size)
                return None
        return self._append_across(entries, index)

    def append_plain(self, entries: Sequence[PlainEntry]) -> Lacking | None:
        """As ``append``, of entries whose indexes, types and sizes the caller vouches for.

        It spares making an Entry of each, where none are kept in memory for reading.
        """
        tail = self._tail
        if tail is not None and not self.options.cache_bytes and entries[0][1] == self._next_index:
            with contextlib.suppress(struct.error):
                data, offsets = encode_plain(entries, tail.salt, tail.end)
                if tail.end + len(data) <= tail.length:
                    if not tail.is_dirty:
                        self._dirty.append(tail)
                    tail.extend(data, offsets, is_through_map=self._is_buffered)
                    self._next_index = tail.next_id
                    self.appended_entries += len(offsets)
                    self.appended_bytes += len(data)
                    self.reads.add([_entry_of(entries[-1])], len(data))
                    return None
        return self.append(list(map(_entry_of, entries)))

    def _append_across(self, entries: Sequence[Entry], index: int) -> Lacking | None:
        """Appends what needs at least one further segment."""
        sizes = self._record_sizes(entries, index)
        tail = self._usable_tail(index)
        room = tail.length - tail.end if tail is not None else 0
        # Everything is planned before anything is written: an append that meets a full disk
        # leaves nothing behind.
        parts: list[tuple[Segment | None, int, int]] = []
        start, place = 0, 0
        target = tail
        for position, size in enumerate(sizes):
            if size > room:
                if position > start:
                    parts.append((target, start, position))
                start = position
                length = DATA_START + size
                if place == len(self.prepared) or self.prepared[place].length < length:
                    return Lacking(place, max(length, self.options.segment_size))
                target = self.prepared[place]
                room = target.length - DATA_START
                place += 1
            room -= size
        parts.append((target, start, len(sizes)))
        total = 0
        for part, first, stop in parts:
            assert part is not None
            some = entries[first:stop]
            if part is not tail:
                self._activate(part, index + first)
            data, offsets = encode(some, index + first, part.salt, part.end, self._max_entry_size)
            if not part.is_dirty:
                self._dirty.append(part)
            part.extend(data, offsets, is_through_map=self._is_buffered)
            total += len(data)
        self._tail = self.segments[-1]
        self._added(entries, index, total)
        return None

    def _usable_tail(self, index: int) -> Segment | None:
        """The tail, if records from ``index`` on can be added to it."""
        tail = self.segments[-1] if self.segments else None
        return tail if tail and not tail.is_sealed and tail.next_id == index else None

    def _record_sizes(self, entries: Sequence[Entry], index: int) -> list[int]:
        sizes = []
        for expected, entry in enumerate(entries, index):
            error = refusal(entry, expected, self._max_entry_size)
            if error is not None:  # before anything is written
                raise error
            sizes.append(record_bytes(len(entry.payload)))
        return sizes

    def _activate(self, segment: Segment, first_id: int) -> None:
        assert segment is self.prepared[0]
        del self.prepared[0]
        old = self.segments[-1] if self.segments else None
        segment.activate(first_id)
        self.segments.append(segment)
        self._first_ids.append(first_id)
        if old is not None:
            self._leave(old)

    def _leave(self, tail: Segment) -> None:
        """Has the next sync seal the segment that was the tail until now."""
        if not tail.is_sealed and not tail.is_dirty:
            tail.is_dirty = True
            self._dirty.append(tail)
        if tail.file is not None:
            self.reads.touch(tail)

    def _added(self, entries: Sequence[Entry], index: int, size: int) -> None:
        if self._next_index is None:
            self._first_index = index
        self._next_index = index + len(entries)
        self.appended_entries += len(entries)
        self.appended_bytes += size
        self.reads.add(entries, size)

    # --- preparing -------------------------------------------------------------------------

    def prepare(self, lacking: Lacking | None = None) -> Work[None]:
        """Publishes a segment to be used later; may run beside appends and syncs.

        An OSError other than a SyncError leaves everything as it was.
        """
        place, length = lacking or Lacking(len(self.prepared), self.options.segment_size)
        last = self.prepared[-1] if self.prepared else self.segments[-1] if self.segments else None
        if place < len(self.prepared):
            number = self.prepared[place].number  # replaced, in one step, by the rename
        else:
            number = last.number + 1 if last is not None else max(self.meta.state.first_segment, 1)
        segment = yield partial(self._publish, number, length)
        self.prepared[place : place + 1] = [segment]

    def _publish(self, number: int, length: int) -> Segment:
        path = os.path.join(self.directory, segment_name(number))
        header = SegmentHeader(self._files.environment.getrandbits(32), length)
        file = self._files.publish(path, length, header.pack())
        if self.meta.state.first_segment == 0:
            # before anything can be acknowledged: from now on segments must be there
            self.meta.save(replace(self.meta.state, first_segment=number))
        return Segment(number, path, header, file)

    # --- syncing ---------------------------------------------------------------------------

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty)

    def sync(self) -> Work[None]:
        """Makes durable what was written before."""
        tail = self.segments[-1] if self.segments else None
        goals: list[Goal] = [(s, s.end, s.next_id, s is not tail) for s in self._dirty]
        for segment in self._dirty:
            segment.check_not_removed()
            segment.write_header()
            segment.is_dirty = False
        self._dirty = []
        newest, last = self.reads.newest, self._last_log_id
        entries, size = self.appended_entries, self.appended_bytes
        yield partial(_sync_on_disk, goals)
        for segment, end, next_id, is_followed in goals:
            segment.durable_end, segment.durable_next_id = end, next_id
            segment.is_sealed = is_followed
        self.synced_entries, self.synced_bytes = entries, size
        self._durable = newest if newest is not None else last

    # --- reading ---------------------------------------------------------------------------

    def clip(self, start: int, stop: int | None) -> tuple[int, int]:
        """The part of ``[start, stop)`` that the log holds."""
        next_index = self._next_index or 0
        stop = next_index if stop is None else min(stop, next_index)
        return max(start, self.first_index), stop

    # --- truncating ------------------------------------------------------------------------

    def truncate(self, index: int) -> Work[None]:
        """Removes ``[index, ∞)``, durably. The log is clean, and nothing is being prepared."""
        frontier = self.last_purged_log_id
        if frontier is not None and index <= frontier.index:
            raise LogRangeError(
                f"cannot truncate from {index} on: the log was purged up to {frontier.index}"
            )
        if self._next_index is None or index >= self._next_index:
            return
        index = max(index, self.first_index)
        position = bisect_right(self._first_ids, index) - 1
        kept = self.segments[position]
        removed = self.segments[position + 1 :]
        if removed:
            removed += self.prepared
        last = yield partial(self._open_for_cut, position, index)

        end, old_end, was_sealed = kept.span(index, index + 1)[0], kept.end, kept.is_sealed
        self.epoch += 1
        if removed:
            del self.segments[position + 1 :], self._first_ids[position + 1 :]
            self.prepared = []
        self.reads.forget_segments([*removed, kept])
        assert kept.offsets is not None
        kept.offsets = kept.offsets[: index - kept.first_id]  # a reader may have the old one
        kept.end = kept.durable_end = end
        kept.next_id = kept.durable_next_id = index
        kept.is_sealed = False
        if not kept.count:  # it can begin with any id now, like one that was never used
            del self.segments[position:], self._first_ids[position:]
            self.prepared.insert(0, kept)
        self._set_ends(last)
        self.reads.forget_entries(index if self.count else 0)
        self._durable = self.last_log_id
        try:
            yield partial(self._cut_on_disk, kept, removed, old_end, was_sealed=was_sealed)
        except OSError as error:  # memory and disk may differ now
            raise SyncError(*error.args) from error

    def truncate_all(self) -> Work[None]:
        """Removes every entry that is not purged."""
        if self.count:
            yield from self.truncate(self.first_index)

    def _open_for_cut(self, position: int, index: int) -> LogId | None:
        """Makes the segment writable again; returns the log id of the entry before."""
        kept = self.segments[position]
        kept.load(self._files)
        if kept.is_sealed:
            kept.file = self._files.open(kept.path, writable=True)
        if index == self.first_index:
            return None
        if index > kept.first_id:
            return kept.read(self._files, index - 1, index)[0].log_id
        previous = self.segments[position - 1]
        return previous.read(self._files, index - 1, index)[0].log_id

    def _cut_on_disk(
        self, kept: Segment, removed: list[Segment], old_end: int, *, was_sealed: bool
    ) -> None:
        # The order matters: no crash may leave a truncated record that a later scan takes for
        # a valid one, or make an honest truncation look like damage.
        file = kept.file
        assert file is not None
        if was_sealed:  # a sealed segment must have a follower: open it before those go
            kept.write_mark(kept.next_id, kept.end, is_sealed=False)
            file.sync()
        for segment in reversed(removed):
            self._files.unlink(segment.path)
            segment.release()
        if removed:
            self._files.sync_directory(self.directory)
        if not was_sealed:  # lower the mark before the bytes below it go
            kept.write_mark(kept.next_id, kept.end, is_sealed=False)
            file.sync()
        zero_on_disk(file, kept.end, old_end)
        file.sync()

    # --- purging ---------------------------------------------------------------------------

    def purge(self, log_id: LogId) -> Work[Callable[[], None]]:
        """Removes ``[.., log_id.index]``. The log is clean, and nothing is being prepared.

        Durable when the generator ends; the files are still there, and unlinking them is what
        it returns, to be run in any thread at any later time.
        """
        frontier = self.last_purged_log_id
        if frontier is not None and log_id.index <= frontier.index:
            return _nothing
        next_index = self._next_index
        is_beyond = next_index is None or log_id.index >= next_index
        if is_beyond:
            # The tail is left only for a segment that exists: one file must always be there.
            count = len(self.segments) if self.prepared else len(self.segments) - 1
        else:
            count = bisect_right(self._first_ids, log_id.index + 1) - 1
        count = max(count, 0)
        remaining = [*self.segments[count:], *self.prepared]
        last = self.last_log_id
        # The frontier is durable before the first unlink.
        state = replace(
            self.meta.state,
            last_purged=log_id,
            first_segment=remaining[0].number if remaining else self.meta.state.first_segment,
        )
        yield partial(self.meta.save, state)

        removed = self.segments[:count]
        del self.segments[:count], self._first_ids[:count]
        self.reads.forget_segments(removed)
        self._set_ends(None if is_beyond else last)
        if not self.count:
            self.reads.forget_entries(0)
            self._durable = self.last_log_id
        return partial(self._unlink, removed) if removed else _nothing

    def _unlink(self, segments: list[Segment]) -> None:
        # Oldest first. No sync: a segment that comes back is known by its number to be purged.
        for segment in segments:
            self._files.unlink(segment.path)
            segment.release()

    # --- the rest --------------------------------------------------------------------------

    def save_vote(self, vote: Vote) -> Work[None]:
        yield partial(self.meta.save, replace(self.meta.state, vote=vote))

    def close(self) -> Work[None]:
        """Writes the final mark of a clean log and closes every file."""
        yield self._close_on_disk

    def _close_on_disk(self) -> None:
        try:
            tail = self.segments[-1] if self.segments else None
            if tail is not None and tail.file is not None and not tail.is_sealed:
                tail.write_header()
                tail.file.sync()
            self.meta.sync()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes every file as it is."""
        for segment in [*self.segments, *self.prepared]:
            if segment.file is not None:
                segment.release()
        self.meta.close()


def _entry_of(plain: PlainEntry) -> Entry:
    payload, index, term = plain
    return Entry(term, index, payload)


def _first_index_of(entries: Sequence[Entry]) -> int:
    if type(entries[0]) is not Entry:
        raise NotPlainError
    return entries[0].index


def _sync_on_disk(goals: Sequence[Goal]) -> None:
    # Older segments first: a record in a newer one counts only when they are durable.
    for segment, end, next_id, is_followed in goals:
        file = segment.file
        assert file is not None
        file.sync()
        if is_followed:
            # Its records are durable and its follower exists under its name: seal it.
            segment.write_mark(next_id, end, is_sealed=True)
            file.sync()
            file.freeze()


def _nothing() -> None:
    pass
