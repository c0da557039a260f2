"""How a log is read: for both faces, the one of tasks and the one of threads.

A read is a generator that runs on the owner's side, and yields what must not be done there: a
job for a thread, on frozen values, the result of which is sent back; an Answer to be waited for;
or a number, the work that was done, so that a face can let others run. Its result is returned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, TypeVar

from ._answers import Answer
from ._core import Core
from ._format import DATA_START, RECORD_OVERHEAD_BYTES
from ._log import Log
from ._plans import load
from ._segment import Extent, Segment
from ._types import Entry, LogId
from .errors import LogRangeError

__all__ = [
    "Reading",
    "check_overtaken",
    "find_leaders",
    "read",
    "read_now",
    "read_some",
]

T = TypeVar("T")
#: see the module
Reading = Generator[Callable[[], Any] | Answer | int, Any, T]

# How much one step of a long read takes before others get their turn.
CHUNK_ENTRIES = 1024
CHUNK_BYTES = 256 << 10
# How many entries a scan holds at a time. They are gone before the garbage collector counts 700 new
# objects and looks for them: those that outlive it, chunk by chunk, lead to full collections.
_SCAN_ENTRIES = 256


def read_now(log: Log, start: int, stop: int | None) -> list[Entry] | None:
    """The short way of ``read``, for a modest number of entries that are all in memory: the newest,
    or of one segment and in the page cache. None for others.
    """
    first, end = log.clip(start, stop)
    if first >= end:
        return []
    recent = log.recent
    newest = recent.first_index if recent.newest is not None else None
    if newest is not None and end > newest:
        return recent.read(first, end)
    if log.cut is not None:
        return None
    extent = log.reads.near(first, end, CHUNK_ENTRIES, CHUNK_BYTES)
    return None if extent is None else extent.read_cached()


def read_some(core: Core, start: int, stop: int | None) -> Reading[list[Entry]]:
    """The first few of the entries that the log holds in ``[start, stop)``: a scan's next chunk."""
    return read(core, start, stop, CHUNK_BYTES, _SCAN_ENTRIES)


def read(
    core: Core,
    start: int,
    stop: int | None,
    max_bytes: int | None,
    max_entries: int | None = None,
) -> Reading[list[Entry]]:
    """The entries that the log holds in ``[start, stop)``, as they are at one moment.

    With ``max_entries`` and ``max_bytes`` the first few: so many, of so many bytes of payload, but
    at least one. Reads in chunks, and begins again where something was removed in between.
    """
    log = core.log
    while True:
        epoch = log.epoch
        first, end = log.clip(start, stop)
        if max_entries is not None:
            end = min(end, first + max_entries)
        result: list[Entry] = []
        budget = max_bytes
        while first < end:
            try:
                chunk = yield from _read_chunk(core, first, end, budget)
            except Exception:
                core.check_open()
                if log.epoch != epoch or log.first_index > first:
                    break  # what was being read is gone: that is no damage
                if log.cut is None:
                    raise
                # A truncation under way may have zeroed it, or what lies behind it in its
                # segment, which is looked at to find it: the outcome tells.
                if (answer := core.committer.cut_answer()) is not None:
                    with contextlib.suppress(Exception):
                        yield answer
                break
            if log.epoch != epoch:
                break
            is_enough = False
            if budget is not None:
                count, budget = _fitting(chunk, budget, is_first=not result)
                is_enough = count < len(chunk)
                del chunk[count:]
            result += chunk
            first += len(chunk)
            if is_enough:
                return result
        else:
            if log.epoch == epoch:
                return result


def _read_chunk(core: Core, first: int, end: int, max_bytes: int | None) -> Reading[list[Entry]]:
    """The first few of the entries ``[first, end)``, at least one."""
    log = core.log
    end = min(end, first + CHUNK_ENTRIES)
    recent = log.recent.read(first, end)
    if recent is not None:
        yield 1
        return recent
    newest = log.recent.first_index
    if newest is not None:
        end = min(end, newest)  # what is not written yet is among the recent ones
    limit = CHUNK_BYTES
    if max_bytes is not None:
        limit = min(limit, max(max_bytes, 0) + CHUNK_ENTRIES * RECORD_OVERHEAD_BYTES)
    while isinstance(found := log.reads.extents(first, end, CHUNK_ENTRIES, limit), Segment):
        yield from _load(core, found)
        # While it was loaded the log may have lost it: `read`, which knows the epoch it began in,
        # takes this error for that and begins again.
        if not log.clip(first, end)[0] == first < log.clip(first, end)[1]:
            raise LogRangeError(f"entry {first} was removed while it was read", index=first)
    entries: list[Entry] | None = None
    # Only what is short: a copy of a large entry out of the page cache holds the owner up as well.
    if found[0].end - found[0].start <= CHUNK_BYTES:
        entries = _read_cached(found)
    if entries is None:
        entries = yield partial(_read_extents, found)
        core.check_open()
    else:
        yield 4 + len(entries)
    return entries


