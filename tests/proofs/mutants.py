"""The engine with one fault each, to show that the loops tell.

A mutant replaces a function of the engine while it is applied, or changes its plans on their way to
the disk: the engine itself has no switches. Each breaks one rule of ``docs/design/format.md``. It
knows the engine's inside, as ``core`` does: a new engine changes this file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

from hqlwal_raft import (
    LogId,
    _appending,
    _commits,
    _format,
    _lane,
    _log,
    _look,
    _on_lane,
    _operations,
    _plans,
    _receiving,
    _records,
    _recovery,
    _starting,
    _truncating,
)
from hqlwal_raft._answers import Answer
from hqlwal_raft._blocking_reader import BlockingRaftLogReader
from hqlwal_raft._calls import Received
from hqlwal_raft._commit import Committer
from hqlwal_raft._directory import Directory
from hqlwal_raft._environment import Environment, Loop
from hqlwal_raft._format import SETTLED, MetaState, SegmentHeader, unpack_slot
from hqlwal_raft._grouping import GroupCommit
from hqlwal_raft._lane import Lane, _Event, _Waiter
from hqlwal_raft._leaving import let_go
from hqlwal_raft._log import Log
from hqlwal_raft._on_lane import OnLane
from hqlwal_raft._phases import Order, Phase
from hqlwal_raft._plans import (
    Outcome,
    Plan,
    Step,
    SyncDirectory,
    Unlink,
    Work,
    Write,
    Zero,
    carry_out,
)
from hqlwal_raft._pool import Thread
from hqlwal_raft._reading import CHUNK_BYTES
from hqlwal_raft._receiving import Verdict
from hqlwal_raft._segment import Segment
from hqlwal_raft._starting import Starts
from hqlwal_raft._threads import Outcomes

from . import core

__all__ = ["CALLS", "CHECKSUMS", "COMMITS", "CRASHES", "OPCODES", "ORDERS", "RECEIVING", "Mutant"]

_encode, _encode_one = _records.encode, _records.encode_one
_marked = Segment.marked
_give, _is_refused = Answer.give, _plans._is_refused
_call, _start_received = Lane.call, _starting._start_received
_begin_commit, _send = GroupCommit._begin, OnLane._send
_start_operation = _starting._start_operation
_abandon, _commit_ended = Committer.abandon, GroupCommit._ended
_purge, _truncate = _operations.purge, _truncating.truncate


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    #: object, attribute, replacement
    patches: tuple[tuple[Any, str, Any], ...]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for target, name, replacement in self.patches:
                stack.enter_context(mock.patch.object(target, name, replacement))
            yield


def _planned(name: str, change: Callable[[Plan], Plan], *more: Any) -> Mutant:
    """A mutant of the plans that the log carries out, and those that ``more`` modules do."""

    def carry_out_changed(directory: Directory, plan: Plan) -> Outcome:
        return carry_out(directory, change(plan))

    places = (core, _log, _plans, _recovery, *more)
    return Mutant(name, tuple((place, "carry_out", carry_out_changed) for place in places))


def _without(plan: Plan, *kinds: type[Step]) -> Plan:
    """The plan without such steps; what follows them must not need their values."""
    return replace(plan, steps=tuple(s for s in plan.steps if not isinstance(s, kinds)))


def _zero_nothing(plan: Plan) -> Plan:
    return _without(plan, Zero) if plan.name == "truncate" else plan


def _leave_the_torn_tail(plan: Plan) -> Plan:
    return _without(plan, Zero) if plan.name == "recover" else plan


def _sync_no_names(plan: Plan) -> Plan:
    return _without(plan, SyncDirectory) if plan.name == "truncate" else plan


def _mark_ahead(
    self: Segment, next_id: int, end: int, *, is_sealed: bool, cut: int = 0
) -> SegmentHeader:
    if (next_id, end) == (self.durable_next_id, self.durable_end) and not is_sealed:
        next_id, end = self.next_id, self.end
    return _marked(self, next_id, end, is_sealed=is_sealed, cut=cut)


def _note_no_cut(
    self: Segment, next_id: int, end: int, *, is_sealed: bool, cut: int = 0
) -> SegmentHeader:
    return _marked(self, next_id, end, is_sealed=is_sealed, cut=0 * cut)


def _settle_early(*arguments: Any, is_settled: bool) -> Any:
    return _encode(*arguments, is_settled=is_settled or True)


def _settle_one_early(index: int, marked: int, *arguments: Any) -> Any:
    return _encode_one(index, marked | SETTLED, *arguments)


def _is_followed_soon(log: Log, segment: Segment) -> bool:
    return segment is not log.segments[-1]


def _unlink_before_the_frontier(log: Log, log_id: LogId) -> Work[None]:
    work = _purge(log, log_id)
    try:
        plan = next(work)
    except StopIteration:
        return
    write = plan.steps[0]
    assert isinstance(write, Write)
    slot = unpack_slot(write.parts[0])
    assert isinstance(slot, tuple)
    state: MetaState = slot[1]
    gone = [
        Unlink(segment.name)
        for segment in log.segments
        if state.first_segment == 0 or segment.number < state.first_segment
    ]
    outcome = yield replace(plan, steps=(*gone, *plan.steps))
    with contextlib.suppress(StopIteration):
        work.send(outcome)


def _truncate_by_half(log: Log, index: int) -> Work[None]:
    ends = {segment.number: segment.end for segment in log.segments}
    yield from _truncate(log, index)
    if log.segments:
        tail = log.segments[-1]
        tail.end = tail.durable_end = max(tail.end, ends.get(tail.number, 0))


def _no_checksum(_data: object, _value: int = 0) -> int:
    return 0


#: what the loop over crashes must find
CRASHES = (
    Mutant("the mark is written ahead", ((Segment, "marked", _mark_ahead),)),
    Mutant(
        "the settled bit is set too early",
        ((_appending, "encode", _settle_early), (_appending, "encode_one", _settle_one_early)),
    ),
    Mutant("a segment is sealed too early", ((_operations, "_is_followed", _is_followed_soon),)),
    _planned("names are removed without a sync of the directory", _sync_no_names),
    _planned("what is cut off is not zeroed", _zero_nothing),
    _planned("the torn tail is not zeroed", _leave_the_torn_tail),
    Mutant("the cut is not noted", ((Segment, "marked", _note_no_cut),)),
    Mutant(
        "the frontier is written after the files are unlinked",
        ((_operations, "purge", _unlink_before_the_frontier),),
    ),
    Mutant(
        "the outcome of a truncation is applied by half",
        ((_truncating, "truncate", _truncate_by_half),),
    ),
)


def _cut_behind(log: Log, verdict: Verdict, conflict: LogId) -> Work[Verdict]:
    """The entry in conflict stays, and the leader's entries follow it."""
    yield from _truncate(log, conflict.index + 1)
    return verdict._replace(
        epoch=log.epoch, conflict=None, held=verdict.held + 1, truncated_from=conflict.index
    )


