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
import copy
import enum
import errno
import logging
import math
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from . import _operations, _said
from ._environment import Event, Loop
from ._files import Directory
from ._log import SEALS_WAITING, Log, Need, PoisonError, Work
from ._plans import Outcome, Plan, carry_out
from ._threads import Worker
from ._types import Entry, LogId, LogSync
from ._watchdog import Step, Watch
from .errors import WalClosedError, WalError, WalPoisonedError
from .protocols import AppendCallback

__all__ = ["SYNC_BOUNDS_SECONDS", "Answer", "Committer", "Phase"]

logger = logging.getLogger("hqlwal_raft")

#: a tail that nothing was written to for so long gets its durable mark
_IDLE_SECONDS = 1.0

#: so often it is looked, at the most, how much space is left
_MEASURE_SECONDS = 10.0

# A histogram's bounds are powers of two, in microseconds: the number of bits tells the place.
_FIRST_BITS, _LAST_BITS = 4, 26
SYNC_BOUNDS_SECONDS = (
    *((1 << bits) / 1e6 for bits in range(_FIRST_BITS, _LAST_BITS + 1)),
    math.inf,
)

_COMMIT, _PREPARE = "commit", "prepare"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Phase(enum.Enum):
    OPEN = "open"
    CLOSING = "closing"
    POISONED = "poisoned"
    CLOSED = "closed"


class Answer:
    """Something that will be answered once; any number of tasks may wait for it.

    A commit's answer serves all whose entries it makes durable: they are its group.
    """

    __slots__ = ("_event", "callbacks", "error", "followers", "is_awaited", "value")

    def __init__(self, event: Event) -> None:
        self._event = event
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_awaited = False
        #: called one by one, each by its own turn of the loop, with None or the error
        self.callbacks: deque[Callable[[BaseException | None], object]] = deque()
        #: answered with it, in the same way
        self.followers: list[Answer] = []

    def give(self, loop: Loop, value: Any, error: BaseException | None) -> None:
        """Answers. May be called again after an interrupt: nobody is answered twice."""
        self.value, self.error = value, error
        self._event.set()
        if not self.callbacks:
            self._give_followers(loop)
            return
        # All at once: those of a later group, and who closed, must come after the last of them.
        for _ in self.callbacks:
            loop.soon(self._call_next)
        # Twice, for an interrupt at the first instruction of a call has it not made at all.
        for _ in range(2):
            loop.soon(partial(self._end_callbacks, loop))

    def _give_followers(self, loop: Loop) -> None:
        for follower in self.followers:
            follower.give(loop, None, self.error)

    def _call_next(self) -> None:
        """Calls one callback of the user's: what it raises stops nothing here."""
        if self.callbacks:
            call_back(self.callbacks.popleft(), _own(self.error))

    def _end_callbacks(self, loop: Loop) -> None:
        while self.callbacks:
            self._call_next()
        self._give_followers(loop)

    async def wait(self) -> Any:
        """The value, or raises the error. Being cancelled only ends the waiting."""
        self.is_awaited = True
        await self._event.wait()
        return self.result()

    @property
    def event(self) -> Any:
        """What :meth:`wait` waits for; a loop's own."""
        return self._event

    def result(self) -> Any:
        """The value, or raises the error; once it was given."""
        if self.error is not None:
            raise _own(self.error)  # type: ignore[misc]
        return self.value


