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

from . import _appending, _said
from ._answers import Answer, Changes, call_back, clear, describe, own, poisoned, torn
from ._appending import SEALS_BEFORE_A_SYNC
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
from ._starting import judge_committed, refuse_append, start
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
        self.max_unsynced_bytes = max_unsynced_bytes
        self.loop = loop
        self._disk = disk
        self._housekeeping = log.directory.environment.start_worker("hqlwal-housekeeping", loop)
        # These hold no committer, so that one that is dropped goes.
        self._leave = partial(leave, Leaving(log.directory), disk, self._housekeeping, watch)
        disk.orphaned = self._housekeeping.orphaned = self._leave
        self.queue: deque[Append | Operation | Call] = deque()
        self._changes = Changes(loop)
        self.measures = Measures(log.directory)
        #: what is on the lane, and the chore, since when; cleared where they are carried out
        self.watch = watch
        watch.when_stalled = partial(_make_way, disk, self._housekeeping)
        self.lane = OnLane(log, loop, disk, self._housekeeping, watch, self.measures, self)
        self.commits = GroupCommit(
            log, policy.interval_seconds, loop, disk, watch, self.measures, self.lane, self
        )
        self.chores = Chores(log, self._housekeeping, watch, self.measures, self)
        self.chores.go_on()

    # --- what others may ask ---------------------------------------------------------------

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for what the disk thread does."""
        return self.lane.operation is not None or bool(self.queue) or self.commits.is_awaited

    @property
    def is_closing(self) -> bool:
        """Whether it was closed: that goes on whoever waits for it."""
        return self.lane.closing is not None

    @property
    def queue_depth(self) -> int:
        return len(self.queue)

    def look_for_space(self) -> None:
        """Has it looked how much space is left, if that was not done for a while."""
        if self.phase is Phase.OPEN:
            self.measures.look_for_space(self._housekeeping)

    def new_answer(self) -> Answer:
        return Answer(self.loop.event())

    def next_change(self, *, is_durable: bool) -> Answer:
        """As :meth:`Changes.next`."""
        return self._changes.next(is_durable=is_durable)

    def cut_answer(self) -> Answer | None:
        """The answer of the truncation under way, for readers whose entries it may zero."""
        if self.log.cut_from is None or self.lane.operation is None:
            return None
        return self.lane.operation.answer

    # --- what the store asks for -----------------------------------------------------------

    def append_now(
        self, entries: Sequence[Entry], callback: AppendCallback | None
    ) -> Answer | None:
        """Accepts an append if nothing stands in the way; else None, and it has to queue."""
        log = self.log
        if (
            self.queue
            or self.lane.operation is not None
            or self.phase is not _OPEN
            or log.is_changing
            or log.appended_bytes - log.durable_bytes >= self.max_unsynced_bytes
        ):
            return None
        try:
            if _appending.append(log, entries) is not None:
                return None
        except BaseException as error:
            raise self.judged(error)  # noqa: B904 - the same one, or poison with its cause
        try:
            return self.accepted(callback)
        except BaseException as error:
            self.fall(error)
            raise

    def judged(self, error: BaseException) -> BaseException:
        """What an append raises for an error that came out of the log."""
        if isinstance(error, PoisonError):
            error = error.__cause__ or error
            self.fall(error)
            return poisoned(error, self.log.directory.path)
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
        return self._enqueue(Call(self.new_answer(), partial(judge_committed, self, log_id)))

    def forsake(self, append: Append) -> None:
        """Nobody waits for a queued append any more: an error is for its callback."""
        append.is_abandoned = True
        error = append.answer.error  # it was refused in the turn in which the waiting ended
        if error is not None and append.callback is not None:
            self.loop.soon(partial(call_back, append.callback, own(error)))

    def close(self) -> Answer:
        """Refuses what has not begun, makes durable what was accepted, closes the log."""
        lane = self.lane
        closing = lane.closing
        if closing is None:
            closing = lane.begin_closing()
            self._changes.tell()
            if self.phase is Phase.CLOSED:  # it was abandoned
                closing.answer.give(self.loop, None, None)
        # From here on as often as somebody closes, after an interrupt say.
        if self.phase is Phase.CLOSED or lane.operation is closing:
            return closing.answer
        refused = [call for call in self.queue if call is not closing]
        self.queue = deque([closing])
        if self.phase is Phase.OPEN:
            self.phase = Phase.CLOSING
        path = self.log.directory.path
        error = WalClosedError(f"{path} was closed before this call ended", path=path)
        for call in refused:
            self.refuse(call, error)
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
        if self.lane.closing is not None:
            self.lane.closing.answer.give(self.loop, None, None)

    def drop(self) -> None:
        """Abandons, from any thread: a store that nobody holds is collected in any."""
        # At once, and without touching memory: the loop may be closed, or never run again.
        self._leave()
        try:
            self.loop.post(self.abandon)
        except RuntimeError:  # the loop has ended: memory is nobody's any more
            with contextlib.suppress(RuntimeError):
                self.abandon()

    # --- order -----------------------------------------------------------------------------

    def _enqueue(self, call: Append | Operation | Call) -> Answer:
        self.check_writable()
        self.queue.append(call)
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
            raise poisoned(self.poison, self.log.directory.path)
        if self.phase is not Phase.OPEN:
            path = self.log.directory.path
            raise WalClosedError(f"{path} is closed", path=path)

    def advance(self) -> None:
        """Starts whatever may start now, in the order of the calls."""
        try:
            if self.log.is_changing:
                self.fall(torn())
            while self.queue and self.lane.operation is None and start(self, self.queue[0]):
                pass
            self.commits.begin_when_all_are_in()
        except BaseException as error:
            self.fall(error)
            raise

    def leave_queue(self, call: Append | Operation | Call) -> None:
        """It was answered, or will be; poison may have emptied the queue meanwhile."""
        if self.queue and self.queue[0] is call:
            self.queue.popleft()

    def accepted(self, callback: AppendCallback | None) -> Answer:
        self.measures.appends += 1
        if self._changes.readable is not None:
            self._changes.tell_readers()
        if not self.log.prepared:  # it began a segment
            if len(self.log.to_seal) >= SEALS_BEFORE_A_SYNC:
                self.commits.is_wanted = True
            self.chores.go_on()
        return self.commits.accepted(callback)

    def refuse(self, call: Append | Operation | Call, error: BaseException) -> None:
        call.answer.give(self.loop, None, error)
        if isinstance(call, Append) and call.is_abandoned and call.callback is not None:
            self.loop.soon(partial(call_back, call.callback, own(error)))

    # --- what the parts ask ------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self.phase is Phase.OPEN

    @property
    def is_living(self) -> bool:
        return self.phase is _OPEN or self.phase is Phase.CLOSING

    @property
    def is_lane_free(self) -> bool:
        return self.lane.operation is None and self.commits.under_way is None

    @property
    def waits_for_quiet(self) -> bool:
        operation = self.lane.operation
        if operation is None and self.queue and isinstance(self.queue[0], Operation):
            operation = self.queue[0]
        return operation is not None and operation.is_quiet

    @property
    def has_append_first(self) -> bool:
        first = self.queue[0] if self.queue else None
        return isinstance(first, Append) and bool(first.entries)

    def refuse_first(self, error: BaseException) -> None:
        first = self.queue.popleft()
        assert isinstance(first, Append)
        refuse_append(self, first, error)

    def must_begin_with(self, index: int) -> None:
        for call in self.queue:
            if type(call) is Append and call.first_index is None:
                call.first_index = index

    def has_changed(self, *, by_commit: bool) -> None:
        if self._changes.are_awaited:
            self._changes.tell()
        self.chores.may_unlink = True
        if by_commit:
            self.chores.may_seal = True
        self.chores.go_on()

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
        path = self.log.directory.path
        _said.poisoned(path, describe(error), unexpected)
        clear(error)
        self._answer_all(poisoned(error, path))
        self.go_on_closing()

    def _answer_all(self, error: BaseException) -> None:
        lane = self.lane
        self._changes.tell()
        refused = [call for call in self.queue if call is not lane.closing]
        self.queue = deque(call for call in self.queue if call is lane.closing)
        operation = lane.operation
        if operation is not None and operation is not lane.closing:
            refused.insert(0, operation)
            lane.operation = None
        self.commits.answer_all(error)
        for call in refused:
            self.refuse(call, error)

    def go_on_closing(self) -> None:
        """Where it was poisoned."""
        if self.lane.closing is not None and self.phase is not Phase.CLOSED:
            self.queue.clear()
            self.lane.go_on_closing()

    def has_ended(self) -> None:
        self._end_parts()
        self.watch.end()
        self._disk.stop()
        self._housekeeping.stop()

    def _end_parts(self) -> None:
        self.chores.end()
        self.commits.end()
        self.lane.end()


def _make_way(disk: Worker, housekeeping: Worker) -> None:
    """One of them hangs, perhaps both; a place too many is given back by whoever is not."""
    disk.make_way()
    housekeeping.make_way()
