"""Raft's receiver rule: where a leader's entries go, and what conflicts with them.

For the owner of a log, as ``_operations``: generators of plans. They read what is in memory, or
in the page cache, without one, so that a follower who keeps up needs no plan. What they find is a
value, true for the epoch in it: whoever waited meanwhile has it judged again. The appending
itself, and who waits, are no business of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ._entry_rules import record_sizes
from ._format import DATA_START
from ._log import Log
from ._plans import Plan, Read, Work
from ._raft_rules import refuse_conflict
from ._segment import Segment, damage
from ._truncating import truncate
from ._types import Entry, LogId

__all__ = ["Verdict", "begin_cut", "check_batch", "judge"]

# How much one plan reads.
_CHUNK_ENTRIES = 1024
_CHUNK_BYTES = 256 << 10


class Verdict(NamedTuple):
    """What a leader's entries are to a log."""

    #: the log's, when it was judged
    epoch: int
    #: whether the log holds the previous log id
    is_match: bool
    #: where it does not: where the leader should go on
    hint: LogId | None = None
    #: how many of the entries, from the first on, the log has (or had, before they were purged)
    held: int = 0
    #: the entry that the log has another one for; None where there is none
    conflict: LogId | None = None
    truncated_from: int | None = None


def check_batch(log: Log, prev: LogId | None, entries: Sequence[Entry]) -> None:
    """Raises what ``append`` would for entries that cannot follow ``prev``, or each other.

    Before anything is touched: once the log is cut, appending what is left must not be refused.
    """
    if not entries:
        return
    index = entries[0].index if prev is None else prev.index + 1
    least_term = None
    if log.options.checks_raft:
        least_term = 0 if prev is None else prev.term
    record_sizes(entries, index, log.options.max_entry_size, least_term)


def judge(log: Log, prev: LogId | None, entries: Sequence[Entry]) -> Work[Verdict]:
    """Where the log holds ``prev``, and how many of the entries behind it. Changes nothing.

    Raises RaftRuleError where an entry conflicts with the purge frontier, CorruptionError where
    an entry that must be known is damaged.
    """
    if prev is None:
        if entries and not _may_begin_with(log, entries[0].index):
            return Verdict(log.epoch, is_match=False, hint=log.last_log_id)
    elif not (yield from _holds(log, prev)):
        hint = yield from _find_hint(log, prev)
        return Verdict(log.epoch, is_match=False, hint=hint)
    if not entries:
        return Verdict(log.epoch, is_match=True)
    base = entries[0].index
    place = _count_purged(log, entries)
    stop = min(len(entries), (log.next_index or 0) - base)
    while place < stop:
        for held in (yield from _read_some(log, base + place, base + stop)):
            entry = entries[place]
            if (held.term, held.node_id) != (entry.term, entry.node_id):
                return Verdict(log.epoch, is_match=True, held=place, conflict=entry.log_id)
            place += 1
    return Verdict(log.epoch, is_match=True, held=place)


def begin_cut(log: Log, verdict: Verdict) -> Work[Verdict] | None:
    """Truncates from the conflict on; None where it must be judged again."""
    return _cut(log, verdict, verdict.conflict) if verdict.epoch == log.epoch else None


def _cut(log: Log, verdict: Verdict, conflict: LogId | None) -> Work[Verdict]:
    assert conflict is not None
    committed = log.meta.committed
    if log.options.checks_raft and committed is not None and conflict.index <= committed.index:
        refuse_conflict(conflict, committed)
    yield from truncate(log, conflict.index)
    return verdict._replace(epoch=log.epoch, conflict=None, truncated_from=conflict.index)


def _may_begin_with(log: Log, index: int) -> bool:
    """Whether a log that begins with ``index`` may be this one."""
    frontier = log.last_purged_log_id
    if frontier is not None:
        return index <= frontier.index
    return not log.count or index == log.first_index


def _holds(log: Log, log_id: LogId) -> Work[bool]:
    frontier = log.last_purged_log_id
    if frontier is not None and log_id.index <= frontier.index:
        # What was purged is committed: the leader has it, too.
        return log_id.index < frontier.index or log_id.term == frontier.term
    if not log.first_index <= log_id.index < (log.next_index or 0):
        return False
    return (yield from _log_id_at(log, log_id.index)) == log_id


def _count_purged(log: Log, entries: Sequence[Entry]) -> int:
    """How many of the entries lie at or below the purge frontier."""
    frontier = log.last_purged_log_id
    if frontier is None:
        return 0
    count = min(max(frontier.index + 1 - entries[0].index, 0), len(entries))
    if count and log.options.checks_raft:
        last = entries[count - 1].log_id
        if last.index == frontier.index and last.term != frontier.term:
            refuse_conflict(last, frontier)
    return count


def _find_hint(log: Log, prev: LogId) -> Work[LogId | None]:
    """The last log id at or before ``prev.index`` of no later leader. Leaders never fall along a
    log, so it reads a number of entries that grows with the logarithm of the log only.
    """
    found = log.last_purged_log_id
    low, high = log.first_index, min(prev.index + 1, log.next_index or 0)
    place = high - 1  # most often it is that one
    while low < high:
        held = yield from _log_id_at(log, place)
        if (held.term, held.node_id) <= (prev.term, prev.node_id):
            found, low = held, place + 1
        else:
            high = place
        place = (low + high) // 2
    return found


# --- reading -----------------------------------------------------------------------------


def _log_id_at(log: Log, index: int) -> Work[LogId]:
    """Of an entry that the log holds."""
    known = log.known_log_id(index)
    if known is not None:
        return known
    return (yield from _read_some(log, index, index + 1))[0].log_id


def _read_some(log: Log, start: int, stop: int) -> Work[list[Entry]]:
    """The first few of the entries ``[start, stop)``, which the log holds; at least one."""
    stop = min(stop, start + _CHUNK_ENTRIES)
    if (recent := log.recent.read(start, stop)) is not None:
        return recent
    # What is not written yet is among the recent ones.
    stop = min(stop, log.recent.first_index or stop)
    found = log.reads.extents(start, stop, _CHUNK_ENTRIES, _CHUNK_BYTES)
    if isinstance(found, Segment):
        yield from _load(found)
        found = log.reads.extents(start, stop, _CHUNK_ENTRIES, _CHUNK_BYTES)
        assert not isinstance(found, Segment)
    extent = found[0]
    size = extent.end - extent.start
    if size <= _CHUNK_BYTES and (entries := extent.read_cached()) is not None:
        return entries
    outcome = yield Plan("read", (Read(extent.file, extent.start, size),))
    return extent.decode(outcome.values[0])


def _load(segment: Segment) -> Work[None]:
    """Finds the records of a segment."""
    outcome = yield Plan("load", (segment.load_step(),))
    segment.loaded(*outcome.values[0])
    if not segment.is_loaded:
        why = "not all of its records can be found"
        raise damage(segment.path, DATA_START, segment.first_id, segment.next_id - 1, why)
