"""Truncating a log: which bytes go in which order, and what the owner then changes in one step.

Generators of plans, as those of ``_operations``: for the owner of a log that is clean (all of it
durable), with no other plan on the lane and no chore beside it. Who waits for the truncation, and
how readers look at bytes that are being zeroed, is no business of this module: it says where the
cut is (``Log.cut``) for as long as they must know.

The order is what makes a crash at any place harmless. First the new end becomes durable as a
*mark*, then the bytes behind it go: the other way round, a crash in between would leave a mark
behind the last record, which is what damage looks like. Files go from the last to the first, so
that those left have no gap in their numbers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import replace
from typing import NamedTuple

from . import _said
from ._files import File
from ._format import DATA_START, SegmentHeader, segment_name
from ._log import Log
from ._places import Places
from ._plans import Plan, Read, Step, Sync, SyncDirectory, Unlink, Work, Write, Zero
from ._records import hop
from ._segment import Extent, Segment, damage
from ._types import LogId
from ._view import Cut
from .errors import LogRangeError

__all__ = ["truncate", "truncate_after"]


def truncate(log: Log, index: int) -> Work[None]:
    """Removes ``[index, ∞)``, durably. The log is clean, and no housekeeping is under way."""
    frontier = log.last_purged_log_id
    if frontier is not None and index <= frontier.index:
        raise LogRangeError(
            f"cannot truncate from {index} on: the log was purged up to {frontier.index}",
            index=index,
            first_index=log.first_index,
            last_log_id=log.last_log_id,
        )
    if log.next_index is None or index >= log.next_index:
        return
    index = max(index, log.first_index)
    position = bisect_right(log.first_ids, index) - 1
    if log.segments[position].first_id == index:
        position -= 1  # that one goes as a whole
    if position < 0:
        yield from _remove_all(log)
    else:
        yield from _remove_behind(log, position, index)


def truncate_after(log: Log, log_id: LogId | None) -> Work[None]:
    """Keeps ``log_id`` and what is before it; None: removes every entry that is not purged."""
    if log_id is not None:
        yield from truncate(log, log_id.index + 1)
    elif log.count:
        yield from truncate(log, log.first_index)


class _End(NamedTuple):
    """Where a segment will end, and what must be read to know it."""

    file: File
    #: of its records, those that go included
    places: Places
    offset: int
    #: of the last entry that stays; None where all that is left was purged
    last: LogId | None


def _find_end(log: Log, kept: Segment, index: int) -> Work[_End]:
    """Where ``kept`` ends once ``index`` is gone. Changes nothing."""
    file, places = kept.file, kept.places
    if file is None or places is None or kept.is_sealed:
        # A sealed one may be open for reading only, and the plan writes it.
        outcome = yield Plan("load", (kept.load_step(is_writable=True),))
        file, located = outcome.values[0]
        places = located if places is None else places
        if len(places) != kept.count:
            why = "not all of its records can be found"
            raise damage(kept.path, DATA_START, kept.first_id, kept.next_id - 1, why)
    record = index - 1 - kept.first_id  # the last one that stays
    end, further = kept.end, 0
    if index < kept.next_id:
        end, further = places.before(record + 1)
    is_purged = index == log.first_index
    if is_purged and not further:
        return _End(file, places, end, None)
    start, skip = places.before(record)
    stop = places.behind(record + 1, kept.end)
    data = file.read_cached(start, stop - start)
    if data is None:
        outcome = yield Plan("read", (Read(file, start, stop - start),))
        data = outcome.values[0]
    behind = hop(data, skip + 1)
    if not is_purged:
        # The log must not end with an entry that cannot be read; it proves where it ends as well.
        extent = Extent(file, kept.salt, index - 1, index, start, stop, skip)
        return _End(file, places, start + behind, extent.decode(data)[0].log_id)
    if data[behind : behind + 8] != index.to_bytes(8, "big"):
        # Nobody reads purged entries, but here their lengths say where the log goes on.
        why = "the lengths of purged entries lead astray"
        raise damage(kept.path, start, index - 1 - skip, kept.next_id - 1, why)
    return _End(file, places, start + behind, None)


def _remove_behind(log: Log, position: int, index: int) -> Work[None]:
    """A truncation that keeps the segments up to ``position``, and of that one a part or all."""
    kept, removed = log.segments[position], log.segments[position + 1 :]
    end = yield from _find_end(log, kept, index)
    header, steps, point = _steps_behind(log, kept, removed, index, end)
    cut = Cut(index, end.offset, end.last or log.last_purged_log_id)
    committed = yield from _cut(log, cut, steps, point)

    log.is_changing = True
    log.epoch += 1
    log.note_cut(index)
    if removed:
        del log.segments[position + 1 :], log.first_ids[position + 1 :]
        log.prepared = []
        log.stale.clear()
    log.reads.forget([*removed, kept])
    kept.file, kept.header, kept.is_sealed = end.file, header, False
    kept.places = end.places
    kept.places.cut(index - kept.first_id)
    kept.end = kept.durable_end = end.offset
    kept.next_id = kept.durable_next_id = index
    if log.options.is_buffered and log.directory.allows_maps:
        end.file.map()
    log.to_seal = deque(s for s in log.to_seal if s.number < kept.number)
    log.left = None
    log.recent.cut(index)
    log.set_ends(end.last)
    if committed is not None:
        log.meta.committed_saved(committed[0])
    log.view = log.durable_view()
    log.cut = None  # not before the view is without what was cut
    log.is_changing = False
    _said.truncated(log.directory.path, index, log.last_log_id)


def _steps_behind(
    log: Log, kept: Segment, removed: list[Segment], index: int, end: _End
) -> tuple[SegmentHeader, list[Step], int]:
    """The header of ``kept`` after them, the steps, and their point of no return.

    The order matters: no crash may leave a truncated record that a later scan takes for a valid
    one, or make an honest truncation look like damage.
    """
    steps: list[Step] = []
    header = kept.header
    if kept.is_sealed:  # a sealed segment must have a follower: open it before those go
        header = replace(header, flags=0)
        steps += Write(end.file, 0, (header.pack(),)), Sync(end.file)
    # An open segment with followers says the same as a sealed one, so up to here a failure is a
    # refusal.
    point = len(steps)
    if removed:
        # Numbers must have no gap, so what is prepared goes with the segments before it.
        gone = [segment.number for segment in (*removed, *log.prepared)] + log.stale
        steps += [Unlink(segment_name(number)) for number in sorted(set(gone), reverse=True)]
        # Durable before the kept one is cut: records of a follower that came back would be
        # behind a gap.
        steps.append(SyncDirectory())
    if end.offset < kept.end:  # lower the mark and note the cut before the bytes behind it go
        header = kept.marked(index, end.offset, is_sealed=False, cut=end.offset)
        steps += Write(end.file, 0, (header.pack(),)), Sync(end.file)
        steps += Zero(end.file, end.offset, kept.end), Sync(end.file)
    return header, steps, point


def _remove_all(log: Log) -> Work[None]:
    """A truncation that keeps nothing: no segment is needed, durably, before the first goes."""
    state = replace(log.meta.state, first_segment=0)
    gone = [segment.number for segment in (*log.segments, *log.prepared)] + log.stale
    steps: list[Step] = [*log.meta.steps(state)]
    steps += [Unlink(segment_name(number)) for number in sorted(set(gone), reverse=True)]
    steps.append(SyncDirectory())
    cut = Cut(log.first_index, DATA_START, log.last_purged_log_id)
    committed = yield from _cut(log, cut, steps, 0)

    log.is_changing = True
    log.epoch += 1
    log.note_cut(log.first_index)
    log.meta.saved(state)
    log.reads.forget(log.segments)
    log.segments.clear()
    log.first_ids.clear()
    log.prepared = []
    log.stale.clear()
    log.to_seal.clear()
    log.left = None
    log.recent.clear()
    log.set_ends(None)
    if committed is not None:
        log.meta.committed_saved(committed[0])
    log.view = log.durable_view()
    log.cut = None
    log.is_changing = False
    _said.truncated(log.directory.path, cut.first, log.last_log_id)


def _cut(log: Log, cut: Cut, steps: list[Step], point: int) -> Work[tuple[LogId | None] | None]:
    """Readers are warned while bytes of entries that they may be shown are zeroed.

    Returns the committed log id, as a tuple of one, if that is cut with the entries.
    """
    saved = log.meta.committed
    committed = None
    if saved is not None and saved.index >= cut.first:
        committed = (cut.last_log_id,)
        steps.append(log.meta.committed_step(committed[0]))
    log.cut = cut
    try:
        yield Plan("truncate", tuple(steps), point)
    except GeneratorExit:  # refused: nothing was zeroed
        log.cut = None
        raise
    return committed
