"""What was accepted and is not durable, and how a commit is planned that makes it so.

Belongs to the log, and so to its owner. At most one commit is under way; what is accepted
meanwhile is for the next. It must not know what the log holds, or who waits.

| policy    | an append                         | a commit                       |
|-----------|-----------------------------------|--------------------------------|
| immediate | is encoded, and kept as bytes     | writes, and syncs              |
| buffered  | is written into the page cache    | syncs what was written before  |
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ._format import SegmentHeader
from ._meta import Meta
from ._plans import CheckIdentity, Step, Sync, Write
from ._segment import Segment
from ._types import LogId

__all__ = ["MARK_SECONDS", "Commit", "Unsynced", "Unwritten"]

#: the header's durable mark is written with a sync if the last one is older than this
MARK_SECONDS = 0.010
#: the files are looked at under their names at least as often as this while entries come
IDENTITY_SECONDS = 1.0


class Unwritten(NamedTuple):
    """Records of one segment that the next commit writes."""

    segment: Segment
    offset: int
    parts: list[bytes]
    is_first: bool


class Goal(NamedTuple):
    """What a commit makes durable of one segment."""

    segment: Segment
    end: int
    next_id: int
    #: the header that it writes, and the place of that step; None where it writes none
    header: SegmentHeader | None
    place: int


class Commit(NamedTuple):
    """A commit under way."""

    goals: list[Goal]
    last_log_id: LogId | None
    next_index: int | None
    entries: int
    bytes: int
    seconds: float
    hint: tuple[LogId | None] | None


class Unsynced:
    """What was accepted and is not durable."""

    __slots__ = ("_identity_seconds", "dirty", "hint", "in_flight", "is_buffered", "unwritten")

    def __init__(self, *, is_buffered: bool) -> None:
        self.is_buffered = is_buffered
        #: what the next commit writes, where nothing is written before that
        self.unwritten: list[Unwritten] = []
        #: the segments that the next commit syncs, where all was written
        self.dirty: list[Segment] = []
        #: the committed log id that the next commit saves, as a tuple of one
        self.hint: tuple[LogId | None] | None = None
        self.in_flight: Commit | None = None
        self._identity_seconds = 0.0

    def add(self, segment: Segment, offset: int, parts: list[bytes], *, is_first: bool) -> None:
        """Records were added to a segment, at ``offset``: in memory, or in the page cache too."""
        if self.is_buffered:
            if not (self.dirty and self.dirty[-1] is segment):
                self.dirty.append(segment)
        elif self.unwritten and self.unwritten[-1].segment is segment:
            self.unwritten[-1].parts.extend(parts)
        else:
            self.unwritten.append(Unwritten(segment, offset, parts, is_first))

    def forget(self) -> None:
        """Nothing waits any more: it was taken back, or is given up."""
        self.unwritten, self.dirty, self.hint, self.in_flight = [], [], None, None

    def plan(self, meta: Meta, now: float) -> tuple[list[Step], list[Goal]]:
        """The steps that make all of it durable, and what they reach.

        Older segments come first: a record in a newer one counts only when they are durable.
        """
        steps: list[Step] = []
        goals: list[Goal] = []
        for segment in self.dirty:
            self.plan_goal(segment, (), now, steps, goals)
        for segment, offset, parts, is_first in self.unwritten:
            assert segment.file is not None
            write = Write(segment.file, offset, tuple(parts))
            if is_first:
                header = segment.activated(segment.first_id)
                goals.append(Goal(segment, segment.end, segment.next_id, header, len(steps)))
                steps += segment.header_step(header), write, Sync(segment.file)
            else:
                self.plan_goal(segment, (write,), now, steps, goals)
        if self.hint is not None:
            steps.append(meta.committed_step(self.hint[0]))
        if goals and now - self._identity_seconds >= IDENTITY_SECONDS:
            files = [meta.file, *(goal.segment.file for goal in goals)]
            steps.append(CheckIdentity(tuple(file for file in files if file is not None)))
        return steps, goals

    def plan_goal(
        self,
        segment: Segment,
        writes: tuple[Write, ...],
        now: float,
        steps: list[Step],
        goals: list[Goal],
    ) -> None:
        assert segment.file is not None
        steps += writes
        header, place = None, len(steps)
        if not segment.is_marked and (
            self.is_buffered or segment.header.cut or now - segment.mark_seconds >= MARK_SECONDS
        ):
            # What earlier syncs made durable: it never claims more than is on disk, whatever
            # the order of pages.
            header = segment.marked(segment.durable_next_id, segment.durable_end, is_sealed=False)
            steps.append(replace(segment.header_step(header), is_optional=True))
        steps.append(Sync(segment.file))
        goals.append(Goal(segment, segment.end, segment.next_id, header, place))

    def were_identified(self, seconds: float) -> None:
        """A commit that began then has looked at the files under their names, if it was due."""
        if seconds - self._identity_seconds >= IDENTITY_SECONDS:
            self._identity_seconds = seconds