#: what the loop over crashes must find where entries come from a leader
RECEIVING = (
    Mutant("the log is cut behind the conflict", ((_receiving, "_cut", _cut_behind),)),
    _planned("segments that are cut off for a leader come back", _sync_no_names, _on_lane),
)

#: what the loop over bits must find
CHECKSUMS = (
    Mutant("headers and slots have no checksum", ((_format, "crc32c", _no_checksum),)),
    Mutant(
        "records have no checksum",
        ((_records, "crc32c", _no_checksum), (_look, "crc32c", _no_checksum)),
    ),
)


# --- what a failure means --------------------------------------------------------------------


def _point_late(plan: Plan) -> Plan:
    """The point of no return one step late, for truncations."""
    is_cut = plan.name == "truncate" and plan.point is not None
    return replace(plan, point=plan.point + 1) if is_cut else plan  # type: ignore[operator]


def _carry_out_late(directory: Directory, plan: Plan) -> Outcome:
    return carry_out(directory, _point_late(plan))


def _retreat_by_half(log: Log) -> None:
    """What was accepted stays in memory, as if it were written."""
    log.unsynced.forget()
    log.durable_entries, log.durable_bytes = log.appended_entries, log.appended_bytes


def _give_to_waiters_only(self: Answer, loop: Loop, value: Any, error: Any) -> None:
    """Whoever waits is answered of an error, callbacks are not."""
    if error is not None:
        self.callbacks.clear()
    _give(self, loop, value, error)


def _refuse_all_writes(plan: Plan, place: int, error: BaseException) -> bool:
    """An error at the point of no return is taken for 'nothing was stored', whatever it is."""
    return _is_refused(plan, place, error) or (place == plan.point and isinstance(error, OSError))


def _let_go_if_all_is_well(directory: Directory, *, is_clean: bool = False) -> None:
    if is_clean:
        directory.say_clean()
    directory.close()


def _wake_one(self: _Event) -> None:
    """Of the threads that wait for one answer, the first is woken."""
    self.is_set = True
    for waiter in self.waiters[:1]:
        self._lane.wake(waiter)


#: what the loop over failing calls must find
CALLS = (
    Mutant("a truncation's point comes a step late", ((_on_lane, "carry_out", _carry_out_late),)),
    Mutant("a refused commit is taken back by half", ((_commits, "retreat", _retreat_by_half),)),
    Mutant("callbacks are not told of errors", ((Answer, "give", _give_to_waiters_only),)),
    Mutant("any failed write is a refused one", ((_plans, "_is_refused", _refuse_all_writes),)),
    Mutant("the lock stays where closing fails", ((_on_lane, "let_go", _let_go_if_all_is_well),)),
    Mutant("of many threads one is answered", ((_lane._Event, "set", _wake_one),)),
)


