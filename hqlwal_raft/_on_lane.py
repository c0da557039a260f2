"""The operations that run alone on the lane, one after the other, and the last of them: closing.

For the owner of the log. An operation is a generator: each of its plans goes to the disk thread,
and the outcome that comes back leads to the next one, or to its end. Which one may begin, and
when, is no business of this module.

| outcome of a plan                       | the operation | the log                            |
|-----------------------------------------|---------------|------------------------------------|
| carried out                             | goes on       | is changed by it, in one step      |
| refused: before its point of no return  | is refused    | is as it was                       |
| failed at or behind the point           | is refused    | is poisoned                        |
| any failure of the closing one          | ends          | is let go of; the error is its own |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from . import _operations, _said
from ._answers import Answer, clear, describe, poisoned, torn
from ._calls import Operation
from ._directory import Directory
from ._environment import Loop
from ._leaving import let_go, nothing
from ._log import Log
from ._measures import Measures
from ._phases import Order, Phase
from ._plans import Outcome, Plan, carry_out
from ._threads import Worker
from ._watchdog import Watch

__all__ = ["OnLane", "carry_out_on_lane"]


class OnLane:
    """See the module."""

    def __init__(
        self,
        log: Log,
        loop: Loop,
        disk: Worker,
        housekeeping: Worker,
        watch: Watch,
        measures: Measures,
        order: Order,
    ) -> None:
        self._log = log
        self._loop = loop
        self._disk = disk
        self._housekeeping = housekeeping
        self._watch = watch
        self._measures = measures
        #: None at the end: a cycle would keep the threads' descriptors until the next collection
        self._order: Order | None = order
        #: the one under way; a commit is none
        self.operation: Operation | None = None
        #: the last one, once somebody closed
        self.closing: Operation | None = None
        self._was_poisoned = False  # before it was closed

    def end(self) -> None:
        """The store is closed, or abandoned: nothing begins any more."""
        self._order = None

    # --- one operation -----------------------------------------------------------------------

    def lay_on(self, operation: Operation, *, is_need: bool = False) -> None:
        """Puts an operation on the lane, which is free. ``is_need``: where it is refused, so is
        the append that is first in the queue.
        """
        self.operation = operation
        try:
            operation.work = operation.begin()
            if operation.work is None:
                self._ended(operation, None)
                return
            plan = next(operation.work)
        except StopIteration as end:
            self._ended(operation, end.value)
        except Exception as error:
            self._failed(operation, error)
        else:
            self._send(operation, plan, is_need=is_need)

    def _send(self, operation: Operation, plan: Plan, *, is_need: bool) -> None:
        self._log.is_changing = True
        self._watch.lane = self._watch.now(plan.name)
        operation.plan = plan
        self._disk.submit(
            partial(carry_out_on_lane, self._watch, self._log.directory, plan),
            partial(self._carried, operation, plan, is_need),
        )
        self._log.is_changing = False

    def _carried(
        self,
        operation: Operation,
        plan: Plan,
        is_need: bool,  # noqa: FBT001 - bound by partial
        outcome: Outcome,
        error: BaseException | None,
    ) -> None:
        if plan is not operation.plan:
            return  # it was applied already
        order = self._order
        if order is None:
            self._forget(operation)
            return
        try:
            outcome = outcome if error is None else Outcome(error=error)
            self._go_on(operation, outcome, order, is_need=is_need)
        except BaseException as failure:
            order.fall(failure)
            raise

    def _forget(self, operation: Operation) -> None:
        if operation.work is not None:
            operation.work.close()  # here: a generator's end would come in any thread
        operation.plan = None  # who closed keeps the operation, and with the plan its files
        if operation is self.operation:
            self.operation = None

    def _go_on(
        self, operation: Operation, outcome: Outcome, order: Order, *, is_need: bool
    ) -> None:
        """The outcome of one plan of an operation: the next plan, or its end."""
        if self._log.is_changing:
            order.fall(torn())
        if operation is not self.operation or not order.is_living:
            self._forget(operation)
            order.advance()
            return
        work, name = operation.work, operation.plan.name if operation.plan else ""
        assert work is not None
        # Who closed keeps the operation: it must not keep the plan's files open. A second
        # delivery of the same outcome is known by it as well.
        operation.plan = None
        if outcome.error is not None:
            clear(outcome.error)
            if outcome.is_refused:
                work.close()
                self._measures.lacks_space(name, outcome.error)
                self._failed(operation, outcome.error, is_need=is_need)
            elif operation is self.closing:
                self._failed(operation, outcome.error)
            else:
                order.fall(outcome.error)
                work.close()  # not before: it forgets the cut, which poison has to know
                self.operation = None
                order.advance()
            return
        operation.has_changed = operation.has_changed or outcome.is_behind_point
        self._measures.has_room(name)
        try:
            plan = work.send(outcome)
        except StopIteration as end:
            self._ended(operation, end.value)
        except Exception as error:
            if self._log.is_changing or operation.has_changed:
                raise  # poisons: the disk has what memory may not
            self._failed(operation, error)
        else:
            self._send(operation, plan, is_need=is_need)

    def _failed(self, operation: Operation, error: BaseException, *, is_need: bool = False) -> None:
        """It was refused: nothing was changed, and what comes after it goes on."""
        if operation is self.closing:
            self._close_files(error)
            return
        # Answered before it is forgotten: an interrupt in between poisons, and that answers all.
        operation.answer.give(self._loop, None, error)
        self.operation = None
        order = self._order
        if order is not None:
            if is_need and order.has_append_first:
                order.refuse_first(error)
            order.advance()

    def _ended(self, operation: Operation, value: Any) -> None:
        if operation is self.closing:
            self._close_files(None)
            return
        operation.answer.give(self._loop, value, None)
        self.operation = None
        order = self._order
        if order is not None:
            order.has_changed(by_commit=False)
            order.advance()

    # --- the end ---------------------------------------------------------------------------

    def begin_closing(self) -> Operation:
        """What closes the log; to be put on the lane behind what was accepted."""
        order = self._order
        self.closing = Operation(
            Answer(self._loop.event()), partial(_operations.close, self._log), is_quiet=True
        )
        self._was_poisoned = order is not None and order.phase is Phase.POISONED
        return self.closing

    def go_on_closing(self) -> None:
        """Where it was poisoned: closing needs no more of the lane, and waits for nobody."""
        self.operation = self.closing
        self._close_files(None)

    def _close_files(self, error: BaseException | None) -> None:
        """Lets go of files and lock; the last thing on the lane."""
        order = self._order
        poison = order.poison if order is not None else None
        if error is None and not self._was_poisoned:
            error = poison  # the last commit failed: who closes is the first to be answered
        is_clean = error is None and poison is None
        self._log.release()
        ending = partial(let_go, self._log.directory, is_clean=is_clean)
        done = partial(self._closed, error, ending)
        if is_clean:
            self._disk.submit(ending, done)
        else:  # behind whatever the two threads still do
            disk = self._disk
            self._housekeeping.submit(nothing, lambda _value, _error: disk.submit(ending, done))

    def _closed(
        self,
        error: BaseException | None,
        again: Callable[[], Any] | None,
        _value: object,
        late: BaseException | None,
    ) -> None:
        if again is not None and isinstance(late, MemoryError):  # perhaps it was not begun
            self._disk.submit(again, partial(self._closed, error, None))
            return
        failure = poisoned(error) if error is not None else late
        assert self.closing is not None
        answer, order = self.closing.answer, self._order
        try:
            is_first = order is not None and order.phase is not Phase.CLOSED
            reason = failure
            if order is not None:
                order.phase = Phase.CLOSED
                reason = failure or order.poison
            self.operation = None
            answer.give(self._loop, None, failure)
            if order is not None:
                order.has_ended()
            if is_first:
                path = self._log.directory.path
                _said.closed(path, None if reason is None else describe(reason))
        except BaseException:  # an interrupt: there is no later call that could make up for it
            answer.give(self._loop, None, failure)
            if order is not None:
                order.has_ended()
            raise


def carry_out_on_lane(watch: Watch, directory: Directory, plan: Plan) -> Outcome:
    """For the disk thread."""
    outcome = carry_out(directory, plan)
    watch.lane = None  # here, not where it is applied: a busy loop is no stalled disk
    return outcome
