"""The calls that wait in a committer's queue, in the order in which they were made.

Belong to the owner of the log. They hold no state but their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ._answers import Answer
from ._plans import Plan, Work
from ._types import Entry
from .protocols import AppendCallback

__all__ = ["Append", "Call", "Operation"]


class Append:
    """An append that waits for its place in the order, for room, or for a segment."""

    __slots__ = ("answer", "callback", "entries", "has_waited", "is_abandoned")

    def __init__(
        self, answer: Answer, entries: Sequence[Entry], callback: AppendCallback | None
    ) -> None:
        self.entries = entries
        self.callback = callback
        #: nobody waits any more: an error is for the callback
        self.is_abandoned = False
        #: for a segment
        self.has_waited = False
        #: its value is the Answer of the commit that makes the entries durable
        self.answer = answer


class Operation:
    """Runs alone on the lane, on a clean log."""

    __slots__ = ("answer", "begin", "has_changed", "is_quiet", "plan", "work")

    def __init__(
        self, answer: Answer, begin: Callable[[], Work[Any] | None], *, is_quiet: bool
    ) -> None:
        self.answer = answer
        self.begin = begin
        #: no chore may be under way: it writes or removes segments
        self.is_quiet = is_quiet
        self.work: Work[Any] | None = None
        #: the one under way
        self.plan: Plan | None = None
        #: a plan with a point of no return was carried out: what goes wrong now poisons
        self.has_changed = False


class Call:
    """Something quick that must only keep its place in the order."""

    __slots__ = ("answer", "call")

    def __init__(self, answer: Answer, call: Callable[[Answer], None]) -> None:
        self.call = call
        self.answer = answer