# --- who is the owner, and who waits --------------------------------------------------------------


def _call_without_the_lock(self: Lane, begin: Callable[[], Any]) -> Any:
    """The lock is taken when memory has changed already."""
    result = begin()
    return _call(self, lambda: result)


def _call_and_let_lie(self: Lane, begin: Callable[[], Any]) -> Any:
    """A thread that finds its answer does not look whether it was given a job meanwhile."""
    with self.lock:
        result = begin()
        self._run_soon()
        if result.__class__ is not Answer:
            self._pass_on()
            return result
        waiter = _Waiter(self._environment.lock())
        job = self._next_job(result, waiter)
    while job is not None or not result.event.is_set:
        if job is not None:
            job = self._carry_out(job, result, waiter)
        else:
            waiter.lock.acquire()
            job = waiter.job
    return result.result()


def _let_go_at_once(self: Committer) -> None:
    """The lock goes when the disk thread is done, whatever the other one does."""
    if self.phase is not Phase.CLOSED:
        ending = partial(let_go, self.log.directory, is_clean=False)
        self._disk.submit(ending, lambda _value, _error: None)
    _abandon(self)


def _deliver_twice(self: Outcomes) -> None:
    """As after an interrupt: each outcome is applied, and then once more."""
    while self._left:
        outcome = self._left[0]
        outcome()
        outcome()
        self._left.popleft()


def _end_any_commit(self: GroupCommit, _group: Answer, outcome: Outcome, order: Order) -> None:
    """An outcome is taken for that of whatever commit is under way."""
    if self.under_way is not None:
        _commit_ended(self, self.under_way, outcome, order)


def _find_nothing_gone(self: BlockingRaftLogReader, start: int, stop: int | None = None) -> Any:
    """A stream compares epochs, but takes its own when the chunk was read."""
    position = start
    while chunk := self.limited_get_log_entries(position, stop, CHUNK_BYTES):
        epoch = self._core.log.epoch
        for entry in chunk:
            position = entry.index + 1
            yield entry
            if self._core.log.epoch != epoch:
                break


def _let_others_in(order: Starts, received: Received) -> bool:
    """What waits behind what a leader sent comes between the cut for it and its append."""
    is_started = _start_received(order, received)
    if order.queue and order.queue[0] is not received and received in order.queue:
        order.queue.remove(received)
        order.queue.append(received)
    return is_started


#: what the loop over orders must find on the blocking face
ORDERS = (
    Mutant("memory is changed without the lock", ((Lane, "call", _call_without_the_lock),)),
    Mutant("who was answered lets a job lie", ((Lane, "call", _call_and_let_lie),)),
    Mutant("of many threads one is answered", ((_lane._Event, "set", _wake_one),)),
    Mutant(
        "an abandoned store gives up its lock at once",
        ((Committer, "abandon", _let_go_at_once),),
    ),
    Mutant(
        "others come between a cut and its append",
        ((_starting, "_start_received", _let_others_in),),
    ),
    Mutant(
        "a stream takes the epoch late",
        ((BlockingRaftLogReader, "entries_stream", _find_nothing_gone),),
    ),
)


def _commit_and_answer(self: GroupCommit) -> None:
    """An append is answered when its commit begins."""
    _begin_commit(self)
    if self.under_way is not None:
        self.under_way.give(self._loop, None, None)


def _start_at_once(order: Starts, operation: Any) -> bool:
    """An operation does not wait for the chore that is under way."""
    chores = order.chores
    work, chores._work = chores._work, None
    is_started = _start_operation(order, operation)
    if work is not None:
        chores._work = work
    return is_started


def _vote_and_answer(self: OnLane, operation: Any, plan: Plan, *, is_need: bool) -> None:
    """A vote is answered when its plan is on its way."""
    _send(self, operation, plan, is_need=is_need)
    if plan.name == "save vote":
        operation.answer.give(self._loop, None, None)


#: what the loop over crashes must find on both faces
COMMITS = (
    Mutant(
        "an outcome applied twice ends the next commit",
        ((Outcomes, "deliver", _deliver_twice), (GroupCommit, "_ended", _end_any_commit)),
    ),
    Mutant("an append is answered before its sync", ((GroupCommit, "_begin", _commit_and_answer),)),
    Mutant("a vote is answered before its sync", ((OnLane, "_send", _vote_and_answer),)),
    Mutant(
        "chores run beside a truncation",
        ((Committer, "waits_for_quiet", False), (_starting, "_start_operation", _start_at_once)),
    ),
)


def _run_once(self: Thread) -> None:
    while self._go_on():
        pass


#: what the loop over opcodes must find on the blocking face
OPCODES = (
    Mutant("the main thread is the owner", ((Environment, "is_main_thread", lambda _self: False),)),
    Mutant("a worker ends where memory runs out", ((Thread, "run", _run_once),)),
)
