"""Giving damaged records back from copies, while the log is open: a generator of plans.

As those of ``_truncating``: for the owner of a log that is clean, with no other plan on the lane and
no chore beside it. What copies prove, says ``_proving``, in the disk's thread. Only bytes of records
that are damaged are written, so readers see each as it was or as it is given back, and a crash leaves
each damaged or whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import _said
from ._log import Log
from ._plans import Plan, Prove, Step, Sync, Work, Write
from ._segment import Segment
from ._types import Entry, MendOutcome

__all__ = ["mend"]


def mend(log: Log, copies: Iterable[Entry]) -> Work[MendOutcome]:
    """Segment by segment; each is durable before the next. Copies of what is not there are passed
    over.
    """
    chosen: dict[int, list[Entry]] = {}
    for entry in copies:
        if log.segments and log.segments[0].first_id <= entry.index < (log.next_index or 0):
            chosen.setdefault(log.reads.segment_of(entry.index).number, []).append(entry)
    mended: list[int] = []
    unproven: list[int] = []
    for segment in [segment for segment in log.segments if segment.number in chosen]:
        # a sealed one may be open for reading only
        outcome = yield Plan("load", (segment.load_step(is_writable=True),))
        file, _ = outcome.values[0]
        last = segment.next_id
        prove = Prove(
            file, segment.salt, segment.first_id, last, segment.end, tuple(chosen[segment.number])
        )
        outcome = yield Plan("prove", (prove,))
        found = outcome.values[0]
        unproven += found.unproven
        if not found.patches:
            continue
        steps: list[Step] = [Write(file, patch.offset, (patch.record,)) for patch in found.patches]
        yield Plan("mend", (*steps, Sync(file)), point=0)
        log.is_changing = True
        _forget_places(log, segment)
        indexes = [patch.id for patch in found.patches]
        mended += indexes
        log.is_changing = False
        _said.mended(segment.path, indexes)
    return MendOutcome(tuple(mended), tuple(unproven))


def _forget_places(log: Log, segment: Segment) -> None:
    """Where its records lie was found by their lengths, some of which may have been damaged."""
    if segment.is_sealed and segment is not log.segments[-1]:
        log.reads.forget([segment])
        segment.release()
