"""Appending to a log: entries are judged, encoded, and added to the tail; or it is said what is
needed first.

For the owner of the log. Everything is planned before anything is changed; what an append lacks
is returned as a :class:`Need`, and somebody else has it done. Most appends fit into the tail:
those take the short way, in :func:`append` itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from ._entry_rules import NotPlainError, record_sizes
from ._format import DATA_START, ENTRY_HEAD_BYTES, RECORD_HEAD_BYTES, SETTLED, U64_MAX
from ._log import Log
from ._plans import Plan, Step, Write
from ._records import encode, encode_one
from ._segment import Segment
from ._types import Entry

__all__ = ["SEALS_BEFORE_A_SYNC", "SEALS_WAITING", "Need", "append"]

#: so many segments may wait for their seal before a roll-over waits: they are scanned at open
SEALS_WAITING = 4
#: from so many on a sync is wanted, which they wait for: before a roll-over has to wait
SEALS_BEFORE_A_SYNC = 2
# Smaller pieces of a dirty tail are stored through the map: no system call. Larger ones would
# take a page fault for each page.
_THROUGH_THE_MAP_BYTES = 4096
# A larger payload is not copied to be one piece with the head of its record.
_WHOLE_BYTES = 64 << 10
_NO_NODE = 0


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


class _Part(NamedTuple):
    """Entries ``[first, stop)`` of a batch, for one segment; None: it has to be prepared."""

    segment: Segment | None
    first: int
    stop: int


def append(log: Log, entries: Sequence[Entry]) -> Need | None:
    """Accepts entries: they are readable at once, and durable after the next commit.

    Raises LogGapError, EntryTooLargeError, ValueError, TypeError, NotPlainError, OSError; or
    returns what is needed first: in each of these cases nothing is changed. Raises PoisonError
    where a write failed half-way (buffered policies only).
    """
    if len(entries) == 1 and _append_one(log, entries):
        return None
    index = log.next_index
    if index is None:
        index = _first_index_of(entries)
    tail = log.tail
    if tail is None:
        return _append_across(log, entries, index)
    parts, offsets, stop = encode(
        entries,
        index,
        tail.salt,
        tail.end,
        log.max_entry_size,
        is_settled=log.is_settled,
        least_term=log.least_term,
    )
    if stop > tail.length:
        return _append_across(log, entries, index)
    if log.unsynced.is_buffered:
        assert tail.file is not None
        # survives kill -9 from here on
        is_small = stop - tail.end <= _WHOLE_BYTES  # then one copy is quicker than many parts
        log.write_here(tail.file, tail.end, (b"".join(parts),) if is_small else parts)
    log.is_changing = True
    log.added(tail, entries, parts, offsets, stop)
    log.is_changing = False
    return None


def _append_one(log: Log, entries: Sequence[Entry]) -> bool:
    """The lean way, for one plain entry that fits into the tail and has the term of the entry
    before it; False, with nothing done, for any other. Does as ``append`` does.
    """
    tail, unsynced = log.tail, log.unsynced
    entry = entries[0]
    if tail is None or type(entry) is not Entry:
        return False
    term, index, payload, node_id = entry
    if (
        index != log.next_index
        or type(index) is not int
        or type(payload) is not bytes
        or term is not log.usual_term
        or node_id is not _NO_NODE
    ):
        return False
    length = ENTRY_HEAD_BYTES + len(payload)
    size = RECORD_HEAD_BYTES + length
    end = tail.end
    stop = end + size
    if stop > tail.length or len(payload) > log.max_entry_size or size > _WHOLE_BYTES:
        return False
    unwritten, is_buffered = unsynced.unwritten, unsynced.is_buffered
    if log.appended_entries == log.durable_entries if is_buffered else not unwritten:
        length |= SETTLED
    try:
        data = encode_one(index, length, term, node_id, payload, tail.salt)
    except struct.error:  # past the last index
        return False
    if is_buffered:
        dirty = unsynced.dirty
        if size >= _THROUGH_THE_MAP_BYTES or not dirty or dirty[-1] is not tail:
            return False
        # An interrupt that comes behind the storing finds it set: what was stored and is not in
        # memory would be read behind the next append.
        log.is_changing = True
        if not tail.file.store(end, data):  # type: ignore[union-attr]  # it is open
            log.is_changing = False
            return False
        log.written_next = index + 1
    else:
        log.is_changing = True
        if unwritten and unwritten[-1].segment is tail:
            unwritten[-1].parts.append(data)
        else:
            unsynced.add(tail, end, [data], is_first=False)
    tail.places.add_one(end, stop)  # type: ignore[union-attr]  # the tail is loaded
    tail.end = stop
    tail.next_id = log.next_index = index + 1
    log.appended_entries += 1
    log.appended_bytes += size
    log.recent.add(entries, size, log.written_next)
    log.is_changing = False
    return True


def _first_index_of(entries: Sequence[Entry]) -> int:
    first = entries[0]
    if type(first) is not Entry or type(first.index) is not int or not 0 <= first.index <= U64_MAX:
        raise NotPlainError
    return first.index


def _append_across(log: Log, entries: Sequence[Entry], index: int) -> Need | None:
    """Accepts entries that need more than the tail; or what they lack."""
    options = log.options
    sizes = record_sizes(entries, index, options.max_entry_size, log.least_term)
    tail = log.usable_tail(index)
    parts, need = _place(log, sizes, tail)
    if need is None:
        need = _lacking(log, parts, tail)
    if need is not None:
        return need
    is_settled = log.is_settled
    encoded: list[tuple[Segment, list[bytes], list[int], int, Sequence[Entry]]] = []
    steps: list[Step] = []
    id_ = index
    for segment, first, stop in parts:
        assert segment is not None
        some = entries[first:stop]
        offset = segment.end if segment is tail else DATA_START
        records, offsets, end = encode(
            some, id_, segment.salt, offset, options.max_entry_size, is_settled=is_settled
        )
        is_settled = False
        encoded.append((segment, records, offsets, end, some))
        if options.is_buffered:
            if segment is not tail:
                steps.append(segment.header_step(segment.activated(id_)))
            assert segment.file is not None
            steps.append(Write(segment.file, offset, tuple(records)))
        id_ += len(some)
    if steps:
        log.carry_out_here(Plan("append", tuple(steps), point=0))
    log.is_changing = True
    for segment, records, offsets, end, some in encoded:
        if segment is not tail:
            _activate(log, segment, index)
        log.added(segment, some, records, offsets, end)
        index += len(some)
    log.find_tail()
    log.is_changing = False
    return None


def _lacking(log: Log, parts: list[_Part], tail: Segment | None) -> Need | None:
    """What is needed before the entries can go where they were placed."""
    targets = [part.segment for part in parts if part.segment is not None]
    if len(targets) > (tail in targets) and len(log.to_seal) >= SEALS_WAITING:
        return Need(is_seal=True)
    if (lacking := next((s for s in targets if not s.has_room), None)) is not None:
        return Need(room=lacking)
    if log.meta.state.first_segment == 0:
        return Need(name=(log.segments or targets)[0].number)
    return None


def _place(log: Log, sizes: list[int], tail: Segment | None) -> tuple[list[_Part], Need | None]:
    """Which entries go to which segment; or the segments that have to be prepared."""
    parts: list[_Part] = []
    lengths: list[int] = []
    prepared = log.prepared
    keeps = start = place = 0
    target, room = tail, tail.length - tail.end if tail is not None else 0
    for position, size in enumerate(sizes):
        if size > room:
            if position > start:
                parts.append(_Part(target, start, position))
            start = position
            length = max(DATA_START + size, log.options.segment_size)
            is_there = not lengths and place < len(prepared)
            if is_there and prepared[place].length >= DATA_START + size:
                target = prepared[place]
                length = target.length
                keeps = place = place + 1
            else:
                target = None
                lengths.append(length)
            room = length - DATA_START
        room -= size
    if start < len(sizes):
        parts.append(_Part(target, start, len(sizes)))
    if not lengths:
        return parts, None
    if keeps == 0 and prepared and not log.segments and log.meta.state.first_segment:
        # It is about to go, and `meta.hql` names it: no crash must find it missing.
        return parts, Need(name=0)
    return parts, Need(tuple(lengths), keeps)


def _activate(log: Log, segment: Segment, first_id: int) -> None:
    """The first prepared segment becomes the tail."""
    assert segment is log.prepared[0]
    del log.prepared[0]
    segment.first_id = segment.next_id = segment.durable_next_id = first_id
    segment.end = segment.durable_end = DATA_START
    if log.options.is_buffered:
        segment.header = segment.activated(first_id)
    old = log.segments[-1] if log.segments else None
    log.segments.append(segment)
    log.first_ids.append(first_id)
    log.left = None
    log.rollovers += 1
    log.filling.rolled_over()
    if old is not None:
        if not old.is_sealed:
            log.to_seal.append(old)
        if old.places is not None:
            old.places.settle(old.end)
        if old.is_loaded:
            log.reads.touch(old)
