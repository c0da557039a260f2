"""The order of calls, group commit, sync policy, back-pressure, poison: who waits for what.

Everything here is called by the owner of the log: on the event loop, or by whoever holds a
blocking store's lock. It hands plans to two threads and hears their outcomes. *The lane*, on the
disk thread, takes one plan at a time, of commits and of operations, in the order of the calls;
*chores*, on the housekeeping thread, one at a time as well: preparing goes before sealing, and
sealing before unlinking. No two plans write one file at a time: while a truncation or the end is
on the lane there are no chores.

| phase    | new writes         | the lane            | goes on to                         |
|----------|--------------------|---------------------|------------------------------------|
| OPEN     | are accepted       | whatever was called | CLOSING, POISONED, CLOSED (abandon)|
| CLOSING  | WalClosedError     | what was accepted   | CLOSED, POISONED                   |
| POISONED | WalPoisonedError   | nothing new         | CLOSED                             |
| CLOSED   | WalClosedError     | nothing             |                                    |

What is accepted while a commit is under way waits, as one group, for the next one. An operation
waits until all before it is durable and answered, and what comes after it waits for it; so the
queue is a barrier, and nothing is merged across it.

Answers go out after memory has changed, never in the middle of it.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from . import _operations, _said
from ._answers import Answer, call_back, clear, describe, own, poisoned, torn
from ._calls import Append, Call, Operation, Received
from ._chores import Chores
from ._directory import Directory
from ._environment import Loop
from ._leaving import Leaving, leave, let_go, nothing
from ._log import Log, Need, PoisonError, Work
from ._measures import Measures
from ._plans import Outcome, Plan, carry_out
from ._receiving import Verdict, begin_cut, check_batch, judge
from ._threads import Worker
from ._types import Entry, LogId, LogSync
from ._watchdog import Step, Watch
from .errors import WalClosedError
from .protocols import AppendCallback

__all__ = ["Committer", "Phase"]

logger = logging.getLogger("hqlwal_raft")

#: a tail that nothing was written to for so long gets its durable mark
_IDLE_SECONDS = 1.0

_COMMIT = "commit"


class Phase(enum.Enum):
    OPEN = "open"
    CLOSING = "closing"
    POISONED = "poisoned"
    CLOSED = "closed"


class Committer:
    """See the module."""

    def __init__(
        self,
        log: Log,
        policy: LogSync,
        max_unsynced_bytes: int,
        loop: Loop,
        disk: Worker,
        watch: Watch,
    ) -> None:
        self.log = log
        self.phase = Phase.OPEN
        #: why nothing is written any more
        self.poison: BaseException | None = None
        self._environment = log.directory.environment
        self._interval_seconds = policy.interval_seconds
        self._max_unsynced_bytes = max_unsynced_bytes
        self._loop = loop
        self._disk = disk
        self._housekeeping = self._environment.start_worker("hqlwal-housekeeping", loop)
        # These hold no committer, so that one that is dropped goes.
        self._leave = partial(leave, Leaving(log.directory), disk, self._housekeeping, watch)
        disk.orphaned = self._housekeeping.orphaned = self._leave
        self._queue: deque[Append | Operation | Call] = deque()
        #: whom the next commit to begin will answer, and whom the one under way
        self._group: Answer | None = None
        self._committing: Answer | None = None
        #: what is on the lane; a commit counts only by ``_committing``
        self._operation: Operation | None = None
        self._is_sync_wanted = False
        self._is_sync_coming = False
        # whether the last commit served more than one append, and how many there were before it
        self._is_crowded = False
        self._appends_before = 0
        #: entries that a refused commit took back last: the first, one past the last, and why
        self._taken_back: tuple[int, int, BaseException] | None = None
        #: who follows the log waits for these: for what is readable, for what is durable
        self._changes: list[Answer | None] = [None, None]
        self._is_alarm_set = False
        self._is_idle_alarm_set = False
        self._last_commit_seconds = 0.0
        self._closing: Operation | None = None
        self._was_poisoned = False  # before it was closed
        self.measures = Measures(log.directory)
        #: what is on the lane, and the chore, since when; cleared where they are carried out
        self.watch = watch
        self._chores = Chores(log, self._housekeeping, watch, self.measures, self)
        self._chores.go_on()

    # --- what others may ask ---------------------------------------------------------------

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for what the disk thread does."""
        committing = self._committing
        return (
            self._operation is not None
            or bool(self._queue)
            or (committing is not None and (committing.is_awaited or bool(committing.callbacks)))
        )

    @property
    def is_closing(self) -> bool:
        """Whether it was closed: that goes on whoever waits for it."""
        return self._closing is not None

    @property
    def queue_depth(self) -> int:
        return len(self._queue)

    def look_for_space(self) -> None:
        """Has it looked how much space is left, if that was not done for a while."""
        if self.phase is Phase.OPEN:
            self.measures.look_for_space(self._housekeeping)

    def new_answer(self) -> Answer:
        return Answer(self._loop.event())

    def next_change(self, *, is_durable: bool) -> Answer:
        """Answered when more is readable (or durable), when entries went, or nothing comes any
        more. One answer for all who wait.
        """
        changes = self._changes
        if changes[is_durable] is None:
            changes[is_durable] = self.new_answer()
        return changes[is_durable]  # type: ignore[return-value]

    def _tell_changes(self) -> None:
        changes, self._changes = self._changes, [None, None]
        for answer in changes:
            if answer is not None:
                answer.give(self._loop, None, None)

    def cut_answer(self) -> Answer | None:
        """The answer of the truncation under way, for readers whose entries it may zero."""
        if self.log.cut_from is None or self._operation is None:
            return None
        return self._operation.answer

    # --- what the store asks for -----------------------------------------------------------

    def append_now(
        self, entries: Sequence[Entry], callback: AppendCallback | None
    ) -> Answer | None:
        """Accepts an append if nothing stands in the way; else None, and it has to queue."""
        log = self.log
        if (
            self._queue
            or self._operation is not None
            or self.phase is not Phase.OPEN
            or log.is_changing
            or log.appended_bytes - log.durable_bytes >= self._max_unsynced_bytes
        ):
            return None
        try:
            if log.append(entries) is not None:
                return None
        except BaseException as error:
            raise self._judged(error)  # noqa: B904 - the same one, or poison with its cause
        try:
            return self._accepted(callback)
        except BaseException as error:
            self.fall(error)
            raise

    def _judged(self, error: BaseException) -> BaseException:
        """What an append raises for an error that came out of the log."""
        if isinstance(error, PoisonError):
            error = error.__cause__ or error
            self.fall(error)
            return poisoned(error)
        if self.log.is_changing:
            self.fall(error)
        return error

    def append_later(self, entries: Sequence[Entry], callback: AppendCallback | None) -> Append:
        """Queues an append. Its answer's value is the Answer of its commit."""
        append = Append(self.new_answer(), entries, callback)
        self._enqueue(append)
        return append

    def append_after(self, prev_log_id: LogId | None, entries: Sequence[Entry]) -> Received:
        """Queues what came from a leader. Its answer's value is what ``Received.result`` says."""
        self.check_writable()
        check_batch(self.log, prev_log_id, entries)
        received = Received(self.new_answer(), prev_log_id, entries)
        self._enqueue(received)
        return received

    def run(self, begin: Callable[[], Work[Any] | None], *, is_quiet: bool = False) -> Answer:
        """Queues an operation that needs the log for itself."""
        return self._enqueue(Operation(self.new_answer(), begin, is_quiet=is_quiet))

    def flush(self) -> Answer:
        """Answered once everything accepted before is durable."""
        return self._enqueue(Call(self.new_answer(), self._flush))

    def save_committed(self, log_id: LogId | None) -> Answer:
        return self._enqueue(Call(self.new_answer(), partial(self._judge_committed, log_id)))

    def forsake(self, append: Append) -> None:
        """Nobody waits for a queued append any more: an error is for its callback."""
        append.is_abandoned = True
        error = append.answer.error  # it was refused in the turn in which the waiting ended
        if error is not None and append.callback is not None:
            self._loop.soon(partial(call_back, append.callback, own(error)))

    def close(self) -> Answer:
        """Refuses what has not begun, makes durable what was accepted, closes the log."""
        closing = self._closing
        if closing is None:
            closing = self._closing = Operation(
                self.new_answer(), partial(_operations.close, self.log), is_quiet=True
            )
            self._was_poisoned = self.phase is Phase.POISONED
            self._tell_changes()
            if self.phase is Phase.CLOSED:  # it was abandoned
                closing.answer.give(self._loop, None, None)
        # From here on as often as somebody closes, after an interrupt say.
        if self.phase is Phase.CLOSED or self._operation is closing:
            return closing.answer
        refused = [call for call in self._queue if call is not closing]
        self._queue = deque([closing])
        if self.phase is Phase.OPEN:
            self.phase = Phase.CLOSING
        path = self.log.directory.path
        error = WalClosedError(f"{path} was closed before this call's turn", path=path)
        for call in refused:
            self._refuse(call, error)
        self.advance()
        return closing.answer

    def abandon(self) -> None:
        """Answers every caller at once, and lets go without waiting for the disk.

        The lock goes when the two threads are done with what they are doing.
        """
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSED
        log = self.log
        self._chores.end()
        self._leave()
        _said.abandoned(log.directory.path)
        log.release()
        # Last: a loop that was closed under tasks that wait cannot be given their answers.
        self._answer_all(
            WalClosedError(f"{log.directory.path} was abandoned", path=log.directory.path)
        )
        if self._closing is not None:
            self._closing.answer.give(self._loop, None, None)

    def drop(self) -> None:
        """Abandons, from any thread: a store that nobody holds is collected in any."""
        # At once, and without touching memory: the loop may be closed, or never run again.
        self._leave()
        try:
            self._loop.post(self.abandon)
        except RuntimeError:  # the loop has ended: memory is nobody's any more
            with contextlib.suppress(RuntimeError):
                self.abandon()

    # --- order -----------------------------------------------------------------------------

    def _enqueue(self, call: Append | Operation | Call) -> Answer:
        self.check_writable()
        self._queue.append(call)
        self.advance()
        return call.answer

    def durable_answer(self, index: int) -> Answer | None:
        """The answer of the commit that makes an entry of the log durable; None where it is."""
        last = self.log.last_durable_log_id
        if last is not None and index <= last.index:
            return None
        self.check_writable()
        return self._committing if index < self.log.in_flight_next else self._next_group()

    def check_taken_back(self, index: int) -> None:
        """Raises, for an entry that the log does not hold, what the append of it was answered."""
        if self._taken_back is not None:
            first, following, error = self._taken_back
            if first <= index < following:
                raise own(error)  # type: ignore[misc]

    def check_writable(self) -> None:
        """Raises where nothing is written any more."""
        if self.log.is_changing:
            self.fall(torn())
        if self.phase is Phase.POISONED:
            assert self.poison is not None
            raise poisoned(self.poison)
        if self.phase is not Phase.OPEN:
            path = self.log.directory.path
            raise WalClosedError(f"{path} is closed", path=path)

    def advance(self) -> None:
        """Starts whatever may start now, in the order of the calls."""
        try:
            if self.log.is_changing:
                self.fall(torn())
            while self._queue and self._operation is None and self._start(self._queue[0]):
                pass
            self._commit_when_all_are_in()
        except BaseException as error:
            self.fall(error)
            raise

    def _start(self, call: Append | Operation | Call) -> bool:
        """Takes the first call off the queue and starts it; False where it must wait."""
        if isinstance(call, Received):
            return self._start_received(call)
        if isinstance(call, Append):
            return self._start_append(call)
        if isinstance(call, Operation):
            return self._start_operation(call)
        try:
            call.call(call.answer)
        except Exception as error:
            call.answer.give(self._loop, None, self._judged(error))
        self._leave_queue(call)
        return True

    def _leave_queue(self, call: Append | Operation | Call) -> None:
        """It was answered, or will be; poison may have emptied the queue meanwhile."""
        if self._queue and self._queue[0] is call:
            self._queue.popleft()

    def _start_append(self, append: Append) -> bool:
        log = self.log
        if log.unsynced_bytes >= self._max_unsynced_bytes:
            self._is_sync_wanted = True
            return False
        try:
            need = log.append(append.entries)
        except Exception as error:
            self._refuse(append, self._judged(error))
            self._leave_queue(append)
            return True
        if need is not None:
            if need.lengths and not append.has_waited:
                append.has_waited = True
                self.measures.segment_waits += 1
            return self._meet(need)
        group = self._accepted(append.callback)
        append.answer.give(self._loop, append.result(log.last_log_id, group), None)
        self._leave_queue(append)
        return True

    # Nothing comes between judging, cutting and appending: what came from a leader stays the first
    # in the queue, and only what it needs itself goes before it.

    def _start_received(self, received: Received) -> bool:
        """Goes on with it by one step; False where that must be waited for."""
        try:
            verdict = self._verdict(received)
        except Exception as error:
            self._refuse(received, self._judged(error))
            self._leave_queue(received)
            return True
        if verdict is None:
            return False
        if verdict.conflict is not None:
            cut = Operation(self.new_answer(), partial(begin_cut, self.log, verdict), is_quiet=True)
            received.step = cut.answer
            self._queue.appendleft(cut)
            return True
        if received.entries:
            return self._start_append(received)
        # What is there already may not be durable yet.
        last = received.given[-1].log_id if received.given else received.prev_log_id
        is_acknowledged = verdict.is_match and last is not None
        group = self.durable_answer(last.index) if is_acknowledged and last else None
        received.answer.give(self._loop, received.result(self.log.last_log_id, group), None)
        self._leave_queue(received)
        return True

    def _verdict(self, received: Received) -> Verdict | None:
        """What it is to the log as it is now; None where the disk must be asked first."""
        log, step = self.log, received.step
        if step is not None:
            received.step = None
            if (found := step.result()) is not None:
                received.settle(found)
        if received.verdict is not None and received.verdict.epoch == log.epoch:
            return received.verdict
        begin = partial(judge, log, received.prev_log_id, received.given)
        work = begin()
        try:
            next(work)
        except StopIteration as end:
            received.settle(end.value)
            return received.verdict
        work.close()
        if self._committing is None:
            operation = Operation(self.new_answer(), begin, is_quiet=False)
            received.step = operation.answer
            self._lay_on(operation)
        return None

    def _meet(self, need: Need) -> bool:
        """Has done what the first append in the queue needs; False: it waits for it."""
        log = self.log
        if need.is_seal:
            self._is_sync_wanted = True  # the follower of the oldest may not be durable yet
            self._chores.may_seal = True
            self._chores.go_on()
        elif need.lengths:
            self._chores.prepare(need)
        elif self._committing is None and self._operation is None:
            if need.room is not None:
                begin = partial(_operations.make_room, log, need.room)
            else:
                begin = partial(_operations.name_first, log, need.name)
            self._lay_on(Operation(self.new_answer(), begin, is_quiet=False), is_need=True)
        return False

    def _accepted(self, callback: AppendCallback | None) -> Answer:
        self.measures.appends += 1
        readable, self._changes[0] = self._changes[0], None
        if readable is not None:
            readable.give(self._loop, None, None)
        group = self._group
        if group is None:
            group = self._group = Answer(self._loop.event())
        if callback is not None:
            group.callbacks.append(callback)
        if not self.log.prepared:
            self._chores.go_on()
        if self._interval_seconds:
            if not self._is_alarm_set:
                self._disk.set_alarm(self._interval_seconds, self._alarm)
                self._is_alarm_set = True
        else:
            self._is_sync_wanted = True
            self._commit_when_all_are_in()
        return group

    def _refuse(self, call: Append | Operation | Call, error: BaseException) -> None:
        call.answer.give(self._loop, None, error)
        if isinstance(call, Append) and call.is_abandoned and call.callback is not None:
            self._loop.soon(partial(call_back, call.callback, own(error)))

    def _flush(self, answer: Answer) -> None:
        group = self._committing
        if not self.log.is_clean and (group is None or self._has_more):
            group = self._next_group()
            self._is_sync_wanted = True
        if group is None:
            answer.give(self._loop, None, None)
        else:
            group.followers.append(answer)

    @property
    def _has_more(self) -> bool:
        """Whether something was accepted that the commit under way does not make durable."""
        return self._group is not None

    def _next_group(self) -> Answer:
        if self._group is None:
            self._group = Answer(self._loop.event())
        return self._group

    def _judge_committed(self, log_id: LogId | None, answer: Answer) -> None:
        if self.log.may_be_committed(log_id):
            self._save_committed(log_id, answer)
            return
        # The disk must be asked first, and what was called meanwhile stays behind both.
        assert log_id is not None
        check = Operation(
            self.new_answer(),
            partial(_operations.check_committed, self.log, log_id),
            is_quiet=False,
        )
        self._queue.insert(1, Call(answer, partial(self._save_checked, check.answer, log_id)))
        self._queue.insert(1, check)

    def _save_checked(self, check: Answer, log_id: LogId, answer: Answer) -> None:
        if check.error is not None:
            answer.give(self._loop, None, check.error)
        else:
            self.log.may_be_committed(log_id)  # a refused commit may have taken it back meanwhile
            self._save_committed(log_id, answer)

    def _save_committed(self, log_id: LogId | None, answer: Answer) -> None:
        self.log.save_committed(log_id)
        if self.log.options.is_buffered:
            answer.give(self._loop, None, None)
            return
        self._next_group().followers.append(answer)
        self._is_sync_wanted = True

    def _alarm(self) -> None:
        self._is_alarm_set = False
        if self.phase is Phase.OPEN:
            self._is_sync_wanted = True
            self.advance()

    # --- committing ------------------------------------------------------------------------

    def _commit_when_all_are_in(self) -> None:
        """Begins the commit that is wanted: at once for one who appends alone; else when all
        tasks that are ready to run have had their turn, so that it serves them too.
        """
        if not self._is_sync_wanted or self._committing is not None:
            return
        if not self._is_crowded:
            self._commit()
        elif not self._is_sync_coming:
            self._set_idle_alarm()  # it finds what an interrupt may have had forgotten
            (self._loop.gather or self._loop.soon)(self._commit_now)
            self._is_sync_coming = True

    def _commit_now(self) -> None:
        self._is_sync_coming = False
        try:
            if self._is_sync_wanted and self._committing is None:
                self._commit()
        except BaseException as error:
            self.fall(error)
            raise

    def _commit(self) -> None:
        if self._operation is not None or not self.is_living:
            return
        log = self.log
        now = self._environment.monotonic()
        plan = log.begin_commit(now)
        if plan is None:
            self._is_sync_wanted = False
            return
        log.is_changing = True
        self._is_sync_wanted = False
        self._committing, self._group = self._next_group(), None
        self._is_crowded = self.measures.appends > self._appends_before + 1
        self._appends_before = self.measures.appends
        self._last_commit_seconds = now
        self.watch.lane = Step(now, plan.name)
        self._disk.submit(
            partial(_on_lane, self.watch, log.directory, plan),
            partial(self._carried_commit, self._committing),
        )
        log.is_changing = False

    def _carried_commit(self, group: Answer, outcome: Outcome, error: BaseException | None) -> None:
        try:
            self._commit_ended(group, outcome if error is None else Outcome(error=error))
        except BaseException as failure:
            self.fall(failure)
            raise

    def _commit_ended(self, group: Answer, outcome: Outcome) -> None:
        log = self.log
        if log.is_changing:
            self.fall(torn())
        if group is not self._committing:
            return  # poison came in between, and answered; or it was applied already
        if not self.is_living:
            self._committing = None
            self.advance()
            return
        if outcome.error is None:
            log.committed(outcome)
            self.measures.synced(outcome.seconds)
            self.measures.has_room(_COMMIT)
            group.give(self._loop, None, None)
            self._committing = None
            self._tell_changes()
            self._chores.may_seal = self._chores.may_unlink = True
            self._chores.go_on()
            self._set_idle_alarm()
        elif outcome.is_refused and not log.options.is_buffered:
            # Nothing was stored: what was accepted is taken back, also what came after.
            self.measures.lacks_space(_COMMIT, outcome.error)
            clear(outcome.error)
            accepted_next = log.next_index or 0
            log.retreat()
            self._taken_back = (log.next_index or 0, accepted_next, outcome.error)
            group.give(self._loop, None, outcome.error)
            if self._group is not None:
                self._group.give(self._loop, None, outcome.error)
            self._committing = self._group = None
            self._tell_changes()
        else:
            self.fall(outcome.error)
        self.advance()

    def _set_idle_alarm(self) -> None:
        if not self._is_idle_alarm_set and self.phase is Phase.OPEN:
            self._disk.set_alarm(_IDLE_SECONDS, self._idle_alarm)
            self._is_idle_alarm_set = True

    def _idle_alarm(self) -> None:
        self._is_idle_alarm_set = False
        now = self._environment.monotonic()
        if self.phase is not Phase.OPEN:
            return
        if self._is_sync_coming:
            self._commit_now()
        if now - self._last_commit_seconds < _IDLE_SECONDS or self._operation or self._committing:
            self._set_idle_alarm()
        elif (work := _operations.mark(self.log, now)) is not None:
            self._lay_on(Operation(self.new_answer(), lambda: work, is_quiet=False), is_need=True)

    # --- operations on the lane -------------------------------------------------------------

    def _start_operation(self, operation: Operation) -> bool:
        if self._committing is not None:
            return False
        if self.phase is Phase.POISONED:  # only closing is left; files are closed as they are
            self._go_on_closing()
            return True
        if not self.log.is_clean:
            self._is_sync_wanted = True
            return False
        if operation.is_quiet and self._chores.is_under_way:
            return False
        self._queue.popleft()
        self._lay_on(operation)
        return True

    def _lay_on(self, operation: Operation, *, is_need: bool = False) -> None:
        """Puts an operation on the lane, which is free."""
        self._operation = operation
        try:
            operation.work = operation.begin()
            if operation.work is None:
                self._operation_ended(operation, None)
                return
            plan = next(operation.work)
        except StopIteration as end:
            self._operation_ended(operation, end.value)
        except Exception as error:
            self._operation_failed(operation, error)
        else:
            self._send(operation, plan, is_need=is_need)

    def _send(self, operation: Operation, plan: Plan, *, is_need: bool) -> None:
        self.log.is_changing = True
        self.watch.lane = self.watch.now(plan.name)
        operation.plan = plan
        self._disk.submit(
            partial(_on_lane, self.watch, self.log.directory, plan),
            partial(self._carried_operation, operation, plan, is_need),
        )
        self.log.is_changing = False

    def _carried_operation(
        self,
        operation: Operation,
        plan: Plan,
        is_need: bool,  # noqa: FBT001 - bound by partial
        outcome: Outcome,
        error: BaseException | None,
    ) -> None:
        if plan is not operation.plan:
            return  # it was applied already
        try:
            self._go_on(operation, outcome if error is None else Outcome(error=error), is_need)
        except BaseException as failure:
            self.fall(failure)
            raise

    def _go_on(self, operation: Operation, outcome: Outcome, is_need: bool) -> None:  # noqa: FBT001
        """The outcome of one plan of an operation: the next plan, or its end."""
        if self.log.is_changing:
            self.fall(torn())
        if operation is not self._operation or not self.is_living:
            if operation.work is not None:
                operation.work.close()  # here: a generator's end would come in any thread
            if operation is self._operation:
                self._operation = None
            self.advance()
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
                self.measures.lacks_space(name, outcome.error)
                self._operation_failed(operation, outcome.error, is_need=is_need)
            elif operation is self._closing:
                self._operation_failed(operation, outcome.error)
            else:
                self.fall(outcome.error)
                work.close()  # not before: it forgets the cut, which poison has to know
                self._operation = None
                self.advance()
            return
        operation.has_changed = operation.has_changed or outcome.is_behind_point
        self.measures.has_room(name)
        try:
            plan = work.send(outcome)
        except StopIteration as end:
            self._operation_ended(operation, end.value)
        except Exception as error:
            if self.log.is_changing or operation.has_changed:
                raise  # poisons: the disk has what memory may not
            self._operation_failed(operation, error)
        else:
            self._send(operation, plan, is_need=is_need)

    def _operation_failed(
        self, operation: Operation, error: BaseException, *, is_need: bool = False
    ) -> None:
        """It was refused: nothing was changed, and what comes after it goes on."""
        if operation is self._closing:
            self._close_files(error)
            return
        # Answered before it is forgotten: an interrupt in between poisons, and that answers all.
        operation.answer.give(self._loop, None, error)
        self._operation = None
        if is_need and self.has_append_first:
            self.refuse_first(error)
        self.advance()

    def _operation_ended(self, operation: Operation, value: Any) -> None:
        if operation is self._closing:
            self._close_files(None)
            return
        operation.answer.give(self._loop, value, None)
        self._operation = None
        self._tell_changes()
        self._chores.may_unlink = True
        self._chores.go_on()
        self.advance()

    # --- the end ---------------------------------------------------------------------------

    def _close_files(self, error: BaseException | None) -> None:
        """Lets go of files and lock; the last thing on the lane."""
        if error is None and not self._was_poisoned:
            error = self.poison  # the last commit failed: who closes is the first to be answered
        is_clean = error is None and self.poison is None
        self.log.release()
        ending = partial(let_go, self.log.directory, is_clean=is_clean)
        done = partial(self._closed, error, ending)
        if is_clean:
            self._disk.submit(ending, done)
        else:  # behind whatever the two threads still do
            self._housekeeping.submit(
                nothing, lambda _value, _error: self._disk.submit(ending, done)
            )

    def _go_on_closing(self) -> None:
        """Where it was poisoned: closing needs no more of the lane, and waits for nobody."""
        closing = self._closing
        if closing is None or self.phase is Phase.CLOSED:
            return
        self._queue.clear()
        self._operation = closing
        self._close_files(None)

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
        assert self._closing is not None
        answer = self._closing.answer
        try:
            was_closed, self.phase = self.phase is Phase.CLOSED, Phase.CLOSED
            self._operation = None
            answer.give(self._loop, None, failure)
            self._stop()
            if not was_closed:
                reason = failure or self.poison
                path = self.log.directory.path
                _said.closed(path, None if reason is None else describe(reason))
        except BaseException:  # an interrupt: there is no later call that could make up for it
            answer.give(self._loop, None, failure)
            self._stop()
            raise

    def _stop(self) -> None:
        self._chores.end()
        self.watch.end()
        self._disk.stop()
        self._housekeeping.stop()

    # --- what chores ask -------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self.phase is Phase.OPEN

    @property
    def is_living(self) -> bool:
        return self.phase in (Phase.OPEN, Phase.CLOSING)

    @property
    def waits_for_quiet(self) -> bool:
        operation = self._operation
        if operation is None and self._queue and isinstance(self._queue[0], Operation):
            operation = self._queue[0]
        return operation is not None and operation.is_quiet

    @property
    def has_append_first(self) -> bool:
        first = self._queue[0] if self._queue else None
        return isinstance(first, Append) and bool(first.entries)

    def refuse_first(self, error: BaseException) -> None:
        self._refuse(self._queue.popleft(), error)

    # --- poison ----------------------------------------------------------------------------

    def fall(self, error: BaseException) -> None:
        """Poisons: nothing is written any more, and readers get the durable view.

        Nothing is retried after a failed sync: the kernel may have dropped the pages.
        """
        if self.phase in (Phase.POISONED, Phase.CLOSED):
            self.log.is_changing = False
            return
        self.phase = Phase.POISONED
        self.poison = error
        self._is_sync_wanted = False
        self.log.stand_on_view()
        unexpected = None if isinstance(error, OSError) else error
        _said.poisoned(self.log.directory.path, describe(error), unexpected)
        clear(error)
        self._answer_all(poisoned(error))
        self._go_on_closing()

    def _answer_all(self, error: BaseException) -> None:
        groups = [self._committing, self._group]
        self._tell_changes()
        self._group = None
        if self.phase is Phase.CLOSED or self.poison is not None:
            self._committing = None
        refused = [call for call in self._queue if call is not self._closing]
        self._queue = deque(call for call in self._queue if call is self._closing)
        operation = self._operation
        if operation is not None and operation is not self._closing:
            refused.insert(0, operation)
            self._operation = None
        for group in groups:
            if group is not None:
                group.give(self._loop, None, error)
        for call in refused:
            self._refuse(call, error)


def _on_lane(watch: Watch, directory: Directory, plan: Plan) -> Outcome:
    outcome = carry_out(directory, plan)
    watch.lane = None  # here, not where it is applied: a busy loop is no stalled disk
    return outcome