def call_back(callback: AppendCallback, error: BaseException | None) -> None:
    try:
        callback(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        logger.exception("the callback of an append raised")


def _own(error: BaseException | None) -> BaseException | None:
    """A new error for each who is answered: a shared one would collect their tracebacks."""
    if not isinstance(error, (OSError, WalError)):
        return error
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


class _Append:
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


class _Operation:
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


class _Call:
    """Something quick that must only keep its place in the order."""

    __slots__ = ("answer", "call")

    def __init__(self, answer: Answer, call: Callable[[Answer], None]) -> None:
        self.call = call
        self.answer = answer


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
        self._leave = partial(_leave, _Leaving(log.directory), disk, self._housekeeping, watch)
        disk.orphaned = self._housekeeping.orphaned = self._leave
        self._queue: deque[_Append | _Operation | _Call] = deque()
        #: whom the next commit to begin will answer, and whom the one under way
        self._group: Answer | None = None
        self._committing: Answer | None = None
        #: what is on the lane; a commit counts only by ``_committing``
        self._operation: _Operation | None = None
        #: the chore under way
        self._chore: Work[None] | None = None
        self._chore_name = ""
        #: the need that the chore under way, or one on the lane, is to meet
        self._is_preparing = False
        # not again on a full disk, until somebody needs a segment
        self._may_prepare_ahead = True
        self._may_seal = self._may_unlink = True
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
        self._closing: _Operation | None = None
        self._was_poisoned = False  # before it was closed
        self.appends = 0
        self.syncs = 0
        self.sync_seconds: deque[float] = deque(maxlen=4096)
        self.sync_max_seconds = 0.0
        #: by the bounds of ``SYNC_BOUNDS_SECONDS``
        self.sync_counts = [0] * len(SYNC_BOUNDS_SECONDS)
        self.segment_waits = 0
        #: what a full disk refused last: once that works there is space again
        self._lacks_space_for: str | None = None
        self._is_measuring = False
        self._measured_seconds = self._environment.monotonic()
        #: what is on the lane, and the chore, since when; cleared where they are carried out
        self.watch = watch
        self._keep_house()

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

    def measure(self) -> None:
        """Has it looked how much space is left, if that was not done for a while."""
        now = self._environment.monotonic()
        is_due = now - self._measured_seconds >= _MEASURE_SECONDS
        if is_due and not self._is_measuring and self.phase is Phase.OPEN:
            self._is_measuring = True
            self._housekeeping.submit(self.log.directory.measure, self._measured)

    def _measured(self, _value: object, _error: BaseException | None) -> None:
        self._is_measuring = False
        self._measured_seconds = self._environment.monotonic()

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

    def append_later(self, entries: Sequence[Entry], callback: AppendCallback | None) -> _Append:
        """Queues an append. Its answer's value is the Answer of its commit."""
        append = _Append(self.new_answer(), entries, callback)
        self._enqueue(append)
        return append

    def run(self, begin: Callable[[], Work[Any] | None], *, is_quiet: bool = False) -> Answer:
        """Queues an operation that needs the log for itself."""
        return self._enqueue(_Operation(self.new_answer(), begin, is_quiet=is_quiet))

    def flush(self) -> Answer:
        """Answered once everything accepted before is durable."""
        return self._enqueue(_Call(self.new_answer(), self._flush))

    def save_committed(self, log_id: LogId | None) -> Answer:
        return self._enqueue(_Call(self.new_answer(), partial(self._judge_committed, log_id)))

    def forsake(self, append: _Append) -> None:
        """Nobody waits for a queued append any more: an error is for its callback."""
        append.is_abandoned = True
        error = append.answer.error  # it was refused in the turn in which the waiting ended
        if error is not None and append.callback is not None:
            self._loop.soon(partial(call_back, append.callback, _own(error)))

    def close(self) -> Answer:
        """Refuses what has not begun, makes durable what was accepted, closes the log."""
        closing = self._closing
        if closing is None:
            closing = self._closing = _Operation(
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
        self._advance()
        return closing.answer

    def abandon(self) -> None:
        """Answers every caller at once, and lets go without waiting for the disk.

        The lock goes when the two threads are done with what they are doing.
        """
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSED
        log = self.log
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

    def _enqueue(self, call: _Append | _Operation | _Call) -> Answer:
        self.check_writable()
        self._queue.append(call)
        self._advance()
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
                raise _own(error)  # type: ignore[misc]

    def check_writable(self) -> None:
        """Raises where nothing is written any more."""
        if self.log.is_changing:
            self.fall(_torn())
        if self.phase is Phase.POISONED:
            assert self.poison is not None
            raise poisoned(self.poison)
        if self.phase is not Phase.OPEN:
            path = self.log.directory.path
            raise WalClosedError(f"{path} is closed", path=path)

    def _advance(self) -> None:
        """Starts whatever may start now, in the order of the calls."""
        try:
            if self.log.is_changing:
                self.fall(_torn())
            while self._queue and self._operation is None and self._start(self._queue[0]):
                pass
            self._commit_when_all_are_in()
        except BaseException as error:
            self.fall(error)
            raise

    def _start(self, call: _Append | _Operation | _Call) -> bool:
        """Takes the first call off the queue and starts it; False where it must wait."""
        if isinstance(call, _Append):
            return self._start_append(call)
        if isinstance(call, _Operation):
            return self._start_operation(call)
        try:
            call.call(call.answer)
        except Exception as error:
            call.answer.give(self._loop, None, self._judged(error))
        self._leave_queue(call)
        return True

    def _leave_queue(self, call: _Append | _Operation | _Call) -> None:
        """It was answered, or will be; poison may have emptied the queue meanwhile."""
        if self._queue and self._queue[0] is call:
            self._queue.popleft()

    def _start_append(self, append: _Append) -> bool:
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
                self.segment_waits += 1
            return self._meet(need)
        append.answer.give(self._loop, self._accepted(append.callback), None)
        self._leave_queue(append)
        return True

    def _meet(self, need: Need) -> bool:
        """Has done what the first append in the queue needs; False: it waits for it."""
        log = self.log
        if need.is_seal:
            self._is_sync_wanted = True  # the follower of the oldest may not be durable yet
            self._may_seal = True
            self._keep_house()
        elif need.lengths:
            self._prepare(need)
        elif self._committing is None and self._operation is None:
            if need.room is not None:
                begin = partial(_operations.make_room, log, need.room)
            else:
                begin = partial(_operations.name_first, log, need.name)
            self._lay_on(_Operation(self.new_answer(), begin, is_quiet=False), is_need=True)
        return False

    def _accepted(self, callback: AppendCallback | None) -> Answer:
        self.appends += 1
        readable, self._changes[0] = self._changes[0], None
        if readable is not None:
            readable.give(self._loop, None, None)
        group = self._group
        if group is None:
            group = self._group = Answer(self._loop.event())
        if callback is not None:
            group.callbacks.append(callback)
        if not self.log.prepared:
            self._keep_house()
        if self._interval_seconds:
            if not self._is_alarm_set:
                self._disk.set_alarm(self._interval_seconds, self._alarm)
                self._is_alarm_set = True
        else:
            self._is_sync_wanted = True
            self._commit_when_all_are_in()
        return group

    def _refuse(self, call: _Append | _Operation | _Call, error: BaseException) -> None:
        call.answer.give(self._loop, None, error)
        if isinstance(call, _Append) and call.is_abandoned and call.callback is not None:
            self._loop.soon(partial(call_back, call.callback, _own(error)))

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
        check = _Operation(
            self.new_answer(),
            partial(_operations.check_committed, self.log, log_id),
            is_quiet=False,
        )
        self._queue.insert(1, _Call(answer, partial(self._save_checked, check.answer, log_id)))
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
            self._advance()

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
        if self._operation is not None or self.phase not in (Phase.OPEN, Phase.CLOSING):
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
        self._is_crowded = self.appends > self._appends_before + 1
        self._appends_before = self.appends
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
            self.fall(_torn())
        if group is not self._committing:
            return  # poison came in between, and answered; or it was applied already
        if self.phase not in (Phase.OPEN, Phase.CLOSING):
            self._committing = None
            self._advance()
            return
        if outcome.error is None:
            log.committed(outcome)
            self.syncs += 1
            self.sync_seconds.append(outcome.seconds)
            self.sync_max_seconds = max(self.sync_max_seconds, outcome.seconds)
            bits = int(outcome.seconds * 1e6).bit_length() - _FIRST_BITS
            self.sync_counts[min(max(bits, 0), len(self.sync_counts) - 1)] += 1
            if self._lacks_space_for is not None:
                self._has_room(_COMMIT)
            group.give(self._loop, None, None)
            self._committing = None
            self._tell_changes()
            self._may_seal = self._may_unlink = True
            self._keep_house()
            self._set_idle_alarm()
        elif outcome.is_refused and not log.options.is_buffered:
            # Nothing was stored: what was accepted is taken back, also what came after.
            self._lacks_space(_COMMIT, outcome.error)
            _clear(outcome.error)
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
        self._advance()

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
            self._lay_on(_Operation(self.new_answer(), lambda: work, is_quiet=False), is_need=True)

    # --- operations on the lane -------------------------------------------------------------

    def _start_operation(self, operation: _Operation) -> bool:
        if self._committing is not None:
            return False
        if self.phase is Phase.POISONED:  # only closing is left; files are closed as they are
            self._go_on_closing()
            return True
        if not self.log.is_clean:
            self._is_sync_wanted = True
            return False
        if operation.is_quiet and self._chore is not None:
            return False
        self._queue.popleft()
        self._lay_on(operation)
        return True

    def _lay_on(self, operation: _Operation, *, is_need: bool = False) -> None:
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

    def _send(self, operation: _Operation, plan: Plan, *, is_need: bool) -> None:
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
        operation: _Operation,
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

    def _go_on(self, operation: _Operation, outcome: Outcome, is_need: bool) -> None:  # noqa: FBT001
        """The outcome of one plan of an operation: the next plan, or its end."""
        if self.log.is_changing:
            self.fall(_torn())
        if operation is not self._operation or self.phase not in (Phase.OPEN, Phase.CLOSING):
            if operation.work is not None:
                operation.work.close()  # here: a generator's end would come in any thread
            if operation is self._operation:
                self._operation = None
            self._advance()
            return
        work = operation.work
        assert work is not None
        if outcome.error is not None:
            _clear(outcome.error)
            if outcome.is_refused:
                work.close()
                assert operation.plan is not None
                self._lacks_space(operation.plan.name, outcome.error)
                self._operation_failed(operation, outcome.error, is_need=is_need)
            elif operation is self._closing:
                self._operation_failed(operation, outcome.error)
            else:
                self.fall(outcome.error)
                work.close()  # not before: it forgets the cut, which poison has to know
                self._operation = None
                self._advance()
            return
        operation.has_changed = operation.has_changed or outcome.is_behind_point
        assert operation.plan is not None
        self._has_room(operation.plan.name)
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
        self, operation: _Operation, error: BaseException, *, is_need: bool = False
    ) -> None:
        """It was refused: nothing was changed, and what comes after it goes on."""
        if operation is self._closing:
            self._close_files(error)
            return
        # Answered before it is forgotten: an interrupt in between poisons, and that answers all.
        operation.answer.give(self._loop, None, error)
        self._operation = None
        if is_need and self._has_append_first:
            self._refuse(self._queue.popleft(), error)
        self._advance()

    def _operation_ended(self, operation: _Operation, value: Any) -> None:
        if operation is self._closing:
            self._close_files(None)
            return
        operation.answer.give(self._loop, value, None)
        self._operation = None
        self._tell_changes()
        self._may_unlink = True
        self._keep_house()
        self._advance()

    # --- the end ---------------------------------------------------------------------------

    def _close_files(self, error: BaseException | None) -> None:
        """Lets go of files and lock; the last thing on the lane."""
        if error is None and not self._was_poisoned:
            error = self.poison  # the last commit failed: who closes is the first to be answered
        is_clean = error is None and self.poison is None
        self.log.release()
        let_go = partial(_let_go, self.log.directory, is_clean=is_clean)
        done = partial(self._closed, error)
        if is_clean:
            self._disk.submit(let_go, done)
        else:  # behind whatever the two threads still do
            self._housekeeping.submit(
                _nothing, lambda _value, _error: self._disk.submit(let_go, done)
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
        self, error: BaseException | None, _value: object, late: BaseException | None
    ) -> None:
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
        self.watch.end()
        self._disk.stop()
        self._housekeeping.stop()

    # --- chores ----------------------------------------------------------------------------

    def _keep_house(self) -> None:
        """Starts the next chore, if there is one and nothing stands in its way."""
        if self._chore is not None or self.phase is not Phase.OPEN or self._waits_for_quiet:
            return
        log = self.log
        work: Work[None] | None = None
        if self._may_prepare_ahead:
            if not log.prepared:
                self._prepare(None)
                return
            if log.lacks_filling:
                self._prepare(Need((log.options.segment_size,)))
                return
        if self._may_seal:
            work = _operations.seal(log)
        if work is None and self._may_unlink:
            work = _operations.unlink(log)
        if work is not None:
            self._begin_chore(work)

    @property
    def _waits_for_quiet(self) -> bool:
        operation = self._operation
        if operation is None and self._queue and isinstance(self._queue[0], _Operation):
            operation = self._queue[0]
        return operation is not None and operation.is_quiet

    def _prepare(self, need: Need | None) -> None:
        if self._chore is None and self.phase is Phase.OPEN:
            self._is_preparing = True
            self._begin_chore(_operations.prepare(self.log, need))

    def _begin_chore(self, work: Work[None]) -> None:
        plan = next(work)
        self.log.is_changing = True
        self.watch.chore = self.watch.now(plan.name)
        self._housekeeping.submit(
            partial(_as_chore, self.watch, self.log.directory, plan),
            partial(self._carried_chore, work),
        )
        self._chore, self._chore_name = work, plan.name
        self.log.is_changing = False

    def _carried_chore(
        self, work: Work[None], outcome: Outcome, error: BaseException | None
    ) -> None:
        if work is not self._chore:
            return  # it was applied already
        try:
            self._chore_ended(work, outcome if error is None else Outcome(error=error))
        except BaseException as failure:
            self.fall(failure)
            raise

    def _chore_ended(self, work: Work[None], outcome: Outcome) -> None:
        self._chore = None
        was_preparing, self._is_preparing = self._is_preparing, False
        if self.log.is_changing:
            self.fall(_torn())
        if self.phase in (Phase.POISONED, Phase.CLOSED):
            work.close()
        elif outcome.error is None:
            with contextlib.suppress(StopIteration):
                work.send(outcome)
            if was_preparing:
                self._may_prepare_ahead = True
                self._has_room(_PREPARE)
        elif outcome.is_refused:
            work.close()
            _clear(outcome.error)
            self._lacks_space(_PREPARE if was_preparing else "", outcome.error)
            self._chore_refused(outcome.error, self._chore_name, was_preparing=was_preparing)
        else:
            self.fall(outcome.error)
        self._keep_house()
        self._advance()

    def _chore_refused(self, error: BaseException, name: str, *, was_preparing: bool) -> None:
        """A full disk, say: nothing was written, and it may pass."""
        log = self.log
        if not was_preparing:
            # Another attempt after the next commit; what is to be unlinked goes to the back.
            if name == "unlink":
                self._may_unlink = False
                log.to_unlink.rotate(-1)
            else:
                self._may_seal = False
            logger.warning("%s: housekeeping failed: %s", log.directory.path, describe(error))
            if not self._may_seal and len(log.to_seal) >= SEALS_WAITING and self._has_append_first:
                self._refuse(self._queue.popleft(), error)
            return
        if self._may_unlink and (work := _operations.unlink(log)) is not None:
            self._begin_chore(work)  # the space that an append lacks may be about to come free
            return
        self._may_prepare_ahead = False
        if self._has_append_first:
            # Whoever needs the segment is answered; the next who does makes another attempt.
            self._refuse(self._queue.popleft(), error)

    @property
    def _has_append_first(self) -> bool:
        return bool(self._queue) and isinstance(self._queue[0], _Append)

    def _lacks_space(self, name: str, error: BaseException) -> None:
        """A plan of that name was refused: says so once, where the disk is full."""
        if name and isinstance(error, OSError) and error.errno in _NO_SPACE:
            if self._lacks_space_for is None:
                _said.full(self.log.directory.path, describe(error))
            self._lacks_space_for = name

    def _has_room(self, name: str) -> None:
        """A plan of that name was carried out."""
        if self._lacks_space_for == name:
            self._lacks_space_for = None
            _said.room_again(self.log.directory.path)

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
        _clear(error)
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


def _as_chore(watch: Watch, directory: Directory, plan: Plan) -> Outcome:
    outcome = carry_out(directory, plan)
    watch.chore = None
    return outcome


def _ignore(_value: object, _error: BaseException | None) -> None:
    pass


def _nothing() -> None:
    pass


class _Leaving:
    """Lets go of a directory once both threads are done with it: who has the lock after us must
    not meet a chore that was begun under it.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._lock = directory.environment.lock()
        self._left = {"disk", "housekeeping"}

    def leave(self, thread: str) -> None:
        with self._lock:
            self._left.discard(thread)
            is_last = not self._left
        if is_last:
            self._directory.close()


def _leave(leaving: _Leaving, disk: Worker, housekeeping: Worker, watch: Watch) -> None:
    disk.submit(partial(leaving.leave, "disk"), _ignore)
    disk.stop()
    housekeeping.submit(partial(leaving.leave, "housekeeping"), _ignore)
    housekeeping.stop()
    watch.end()


def _let_go(directory: Directory, *, is_clean: bool) -> None:
    try:
        if is_clean:
            directory.say_clean()
    finally:
        directory.close()


def _clear(error: BaseException | None) -> None:
    """An error that is kept keeps no frame: neither a plan's, with its files, nor those of a
    caller who carried the plan out.
    """
    while error is not None:
        if error.__traceback__ is not None:
            traceback.clear_frames(error.__traceback__)
        if isinstance(error, Exception):  # who interrupts wants to see where
            error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _torn() -> WalError:
    return WalError("an exception from outside came while memory was changed")


def poisoned(cause: BaseException) -> WalPoisonedError:
    error = WalPoisonedError(
        f"the log takes no more writes, since one failed ({describe(cause)}). What was "
        "acknowledged before is safe; close the store, check the disk, then reopen it"
    )
    error.__cause__ = cause
    return error


def describe(error: BaseException) -> str:
    """What happened, to which file: an OSError has its path in a note."""
    notes = getattr(error, "__notes__", ())
    return ", ".join([str(error) or type(error).__name__, *notes])