def _load(core: Core, segment: Segment) -> Reading[None]:
    """Finds the records of a segment."""
    log = core.log
    epoch, first, stop = log.epoch, segment.first_id, segment.next_id
    step = segment.load_step()
    file, places = yield partial(load, log.directory, step)
    core.check_open()
    # What was read is a file of before: places in it in a segment that was cut meanwhile, or in
    # another that begins with the same entry, would be read as entries' places.
    if log.epoch != epoch or log.reads.segment_of(first) is not segment:
        return
    if places is not None and len(places) != stop - first:
        # Lengths lead astray: reading all of it says where.
        yield Extent(file, segment.salt, first, stop, DATA_START, step.end).read
    segment.loaded(file, places)


def _read_cached(extents: Sequence[Extent]) -> list[Entry] | None:
    """Reads without waiting for the disk; None where that cannot be."""
    result: list[Entry] = []
    for extent in extents:
        if (entries := extent.read_cached()) is None:
            return None
        result += entries
    return result


def _read_extents(extents: Sequence[Extent]) -> list[Entry]:
    """Reads, waiting for the disk where need be: for another thread."""
    return [entry for extent in extents for entry in extent.read()]


def _fitting(entries: list[Entry], budget: int, *, is_first: bool) -> tuple[int, int]:
    """How many of the entries fit into the budget of payload bytes, and what then remains."""
    for position, entry in enumerate(entries):
        size = len(entry.payload)
        if size > budget and not (is_first and position == 0):
            return position, budget
        budget -= size  # below 0 when the first alone was too much: not even an empty one fits
    return len(entries), budget


def check_overtaken(position: int, first: int, stop: int | None) -> None:
    """Raises where a purge took what a stream was about to give: entries below ``first``."""
    if first <= position or (stop is not None and position >= stop):
        return
    raise LogRangeError(
        f"entries {position} to {first - 1} were purged while they were about to be streamed: "
        f"begin a new stream at {first}, behind the snapshot",
        index=position,
        first_index=first,
    )


def find_leaders(core: Core, first: int, last: int) -> Reading[list[LogId]]:
    """The last log id of each leader in ``[first, last]``, ascending.

    The entries of one leader are contiguous in Raft, so it reads a number of them that grows
    with the leaders and only with the logarithm of the log.
    """
    log = core.log
    while True:
        core.check_open()
        epoch, begin, end = log.epoch, log.first_index, log.next_index or 0
        low = max(first, begin)
        high = min(last, end - 1)
        if low > high:
            yield 1
            return []
        ids = yield from _leaders_between(core, low, high)
        if ids is not None and log.epoch == epoch and log.first_index == begin:
            return ids


def _leaders_between(core: Core, first: int, last: int) -> Reading[list[LogId] | None]:
    """As ``find_leaders``; None where the log changed meanwhile."""

    def at(index: int) -> Reading[LogId | None]:
        entries = yield from read(core, index, index + 1, None)
        return entries[0].log_id if entries else None

    current = yield from at(first)
    final = yield from at(last)
    if current is None or final is None:
        return None
    ids = []
    while not _has_same_leader(current, final):
        # the last entry from `low` on that the leader of `low` proposed
        low, high, following = current.index, last, final
        while high - low > 1:
            middle = yield from at((low + high) // 2)
            if middle is None:
                return None
            if _has_same_leader(middle, current):
                low = middle.index
            else:
                high, following = middle.index, middle
        ids.append(LogId(current.term, low, current.node_id))
        current = following
    ids.append(final)
    return ids


def _has_same_leader(one: LogId, other: LogId) -> bool:
    return (one.term, one.node_id) == (other.term, other.node_id)
