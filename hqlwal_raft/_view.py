"""What is durable, as one immutable value: all that readers of a poisoned log are given.

It is made by the owner with each outcome, and swapped in one step. Knows segments only frozen.
"""

from __future__ import annotations

from typing import NamedTuple

from ._segment import Known
from ._types import LogId

__all__ = ["Cut", "View"]


class Cut(NamedTuple):
    """What a truncation under way leaves, whether it succeeds or poisons."""

    #: entries from here on go
    first: int
    #: where the records end in the segment that stays, if one does
    end: int
    #: the last log id, the frontier's if no entry is left
    last_log_id: LogId | None


class View(NamedTuple):
    """See the module."""

    first_index: int
    next_index: int | None
    last_log_id: LogId | None
    left: tuple[Known, ...]
    tail: Known | None

    @property
    def segments(self) -> list[Known]:
        return [*self.left, self.tail] if self.tail is not None else list(self.left)

    def without(self, cut: Cut) -> View:
        """What stays where a truncation may have zeroed what it removes."""
        known = [each for each in self.segments if each.first_id < cut.first]
        if known and known[-1].next_id > cut.first:
            known[-1] = known[-1]._replace(next_id=cut.first, end=cut.end, is_sealed=False)
        tail = known.pop() if known else None
        return View(self.first_index, cut.first, cut.last_log_id, tuple(known), tail)
