"""The operations of a log, besides appending, committing and truncating: generators of plans.

Each reads the log's memory, yields a plan (or two), is sent its outcome, and then changes memory
in one step. It is the owner of the log who runs them, never two at a time on the lane; of those
that are chores (:func:`prepare`, :func:`seal`, :func:`unlink`) one may run beside the lane.
Where a plan failed the generator is closed, and memory is as it was.

The order of the steps is what ``docs/design/format.md`` calls the rules the writer keeps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import replace

from . import _said
from ._appending import Need
from ._format import DATA_START, SegmentHeader, record_bytes, segment_name
from ._log import Log
from ._places import Places
from ._plans import (
    Allocate,
    CheckIdentity,
    Create,
    Plan,
    Read,
    Step,
    Sync,
    SyncDirectory,
    Unlink,
    Work,
)
from ._raft_rules import check_committed as judge_committed
from ._raft_rules import check_purge, check_vote_change
from ._records import decode
from ._segment import Segment
from ._types import LogId, Vote

__all__ = [
    "check_committed",
    "close",
    "make_room",
    "mark",
    "name_first",
    "prepare",
    "purge",
    "save_state",
    "save_vote",
    "seal",
    "unlink",
]

# Segments that are prepared ahead have room for so many entries as large as the newest one, up to
# a length; not where segments are small to begin with.
_LARGE_ENTRIES = 8
_LARGE_SEGMENT_BYTES = 1 << 20
_LENGTH_AHEAD_MAX = 64 << 20

# --- what an append may need ------------------------------------------------------------


def prepare(log: Log, need: Need | None = None) -> Work[None]:
    """Publishes segments to be used later; may run beside appends and commits.

    There is no point of no return: a failure leaves at most names that are not used before
    they were unlinked, durably.
    """
    need = need or Need((_length_ahead(log),), len(log.prepared))
    log.is_changing = True
    for segment in log.prepared[need.keeps :]:  # too small for what comes
        log.stale.append(segment.number)
    del log.prepared[need.keeps :]
    used = [*log.segments[-1:], *log.prepared]
    first = used[-1].number + 1 if used else log.last_number + 1
    segments = []
    for number, length in enumerate(need.lengths, first):
        header = SegmentHeader(log.directory.environment.getrandbits(32), length)
        name = segment_name(number)
        segment = Segment(number, name, log.directory.path_of(name), header)
        segment.is_filled = log.filling.pays and length == log.options.segment_size
        segments.append(segment)
    # What an attempt that failed may have left goes first, durably: a name is given again only
    # where no crash can bring its old file back. The newest first: numbers have no gap.
    steps: list[Step] = [Unlink(segment_name(n)) for n in sorted(set(log.stale))[::-1]]
    if steps:
        steps.append(SyncDirectory())
    before = len(steps)
    steps += [Create(s.name, s.length, s.header.pack(), is_filled=s.is_filled) for s in segments]
    steps.append(SyncDirectory())
    # Until the outcome says otherwise: of a plan that failed nobody knows which names it made.
    log.stale += [segment.number for segment in segments]
    log.last_number = max(log.last_number, segments[-1].number)
    log.is_changing = False
    outcome = yield Plan("prepare", tuple(steps))

    log.is_changing = True
    for segment, file in zip(segments, outcome.values[before:], strict=False):
        segment.file = file
        if log.options.is_buffered and log.directory.allows_maps:
            file.map()
        segment.loaded(file, Places())
    log.stale.clear()
    log.prepared += segments
    log.is_changing = False


def _length_ahead(log: Log) -> int:
    """Of a segment for entries that nobody has seen: a roll-over for every other one of a few
    mebibytes would take longer than writing them does.
    """
    usual, newest = log.options.segment_size, log.recent.newest
    size = record_bytes(len(newest.payload)) if newest is not None else 0
    if usual < _LARGE_SEGMENT_BYTES or _LARGE_ENTRIES * size <= usual:
        return usual
    return max(usual, min(DATA_START + _LARGE_ENTRIES * size, _LENGTH_AHEAD_MAX))


def make_room(log: Log, segment: Segment) -> Work[None]:
    """Allocates the whole of a segment that was opened where there was no space."""
    assert segment.file is not None
    yield Plan("allocate", (Allocate(segment.file, segment.length),))
    log.is_changing = True
    segment.has_room = True
    if log.options.is_buffered and log.directory.allows_maps:
        segment.file.map()
    log.find_tail()
    log.is_changing = False


def name_first(log: Log, number: int) -> Work[None]:
    """Notes in ``meta.hql`` that segments are there from now on: before any entry counts.

    0 notes that none is needed: before one without entries is removed.
    """
    state = replace(log.meta.state, first_segment=number)
    yield Plan("name the first segment", log.meta.steps(state), point=0)
    log.is_changing = True
    log.meta.saved(state)
    log.find_tail()
    log.is_changing = False


# --- housekeeping ----------------------------------------------------------------------


def seal(log: Log) -> Work[None] | None:
    """Seals the oldest segment that waits for it, if its follower has a durable record."""
    if not log.to_seal or not _is_followed(log, log.to_seal[0]):
        return None
    return _seal(log, log.to_seal[0])


def _is_followed(log: Log, segment: Segment) -> bool:
    place = bisect_right(log.first_ids, segment.first_id)
    if place == len(log.segments):
        return False
    follower = log.segments[place]
    return follower.durable_next_id > follower.first_id


def _seal(log: Log, segment: Segment) -> Work[None]:
    header, steps = segment.seal_steps()
    yield Plan("seal", steps, point=0)
    log.is_changing = True
    segment.header = header
    segment.is_sealed = True
    if segment.file is not None:
        segment.file.freeze()
    if log.to_seal and log.to_seal[0] is segment:
        log.to_seal.popleft()
    log.left = None
    log.view = log.durable_view()
    log.is_changing = False
    _said.sealed(segment.path, segment.first_id, segment.next_id - 1)


def unlink(log: Log) -> Work[None] | None:
    """Removes the oldest purged file. Not synced: one that comes back is known by its number."""
    return _unlink(log, log.to_unlink[0]) if log.to_unlink else None


def _unlink(log: Log, name: str) -> Work[None]:
    yield Plan("unlink", (Unlink(name),))
    log.is_changing = True
    if log.to_unlink and log.to_unlink[0] == name:
        log.to_unlink.popleft()
    log.is_changing = False


def mark(log: Log, now: float) -> Work[None] | None:
    """Writes the durable mark of a tail that nothing was written to for a while."""
    tail = log.segments[-1] if log.segments else None
    if tail is None or tail.is_marked or tail.is_sealed or tail.file is None:
        return None
    return _mark(log, tail, now)


def _mark(log: Log, tail: Segment, now: float) -> Work[None]:
    header = tail.marked(tail.durable_next_id, tail.durable_end, is_sealed=False)
    assert tail.file is not None
    write = replace(tail.header_step(header), is_optional=True)
    outcome = yield Plan("mark", (write, Sync(tail.file)), point=0)
    log.is_changing = True
    if outcome.values[0]:
        tail.header = header
    tail.mark_seconds = now
    log.is_changing = False


# --- purging, the vote, the end ---------------------------------------------------------


def purge(log: Log, log_id: LogId, data: bytes | None = None) -> Work[None]:
    """Removes ``[.., log_id.index]``. The log is clean, and no seal is under way.

    ``data``, if any, becomes the node's own state in the same step.
    Durable when the generator ends; unlinking the files is left to housekeeping.
    """
    frontier = log.last_purged_log_id
    if frontier is not None and log_id.index <= frontier.index:
        if data is not None:
            yield from save_state(log, data)
        return
    next_index = log.next_index
    is_beyond = next_index is None or log_id.index >= next_index
    count = len(log.segments)
    if not is_beyond:
        count = max(bisect_right(log.first_ids, log_id.index + 1) - 1, 0)
    if log.options.checks_raft and not is_beyond:
        check_purge(log_id, (yield from _held(log, log_id.index)))
    last = log.last_log_id
    first = log.segments[count].number if count < len(log.segments) else 0
    # The frontier is durable before the first unlink: else the first segment would be missing,
    # which is what damage looks like.
    state = replace(log.meta.state, last_purged=log_id, first_segment=first)
    if data is not None:
        state = replace(state, state=data)
    yield Plan("purge", (*log.meta.steps(state), _identity(log)), point=0)

    log.is_changing = True
    log.meta.saved(state)
    removed = log.segments[:count]
    log.to_unlink += [segment.name for segment in removed]
    del log.segments[:count], log.first_ids[:count]
    gone = {segment.number for segment in removed}
    log.to_seal = deque(s for s in log.to_seal if s.number not in gone)
    log.reads.forget(removed)
    log.left = None
    log.set_ends(None if is_beyond else last)
    if not log.count:
        log.recent.clear()
    log.view = log.durable_view()
    log.is_changing = False
    _said.purged(log.directory.path, log_id, len(removed))


def _held(log: Log, index: int) -> Work[LogId | None]:
    """The log id of an entry that the log holds; None where it is damaged."""
    known = log.known_log_id(index)
    if known is not None or not log.first_index <= index < (log.next_index or 0):
        return known
    segment = log.reads.segment_of(index)
    file, places = segment.file, segment.places
    if file is None or places is None:
        outcome = yield Plan("load", (segment.load_step(),))
        file, located = outcome.values[0]
        places = located if places is None else places
    record = index - segment.first_id
    if record >= len(places):
        return None
    start, skip = places.before(record)
    end = places.behind(record + 1, segment.end)
    outcome = yield Plan("read", (Read(file, start, end - start),))
    found = decode(outcome.values[0], segment.salt, index, 1, skip)
    return found[0].log_id if found else None


def check_committed(log: Log, log_id: LogId) -> Work[None]:
    """Raises RaftRuleError where what the log holds is another entry."""
    held = yield from _held(log, log_id.index)
    if held is not None:
        judge_committed(log_id, held, log.last_log_id)


def save_vote(log: Log, vote: Vote) -> Work[None]:
    if log.options.checks_raft:
        check_vote_change(log.meta.state.vote, vote)
    state = replace(log.meta.state, vote=vote)
    yield Plan("save vote", (*log.meta.steps(state), _identity(log)), point=0)
    log.is_changing = True
    log.meta.saved(state)
    log.is_changing = False


def save_state(log: Log, data: bytes) -> Work[None]:
    state = replace(log.meta.state, state=data)
    yield Plan("save state", (*log.meta.steps(state), _identity(log)), point=0)
    log.is_changing = True
    log.meta.saved(state)
    log.is_changing = False


def _identity(log: Log) -> CheckIdentity:
    """A vote must never follow a directory, or a file, that is no longer at the path."""
    return CheckIdentity((log.meta.file,))


def close(log: Log) -> Work[None]:
    """Writes the final mark of a clean log, and the seals that may be written."""
    steps: list[Step] = []
    for segment in log.to_seal:
        if not _is_followed(log, segment):
            break
        steps += segment.seal_steps()[1]
    tail = log.segments[-1] if log.segments else None
    if tail is not None and tail.file is not None and not (tail.is_marked or tail.is_sealed):
        header = tail.marked(tail.durable_next_id, tail.durable_end, is_sealed=False)
        steps += replace(tail.header_step(header), is_optional=True), Sync(tail.file)
    yield Plan("close", (*steps, Sync(log.meta.file)))
