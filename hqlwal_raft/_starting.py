"""How the first call in the queue starts: what it waits for, and who has that done.

Functions of a committer, for the owner of the log. Each takes one step, and gives False where the
call has to wait: it stays the first in the queue, and is started again with the next change.

| an append waits                        | until                                    |
|----------------------------------------|------------------------------------------|
| while too much is accepted             | the commit, which it wants               |
| for segments                           | the chore has prepared them              |
| for blocks, for the first one's name   | an operation of its own was on the lane  |
| for a seal                             | the commit, and then the chore           |

An operation waits until all before it is durable. What came from a leader takes several steps, and
nothing comes between them.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Protocol

from . import _appending, _commits, _operations
from ._answers import Answer
from ._appending import Need
from ._calls import Append, Call, Operation, Received
from ._chores import Chores
from ._environment import Loop
from ._grouping import GroupCommit
from ._log import Log
from ._measures import Measures
from ._on_lane import OnLane
from ._phases import Order, Phase
from ._types import LogId
from .protocols import AppendCallback

__all__ = ["Starts", "judge_committed", "refuse_append", "start"]


class Starts(Order, Protocol):
    """What is asked of a committer besides."""

    log: Log
    queue: deque[Append | Operation | Call]
    lane: OnLane
    chores: Chores
    commits: GroupCommit
    measures: Measures
    loop: Loop
    max_unsynced_bytes: int

    def new_answer(self) -> Answer: ...

    def durable_answer(self, index: int) -> Answer | None: ...

    def accepted(self, callback: AppendCallback | None) -> Answer:
        """An append was: whoever waits for it waits for that."""

    def judged(self, error: BaseException) -> BaseException:
        """What is raised for an error that came out of the log."""

    def refuse(self, call: Append | Operation | Call, error: BaseException) -> None: ...

    def leave_queue(self, call: Append | Operation | Call) -> None: ...

    def go_on_closing(self) -> None: ...


def start(order: Starts, call: Append | Operation | Call) -> bool:
    """Takes the first call off the queue and starts it; False where it must wait."""
    if isinstance(call, Received):
        return _start_received(order, call)
    if isinstance(call, Append):
        return _start_append(order, call)
    if isinstance(call, Operation):
        return _start_operation(order, call)
    try:
        call.call(call.answer)
    except Exception as error:
        call.answer.give(order.loop, None, order.judged(error))
    order.leave_queue(call)
    return True


def _start_append(order: Starts, append: Append) -> bool:
    log = order.log
    if log.unsynced_bytes >= order.max_unsynced_bytes:
        order.commits.is_wanted = True
        return False
    try:
        append.check_first(log)
        need = _appending.append(log, append.entries)
    except Exception as error:
        refuse_append(order, append, order.judged(error))
        order.leave_queue(append)
        return True
    if need is not None:
        if need.lengths and not append.has_waited:
            append.has_waited = True
            order.measures.segment_waits += 1
        _meet(order, need)
        return False
    group = order.accepted(append.callback)
    append.answer.give(order.loop, append.result(log.last_log_id, group), None)
    order.leave_queue(append)
    return True


def _start_received(order: Starts, received: Received) -> bool:
    """Goes on by one step with what came from a leader; False where that must be waited for.

    Nothing comes between judging, cutting and appending: it stays the first in the queue, and
    only what it needs itself goes before it.
    """
    log = order.log
    try:
        verdict = received.find_verdict(log)
    except Exception as error:
        order.refuse(received, order.judged(error))
        order.leave_queue(received)
        return True
    if verdict is None:
        if order.is_lane_free:
            order.lane.lay_on(received.asking(log, order.new_answer()))
        return False
    if verdict.conflict is not None:
        order.queue.appendleft(received.cutting(log, order.new_answer(), verdict))
        return True
    if received.entries:
        return _start_append(order, received)
    last, group = received.last_log_id, None
    if verdict.is_match and last is not None:  # what is there may not be durable yet
        group = order.durable_answer(last.index)
    received.answer.give(order.loop, received.result(log.last_log_id, group), None)
    order.leave_queue(received)
    return True


def _meet(order: Starts, need: Need) -> None:
    """Has done what the first append in the queue needs, and waits for."""
    log = order.log
    if need.is_seal:
        order.commits.is_wanted = True  # the follower of the oldest may not be durable yet
        order.chores.may_seal = True
        order.chores.go_on()
    elif need.lengths:
        order.chores.prepare(need)
    elif order.is_lane_free:
        if need.room is not None:
            begin = partial(_operations.make_room, log, need.room)
        else:
            begin = partial(_operations.name_first, log, need.name)
        order.lane.lay_on(Operation(order.new_answer(), begin, is_quiet=False), is_need=True)


def _start_operation(order: Starts, operation: Operation) -> bool:
    if order.commits.under_way is not None:
        return False
    if order.phase is Phase.POISONED:  # only closing is left; files are closed as they are
        order.go_on_closing()
        return True
    if not order.log.is_clean:
        order.commits.is_wanted = True
        return False
    if operation.is_quiet and order.chores.is_under_way:
        return False
    order.queue.popleft()
    order.lane.lay_on(operation)
    return True


def judge_committed(order: Starts, log_id: LogId | None, answer: Answer) -> None:
    if _commits.may_be_committed(order.log, log_id):
        _save_committed(order, log_id, answer)
        return
    # The disk must be asked first, and what was called meanwhile stays behind both.
    assert log_id is not None
    check = Operation(
        order.new_answer(),
        partial(_operations.check_committed, order.log, log_id),
        is_quiet=False,
    )
    order.queue.insert(1, Call(answer, partial(_save_checked, order, check.answer, log_id)))
    order.queue.insert(1, check)


def _save_checked(order: Starts, check: Answer, log_id: LogId, answer: Answer) -> None:
    if check.error is not None:
        answer.give(order.loop, None, check.error)
    else:
        # A refused commit may have taken it back meanwhile.
        _commits.may_be_committed(order.log, log_id)
        _save_committed(order, log_id, answer)


def _save_committed(order: Starts, log_id: LogId | None, answer: Answer) -> None:
    _commits.save_committed(order.log, log_id)
    if order.log.options.is_buffered:
        answer.give(order.loop, None, None)
    else:
        order.commits.follow(answer)


def refuse_append(order: Starts, append: Append, error: BaseException) -> None:
    order.refuse(append, error)
    index = append.begins_with
    if index is not None and order.log.next_index is None:
        order.must_begin_with(index)
