"""The calls that wait in a committer's queue, in the order in which they were made.

Belong to the owner of the log. They hold no state but their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ._answers import Answer
from ._log import Log
from ._plans import Plan, Work
from ._receiving import Verdict, begin_cut, judge
from ._types import AppendOutcome, Entry, LogId
from .errors import LogGapError
from .protocols import AppendCallback

__all__ = ["Append", "Call", "Operation", "Received"]


class Append:
    """An append that waits for its place in the order, for room, or for a segment."""

    __slots__ = ("answer", "callback", "entries", "first_index", "has_waited", "is_abandoned")

    def __init__(
        self, answer: Answer, entries: Sequence[Entry], callback: AppendCallback | None
    ) -> None:
        self.entries = entries
        self.callback = callback
        #: nobody waits any more: an error is for the callback
        self.is_abandoned = False
        #: for a segment
        self.has_waited = False
        #: what an empty log has to begin with: it was to follow an append that was refused since
        self.first_index: int | None = None
        #: its value is the Answer of the commit that makes the entries durable
        self.answer = answer

    @property
    def begins_with(self) -> int | None:
        """Its first index, if that is one."""
        index = self.entries[0].index if self.entries else None
        return index if type(index) is int else None

    def check_first(self, log: Log) -> None:
        """Raises LogGapError where it would begin an empty log that others were to begin."""
        expected, found = self.first_index, self.begins_with
        if expected is not None and log.next_index is None and found != expected:
            raise LogGapError(
                f"entry {found} cannot be the first: the append of entry {expected} before it was "
                "refused",
                index=found,
                expected=expected,
            )

    def result(self, last_log_id: LogId | None, group: Answer | None) -> Any:
        """The answer's value, where the log ends so now."""
        return group


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


class Received(Append):
    """What came from a leader: an append that is judged first, and may have to cut the log.

    Its entries are what is left to be appended: none, as long as that is not known.
    """

    __slots__ = ("_step", "_truncated_from", "_verdict", "given", "prev_log_id")

    def __init__(self, answer: Answer, prev_log_id: LogId | None, given: Sequence[Entry]) -> None:
        super().__init__(answer, (), None)
        self.prev_log_id = prev_log_id
        #: all that came
        self.given = given
        self._verdict: Verdict | None = None
        #: of the operation that judges it, or cuts the log for it; its value is a verdict
        self._step: Answer | None = None
        self._truncated_from: int | None = None

    def find_verdict(self, log: Log) -> Verdict | None:
        """What it is to the log as it is now; None where the disk must be asked first.

        Raises what its last step was refused with.
        """
        step, self._step = self._step, None
        if step is not None and (found := step.result()) is not None:
            self._settle(found)
        if self._verdict is None or self._verdict.epoch != log.epoch:
            work = judge(log, self.prev_log_id, self.given)
            try:
                next(work)
            except StopIteration as end:
                self._settle(end.value)
            else:
                work.close()
                return None
        return self._verdict

    def _settle(self, verdict: Verdict) -> None:
        self._verdict = verdict
        if verdict.truncated_from is not None:
            self._truncated_from = verdict.truncated_from
        is_settled = verdict.is_match and verdict.conflict is None
        self.entries = self.given[verdict.held :] if is_settled else ()

    def asking(self, log: Log, answer: Answer) -> Operation:
        """What judges it where the disk must be asked."""
        self._step = answer
        return Operation(answer, partial(judge, log, self.prev_log_id, self.given), is_quiet=False)

    def cutting(self, log: Log, answer: Answer, verdict: Verdict) -> Operation:
        """What cuts the log from its conflict on."""
        self._step = answer
        return Operation(answer, partial(begin_cut, log, verdict), is_quiet=True)

    @property
    def last_log_id(self) -> LogId | None:
        """Up to where the log must be durable before it is answered, if it matches."""
        return self.given[-1].log_id if self.given else self.prev_log_id

    def result(
        self, last_log_id: LogId | None, group: Answer | None
    ) -> tuple[AppendOutcome, Answer | None]:
        """The outcome, and whose answer says that it is durable; None where it is."""
        assert self._verdict is not None
        outcome = AppendOutcome(
            self._verdict.is_match,
            last_log_id,
            self._verdict.hint,
            self._truncated_from,
            len(self.entries),
        )
        return outcome, group
