"""The order of calls, back-pressure, poison: who waits for what.

Everything here is called by the owner of the log: on the event loop, or by whoever holds a
blocking store's lock. It hands plans to two threads and hears their outcomes. *The lane*, on the
disk thread, takes one plan at a time, of commits (``_grouping``) and of operations (``_on_lane``),
in the order of the calls; *chores* (``_chores``), on the housekeeping thread, one at a time as
well. No two plans write one file at a time: while a truncation or the end is on the lane there
are no chores. The phases stand in ``_phases``.

What is accepted while a commit is under way waits, as one group, for the next one. An operation
waits until all before it is durable and answered, and what comes after it waits for it; so the
queue is a barrier, and nothing is merged across it.

Answers go out after memory has changed, never in the middle of it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from . import _appending, _commits, _operations, _said
from ._answers import Answer, Changes, call_back, clear, describe, own, poisoned, torn
from ._appending import Need
from ._calls import Append, Call, Operation, Received
from ._chores import Chores
from ._environment import Loop
from ._grouping import GroupCommit
from ._leaving import Leaving, leave
from ._log import Log, PoisonError
from ._measures import Measures
from ._on_lane import OnLane
from ._phases import Phase
from ._plans import Work
from ._receiving import check_batch
from ._threads import Worker
from ._types import Entry, LogId, LogSync
from ._watchdog import Watch
from .errors import WalClosedError
from .protocols import AppendCallback

__all__ = ["Committer"]

_OPEN = Phase.OPEN


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
        self._max_unsynced_bytes = max_unsynced_bytes
        self._loop = loop
        self._disk = disk
        self._housekeeping = log.directory.environment.start_worker("hqlwal-housekeeping", loop)
        # These hold no committer, so that one that is dropped goes.
        self._leave = partial(leave, Leaving(log.directory), disk, self._housekeeping, watch)
        disk.orphaned = self._housekeeping.orphaned = self._leave
        self._queue: deque[Append | Operation | Call] = deque()
        self._changes = Changes(loop)
        self.measures = Measures(log.directory)
        #: what is on the lane, and the chore, since when; cleared where they are carried out
        self.watch = watch
        watch.when_stalled = partial(_make_way, disk, self._housekeeping)
        self._lane = OnLane(log, loop, disk, self._housekeeping, watch, self.measures, self)
        self.commits = GroupCommit(
            log, policy.interval_seconds, loop, disk, watch, self.measures, self._lane, self
        )
        self._chores = Chores(log, self._housekeeping, watch, self.measures, self)
        self._chores.go_on()

    # --- what others may ask ---------------------------------------------------------------

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for what the disk thread does."""
        return self._lane.operation is not None or bool(self._queue) or self.commits.is_awaited

    @property
    def is_closing(self) -> bool:
        """Whether it was closed: that goes on whoever waits for it."""
        return self._lane.closing is not None

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
        """As :meth:`Changes.next`."""
        return self._changes.next(is_durable=is_durable)

    def cut_answer(self) -> Answer | None:
        """The answer of the truncation under way, for readers whose entries it may zero."""
        if self.log.cut_from is None or self._lane.operation is None:
            return None
        return self._lane.operation.answer

    # --- what the store asks for -----------------------------------------------------------

    def append_now(
        self, entries: Sequence[Entry], callback: AppendCallback | None
    ) -> Answer | None:
        """Accepts an append if nothing stands in the way; else None, and it has to queue."""
        log = self.log
        if (
            self._queue
            or self._lane.operation is not None
            or self.phase is not _OPEN
            or log.is_changing
            or log.appended_bytes - log.durable_bytes >= self._max_unsynced_bytes
        ):
            return None
        try:
            if _appending.append(log, entries) is not None:
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
        return self._enqueue(Call(self.new_answer(), self.commits.flush))

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
        lane = self._lane
        closing = lane.closing
        if closing is None:
            closing = lane.begin_closing()
            self._changes.tell()
            if self.phase is Phase.CLOSED:  # it was abandoned
                closing.answer.give(self._loop, None, None)
        # From here on as often as somebody closes, after an interrupt say.
        if self.phase is Phase.CLOSED or lane.operation is closing:
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
        self._end_parts()
        self._leave()
        _said.abandoned(log.directory.path)
        log.release()
        # Last: a loop that was closed under tasks that wait cannot be given their answers.
        self._answer_all(
            WalClosedError(f"{log.directory.path} was abandoned", path=log.directory.path)
        )
        if self._lane.closing is not None:
            self._lane.closing.answer.give(self._loop, None, None)

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
        return self.commits.durable_answer(index)

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
            while self._queue and self._lane.operation is None and self._start(self._queue[0]):
                pass
            self.commits.begin_when_all_are_in()
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
            self.commits.is_wanted = True
            return False
        try:
            append.check_first(log)
            need = _appending.append(log, append.entries)
        except Exception as error:
            self._refuse_append(append, self._judged(error))
            self._leave_queue(append)
            return True
        if need is not None:
            if need.lengths and not append.has_waited:
                append.has_waited = True
                self.measures.segment_waits += 1
            self._meet(need)
            return False
        group = self._accepted(append.callback)
        append.answer.give(self._loop, append.result(log.last_log_id, group), None)
        self._leave_queue(append)
        return True

    def _start_received(self, received: Received) -> bool:
        """Goes on by one step with what came from a leader; False where that must be waited for.

        Nothing comes between judging, cutting and appending: it stays the first in the queue, and
        only what it needs itself goes before it.
        """
        log = self.log
        try:
            verdict = received.find_verdict(log)
        except Exception as error:
            self._refuse(received, self._judged(error))
            self._leave_queue(received)
            return True
        if verdict is None:
            if self.is_lane_free:
                self._lane.lay_on(received.asking(log, self.new_answer()))
            return False
        if verdict.conflict is not None:
            self._queue.appendleft(received.cutting(log, self.new_answer(), verdict))
            return True
        if received.entries:
            return self._start_append(received)
        last, group = received.last_log_id, None
        if verdict.is_match and last is not None:  # what is there may not be durable yet
            group = self.durable_answer(last.index)
        received.answer.give(self._loop, received.result(log.last_log_id, group), None)
        self._leave_queue(received)
        return True

    def _meet(self, need: Need) -> None:
        """Has done what the first append in the queue needs, and waits for."""
        log = self.log
        if need.is_seal:
            self.commits.is_wanted = True  # the follower of the oldest may not be durable yet
            self._chores.may_seal = True
            self._chores.go_on()
        elif need.lengths:
            self._chores.prepare(need)
        elif self.is_lane_free:
            if need.room is not None:
                begin = partial(_operations.make_room, log, need.room)
            else:
                begin = partial(_operations.name_first, log, need.name)
            self._lane.lay_on(Operation(self.new_answer(), begin, is_quiet=False), is_need=True)

    def _start_operation(self, operation: Operation) -> bool:
        if self.commits.under_way is not None:
            return False
        if self.phase is Phase.POISONED:  # only closing is left; files are closed as they are
            self._go_on_closing()
            return True
        if not self.log.is_clean:
            self.commits.is_wanted = True
            return False
        if operation.is_quiet and self._chores.is_under_way:
            return False
        self._queue.popleft()
        self._lane.lay_on(operation)
        return True

    def _accepted(self, callback: AppendCallback | None) -> Answer:
        self.measures.appends += 1
        if self._changes.readable is not None:
            self._changes.tell_readers()
        if not self.log.prepared:
            self._chores.go_on()
        return self.commits.accepted(callback)

    def _refuse(self, call: Append | Operation | Call, error: BaseException) -> None:
        call.answer.give(self._loop, None, error)
        if isinstance(call, Append) and call.is_abandoned and call.callback is not None:
            self._loop.soon(partial(call_back, call.callback, own(error)))

    def _judge_committed(self, log_id: LogId | None, answer: Answer) -> None:
        if _commits.may_be_committed(self.log, log_id):
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
            _commits.may_be_committed(
                self.log, log_id
            )  # a refused commit may have taken it back meanwhile
            self._save_committed(log_id, answer)

    def _save_committed(self, log_id: LogId | None, answer: Answer) -> None:
        _commits.save_committed(self.log, log_id)
        if self.log.options.is_buffered:
            answer.give(self._loop, None, None)
        else:
            self.commits.follow(answer)

    # --- what the parts ask ------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self.phase is Phase.OPEN

    @property
    def is_living(self) -> bool:
        return self.phase in (Phase.OPEN, Phase.CLOSING)

    @property
    def is_lane_free(self) -> bool:
        return self._lane.operation is None and self.commits.under_way is None

    @property
    def waits_for_quiet(self) -> bool:
        operation = self._lane.operation
        if operation is None and self._queue and isinstance(self._queue[0], Operation):
            operation = self._queue[0]
        return operation is not None and operation.is_quiet

    @property
    def has_append_first(self) -> bool:
        first = self._queue[0] if self._queue else None
        return isinstance(first, Append) and bool(first.entries)

    def refuse_first(self, error: BaseException) -> None:
        first = self._queue.popleft()
        assert isinstance(first, Append)
        self._refuse_append(first, error)

    def _refuse_append(self, append: Append, error: BaseException) -> None:
        self._refuse(append, error)
        index = append.begins_with
        if index is not None and self.log.next_index is None:
            self.must_begin_with(index)

    def must_begin_with(self, index: int) -> None:
        for call in self._queue:
            if type(call) is Append and call.first_index is None:
                call.first_index = index

    def has_changed(self, *, by_commit: bool) -> None:
        self._changes.tell()
        self._chores.may_unlink = True
        if by_commit:
            self._chores.may_seal = True
        self._chores.go_on()

    # --- poison, and the end -----------------------------------------------------------------

    def fall(self, error: BaseException) -> None:
        """Poisons: nothing is written any more, and readers get the durable view.

        Nothing is retried after a failed sync: the kernel may have dropped the pages.
        """
        if self.phase in (Phase.POISONED, Phase.CLOSED):
            self.log.is_changing = False
            return
        self.phase = Phase.POISONED
        self.poison = error
        self.commits.is_wanted = False
        self.log.stand_on_view()
        unexpected = None if isinstance(error, OSError) else error
        _said.poisoned(self.log.directory.path, describe(error), unexpected)
        clear(error)
        self._answer_all(poisoned(error))
        self._go_on_closing()

    def _answer_all(self, error: BaseException) -> None:
        lane = self._lane
        self._changes.tell()
        refused = [call for call in self._queue if call is not lane.closing]
        self._queue = deque(call for call in self._queue if call is lane.closing)
        operation = lane.operation
        if operation is not None and operation is not lane.closing:
            refused.insert(0, operation)
            lane.operation = None
        self.commits.answer_all(error)
        for call in refused:
            self._refuse(call, error)

    def _go_on_closing(self) -> None:
        """Where it was poisoned."""
        if self._lane.closing is not None and self.phase is not Phase.CLOSED:
            self._queue.clear()
            self._lane.go_on_closing()

    def has_ended(self) -> None:
        self._end_parts()
        self.watch.end()
        self._disk.stop()
        self._housekeeping.stop()

    def _end_parts(self) -> None:
        self._chores.end()
        self.commits.end()
        self._lane.end()


def _make_way(disk: Worker, housekeeping: Worker) -> None:
    """One of them hangs, perhaps both; a place too many is given back by whoever is not."""
    disk.make_way()
    housekeeping.make_way()
